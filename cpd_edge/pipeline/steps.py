"""Prune and distil in steps: score, solve, cut, recalibrate, let the dense network teach, again.

Every step's plan and every step's network is a file, so an interrupted run goes on from the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cpd_edge import network as networks
from cpd_edge import store
from cpd_edge.cut import cut, expand, in_own_coordinates
from cpd_edge.distil.judge import recalibrate
from cpd_edge.distil.train import best_device, distil
from cpd_edge.intake.tasks import Task
from cpd_edge.network import Combed, Network
from cpd_edge.pipeline.request import Request
from cpd_edge.pipeline.sensitivity import sensitivities
from cpd_edge.pipeline.subject import Subject
from cpd_edge.score.importance import magnitude, taylor
from cpd_edge.types import Importance, Plan

Progress = Callable[[str, float, str], None]

START = "start"
"""Name of the student that a run begins with, where it begins with one."""

BIG_BATCH = 128
"""Batch for statistics: recalibration and scores."""


@dataclass(frozen=True)
class Student:
    """A cut network, trained so far, with the plan it was cut by.

    Attributes:
        network: the network in its own coordinates.
        plan: kept units in original coordinates.
        history: rows of the training so far.
    """

    network: Network
    plan: Plan
    history: tuple[Mapping[str, float], ...]


@dataclass(frozen=True)
class Trial:
    """One build of the loop, as it was measured.

    Attributes:
        plan: what was built.
        close: upper end of the latency over the limit.
        pace: the device's milliseconds over the table's, in that window.
        row: the round as the record holds it.
    """

    plan: Plan
    close: float
    pace: float
    row: Mapping[str, Any]

    @property
    def passed(self) -> bool:
        """Whether it was inside the budget."""
        return bool(self.row["verdict"] == "PASS")


def importance_of(subject: Subject, student: Student | None, task: Task, request: Request) -> Importance:
    """Losses in original coordinates, of units and of regions in other ways; units that are gone count nothing."""
    network, widths = (student.network, student.plan.widths) if student else (subject.network, subject.widths)
    found = _scores_of(subject, student, task, request)
    return replace(found, otherwise=sensitivities(subject, network, widths, task, request))


def _scores_of(subject: Subject, student: Student | None, task: Task, request: Request) -> Importance:
    """Scores in original coordinates; units that are already gone count nothing, so that they go first."""
    groups = subject.combed.groups
    if student is None:
        return scores(subject.combed, task, request)
    state = expand(subject.combed, student.plan.kept, student.network)
    small = cut(subject.combed, student.plan.kept, state)  # the saved network's calls have other names
    here = scores(in_own_coordinates(subject.combed, student.plan.kept, small), task, request)
    least = min((float(v[v > 0].min()) for v in here.by_group.values() if (v > 0).any()), default=1.0)
    out = {}
    for group in groups.groups:
        if group.name not in here.by_group:
            continue
        kept = np.asarray(student.plan.kept.get(group.name, np.arange(group.units)))
        out[group.name] = np.zeros(group.units)
        out[group.name][kept] = np.maximum(here.by_group[group.name], least * 1e-3)
    return Importance(out, here.metric)


def scores(combed: Combed, task: Task | None, request: Request) -> Importance:
    """Importance of each unit, by the request's score and under its seed; magnitudes need no task."""
    if request.score == "magnitude":
        return magnitude(combed.network.state_dict(), combed.groups)
    assert task is not None
    where = best_device()
    with torch.random.fork_rng([where] if where.type == "cuda" else []):  # the fisher score draws labels
        torch.manual_seed(request.seed)
        loader = task.train_loader(BIG_BATCH, request.seed)
        if request.score == "taylor":
            return taylor(combed, loader, task.loss, request.calibration_batches, device=where)
        return taylor(
            combed,
            loader,
            lambda outputs, targets: task.own_loss(outputs, targets, request.temperature),
            request.calibration_batches,
            lambda outputs, reference, targets: task.divergence(outputs, reference, targets, request.temperature),
            where,
        )


def cut_student(subject: Subject, student: Student | None, plan: Plan, task: Task, request: Request) -> Student:
    """One cut from original coordinates, of the weights as they are now, with fresh batch-norm statistics."""
    state = expand(subject.combed, student.plan.kept, student.network) if student else None
    smaller = cut(subject.combed, plan.kept, state)
    recalibrate(smaller, task.train_loader(BIG_BATCH, request.seed), request.calibration_batches)
    return Student(smaller, plan, student.history if student else ())


def teach(
    subject: Subject,
    student: Student,
    task: Task,
    request: Request,
    *,
    epochs: float,
    step: int,
    checkpoint: Path,
    progress: Progress,
) -> Student:
    """Distils from the dense network, then adds the step's rows to the history."""
    if epochs <= 0:
        return student
    rows = distil(
        student.network,
        subject.network.clone(),
        task,
        epochs=epochs,
        batch=request.training_batch(len(task.data.train)),
        lr=request.lr,
        temperature=request.temperature,
        alpha=request.alpha,
        seed=request.seed + step,
        checkpoint=checkpoint,
        progress=lambda fraction, text: progress("distil", fraction, f"step {step + 1}: {text}"),
    )
    before = student.history[-1] if student.history else {"step": 0, "epoch": 0.0}
    history = [
        {
            **row,
            "step": row["step"] + before["step"],
            "epoch": row["epoch"] + before["epoch"],
            "prune_step": step,
            "predicted_ms": student.plan.predicted_ms,
        }
        for row in rows
    ]
    return Student(student.network, student.plan, (*student.history, *history))


def save_student(folder: Path, name: str, student: Student) -> None:
    """Writes a step's network and its plan; the plan last, so that its presence says that both are whole."""
    networks.save(student.network, folder / f"{name}.pt2")
    store.write_json(folder / f"{name}.json", {"plan": student.plan, "history": student.history})


def load_student(folder: Path, name: str) -> Student | None:
    """A step that is finished, or None."""
    if not all((folder / f"{name}.{ending}").exists() for ending in ("json", "pt2")):
        return None
    data = store.read_json(folder / f"{name}.json")
    network = networks.load(folder / f"{name}.pt2", networks.REMADE)
    return Student(network, plan_from_json(data["plan"]), tuple(data["history"]))


def plan_from_json(data: Mapping[str, Any]) -> Plan:
    """A plan from its JSON form."""
    return Plan(**{**data, "keep": {name: tuple(units) for name, units in data["keep"].items()}})


def trial_from_json(data: Mapping[str, Any]) -> Trial:
    """A trial from its JSON form."""
    return Trial(**{**data, "plan": plan_from_json(data["plan"])})
