"""Laws of interruption: whatever kills a run, at most the step in hand is lost, and `--resume` goes on from there."""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cli.shell import Done, Shell
from cli.worlds import PRUNE, QUICK

from cpd_edge.deploy.parity import Parity
from cpd_edge.measure import Disturbance, Protocol, SimulatedDevice, SimulatedRunner, compare
from cpd_edge.pipeline import Request
from cpd_edge.pipeline.kept import FILES, keep_bench, kept_bench
from cpd_edge.pipeline.rig import Rig
from cpd_edge.store import Run, plain, write_bytes
from cpd_edge.types import EXIT_CODES, VOID, Budget, Comparison

DEATHS = (
    ("profile", 6), ("distil", 1), ("measure rounds", 0), ("bench", 0), ("layers", 0),
)  # fmt: skip
"""Where the run is killed, one life after the other: in turn before, in and after each stage that takes long."""
KILLED = (*PRUNE, "--speedup", "1.3", *QUICK, "--steps", "2", "--epochs", "1", "--profiles", "killed/tables")
LASTING = ("dense.pt2", "dense.onnx", "groups.json", "table.json", "checkpoints/step-")
"""Files that are written once, by their beginnings."""


@dataclass(frozen=True)
class Life:
    """One process's end, and the files it left, tables included."""

    done: Done
    files: dict[str, bytes]


@pytest.fixture(scope="module")
def lives(shell: Shell) -> list[Life]:
    """A run that is killed again and again, then left to finish, without the device's tables."""
    found = []
    for i, death in enumerate([*DEATHS, None]):
        if death is None:
            shutil.rmtree(shell.folder / "killed/tables")
        done = shell(*KILLED, "--out", "killed/run", *(["--resume"] if i else []), "--json", kill_at=death)
        root = shell.folder / "killed"
        found.append(Life(done, {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}))
    return found


def test_a_killed_run_goes_on_to_its_verdict(lives: list[Life], shell: Shell) -> None:
    """Killed at every stage in turn, the run ends with its verdict all the same, and prints the record."""
    assert [life.done.code for life in lives[:-1]] == [-signal.SIGKILL] * len(DEATHS)
    record = lives[-1].done.json
    assert lives[-1].done.code == EXIT_CODES[record["verdict"]], lives[-1].done.err
    assert record == Run(shell.folder / "killed/run").record


def test_finished_stages_are_not_repeated(lives: list[Life]) -> None:
    """What a stage left behind is the same bytes ever after: network, engine, table, every step's plan and network."""
    once: dict[str, bytes] = {}
    for life in lives[:-1]:
        for name, data in life.files.items():
            if name.startswith(tuple(f"run/{part}" for part in LASTING)) and "training" not in name:
                assert once.setdefault(name, data) == data, name
    steps = {"run/checkpoints/step-0.pt2", "run/checkpoints/step-0-plan.json", "run/checkpoints/step-1-trials.json"}
    assert once.keys() >= {"run/dense.onnx", "run/table.json", *steps}


def test_the_dense_engine_is_timed_once(lives: list[Life]) -> None:
    """The dense latency that the budget was taken from stays as it was, until the verdict's window."""
    records = [json.loads(life.files["run/run.json"]) for life in lives[:-1]]
    assert all(record["dense_latency_ms"] == records[0]["dense_latency_ms"] for record in records)


def test_a_finished_bench_is_not_repeated(lives: list[Life]) -> None:
    """Killed behind its final bench, a run goes on with those samples and ships no engine again."""
    killed, last = lives[-2], lives[-1]
    for name in ("samples/dense.json", "samples/pruned.json", "pruned.onnx"):
        assert killed.files[f"run/{name}"] == last.files[f"run/{name}"], name
    before, after = (json.loads(life.files["run/run.json"])["seconds"] for life in (killed, last))
    assert (before["bench"], before["deploy"]) == (after["bench"], after["deploy"])
    assert last.done.json["latency_ms"]["n"] == len(json.loads(last.files["run/samples/pruned.json"])["samples_ns"])


