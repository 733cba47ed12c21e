"""Dims are moved, nested, cut up and laid one behind the other."""

from __future__ import annotations

from torch import fx

from cpd_edge.canonical import op_name
from cpd_edge.comb.axes import UNIT
from cpd_edge.comb.relate import Dims, Misaligned, Relation, register_rule
from cpd_edge.comb.rules.arguments import argument, integer, listed, positive, resized, shape, spatial
from cpd_edge.layout import Layout, Prod, Sum


@register_rule("view", "reshape", "_unsafe_view", "unflatten", "flatten", "squeeze", "unsqueeze")
def reshape(r: Relation, n: fx.Node) -> Dims:
    """Runs of dims with equal products nest; the one size that is -1 follows by itself."""
    out, name = r.reshape(r.dims(n.args[0]), shape(n)), op_name(n)
    at = {"view": 1, "reshape": 1, "_unsafe_view": 1, "unflatten": 2}.get(name)
    if at is None:
        return out
    first = positive(n.args[1], len(r.dims(n.args[0]))) if name == "unflatten" else 0
    for i, size in enumerate(listed(n.args[at])):
        if isinstance(size, fx.Node):
            r.freeze(n, [out[first + i]], "its extent is computed in the graph")
        elif size != -1:
            r.shape_argument(n, (at, i), out[first + i])
    return out


@register_rule("view_as", "reshape_as")
def reshape_as(r: Relation, n: fx.Node) -> Dims:
    """The other tensor's shape is the result's, so what it loses the result must lose."""
    out, other = r.reshape(r.dims(n.args[0]), shape(n)), r.dims(n.args[1])
    for a, b in zip(out, other, strict=True):
        r.unify(a, b)
    return out


@register_rule("expand_as")
def expand_as(r: Relation, n: fx.Node) -> Dims:
    """As where the two are added: dims of extent 1 follow the other tensor."""
    return r.broadcast([r.dims(n.args[0]), r.dims(n.args[1])])


@register_rule("expand")
def expand(r: Relation, n: fx.Node) -> Dims:
    """A dim that is grown holds one value over and over, so it is as wide as what it meets."""
    x, new, sizes = r.dims(n.args[0]), shape(n), listed(n.args[1])
    aligned = (*([UNIT] * (len(new) - len(x))), *x)
    out = []
    for i, (layout, size) in enumerate(zip(aligned, new, strict=True)):
        grown = layout.extent != size
        if grown and layout.extent != 1:
            raise Misaligned("repeats an axis")
        free = not isinstance(sizes[i], int)
        out.append(layout if not grown else r.axes.fixed(size, "computed extent") if free else r.axes.new(size))
        if not free and sizes[i] not in (-1, 1):
            r.shape_argument(n, (1, i), out[-1])
    return tuple(out)


@register_rule("repeat", "tile")
def repeat(r: Relation, n: fx.Node) -> Dims:
    """Copies behind each other: times x units."""
    x, times = r.dims(n.args[0]), listed(n.args[1])
    aligned = (*([UNIT] * (len(times) - len(x))), *x)
    times = (*([1] * (len(aligned) - len(times))), *times)
    out = []
    for layout, count, size in zip(aligned, times, shape(n), strict=True):
        if count == 1:
            out.append(layout)
        elif isinstance(count, int):
            out.append(Prod((r.axes.fixed(count, "repeated"), layout)))
        else:
            r.freeze(n, [layout], "repeated a computed number of times")
            out.append(r.axes.fixed(size, "computed extent"))
    return tuple(out)


@register_rule("repeat_interleave")
def repeat_interleave(r: Relation, n: fx.Node) -> Dims:
    """Copies beside each other: units x times."""
    x, times, over = r.dims(n.args[0]), integer(n.args[1]), argument(n, 2, "dim")
    dim = positive(over, len(x))
    return (*x[:dim], Prod((x[dim], r.axes.fixed(times, "repeated"))), *x[dim + 1 :])


@register_rule("permute")
def permute(r: Relation, n: fx.Node) -> Dims:
    x = r.dims(n.args[0])
    return tuple(x[positive(d, len(x))] for d in listed(n.args[1]))


