"""Laws of the engine verbs: what `build`, `compare-engines` and `import-trtexec` give, on the real TensorRT-RTX."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import typer
from typer.testing import CliRunner

from cpd_edge.cli.engine_commands import register
from cpd_edge.comb import comb
from cpd_edge.cut import cut
from cpd_edge.deploy.engine import EngineSpec
from cpd_edge.deploy.onnx import export_onnx, finish
from cpd_edge.errors import CpdError, DataError, ModelError, RuntimeMissing, StoreError
from cpd_edge.intake.zoo import ResNet
from cpd_edge.measure.doctor import tiny_model
from cpd_edge.measure.driver import find_gpu
from cpd_edge.measure.engine_file import load_engine, read_record
from cpd_edge.measure.runners import OnnxRunner
from cpd_edge.pipeline.engines import build, compare_engines, import_exports, node_names, open_runner, precision_notes

EXPORTS = Path(__file__).parents[1] / "measure/exports"
SPEC = EngineSpec(arch="sm_86")

rtx = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The ONNX files of a small ResNet, dense and with half of every group cut away."""
    folder = tmp_path_factory.mktemp("pair")
    combed = comb(ResNet(8), (3, 32, 32))
    small = cut(combed, {g.name: np.arange(0, g.units, 2) for g in combed.groups.groups})
    for name, network in (("dense", combed.network), ("pruned", small)):
        onnx.save(finish(export_onnx(network).model), folder / f"{name}.onnx")
    return folder / "dense.onnx", folder / "pruned.onnx"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.onnx"
    path.write_bytes(tiny_model())
    return path


def command(*words: object) -> Any:
    """The commands, on a command line of their own."""
    app = typer.Typer()
    register(app)
    return CliRunner().invoke(app, [str(word) for word in words])


