"""Regions of an ONNX model: what a runtime will run as one kernel each.

Runtimes fuse differently, and the same runtime fuses differently at different widths. The clusters here are
wide enough to hold what any of them fuses: an operation, and the elementwise chain behind it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod

import onnx

from cpd_edge.errors import ModelError
from cpd_edge.layout import Layout, Prod, Sum, axes, to_json
from cpd_edge.measure.shapes import infer_shapes
from cpd_edge.types import Region

Layouts = Mapping[str, tuple[Layout, ...]]
"""Layout of each dim of a tensor, by ONNX value name."""

ELEMENTWISE = frozenset(
    """
    Abs Add BatchNormalization BiasGelu Cast Ceil Celu Clip Constant ConstantOfShape DequantizeLinear Div Dropout Elu
    Erf Exp Expand Flatten Floor Gelu HardSigmoid HardSwish Identity LeakyRelu Log Max Min Mish Mul Neg Not PRelu Pow
    QuantizeLinear Reciprocal Relu Round Selu Shape Sigmoid Sign Softplus Softsign Sqrt Squeeze Sub Swish Tanh
    ThresholdedRelu Unsqueeze Where
    """.split()  # noqa: SIM905
)
"""Operators that join the region of what they read."""

MARKS = frozenset(["QuantizeLinear", "DequantizeLinear"])
"""Operators that convert between floats and integers."""
CONVOLUTIONS = frozenset(["Conv", "ConvTranspose", "ConvInteger", "QLinearConv"])
MATRIX = frozenset(["Gemm", "MatMul", "MatMulInteger", "QLinearMatMul"])
_BULKY = (onnx.AttributeProto.TENSOR, onnx.AttributeProto.GRAPH)
"""Attributes that hold values and not settings."""
NOTHING = Prod(())
"""Layout of features that no width changes: extent 1."""


def find_regions(
    model: onnx.ModelProto, layouts: Layouts, runs: Mapping[str, tuple[str, str]] | None = None
) -> tuple[Region, ...]:
    """The regions of a model in execution order: every operation that is not elementwise heads one.

    Elementwise operations join the region of their latest producer; those that read only constants, and those at
    the input, join the first region that reads them.

    Args:
        model: the dense network, batch norms folded or not.
        layouts: layout of each dim of parameters and activations, by ONNX value name. Activations that are
            missing take the layout of what they are computed from.
        runs: the value that goes into and the one that comes out of each depth group.

    Raises:
        ModelError: the model has no nodes, or its shapes cannot be inferred.
    """
    return _Walk(model, layouts, runs or {}).regions()


def signature(regions: Sequence[Region], groups: Mapping[str, int]) -> str:
    """Twelve hex digits that change with the regions, what fixes their cost, their layouts or the groups' units."""
    described = [
        [
            r.name,
            r.op,
            list(r.nodes),
            r.dense_macs,
            [to_json(x) for x in (r.reads, r.writes, *r.weight, *r.joined)],
            list(r.within),
            r.geometry,
        ]
        for r in regions
    ]
    return hashlib.sha256(json.dumps([described, dict(groups)], sort_keys=True).encode()).hexdigest()[:12]


def node_name(node: onnx.NodeProto) -> str:
    """A node's name, or its first output's where it has none."""
    return str(node.name or node.output[0])


