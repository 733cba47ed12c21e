"""Prune and distil in steps: score, solve, cut, recalibrate, let the dense network teach, again.

Every step's plan and every step's network is a file, so an interrupted run goes on from the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from cpd_edge import network as networks
from cpd_edge import store
from cpd_edge.comb import comb
from cpd_edge.cut import cut, expand
from cpd_edge.distil.judge import recalibrate
from cpd_edge.distil.train import distil
from cpd_edge.errors import InfeasibleError
from cpd_edge.intake.tasks import Task
from cpd_edge.layout import Keep
from cpd_edge.network import Network
from cpd_edge.pipeline.request import Request
from cpd_edge.pipeline.subject import Subject
from cpd_edge.profile.table import LatencyTable
from cpd_edge.score.importance import magnitude, taylor
from cpd_edge.solve.milp import solve
from cpd_edge.solve.problem import plan_from, problem_from
from cpd_edge.types import Importance, Plan

Progress = Callable[[str, float, str], None]

TRUST = 0.4
"""Least share of a group's units that one step leaves."""

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


def plan_for(
    subject: Subject, table: LatencyTable, importance: Importance, limit_ms: float, student: Student | None
) -> Plan:
    """The best plan inside a limit in the table's milliseconds, nested in the student's own.

    Scores hold near the network that they were taken on, so a step leaves each group `TRUST` of its units, unless
    the limit asks for more.

    Raises:
        InfeasibleError: no plan meets the limit.
    """
    at_most = student.plan.widths if student else subject.widths
    near = {name: max(1, round(n * TRUST)) for name, n in at_most.items()}
    try:
        found = solve(problem_from(table, importance, limit_ms, at_most=at_most, at_least=near), time_limit_s=20)
    except InfeasibleError:
        found = solve(problem_from(table, importance, limit_ms, at_most=at_most), time_limit_s=20)
    return plan_from(found, importance, limit_ms)


def importance_of(subject: Subject, student: Student | None, task: Task, request: Request) -> Importance:
    """Scores in original coordinates; units that are already gone count nothing, so that they go first."""
    if student is None:
        return _scores(subject.network, subject, task, request)
    here = _scores(student.network, None, task, request)
    least = min((float(v[v > 0].min()) for v in here.by_group.values() if (v > 0).any()), default=1.0)
    out = {}
    for group in subject.combed.groups.groups:
        kept = np.asarray(student.plan.kept.get(group.name, np.arange(group.units)))
        found = here.by_group.get(group.name, np.ones(len(kept)))
        out[group.name] = np.zeros(group.units)
        out[group.name][kept] = np.maximum(found, least * 1e-3)
    return Importance(out, here.metric)


def _scores(network: Network, subject: Subject | None, task: Task, request: Request) -> Importance:
    combed = subject.combed if subject else comb(network, network.input_shape)
    if request.score == "magnitude":
        return magnitude(network.state_dict(), combed.groups)
    loader = task.train_loader(BIG_BATCH, request.seed)
    return taylor(network, combed.groups, loader, loss_of(task, request), request.calibration_batches)


def loss_of(task: Task, request: Request) -> Callable[[object, Tensor], Tensor]:
    """The loss whose derivatives score units: against labels (`taylor`), or against the network itself (`fisher`)."""
    if request.score == "taylor":
        return task.loss
    return lambda outputs, targets: task.own_loss(outputs, targets, request.temperature)


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
    history = [{**row, "prune_step": step, "predicted_ms": student.plan.predicted_ms} for row in rows]
    return Student(student.network, student.plan, (*student.history, *history))


def save_student(folder: Path, name: str, student: Student) -> None:
    """Writes a step's network and its plan; the plan last, so that its presence says that both are whole."""
    store.write_with(folder / f"{name}.pt2", lambda path: networks.save(student.network, path))
    store.write_json(folder / f"{name}.json", {"plan": student.plan, "history": student.history})


def load_student(folder: Path, name: str) -> Student | None:
    """A step that is finished, or None."""
    if not (folder / f"{name}.json").exists():
        return None
    data = store.read_json(folder / f"{name}.json")
    return Student(networks.load(folder / f"{name}.pt2"), plan_from_json(data["plan"]), tuple(data["history"]))


def plan_from_json(data: Mapping[str, Any]) -> Plan:
    """A plan from its JSON form."""
    return Plan(**{**data, "keep": {name: tuple(units) for name, units in data["keep"].items()}})


def no_plan(subject: Subject, table: LatencyTable) -> Plan:
    """The dense network as a plan: every unit stays."""
    keep = {name: tuple(range(n)) for name, n in subject.widths.items()}
    dense_ms = table.predict(subject.widths)
    return Plan(keep, dense_ms, dense_ms, 0.0, 0.0, 0.0, 0.0, "dense")


__all__ = ["Keep", "Student", "cut_student", "importance_of", "load_student", "plan_for", "save_student", "teach"]
