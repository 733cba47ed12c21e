"""INT8 by explicit Q/DQ nodes: static quantisation, from the ranges that values have on calibration inputs.

A scheme says where the pairs stand, for runtimes differ in what they fuse. TensorRT fuses a convolution with what is
behind it as long as no pair comes between, so there the pairs stand at the inputs of weighted operators alone. CPU
runtimes turn a weighted operator into an integer kernel where its output is an integer too, and stay in integers from
one to the next where what lies between only moves, joins or bounds values.

Nodes keep their names and their order, and values keep theirs: what is known of the fp32 model by name holds here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from cpd_edge.deploy.calibrate import Ranges, observe
from cpd_edge.errors import ModelError

MARKS = frozenset(["QuantizeLinear", "DequantizeLinear"])
"""Operators that only say where integers are."""

_MOVES = frozenset(["Flatten", "MaxPool", "Reshape", "Resize", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"])
_JOINS = frozenset(["Add", "AveragePool", "Concat", "GlobalAveragePool"])
_BOUNDS = frozenset(["Clip", "Relu"])
_PRODUCTS = frozenset(["Gemm", "MatMul"])
_CHANNEL_OPSET = 13
"""From this opset on, a scale may be one for each channel."""


@dataclass(frozen=True)
class Scheme:
    """Where Q/DQ pairs stand, and which integers they make.

    Attributes:
        weighted: operators that are quantised where their second input is a weight.
        outputs: what weighted operators write is an integer too, with their biases and whatever passes integers on;
            activations are then unsigned with a zero point, else signed and symmetric.
        weight_max: largest integer of a weight.
        least_scale: smallest scale. Where the rest of the file is made fp16, a product's scales must all fit into it.
    """

    weighted: tuple[str, ...]
    outputs: bool
    weight_max: int = 127
    least_scale: float = float(np.finfo(np.float32).tiny)


TENSORRT = Scheme(
    ("Conv", "ConvTranspose", "Gemm", "MatMul"), outputs=False, least_scale=float(np.finfo(np.float16).tiny)
)
"""What TensorRT fuses."""
CPU = Scheme(("Conv", "Gemm", "MatMul"), outputs=True)
"""What the CPU runtimes have integer kernels for."""
CPU_SATURATING = Scheme(CPU.weighted, outputs=True, weight_max=64)
"""The same for CPUs whose sum of two products of 8 bits saturates at 16: x86 before VNNI."""


def is_quantised(model: onnx.ModelProto) -> bool:
    """Whether the model holds Q/DQ nodes."""
    return any(node.op_type in MARKS for node in model.graph.node)


def integer_nodes(model: onnx.ModelProto, scheme: Scheme) -> tuple[tuple[str, ...], frozenset[str]]:
    """Names of the weighted nodes that can compute in integers, in order, and of nodes that pass integers on.

    The latter do so where all that they read comes from integers, and all that read them take integers.

    Raises:
        ModelError: as `quantise`.
    """
    place = _Placement(model, scheme, None)
    names = tuple(place.nodes[i].name for i in sorted(place.weighted))
    return names, frozenset(place.nodes[i].name for i in place.chosen - place.weighted)


def calibrate(
    model: onnx.ModelProto,
    images: npt.NDArray[Any],
    scheme: Scheme,
    batch: int = 8,
    *,
    nodes: Collection[str] | None = None,
) -> Ranges:
    """The ranges that a scheme needs of a model, from calibration inputs `[n, ...]`; of `nodes` as for `quantise`.

    Raises:
        DataError: images of another shape, or values that are not finite.
        ModelError: the model is quantised already, or has nothing to quantise.
        RuntimeMissing: ONNX Runtime is not installed.
    """
    return observe(model, images, _Placement(model, scheme, nodes).values, batch)


def quantise(
    model: onnx.ModelProto,
    ranges: Ranges,
    scheme: Scheme,
    *,
    nodes: Collection[str] | None = None,
    unseen: tuple[float, float] | None = None,
) -> onnx.ModelProto:
    """The model with INT8 Q/DQ: a scale for each activation, one for each output channel of a weight.

    Args:
        model: in fp32, with one input.
        ranges: of its activations, see `calibrate`.
        scheme: where the pairs stand.
        nodes: names of the weighted nodes that are quantised; all of them if None.
        unseen: range of values that `ranges` lacks, for a build that is only timed; None refuses them.

    Raises:
        ModelError: the model is quantised already, has nothing to quantise, or a value has no range.
    """
    return _Writer(_Placement(model, scheme, nodes), ranges, unseen).model()


class _Placement:
    """Which nodes and values of a model become integers."""

    def __init__(self, model: onnx.ModelProto, scheme: Scheme, nodes: Collection[str] | None) -> None:
        if is_quantised(model):
            raise ModelError("the model holds Q/DQ nodes already", hint="build it as it is with --precision int8")
        opset = next((o.version for o in model.opset_import if not o.domain), 0)
        if opset < _CHANNEL_OPSET:
            raise ModelError(
                f"the model is of opset {opset}: a scale for each channel needs {_CHANNEL_OPSET}",
                hint=f"export it with opset {_CHANNEL_OPSET} or newer",
            )
        self.source, self.scheme = model, scheme
        self.nodes = list(model.graph.node)
        self.constants = {i.name: i for i in model.graph.initializer}
        self.producer = {out: i for i, node in enumerate(self.nodes) for out in node.output if out}
        self.readers: dict[str, list[int]] = {}
        for i, node in enumerate(self.nodes):
            for name in dict.fromkeys(node.input):
                self.readers.setdefault(name, []).append(i)
        self.outputs = {out.name for out in model.graph.output}
        self.weighted = {
            i for i, n in enumerate(self.nodes) if self._weighted(n) and (nodes is None or n.name in nodes)
        }
        if not self.weighted and nodes is None:
            raise ModelError("the model has no convolution or matrix product with a weight: nothing to quantise")
        self.chosen = self.weighted | (self._passing() if scheme.outputs else set())

    @cached_property
    def values(self) -> tuple[str, ...]:
        """Activations that get a Q/DQ pair, in the order in which they are made."""
        read = {x for i in self.chosen for x in self.activations(i) if not self._inside(x)}
        written = {x for i in self.chosen for x in self.nodes[i].output if self.scheme.outputs and self._kept(i)}
        found = read | {x for x in written if x and not self._inside(x)}
        return tuple(sorted(found, key=lambda x: (self.producer.get(x, -1), x)))

    def activations(self, i: int) -> list[str]:
        """What a chosen node reads that is no constant and no shape."""
        node = self.nodes[i]
        names = node.input if node.op_type in _JOINS else node.input[:1]
        return [x for x in names if x and x not in self.constants]

    def reads_integers(self, value: str, reader: int) -> bool:
        """Whether a reader of a value that has a pair stands behind the pair."""
        return not self.scheme.outputs or self.producer.get(value) in self.chosen or reader in self.chosen

    def origin(self, value: str) -> str:
        """The value whose scale another one has, because it holds the same numbers elsewhere."""
        made = self.producer.get(value)
        while made in self.chosen and self.nodes[made].op_type in _MOVES:
            value = self.nodes[made].input[0]
            made = self.producer.get(value)
        return value

    def bias(self, i: int, channels: int) -> tuple[int, str]:
        """The node that adds a weighted node's bias, and the bias; its name is empty where there is none."""
        node, adder = self.nodes[i], i
        names = list(node.input[2:3])
        if node.op_type == "MatMul" and len(self.readers.get(node.output[0], ())) == 1:
            adder = self.readers[node.output[0]][0]
            names = list(self.nodes[adder].input) if self.nodes[adder].op_type == "Add" else []
        found = (x for x in names if x in self.constants and list(self.constants[x].dims) == [channels])
        return adder, next(found, "")

    def _weighted(self, node: onnx.NodeProto) -> bool:
        fits = node.op_type in self.scheme.weighted and len(node.input) > 1 and not node.domain
        scaled = any((a.name in ("alpha", "beta") and a.f != 1) or (a.name == "transA" and a.i) for a in node.attribute)
        return fits and not scaled and node.input[1] in self.constants and node.input[0] not in self.constants

    def _passing(self) -> set[int]:
        """Operators that pass integers on: all they read comes from integers, and all that read them take integers.

        What bounds values stays in the kernel of what it stands behind, whoever reads it. A value that anything else
        reads (a norm, a softmax) keeps its floats, and so do sums with it.
        """
        found = {i for i, n in enumerate(self.nodes) if n.op_type in _MOVES | _JOINS | _BOUNDS and self._plain(n)}
        while True:
            inside = found | self.weighted
            odd = {i for i in found if not self._between(i, inside)}
            if not odd:
                return found
            found -= odd

    def _plain(self, node: onnx.NodeProto) -> bool:
        return node.op_type not in _JOINS or not any(x in self.constants for x in node.input)

    def _between(self, i: int, inside: set[int]) -> bool:
        node = self.nodes[i]
        before = all(self.producer.get(x) in inside for x in self.activations(i))
        if node.op_type in _BOUNDS:
            return before
        behind = all(r in inside for x in node.output for r in self.readers.get(x, ()))
        return before and behind and self.outputs.isdisjoint(node.output)

    def _kept(self, i: int) -> bool:
        """Whether what a chosen node writes becomes an integer: a matrix product can write floats as well."""
        node = self.nodes[i]
        if node.op_type in _PRODUCTS:
            return self._taken(i)
        if node.op_type not in _BOUNDS:
            return True
        head = self.producer[node.input[0]]
        return self._taken(i) if self.nodes[head].op_type in _PRODUCTS else self._kept(head)

    def _taken(self, i: int) -> bool:
        """Whether a chosen node reads what this one writes, behind a bound or not."""
        readers = {r for x in self.nodes[i].output for r in self.readers.get(x, ())} & self.chosen
        return any(self.nodes[r].op_type not in _BOUNDS or self._taken(r) for r in readers)

    def _inside(self, value: str) -> bool:
        """Whether a value never leaves a kernel: a bound is all that reads it."""
        made, readers = self.producer.get(value), self.readers.get(value, [])
        if made not in self.chosen or not self.scheme.outputs or value in self.outputs or len(readers) != 1:
            return False
        behind = readers[0] in self.chosen and self.nodes[readers[0]].op_type in _BOUNDS
        return behind and self.nodes[made].op_type in (*self.scheme.weighted, "Add")