@rtx
@pytest.mark.slow
def test_dense_and_pruned_engines_are_compared_layer_by_layer(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """A pruned network of ours builds; its layers meet the dense ones by module, with half the channels."""
    engines = [tmp_path / f"{path.stem}.plan" for path in pair]
    for path, engine in zip(pair, engines, strict=True):
        build(path, "tensorrt-rtx", replace(SPEC, precision="fp16"), out=engine)
    found = compare_engines(*engines)
    rows = {" ".join(p["nodes"]): p for p in found["pairs"] if p["nodes"]}
    assert [0, 0] == [found["counts"][side] for side in ("only left", "only right")]
    stem = next(row for name, row in rows.items() if "bn/Conv" in name)
    shapes = [[layer["outputs"] for layer in stem[side]][-1] for side in ("left", "right")]
    assert [["1x16x32x32"], ["1x8x32x32"]] == shapes
    assert found["size_bytes"][1] < found["size_bytes"][0]


@rtx
def test_build_writes_an_engine_and_its_record(tiny: Path, tmp_path: Path) -> None:
    """The record says what it was built from, by what and for what; `--json` holds it."""
    result = command("build", tiny, "--runtime", "tensorrt-rtx", "--arch", "sm_86", "--precision", "fp16", "--json")
    assert 0 == result.exit_code, result.output
    found = json.loads(result.stdout)
    assert {"engine", "size_bytes", "regions", "seconds"} <= found.keys()
    assert {"name", "type", "onnx_layers", "precision"} <= found["regions"][0].keys()
    assert {"conv0", "conv1", "conv2"} <= {n for region in found["regions"] for n in region["onnx_layers"]}
    plan, record = load_engine(Path(found["engine"]), tiny)
    assert (len(plan), "sm_86", "fp16", "") == (found["size_bytes"], record.arch, record.precision, record.gpu)
    assert Path(found["engine"]) == tmp_path / "tiny.fp16.plan"


@rtx
def test_the_build_is_shown_as_a_table(tiny: Path) -> None:
    """One line a fused layer, with the ONNX nodes in it."""
    result = command("build", tiny, "--runtime", "tensorrt-rtx", "--batch", "1,4,8")
    lines = result.stdout.splitlines()
    assert "tensorrt-rtx" in lines[0] and "no GPU in particular" in lines[0]
    assert any("conv1 relu1" in line and "fp32" in line for line in lines)


@rtx
def test_int8_is_calibrated_from_a_file(tiny: Path, tmp_path: Path) -> None:
    """The images quantise the model; without them INT8 is refused."""
    np.save(tmp_path / "images.npy", np.random.default_rng(0).standard_normal((8, 3, 32, 32)).astype(np.float32))
    options = ("--runtime", "tensorrt-rtx", "--arch", "sm_86", "--precision", "int8")
    refused = command("build", tiny, *options)
    assert (2, True) == (refused.exit_code, "--calibration" in refused.stderr)
    done = command("build", tiny, *options, "--calibration", tmp_path / "images.npy", "--json")
    assert any("int8" in region["precision"] for region in json.loads(done.stdout)["regions"])


@rtx
def test_the_onnx_file_that_changed_makes_the_engine_stale(tiny: Path) -> None:
    """By the hash of the file that the user has, not of what was made of it."""
    engine = Path(build(tiny, "tensorrt-rtx", replace(SPEC, precision="fp16"))["engine"])
    tiny.write_bytes(tiny_model((3, 8)))
    with pytest.raises(StoreError, match=r"tiny\.fp16\.plan is stale"):
        load_engine(engine, tiny)


@pytest.mark.skipif(find_gpu()[0] is not None, reason="this machine has a GPU")
@rtx
def test_an_engine_is_opened_by_its_record_and_a_model_without(tiny: Path) -> None:
    """The engine wants its GPU, and says so instead of crashing."""
    engine = Path(build(tiny, "tensorrt-rtx", SPEC)["engine"])
    with pytest.raises(RuntimeMissing, match="needs an NVIDIA GPU"):
        open_runner(engine)
    runner = open_runner(tiny)
    assert isinstance(runner, OnnxRunner)
    runner.close()


@pytest.mark.skipif(find_gpu()[0] is not None, reason="this machine has a GPU")
def test_tensorrt_is_not_touched_without_a_driver(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its builder would end the process; a module that must not be touched stands in for it."""
    module = type("Untouchable", (), {"__name__": "tensorrt"})()
    monkeypatch.setattr("cpd_edge.pipeline.engines.runtime_module", lambda runtime: module)
    with pytest.raises(RuntimeMissing, match="building with TensorRT needs an NVIDIA GPU"):
        build(tiny, "tensorrt", EngineSpec())


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [(None, DataError, "no model at"), (b"junk", ModelError, "no complete ONNX file"), (b"", ModelError, "no nodes")],
)
@rtx
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes | None, error: type[CpdError], words: str) -> None:
    """Before a runtime sees it."""
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=words):
        build(path, "tensorrt-rtx", SPEC)


@rtx
def test_what_the_engine_really_computes_in_is_said(tiny: Path) -> None:
    """Asked for is not built: the layers tell."""
    record = read_record(Path(build(tiny, "tensorrt-rtx", replace(SPEC, precision="fp16"))["engine"]))
    model, spec = onnx.load(tiny), EngineSpec(precision="fp16", fp32_layers=("conv1",))
    assert any(
        "conv1 was to stay in fp32, but the engine has it in fp16" in n
        for n in precision_notes(model, spec, record.layers)
    )
    halves = [replace(layer, precision="fp32") for layer in record.layers]
    assert any("3 of 4 weighted nodes" in n or "4 of 4 weighted nodes" in n
               for n in precision_notes(model, EngineSpec(precision="fp16"), halves))  # fmt: skip


def test_nodes_are_called_by_module_and_place() -> None:
    """The second ReLU of one module is another node than the first; what has no module keeps its own name."""
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op, ["x"], [name], name) for op, name in
         (("Relu", "r0"), ("Relu", "r1"), ("Neg", "n"), ("Neg", "alone"))], "g", [], [],
    )  # fmt: skip
    for node in graph.node[:3]:
        entry = node.metadata_props.add()
        entry.key, entry.value = "pkg.torch.onnx.name_scopes", "['', 'block.0', 'relu_7']"
    assert {"r0": "block.0/Relu", "r1": "block.0/Relu#2", "n": "block.0/Neg"} == node_names(
        onnx.helper.make_model(graph)
    )


def test_old_exports_become_a_report_without_a_gpu(tmp_path: Path) -> None:
    """A latency interval, a verdict, a layer table; and a file that holds the samples."""
    files = [word for end in ("profile", "layers") for word in (f"--{end}", EXPORTS / f"a100.{end}.json")]
    known = ["--device", "A100", "--tensorrt-version", "8.4", "--budget-ms", "2.5"]
    words = ["import-trtexec", EXPORTS / "a100.times.json", *files, *known]
    result = command(*words, "--out", tmp_path / "a100.json", "--json")
    assert 0 == result.exit_code, result.output
    found = json.loads(result.stdout)
    assert (9, True, "PASS") == (found["latency_ms"]["n"], found["environment"]["imported"], found["verdict"])
    (conv,) = [la for la in found["layers"] if la["name"] == "Conv_0 + Relu_1"]
    assert (0.111616, ["Conv_0", "Relu_1"], "fp16") == (conv["ms"], conv["onnx_layers"], conv["precision"])
    kept = json.loads((tmp_path / "a100.json").read_text())
    assert (9, 7) == (len(kept["samples_ns"]), len(kept["layers"]))
    text = command(*words)
    assert "A100, TensorRT 8.4" in text.stdout and "PASS for 2.5 ms" in text.stdout


def test_an_export_of_layers_is_compared_like_an_engine() -> None:
    """With itself: nothing changed."""
    found = compare_engines(EXPORTS / "a100.layers.json", EXPORTS / "a100.layers.json")
    assert {"same": 4, "changed": 0, "only left": 0, "only right": 0} == found["counts"]
    assert "= Conv_3 Relu_4" in command("compare-engines", *[EXPORTS / "a100.layers.json"] * 2).stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["compare-engines", "no.plan", "no.plan"], "no.plan is no engine with a record"),
        (["import-trtexec", "no.json"], "no.json does not exist"),
        (["import-trtexec", EXPORTS / "a100.times.json", "--metric", "speed"], "one of latency, compute, enqueue"),
        (["build", "net.onnx", "--runtime", "onnxruntime"], "one of tensorrt, tensorrt-rtx"),
        (["build", "net.onnx", "--batch", "many"], "--batch 1,4,8"),
        (["build", "net.onnx", "--precision", "fp8"], "one of fp32, tf32, fp16, int8, int8+fp16"),
    ],
)
def test_wrong_usage_says_what_to_type(words: list[object], said: str) -> None:
    """On stderr, with exit code 2."""
    result = command(*words)
    assert (2, True) == (result.exit_code, said in result.stderr), result.stderr


def test_imported_samples_are_the_file_s(tmp_path: Path) -> None:
    """No budget, no verdict; no profile, no layers."""
    found = import_exports(EXPORTS / "a100.times.json", name="old")
    assert ("old", [], None) == (found["name"], found["layers"], found["layers_ms"])
    assert "verdict" not in found
