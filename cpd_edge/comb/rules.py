"""What each family of operations says about its dims. One short rule a family, no layer types.

To add one for a custom operator, see `register_rule`. `r` is the walk's `Relation`, `n` the call.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import fx

from cpd_edge.comb.axes import UNIT
from cpd_edge.comb.relate import Dims, Misaligned, Relation, register_rule, shape_of
from cpd_edge.layout import Layout, Prod, Sum
from cpd_edge.network import op_name

_SPACE = re.compile(r"\d(?=d)")
"""Dims of space in the name of an operation (`conv2d`, `avg_pool1d`); without one there are two."""


def shape(n: fx.Node) -> tuple[int, ...]:
    return shape_of(n.meta["val"])


def argument(n: fx.Node, index: int, name: str, default: object = None) -> object:
    """A call's argument by position or by name."""
    return n.args[index] if len(n.args) > index else n.kwargs.get(name, default)


def integer(value: object) -> int:
    """The value as a plain integer, or Misaligned: it is computed in the graph."""
    if type(value) is not int:
        raise Misaligned(f"it is given {value} where an integer was expected")
    return value


def listed(value: object) -> Sequence[Any]:
    """The value as a list, or Misaligned."""
    if not isinstance(value, (list, tuple)):
        raise Misaligned(f"it is given {value} where a list was expected")
    return value


def positive(dim: object, rank: int) -> int:
    """A dim counted from the front."""
    dim = integer(dim)
    return dim % rank if rank else 0


def spatial(r: Relation, n: fx.Node, x: Dims, channels: Layout, out: Sequence[int]) -> Dims:
    """Batch and `channels`, then fresh fixed dims for the space of `out`; what `x` has there is mixed: it stays whole.

    Raises:
        Misaligned: the input has no batch, so its dims are others than they seem.
    """
    space = _SPACE.search(op_name(n))
    if len(x) != 2 + (int(space.group()) if space else 2):
        raise Misaligned(f"its input of {len(x)} dims has no batch")
    r.freeze(n, x[2:], "spatial extent")
    return (x[0], channels, *(r.axes.fixed(s, "spatial extent") for s in out[2:]))


@register_rule(
    "relu", "relu6", "hardtanh", "silu", "gelu", "hardswish", "hardsigmoid", "sigmoid", "tanh", "leaky_relu", "elu",
    "selu", "celu", "mish", "softplus", "softsign", "log_sigmoid", "dropout", "feature_dropout", "alias", "clone",
    "contiguous", "to", "_to_copy", "detach", "detach_", "exp", "log", "sqrt", "rsqrt", "square", "neg", "abs",
    "reciprocal", "erf", "sin", "cos", "floor", "round", "sign", "lift_fresh_copy", "zeros_like", "ones_like",
    "bitwise_not", "logical_not", "type_as", "float",
)  # fmt: skip
def unary(r: Relation, n: fx.Node) -> Dims:
    return r.dims(n.args[0])


@register_rule(
    "add", "sub", "rsub", "mul", "div", "pow", "maximum", "minimum", "where", "eq", "ne", "lt", "le", "gt", "ge",
    "masked_fill", "lerp", "addcmul", "clamp", "clamp_min", "clamp_max",
)  # fmt: skip
def elementwise(r: Relation, n: fx.Node) -> Dims:
    return r.broadcast([r.dims(a) for a in n.args if isinstance(a, fx.Node)])


@register_rule("prelu")
def prelu(r: Relation, n: fx.Node) -> Dims:
    x, w = r.dims(n.args[0]), r.dims(n.args[1])
    if w and w[0].extent > 1:
        r.unify(x[1], w[0])
    return x


@register_rule("conv1d", "conv2d", "conv3d")
def convolution(r: Relation, n: fx.Node) -> Dims:
    return _convolve(r, n, out_dim=0, in_dim=1, groups=argument(n, 6, "groups", 1), groups_at=6)


@register_rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed_convolution(r: Relation, n: fx.Node) -> Dims:
    return _convolve(r, n, out_dim=1, in_dim=0, groups=argument(n, 6, "groups", 1), groups_at=6)


