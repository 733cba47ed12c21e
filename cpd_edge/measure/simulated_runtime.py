"""A runtime that is arithmetic: it opens ONNX models, and what each kernel costs on the simulated device is a formula.

    kernel = launch + macs / rate + bytes / bandwidth        engine = fixed + Σ kernels

Multiply-accumulates count with the channels read and written rounded up to blocks: latency climbs a staircase. Like a
real runtime it fuses elementwise tails, puts changes of layout behind channels that fit no vector, has a part that
belongs to no node, and a profiler that costs time. It computes nothing: outputs are ONNX Runtime's.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from cpd_edge.errors import ModelError
from cpd_edge.measure.runners import Kernel, OnnxRunner
from cpd_edge.measure.shapes import infer_shapes
from cpd_edge.measure.simulated import NAME, Disturbance, SimulatedDevice
from cpd_edge.measure.site import Site

FREE = frozenset(
    "Cast Constant ConstantOfShape Dropout Expand Flatten Identity Reshape Shape Squeeze Unsqueeze".split()  # noqa: SIM905
)
"""Operators that take no time: they move no data."""

TAILS = frozenset("Add BatchNormalization Clip Elu HardSwish LeakyRelu Mul Relu Sigmoid Silu Tanh".split())  # noqa: SIM905
"""Operators that run inside the kernel that they read, where nothing else reads it."""

MATRIX = frozenset(["Gemm", "MatMul"])
CONVOLUTIONS = frozenset(["Conv", "ConvTranspose"])
PROLOGUE = "(prologue)"
"""Name of the kernel that belongs to no node."""


@dataclass(frozen=True)
class Costs:
    """What things cost on a simulated device.

    Attributes:
        launch_ms: of each kernel [ms].
        macs_per_ms: multiply-accumulates of one thread.
        bytes_per_ms: read and written.
        reads_block, writes_block: channels that are worked on together.
        vector: channels that a layout holds together; others need a change of layout behind them.
        fixed_ms: of an inference, outside of all kernels [ms].
        prologue_ms: of a kernel that belongs to no node [ms].
        profiler_ms: what the profiler adds to each kernel [ms].
        load_bytes_per_ms: of the model file, the first time; five times as many once it is warm.
    """

    launch_ms: float = 0.004
    macs_per_ms: float = 2e7
    bytes_per_ms: float = 1e7
    reads_block: int = 8
    writes_block: int = 32
    vector: int = 4
    fixed_ms: float = 0.02
    prologue_ms: float = 0.01
    profiler_ms: float = 0.003
    load_bytes_per_ms: float = 1e5


@dataclass(frozen=True)
class Cost:
    """A kernel and its true time.

    Attributes:
        name: of the node that heads it.
        op: its operator; `Fused…` with a tail.
        ms: true time, without noise and profiler [ms].
    """

    name: str
    op: str
    ms: float


def true_costs(model: onnx.ModelProto, costs: Costs, batch: int = 1, threads: int = 1) -> tuple[Cost, ...]:
    """What every kernel of a model truly costs, in execution order.

    Raises:
        ModelError: the shapes cannot be inferred.
    """
    shapes = infer_shapes(model, batch)
    weights = {i.name for i in model.graph.initializer}
    readers = Counter(x for node in model.graph.node for x in node.input) + Counter(o.name for o in model.graph.output)
    found = [Cost(PROLOGUE, "Prologue", costs.prologue_ms)]
    tips: dict[str, int] = {}  # value: the kernel that ends in it
    for node in model.graph.node:
        if node.op_type in FREE:
            continue
        heads = [tips[x] for x in node.input if x in tips and readers[x] == 1]
        if node.op_type in TAILS and heads:
            at = max(heads)
            found[at] = replace(found[at], op=f"Fused{found[at].op.removeprefix('Fused')}")
        else:
            at = len(found)
            ms = costs.launch_ms + _work_ms(node, shapes, weights, costs, threads)
            found.append(Cost(node.name or node.output[0], node.op_type, ms))
        tips[node.output[0]] = at
        shape = shapes.get(node.output[0], ())
        if node.op_type in CONVOLUTIONS and shape[1] % costs.vector:
            moved = costs.launch_ms + 2 * _bytes(shape, costs) / costs.bytes_per_ms
            found.append(Cost(f"reorder_{len(found)}", "ReorderInput", moved))
    return tuple(found)


def _work_ms(
    node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]], weights: set[str], costs: Costs, threads: int
) -> float:
    """Time of a node beside its launch: multiply-accumulates in blocks, and memory [ms]."""
    sides = [shapes.get(x, ()) for x in (*(x for x in node.input if x and x not in weights), *node.output)]
    read = sum(4 * prod(shapes[x]) for x in node.input if x in weights)
    memory_ms = (sum(_bytes(s, costs) for s in sides) + read) / costs.bytes_per_ms
    macs = 0
    if node.op_type in CONVOLUTIONS | MATRIX:
        left, right, out = (shapes[x] for x in (node.input[0], node.input[1], node.output[0]))
        if node.op_type in CONVOLUTIONS:
            grouped = right[1] != (left[1] if node.op_type == "Conv" else out[1])
            into = right[1] if grouped else _up(left[1], costs.reads_block)
            places = prod((out if node.op_type == "Conv" else left)[2:]) * out[0]
            macs = places * prod(right[2:]) * into * _up(out[1], costs.writes_block)
        else:
            transposed = any(a.name == "transA" and a.i for a in node.attribute)
            macs = prod(out[:-1]) * _up(left[0 if transposed else -1], costs.reads_block)
            macs *= _up(out[-1], costs.writes_block)
    return macs / (costs.macs_per_ms * threads) + memory_ms


def _bytes(shape: Sequence[int], costs: Costs) -> int:
    """Size of an activation whose channels are stored in vectors."""
    padded = [_up(n, costs.vector) if i == 1 and len(shape) == 4 else n for i, n in enumerate(shape)]
    return 4 * prod(padded)


def _up(n: int, block: int) -> int:
    return -(-n // block) * block


class SimulatedRuntime:
    """An ONNX model on a simulated device.

    Args:
        model: file, or the model's bytes.
        device: where it runs; one that all engines of this process share if None.
        costs: what things cost there.
        threads: divide the time of multiply-accumulates.
        batch: images per inference.
        profile: with the profiler on from the start; here it only costs time while `kernels` runs.
        precision: of the model, as the environment shall say it.

    Attributes:
        environment: says in words that nothing was measured.
        load_ms: `first_load` and `first_inference`, apart.
        site: the device's clock.

    Raises:
        ModelError: no ONNX model.
    """

    def __init__(
        self,
        model: Path | bytes,
        device: SimulatedDevice | None = None,
        costs: Costs | None = None,
        *,
        threads: int = 1,
        batch: int = 1,
        profile: bool = False,
        precision: str = "fp32",
    ) -> None:
        self.device, self.costs = device or the_device(), costs or Costs()
        self.site: Site = self.device.site
        self._data = model if isinstance(model, bytes) else model.read_bytes()
        self._computes: OnnxRunner | None = None
        self.true_costs = true_costs(_read(self._data), self.costs, batch, threads)
        self.true_ms = self.costs.fixed_ms + sum(kernel.ms for kernel in self.true_costs)
        self.environment: Mapping[str, Any] = {
            "device": NAME, "machine": "none", "cores": threads, "os": "none", "runtime": "simulated",
            "runtime_version": "1", "providers": "simulated", "precision": precision, "threads": threads,
            "batch": batch, "inputs": "none: nothing is computed", "profiled": profile, "protocol": "",
            **self.site.moment(),
        }  # fmt: skip
        start = self.device.clock()
        self.device.work(len(self._data) / self.costs.load_bytes_per_ms)
        loaded = self.device.clock()
        self.run()
        self.load_ms: Mapping[str, float] = {
            "first_load": (loaded - start) / 1e6,
            "first_inference": (self.device.clock() - loaded) / 1e6,
        }

    def run(self) -> None:
        """One inference: lets its time pass on the device's clock."""
        self.device.work(self.true_ms)

    def warm_load_ms(self) -> float:
        """Time to load the model once more [ms]."""
        start = self.device.clock()
        self.device.work(len(self._data) / self.costs.load_bytes_per_ms / 5)
        return (self.device.clock() - start) / 1e6

    def outputs(self, feed: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The first output for `feed` `[any batch, ...]`, as ONNX Runtime computes it."""
        if self._computes is None:
            self._computes = OnnxRunner(self._data)
        return self._computes.outputs(feed)

    def kernels(self, repeats: int) -> list[Kernel]:
        """Times of every kernel in `repeats` inferences, each under the device's disturbance and the profiler's."""
        ms = np.empty((repeats, len(self.true_costs)))
        for run in range(repeats):
            for at, kernel in enumerate(self.true_costs):
                start = self.device.clock()
                self.device.work(kernel.ms + self.costs.profiler_ms)
                ms[run, at] = (self.device.clock() - start) / 1e6
            self.device.work(self.costs.fixed_ms)
        return [Kernel(cost.name, cost.op, at, ms[:, at].copy()) for at, cost in enumerate(self.true_costs)]

    def close(self) -> None:
        """Frees what computes outputs."""
        if self._computes is not None:
            self._computes.close()
        self._computes = None


@cache
def the_device() -> SimulatedDevice:
    """The simulated device of this process: one per cent of noise, seeded, so that every run says the same."""
    return SimulatedDevice(Disturbance(noise=0.01, phi=0.3))


def _read(data: bytes) -> onnx.ModelProto:
    damaged = importlib.import_module("google.protobuf.message").DecodeError
    try:
        model = onnx.load_from_string(data)
    except damaged as error:
        raise ModelError(
            f"the model is no complete ONNX file: {error}", hint="give an ONNX file, such as RUN/pruned.onnx"
        ) from error
    if not model.graph.node:
        raise ModelError("the ONNX model has no nodes", hint="give an ONNX file, such as RUN/pruned.onnx")
    return model


__all__ = ["Cost", "Costs", "SimulatedRuntime", "the_device", "true_costs"]
