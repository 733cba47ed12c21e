"""The main job: from a trained network to an engine inside its budget, with a report.

    intake → comb → dense engine → table → (score → solve → cut → distil) × steps → engine → verdict → report

Each stage leaves its result in the run folder before the next one begins.
"""

from __future__ import annotations

import contextlib
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cpd_edge import network as networks
from cpd_edge import store
from cpd_edge.deploy.onnx import export_onnx, finish
from cpd_edge.deploy.parity import Parity, check_parity
from cpd_edge.distil.train import train
from cpd_edge.errors import InfeasibleError
from cpd_edge.intake.models import RandomWeightsWarning, load_model
from cpd_edge.intake.tasks import Task, check_model, load_task
from cpd_edge.measure import stats
from cpd_edge.measure.environment import key as environment_key
from cpd_edge.measure.protocol import Protocol, compare, measure
from cpd_edge.measure.runners import OnnxRunner, onnxruntime
from cpd_edge.network import Network
from cpd_edge.pipeline import aim, outcome
from cpd_edge.pipeline.request import Request
from cpd_edge.pipeline.steps import (
    Progress,
    Student,
    cut_student,
    importance_of,
    load_student,
    plan_for,
    plan_from_json,
    save_student,
    teach,
)
from cpd_edge.pipeline.subject import Subject, save_groups
from cpd_edge.profile.sample import profile
from cpd_edge.profile.table import LatencyTable, table_folder
from cpd_edge.types import Importance, Interval, Plan

QUICK = Protocol(limit_s=6.0, target=0.01)
"""Protocol of the rounds of the loop."""
FULL = Protocol(limit_s=30.0, target=0.005, min_blocks=20)
"""Protocol of the verdict."""
FIRST_SHARE = 0.4
"""Share of the distillation that the steps before the last one get together."""
ISOLATED_S = 8.0
"""Time spent on the isolated baseline of the table."""