def _convolve(r: Relation, n: fx.Node, *, out_dim: int, in_dim: int, groups: object, groups_at: int) -> Dims:
    """Channels in are contracted, channels out come from the weight, kernel and space are fixed.

    With groups, the weight's leading dim is groups x per-group and its other dim is per group.
    """
    x, w = r.dims(n.args[0]), list(r.dims(n.args[1]))
    groups = integer(groups)
    if len(x) != len(w):
        raise Misaligned(f"its input of {len(x)} dims has no batch")
    for kernel in w[2:]:
        r.axes.freeze(kernel, "kernel extent")
    c_in, c_out = x[1], w[out_dim]
    if groups == 1:
        r.unify(c_in, w[in_dim])
        r.contract(n.args[1], in_dim)
    else:
        g = r.axes.new(groups)
        per_out, per_in = _grouped(r, w, groups, out_dim, in_dim)
        r.unify(w[0], Prod((g, per_out if out_dim == 0 else per_in)))
        r.unify(c_in, Prod((g, per_in)))
        c_out = Prod((g, per_out))
        if in_dim == 1:
            r.contract(n.args[1], in_dim)
        r.shape_argument(n, (groups_at,), g)
    bias = r.optional(n, 2)
    if bias:
        r.unify(bias[0], c_out)
    return spatial(r, n, x, c_out, shape(n))


