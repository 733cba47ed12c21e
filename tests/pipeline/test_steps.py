"""Laws of a step's scores: in original coordinates whatever was cut before, and the same whoever asks again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cpd_edge.comb import comb
from cpd_edge.cut import cut
from cpd_edge.intake.tasks import Task, load_task
from cpd_edge.pipeline.request import Request
from cpd_edge.pipeline.steps import Student, importance_of, scores
from cpd_edge.pipeline.subject import Subject
from cpd_edge.types import Budget, Plan


class Grouped(nn.Module):
    """A grouped convolution, whose two axes are named after the same layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grouped = nn.Conv2d(1, 12, 3, stride=4), nn.Conv2d(12, 12, 3, groups=4)
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.grouped(self.stem(x)).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task("digits")


def asked(score: str = "fisher") -> Request:
    return Request("mine", "digits", Budget(speedup=2), score=score, calibration_batches=2)


@pytest.fixture(scope="module")
def subject() -> Subject:
    combed = comb(Grouped(), (1, 32, 32))
    return Subject(combed, None, (), 1, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("score", ["fisher", "taylor", "magnitude"])
def test_scores_of_a_cut_network_stand_where_its_units_came_from(subject: Subject, task: Task, score: str) -> None:
    """Kept units have an importance, the others none, even where a group is down to its last unit."""
    groups = subject.combed.groups
    assert len(groups.groups) > 1
    for narrow in groups.groups:
        keep = {g.name: (g.units - 1,) if g is narrow else tuple(range(1, g.units)) for g in groups.groups}
        plan = Plan(keep, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0)
        student = Student(cut(subject.combed, plan.kept), plan, ())
        found = importance_of(subject, student, task, asked(score)).by_group
        assert {name: tuple(np.flatnonzero(values)) for name, values in found.items()} == keep


def test_scores_do_not_depend_on_what_was_drawn_before(subject: Subject, task: Task) -> None:
    """A run that is resumed, or solved again, ranks units as it did; the caller's generator stays where it was."""
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found.append(scores(subject.combed, task, asked()).by_group)
        assert torch.equal(torch.get_rng_state(), before)
    assert all(np.array_equal(found[0][name], found[1][name]) for name in found[0])
