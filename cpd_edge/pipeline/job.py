"""The main job: from a trained network to an engine inside its budget, with a report.

    intake → comb → dense engine → table → (score → solve → cut → distil) × steps → engine → verdict → report

Each stage leaves its result in the run folder before the next one begins.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import nn

from cpd_edge import network as networks
from cpd_edge import store
from cpd_edge.deploy.onnx import export_onnx, finish
from cpd_edge.deploy.parity import Parity, check_parity
from cpd_edge.distil.train import train
from cpd_edge.errors import InfeasibleError
from cpd_edge.intake.tasks import Task
from cpd_edge.measure import stats
from cpd_edge.measure.protocol import Protocol, compare, measure
from cpd_edge.measure.runtimes import MIXED, ModelRunner
from cpd_edge.measure.sensing import observed, sensing
from cpd_edge.measure.site import site_of
from cpd_edge.network import Network
from cpd_edge.pipeline import aim, outcome
from cpd_edge.pipeline.kept import keep_bench, kept_bench
from cpd_edge.pipeline.loop import close_loop
from cpd_edge.pipeline.mixture import ACROSS, INT8, Mixing, mixing
from cpd_edge.pipeline.opening import open_model
from cpd_edge.pipeline.plans import on_device, plan_for, plans_for
from cpd_edge.pipeline.precision import PARITY, calibration_images
from cpd_edge.pipeline.profiling import measured_table
from cpd_edge.pipeline.quantities import counted, eased
from cpd_edge.pipeline.refine import refined
from cpd_edge.pipeline.request import Request
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
from cpd_edge.pipeline.subject import Subject, made_in, save_groups
from cpd_edge.profile.table import LatencyTable, table_folder
from cpd_edge.solve.ways import PLAIN, Ways
from cpd_edge.types import Comparison, Constraints, Importance, Interval, Plan

QUICK = Protocol(limit_s=6.0, target=0.01)
"""Protocol of the rounds of the loop."""
FULL = Protocol(limit_s=45.0, target=0.01, min_blocks=20)
"""Protocol of the verdict, where the request says nothing else of it."""
NEARLY = 0.99
"""How far a stage is at most before it ends: files are still to be written when the last of its work is told."""
INT8_TABLE, MIXING = "table-int8.json", "mixing.json"
"""Files of a run in mixed precision: the second table, and what beside the tables a mixture costs."""
FIRST_SHARE = 0.4
"""Share of the distillation that the steps before the last one get together."""


class Job:
    """One run, stage by stage. See `run`."""

    def __init__(self, request: Request, run: store.Run, task: Task, progress: Progress) -> None:
        self.request, self.run, self.task, self._tell = request, run, task, progress
        self.checkpoints = run / "checkpoints"
        self._ways: Ways | None = None

    @cached_property
    def start(self) -> Student | None:
        """The student of another run that this one begins with, or None: the dense network."""
        return load_student(self.checkpoints, START)

    @property
    def protocol(self) -> Protocol:
        """The protocol of this run's verdict."""
        asked = {"limit_s": self.request.limit_s, "target": self.request.target}
        return replace(FULL, **{name: value for name, value in asked.items() if value is not None})

    @property
    def across(self) -> Collection[str]:
        """In what the dense engine and the pruned one may differ: in mixed precision, in that."""
        return ACROSS if self.mixed else ()

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
        if saved.exists():
            network = networks.load(saved)
        else:
            assert model is not None and traced is not None
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
                traced = networks.trace(model, self.task.input_shape)
            network = traced
            store.write_with(saved, lambda path: networks.save(network, path))
        with self.stage("comb"):
            subject = Subject.of(
                network,
                self.task.input_shape,
                self.request.threads,
                self.request.runtime,
                self.request.device,
                self.request.precision,
                self.images,
            )
            save_groups(self.run, subject)
            if subject.quantiser is not None:
                self.run.update(quantisation=subject.quantiser.to_json())
        if not (self.run / "dense.onnx").exists():
            with self.stage("deploy"):
                self.ship("dense", subject, subject.network)
        return subject

    @cached_property
    def images(self) -> npt.NDArray[np.float32] | None:
        """What INT8 is calibrated on."""
        integers = self.request.precision.startswith("int8") or self.mixed
        return calibration_images(self.task, self.request.seed) if integers else None

    @property
    def mixed(self) -> bool:
        """Whether each region has its own precision."""
        return self.request.precision == MIXED

    def ship(self, name: str, subject: Subject, network: Network, plan: Plan | None = None) -> Parity:
        """Exports, refuses an engine that computes something else than torch, and writes NAME.onnx.

        Where INT8 is shipped, what it is made of stays beside it as NAME-fp32.onnx, and must equal torch as any fp32
        engine does: what the quantised one differs by is then rounding. In mixed precision the plan says which regions
        are INT8, none without one.

        Raises:
            ParityError: engine and torch differ by more than the tolerance on real inputs.
        """
        provenance = {
            "run": self.run.folder.name,
            "model": self.request.model,
            "data": self.request.data,
            "engine": name,
            "input": json.dumps(self.task.data.contract()),
        }
        variants = plan.variants if plan else {}
        if variants:
            provenance["precisions"] = json.dumps(dict(variants))
        model = finish(export_onnx(network).model, provenance)
        nodes = subject.quantised(model, plan.widths if plan else subject.widths, variants)
        if subject.quantiser is None or (nodes is not None and not nodes):
            (self.run / f"{name}-fp32.onnx").unlink(missing_ok=True)
            return self.shipped(name, network, model, "fp32" if self.mixed else self.request.precision)
        self.shipped(f"{name}-fp32", network, model, "fp32")
        assert self.images is not None
        quantiser = subject.quantiser.recalibrated(model, self.images, nodes)
        return self.shipped(name, network, quantiser.ship(model, nodes), self.request.precision)

    def shipped(self, name: str, network: Network, model: onnx.ModelProto, precision: str) -> Parity:
        """Holds an engine to torch and writes it."""
        data = bytes(model.SerializeToString())
        images, _ = next(iter(self.task.val_loader(32)))
        own = self.request.parity if precision == self.request.precision else None
        with contextlib.closing(self.opened(data, precision)) as runner:
            parity = check_parity(network, runner.outputs, images, own or PARITY[precision], name)
        store.write_bytes(self.run / f"{name}.onnx", data)
        return parity

    def already_met(self, subject: Subject) -> aim.Window | None:
        """The dense engine's window if it is inside the budget as it is."""
        budget = self.request.budget
        if "dense_latency_ms" not in self.run.record:
            with self.stage("dense latency") as tell, self.engine("dense") as runner:
                found = measure(runner, "dense", QUICK, budget.quantile, progress=tell)
            self.run.save_measurement(found)
            interval = stats.quantile_interval(found.samples_ns / 1e6, budget.quantile)
            self.run.update(dense_latency_ms=interval, environment=found.environment)
        interval = outcome.interval_from(self.run.record["dense_latency_ms"])
        limit_ms = aim.limit_of(budget, interval)
        met = budget.speedup <= 1 if budget.speedup is not None else interval.high <= limit_ms
        limits = counted(subject, self.request.constraints.limits)
        if not met or any(quantity.at(subject.widths) > most for quantity, most in limits):
            return None
        return aim.Window(interval, interval, Interval(1.0, 1.0, 1.0, interval.n), limit_ms, "PASS")

    def table(self, subject: Subject) -> LatencyTable:
        """The latency table, measured now or reused, from the run's folder or this device's."""
        return self.table_of(subject.all_in("fp32") if self.mixed else subject, self.run / "table.json")

    def table_of(self, subject: Subject, file: Path) -> LatencyTable:
        """The latency table of the network in one precision, see `table`."""
        key = subject.key()
        if file.exists():
            known = LatencyTable.load(file)
            if known.key == key:
                return known
        folder = table_folder(Path(self.request.profiles), key)
        with self.stage("profile") as tell:
            table = measured_table(
                subject, key, folder, samples=self.request.samples, seed=self.request.seed, progress=tell
            )
            table.save(file)
        return table

    def ways(self, subject: Subject, table: LatencyTable) -> Ways:
        """How regions may run: one way, or in mixed precision two, of which the other was measured as well."""
        if not self.mixed:
            return PLAIN
        if self._ways is None:
            integers, file = self.table_of(subject.all_in(INT8), self.run / INT8_TABLE), self.run / MIXING
            if not file.exists():
                with self.stage("profile both") as tell:
                    store.write_json(file, mixing(subject, table, integers, self.request.seed, tell))
            self._ways = Mixing(**store.read_json(file)).ways(subject, integers)
        return self._ways

    @contextlib.contextmanager
    def engine(self, name: str) -> Iterator[ModelRunner]:
        """An engine of the run folder, ready to time."""
        precision = "fp32" if name.endswith("-fp32") or (self.mixed and name == "dense") else self.request.precision
        with contextlib.closing(self.opened(self.run / f"{name}.onnx", precision)) as runner:
            yield runner

    def opened(self, model: Path | bytes, precision: str) -> ModelRunner:
        """A model on the runtime that the run is for."""
        asked = self.request
        return open_model(asked.device, asked.runtime, model, threads=asked.threads, precision=made_in(precision))

    def window(self, candidate: bytes, tell: Callable[[float, str], None]) -> aim.Window:
        """Times a candidate against the dense engine by the short protocol."""
        with self.engine("dense") as a, contextlib.closing(self.opened(candidate, self.request.precision)) as b:
            quantile = self.request.budget.quantile
            found = compare(a, b, ("dense", "pruned"), QUICK, quantile, progress=tell, across=self.across)
        return aim.judge(found, self.request.budget)

    def bench(self, tell: Callable[[float, str], None]) -> Comparison:
        """Times the shipped engine against the dense one by the full protocol, and keeps the raw samples.

        They come with what sensors said meanwhile: numbers of a device that slowed itself down are void.
        """
        quantile = self.request.budget.quantile
        with self.engine("dense") as a, self.engine("pruned") as b, sensing(b) as sensors:
            found = compare(a, b, ("dense", "pruned"), self.protocol, quantile, progress=tell, across=self.across)
            seen = observed(sensors, found.b)
        self.run.save_measurement(found.a)
        self.run.save_measurement(found.b)
        self.run.update(
            environment=found.b.environment, steady=found.a.steady and found.b.steady, stop=found.b.stop,
            throttling=seen["throttling"], void=seen["void"],
        )  # fmt: skip
        return found

    def benched(self, step: int) -> tuple[Comparison, Parity] | None:
        """The bench of a step's student that an earlier life of this run finished, where it holds here and now."""
        if not (self.run / "pruned.onnx").exists():
            return None
        with self.engine("pruned") as runner:
            moment = site_of([runner], time.perf_counter_ns, time.sleep).moment()
            here = {**runner.environment, **moment, "protocol": self.protocol.words}
        return kept_bench(self.run, self.checkpoints, step, here)

    def gain(self) -> dict[str, Any]:
        """What was gained over the dense network in fp32, by pruning and by the precision together.

        The budget's own reference is the dense engine of the same precision; nothing is added where that is fp32.
        """
        budget, stored = self.request.budget, self.run / "dense-fp32.onnx"
        if self.request.precision == "fp32" or self.mixed:
            return {}
        dense = stored if stored.exists() else self.run / "dense.onnx"
        with contextlib.closing(self.opened(dense, "fp32")) as a:
            with self.stage("bench") as tell, self.engine("pruned") as b:
                names, differ = ("dense-fp32", "pruned"), ("precision", "providers")
                found = compare(a, b, names, QUICK, budget.quantile, progress=tell, across=differ)
            with self.stage("evaluate"):
                metric = self.task.metric()
                for images, targets in self.task.val_loader(128):
                    self.task.update(metric, torch.from_numpy(a.outputs(images.numpy())), targets)
        latency = stats.quantile_interval(found.a.samples_ns / 1e6, budget.quantile)
        return {"fp32": {"latency_ms": latency, "speedup": found.speedup, "metric": metric.compute()}}

    def reachable(self, subject: Subject, table: LatencyTable) -> None:
        """Refuses a budget that no plan meets before any training.

        Raises:
            InfeasibleError: in the device's milliseconds.
        """
        dense = outcome.interval_from(self.run.record["dense_latency_ms"])
        pace, limit_ms = dense.estimate / table.predict(subject.widths), aim.limit_of(self.request.budget, dense)
        alike = Importance({name: np.ones(n) for name, n in subject.widths.items()})
        if self.mixed:
            alike = replace(alike, otherwise={INT8: {region.name: 1.0 for region in subject.weighted}})
        ways = self.ways(subject, table)
        try:
            with self.stage("solve"):
                plan_for(subject, table, alike, limit_ms / pace, None, self.request.constraints, ways)
        except InfeasibleError as error:
            raise on_device(error, subject.regions, subject.widths, pace, limit_ms, 0.0) from error

    def tried(self, subject: Subject, plan: Plan) -> aim.Window:
        """Builds a plan, untrained, and times it by the short protocol."""
        with self.stage("measure rounds") as tell:
            return self.window(subject.build_plan(plan.kept, plan.variants), tell)

    def chosen(
        self,
        subject: Subject,
        table: LatencyTable,
        importance: Importance,
        limit_ms: float,
        student: Student | None,
        constraints: Constraints,
    ) -> Plan:
        """The solver's plan, or where several are asked for the one of least loss on calibration data.

        Raises:
            InfeasibleError: no plan meets the limits.
        """
        asked, ways = (subject, table, importance, limit_ms, student, constraints), self.ways(subject, table)
        if self.request.refine == 1:
            with self.stage("solve"):
                return plan_for(*asked, ways)
        with self.stage("solve"):
            plans = plans_for(*asked, self.request.refine, ways)
        with self.stage("refine") as tell:
            plan, tried = refined(subject, student, plans, self.task, self.request, tell, importance)
        self.run.update(refined=[*(r for r in self.run.record.get("refined", []) if not same_choice(r, tried)), tried])
        return plan

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
                plan = close_loop(self, subject, table, importance, student, name)
            else:
                plan = self.intermediate(index, total, subject, table, importance, student)
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

    def intermediate(
        self,
        index: int,
        total: int,
        subject: Subject,
        table: LatencyTable,
        importance: Importance,
        student: Student | None,
    ) -> Plan:
        """A plan on the way: limits shrink geometrically from where the run begins to what is asked for."""
        dense_ms = table.predict(subject.widths)
        first_ms = self.start.plan.predicted_ms if self.start else dense_ms
        dense = outcome.interval_from(self.run.record["dense_latency_ms"])
        last_ms = aim.table_limit_ms(aim.limit_of(self.request.budget, dense), dense.estimate / dense_ms, 0.0)
        share = (index + 1) / total
        target_ms, pace = first_ms ** (1 - share) * last_ms**share, dense.estimate / dense_ms
        given = self.request.constraints
        constraints = replace(given, limits=eased(subject, given.limits, share)) if given.limits.any else given
        try:
            return self.chosen(subject, table, importance, target_ms, student, constraints)
        except InfeasibleError as error:
            raise on_device(error, subject.regions, subject.widths, pace, last_ms * pace, 0.0) from error

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
                row = outcome.round_row(len(log) + 1, window, student.plan, pace, 0.0)
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
            index += 1

    def judged(self, subject: Subject, student: Student, step: int) -> tuple[aim.Window, Parity]:
        """Ships a step's student and times it by the full protocol, unless that was done before the run was stopped."""
        done = self.benched(step)
        if done is None:
            with self.stage("deploy"):
                parity = self.ship("pruned", subject, student.network, student.plan)
            with self.stage("bench") as tell:
                done = self.bench(tell), parity
            keep_bench(self.run, self.checkpoints, step, *done)
        found, parity = done
        return aim.judge(found, self.request.budget), parity


def same_choice(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two trials of plans are of one choice: a run that was stopped behind it makes it again."""
    (limit_a, plans_a), (limit_b, plans_b) = ((t["limit_ms"], [p["objective"] for p in t["plans"]]) for t in (a, b))
    return bool(limit_a == limit_b and plans_a == plans_b)