class Job:
    """One run, stage by stage. See `run`."""

    def __init__(self, request: Request, run: store.Run, task: Task, progress: Progress) -> None:
        self.request, self.run, self.task, self._tell = request, run, task, progress
        self.checkpoints = run / "checkpoints"

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Callable[[float, str], None]]:
        """Times a stage into the record, also when it is interrupted, and gives its progress."""
        started = time.perf_counter()
        self._tell(name, 0.0, "")
        try:
            yield lambda fraction, text: self._tell(name, fraction, text)
        finally:
            seconds = dict(self.run.record["seconds"])
            seconds[name] = round(seconds.get(name, 0.0) + time.perf_counter() - started, 2)
            self.run.update(seconds=seconds)
        self._tell(name, 1.0, "")

    def dense(self, model: nn.Module | None) -> Subject:
        """The dense network, trained if that was asked for, combed and exported; from the run folder if it is there."""
        saved = self.run / "dense.pt2"
        if saved.exists():
            network = networks.load(saved)
        else:
            assert model is not None
            if self.request.train:
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
            network = networks.trace(model, self.task.input_shape)
            store.write_with(saved, lambda path: networks.save(network, path))
        with self.stage("comb"):
            subject = Subject.of(network, self.task.input_shape, self.request.threads)
            save_groups(self.run, subject)
        with self.stage("deploy"):
            self.ship("dense", subject.network)
        return subject

    def ship(self, name: str, network: Network) -> Parity:
        """Exports, refuses an engine that computes something else than torch, and writes NAME.onnx.

        Raises:
            ParityError: engine and torch differ by more than the tolerance on real inputs.
        """
        provenance = {
            "run": self.run.folder.name,
            "model": self.request.model,
            "data": self.request.data,
            "engine": name,
        }
        model = finish(export_onnx(network).model, provenance)
        data = bytes(model.SerializeToString())
        images, _ = next(iter(self.task.val_loader(32)))
        with contextlib.closing(OnnxRunner(data, threads=self.request.threads)) as runner:
            parity = check_parity(network, runner.outputs, images, self.request.parity, name)
        store.write_bytes(self.run / f"{name}.onnx", data)
        return parity

    def already_met(self, subject: Subject) -> aim.Window | None:
        """The dense engine's window if it is inside the budget as it is."""
        budget = self.request.budget
        with self.stage("dense latency") as tell, self.engine("dense") as runner:
            found = measure(runner, "dense", QUICK, budget.quantile, progress=tell)
        interval = stats.quantile_interval(found.samples_ns / 1e6, budget.quantile)
        self.run.update(dense_latency_ms=interval, environment=found.environment)
        limit_ms = aim.limit_of(budget, interval)
        met = budget.speedup <= 1 if budget.speedup is not None else interval.high <= limit_ms
        if not met:
            return None
        self.run.save_measurement(found)
        return aim.Window(interval, interval, Interval(1.0, 1.0, 1.0, interval.n), limit_ms, "PASS")

    def table(self, subject: Subject) -> LatencyTable:
        """The latency table, measured now or reused from this device's folder."""
        with contextlib.closing(subject.runner(subject.build(subject.widths))) as runner:
            key = {**environment_key(runner.environment), "signature": subject.signature}
        folder = table_folder(Path(self.request.profiles), key)
        with self.stage("profile") as tell:
            table = profile(
                subject.build,
                subject.regions,
                subject.widths,
                subject.runner,
                key,
                model=subject.dense_onnx,
                samples=self.request.samples,
                seed=self.request.seed,
                folder=folder,
                isolated_seconds=ISOLATED_S,
                progress=tell,
            )
            table.save(self.run / "table.json")
        return table

    @contextlib.contextmanager
    def engine(self, name: str) -> Iterator[OnnxRunner]:
        """An engine of the run folder, ready to time."""
        with contextlib.closing(OnnxRunner(self.run / f"{name}.onnx", threads=self.request.threads)) as runner:
            yield runner

    def window(
        self, candidate: bytes, protocol: Protocol, tell: Callable[[float, str], None], keep: bool
    ) -> aim.Window:
        """Times a candidate against the dense engine in ABBA blocks; keeps the raw samples if asked to."""
        budget = self.request.budget
        with self.engine("dense") as a, contextlib.closing(OnnxRunner(candidate, threads=self.request.threads)) as b:
            found = compare(a, b, ("dense", "pruned"), protocol, budget.quantile, progress=tell)
        if keep:
            self.run.save_measurement(found.a)
            self.run.save_measurement(found.b)
            self.run.update(
                environment=found.b.environment, steady=found.a.steady and found.b.steady, stop=found.b.stop
            )
        return aim.judge(found, budget)

    def close_loop(
        self, subject: Subject, table: LatencyTable, importance: Importance, student: Student | None
    ) -> Plan:
        """Build, measure, refit, solve again, until the upper bound is inside the budget and within its tolerance.

        Returns the nearest plan that passed, or the last one tried.
        """
        log: list[dict[str, Any]] = list(self.run.record.get("round_log", []))
        dense_ms = table.predict(subject.widths)
        pace = self.run.record["dense_latency_ms"]["estimate"] / dense_ms
        limit_ms = aim.limit_of(self.request.budget, outcome.interval_from(self.run.record["dense_latency_ms"]))
        delta_ms = log[-1]["delta_ms"] if log else 0.0
        best: tuple[float, Plan] | None = None
        seen: list[dict[str, int]] = []
        plan = None
        while len(log) < self.request.rounds:
            target_ms = aim.table_limit_ms(limit_ms, pace, delta_ms)
            with self.stage("solve"):
                found = plan_for(subject, table, importance, target_ms, student)
            if found.widths in seen:
                break
            plan = found
            seen.append(plan.widths)
            with self.stage("measure rounds") as tell:
                window = self.window(subject.build_plan(plan.kept), QUICK, tell, keep=False)
            pace = window.dense.estimate / dense_ms
            limit_ms = window.limit_ms
            log.append(outcome.round_row(len(log) + 1, window, plan, pace, delta_ms))
            delta_ms = aim.delta_of(window, pace, plan.predicted_ms)
            log[-1]["delta_ms"] = delta_ms
            self.run.update(round_log=log)
            if window.verdict == "PASS":
                best = max(best or (0.0, plan), (window.close, plan), key=lambda pair: pair[0])
                if window.close >= 1 - self.request.budget.tolerance:
                    break
        if best is not None:
            return best[1]
        if plan is not None:
            return plan
        return plan_for(subject, table, importance, aim.table_limit_ms(limit_ms, pace, delta_ms), student)

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
            if index >= total - 1:
                plan = self.close_loop(subject, table, importance, student)
            else:
                plan = self.intermediate(index, total, subject, table, importance, student)
            store.write_json(planned, plan)
        epochs = self.epochs(index, total)
        with self.stage("distil"):
            student = cut_student(subject, student, plan, self.task, self.request)
            student = teach(
                subject,
                student,
                self.task,
                self.request,
                epochs=epochs,
                step=index,
                checkpoint=self.checkpoints / f"{name}-training.pt",
                progress=self._tell,
            )
            save_student(self.checkpoints, name, student)
        return student

    def intermediate(
        self,
        index: int,
        total: int,
        subject: Subject,
        table: LatencyTable,
        importance: Importance,
        student: Student | None,
    ) -> Plan:
        """A plan on the way: limits shrink geometrically from the dense latency to the budget."""
        dense_ms = table.predict(subject.widths)
        dense = outcome.interval_from(self.run.record["dense_latency_ms"])
        last_ms = aim.table_limit_ms(aim.limit_of(self.request.budget, dense), dense.estimate / dense_ms, 0.0)
        share = (index + 1) / total
        with self.stage("solve"):
            return plan_for(subject, table, importance, dense_ms ** (1 - share) * last_ms**share, student)

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
            with self.stage("deploy"):
                parity = self.ship("pruned", student.network)
            with self.stage("bench") as tell:
                window = self.window((self.run / "pruned.onnx").read_bytes(), FULL, tell, keep=True)
            log = list(self.run.record.get("round_log", []))
            if window.verdict == "PASS" or len(log) >= self.request.rounds:
                return window, parity, student
            pace = window.dense.estimate / table.predict(subject.widths)
            row = outcome.round_row(len(log) + 1, window, student.plan, pace, 0.0)
            row["delta_ms"] = aim.delta_of(window, pace, student.plan.predicted_ms)
            self.run.update(round_log=[*log, row])
            index += 1
            if len(log) + 1 >= self.request.rounds:
                return window, parity, student
            student = self.step(index, total, subject, table, student)


