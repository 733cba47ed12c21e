"""Laws of `bench` around the engine: loads, raw samples of both, pinning, and files of samples judged again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli.shell import Shell

from cpd_edge.cli.text import bench_text, span
from cpd_edge.measure import Disturbance, Protocol, SimulatedDevice, SimulatedRunner, measure
from cpd_edge.measure.doctor import tiny_model
from cpd_edge.measure.simulated_runtime import the_device
from cpd_edge.measure.telemetry import Energy
from cpd_edge.pipeline.replicas import joined
from cpd_edge.pipeline.saved import unpaired_speedup
from cpd_edge.store import FORMAT, measurement_from, plain, write_json
from cpd_edge.types import Interval

SHORT = ("--limit-s", "0.4", "--target", "0.5")


@pytest.fixture
def engine(shell: Shell) -> str:
    (shell.folder / "tiny.onnx").write_bytes(tiny_model())
    return "tiny.onnx"


def saved(path: Path, latency_ms: float, **environment: Any) -> str:
    """A file of samples of an engine of known latency."""
    found = measure(SimulatedRunner(latency_ms, SimulatedDevice(Disturbance(noise=0.01))), path.stem, Protocol())
    data: Any = plain(found)
    write_json(path, {"format": FORMAT, **data, "environment": {**data["environment"], **environment}})
    return path.name


def test_a_time_limit_names_what_was_not_met(shell: Shell, engine: str) -> None:
    """Exit code 3, the condition in words, and no number where the samples support none."""
    words = ("bench", engine, "--limit-s", "1", "--quantile", "0.999999", "--budget-ms", "1000")
    done = shell(*words)
    assert done.code == 3
    assert "time limit of 1 s: p99.9999 is not supported by n" in done.out
    assert "above that not supported by n" in done.out.splitlines()[0]


@pytest.mark.parametrize(
    ("high", "said"), [(2.5, "2 ms [1.5, 2.5]"), (None, "at least 1.5 ms, above that not supported by n")]
)
def test_an_interval_without_an_upper_end_shows_no_estimate(high: float | None, said: str) -> None:
    """Below the sample floor the estimate is the largest of too few samples."""
    assert span({"estimate": 2.0, "low": 1.5, "high": high, "n": 9}) == said


def test_a_simulated_device_runs_everything_alike_twice_and_says_what_it_is(shell: Shell, engine: str) -> None:
    """Nothing waits and nothing of this machine enters; nothing looks measured."""
    words = ("bench", engine, "--device", "simulated", "--budget-ms", "1000")
    first, second = ([the_device.cache_clear(), shell(*words, "--json").json][1] for _ in range(2))
    assert first == second
    assert first["environment"]["device"] == "simulated (arithmetic, nothing was measured)"
    assert "simulated, not measured" in shell(*words).out
    assert (shell(*words, "--end-to-end").code, shell(*words, "--pin", "0").code) == (2, 2)


def test_a_precision_is_what_the_engine_computes_in_or_refused(shell: Shell, engine: str) -> None:
    """A file in fp32 is not timed as int8, and a precision that the runtime lacks is refused before anything runs."""
    said = {name: shell("bench", engine, *SHORT, "--precision", name) for name in ("fp32", "int8", "fp16")}
    assert [0, 4, 2] == [done.code for done in said.values()]
    assert "int8 was asked for, onnxruntime computes in fp32" in said["int8"].err
    assert "does not compute in fp16" in said["fp16"].err


def test_loads_and_first_inference_are_apart(shell: Shell, engine: str) -> None:
    """Three numbers, none of which is in the latency."""
    found = shell("bench", engine, *SHORT, "--json").json
    assert found["load_ms"].keys() == {"first_load", "warm_load", "first_inference"}
    assert all(ms > 0 for ms in found["load_ms"].values())
    assert "warm load" in bench_text(found)


def test_raw_samples_of_both_engines_are_kept(shell: Shell, engine: str) -> None:
    """The file's measurement is the candidate's, the reference's lies beside it, with times and blocks."""
    shell("bench", engine, "--against", engine, *SHORT, "--out", "both.json")
    data = json.loads((shell.folder / "both.json").read_text())
    candidate, reference = measurement_from(data), measurement_from(data["against"])
    assert len(np.unique(candidate.blocks)) == len(np.unique(reference.blocks)) >= 2
    assert candidate.starts_ns[0] > reference.starts_ns[0]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no CPU affinity")