@pytest.fixture
def benched(tmp_path: Path) -> tuple[Run, Comparison, Parity]:
    """A run whose final bench is whole, with what it came to."""
    run = Run.create(tmp_path / "run", {})
    device = SimulatedDevice(Disturbance(noise=0.01))
    found = compare(*(SimulatedRunner(ms, device) for ms in (3.0, 2.0)), ("dense", "pruned"), Protocol())
    for measurement in (found.a, found.b):
        write_bytes(run / f"{measurement.name}.onnx", measurement.name.encode())
        run.save_measurement(measurement)
    parity = Parity(1e-6, 1e-7, 1e-4, 32, 1.0)
    keep_bench(run, run / "checkpoints", 1, found, parity)
    return run, found, parity


def test_a_kept_bench_is_the_bench(benched: tuple[Run, Comparison, Parity]) -> None:
    """Samples, paired speed-up and parity come back as they were."""
    run, found, parity = benched
    again = kept_bench(run, run / "checkpoints", 1, found.b.environment)
    assert again is not None and plain(again) == plain((found, parity))


@pytest.mark.parametrize("change", ["step", "environment", "unfinished", *FILES])
def test_a_bench_of_something_else_is_not_taken_up(benched: tuple[Run, Comparison, Parity], change: str) -> None:
    """Of another step's student, in another environment, unfinished, or with any of its files changed since."""
    run, found, _ = benched
    step, environment = 1, dict(found.b.environment)
    if change == "step":
        step = 2
    elif change == "environment":
        environment["threads"] = 99
    elif change == "unfinished":
        (run / "checkpoints/bench.json").unlink()
    else:
        write_bytes(run / change, (run / change).read_bytes() + b" ")
    assert kept_bench(run, run / "checkpoints", step, environment) is None


class Threaded(SimulatedRunner):
    """A simulated engine of so many threads."""

    def __init__(self, latency_ms: float, threads: int) -> None:
        super().__init__(latency_ms)
        self._threads = threads

    @property
    def environment(self) -> Mapping[str, Any]:
        return {**super().environment, "threads": self._threads}


@pytest.mark.parametrize("threads", [1, 2])
def test_a_run_that_goes_on_in_another_environment_times_the_dense_engine_again(tmp_path: Path, threads: int) -> None:
    """Its latency and what builds took belong to the environment that they were measured in."""
    run = Run.create(tmp_path / "run", {})
    engines = Threaded(3.0, 1), Threaded(5.0, threads)
    request = Request("net", "data", Budget(limit_ms=2.0))
    for life in range(2):
        rig = Rig(request, run, SimpleNamespace(), lambda name: contextlib.nullcontext(lambda *_: None))  # type: ignore[arg-type]
        rig.engine = lambda name, at=life: contextlib.nullcontext(engines[at])  # type: ignore[method-assign, misc]
        found = rig.dense_latency()
        if not life:
            run.update(round_log=[{"round": 1}])
            write_bytes(run / "checkpoints/step-0-trials.json", b"[]")
    again = threads == 2
    assert found.estimate == pytest.approx(5.0 if again else 3.0, rel=0.05)
    assert (run.record["round_log"], (run / "checkpoints/step-0-trials.json").exists()) == (
        ([], False) if again else ([{"round": 1}], True)
    )


def test_a_run_needs_the_devices_tables_no_more_once_it_has_its_own(lives: list[Life]) -> None:
    """Resumed after the profile, a run goes on with the table in its folder and measures no other."""
    assert not [name for name in lives[-1].files if name.startswith("tables/")]


def test_measured_samples_are_kept(lives: list[Life]) -> None:
    """Networks that were measured before the kill stand in the log as they were, and are not measured again."""
    logs = [data for life in lives for name, data in life.files.items() if name.endswith("samples.jsonl")]
    assert logs[0].count(b"\n") >= 6
    assert all(later.startswith(earlier) for earlier, later in pairwise(logs))
    assert len(set(logs)) == 2


def test_training_goes_on_from_its_checkpoint(lives: list[Life]) -> None:
    """A kill in the midst of distillation leaves a checkpoint, and the whole history has every step once."""
    assert (
        "run/checkpoints/step-0-training.pt" in lives[1].files and "run/checkpoints/step-0.json" not in lives[1].files
    )
    rows = [(row["prune_step"], row["step"]) for row in lives[-1].done.json["history"]]
    assert rows == [(0, 1), (0, 2), (1, 3), (1, 4)]


def test_a_resumed_run_leaves_nothing_half_done(lives: list[Life]) -> None:
    """The folder is as tidy as that of a run that was never killed."""
    names = [name for name in lives[-1].files if name.startswith("run/")]
    assert not [name for name in names if "checkpoints" in name or Path(name).name.startswith(".")]
    assert {"run/report.html", "run/report.md", "run/plan.json", "run/pruned.pt2", "run/pruned.onnx"} <= set(names)


