"""The coverage driver: a run that is interrupted goes on, nothing is counted twice, limits hold, the page adds up."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import coverage_models
import coverage_report
import coverage_run
import pytest

OURS, THEIRS = "cpd-edge", "torch-pruning"


@pytest.fixture(autouse=True)
def versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results made here belong to these versions."""
    monkeypatch.setattr(coverage_run, "environment", lambda tool: {"torch": "2", "code": f"{tool} 1", "cpu": "x"})


def row(model: str, tool: str, **other: Any) -> dict[str, Any]:
    """A result that reached everything."""
    stages = ["trace", "comb", "cut", "equal", "onnx"] if tool == OURS else ["graph", "prune", "forward", "onnx"]
    made = {"model": model, "tool": tool, "environment": coverage_run.environment(tool), "stages": stages, "ended": ""}
    made |= {"params_before": 100, "params_after": 25, "macs_before": 1000, "macs_after": 300, "seconds": 4.0}
    made |= {"same_error": 1e-15, "onnx_error": 1e-7}
    if tool == OURS:
        made |= {"verified": True, "groups": 9, "depth_groups": 2, "prunable_params_fraction": 0.999}
    return made | other


def test_a_run_goes_on_where_it_was(tmp_path: Path) -> None:
    """A line that was cut off is no result, the last of two counts, and one of other code or versions does not."""
    older = row("a", OURS, seconds=1.0)
    other = row("b", OURS, environment={"torch": "2", "code": "another", "cpu": "x"})
    elsewhere = row("c", OURS, environment={"torch": "2", "code": f"{OURS} 1", "cpu": "y"})
    lines = [json.dumps(r) for r in (older, row("a", OURS), other, elsewhere)]
    path = tmp_path / "results.jsonl"
    path.write_text("\n".join([*lines, lines[0][:40]]))
    found = coverage_run.read(path)
    assert set(found) == {("a", OURS), ("c", OURS)}
    assert found["a", OURS]["seconds"] == 4.0
    assert set(coverage_run.read(path, any_code=True)) == {("a", OURS), ("b", OURS), ("c", OURS)}


def test_the_page_adds_up(tmp_path: Path) -> None:
    """Totals count what reached each stage; a wrong output of either tool is not called everything."""
    rows = [
        row("torchvision:good", OURS),
        row("torchvision:good", THEIRS),
        row("torchvision:wrong", OURS, stages=["trace", "comb", "cut", "onnx"], verified=False, cause="conv: differs"),
        row("torchvision:wrong", THEIRS, same_error=0.3),
        row("torchvision:gone", OURS, stages=[], verified=False, cause="ModelError: no"),
        row(
            "torchvision:gone",
            THEIRS,
            stages=["graph"],
            same_error=None,
            cause="RuntimeError: a | b at /x/site-packages/y.py",
        ),
    ]
    models = dict.fromkeys((r["model"] for r in rows), "named")
    coverage_report.write({(r["model"], r["tool"]): r for r in rows}, models, tmp_path)
    page = (tmp_path / "README.md").read_text()
    assert "| networks tried | 3 | 3 |" in page
    assert "| half of every group cut, and the network runs | 2 | 2 |" in page
    assert "| cut equals masked | 1, each group alone and together | 1 of 2 where it can be asked |" in page
    assert "| **everything** | **1** | **1** |" in page
    assert "TP: RuntimeError: a / b at y.py" in page
    table = [line for line in page.splitlines() if line.startswith("| torchvision:")]
    assert len({line.count("|") for line in table}) == 1
    with (tmp_path / "coverage.csv").open() as file:
        cells = list(csv.DictReader(file))
    assert [c["passed"] for c in cells] == ["True", "True", "False", "True", "False", "False"]


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    """A page of a part of the networks says of how many."""
    coverage_report.write({("a", OURS): row("a", OURS)}, {"a": "named", "b": "named"}, tmp_path)
    assert "1 of the 2 networks have results so far." in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("limits", "word"), [(coverage_run.Limits(0.3, 2**40), "time"), (coverage_run.Limits(60, 2**20), "memory")]
)
def test_a_process_over_its_limit_is_ended(limits: coverage_run.Limits, word: str) -> None:
    """Time and memory are watched from outside; what ended it is the result."""
    found = coverage_run.run_one("torchvision:resnet18", OURS, limits)
    assert str(found["ended"]).startswith(f"{word} limit of ")
    assert "stages" not in found
    assert not coverage_report.succeeded(found)


def test_a_process_that_dies_says_its_last_words() -> None:
    """An unknown network ends its process; the last line of what it said is kept."""
    found = coverage_run.run_one("nowhere:net", OURS, coverage_run.Limits(60, 2**40))
    assert "KeyError: 'nowhere'" in str(found["ended"])


def test_the_named_networks_are_sixty_two() -> None:
    """Each once, and none again in another list."""
    lists = coverage_models.lists()
    everything = [name for names in lists.values() for name in names]
    assert len(lists["named"]) == 62
    assert len(everything) == len(set(everything))
