"""Laws of a sweep: one table, each point begins with the wider one's student, and a kill loses no finished point."""

from __future__ import annotations

import csv
import inspect
import io
import signal
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cli.shell import Done, Shell
from cli.worlds import PRUNE, QUICK

import cpd_edge
from cpd_edge.cli.commands import prune
from cpd_edge.cli.sweep_command import OWN
from cpd_edge.cli.text import sweep_text
from cpd_edge.errors import BudgetError
from cpd_edge.pipeline.request import Request
from cpd_edge.pipeline.sweeps import Swept, budgets, label
from cpd_edge.report.front import pareto
from cpd_edge.store import Run, read_json
from cpd_edge.types import EXIT_CODES

SWEEP = ("sweep", *PRUNE[1:], *QUICK, "--profiles", "swept-tables", "--out", "swept", "--json")


@pytest.fixture(scope="module")
def lives(shell: Shell) -> list[Done]:
    """One budget; then two more, killed in the second one's training; then the rest. The last cannot be met."""
    more = ("--speedups", "500,2,1.2", "--resume")
    found = [shell(*SWEEP, "--speedups", "1.2"), shell(*SWEEP, *more, kill_at=("distil", 1))]
    for damaged in ("dense.pt2", "checkpoints/start.pt2"):  # as its message says that one may
        (shell.folder / "swept/2x" / damaged).unlink()
    return [*found, shell(*SWEEP, *more)]


@pytest.fixture(scope="module")
def swept(lives: list[Done], shell: Shell) -> Path:
    """The folder of the whole sweep."""
    assert lives[-1].code == 1, lives[-1].err
    return shell.folder / "swept"


def test_a_killed_sweep_goes_on(lives: list[Done], swept: Path) -> None:
    """The first point stays as it was, the interrupted one is finished, and budgets are added on the way."""
    assert [d.code for d in lives[1:]] == [-signal.SIGKILL, 1]
    assert [p["point"] for p in lives[0].json["points"]] == ["1.2x"]
    assert [p["point"] for p in lives[-1].json["points"]] == ["1.2x", "2x", "500x"]
    first = {k: v for k, v in lives[0].json["points"][0].items() if k != "front"}
    assert first == {k: v for k, v in lives[-1].json["points"][0].items() if k != "front"}
    assert lives[-1].json == read_json(swept / "sweep.json")
    assert {"1.2x distil", "2x distil"} <= {line[:16].strip() for life in lives for line in life.err.splitlines()}
    kept = "kept in swept; should it stop, the same command with --resume goes on"
    assert [1, 1, 1] == [life.err.splitlines().count(kept) for life in lives]


def test_one_table_serves_all_points(swept: Path, shell: Shell) -> None:
    """The network is measured once: every point was solved on the same table, and only the first one profiled."""
    assert len({(swept / p / "table.json").read_bytes() for p in ("1.2x", "2x")}) == 1
    assert "profile" in Run(swept / "1.2x").record["seconds"] and "profile" not in Run(swept / "2x").record["seconds"]
    assert len(list(shell.folder.glob("swept-tables/**/table.json"))) == 1


def test_a_point_begins_with_the_student_before_it(swept: Path) -> None:
    """What the wider budget removed stays removed, and the record says where the run began."""
    assert Run(swept / "2x").record["start"] == "swept/1.2x"
    wide, tight = (read_json(swept / p / "plan.json")["keep"] for p in ("1.2x", "2x"))
    assert all(set(tight[group]) <= set(wide[group]) for group in wide)
    assert sum(map(len, tight.values())) < sum(map(len, wide.values()))


def test_a_budget_that_cannot_be_met_is_a_point_that_says_so(swept: Path, lives: list[Done]) -> None:
    """It has no latency, a reason and a floor; the sweep's exit code is its verdict's."""
    point = lives[-1].json["points"][-1]
    assert point["verdict"] == "FAIL" and point["latency_ms"] is None and point["floor_ms"] > 0
    assert "no plan reaches" in point["reason"] and not point["front"]
    assert "no plan reaches" in (swept / "sweep.md").read_text()
    assert lives[0].code == EXIT_CODES[lives[0].json["verdict"]]


def test_the_pages_hold_every_point(swept: Path) -> None:
    """HTML, Markdown, SVG and CSV say the same points; the drawing is well-formed and stands alone."""
    rows = list(csv.DictReader(io.StringIO((swept / "sweep.csv").read_text())))
    assert [r["point"] for r in rows] == ["1.2x", "2x", "500x"]
    assert float(rows[0]["latency_low_ms"]) <= float(rows[0]["latency_ms"]) <= float(rows[0]["latency_high_ms"])
    assert rows[2]["latency_ms"] == ""
    drawn = ET.fromstring((swept / "sweep.svg").read_text())
    assert drawn.tag == "{http://www.w3.org/2000/svg}svg"
    assert {t.text for t in drawn.iter("{http://www.w3.org/2000/svg}text")} >= {"1.2x", "2x", "dense"}
    assert all(name in (swept / page).read_text() for page in ("sweep.html", "sweep.md") for name in ("1.2x", "500x"))