def test_a_pinned_measurement_says_where(shell: Shell, engine: str) -> None:
    """The environment names the CPU while there are others, and the process is set free again."""
    before = os.sched_getaffinity(0)
    found = shell("bench", engine, *SHORT, "--pin", str(min(before)), "--json").json
    assert found["environment"]["pinned"] == (str(min(before)) if os.cpu_count() != 1 else "")
    assert os.sched_getaffinity(0) == before
    for words, said in ((("--pin", "9999"), "this process may use"), (("--pin", "one"), "joined by commas")):
        done = shell("bench", engine, *words)
        assert (done.code, said in done.err) == (2, True)


def test_processes_are_measured_apart_and_their_spread_is_reported(shell: Shell, engine: str) -> None:
    """The interval spans those of the processes, and so does the verdict; each keeps its samples."""
    words = ("bench", engine, *SHORT, "--processes", "2", "--budget-ms", "1000", "--out", "each.json")
    found = shell(*words, "--json").json
    lows, highs = ([p["latency_ms"][end] for p in found["processes"]] for end in ("low", "high"))
    assert (found["latency_ms"]["low"], found["latency_ms"]["high"]) == (min(lows), max(highs))
    assert (len(lows), found["verdict"]) == (2, "PASS")
    assert found["process_spread"] >= 0 and "apart" in bench_text(found)
    assert all((shell.folder / f"each-{i}.json").is_file() for i in (1, 2))


def energy(gross_mj: float | None, net_mj: float | None = None, scope: str = "module", reason: str = "") -> Any:
    """An energy as a process reports it."""
    return plain(Energy(gross_mj, net_mj, gross_mj, scope, 30.0, 31, reason))


def row(estimate: float = 4.5, **other: Any) -> dict[str, Any]:
    """What one process found."""
    span = {"estimate": estimate, "low": estimate - 0.1, "high": estimate + 0.1, "n": 50}
    found = {"latency_ms": span, "outliers": 0, "steady": True, "energy": energy(2.0), "throttling": [], "void": []}
    return {**found, "stop": "x", "budget_ms": 5.0, "verdict": "PASS", "interference": 0.0, **other}


@pytest.mark.parametrize("slowed", [0, 1, 2])
def test_a_slow_down_in_any_process_counts(slowed: int) -> None:
    """Whichever process it was, once each, with the part that voids."""
    hot = {"throttling": ["its power cap held", "too hot"], "void": ["too hot"]}
    found = joined([row(**(hot if i == slowed else {})) for i in range(3)])
    assert (found["throttling"], found["void"]) == (["its power cap held", "too hot"], ["too hot"])
    assert joined([row(**hot), row(**hot)])["throttling"] == hot["throttling"]


def test_energy_is_the_mean_over_processes() -> None:
    """Of an inference; the time that stands behind it is that of all. What one process lacks is not known."""
    found = joined([row(energy=energy(2.0, 1.0)), row(energy=energy(4.0, 3.0))])["energy"]
    assert (found["gross_mj"], found["net_mj"], found["mean_mw"]) == (3.0, 2.0, 3.0)
    assert (found["seconds"], found["readings"], found["scope"], found["reason"]) == (60.0, 62, "module", "")
    assert joined([row(energy=energy(2.0, 1.0)), row(energy=energy(4.0))])["energy"]["net_mj"] is None
    none = joined([row(energy=energy(None, reason="no power rail")), row()])["energy"]
    assert (none["gross_mj"], none["reason"]) == (None, "no power rail")
    mixed = joined([row(energy=energy(2.0)), row(energy=energy(2.0, scope="CPU package"))])["energy"]
    assert mixed["gross_mj"] is None and "module, CPU package" in mixed["reason"]


