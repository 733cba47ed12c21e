"""A choice among the best plans by what they really lose: importance is not additive, calibration loss is measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import torch

from cpd_edge.intake.tasks import Task
from cpd_edge.pipeline.request import Request
from cpd_edge.pipeline.steps import BIG_BATCH, Student, cut_student
from cpd_edge.pipeline.subject import Subject
from cpd_edge.types import Importance, Plan


def refined(
    subject: Subject,
    student: Student | None,
    plans: Sequence[Plan],
    task: Task,
    request: Request,
    progress: Callable[[float, str], None],
    importance: Importance | None = None,
) -> tuple[Plan, dict[str, Any]]:
    """The plan whose cut network, not trained yet, departs least from the dense one; and what was tried.

    Args:
        subject: the dense network, which teaches.
        student: where the weights come from, if not from the dense network.
        plans: the solver's best, the best first.
        task: gives the calibration data.
        request: its seed and its number of batches.
        progress: gets fraction and message.
        importance: knows what regions lose that run in other ways, which is added to what the cut network loses.
    """
    losses: list[float] = []
    otherwise = importance.otherwise if importance else {}
    for i, plan in enumerate(plans):
        rounded = sum(otherwise.get(way, {}).get(region, 0.0) for region, way in plan.variants.items())
        losses.append(calibration_loss(subject, student, plan, task, request) + rounded)
        progress((i + 1) / len(plans), f"plan {i + 1} of {len(plans)}: loss {losses[-1]:.4g}")
    taken = min(range(len(plans)), key=losses.__getitem__)
    rows = [{"objective": p.objective, "loss": x} for p, x in zip(plans, losses, strict=True)]
    return plans[taken], {"limit_ms": plans[taken].limit_ms, "taken": taken, "plans": rows}


@torch.no_grad()
def calibration_loss(subject: Subject, student: Student | None, plan: Plan, task: Task, request: Request) -> float:
    """Divergence of a cut network's outputs from the dense network's on calibration data [nats per image].

    Batch-norm statistics are taken anew first, as they are before training.
    """
    network = cut_student(subject, student, plan, task, request).network.eval()
    teacher = subject.network.clone().eval()
    total, images_seen = 0.0, 0
    for images, targets in islice(task.train_loader(BIG_BATCH, request.seed), request.calibration_batches):
        value = task.divergence(network(images), teacher(images), targets, request.temperature)
        total, images_seen = total + float(value) * len(images), images_seen + len(images)
    return total / images_seen