def run(
    request: Request,
    folder: Path,
    *,
    model: nn.Module | None = None,
    data: Task | None = None,
    resume: bool = False,
    command: str = "",
    progress: Progress | None = None,
) -> tuple[store.Run, Network]:
    """Runs the main job, or goes on with it, and writes the report.

    Args:
        request: the settings.
        folder: run folder.
        model, data: objects in place of the request's specs.
        resume: go on with the run in `folder`.
        command: what was typed, for the record.
        progress: gets stage, fraction and message.

    Returns:
        The run, and the pruned network.

    Raises:
        CpdError: bad input, before any work; or a stage that failed, with what it was.
    """
    onnxruntime()
    torch.manual_seed(request.seed)
    task = data or load_task(
        request.data,
        seed=request.seed,
        image_size=request.image_size,
        data_root=Path(request.data_root) if request.data_root else None,
    )
    record = _opened(request, folder, resume)
    finished = record is not None and "verdict" in record.record
    if record is not None and finished:
        return record, networks.load(record / "pruned.pt2")
    if record is None or not (record / "dense.pt2").exists():
        model = model if model is not None else _model(request, task)
        check_model(task, model)
    if record is None:
        record = store.Run.create(folder, request.to_json())
        record.update(command=command, created=datetime.now(timezone.utc).isoformat(timespec="seconds"))
    job = Job(request, record, task, progress or (lambda stage, fraction, text: None))
    try:
        return record, _stages(job, model)
    except InfeasibleError as error:
        record.update(verdict="FAIL", reason=error.what, floor_ms=error.floor_ms, binding=error.binding)
        raise


def _stages(job: Job, model: nn.Module | None) -> Network:
    subject = job.dense(model)
    met = job.already_met(subject)
    if met is not None:
        outcome.write_already_met(job, subject, met)
        return subject.network
    table = job.table(subject)
    student: Student | None = None
    for index in range(job.request.steps):
        student = job.step(index, job.request.steps, subject, table, student)
    assert student is not None
    window, parity, student = job.finish(subject, table, student)
    store.write_with(job.run / "pruned.pt2", lambda path: networks.save(student.network, path))
    store.write_json(job.run / "plan.json", {"format": store.FORMAT, **dict(store.plain(student.plan))})  # type: ignore[call-overload]
    outcome.write(job, subject, table, student, window, parity)
    shutil.rmtree(job.checkpoints, ignore_errors=True)
    return student.network


def _opened(request: Request, folder: Path, resume: bool) -> store.Run | None:
    if not (folder / "run.json").exists():
        return None
    if not resume:
        store.Run.create(folder, {})  # refuses: the folder holds a run
    found = store.Run(folder)
    request.require_same(found.record["request"])
    return found


def _model(request: Request, task: Task) -> nn.Module:
    weights = Path(request.weights) if request.weights else None
    classes = request.num_classes or task.num_classes
    with warnings.catch_warnings():
        if request.train:
            warnings.simplefilter("ignore", RandomWeightsWarning)
        return load_model(request.model, weights, num_classes=classes, in_channels=task.input_shape[0])
