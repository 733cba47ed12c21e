"""A number over a dim: norms, reductions, pooling, softmax. Cutting what a statistic runs over is not masking it."""

from __future__ import annotations

from torch import Tensor, fx

from cpd_edge.canonical import op_name
from cpd_edge.comb.axes import UNIT
from cpd_edge.comb.relate import Dims, Misaligned, Relation, register_rule, shape_of
from cpd_edge.comb.rules.arguments import argument, chosen, integer, listed, positive, shape, spatial


@register_rule("batch_norm", "instance_norm")
def batch_norm(r: Relation, n: fx.Node) -> Dims:
    """Per channel; without running statistics also over everything else, as where weights are standardised."""
    x = r.dims(n.args[0])
    given = [r.optional(n, i) for i in range(1, 5)]
    for parameter in given:
        if parameter:
            r.unify(x[1], parameter[0])
    if given[2] is None:
        for layout in (*x[2:], *(x[:1] if op_name(n) == "batch_norm" else ())):
            r.axes.mark_inexact(layout)
    return x


@register_rule("_native_batch_norm_legit_no_training", "native_batch_norm", "_native_batch_norm_legit")
def lowered_batch_norm(r: Relation, n: fx.Node) -> list[Dims]:
    return [batch_norm(r, n), (UNIT,), (UNIT,)]


@register_rule("layer_norm", "rms_norm", "native_layer_norm")
def layer_norm(r: Relation, n: fx.Node) -> Dims | list[Dims]:
    """The statistic runs over the normalised dims."""
    x, normalised = r.dims(n.args[0]), listed(n.args[1])
    lead = len(x) - len(normalised)
    for i, layout in enumerate(x[lead:]):
        r.axes.mark_inexact(layout)
        r.shape_argument(n, (1, i), layout)
        for at in (2, 3) if op_name(n) != "rms_norm" else (2,):
            parameter = r.optional(n, at)
            if parameter:
                r.unify(layout, parameter[i])
    if isinstance(n.meta["val"], Tensor):
        return x
    return [x, *([(*x[:lead], *([UNIT] * len(normalised)))] * 2)]