def _grouped(r: Relation, w: list[Layout], groups: int, out_dim: int, in_dim: int) -> tuple[Layout, Layout]:
    def per_group(dim: int) -> Layout:
        return w[1] if dim == 1 else r.axes.new(w[0].extent // groups)

    return per_group(out_dim), per_group(in_dim)


@register_rule("linear")
def linear(r: Relation, n: fx.Node) -> Dims:
    x, w = r.dims(n.args[0]), r.dims(n.args[1])
    r.unify(x[-1], w[1])
    r.contract(n.args[1], 1)
    bias = r.optional(n, 2)
    if bias:
        r.unify(bias[0], w[0])
    return (*x[:-1], w[0])


@register_rule("matmul", "bmm", "mm")
def matmul(r: Relation, n: fx.Node) -> Dims:
    a, b = r.dims(n.args[0]), r.dims(n.args[1])
    if len(a) < 2 or len(b) < 2:
        raise Misaligned("matrix times vector")
    r.unify(a[-1], b[-2])
    r.contract(n.args[1], len(b) - 2)
    r.contract(n.args[0], len(a) - 1)
    return (*r.broadcast([a[:-2], b[:-2]]), a[-2], b[-1]) if len(a) > 2 or len(b) > 2 else (a[0], b[1])


@register_rule("addmm")
def addmm(r: Relation, n: fx.Node) -> Dims:
    bias, a, b = (r.dims(x) for x in n.args[:3])
    r.unify(a[1], b[0])
    r.contract(n.args[2], 0)
    return r.broadcast([bias, (a[0], b[1])])


@register_rule("scaled_dot_product_attention")
def attention(r: Relation, n: fx.Node) -> Dims:
    """Queries and keys share a width, values have their own; the scale stays what it was."""
    q, k, v = (r.dims(a) for a in n.args[:3])
    if "scale" not in n.kwargs or n.kwargs["scale"] is None:
        n.update_kwarg("scale", q[-1].extent ** -0.5)
    r.unify(q[-1], k[-1])
    r.unify(k[-2], v[-2])
    lead = r.broadcast([q[:-2], k[:-2], v[:-2]])
    mask = r.optional(n, 3)
    if mask:
        r.broadcast([mask, (*lead, q[-2], k[-2])])
    return (*lead, q[-2], v[-1])


@register_rule("batch_norm", "instance_norm")
def batch_norm(r: Relation, n: fx.Node) -> Dims:
    x = r.dims(n.args[0])
    for i in range(1, 5):
        parameter = r.optional(n, i)
        if parameter:
            r.unify(x[1], parameter[0])
    return x


@register_rule("_native_batch_norm_legit_no_training", "native_batch_norm", "_native_batch_norm_legit")
def lowered_batch_norm(r: Relation, n: fx.Node) -> list[Dims]:
    x = batch_norm(r, n)
    return [x, (UNIT,), (UNIT,)]


@register_rule("layer_norm")
def layer_norm(r: Relation, n: fx.Node) -> Dims:
    """The statistic runs over the normalised dims: cutting them is not masking them."""
    x = r.dims(n.args[0])
    normalised = n.args[1]
    normalised = listed(normalised)
    lead = len(x) - len(normalised)
    for i, layout in enumerate(x[lead:]):
        r.axes.mark_inexact(layout)
        r.shape_argument(n, (1, i), layout)
        for at in (2, 3):
            parameter = r.optional(n, at)
            if parameter:
                r.unify(layout, parameter[i])
    return x


@register_rule("group_norm")
def group_norm(r: Relation, n: fx.Node) -> Dims:
    """Channels are groups x per group; the statistic runs inside a group, so groups go exactly."""
    x, groups = r.dims(n.args[0]), n.args[1]
    groups = integer(groups)
    g, inner = r.axes.factor(x[1], [groups, x[1].extent // groups])
    for layout in (inner, *x[2:]):
        r.axes.mark_inexact(layout)
    r.shape_argument(n, (1,), g)
    for at in (2, 3):
        parameter = r.optional(n, at)
        if parameter:
            r.unify(x[1], parameter[0])
    return x


@register_rule("softmax", "_softmax", "log_softmax", "cumsum", "argsort", "flip")
def along_a_dim(r: Relation, n: fx.Node) -> Dims:
    """The result mixes all units along a dim, so that dim stays whole."""
    x = r.dims(n.args[0])
    over = argument(n, 1, "dim", -1)
    for dim in over if isinstance(over, (list, tuple)) else [over]:
        r.freeze(n, [x[positive(dim, len(x))]], "mixed along this axis by softmax or alike")
    return x


@register_rule("roll")
def roll(r: Relation, n: fx.Node) -> Dims:
    x = r.dims(n.args[0])
    over = listed(argument(n, 2, "dims", ()))
    r.freeze(n, [x[positive(d, len(x))] for d in over or range(len(x))], "rolled along this axis")
    return x


@register_rule("mean", "sum", "amax", "amin", "var", "std", "linalg_vector_norm", "max", "min", "prod", "any", "all")
def reduction(r: Relation, n: fx.Node) -> Dims:
    """The reduced dims stay whole; the rest pass."""
    x = r.dims(n.args[0])
    at = 2 if n.target._schema.name.endswith("linalg_vector_norm") else 1  # type: ignore[union-attr]
    over = argument(n, at, "dim")
    if isinstance(n.meta["val"], (tuple, list)):
        raise Misaligned("it gives values and indices")
    dims = {positive(d, len(x)) for d in (over if isinstance(over, (list, tuple)) else [over]) if d is not None}
    dims = dims or set(range(len(x)))
    r.freeze(n, [x[d] for d in dims], "reduced over this axis")
    if len(shape(n)) == len(x):
        return tuple(UNIT if i in dims else layout for i, layout in enumerate(x))
    return tuple(layout for i, layout in enumerate(x) if i not in dims)


@register_rule(
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d",
    "max_pool2d_with_indices",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_linear1d",
    "_upsample_nearest_exact2d",
)  # fmt: skip
def resample(r: Relation, n: fx.Node) -> Dims | list[Dims]:
    """Space changes, batch and channels pass; a pooling may give indices beside values."""
    value, x = n.meta["val"], r.dims(n.args[0])
    if len(x) < 2:
        raise Misaligned(f"its input of {len(x)} dims has no batch")
    if isinstance(value, (list, tuple)):
        return [spatial(r, n, x, x[1], shape_of(value[0]))] * len(value)
    return spatial(r, n, x, x[1], shape(n))


@register_rule("pad", "constant_pad_nd", "reflection_pad2d", "replication_pad2d", "reflection_pad1d")
def pad(r: Relation, n: fx.Node) -> Dims:
    """Amounts come in pairs, last dim first. What goes in may equal what comes out: a shift is a padding, too."""
    x, new, amounts = r.dims(n.args[0]), shape(n), listed(argument(n, 1, "pad"))
    padded = {len(x) - 1 - i // 2 for i, amount in enumerate(amounts) if amount != 0}
    r.freeze(n, [x[d] for d in padded], "padded along this axis")
    return tuple(r.axes.fixed(s, "padded") if d in padded else x[d] for d, s in enumerate(new))


@register_rule("view", "reshape", "_unsafe_view", "unflatten", "flatten", "squeeze", "unsqueeze")
def reshape(r: Relation, n: fx.Node) -> Dims:
    out = r.reshape(r.dims(n.args[0]), shape(n))
    name = n.target._schema.name.split("::")[-1]  # type: ignore[union-attr]
    at = {"view": 1, "reshape": 1, "_unsafe_view": 1, "unflatten": 2}.get(name)
    if at is None:
        return out
    sizes = n.args[at]
    sizes = listed(sizes)
    first = positive(n.args[1], len(r.dims(n.args[0]))) if name == "unflatten" else 0
    for i, size in enumerate(sizes):
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


@register_rule("expand", "repeat")
def expand(r: Relation, n: fx.Node) -> Dims:
    x, new = r.dims(n.args[0]), shape(n)
    lead = len(new) - len(x)
    aligned = (*([UNIT] * lead), *x)
    out = []
    for i, (layout, size) in enumerate(zip(aligned, new, strict=True)):
        grown = layout.extent != size
        if grown and layout.extent != 1:
            raise Misaligned("repeats an axis")
        out.append(r.axes.fixed(size, "expanded to a constant extent", "") if grown else layout)
        sizes = listed(n.args[1])
        if not grown and isinstance(sizes[i], int) and sizes[i] not in (-1, 1):
            r.shape_argument(n, (1, i), layout)
    return tuple(out)


@register_rule("permute")
def permute(r: Relation, n: fx.Node) -> Dims:
    x, order = r.dims(n.args[0]), n.args[1]
    order = listed(order)
    return tuple(x[positive(d, len(x))] for d in order)


@register_rule("transpose", "swapaxes", "swapdims", "t")
def transpose(r: Relation, n: fx.Node) -> Dims:
    x = list(r.dims(n.args[0]))
    if len(x) < 2:
        return tuple(x)
    a, b = (positive(d, len(x)) for d in n.args[1:3]) if len(n.args) > 2 else (0, 1)
    x[a], x[b] = x[b], x[a]
    return tuple(x)


@register_rule("cat", "concat")
def cat(r: Relation, n: fx.Node) -> Dims:
    tensors = n.args[0]
    tensors = listed(tensors)
    parts = [r.dims(t) for t in tensors]
    dim = positive(argument(n, 1, "dim", 0), len(parts[0]))
    rest = r.broadcast([(*p[:dim], UNIT, *p[dim + 1 :]) for p in parts])
    return (*rest[:dim], Sum(tuple(p[dim] for p in parts)), *rest[dim + 1 :])


@register_rule("stack")
def stack(r: Relation, n: fx.Node) -> Dims:
    tensors = n.args[0]
    tensors = listed(tensors)
    out = list(r.broadcast([r.dims(t) for t in tensors]))
    dim = positive(argument(n, 1, "dim", 0), len(out) + 1)
    out.insert(dim, r.axes.fixed(len(tensors), "stacked tensors"))
    return tuple(out)


@register_rule("split_with_sizes")
def split(r: Relation, n: fx.Node) -> list[Dims]:
    x, sizes = r.dims(n.args[0]), n.args[1]
    sizes = listed(sizes)
    dim = positive(argument(n, 2, "dim", 0), len(x))
    parts = r.axes.split(x[dim], [integer(s) for s in sizes])
    for i, part in enumerate(parts):
        r.shape_argument(n, (1, i), part)
    return [(*x[:dim], part, *x[dim + 1 :]) for part in parts]


@register_rule("unbind")
def unbind(r: Relation, n: fx.Node) -> list[Dims]:
    x = r.dims(n.args[0])
    dim = positive(argument(n, 1, "dim", 0), len(x))
    r.freeze(n, [x[dim]], "unbound along this axis")
    return [(*x[:dim], *x[dim + 1 :])] * x[dim].extent


@register_rule("select")
def select(r: Relation, n: fx.Node) -> Dims:
    x = r.dims(n.args[0])
    dim = positive(n.args[1], len(x))
    r.freeze(n, [x[dim]], "selected from along this axis")
    return (*x[:dim], *x[dim + 1 :])


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
    if free or step != 1 or not isinstance(start, int) or not isinstance(end, int):
        r.freeze(n, [x[dim]], "sliced with a step, a computed bound or over the batch")
        return (*x[:dim], r.axes.fixed(size[dim], "sliced"), *x[dim + 1 :])
    first = max(start + total, 0) if start < 0 else min(start, total)
    sizes = [first, size[dim], total - first - size[dim]]
    parts = iter(r.axes.split(x[dim], [s for s in sizes if s]))
    before = next(parts) if sizes[0] else Sum(())
    here = next(parts)
    r.shape_argument(n, (2,), before)
    r.shape_argument(n, (3,), Sum((before, here)))
    return (*x[:dim], here, *x[dim + 1 :])


@register_rule("pixel_shuffle")
def pixel_shuffle(r: Relation, n: fx.Node) -> Dims:
    x, factor = r.dims(n.args[0]), n.args[1]
    factor = integer(factor)
    channels, blocks = r.axes.factor(x[1], [x[1].extent // factor**2, factor**2])
    r.freeze(n, [blocks], "becomes space")
    return spatial(r, n, x, channels, shape(n))


@register_rule("channel_shuffle")
def channel_shuffle(r: Relation, n: fx.Node) -> Dims:
    x, groups = r.dims(n.args[0]), n.args[1]
    groups = integer(groups)
    outer, inner = r.axes.factor(x[1], [groups, x[1].extent // groups])
    r.shape_argument(n, (1,), outer)
    return (x[0], Prod((inner, outer)), *x[2:])
