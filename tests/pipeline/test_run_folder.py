"""Laws of a finished run: one record, printed and kept; one folder that holds everything; engine equal to module."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from cli.shell import Done, Shell
from cli.worlds import PRUNE, QUICK

import cpd_edge
from cpd_edge.errors import UsageError
from cpd_edge.measure.runners import OnnxRunner
from cpd_edge.store import Run
from cpd_edge.types import EXIT_CODES, Budget

NUMBERS = (
    "budget_ms",
    "quantile",
    "macs_ratio",
    "params_ratio",
    "metric_dense",
    "metric_pruned",
    "predicted_ms",
    "gap",
)
FILES = (
    "run.json", "samples/dense.json", "samples/pruned.json", "plan.json", "pruned.pt2", "pruned.onnx", "dense.onnx",
    "report.html", "report.md", "table.json", "groups.json",
)  # fmt: skip


def test_the_record_has_every_promised_key(finished: tuple[Run, Done]) -> None:
    """`prune --json` has the verdict, both latencies, the paired speed-up beside the ratios, the metric, the stages."""
    record = finished[1].json
    assert record["verdict"] in EXIT_CODES
    assert all(isinstance(record[k], (int, float)) and math.isfinite(record[k]) for k in NUMBERS)
    for name in ("latency_ms", "dense_latency_ms", "speedup"):
        low, estimate, high = (record[name][k] for k in ("low", "estimate", "high"))
        assert 0 < low <= estimate <= high and record[name]["n"] > 0
    assert isinstance(record["rounds"], int) and 1 <= record["rounds"] <= 2
    assert {"comb", "profile", "score", "solve", "distil", "deploy", "bench"} <= set(record["seconds"])
    assert {"device", "runtime", "runtime_version", "threads", "precision"} <= set(record["environment"])
    assert Path(record["run"]).name == finished[0].folder.name


def test_all_that_takes_time_is_told(finished: tuple[Run, Done]) -> None:
    """From the first second to the last some stage is named, and what the record can still hold is timed in it."""
    told = [line.split()[0] for line in finished[1].err.splitlines() if line.endswith(" s")]
    assert (told[0], told[-7:]) == ("load", ["deploy", "bench", "save", "evaluate", "layers", "verify", "report"])
    assert set(finished[1].json["seconds"]) >= set(told) - {"load", "dense", "measure", "report"}


def test_the_metric_is_the_tasks(classified: tuple[Run, Done], segmented: tuple[Run, Done]) -> None:
    """Classification is judged by accuracy, segmentation by mIoU; both lie in 0 to 1."""
    assert (classified[1].json["metric"], segmented[1].json["metric"]) == ("accuracy", "mIoU")
    assert all(0 <= run.record[k] <= 1 for run, _ in (classified, segmented) for k in ("metric_dense", "metric_pruned"))


def test_what_is_printed_is_what_is_kept(finished: tuple[Run, Done]) -> None:
    """Stdout of `--json` is one object and nothing else, equal to `run.json`."""
    run, done = finished
    assert json.loads((run / "run.json").read_text()) == json.loads(done.out)


def test_the_exit_code_is_the_verdicts(finished: tuple[Run, Done]) -> None:
    """PASS is 0, FAIL 1, INCONCLUSIVE 3."""
    assert finished[1].code == EXIT_CODES[finished[1].json["verdict"]]


def test_everything_of_a_run_is_in_its_folder(finished: tuple[Run, Done]) -> None:
    """Record, raw samples, plan, module, engine, report, table and groups are there; nothing half done is."""
    run, _ = finished
    assert [] == [name for name in FILES if not (run / name).is_file()]
    assert not (run / "checkpoints").exists()
    assert [] == [path for path in run.folder.rglob(".*")]


def test_ratios_are_those_of_the_networks(finished: tuple[Run, Done]) -> None:
    """MACs and parameters were cut, and the plan keeps what the record says of every group."""
    run, _ = finished
    plan = json.loads((run / "plan.json").read_text())
    assert run.record["macs_ratio"] > 1 and run.record["params_ratio"] > 1
    assert {g["name"]: g["kept"] for g in run.record["groups"]} == {g: len(units) for g, units in plan["keep"].items()}


def test_the_module_loads_without_the_users_class_and_without_us(finished: tuple[Run, Done], tmp_path: Path) -> None:
    """A fresh interpreter that can import neither loads `pruned.pt2` by torch alone and gives the engine's outputs."""
    run, _ = finished
    shape = [int(d) for d in run.record["environment"]["shape"].split("x")][1:]
    inputs = np.random.default_rng(0).standard_normal((4, *shape)).astype(np.float32)
    np.save(tmp_path / "inputs.npy", inputs)
    code = """
import sys
sys.modules.update({"cpd_edge": None, "mine": None, "cpd_edge_user_mine": None})
import numpy, torch
module = torch.export.load(sys.argv[1]).module()
with torch.no_grad():
    numpy.save(sys.argv[3], module(torch.from_numpy(numpy.load(sys.argv[2]))).numpy())
"""
    words = [run / "pruned.pt2", tmp_path / "inputs.npy", tmp_path / "outputs.npy"]
    subprocess.run([sys.executable, "-c", code, *map(str, words)], check=True, cwd=tmp_path, capture_output=True)
    outputs = np.load(tmp_path / "outputs.npy")
    engine = OnnxRunner(run / "pruned.onnx")
    np.testing.assert_allclose(outputs, engine.outputs(inputs), atol=1e-4 * np.abs(outputs).max())
    engine.close()