def test_a_damaged_network_is_named_and_made_again_where_it_is_deleted(lives: list[Life], shell: Shell) -> None:
    """A truncated checkpoint is one error with what to do, and doing it goes on to the verdict."""
    for name, data in lives[3].files.items():
        write_bytes(shell.folder / "damaged" / name, data)
    damaged = shell.folder / "damaged/run/checkpoints/step-1.pt2"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    words = (*KILLED, "--out", "damaged/run", "--resume", "--json")
    refused = shell(*words)
    assert 2 == refused.code and "delete it and add --resume" in refused.json["hint"]
    assert "step-1.pt2 is not an exported program" in refused.err and "Traceback" not in refused.err
    damaged.unlink()
    done = shell(*words)
    assert EXIT_CODES[done.json["verdict"]] == done.code


def test_rounds_are_counted_once(lives: list[Life]) -> None:
    """The log of rounds has each number once, within the limit, over all lives."""
    record = lives[-1].done.json
    numbers = [row["round"] for row in record["round_log"]]
    assert numbers == list(range(1, record["rounds"] + 1)) and len(numbers) <= 2


def test_resume_of_a_finished_run_prints_the_same_record(classified: tuple[Run, Done], shell: Shell) -> None:
    """Nothing is done again: the same object, the same exit code, the same files."""
    run, done = classified
    before = {p: p.stat().st_mtime_ns for p in run.folder.rglob("*")}
    again = shell(*PRUNE, "--speedup", "1.3", *QUICK, "--out", "classified", "--json", "--resume")
    assert (again.json, again.code) == (done.json, done.code)
    assert before == {p: p.stat().st_mtime_ns for p in run.folder.rglob("*")}


def test_resume_of_a_run_that_died_before_its_report_writes_it(classified: tuple[Run, Done], shell: Shell) -> None:
    """A verdict without a report is completed by the report."""
    run, done = classified
    (run / "report.html").unlink()
    assert shell(*PRUNE, "--speedup", "1.3", *QUICK, "--out", "classified", "--resume").code == done.code
    assert (run / "report.html").is_file()


@pytest.mark.parametrize("name", ["pruned.onnx", "pruned.pt2", "dense.pt2"])
def test_a_finished_run_that_lacks_a_file_is_no_pass(name: str, classified: tuple[Run, Done], shell: Shell) -> None:
    """The file is named, and no verdict is given on an engine that is not there."""
    shutil.copytree(classified[0].folder, shell.folder / f"lacks-{name}")
    (shell.folder / f"lacks-{name}" / name).unlink()
    done = shell(*PRUNE, "--speedup", "1.3", *QUICK, "--out", f"lacks-{name}", "--resume")
    assert done.code == 2 and f"{name} is gone" in done.err and "PASS" not in done.out


def test_a_copied_run_is_where_it_was_copied_to(classified: tuple[Run, Done], shell: Shell) -> None:
    """Resumed in its new folder, it prints that one, and its record and its report name no other."""
    shutil.copytree(classified[0].folder, shell.folder / "copied")
    done = shell(*PRUNE, "--speedup", "1.3", *QUICK, "--out", "copied", "--resume")
    assert done.code == classified[1].code and "report    copied/report.html" in done.out
    copy = Run(shell.folder / "copied")
    assert copy.record == {**classified[0].record, "run": "copied"}
    for twin in ("report.html", "report.md"):
        text = (copy / twin).read_text()
        assert "--out copied" in text and "classified" not in text


@pytest.mark.parametrize("verdict", EXIT_CODES)
def test_the_exit_code_of_every_verdict(classified: tuple[Run, Done], shell: Shell, verdict: str) -> None:
    """PASS exits 0, FAIL 1, INCONCLUSIVE 3."""
    copy = shell.folder / f"ended-{verdict}"
    shutil.copytree(classified[0].folder, copy)
    Run(copy).update(verdict=verdict)
    done = shell(*PRUNE, "--speedup", "1.3", *QUICK, "--out", copy.name, "--resume")
    assert done.code == EXIT_CODES[verdict] and done.out.startswith(f"{verdict}: ")