@register_rule("group_norm")
def group_norm(r: Relation, n: fx.Node) -> Dims:
    """Channels are groups x per group; the statistic runs inside a group, so groups go exactly."""
    x, groups = r.dims(n.args[0]), integer(n.args[1])
    g, inner = r.factor(x[1], [groups, x[1].extent // groups])
    for layout in (inner, *x[2:]):
        r.axes.mark_inexact(layout)
    r.shape_argument(n, (1,), g)
    for at in (2, 3):
        parameter = r.optional(n, at)
        if parameter:
            r.unify(x[1], parameter[0])
    return x


@register_rule("softmax", "_softmax", "log_softmax", "_log_softmax", "logsumexp")
def softmax(r: Relation, n: fx.Node) -> Dims:
    x, over = r.dims(n.args[0]), argument(n, 1, "dim", -1)
    dims = chosen(over, len(x))
    for dim in dims:
        r.axes.mark_inexact(x[dim])
        r.contract(n, (0, dim))
    return _reduced(x, dims, len(shape(n))) if op_name(n) == "logsumexp" else x


@register_rule("_weight_norm")
def weight_norm(r: Relation, n: fx.Node) -> Dims:
    """Directions over their norms, which run over all dims but one: a masked unit, being zero, adds nothing to them."""
    x = r.dims(n.args[0])
    kept = positive(argument(n, 2, "dim", 0), len(x))
    for dim in range(len(x)):
        if dim != kept:
            r.contract(n, (0, dim))
    return r.broadcast([x, r.dims(n.args[1])])


_DIM_AT = {"linalg_vector_norm": 2, "linalg_norm": 2, "norm": 2, "frobenius_norm": 1}
_EXACT = ("sum", "linalg_vector_norm", "linalg_norm", "norm", "frobenius_norm", "count_nonzero", "nansum")
"""Reductions to which a masked unit, being zero, adds nothing."""


@register_rule(
    "mean", "sum", "amax", "amin", "aminmax", "var", "std", "linalg_vector_norm", "linalg_norm", "norm",
    "frobenius_norm", "max", "min", "prod", "var_mean", "std_mean", "median", "count_nonzero", "nansum", "nanmean",
)  # fmt: skip
def reduction(r: Relation, n: fx.Node) -> Dims | list[Dims]:
    """The reduced dims are read; the rest pass."""
    x, name, value = r.dims(n.args[0]), op_name(n), n.meta["val"]
    if name in ("max", "min") and len(n.args) > 1 and isinstance(n.args[1], fx.Node):
        return r.broadcast([x, r.dims(n.args[1])])  # the larger of two
    dims = chosen(argument(n, _DIM_AT.get(name, 1), "dim"), len(x))
    order = argument(n, 1, "ord", argument(n, 1, "p"))
    order = 2 if order is None else order
    exact = name in _EXACT and ("norm" not in name or (isinstance(order, (int, float)) and 0 < order < float("inf")))
    for dim in dims:
        if not exact:
            r.axes.mark_inexact(x[dim])
        r.contract(n, (0, dim))
    if isinstance(value, Tensor):
        return _reduced(x, dims, len(shape(n)))
    if name in ("max", "min", "median"):
        r.freeze(n, [x[d] for d in dims], "its place along this axis is asked for")
    return [_reduced(x, dims, len(shape_of(v))) for v in value]


@register_rule("cosine_similarity", "pairwise_distance", "cdist")
def similarity(r: Relation, n: fx.Node) -> Dims:
    """Vectors are compared along a dim: a distance's small constant makes masked units count, a cosine has none."""
    a, b = r.dims(n.args[0]), r.dims(n.args[1])
    if op_name(n) == "cdist":
        lead = r.broadcast([a[:-2], b[:-2]])
        r.unify(a[-1], b[-1])
        r.contract(n, (0, -1))
        r.contract(n, (1, -1))
        return (*lead, a[-2], b[-2])
    both = r.broadcast([a, b])
    dim = positive(argument(n, 2, "dim", 1), len(both)) if op_name(n) == "cosine_similarity" else len(both) - 1
    if op_name(n) == "pairwise_distance":
        r.axes.mark_inexact(both[dim])
    r.contract(n, (0, dim - len(both)))
    r.contract(n, (1, dim - len(both)))
    return _reduced(both, [dim], len(shape(n)))


@register_rule("argmax", "argmin", "any", "all")
def place(r: Relation, n: fx.Node) -> Dims:
    x = r.dims(n.args[0])
    dims = chosen(argument(n, 1, "dim"), len(x))
    r.freeze(n, [x[d] for d in dims], "its place along this axis is asked for")
    return _reduced(x, dims, len(shape(n)))


def _reduced(x: Dims, dims: list[int], rank: int) -> Dims:
    if rank == len(x):
        return tuple(UNIT if i in dims else layout for i, layout in enumerate(x))
    return tuple(layout for i, layout in enumerate(x) if i not in dims)


@register_rule(
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d",
    "adaptive_max_pool3d", "max_pool1d_with_indices", "max_pool2d_with_indices", "max_pool3d_with_indices",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d", "upsample_bicubic2d",
    "upsample_linear1d", "upsample_trilinear3d", "_upsample_nearest_exact2d", "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa", "_adaptive_avg_pool2d",
)  # fmt: skip
def resample(r: Relation, n: fx.Node) -> Dims | list[Dims]:
    """Space changes, batch and channels pass; a pooling may give indices beside values."""
    value, x = n.meta["val"], r.dims(n.args[0])
    if len(x) < 2:
        raise Misaligned(f"its input of {len(x)} dims has no batch")
    if isinstance(value, (list, tuple)):
        return [spatial(r, n, x, x[1], shape_of(value[0]))] * len(value)
    return spatial(r, n, x, x[1], shape(n))


@register_rule("max_unpool2d", "max_unpool3d")
def unpool(r: Relation, n: fx.Node) -> Dims:
    """Values go back to the places that a pooling took them from."""
    x, places = r.dims(n.args[0]), r.dims(n.args[1])
    r.unify(x[1], places[1])
    return spatial(r, n, x, x[1], shape(n))


@register_rule("grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
def grid_sample(r: Relation, n: fx.Node) -> Dims:
    x, grid = r.dims(n.args[0]), r.dims(n.args[1])
    r.unify(x[0], grid[0])
    r.freeze(n, [*x[2:], grid[-1]], "sampled along this axis")
    return (x[0], x[1], *grid[1:-1])
