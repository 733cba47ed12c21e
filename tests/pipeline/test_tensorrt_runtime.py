"""Laws of TensorRT as a runtime of the pipeline, on an emulated TensorRT and an emulated GPU: no real one was there.

See `emulated_tensorrt` for what is emulated. Building with the real TensorRT-RTX is in `tests/deploy`.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli.shell import Shell
from measure.emulated_gpu import ORIN
from pipeline.emulated_tensorrt import TOGETHER, ComputingCuda, emulated_tensorrt, latency_ms

from cpd_edge.deploy.engine import EngineSpec
from cpd_edge.errors import ModelError, RuntimeMissing
from cpd_edge.intake.models import RandomWeightsWarning, load_model
from cpd_edge.measure import engine_runner
from cpd_edge.measure.driver import find_gpu
from cpd_edge.measure.runners import OnnxRunner
from cpd_edge.measure.runtimes import require_runtime
from cpd_edge.pipeline import bench as bench_module
from cpd_edge.pipeline import engines, opening
from cpd_edge.pipeline.opening import engine_of, open_model
from cpd_edge.pipeline.plans import best_plans, posed
from cpd_edge.pipeline.subject import Subject
from cpd_edge.profile.sample import profile
from cpd_edge.profile.table import LatencyTable
from cpd_edge.types import Constraints, Importance

SHAPE = (1, 16, 16)


@pytest.fixture(scope="module")
def subject() -> Subject:
    with pytest.warns(RandomWeightsWarning):
        model = load_model("zoo:resnet8", None, None, in_channels=1)
    return Subject.of(model, SHAPE, runtime="tensorrt")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ComputingCuda:
    """An emulated Orin with an emulated TensorRT, and a cache folder of the test's own."""
    device = ComputingCuda()
    monkeypatch.setitem(sys.modules, "tensorrt", emulated_tensorrt(device))
    monkeypatch.setattr(engine_runner, "cuda_runtime", lambda: device)
    for module in (engine_runner, opening, engines):
        monkeypatch.setattr(module, "require_gpu", lambda purpose: ORIN)
    monkeypatch.setenv("CPD_EDGE_CACHE", str(tmp_path / "cache"))
    return device


def test_a_builder_with_flags_is_given_the_forms_of_opset_17(subject: Subject, cuda: ComputingCuda) -> None:
    """What it reads is what every TensorRT reads, though the file that is shipped is of a later opset."""
    with contextlib.closing(open_model("local", "tensorrt", subject.build(subject.widths))):
        built = [onnx.load_from_string(data) for data in sys.modules["tensorrt"].builds]
    shipped = onnx.load_from_string(subject.build(subject.widths))
    opsets = [entry.version for model in (shipped, *built) for entry in model.opset_import if not entry.domain]
    assert opsets[0] > 17 and set(opsets[1:]) == {17}
    assert {len(node.input) for node in built[0].graph.node if node.op_type == "ReduceMean"} == {1}


def test_an_old_builder_is_not_given_what_it_would_misread(cuda: ComputingCuda, tmp_path: Path) -> None:
    """TensorRT 8 takes a later form for an earlier one; 10 says for itself what it does not take."""
    late = onnx.helper.make_node("Pad", ["x", "pads"], ["y"], "wrapped", mode="wrap")
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3, 8, 8]) for name in "xy"]
    pads = onnx.numpy_helper.from_array(np.zeros(8, np.int64), "pads")
    graph = onnx.helper.make_graph([late], "g", values[:1], values[1:], [pads])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)]), tmp_path / "late.onnx")
    sys.modules["tensorrt"].__version__ = "8.6.1"
    with pytest.raises(ModelError, match=r"reads ONNX up to opset 17, and .* has no form there: wrapped \(Pad\)"):
        engines.build(tmp_path / "late.onnx", "tensorrt", EngineSpec())


def measured(subject: Subject, cuda: ComputingCuda, folder: Path, samples: int = 16) -> LatencyTable:
    return profile(
        subject.build, subject.regions, subject.widths, subject.runner, subject.key(), model=subject.dense_onnx,
        samples=samples, holdout=samples // 4, folder=folder, repeats=3, clock=cuda.clock,
    )  # fmt: skip


