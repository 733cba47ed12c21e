"""What is counted of a network from widths: MACs, parameters, the file's size, the peak of its activations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod

import numpy as np
import onnx
from torch import nn

from cpd_edge.layout import Layout, axes
from cpd_edge.measure.shapes import infer_shapes
from cpd_edge.network import Combed
from cpd_edge.pipeline.subject import Subject
from cpd_edge.profile.regions import node_name
from cpd_edge.types import Amount, Limits, Quantity, Region

MEGA = 1e6
"""Bytes of one MB."""
FILE_SIZE = "file size"
"""Name of the quantity that a file on disk shows."""
PROVENANCE = 4096
"""Bytes of a file that may say where it comes from."""


def counted(subject: Subject, limits: Limits) -> tuple[tuple[Quantity, float], ...]:
    """The quantities that are limited, each with the most that it may be."""
    out: list[tuple[Quantity, float]] = []
    if limits.macs is not None:
        out.append((macs(subject.regions), limits.macs))
    if limits.params is not None:
        out.append((params(subject.combed), limits.params))
    if limits.size_mb is not None:
        out.append((file_size(subject), limits.size_mb * MEGA))
    if limits.memory_mb is not None:
        out.append((peak_memory(subject), limits.memory_mb * MEGA))
    return tuple(out)


def eased(subject: Subject, limits: Limits, share: float) -> Limits:
    """Limits on the way: each from what the dense network has (share 0) to itself (1), geometrically."""
    dense = {quantity.name: quantity.at(subject.widths) for quantity, _ in counted(subject, limits)}

    def on_the_way(name: str, most: float | None, unit: float = 1.0) -> float | None:
        if most is None or dense[name] <= most * unit:
            return most
        return float((dense[name] / unit) ** (1 - share) * most**share)

    return Limits(
        macs=on_the_way("MACs", limits.macs),
        params=on_the_way("parameters", limits.params),
        size_mb=on_the_way(FILE_SIZE, limits.size_mb, MEGA),
        memory_mb=on_the_way("peak memory", limits.memory_mb, MEGA),
    )


def macs(regions: Iterable[Region]) -> Quantity:
    """Multiply-accumulates of one image: each region's in proportion to its weight."""
    return Quantity("MACs", "", (tuple(_region_macs(region) for region in regions if region.dense_macs),))


def _region_macs(region: Region) -> Amount:
    dims = region.weight or (region.writes,)
    return Amount(region.dense_macs / max(prod(d.extent for d in dims), 1), dims, region.within, region.name)


def params(combed: Combed) -> Quantity:
    """Elements of the parameters that calls take; one that is taken under several names counts once."""
    within: dict[str, list[frozenset[str]]] = {}
    for node in combed.network.graph.nodes:
        if node.op == "get_attr":
            users = {user.name for user in node.users}
            homes = frozenset(b.name for b in combed.branches if users <= b.inside)
            within.setdefault(str(node.target), []).append(homes)
    seen: dict[int, Amount] = {}
    for name, dims in combed.parameters.items():
        held = combed.network.fetch(name)
        if isinstance(held, nn.Parameter):
            before = seen.get(id(held))
            homes = frozenset.intersection(*within.get(name, [frozenset()]))
            homes = homes & set(before.within) if before else homes
            seen[id(held)] = Amount(1.0, dims, tuple(sorted(homes)), name)
    return Quantity("parameters", "", (tuple(seen.values()),))


def file_size(subject: Subject) -> Quantity:
    """Bytes of the ONNX file: its weights by their layouts, and the graph around them as it is when dense."""
    model = subject.dense_onnx
    homes = {node: region.within for region in subject.regions for node in region.nodes}
    readers: dict[str, list[frozenset[str]]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(frozenset(homes.get(node_name(node), ())))
    weights = []
    for held in model.graph.initializer:
        within = frozenset.intersection(*readers.get(held.name, [frozenset()]))
        shape, bytes_each = tuple(held.dims), _bytes_of(held.data_type)
        dims = subject.layouts.get(held.name, ())
        weights.append(tensor(held.name, shape, bytes_each, dims, tuple(sorted(within))))
    rest = PROVENANCE + model.ByteSize() - sum(w.times * prod(d.extent for d in w.dims) for w in weights)
    return Quantity(FILE_SIZE, "bytes", ((Amount(rest, name="the graph"), *weights),))


def peak_memory(subject: Subject) -> Quantity:
    """Bytes of the activations that are alive at once, of one image: what regions hand to each other.

    While a region runs, what it reads, what it writes and what is kept for later is alive. A runtime's own scratch
    memory is not in it.
    """
    held = tuple(_live(subject))
    moments = []
    for i, region in enumerate(subject.regions):
        alive = [amount for first, last, amount in held if first <= i <= last]
        moments.append(tuple(Amount(a.times, a.dims, region.within, a.name) for a in alive))
    return Quantity("peak memory", "bytes", tuple(moments))


def _live(subject: Subject) -> Iterator[tuple[int, int, Amount]]:
    """Every tensor between regions: the regions that make it and last read it, and its bytes."""
    model, shapes = subject.dense_onnx, infer_shapes(subject.dense_onnx)
    at = {node: i for i, region in enumerate(subject.regions) for node in region.nodes}
    weights = {i.name for i in model.graph.initializer}
    made = {i.name: 0 for i in model.graph.input if i.name not in weights}
    kinds = _kinds(model)
    outside = dict.fromkeys((o.name for o in model.graph.output), len(subject.regions) - 1)
    read: dict[str, int] = dict(outside)
    given = set(made)
    for node in model.graph.node:
        here = at[node_name(node)]
        made |= dict.fromkeys((x for x in node.output if x), here)
        for name in node.input:
            if name in made and (name in given or made[name] != here):
                read[name] = max(read.get(name, here), here)
    for name, last in read.items():
        if name in made:
            dims = subject.layouts.get(name, ())
            yield made[name], last, tensor(name, shapes.get(name, ()), _bytes_of(kinds.get(name, 1)), dims, ())


def tensor(name: str, shape: Sequence[int], bytes_each: int, dims: Sequence[Layout], within: tuple[str, ...]) -> Amount:
    """A tensor's bytes; a dim whose layout is not known, or has no axis of a group, stays as it is."""
    known = len(dims) == len(shape)
    moving = tuple(d for d, n in zip(dims, shape, strict=True) if d.extent == n and axes(d)) if known else ()
    still = prod(shape) // max(prod(d.extent for d in moving), 1)
    return Amount(float(bytes_each * still), moving, within, name)


def _kinds(model: onnx.ModelProto) -> Mapping[str, int]:
    """Element type of each value that says one."""
    graph = model.graph
    return {i.name: i.type.tensor_type.elem_type for i in (*graph.input, *graph.value_info, *graph.output)}


def _bytes_of(kind: int) -> int:
    return int(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)).itemsize)
