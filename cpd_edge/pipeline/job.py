"""The main job: from a trained network to an engine inside its budget, with a report.

    intake → comb → dense engine → table → (score → solve → cut → distil) × steps → engine → verdict → report

Each stage leaves its result in the run folder before the next one begins.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

from torch import nn

from cpd_edge import network as networks
from cpd_edge import store
from cpd_edge.comb import comb
from cpd_edge.deploy.parity import Parity
from cpd_edge.distil.train import train
from cpd_edge.errors import InfeasibleError, UndecidedError
from cpd_edge.intake.tasks import Task
from cpd_edge.network import Network
from cpd_edge.pipeline import aim
from cpd_edge.pipeline.kept import keep_bench
from cpd_edge.pipeline.planner import Planner
from cpd_edge.pipeline.profiling import Tables, require_groups
from cpd_edge.pipeline.quantities import counted
from cpd_edge.pipeline.request import Request
from cpd_edge.pipeline.rig import Rig
from cpd_edge.pipeline.steps import (
    START,
    Progress,
    Student,
    cut_student,
    importance_of,
    load_student,
    plan_from_json,
    save_student,
    teach,
)
from cpd_edge.pipeline.subject import Subject, save_groups
from cpd_edge.profile.table import LatencyTable
from cpd_edge.solve.constraints import protected
from cpd_edge.types import Interval

NEARLY = 0.99
"""How far a stage is at most before it ends: files are still to be written when the last of its work is told."""
FIRST_SHARE = 0.4
"""Share of the distillation that the steps before the last one get together."""


class Job:
    """One run, stage by stage. See `run`."""

    def __init__(self, request: Request, run: store.Run, task: Task, progress: Progress) -> None:
        self.request, self.run, self.task, self._tell = request, run, task, progress
        self.checkpoints = run / "checkpoints"
        self.rig, self.tables = Rig(request, run, task, self.stage), Tables(request, run, self.stage)

    @cached_property
    def start(self) -> Student | None:
        """The student of another run that this one begins with, or None: the dense network."""
        if (self.checkpoints / f"{START}.json").exists():
            self._again(self.checkpoints / f"{START}.pt2", "pruned.pt2")
        return load_student(self.checkpoints, START)

    def _again(self, path: Path, theirs: str) -> None:
        """Takes a network that was deleted from the run that this one began with."""
        start = self.run.record.get("start")
        if start is not None and not path.exists():
            store.write_bytes(path, (Path(start) / theirs).read_bytes())

    @contextlib.contextmanager
    def shown(self, name: str) -> Iterator[None]:
        """Tells of a stage that the record does not time."""
        self._tell(name, 0.0, "")
        yield
        self._tell(name, 1.0, "")

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Callable[[float, str], None]]:
        """Times a stage into the record, also when it is interrupted, and gives its progress; its end is its last."""
        started = time.perf_counter()
        self._tell(name, 0.0, "")
        try:
            yield lambda fraction, text: self._tell(name, min(fraction, NEARLY), text)
        finally:
            seconds = dict(self.run.record["seconds"])
            seconds[name] = round(seconds.get(name, 0.0) + time.perf_counter() - started, 2)
            self.run.update(seconds=seconds)
        self._tell(name, 1.0, "")

    def dense(self, model: nn.Module | None, traced: Network | None) -> Subject:
        """The dense network, trained if that was asked for, combed and exported; from the run folder if it is there."""
        saved = self.run / "dense.pt2"
        self._again(saved, "dense.pt2")
        if saved.exists():
            network = networks.load(saved, networks.REMADE)
        else:
            assert model is not None and traced is not None
            if self.request.train:
                combed = comb(traced, self.task.input_shape)
                require_groups(combed)
                protected(combed.groups, self.request.constraints)  # refuses a pattern that names nothing
                with self.stage("train") as tell:
                    train(
                        model,
                        self.task,
                        epochs=self.request.train_epochs,
                        batch=self.request.training_batch(len(self.task.data.train)),
                        seed=self.request.seed,
                        checkpoint=self.checkpoints / "dense.pt",
                        progress=tell,
                    )
                traced = networks.trace(model, self.task.input_shape)
            network = traced
            networks.save(network, saved)
        with self.stage("comb"):
            subject = Subject.of(
                network,
                self.task.input_shape,
                self.request.threads,
                self.request.runtime,
                self.request.device,
                self.request.precision,
                self.rig.images,
            )
            protected(subject.combed.groups, self.request.constraints)
            save_groups(self.run, subject)
            if subject.quantiser is not None:
                self.run.update(quantisation=subject.quantiser.to_json())
        if not (self.run / "dense.onnx").exists():
            with self.stage("deploy"):
                self.rig.ship("dense", subject, subject.network)
        return subject

    def already_met(self, subject: Subject) -> aim.Window | None:
        """The dense engine's window if it is inside the budget as it is."""
        budget = self.request.budget
        interval = self.rig.dense_latency()
        limit_ms = aim.limit_of(budget, interval)
        met = budget.speedup <= 1 if budget.speedup is not None else interval.high <= limit_ms
        limits = counted(subject, self.request.constraints.limits)
        if not met or any(quantity.at(subject.widths) > most for quantity, most in limits):
            return None
        return aim.Window(interval, interval, Interval(1.0, 1.0, 1.0, interval.n), limit_ms, "PASS")

    def step(self, index: int, total: int, subject: Subject, table: LatencyTable, student: Student | None) -> Student:
        """One prune-and-distil step; the last one closes the loop on the device. Resumes from its own files."""
        name = f"step-{index}"
        done = load_student(self.checkpoints, name)
        if done is not None:
            return done
        planned = self.checkpoints / f"{name}-plan.json"
        if planned.exists():
            plan = plan_from_json(store.read_json(planned))
        else:
            with self.stage("score"):
                importance = importance_of(subject, student, self.task, self.request)
            planner = Planner(self.rig, self.tables, subject, table)
            if index >= total - 1:
                plan = planner.close_loop(importance, student, self.checkpoints / f"{name}-trials.json")
            else:
                plan = planner.on_the_way((index + 1) / total, importance, student, self.start)
            store.write_json(planned, plan)
        epochs = self.epochs(index, total)
        with self.stage("distil") as tell:
            student = cut_student(subject, student, plan, self.task, self.request)
            student = teach(
                subject,
                student,
                self.task,
                self.request,
                epochs=epochs,
                step=index,
                checkpoint=self.checkpoints / f"{name}-training.pt",
                progress=lambda _, fraction, text: tell(fraction, text),
            )
            save_student(self.checkpoints, name, student)
        return student

    def epochs(self, index: int, total: int) -> float:
        """Epochs of one step: the last one gets most, an extra round after it a quarter of that."""
        whole = self.request.distil_epochs(len(self.task.data.train))
        if total == 1:
            return whole if index == 0 else whole / 4
        if index < total - 1:
            return whole * FIRST_SHARE / (total - 1)
        last = whole * (1 - FIRST_SHARE)
        return last if index == total - 1 else last / 4

    def finish(self, subject: Subject, table: LatencyTable, student: Student) -> tuple[aim.Window, Parity, Student]:
        """Ships the student, takes the verdict; prunes on while a round is left and the budget is not met."""
        total = self.request.steps
        index = total - 1
        while (later := load_student(self.checkpoints, f"step-{index + 1}")) is not None:
            student, index = later, index + 1
        while True:
            log = list(self.run.record.get("round_log", []))
            judged = None
            if not any(row.get("step") == index for row in log):
                judged = self.judged(subject, student, index)
                window = judged[0]
                if window.verdict == "PASS" or len(log) >= self.request.rounds:
                    return *judged, student
                pace = window.dense.estimate / table.predict(subject.widths)
                row = aim.round_row(len(log) + 1, window, student.plan, pace, 0.0)
                row |= {"delta_ms": aim.delta_of(window, pace, student.plan.predicted_ms), "step": index}
                log.append(row)
                self.run.update(round_log=log)
            if len(log) >= self.request.rounds:
                return *(judged or self.judged(subject, student, index)), student
            try:
                student = self.step(index + 1, total, subject, table, student)
            except InfeasibleError as found:
                judged = judged or self.judged(subject, student, index)
                error = aim.in_speedups(found, self.request.budget, judged[0].dense.estimate)
                self.run.update(reason=error.what, floor_ms=error.floor_ms, binding=error.binding)
                return *judged, student
            except UndecidedError as found:
                self.run.update(reason=found.what)
                return *(judged or self.judged(subject, student, index)), student
            index += 1

    def judged(self, subject: Subject, student: Student, step: int) -> tuple[aim.Window, Parity]:
        """Ships a step's student and times it by the full protocol, unless that was done before the run was stopped."""
        done = self.rig.benched(step)
        if done is None:
            with self.stage("deploy"):
                parity = self.rig.ship("pruned", subject, student.network, student.plan)
            with self.stage("bench") as tell:
                done = self.rig.bench(tell), parity
            keep_bench(self.run, self.checkpoints, step, *done)
        found, parity = done
        return aim.judge(found, self.request.budget), parity
