"""Each element of the result comes from the elements at the same place."""

from __future__ import annotations

from torch import Tensor, fx

from cpd_edge.canonical import op_name
from cpd_edge.comb.axes import UNIT
from cpd_edge.comb.relate import Dims, Relation, register_rule, shape_of
from cpd_edge.comb.rules.arguments import argument, listed, resized


@register_rule(
    "relu", "relu6", "hardtanh", "silu", "gelu", "hardswish", "hardsigmoid", "sigmoid", "tanh", "leaky_relu", "elu",
    "selu", "celu", "mish", "softplus", "softshrink", "hardshrink", "threshold", "log_sigmoid", "dropout",
    "feature_dropout", "alpha_dropout", "alias", "clone", "contiguous", "to", "_to_copy", "detach", "exp", "exp2",
    "expm1", "log", "log2", "log1p", "sqrt", "rsqrt", "square", "neg", "abs", "reciprocal", "erf", "sin", "cos",
    "tan", "atan", "asin", "acos", "sinh", "cosh", "asinh", "acosh", "atanh", "erfc", "log10", "lgamma", "digamma",
    "special_erfc", "special_expit", "special_logit", "floor", "ceil", "round", "trunc", "frac", "sign", "sgn",
    "lift_fresh_copy", "lift_fresh", "bitwise_not", "logical_not", "type_as", "nan_to_num", "isnan", "isinf",
    "isfinite", "zero", "fill", "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like",
    "bernoulli", "logit", "sinc", "positive", "view_as_real_copy", "rrelu",
)  # fmt: skip
def unary(r: Relation, n: fx.Node) -> Dims:
    return r.dims(n.args[0])


@register_rule(
    "add", "sub", "rsub", "mul", "div", "true_divide", "floor_divide", "remainder", "fmod", "pow", "maximum",
    "minimum", "fmax", "fmin", "where", "eq", "ne", "lt", "le", "gt", "ge", "masked_fill", "lerp", "addcmul",
    "addcdiv", "clamp", "clip", "clamp_min", "clamp_max", "logical_and", "logical_or", "logical_xor", "bitwise_and",
    "bitwise_or", "xlogy", "atan2", "logaddexp", "logaddexp2", "copysign", "float_power", "ldexp", "isclose",
    "copy", "hypot", "heaviside", "multiply", "subtract", "divide",
)  # fmt: skip
def elementwise(r: Relation, n: fx.Node) -> Dims:
    """Equal dims agree, dims of extent 1 stretch."""
    return r.broadcast([r.dims(a) for a in (*n.args, *n.kwargs.values()) if isinstance(a, fx.Node) and a.name in r.of])


@register_rule("broadcast_tensors", "meshgrid")
def together(r: Relation, n: fx.Node) -> list[Dims]:
    """All are stretched to one shape; a mesh has a dim for each vector, the first two swapped for `xy`."""
    given = [r.dims(t) for t in listed(n.args[0])]
    if op_name(n) == "broadcast_tensors":
        return [r.broadcast(given)] * len(given)
    sides = [dims[0] if dims else UNIT for dims in given]
    if n.kwargs.get("indexing") == "xy":
        sides[:2] = sides[1::-1]
    return [tuple(sides)] * len(given)


@register_rule("tril", "triu")
def triangle(r: Relation, n: fx.Node) -> Dims:
    """Rows and columns are compared by their places."""
    x = r.dims(n.args[0])
    r.freeze(n, x[-2:], "its order along this axis matters")
    return x


@register_rule("prelu")
def prelu(r: Relation, n: fx.Node) -> Dims:
    x, w = r.dims(n.args[0]), r.dims(n.args[1])
    if w and w[0].extent > 1:
        r.unify(x[1], w[0])
    return x


@register_rule("glu")
def gated_linear_unit(r: Relation, n: fx.Node) -> Dims:
    """The first half times the sigmoid of the second: both have the same units."""
    x = r.dims(n.args[0])
    dim = int(argument(n, 1, "dim", -1)) % len(x)  # type: ignore[call-overload]
    first, second = r.split(x[dim], [x[dim].extent // 2] * 2)
    r.unify(first, second)
    return (*x[:dim], first, *x[dim + 1 :])


@register_rule("cumsum", "cumprod", "argsort", "flip", "logcumsumexp", "sort", "topk", "roll")
def along_a_dim(r: Relation, n: fx.Node) -> Dims | list[Dims]:
    """The place of an element along these dims matters to the result, so they stay whole."""
    x = r.dims(n.args[0])
    name = str(n.target)
    over = argument(n, 2, "dims", ()) if "roll" in name or "topk" in name else argument(n, 1, "dim", -1)
    over = -1 if "topk" in name and over == () else over
    given = listed(over) if isinstance(over, (list, tuple)) else [over]
    dims = sorted({int(d) % len(x) for d in given}) or list(range(len(x)))
    value = n.meta["val"]
    if isinstance(value, Tensor):
        return resized(r, n, x, dims, "its order along this axis matters")
    r.freeze(n, [x[d] for d in dims], "sorted along this axis")
    sizes = shape_of(value[0])
    out = tuple(r.axes.fixed(sizes[d], "sorted") if d in dims else layout for d, layout in enumerate(x))
    return [out] * len(value)