class _Writer:
    """Writes the model of one placement."""

    def __init__(self, placement: _Placement, ranges: Ranges, unseen: tuple[float, float] | None) -> None:
        self.place, self.ranges, self.unseen = placement, ranges, unseen
        self.scales = {value: self._scale(value) for value in placement.values}
        self.behind = {value: f"{value}_DequantizeLinear_Output" for value in placement.values}
        self.made: dict[str, onnx.TensorProto] = {}
        self.biases: dict[tuple[int, str], str] = {}

    def model(self) -> onnx.ModelProto:
        """See `quantise`."""
        out = onnx.ModelProto()
        out.CopyFrom(self.place.source)
        del out.graph.node[:], out.graph.initializer[:]
        for value in self.place.values:
            if value not in self.place.producer:
                out.graph.node.extend(self._pair(value, value))
        for i in range(len(self.place.nodes)):
            out.graph.node.extend(self._written(i))
        used = {x for node in out.graph.node for x in node.input} | self.place.outputs
        kept = [t for t in self.place.constants.values() if t.name in used]
        out.graph.initializer.extend([*kept, *self.made.values()])
        return out

    def _written(self, i: int) -> Iterator[onnx.NodeProto]:
        """A node behind the pairs of what it reads, and the pairs of what it writes."""
        node = onnx.NodeProto()
        node.CopyFrom(self.place.nodes[i])
        for at, name in enumerate(node.input):
            if name in self.behind and self.place.reads_integers(name, i):
                node.input[at] = self._called(name)
        if i in self.place.weighted:
            yield from self._weight(node, i)
        for at, name in enumerate(node.input):
            node.input[at] = self.biases.get((i, name), name)
        pairs = []
        for at, name in enumerate(node.output):
            if name in self.behind:
                if name in self.place.outputs:
                    node.output[at] = f"{name}_QuantizeLinear_Input"
                pairs += self._pair(name, node.output[at])
        yield node
        yield from pairs

    def _called(self, value: str) -> str:
        """What a value is called behind its pair: an output of the model keeps its name there."""
        return value if value in self.place.outputs else self.behind[value]

    def _pair(self, value: str, written: str) -> list[onnx.NodeProto]:
        scale, zero = self.scales[value]
        root = self.place.origin(value) if self.place.scheme.outputs else value
        names = [self._constant(f"{root}_scale", scale), self._constant(f"{root}_zero_point", zero)]
        integers, quantised = f"{value}_QuantizeLinear_Output", f"{value}_QuantizeLinear"
        back = f"{value}_DequantizeLinear"
        return [
            helper.make_node("QuantizeLinear", [written, *names], [integers], name=quantised),
            helper.make_node("DequantizeLinear", [integers, *names], [self._called(value)], name=back),
        ]

    def _weight(self, node: onnx.NodeProto, i: int) -> Iterator[onnx.NodeProto]:
        """Weight and bias of a weighted node, as integers that are read through their scales."""
        most, name, step = self.place.scheme.weight_max, node.input[1], self.scales[self.place.nodes[i].input[0]][0]
        weight = numpy_helper.to_array(self.place.constants[name])
        axis = _out_axis(node, weight.ndim)
        scale = (np.abs(weight).max(axis=tuple(d for d in range(weight.ndim) if d != axis)) / most).astype(np.float32)
        adder, bias = self.place.bias(i, len(scale)) if self.place.scheme.outputs else (i, "")
        shift = numpy_helper.to_array(self.place.constants[bias]) if bias else np.zeros(1, np.float32)
        scale = np.maximum(scale, np.abs(shift) / (step * 2.0**30)).astype(np.float32)  # else the bias overflows
        scale = np.maximum(scale, np.float32(self.place.scheme.least_scale))
        along = [-1 if d == axis else 1 for d in range(weight.ndim)]
        integers = np.clip(np.rint(weight / scale.reshape(along)), -most, most).astype(np.int8)
        node.input[1] = (read := self._read(name, i, integers, scale, axis)).output[0]
        yield read
        if bias:
            steps = (step * scale).astype(np.float32)
            read = self._read(bias, i, np.rint(shift / steps.astype(np.float64)).astype(np.int32), steps, 0)
            self.biases[adder, bias] = read.output[0]
            yield read

    def _read(
        self, constant: str, i: int, integers: npt.NDArray[Any], scale: npt.NDArray[Any], axis: int
    ) -> onnx.NodeProto:
        """A constant of integers for one reader, and the node that reads it."""
        name = constant if f"{constant}_quantized" not in self.made else f"{constant}/{self.place.nodes[i].output[0]}"
        inputs = [
            self._constant(f"{name}_quantized", integers),
            self._constant(f"{name}_scale", scale),
            self._constant(f"{name}_zero_point", np.zeros(scale.shape, integers.dtype)),
        ]
        called = f"{name}_DequantizeLinear"
        return helper.make_node("DequantizeLinear", inputs, [f"{called}_Output"], name=called, axis=axis)

    def _constant(self, name: str, values: npt.NDArray[Any]) -> str:
        self.made[name] = numpy_helper.from_array(np.asarray(values, order="C"), name)
        return name

    def _scale(self, value: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Scale and zero point of an activation; zero itself is always exact."""
        root = self.place.origin(value) if self.place.scheme.outputs else value
        found = self.ranges.get(root, self.unseen)
        if found is None:
            raise ModelError(f"the value {root} has no range: it was calibrated for another model")
        low, high = min(self._floor(root, found[0]), 0.0), max(found[1], 0.0)
        symmetric = not self.place.scheme.outputs
        step = np.float32(
            max(max(-low, high) / 127 if symmetric else (high - low) / 255, self.place.scheme.least_scale)
        )
        zero = np.asarray(0, np.int8) if symmetric else np.asarray(np.rint(-low / step), np.uint8)
        return np.asarray(step, np.float32), zero

    def _floor(self, value: str, low: float) -> float:
        """The least that a value can be: what a ReLU writes is not negative, whatever was assumed."""
        made = self.place.producer.get(value)
        node = self.place.nodes[made] if made is not None else None
        if node is None or node.op_type not in _BOUNDS:
            return low
        if node.op_type == "Relu":
            return max(low, 0.0)
        bound = self.place.constants.get(node.input[1]) if len(node.input) > 1 else None
        return low if bound is None else max(low, float(numpy_helper.to_array(bound)))


def _out_axis(node: onnx.NodeProto, dims: int) -> int:
    """The dim of a weight that makes output channels."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
    return 1 if node.op_type == "ConvTranspose" else dims - 1


__all__ = [
    "CPU", "CPU_SATURATING", "MARKS", "TENSORRT", "Scheme", "calibrate", "integer_nodes", "is_quantised",
    "quantise",
]  # fmt: skip