@register_rule("movedim", "moveaxis")
def movedim(r: Relation, n: fx.Node) -> Dims:
    x = r.dims(n.args[0])
    source, target = ([positive(d, len(x)) for d in (a if isinstance(a, (list, tuple)) else [a])] for a in n.args[1:3])
    out = dict(zip(target, (x[d] for d in source), strict=True))
    rest = iter(layout for d, layout in enumerate(x) if d not in source)
    return tuple(out[d] if d in out else next(rest) for d in range(len(x)))


@register_rule("transpose", "swapaxes", "swapdims", "t", "numpy_T", "mT", "adjoint")
def transpose(r: Relation, n: fx.Node) -> Dims:
    x = list(r.dims(n.args[0]))
    if len(x) < 2:
        return tuple(x)
    a, b = (positive(d, len(x)) for d in n.args[1:3]) if len(n.args) > 2 else (len(x) - 2, len(x) - 1)
    x[a], x[b] = x[b], x[a]
    return tuple(x)


@register_rule("cat", "concat", "concatenate")
def cat(r: Relation, n: fx.Node) -> Dims:
    parts = [d for d in map(r.dims, listed(n.args[0])) if len(d) > 1 or d[0].extent]
    dim = positive(argument(n, 1, "dim", 0), len(parts[0]))
    rest = r.broadcast([(*p[:dim], UNIT, *p[dim + 1 :]) for p in parts])
    return (*rest[:dim], Sum(tuple(p[dim] for p in parts)), *rest[dim + 1 :])


@register_rule("stack")
def stack(r: Relation, n: fx.Node) -> Dims:
    tensors = listed(n.args[0])
    out = list(r.broadcast([r.dims(t) for t in tensors]))
    dim = positive(argument(n, 1, "dim", 0), len(out) + 1)
    out.insert(dim, r.axes.fixed(len(tensors), "stacked tensors"))
    return tuple(out)


@register_rule("split_with_sizes", "chunk", "split")
def split(r: Relation, n: fx.Node) -> list[Dims]:
    x = r.dims(n.args[0])
    dim = positive(argument(n, 2, "dim", 0), len(x))
    if op_name(n) != "split_with_sizes":
        raise Misaligned("its parts are computed in the graph")
    parts = r.split(x[dim], [integer(s) for s in listed(n.args[1])])
    for i, part in enumerate(parts):
        r.shape_argument(n, (1, i), part)
    return [(*x[:dim], part, *x[dim + 1 :]) for part in parts]


@register_rule("slice")
def slice_(r: Relation, n: fx.Node) -> Dims:
    """A part of a dim: the part in front, the part itself and the part behind become axes of their own."""
    x, size = r.dims(n.args[0]), shape(n)
    dim = positive(argument(n, 1, "dim", 0), len(x))
    total = x[dim].extent
    if size[dim] == total:
        return x
    start, end, step = (
        argument(n, i, name, default) for i, name, default in ((2, "start", 0), (3, "end", total), (4, "step", 1))
    )
    if not size[dim]:
        raise Misaligned("it takes nothing")
    free = type(n.args[0].meta["val"].shape[dim]) is not int  # type: ignore[union-attr]
    plain = not free and step == 1 and isinstance(start, int) and isinstance(end, int)
    if not plain:
        return resized(r, n, x, [dim], "sliced with a step, a computed bound or over the batch")
    assert isinstance(start, int)
    first = max(start + total, 0) if start < 0 else min(start, total)
    sizes = [first, size[dim], total - first - size[dim]]
    parts = iter(r.split(x[dim], [s for s in sizes if s]))
    before = next(parts) if sizes[0] else Sum(())
    here = next(parts)
    r.shape_argument(n, (2,), before)
    r.shape_argument(n, (3,), Sum((before, here)))
    return (*x[:dim], here, *x[dim + 1 :])


@register_rule(
    "pad", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad2d", "replication_pad1d"
)
def pad(r: Relation, n: fx.Node) -> Dims:
    """Amounts come in pairs, last dim first. A constant lies before and behind like a concat; all else is mixed."""
    x, amounts = r.dims(n.args[0]), listed(argument(n, 1, "pad"))
    constant = op_name(n) == "constant_pad_nd" or (
        op_name(n) == "pad" and argument(n, 2, "mode", "constant") == "constant"
    )
    out = list(x)
    for at in range(0, len(amounts), 2):
        before, behind, dim = amounts[at], amounts[at + 1], len(x) - 1 - at // 2
        if before == 0 and behind == 0:
            continue
        if not constant or type(before) is not int or type(behind) is not int or min(before, behind) < 0:
            out[dim] = resized(r, n, x, [dim], "padded along this axis")[dim]
            continue
        parts: list[Layout] = []
        for i, amount in ((at, before), (None, 0), (at + 1, behind)):
            if i is None:
                parts.append(x[dim])
            elif amount:
                parts.append(r.axes.new(amount) if amount > 1 else r.axes.fixed(1, "padding"))
                r.shape_argument(n, (1, i), parts[-1])
        out[dim] = Sum(tuple(parts))
    return tuple(out)


