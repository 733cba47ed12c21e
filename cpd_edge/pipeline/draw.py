"""From a combed network to the data of its drawing: which layers make, read and carry each group's units."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, fx

from cpd_edge import store
from cpd_edge.canonical import op_name
from cpd_edge.errors import UsageError
from cpd_edge.layout import Layout, axes
from cpd_edge.network import Combed
from cpd_edge.report.drawing import Branch, Picture, Row, draw

_HANDED_ON = frozenset(
    ("t", "transpose", "permute", "view", "reshape", "expand", "to", "contiguous", "clone", "unsqueeze", "squeeze")
)
"""Calls that pass a parameter on as it is: what uses it is the call behind them."""


@dataclass(frozen=True)
class _Layer:
    """A row before it is drawn: the call it comes from, and whether it may share another layer's row."""

    row: Row
    call: fx.Node
    follows: bool


def check_place(path: Path) -> None:
    """Says before any work is done whether a drawing can be written to a path.

    Raises:
        UsageError: the path is a folder, or its folder or itself may not be written.
    """
    hint = "give the path of a file, for example --draw groups.svg"
    if path.is_dir():
        raise UsageError(f"the drawing cannot be written: {path} is a folder", hint=hint)
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise UsageError(f"the drawing cannot be written: {above} is no folder", hint=hint)
    if not os.access(above, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise UsageError(f"the drawing cannot be written: no permission for {path}", hint=hint)


def write_drawing(combed: Combed, title: str, prunable: float, path: Path) -> None:
    """Draws the groups over the network into an SVG file; see `picture`."""
    store.write_text(path, draw(picture(combed, title, prunable)))


def picture(combed: Combed, title: str, prunable: float) -> Picture:
    """What the drawing shows of a network: a row for each layer in graph order, with what it reads and makes.

    A layer that only carries another one's units, such as the norm behind a convolution, shares that one's row.

    Args:
        combed: the network and its groups.
        title: the model's name.
        prunable: share of the parameters that some group can cut.
    """
    order = {node: i for i, node in enumerate(combed.network.graph.nodes)}
    layers = sorted(_layers(combed), key=lambda layer: order[layer.call])
    hosts = _hosts(layers, _flow(combed.network.graph))
    rows, calls = [], []
    for i, layer in enumerate(layers):
        if hosts[i] == i:
            before = [layers[j].row for j in range(i) if hosts[j] == i]
            after = [layers[j].row for j in range(i + 1, len(layers)) if hosts[j] == i]
            rows.append(_together(layer.row, before, after))
            calls.append(layer.call.name)
    inside = ((b, tuple(i for i, call in enumerate(calls) if call in b.inside)) for b in combed.branches)
    return Picture(
        title=title,
        input_shape=combed.network.input_shape,
        params=sum(p.numel() for p in combed.network.parameters()),
        prunable=prunable,
        rows=tuple(rows),
        groups=combed.groups,
        branches=tuple(Branch(branch.name, at) for branch, at in inside if at),
    )


def _layers(combed: Combed) -> Iterator[_Layer]:
    """One layer for each tensor of more than one dim, with the vectors of its module; one for a module of vectors."""
    uses = _uses(combed.network.graph)
    reads = _reading(combed, uses)
    free = {group.name for group in combed.groups.groups}
    known = free | {f.axis for f in combed.groups.frozen}
    params = dict(combed.network.named_parameters(remove_duplicate=False))
    names = _names(combed)
    held = {
        name: dims
        for name, dims in combed.parameters.items()
        if name in uses and (name in params or free & set(axes(*dims)))
    }
    counted: set[int] = set()
    for main, vectors in _companions(held):
        made: list[Layout] = []
        read: list[Layout] = []
        for i, dim in enumerate(held[main]):
            if any(axis in known for axis in axes(dim)):
                (read if (main, i) in reads else made).append(dim)
        also = [d for name in vectors for d in held[name] if any(a in known and a not in axes(*made) for a in axes(d))]
        mixes = any(tensor == main for tensor, _ in reads)
        unused = [tied for name in (main, *vectors) for tied in names[name] if tied not in uses]
        own = {id(params[name]): params[name].numel() for name in (main, *vectors) if name in params}
        row = Row(
            name=_short(main),
            kind=op_name(uses[main]),
            shape=tuple(combed.network.fetch(main).shape),
            params=sum(n for key, n in own.items() if key not in counted),
            tensors=(main, *vectors, *unused),
            reads=tuple(read),
            makes=tuple(made) if mixes else (),
            carries=tuple(dict.fromkeys(also if mixes else made + also)),
        )
        counted.update(own)
        yield _Layer(row, uses[main], follows=_is_vector(held[main]))


def _uses(graph: fx.Graph) -> dict[str, fx.Node]:
    """The first call that computes with each parameter or buffer."""
    found: dict[str, fx.Node] = {}
    for node in graph.nodes:
        if node.op == "get_attr" and node.users and str(node.target) not in found:
            use = next(iter(node.users))
            while op_name(use) in _HANDED_ON and use.users:
                use = next(iter(use.users))
            found[str(node.target)] = use
    return found


def _reading(combed: Combed, uses: Mapping[str, fx.Node]) -> set[tuple[str, int]]:
    """The dims of parameters that are summed over, under each of a parameter's names.

    Slots tell it of groups. A frozen dim is summed over where the call's result has the other dims and not this one.
    """
    told = {(s.tensor, s.dim): s.reads for group in combed.groups.groups for s in group.slots}
    known = {f.axis for f in combed.groups.frozen}
    found = {at for at, reads in told.items() if reads}
    names = _names(combed)
    for name, dims in combed.parameters.items():
        use = uses.get(name)
        left = [axis for d in combed.values.get(use.name, ()) for axis in axes(d)] if use is not None else []
        lost, shown = [], False
        for i, dim in enumerate(dims):
            if (name, i) in told or not known & set(axes(dim)):
                shown = shown or told.get((name, i)) is False
            elif all(axis in left for axis in axes(dim)):
                shown = True
                for axis in axes(dim):
                    left.remove(axis)
            else:
                lost.append((name, i))
        found.update(lost if shown else ())
    return {(tied, dim) for name, dim in found for tied in names[name]}


def _names(combed: Combed) -> dict[str, list[str]]:
    """All the names of the tensor that a parameter's or buffer's name stands for."""
    found: dict[int, list[str]] = {}
    for name in combed.parameters:
        found.setdefault(id(combed.network.fetch(name)), []).append(name)
    return {name: names for names in found.values() for name in names}


def _companions(held: Mapping[str, Sequence[Layout]]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each tensor that makes a layer, with the vectors of the same module that go with it."""
    modules: dict[str, list[str]] = {}
    for name in held:
        modules.setdefault(name.rpartition(".")[0], []).append(name)
    for names in modules.values():
        mains = [name for name in names if not _is_vector(held[name])] or names[:1]
        vectors: dict[str, list[str]] = {main: [] for main in mains}
        for name in names:
            if name not in vectors:
                vectors[_nearest(name, mains, held)].append(name)
        yield from ((main, tuple(vectors[main])) for main in mains)


def _nearest(vector: str, mains: Sequence[str], held: Mapping[str, Sequence[Layout]]) -> str:
    """The tensor that a vector belongs to: of the same stem (`in_proj_bias`, `in_proj_weight`), else of its units."""
    stem = vector.rpartition("_")[0]
    same = [main for main in mains if stem and main.startswith(f"{stem}_")]
    fits = [main for main in mains if set(axes(*held[vector])) <= set(axes(*held[main]))]
    return (same or fits or mains)[0]


def _is_vector(dims: Iterable[Layout]) -> bool:
    return sum(dim.extent > 1 for dim in dims) <= 1


def _short(tensor: str) -> str:
    """A tensor's name without the word that says nothing: `conv1.weight` is `conv1`, `in_proj_weight` is `in_proj`."""
    return tensor.removesuffix(".weight").removesuffix("_weight") or tensor


def _flow(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """The tensors each call takes that depend on the network's input, rather than on parameters alone."""
    flow: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        taken = [source for source in node.all_input_nodes if source in flow]
        if node.op == "placeholder" or (taken and isinstance(node.meta.get("val"), (Tensor, tuple, list))):
            flow[node] = taken
    return flow


def _hosts(layers: Sequence[_Layer], flow: Mapping[fx.Node, list[fx.Node]]) -> list[int]:
    """The layer whose row each layer shares: itself, the one behind it or the one ahead of it."""
    at = {layer.call: i for i, layer in reversed(list(enumerate(layers))) if layer.follows}
    at |= {layer.call: i for i, layer in reversed(list(enumerate(layers))) if not layer.follows}
    hosts = list(range(len(layers)))
    for i, layer in enumerate(layers):
        if layer.follows:
            behind, ahead = _behind(layer.call, at, flow), _ahead(layer.call, at, flow)
            if at[layer.call] != i:
                hosts[i] = at[layer.call]
            elif behind is not None and _follows(layer.row, layers[behind].row):
                hosts[i] = hosts[behind]
            elif ahead is not None and _leads(layer.row, layers[ahead].row):
                hosts[i] = ahead
    return [hosts[host] for host in hosts]


def _follows(guest: Row, host: Row) -> bool:
    """Whether a layer carries what the one behind it gives, and stands in a module next to its module."""
    given = host.makes or host.carries
    return _beside(guest, host, 2) and bool(given) and set(guest.carries) == set(given)


def _leads(guest: Row, host: Row) -> bool:
    """Whether a layer carries what the one ahead of it reads, and stands in the module that holds it."""
    return _beside(guest, host, 1) and bool(host.reads) and set(guest.carries) == set(host.reads)


def _beside(guest: Row, host: Row, up: int) -> bool:
    """Whether the module some steps up from one layer holds the other."""
    above = guest.name.split(".")[:-up]
    return host.name.split(".")[: len(above)] == above


def _behind(call: fx.Node, at: Mapping[fx.Node, int], flow: Mapping[fx.Node, list[fx.Node]]) -> int | None:
    """The layer whose result a call takes, through calls of one input."""
    while len(flow.get(call, [])) == 1:
        call = flow[call][0]
        if call in at:
            return at[call]
    return None


def _ahead(call: fx.Node, at: Mapping[fx.Node, int], flow: Mapping[fx.Node, list[fx.Node]]) -> int | None:
    """The one layer that takes a call's result, through calls of one input."""
    while len(users := [user for user in call.users if user in flow]) == 1 and len(flow[users[0]]) == 1:
        call = users[0]
        if call in at:
            return at[call]
    return None


def _together(host: Row, before: Sequence[Row], after: Sequence[Row]) -> Row:
    """A layer with those that share its row."""
    guests = (*before, *after)
    own = set(axes(*host.reads, *host.makes, *host.carries))
    extra = [d for guest in guests for d in guest.carries if not set(axes(d)) <= own]
    return replace(
        host,
        params=host.params + sum(guest.params for guest in guests),
        tensors=(*host.tensors, *(tensor for guest in guests for tensor in guest.tensors)),
        carries=(*host.carries, *extra),
        before=tuple(_relative(guest.name, host.name) for guest in before),
        after=tuple(_relative(guest.name, host.name) for guest in after),
    )


def _relative(name: str, to: str) -> str:
    """A name without the modules it has in common with another."""
    mine, others = name.split("."), to.split(".")
    while len(mine) > 1 and len(others) > 1 and mine[0] == others[0]:
        mine, others = mine[1:], others[1:]
    return ".".join(mine)