def test_a_device_that_slowed_itself_down_leaves_no_verdict_to_rely_on(
    classified: tuple[Run, Done], shell: Shell
) -> None:
    """Its sensors are read while the verdict is taken: what they tell is a check, and exit code 4 if it voids."""
    run, _ = classified
    (check,) = [c for c in run.record["checks"] if c["name"] == "no slow-down of the device"]
    assert (run.record["void"] == []) == check["passed"]
    copy = shell.folder / "slowed"
    shutil.copytree(run.folder, copy)
    Run(copy).update(void=["2 over-current events (oc1)"])
    assert shell(*PRUNE, "--speedup", "1.3", *QUICK, "--out", copy.name, "--resume").code == VOID


@pytest.mark.parametrize(
    ("change", "named"),
    [(("--seed", "1"), "seed was 0, now 1"), (("--quantile", "0.9"), "quantile was 0.5, now 0.9")],
)
def test_resume_with_other_settings_is_refused(
    classified: tuple[Run, Done], shell: Shell, change: tuple[str, ...], named: str
) -> None:
    """A run goes on as it was asked for, or not at all: the setting that differs is named."""
    done = shell(*PRUNE, "--speedup", "1.3", *QUICK, *change, "--out", "classified", "--resume")
    assert done.code == 2 and named in done.err and done.out == ""


def test_a_second_run_into_the_same_folder_is_refused(classified: tuple[Run, Done], shell: Shell) -> None:
    """Without `--resume`, a folder that holds a run is left as it is."""
    run, printed = classified
    done = shell(*PRUNE, "--speedup", "1.3", *QUICK, "--out", "classified")
    assert done.code == 2 and "--resume" in done.err
    assert json.loads((run / "run.json").read_text()) == printed.json


def test_a_folder_with_other_files_is_left_alone(shell: Shell) -> None:
    """A run clears up in its folder when it is done, so the folder must be its own."""
    mine = shell.folder / "project"
    (mine / "checkpoints").mkdir(parents=True)
    for name in ("checkpoints/best.pt", ".env.template"):
        (mine / name).write_text("mine")
    done = shell(*PRUNE, "--speedup", "1.3", *QUICK, "--out", "project")
    assert done.code == 2 and "give a new --out" in done.err
    assert sorted(p.name for p in mine.rglob("*") if p.is_file()) == [".env.template", "best.pt"]


def test_ctrl_c_prints_the_command_that_goes_on(shell: Shell) -> None:
    """An interrupted run exits 130 and says how to go on; that very command finishes it."""
    call = shell.start(*PRUNE, "--speedup", "1.3", *QUICK, "--out", "stopped", "--profiles", "stopped-tables")
    call.wait_until(
        lambda: any(log.read_text().count("\n") > 2 for log in shell.folder.glob("stopped-tables/**/*.jsonl"))
    )
    call.send(signal.SIGINT)
    done = call.done()
    assert done.code == 130, done.err
    assert "Go on with:" in done.err and "Traceback" not in done.err
    assert "kept in stopped; should it stop, the same command with --resume goes on" in done.err.splitlines()
    command = shlex.split(done.err.strip().splitlines()[-1])
    assert command[0] == "cpd-edge" and command[-1] == "--resume"
    again = shell(*command[1:])
    assert again.code == EXIT_CODES[Run(shell.folder / "stopped").record["verdict"]], again.err


def test_a_run_whose_folder_was_not_named_says_early_where_it_is(shell: Shell) -> None:
    """A new user is told the folder, and what to add, before the long work; Ctrl-C names the same folder."""
    where = shell.folder / "unnamed"
    where.mkdir()
    (where / "mine.py").write_bytes((shell.folder / "mine.py").read_bytes())
    call = shell.start(*PRUNE, "--speedup", "1.3", *QUICK, "--profiles", "tables", folder=where)
    call.wait_until(lambda: any(where.glob("tables/**/*.jsonl")))
    call.send(signal.SIGINT)
    done = call.done()
    (run,) = (path.parent.relative_to(where) for path in where.glob("runs/*/run.json"))
    said = [i for i, line in enumerate(done.err.splitlines()) if f"the same command with --out {run} --resume" in line]
    stages = [i for i, line in enumerate(done.err.splitlines()) if line.startswith("comb ")]
    assert len(said) == 1 and said[0] < stages[0]
    assert done.err.strip().endswith(f"--out {run} --resume")