@pytest.mark.parametrize(("name", "factory"), [("classified", "make_net"), ("segmented", "make_dense_head")])
def test_parameters_keep_their_names(name: str, factory: str, shell: Shell, request: pytest.FixtureRequest) -> None:
    """The pruned module has exactly the parameter names of the user's own, none of them larger."""
    run, _ = request.getfixturevalue(name)
    spec = importlib.util.spec_from_file_location("mine_again", shell.folder / "mine.py")
    assert spec is not None and spec.loader is not None
    mine = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mine)
    dense = {k: v.shape for k, v in getattr(mine, factory)().named_parameters()}
    pruned = {k: v.shape for k, v in torch.export.load(run / "pruned.pt2").module().named_parameters()}
    assert list(pruned) == list(dense)
    assert all(small <= large for k in dense for small, large in zip(pruned[k], dense[k], strict=True))


def test_the_engine_says_where_it_comes_from(finished: tuple[Run, Done]) -> None:
    """The ONNX file carries its run, model and data."""
    run, _ = finished
    found = {p.key.rpartition(".")[2]: p.value for p in onnx.load(run / "pruned.onnx").metadata_props}
    request = run.record["request"]
    assert found.items() >= {"run": run.folder.name, "model": request["model"], "data": request["data"]}.items()


def test_raw_samples_are_those_of_the_record(finished: tuple[Run, Done]) -> None:
    """The interval's n is the number of raw samples in the folder, and they carry the record's environment."""
    run, _ = finished
    for name, key in (("dense", "dense_latency_ms"), ("pruned", "latency_ms")):
        kept = run.load_measurement(name)
        assert len(kept.samples_ns) == run.record[key]["n"]
        assert kept.environment["runtime_version"] == run.record["environment"]["runtime_version"]