def test_a_profile_becomes_a_table_and_a_plan(subject: Subject, cuda: ComputingCuda, tmp_path: Path) -> None:
    """Each engine, the reference too, is built once and tells all regions; the plan's takes what the table said.

    What is one kernel is one in the samples, and the change of format belongs to no region.
    """
    table = measured(subject, cuda, tmp_path / "table")
    builds: list[bytes] = sys.modules["tensorrt"].builds
    assert len(builds) == len(set(builds)) <= len(table.samples) + 1
    assert (tuple(subject.regions[i].name for i in TOGETHER),) == table.fused
    assert {0.01} == {round(s.reformats_ms, 9) for s in table.samples}
    assert ("tensorrt", "10.3.0", "sm_87,enqueue,without transfers,driver's wait") == tuple(
        table.key[k] for k in ("runtime", "runtime_version", "providers")
    )
    assert table.report()["holdout_median_error"] < 0.02
    dense_ms = latency_ms(subject.build(subject.widths))
    importance = Importance({name: np.ones(n) for name, n in subject.widths.items()})
    where = posed(table, importance, 0.6 * dense_ms, subject.combed.groups, Constraints())
    (plan,) = best_plans(where, 1)
    true_ms = latency_ms(subject.build_plan(plan.kept))
    assert true_ms == pytest.approx(plan.predicted_ms, rel=0.05)
    assert true_ms < 0.65 * dense_ms


def test_an_interrupted_profile_builds_nothing_twice(subject: Subject, cuda: ComputingCuda, tmp_path: Path) -> None:
    """Samples are on disk as they are finished, engines are kept, and the timing cache grows with every build."""
    whole = measured(subject, cuda, tmp_path / "table", 8)
    builds: list[bytes] = sys.modules["tensorrt"].builds
    count, log = len(builds), tmp_path / "table/samples.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:5]) + lines[5][:20])
    (tmp_path / "table/table.json").unlink()
    assert whole.fused == measured(subject, cuda, tmp_path / "table", 8).fused
    assert count == len(builds)
    (timings,) = (tmp_path / "cache").glob("*.timing")
    assert count == len(timings.read_bytes())


def test_an_engine_computes_what_the_model_does(subject: Subject, cuda: ComputingCuda) -> None:
    """Through memory, addresses and pieces of the engine's batch."""
    data = subject.build(subject.widths)
    feed = np.random.default_rng(0).standard_normal((3, *SHAPE)).astype(np.float32)
    with (
        contextlib.closing(open_model("local", "tensorrt", data)) as engine,
        contextlib.closing(OnnxRunner(data)) as ort,
    ):
        np.testing.assert_allclose(engine.outputs(feed), ort.outputs(feed), rtol=1e-4, atol=1e-5)


def test_bench_times_the_precision_that_is_asked_for(
    subject: Subject, cuda: ComputingCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an ONNX file TensorRT builds an engine in it, so that what `prune` measured can be measured again."""
    monkeypatch.setattr(bench_module, "require_runtime", lambda runtime, device: None)
    (tmp_path / "net.onnx").write_bytes(subject.build(subject.widths))
    found = bench_module.bench(
        tmp_path / "net.onnx", None, budget_ms=None, quantile=0.5, runtime="tensorrt", threads=1, precision="fp16",
        limit_s=0.2, target=0.5, period_ms=None, out=None, progress=lambda *_: None,
    )  # fmt: skip
    assert ("tensorrt", "fp16") == (found["environment"]["runtime"], found["environment"]["precision"])


def test_kept_engines_stay_within_a_limit(
    subject: Subject, cuda: ComputingCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that was used longest ago goes, with its record; another precision is another engine."""
    monkeypatch.setattr(opening, "KEEP_BYTES", 1)
    data = subject.build(subject.widths)
    first, second = engine_of(data), engine_of(data, "fp16")
    assert (first.exists(), second.exists()) == (False, True)
    assert {second, second.with_name(second.name + ".json")} == set(second.parent.iterdir())


@pytest.mark.skipif(find_gpu()[0] is not None, reason="this machine has a GPU")
@pytest.mark.parametrize("runtime", ["tensorrt", "onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_what_cannot_run_here_is_refused_by_name_before_any_work(runtime: str, shell: Shell) -> None:
    """No driver, or a build of ONNX Runtime without the provider: it is never replaced by something else."""
    with pytest.raises(RuntimeMissing):
        require_runtime(runtime)
    require_runtime(runtime, "orin")
    refused = shell("profile", "zoo:resnet8", "--runtime", runtime)
    assert refused.code != 0 and refused.out == ""
    assert "NVIDIA driver" in refused.err or "ExecutionProvider" in refused.err or "not installed" in refused.err
