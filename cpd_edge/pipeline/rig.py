"""The test rig of a run: its engines, shipped, opened, and timed against each other."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch

from cpd_edge import store
from cpd_edge.deploy.onnx import export_onnx, finish
from cpd_edge.deploy.parity import Parity, check_parity
from cpd_edge.errors import EnvironmentMismatch
from cpd_edge.intake.tasks import Task
from cpd_edge.measure import stats
from cpd_edge.measure.environment import require_comparable
from cpd_edge.measure.protocol import Protocol, compare, measure
from cpd_edge.measure.runtimes import ModelRunner
from cpd_edge.measure.sensing import observed, sensing
from cpd_edge.measure.site import site_of
from cpd_edge.network import Network
from cpd_edge.pipeline import aim
from cpd_edge.pipeline.kept import kept_bench
from cpd_edge.pipeline.mixture import ACROSS
from cpd_edge.pipeline.opening import open_model
from cpd_edge.pipeline.precision import PARITY, calibration_images
from cpd_edge.pipeline.request import Request
from cpd_edge.pipeline.subject import Subject, made_in
from cpd_edge.types import Comparison, Interval, Plan

QUICK = Protocol(limit_s=6.0, target=0.01)
"""Protocol of the rounds of the loop."""
FULL = Protocol(limit_s=45.0, target=0.01, min_blocks=20)
"""Protocol of the verdict, where the request says nothing else of it."""

Tell = Callable[[float, str], None]
Stage = Callable[[str], contextlib.AbstractContextManager[Tell]]
"""Times a stage by name into the run's record, and gives its progress."""


@dataclass
class Rig:
    """Makes the engines of a run and times them.

    Attributes:
        request: the settings.
        run: the folder that engines and measurements go to.
        task: gives the images that engines are held to.
        stage: times what takes long.
    """

    request: Request
    run: store.Run
    task: Task
    stage: Stage

    @property
    def protocol(self) -> Protocol:
        """The protocol of this run's verdict."""
        limit_s, target = self.request.limit_s, self.request.target
        return replace(
            FULL,
            limit_s=FULL.limit_s if limit_s is None else limit_s,
            target=FULL.target if target is None else target,
        )

    @property
    def across(self) -> Collection[str]:
        """In what the dense engine and the pruned one may differ: in mixed precision, in that."""
        return ACROSS if self.request.mixed else ()

    @cached_property
    def images(self) -> npt.NDArray[np.float32] | None:
        """What INT8 is calibrated on."""
        integers = self.request.precision.startswith("int8") or self.request.mixed
        return calibration_images(self.task, self.request.seed) if integers else None

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
            return self.shipped(name, network, model, "fp32" if self.request.mixed else self.request.precision)
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

    @contextlib.contextmanager
    def engine(self, name: str) -> Iterator[ModelRunner]:
        """An engine of the run folder, ready to time."""
        precision = (
            "fp32" if name.endswith("-fp32") or (self.request.mixed and name == "dense") else self.request.precision
        )
        with contextlib.closing(self.opened(self.run / f"{name}.onnx", precision)) as runner:
            yield runner

    def opened(self, model: Path | bytes, precision: str) -> ModelRunner:
        """A model on the runtime that the run is for."""
        asked = self.request
        return open_model(asked.device, asked.runtime, model, threads=asked.threads, precision=made_in(precision))

    def dense_latency(self) -> Interval:
        """Latency of the dense engine at the budget's quantile, measured once a run and environment [ms]."""
        if "dense_latency_ms" not in self.run.record or not self._measured_here:
            quantile = self.request.budget.quantile
            with self.stage("dense latency") as tell, self.engine("dense") as runner:
                found = measure(runner, "dense", QUICK, quantile, progress=tell)
            self.run.save_measurement(found)
            interval = stats.quantile_interval(found.samples_ns / 1e6, quantile)
            self.run.update(dense_latency_ms=interval, environment=found.environment)
            self._measured_here = True
        return Interval.from_json(self.run.record["dense_latency_ms"])

    @cached_property
    def _measured_here(self) -> bool:
        """Whether the dense latency belongs to this environment; where not, what builds took is forgotten too."""
        found = self.run.load_measurement("dense").environment
        with self.engine("dense") as runner:
            here = {**self._now(runner), "protocol": found["protocol"]}
        with contextlib.suppress(EnvironmentMismatch):
            require_comparable(found, here)
            return True
        for trials in (self.run / "checkpoints").glob("*-trials.json"):
            trials.unlink()
        self.run.update(round_log=[])
        return False

    def _now(self, runner: ModelRunner) -> dict[str, Any]:
        """The environment of an engine as it is at this moment."""
        return {**runner.environment, **site_of([runner], time.perf_counter_ns, time.sleep).moment()}

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
            here = {**self._now(runner), "protocol": self.protocol.words}
        return kept_bench(self.run, self.run / "checkpoints", step, here)

    def gain(self) -> dict[str, Any]:
        """What was gained over the dense network in fp32, by pruning and by the precision together.

        The budget's own reference is the dense engine of the same precision; nothing is added where that is fp32.
        """
        budget, stored = self.request.budget, self.run / "dense-fp32.onnx"
        if self.request.precision == "fp32" or self.request.mixed:
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
