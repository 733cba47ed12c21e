"""The cut made on the finished file: no constant is folded again, so a network of other widths costs a copy.

Which of its tensors, shape constants and attributes follow which layout is found by finishing the network at a few
widths, and it is believed only where the cut of the finished file is the finished cut, value for value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from cpd_edge.deploy.onnx import OnnxCutter, finish, leave_out
from cpd_edge.layout import Keep, Layout, Widths, kept, size
from cpd_edge.network import Branch

PROBES = 2
"""Networks that are finished to find the layouts; others are finished to check them."""
SMALL = 1 << 16
"""Elements that a tensor of the dense network has at most to be kept once for each use."""
CLOSE = 1e-5
"""Largest difference of folded values, relative to the tensor's largest."""

Array = npt.NDArray[np.generic]
Layouts = tuple[Layout | None, ...]
"""One a dim or an element; None where no width changes it."""


@dataclass(frozen=True)
class FinishedCutter:
    """Cuts a finished file at any plan.

    Attributes:
        bare: the dense network without its tensors.
        tensors: its tensors by name.
        dims: layouts of the dims of each tensor that changes.
        elements: layouts of the elements of each tensor of shapes that changes.
        attributes: layouts of the values of each attribute that changes, by node and name.
        branches: what can be left out.
    """

    bare: onnx.ModelProto
    tensors: Mapping[str, Array]
    dims: Mapping[str, Layouts]
    elements: Mapping[str, Layouts]
    attributes: Mapping[tuple[int, str], Layouts]
    branches: tuple[Branch, ...] = field(default=())

    @classmethod
    def learned(cls, cutter: OnnxCutter, groups: Mapping[str, int], seed: int = 0) -> FinishedCutter | None:
        """What cuts the finished file as `cutter` cuts the unfinished one, or None where no rule of it is found.

        Args:
            cutter: of the unfinished file.
            groups: units by group.
            seed: of the widths that are tried.
        """
        rng = np.random.default_rng(seed)
        plans = [dict(groups), *_told_apart(groups, rng)]
        files = [finish(cutter.cut(_firsts(plan))) for plan in plans]
        whole = frozenset(i.name for i in files[0].graph.initializer if np.prod(i.dims, dtype=np.int64) > SMALL)
        seen = [_Seen.of(_one_a_use(file, whole)) for file in files]
        if any(_structure(s.model) != _structure(seen[0].model) for s in seen):
            return None
        found = _Search(cutter, plans).cutter(seen)
        if found is None:
            return None
        checks = [{g: max(n // 2, 1) for g, n in groups.items()}]
        if found.branches:
            checks.append({g: (n if n > 1 else int(rng.integers(0, 2))) for g, n in plans[-1].items()})
        same = all(_equal(found.cut(keep), finish(cutter.cut(keep)), whole) for keep in map(_firsts, checks))
        return found if same else None

    def cut(self, keep: Keep) -> onnx.ModelProto:
        """The finished ONNX of the network without the units that `keep` leaves out."""
        widths = {name: len(units) for name, units in keep.items()}
        out = onnx.ModelProto()
        out.CopyFrom(self.bare)
        for name, array in self.tensors.items():
            for dim, layout in enumerate(self.dims.get(name, ())):
                if layout is not None:
                    index = kept(layout, keep)
                    array = array if len(index) == array.shape[dim] else np.take(array, index, axis=dim)
            if name in self.elements:
                flat = [_value(e, old, widths) for e, old in zip(self.elements[name], array.reshape(-1), strict=True)]
                array = np.asarray(flat, array.dtype).reshape(array.shape)
            out.graph.initializer.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        for node, name in self.attributes:
            layouts = self.attributes[node, name]
            attribute = next(a for a in out.graph.node[node].attribute if a.name == name)
            if attribute.type == onnx.AttributeProto.INT:
                attribute.i = _value(layouts[0], attribute.i, widths)
            else:
                attribute.ints[:] = [_value(e, old, widths) for e, old in zip(layouts, attribute.ints, strict=True)]
        if not any(widths.get(branch.name) == 0 for branch in self.branches):
            return out
        leave_out(out, self.branches, widths)
        return finish(out)  # what was on both sides of a branch may fold into one


@dataclass(frozen=True)
class _Seen:
    """A finished file, taken apart."""

    model: onnx.ModelProto
    tensors: Mapping[str, Array]
    attributes: Mapping[tuple[int, str], tuple[int, ...]]

    @classmethod
    def of(cls, model: onnx.ModelProto) -> _Seen:
        whole = {
            (i, a.name): tuple(a.ints) if a.type == onnx.AttributeProto.INTS else (a.i,)
            for i, node in enumerate(model.graph.node)
            for a in node.attribute
            if a.type in (onnx.AttributeProto.INT, onnx.AttributeProto.INTS)
        }
        return cls(model, {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}, whole)


class _Search:
    """Which layout has the sizes that were seen."""

    def __init__(self, cutter: OnnxCutter, plans: Sequence[Widths]) -> None:
        self.parameters, self.plans, self.branches = cutter.combed.parameters, plans, tuple(cutter.combed.branches)
        known = (*cutter.combed.parameters.values(), *cutter.combed.values.values())
        self.by_sizes: dict[tuple[int, ...], Layout] = {}
        for layout in dict.fromkeys(dim for dims in known for dim in dims):
            self.by_sizes.setdefault(self.sizes(layout), layout)

    def sizes(self, layout: Layout) -> tuple[int, ...]:
        return tuple(size(layout, plan) for plan in self.plans)

    def cutter(self, seen: Sequence[_Seen]) -> FinishedCutter | None:
        """The rules, or None where something changes by none."""
        dense = seen[0]
        ranks = {name: array.ndim for name, array in dense.tensors.items()}
        for other in seen:
            if {name: array.ndim for name, array in other.tensors.items()} != ranks:
                return None
            if other.attributes.keys() != dense.attributes.keys():
                return None
        dims, elements, attributes = dict[str, Layouts](), dict[str, Layouts](), dict[tuple[int, str], Layouts]()
        for name, first in dense.tensors.items():
            arrays = [s.tensors[name] for s in seen]
            if any(a.shape != first.shape for a in arrays):
                own = self.parameters.get(name, ())  # not of one that has a name for each use
                dims[name] = self._found(zip(*(a.shape for a in arrays), strict=True), own)
            elif first.dtype == np.int64 and any((a != first).any() for a in arrays):
                elements[name] = self._found(zip(*(a.reshape(-1).tolist() for a in arrays), strict=True))
        for at, values in dense.attributes.items():
            every = [s.attributes[at] for s in seen]
            if any(v != values for v in every):
                attributes[at] = self._found(zip(*every, strict=True))
        if any(not found for rules in (dims, elements, attributes) for found in rules.values()):
            return None
        bare = onnx.ModelProto()
        bare.CopyFrom(dense.model)
        del bare.graph.initializer[:], bare.graph.value_info[:]
        return FinishedCutter(bare, dense.tensors, dims, elements, attributes, self.branches)

    def _found(self, numbers: Iterable[tuple[int, ...]], own: Sequence[Layout] = ()) -> Layouts:
        """A layout for each number that changes; nothing at all where one of them has none."""
        out: list[Layout | None] = []
        for i, sizes in enumerate(numbers):
            if len(set(sizes)) == 1:
                out.append(None)
            elif i < len(own) and self.sizes(own[i]) == sizes:
                out.append(own[i])
            elif sizes in self.by_sizes:
                out.append(self.by_sizes[sizes])
            else:
                return ()
        return tuple(out)


def _told_apart(groups: Mapping[str, int], rng: np.random.Generator) -> list[dict[str, int]]:
    """Plans in which no two groups of equal units have the same widths throughout, where they have enough of them."""
    out: list[dict[str, int]] = [{} for _ in range(PROBES)]
    for units in set(groups.values()):
        alike = [g for g, n in groups.items() if n == units]
        least = (units + 3) // 4
        base = units - least + 1
        codes = rng.choice(base**PROBES, len(alike), replace=len(alike) > base**PROBES)
        for group, code in zip(alike, codes.tolist(), strict=True):
            for k in range(PROBES):
                out[k][group] = least + code // base**k % base
    return out


def _one_a_use(model: onnx.ModelProto, whole: frozenset[str]) -> onnx.ModelProto:
    """The model with a tensor for each use of all but `whole`: equal ones are merged, and which are equal is chance."""
    tensors = {i.name: i for i in model.graph.initializer}
    kept_ones = [i for name, i in tensors.items() if name in whole]
    for node in model.graph.node:
        for at, name in enumerate(node.input):
            if name in tensors and name not in whole:
                use = onnx.TensorProto()
                use.CopyFrom(tensors[name])
                use.name = node.input[at] = f"{node.output[0]}<{at}"
                kept_ones.append(use)
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept_ones)
    return model


def _firsts(widths: Widths) -> Keep:
    return {name: np.arange(n) for name, n in widths.items()}


def _value(layout: Layout | None, old: int, widths: Widths) -> int:
    return int(old) if layout is None else size(layout, widths)


def _structure(model: onnx.ModelProto) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    return [(n.op_type, tuple(n.input), tuple(n.output)) for n in model.graph.node]


def _equal(left: onnx.ModelProto, right: onnx.ModelProto, whole: frozenset[str]) -> bool:
    """Whether two files are one network: nodes, attributes and, to rounding, the tensors that nodes read."""
    left, right = _one_a_use(left, whole), _one_a_use(right, whole)
    a, b = _Seen.of(left), _Seen.of(right)
    if _structure(left) != _structure(right) or a.attributes != b.attributes:
        return False
    read = {name for node in left.graph.node for name in node.input}
    for name in read & (a.tensors.keys() | b.tensors.keys()):
        if name not in a.tensors or name not in b.tensors or a.tensors[name].shape != b.tensors[name].shape:
            return False
        one, other = a.tensors[name], b.tensors[name]
        largest = float(np.abs(other).max()) if other.size else 0.0
        if not np.allclose(one, other, rtol=0, atol=CLOSE * largest if one.dtype.kind == "f" else 0):
            return False
    return True
