"""Laws of what is counted: a quantity at widths is what the cut network has, and a run stays inside every limit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from cli.shell import Done, Shell
from cli.worlds import PRUNE, QUICK
from torch import Tensor, nn

from cpd_edge.cli.text import solve_text
from cpd_edge.cut import cut
from cpd_edge.pipeline.plans import gone_with, remaining
from cpd_edge.pipeline.quantities import PROVENANCE, counted, eased, file_size, macs, params, peak_memory
from cpd_edge.pipeline.subject import Subject
from cpd_edge.profile.regions import find_regions
from cpd_edge.store import Run
from cpd_edge.types import Limits


class Net(nn.Module):
    """A stem, a residual block that may go whole, a concat, and a tied pair of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.up, self.down = nn.Conv2d(12, 20, 1), nn.Conv2d(20, 12, 3, padding=1)
        self.left, self.right = nn.Conv2d(12, 6, 1), nn.Conv2d(12, 10, 3, stride=1, padding=1, bias=False)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = (x + self.down(self.up(x).relu())).relu()
        return self.head(torch.cat([self.left(x), self.right(x)], 1).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def subject() -> Subject:
    torch.manual_seed(0)
    return Subject.of(Net(), (3, 16, 16))


def plans(subject: Subject) -> Iterator[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    for gone in (1, 1, 0):
        yield {
            g.name: np.arange(gone if g.depth else int(rng.integers(1, g.units + 1)))
            for g in subject.combed.groups.groups
        }


def test_a_group_inside_a_branch_that_goes_is_told_as_gone(subject: Subject) -> None:
    """Nothing outside the branch has it, so its width says nothing; what the branch adds to stays."""
    (branch,) = (g.name for g in subject.combed.groups.groups if g.depth)
    assert {} == gone_with(subject.regions, subject.widths)
    left = {**subject.widths, branch: 0}
    assert {"up": branch} == gone_with(subject.regions, left)
    assert remaining(subject.regions, left) == {**left, "up": 0}
    numbers = dict.fromkeys(("predicted_ms", "limit_ms", "objective", "bound", "gap", "seconds", "macs_ratio"), 1.0)
    widths = {name: (n, left[name]) for name, n in subject.widths.items()}
    told = solve_text({**numbers, "limits": [], "widths": widths, "gone": {"up": branch}})
    assert f"20 -> gone, with {branch}" in told and "1 -> gone" in told and "12 -> 12" in told


def test_quantities_are_those_of_the_cut_network(subject: Subject) -> None:
    """MACs, parameters and the peak of live tensors are exact at any plan; the file is never larger than it is said."""
    assert any(g.depth for g in subject.combed.groups.groups)
    for keep in plans(subject):
        widths = {name: len(units) for name, units in keep.items()}
        built = subject.build_plan(keep)
        model = onnx.load_from_string(built)
        regions = find_regions(model, {})
        small = SimpleNamespace(dense_onnx=model, regions=regions, layouts={})
        assert macs(subject.regions).at(widths) == sum(r.dense_macs for r in regions)
        assert params(subject.combed).at(widths) == sum(p.numel() for p in cut(subject.combed, keep).parameters())
        assert peak_memory(subject).at(widths) == peak_memory(small).at({})  # type: ignore[arg-type]
        spare = file_size(subject).at(widths) - PROVENANCE - len(built)
        assert 0 <= spare < (3000 if all(widths.values()) else 8000)  # the graph is counted as it is when dense


def test_the_peak_is_what_a_hand_counts(subject: Subject) -> None:
    """Dense: while the block's second convolution runs, its input, its own result and the shortcut are alive."""
    assert peak_memory(subject).at(subject.widths) == 4 * 16 * 16 * (20 + 12 + 12)


def test_limits_on_the_way_shrink_geometrically(subject: Subject) -> None:
    """Half way each limit is the geometric mean of the dense network's and itself; one that is met already stays."""
    limits = Limits(macs=1e5, size_mb=5.0)
    dense = {q.name: q.at(subject.widths) for q, _ in counted(subject, limits)}
    half = eased(subject, limits, 0.5)
    assert half.macs == pytest.approx((dense["MACs"] * 1e5) ** 0.5)
    assert (half.size_mb, half.params, half.memory_mb) == (5.0, None, None)
    assert eased(subject, limits, 1.0) == limits


@pytest.fixture(scope="module")
def limited(shell: Shell) -> tuple[Run, Done]:
    """A run with a limit on parameters alone, whose plan is chosen among three on calibration data."""
    words = (*PRUNE, "--max-params", "4000", "--max-memory-mb", "1", "--refine", "3", *QUICK, "--rounds", "1")
    done = shell(*words, "--out", "limited", "--json")
    assert done.code in (0, 1, 3), done.err
    return Run(shell.folder / "limited"), done


def test_a_run_stays_inside_its_limits(limited: tuple[Run, Done]) -> None:
    """The pruned network has no more parameters than were allowed, and the record's checks say so."""
    run, done = limited
    assert 0 < done.json["params"]["pruned"] <= 4000 < done.json["params"]["dense"]
    checks = {c["name"]: c["passed"] for c in run.record["checks"]}
    assert checks["parameters inside its limit"] and checks["peak memory inside its limit"]


def test_refining_takes_the_plan_of_least_calibration_loss(limited: tuple[Run, Done]) -> None:
    """Each choice tries several plans, in order of what the solver expects, and takes the one that loses least."""
    for tried in limited[0].record["refined"]:
        losses = [row["loss"] for row in tried["plans"]]
        objectives = [row["objective"] for row in tried["plans"]]
        assert len(losses) == 3 and min(losses) > 0
        assert objectives[0] == pytest.approx(min(objectives), rel=2e-3)
        assert tried["taken"] == losses.index(min(losses))


def test_solve_takes_limits_alone_and_together(limited: tuple[Run, Done], shell: Shell) -> None:
    """`solve RUN` holds every limit that is typed, a table of another device among them, and shows what is used."""
    table = f"limited/table.json={0.9 * limited[0].record['dense_latency_ms']['estimate']}"
    words = ("--max-macs", "5e5", "--max-size-mb", "0.03", "--max-memory-mb", "0.05", "--also", table)
    found = shell("solve", "limited", "--speedup", "1.05", *words, "--json").json
    assert [row["name"] for row in found["limits"]][1:] == ["MACs", "parameters", "file size", "peak memory"]
    assert all(row["used"] <= row["limit"] for row in found["limits"])
    assert found["predicted_ms"] <= found["limit_ms"]
    assert "peak memory: 0.0" in shell("solve", "limited", *words).out


def test_a_limit_that_no_plan_meets_is_named(limited: tuple[Run, Done], shell: Shell) -> None:
    """The resource that binds is named with its floor, and with the option to type."""
    done = shell("solve", "limited", "--max-params", "3", "--json")
    assert done.code == 1
    assert "the least of all is" in done.json["message"] and "--max-params" in done.json["hint"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--max-macs", "0"), "--max-macs 1e9"),
        (("--also", "limited"), "--also TABLE=12.5"),
        (("--also", "limited=0"), "--also TABLE=12.5"),
        (("--also", "nowhere=3"), "there is no table"),
        (("--also", "limited=3", "--also", "limited=3"), "more than once"),
    ],
)
def test_limits_that_are_none_are_refused(
    limited: tuple[Run, Done], shell: Shell, words: tuple[str, ...], said: str
) -> None:
    """A limit of nothing, and a table that is none, exit 2 and say what to type."""
    done = shell("solve", "limited", *words)
    assert done.code == 2 and said in done.err


def test_a_table_of_another_model_is_refused(limited: tuple[Run, Done], shell: Shell) -> None:
    """A second device's table must be of the same groups."""
    data = json.loads((limited[0].folder / "table.json").read_text())
    data["groups"]["stem"] += 1
    (shell.folder / "other.json").write_text(json.dumps(data))
    done = shell("solve", "limited", "--also", "other.json=3")
    assert done.code == 2 and "another model" in done.err and "stem" in done.err


def test_a_table_of_the_same_groups_at_another_size_is_refused(limited: tuple[Run, Done], shell: Shell) -> None:
    """Its milliseconds are those of other images."""
    data = json.loads((limited[0].folder / "table.json").read_text())
    data["key"]["signature"] = "0123456789ab"
    (shell.folder / "larger.json").write_text(json.dumps(data))
    done = shell("solve", "limited", "--also", "larger.json=3")
    assert done.code == 2 and "another size of its images" in done.err