class _Walk:
    """One pass over a model's nodes in topological order."""

    def __init__(self, model: onnx.ModelProto, layouts: Layouts, runs: Mapping[str, tuple[str, str]]) -> None:
        self.nodes = list(model.graph.node)
        if not self.nodes:
            raise ModelError("the ONNX model has no nodes")
        self.layouts = layouts
        self.constants = {i.name for i in model.graph.initializer}
        self.producer = {out: i for i, node in enumerate(self.nodes) for out in node.output if out}
        self.fixed = set(self.constants)
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            if node.op_type == "Constant" or (node.input and all(x in self.fixed for x in node.input if x)):
                self.fixed.update(node.output)
            for name in dict.fromkeys(node.input):
                self.readers.setdefault(name, []).append(node)
        self.shapes = infer_shapes(model)
        self.channels = {axis for name in self.constants & layouts.keys() for axis in axes(*layouts[name])}
        self.feature: dict[str, Layout] = {}
        self.source: dict[str, tuple[Layout, ...]] = {}
        self.runs = {run: self._between(first, last) for run, (first, last) in runs.items()}

    def regions(self) -> tuple[Region, ...]:
        home = self._homes()
        members: dict[int, list[int]] = {}
        for i, head in enumerate(home):
            members.setdefault(head, []).append(i)
        found: dict[int, Region] = {}
        for i, node in enumerate(self.nodes):
            described = self._describe(node)
            if i in members:
                inside = tuple(node_name(self.nodes[j]) for j in (i, *(j for j in members[i] if j != i)))
                within = tuple(run for run, members in self.runs.items() if i in members)
                geometry = self._geometry(node, [self.nodes[j].op_type for j in members[i]])
                found[i] = Region(node_name(node), node.op_type, inside, *described, within, geometry)
            convolved = node.op_type in CONVOLUTIONS and bool(described[2])
            sources = (described[0],) if convolved else self._sources(node)
            for out in node.output:
                self.feature[out] = self._known(out) or described[1]
                self.source[out] = sources
        return tuple(replace(r, joined=self._joined(members[i], bool(r.weight))) for i, r in found.items())

    def _sources(self, node: onnx.NodeProto) -> tuple[Layout, ...]:
        """What the convolutions read that a node's inputs come from; of a matrix product's there are none."""
        inputs = () if node.op_type in MATRIX else node.input
        return tuple(dict.fromkeys(source for name in inputs for source in self.source.get(name, ())))

    def _joined(self, members: Sequence[int], weighted: bool) -> tuple[Layout, ...]:
        """See `Region`: of its inputs without the one that the head convolves."""
        inside = {out for i in members for out in self.nodes[i].output}
        nodes = (self.nodes[i] for i in (members[1:] if weighted else members))
        names = (name for node in nodes for name in node.input if name not in inside)
        return tuple(dict.fromkeys(source for name in names for source in self.source.get(name, ())))

    def _between(self, first: str, last: str) -> frozenset[int]:
        """Indices of the nodes on the way from one value to another.

        Raises:
            ModelError: the way does not come through `first`.
        """
        inside: set[int] = set()
        todo, entered = [last], False
        while todo:
            value = todo.pop()
            entered = entered or value == first
            made = self.producer.get(value)
            if value != first and made is not None and made not in inside:
                inside.add(made)
                todo.extend(self.nodes[made].input)
        if not entered:
            raise ModelError(f"the value {first} does not lead to {last} in the ONNX file")
        return frozenset(inside)

    def _homes(self) -> list[int]:
        """Index of the head of each node's region."""
        home: list[int | None] = []
        for i, node in enumerate(self.nodes):
            before = [self.producer[x] for x in node.input if x in self.producer]
            heads = [home[j] for j in sorted(before, reverse=True) if home[j] is not None]
            home.append(i if node.op_type not in ELEMENTWISE else heads[0] if heads else None)
        readers: dict[int, int] = {}
        for i in range(len(self.nodes) - 1, -1, -1):
            at = home[i] if home[i] is not None else readers.get(i)
            for j in (self.producer[x] for x in self.nodes[i].input if x in self.producer):
                if home[j] is None and at is not None:
                    readers[j] = at
        return [h if h is not None else readers.get(i, i) for i, h in enumerate(home)]

    def _describe(self, node: onnx.NodeProto) -> tuple[Layout, Layout, tuple[Layout, ...], int, str]:
        """What a node reads and writes, its weight's layout, its multiply-accumulates and its parameter's name."""
        read = [self._read(x) for x in node.input if x and not self._constant(x)]
        reads = read[0] if read else NOTHING
        if node.op_type == "Concat":
            joined = self._known(node.output[0]) or Sum(tuple(read))
            return joined, joined, (), 0, ""
        fqn, weight = "", tuple[Layout, ...]()
        if node.op_type in CONVOLUTIONS | MATRIX and len(node.input) > 1 and self._constant(node.input[1]):
            fqn, weight = self._weight(node)
        writes = self._known(node.output[0]) or self._behind(node) or reads
        if weight:
            out, into = (weight[0], weight[1]) if _writes_first(node) else (weight[1], weight[0])
            group = _attribute(node, "group", 1)
            writes = out if group == 1 or node.op_type != "ConvTranspose" else writes
            reads = into if group == 1 else reads if reads != NOTHING else writes
        elif node.op_type in MATRIX:
            weight = (reads, writes) if len(node.input) > 1 and self._constant(node.input[1]) else ()
        return reads, writes, weight, self._macs(node), fqn or self._parameter(node)

    def _geometry(self, node: onnx.NodeProto, held: Sequence[str]) -> str:
        """`Conv+Relu kernel_shape=3x3 strides=1x1 1x64x56x56,64x64x3x3>1x64x56x56`: no name of the model is in it."""
        settings = sorted(f"{a.name}={_setting(a)}" for a in node.attribute if a.type not in _BULKY)
        read, made = (
            ",".join("x".join(map(str, self.shapes.get(x, ()))) for x in ends) for ends in (node.input, node.output)
        )
        return " ".join(["+".join(held), *settings, f"{read}>{made}"])

    def _weight(self, node: onnx.NodeProto) -> tuple[str, tuple[Layout, ...]]:
        """Name and layout of the parameter behind a weight input, or nothing where it is not known."""
        name, turned = node.input[1], False
        while name in self.producer and name not in self.layouts:
            source = self.nodes[self.producer[name]]
            if source.op_type == "Transpose" and len(self.shapes.get(name, ())) == 2:
                turned = not turned
            elif source.op_type not in ("Cast", "DequantizeLinear", "Identity", "QuantizeLinear"):
                return "", ()
            name = source.input[0]
        fqn = name if name in self.layouts else name.removesuffix("_quantized")
        dims = self.layouts.get(fqn, ())
        if len(dims) < 2:
            return "", ()
        return fqn, (tuple(reversed(dims)) if turned else dims)

    def _parameter(self, node: onnx.NodeProto) -> str:
        """The torch parameter that a node works with; of a matrix that is folded into another, as its bias calls it."""
        readers, named = self.readers.get(node.output[0], []), [x for x in node.input[1:] if self._held(x)]
        if node.op_type == "MatMul" and not named and len(readers) == 1 and readers[0].op_type == "Add":
            biases = (x for x in readers[0].input if self._held(x) and x.endswith("bias"))
            named = [f"{x.removesuffix('bias')}weight" for x in biases]
        return named[0] if named else ""

    def _held(self, name: str) -> bool:
        """Whether a value is a parameter of the torch module."""
        return name in self.constants and name in self.layouts

    def _known(self, name: str) -> Layout | None:
        """Layout of the channels of an activation that `layouts` names."""
        dims = self.layouts.get(name)
        if dims is None:
            return None
        wide = tuple(d for d in dims if any(a in self.channels for a in axes(d)))
        return wide[0] if len(wide) == 1 else Prod(wide)

    def _read(self, name: str) -> Layout:
        return self._known(name) or self.feature.get(name, NOTHING)

    def _constant(self, name: str) -> bool:
        """Whether no input of the network goes into a value."""
        return name in self.fixed

    def _behind(self, node: onnx.NodeProto) -> Layout | None:
        """Layout of what the elementwise chain behind a node makes, where only that is named."""
        value = node.output[0]
        while len(readers := self.readers.get(value, [])) == 1 and readers[0].op_type in ELEMENTWISE:
            value = readers[0].output[0]
            if (found := self._known(value)) is not None:
                return found
        return None

    def _macs(self, node: onnx.NodeProto) -> int:
        """Multiply-accumulates at batch 1; 0 for what is no convolution or matrix product."""
        if node.op_type not in CONVOLUTIONS | MATRIX or len(node.input) < 2:
            return 0
        left, right, out = (self.shapes.get(x, ()) for x in (node.input[0], node.input[1], node.output[0]))
        if node.op_type == "ConvTranspose":
            return prod(right) * prod(left[2:])
        if node.op_type in CONVOLUTIONS:
            return prod(right) * prod(out[2:])
        return prod(out) * left[0 if node.op_type == "Gemm" and _attribute(node, "transA", 0) else -1] if left else 0


def _writes_first(node: onnx.NodeProto) -> bool:
    """Whether dim 0 of the weight makes the output channels."""
    if node.op_type == "Gemm":
        return bool(_attribute(node, "transB", 0))
    return node.op_type in CONVOLUTIONS and node.op_type != "ConvTranspose"


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def _setting(attribute: onnx.AttributeProto) -> str:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return "x".join(map(str, value)) if isinstance(value, Sequence) else str(value)