def test_python_goes_on_with_the_same_sweep(
    lives: list[Done], swept: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`cpd_edge.sweep` is the same thing: what is finished is not done again, and the record is equal."""
    monkeypatch.chdir(shell.folder)
    before = {p: p.stat().st_mtime_ns for p in swept.glob("*/*.onnx")}
    settings = {"steps": 1, "epochs": 0.5, "samples": 8, "rounds": 2, "profiles": "swept-tables"}
    found = cpd_edge.sweep(
        "mine.py:make_net", "mine.py:make_data", speedups=[1.2, 2, 500], out="swept", resume=True, **settings
    )
    assert found.record == lives[-1].json and found.verdict == "FAIL" and found.report.is_file()
    assert before == {p: p.stat().st_mtime_ns for p in swept.glob("*/*.onnx")}


def test_other_settings_or_a_second_sweep_are_refused(swept: Path, shell: Shell) -> None:
    """A sweep goes on as it was asked for, and only when told to."""
    again = shell(*SWEEP, "--speedups", "1.2")
    assert again.code == 2 and "--resume" in again.json["hint"]
    other = shell(*SWEEP, "--speedups", "1.2", "--resume", "--seed", "1")
    assert other.code == 2 and "seed was 0, now 1" in other.json["message"]
    assert (swept / "sweep.html").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "either milliseconds or speed-ups"),
        (("--budgets", "3", "--speedups", "2"), "either milliseconds or speed-ups"),
        (("--budgets", "3,fast"), "3,fast"),
        (("--budgets", "3,-1"), "above 0"),
    ],
)
def test_budgets_that_are_none_are_refused_before_any_work(words: tuple[str, ...], said: str, shell: Shell) -> None:
    """A clear error, and no folder."""
    done = shell("sweep", *PRUNE[1:], *words, "--out", "unswept")
    assert done.code == 2 and said in done.err and not (shell.folder / "unswept").exists()


def test_the_widest_budget_comes_first() -> None:
    """Milliseconds fall, speed-ups rise, doubles go."""
    assert [label(b) for b in budgets([5, 20, 10, 20], [], 0.5, 0.05)] == ["20ms", "10ms", "5ms"]
    assert [label(b) for b in budgets([], [3, 1.5], 0.5, 0.05)] == ["1.5x", "3x"]
    near = budgets([12.3456789, 12.3456781], [], 0.5, 0.05)
    assert 2 == len({label(b) for b in near}), "each has a folder of its own"
    with pytest.raises(BudgetError):
        budgets([], [], 0.5, 0.05)


def test_every_setting_of_prune_is_one_of_the_request() -> None:
    """A sweep hands all of `prune`'s other options to the request, so each must be a field of it."""
    options = set(inspect.signature(prune).parameters) - set(OWN)
    assert options <= set(Request.__dataclass_fields__)


def test_one_void_point_voids_the_sweep() -> None:
    """It and failed checks are named at their point, below the dense network; what was not measured has none."""
    bounds = {"estimate": 2.0, "low": 1.9, "high": 2.1}
    whole = {"latency_ms": bounds, "speedup": bounds, "macs_ratio": 2.0, "params_ratio": 2.0, "metric": "accuracy"}
    whole |= {"metric_pruned": 0.9, "metric_dense": 0.9, "front": True, "verdict": "PASS", "reason": ""}
    slowed = {**whole, "point": "2x", "void": ["2 over-current events (oc1)"]}
    unmet = {"point": "9x", "front": False, "verdict": "FAIL", "reason": "no plan", "latency_ms": None, "void": None}
    slowed["checks"] = [{"name": "table predicts", "passed": False, "detail": "9 %"}]
    record = {"sweep": "s", "verdict": "FAIL", "points": [slowed, unmet]}
    told = sweep_text(record)
    assert "1 of 1 failed: table predicts (9 %)" in told and "   dense  " in told.splitlines()[0]
    assert Swept(Path("s"), record, Path("s/sweep.html")).void and "VOID: 2 over-current" in sweep_text(record)
    assert not Swept(Path("s"), {**record, "points": [unmet]}, Path("s/sweep.html")).void


def test_the_front_holds_what_nothing_beats() -> None:
    """Faster and at least as good, or better and at least as fast, beats; an equal does not; unmeasured is nowhere."""

    def point(ms: float, metric: float) -> Mapping[str, Any]:
        return {"latency_ms": {"estimate": ms}, "metric_pruned": metric}

    points = [point(10, 0.9), point(5, 0.8), point(6, 0.8), point(5, 0.8), point(12, 0.85), {"latency_ms": None}]
    assert pareto(points) == [True, True, False, True, False, False]