def test_the_check_for_a_trend_says_how_large_it_is(finished: tuple[Run, Done]) -> None:
    """Of either engine, from its raw samples; where it failed, what to do about it."""
    run, _ = finished
    (check,) = [c for c in run.record["checks"] if c["name"] == "no trend while measuring"]
    for name in ("dense", "pruned"):
        samples_ns = run.load_measurement(name).samples_ns
        first, last = samples_ns[: len(samples_ns) // 3], samples_ns[-(len(samples_ns) // 3) :]
        assert f"{name} {np.median(last) / np.median(first) - 1:+.1%}" in check["detail"]
    assert check["passed"] != check["detail"].endswith("measure again on a quieter machine: cpd-edge bench")


def test_report_names_the_verdict_and_both_ratios(finished: tuple[Run, Done]) -> None:
    """The report's Markdown twin says the verdict, and never a speed-up without the MACs ratio."""
    run, _ = finished
    text = (run / "report.md").read_text()
    assert run.record["verdict"] in text and "MACs" in text


def test_the_final_bench_stops_where_it_is_told_to(shell: Shell) -> None:
    """A target that no window reaches: the time limit ends it, and both are in the record."""
    words = ("--limit-s", "0.3", "--target", "0.000001", "--out", "short", "--json")
    record = shell(*PRUNE, "--speedup", "1.3", *QUICK, *words).json
    assert record["stop"].startswith("time limit of 0.3 s: ")
    assert (record["request"]["limit_s"], record["request"]["target"]) == (0.3, 0.000001)


def test_a_budget_that_the_dense_engine_meets_needs_no_pruning(shell: Shell) -> None:
    """Above the dense latency the answer is 'already meets', PASS, exit 0, with engine, module and report."""
    done = shell(*PRUNE, "--budget-ms", "1000", *QUICK, "--out", "met")
    run = Run(shell.folder / "met")
    assert done.code == 0
    assert done.out.startswith("PASS: the dense engine already meets the budget")
    assert (run.record["verdict"], run.record["macs_ratio"], run.record["rounds"]) == ("PASS", 1.0, 0)
    assert "already meets" in (run / "report.html").read_text()
    assert (run / "pruned.onnx").is_file() and (run / "pruned.pt2").is_file()
    again = shell(*PRUNE, "--budget-ms", "1000", *QUICK, "--out", "met", "--resume")
    assert (again.code, again.out) == (0, done.out)


@pytest.mark.parametrize("steps", ["1", "2"])
def test_a_budget_that_no_plan_meets_names_the_floor(shell: Shell, steps: str) -> None:
    """Below every plan the answer is FAIL, exit 1, the floor in ms and the groups that hold it up; once and again."""
    words = (*PRUNE, "--speedup", "1000", *QUICK, "--steps", steps, "--out", f"infeasible-{steps}", "--json")
    done = shell(*words)
    record = done.json
    assert (done.code, record["verdict"]) == (1, "FAIL")
    assert record == Run(shell.folder / f"infeasible-{steps}").record
    assert 0 < record["floor_ms"] < record["dense_latency_ms"]["estimate"]
    assert set(record["binding"]) <= {"stem", "body"} and record["binding"]
    assert f"{record['floor_ms']:.4g} ms" in record["reason"] and record["binding"][0] in record["reason"]
    assert (shell.folder / f"infeasible-{steps}" / "report.html").is_file()
    assert "Traceback" not in done.err and "--budget-ms" in done.err
    reached = record["dense_latency_ms"]["estimate"] / record["floor_ms"]
    said = float(re.search(r"that is (\S+) x faster than dense, 1000 x was asked for", record["reason"])[1])  # type: ignore[index]
    asked = float(re.search(r"ask for --speedup (\S+) or less, or --budget-ms", record["hint"])[1])  # type: ignore[index]
    assert reached - 0.01 <= said <= reached and asked < said
    assert (again := shell(*words, "--resume")).code == 1 and again.json == record


def test_the_python_api_gives_the_same_run(classified: tuple[Run, Done], shell: Shell, tmp_path: Path) -> None:
    """`cpd_edge.prune` takes the same specs; resumed on a finished run it gives module, engine, report, measurement."""
    run, _ = classified
    asked = {
        k: v for k, v in run.record["request"].items() if k not in ("budget_ms", "speedup", "quantile", "tolerance")
    }
    model, data = asked.pop("model"), asked.pop("data")
    before = Path.cwd()
    settings: dict[str, Any] = {**asked, "budget": Budget(speedup=1.3), "out": run.folder, "resume": True}
    import os

    os.chdir(shell.folder)
    try:
        found = cpd_edge.prune(model, data, **settings)
    finally:
        os.chdir(before)
    assert found.record == run.record and found.verdict == run.record["verdict"]
    assert found.engine.is_file() and found.report.is_file()
    assert len(found.measurement.samples_ns) == run.record["latency_ms"]["n"]
    assert found.module(torch.zeros(2, 1, 48, 48)).shape == (2, 4)


def test_regions_and_the_rest_add_up_to_the_median(finished: tuple[Run, Done]) -> None:
    """Σ regions + unattributed is the measured median, for both engines; the profiler's cost makes the rest signed."""
    run, _ = finished
    for name in ("dense", "pruned"):
        median_ms = np.median(run.load_measurement(name).samples_ns) / 1e6
        timed_ms = sum(layer[f"{name}_ms"] for layer in run.record["layers"])
        assert timed_ms + run.record["unattributed_ms"][name] == pytest.approx(median_ms)


def test_the_engine_carries_the_contract_of_its_input(finished: tuple[Run, Done]) -> None:
    """Whoever feeds the engine finds shape, layout and classes in the file and in the record."""
    run, _ = finished
    metadata = {p.key: p.value for p in onnx.load(run / "pruned.onnx").metadata_props}
    contract = json.loads(metadata["cpd_edge.input"])
    assert contract == run.record["input"]
    assert contract["layout"] == "NCHW"
    assert len(contract["shape"]) == 3
    assert len(contract["labels"]) >= 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"budget": 2}, "budget 2"),
        ({"epoch": 3}, "unknown settings"),
        ({"data": 5}, "data int"),
        ({"model": dict}, "model type"),
    ],
)
def test_the_python_api_answers_wrong_arguments(arguments: dict[str, Any], said: str) -> None:
    """A wrong type or name is a UsageError that says what to give."""
    given = {"model": "zoo:resnet8", "data": "digits", "budget": Budget(speedup=2), **arguments}
    with pytest.raises(UsageError, match=said):
        cpd_edge.prune(given.pop("model"), given.pop("data"), **given)