def test_processes_that_disagree_about_a_budget_decide_nothing() -> None:
    """One inside, one outside: inconclusive."""
    assert joined([row(4.5), row(4.6)])["verdict"] == "PASS"
    assert joined([row(4.5), row(5.5)])["verdict"] == "INCONCLUSIVE"
    assert joined([row(4.0), row(5.0)])["process_spread"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("budget", "code", "verdict"),
    [(("5.2",), 0, "PASS"), (("4.8",), 1, "FAIL"), (("5.2", "--quantile", "0.999"), 3, "INCONCLUSIVE")],
)
def test_samples_are_judged_again(shell: Shell, budget: tuple[str, ...], code: int, verdict: str) -> None:
    """A file gives the verdict of its samples for another budget; nothing is measured."""
    done = shell("bench", saved(shell.folder / "five.json", 5.0), "--budget-ms", *budget, "--json")
    assert (done.code, done.json["verdict"], done.json["measured_now"]) == (code, verdict, False)


def test_samples_of_two_windows_are_compared_and_said_to_be_unpaired(shell: Shell) -> None:
    """The true ratio is in the interval."""
    a, b = (saved(shell.folder / f"{ms:g}.json", ms) for ms in (3.0, 2.0))
    found = shell("bench", b, "--against", a, "--json").json
    assert found["speedup"]["low"] <= 1.5 <= found["speedup"]["high"]
    assert (found["outcome"], found["paired"]) == ("faster", False)
    assert "windows apart" in bench_text(found)


def test_samples_of_two_environments_are_refused_unless_forced(shell: Shell) -> None:
    """Exit code 4 names what differs; --force compares and keeps saying it."""
    a, b = saved(shell.folder / "one.json", 3.0), saved(shell.folder / "two.json", 2.0, threads=2)
    refused = shell("bench", b, "--against", a)
    assert (refused.code, "threads (1 against 2)" in refused.err, "--force" in refused.err) == (4, True, True)
    forced = shell("bench", b, "--against", a, "--force")
    assert (forced.code, "forced although" in forced.out) == (0, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("tiny.onnx", "--against", "five.json"), "one is a file of samples"),
        (("five.json", "--out", "other.json"), "nothing is measured"),
        (("five.json", "--force"), "--force is for two files"),
        (("empty.json",), "holds no measurement"),
        (("missing.json",), "does not exist"),
    ],
)
def test_files_that_cannot_be_judged_are_refused(shell: Shell, engine: str, words: tuple[str, ...], said: str) -> None:
    """Before any work, with what to give instead."""
    saved(shell.folder / "five.json", 5.0)
    (shell.folder / "empty.json").write_text("{}")
    done = shell("bench", *words)
    assert (done.code, said in done.err) == (2, True)


def test_the_unpaired_ratio_covers_the_true_one() -> None:
    """Of intervals that each hold their latency at 95 %, so does the ratio's, one-sided ones included."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        a, b = (rng.normal(centre, 0.02 * centre) for centre in (3.0, 2.0))
        spans = [Interval(x, x - 1.96 * 0.02 * c, x + 1.96 * 0.02 * c, 50) for x, c in ((a, 3.0), (b, 2.0))]
        ratio = unpaired_speedup(spans[0], spans[1])
        held += ratio.low <= 1.5 <= ratio.high
    assert 0.93 <= held / 1000 <= 0.97
    open_ended = unpaired_speedup(Interval(3.0, 2.9, float("inf"), 9), Interval(2.0, 0.0, 2.1, 20))
    assert (open_ended.high, open_ended.n) == (float("inf"), 9)


@pytest.mark.parametrize("last", [0, 1])
def test_no_process_speaks_for_the_others(last: int) -> None:
    """Beside the pooled latency stands what is pooled too; what belongs to one process stands with that process."""
    own = {"load_ms": {"first_load": 1.0}, "stages": {}, "stages_sum_ms": 1.0, "mean_ms": 1.0, "unattributed_ms": 0.1}
    ratio = {"estimate": 1.1, "low": 1.05, "high": 1.2, "n": 9}
    rows = [
        row(against_latency_ms={"estimate": ms, "low": ms - 1, "high": ms + 1, "n": 9}, speedup=ratio, interference=n)
        | own
        for ms, n in ((10.0, None), (14.0, 70.0))
    ]
    found = joined(rows[last:] + rows[:last])
    assert found["against_latency_ms"] == {"estimate": 12.0, "low": 9.0, "high": 15.0, "n": 18}
    assert found["interference"] == 70.0 and not own.keys() & found.keys()
    assert all({**process, **own} == process for process in found["processes"])
    assert joined([row(interference=None)])["interference"] is None