@register_rule("pixel_shuffle")
def pixel_shuffle(r: Relation, n: fx.Node) -> Dims:
    x, factor = r.dims(n.args[0]), integer(n.args[1])
    channels, blocks = r.factor(x[1], [x[1].extent // factor**2, factor**2])
    r.freeze(n, [blocks], "becomes space")
    return spatial(r, n, x, channels, shape(n))


@register_rule("pixel_unshuffle")
def pixel_unshuffle(r: Relation, n: fx.Node) -> Dims:
    x, factor = r.dims(n.args[0]), integer(n.args[1])
    return spatial(r, n, x, Prod((x[1], r.axes.fixed(factor**2, "was space"))), shape(n))


@register_rule("channel_shuffle")
def channel_shuffle(r: Relation, n: fx.Node) -> Dims:
    x, groups = r.dims(n.args[0]), integer(n.args[1])
    outer, inner = r.factor(x[1], [groups, x[1].extent // groups])
    r.shape_argument(n, (1,), outer)
    return (x[0], Prod((inner, outer)), *x[2:])


@register_rule("diagonal")
def diagonal(r: Relation, n: fx.Node) -> Dims:
    """Two dims become one, behind all others."""
    x = r.dims(n.args[0])
    over = [positive(argument(n, i, name, default), len(x)) for i, name, default in ((2, "dim1", 0), (3, "dim2", 1))]
    r.freeze(n, [x[d] for d in over], "taken in part")
    return (*(layout for d, layout in enumerate(x) if d not in over), r.axes.fixed(shape(n)[-1], "taken in part"))


@register_rule("rot90")
def rotate(r: Relation, n: fx.Node) -> Dims:
    x, over = r.dims(n.args[0]), argument(n, 2, "dims", (0, 1))
    return resized(r, n, x, [positive(d, len(x)) for d in listed(over)], "its order along this axis matters")


@register_rule("kron")
def kronecker(r: Relation, n: fx.Node) -> Dims:
    """Every pair of places: units x units."""
    a, b = r.dims(n.args[0]), r.dims(n.args[1])
    rank = max(len(a), len(b))
    wide = ((*([UNIT] * (rank - len(x))), *x) for x in (a, b))
    return tuple(Prod(pair) for pair in zip(*wide, strict=True))


@register_rule("unfold")
def sliding(r: Relation, n: fx.Node) -> Dims:
    """Windows along a dim: their places in its stead, their insides behind all others."""
    x = r.dims(n.args[0])
    dim = positive(n.args[1], len(x))
    out = resized(r, n, x, [dim], "slid over along this axis")
    return (*out, r.axes.fixed(shape(n)[-1], "inside of a window"))


@register_rule("im2col")
def unfold(r: Relation, n: fx.Node) -> Dims:
    """Patches become channels: channels x kernel."""
    x, kernel = r.dims(n.args[0]), listed(n.args[1])
    if len(x) != 4:
        raise Misaligned(f"its input of {len(x)} dims has no batch")
    r.freeze(n, x[2:], "spatial extent")
    places = r.axes.fixed(shape(n)[2], "spatial extent")
    return (x[0], Prod((x[1], r.axes.fixed(integer(kernel[0]) * integer(kernel[1]), "kernel extent"))), places)


@register_rule("col2im")
def fold(r: Relation, n: fx.Node) -> Dims:
    x, kernel = r.dims(n.args[0]), listed(n.args[2])
    if len(x) != 3:
        raise Misaligned(f"its input of {len(x)} dims has no batch")
    area = integer(kernel[0]) * integer(kernel[1])
    channels, inside = r.factor(x[1], [x[1].extent // area, area])
    r.freeze(n, [inside, x[2]], "spatial extent")
    return (x[0], channels, *(r.axes.fixed(s, "spatial extent") for s in shape(n)[2:]))
