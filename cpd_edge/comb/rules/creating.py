"""Tensors out of nothing. Where every element is alike, a dim may be cut with whatever it meets."""

from __future__ import annotations

from torch import Tensor, fx

from cpd_edge.canonical import op_name
from cpd_edge.comb.relate import Dims, Relation, extent, register_rule, shape_of
from cpd_edge.comb.rules.arguments import listed, shape


@register_rule("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty", "rand", "randn")
def uniform(r: Relation, n: fx.Node) -> Dims:
    """Sizes are arguments that follow the widths."""
    at = 1 if op_name(n).startswith("new_") else 0
    out = []
    for i, size in enumerate(listed(n.args[at])):
        if type(size) is int:
            out.append(r.axes.new(size))
            if size > 1:
                r.shape_argument(n, (at, i), out[-1])
        else:
            out.append(r.axes.fixed(extent(n.meta["val"].shape[i]), "computed extent"))
    return tuple(out)


@register_rule("arange", "linspace", "logspace", "eye", "scalar_tensor", "randperm", "tril_indices", "triu_indices",
               "hann_window")  # fmt: skip
def counted(r: Relation, n: fx.Node) -> Dims:
    return tuple(r.axes.fixed(size, "counted along this axis") for size in shape(n))


@register_rule("one_hot")
def one_hot(r: Relation, n: fx.Node) -> Dims:
    return (*r.dims(n.args[0]), r.axes.fixed(shape(n)[-1], "counted along this axis"))


@register_rule("_assert_scalar", "sym_size", "item", "_local_scalar_dense")
def no_tensor(r: Relation, n: fx.Node) -> Dims | list[Dims]:
    value = n.meta.get("val")
    return tuple(r.axes.fixed(s, "computed") for s in shape_of(value)) if isinstance(value, Tensor) else ()
