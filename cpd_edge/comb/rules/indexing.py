"""Elements are picked by place: what is picked along stays whole, what is carried with it passes."""

from __future__ import annotations

from torch import fx

from cpd_edge.comb.relate import Dims, Misaligned, Relation, register_rule
from cpd_edge.comb.rules.arguments import listed, positive, shape


@register_rule("select")
def select(r: Relation, n: fx.Node) -> Dims:
    x = r.dims(n.args[0])
    dim = positive(n.args[1], len(x))
    r.freeze(n, [x[dim]], "selected from along this axis")
    return (*x[:dim], *x[dim + 1 :])


@register_rule("unbind")
def unbind(r: Relation, n: fx.Node) -> list[Dims]:
    x = r.dims(n.args[0])
    dim = positive(n.args[1] if len(n.args) > 1 else 0, len(x))
    r.freeze(n, [x[dim]], "unbound along this axis")
    return [(*x[:dim], *x[dim + 1 :])] * x[dim].extent


@register_rule("embedding")
def embedding(r: Relation, n: fx.Node) -> Dims:
    table, index = r.dims(n.args[0]), r.dims(n.args[1])
    r.freeze(n, [table[0]], "looked up along this axis")
    return (*index, table[1])


@register_rule("index")
def index(r: Relation, n: fx.Node) -> Dims:
    """Dims under an index tensor give way to that tensor's dims: in their place, or in front if they are apart."""
    x, picks = r.dims(n.args[0]), listed(n.args[1])
    over = [d for d, pick in enumerate(picks) if isinstance(pick, fx.Node)]
    if any(p.meta["val"].dtype.is_floating_point or p.meta["val"].dtype.itemsize == 1 for p in picks if p is not None):
        raise Misaligned("a mask picks as many as the data says")
    r.freeze(n, [x[d] for d in over], "picked from along this axis")
    new = r.broadcast([r.dims(picks[d]) for d in over])
    rest = [layout for d, layout in enumerate(x) if d not in over]
    at = over[0] if over[-1] - over[0] == len(over) - 1 else 0
    return (*rest[:at], *new, *rest[at:])


@register_rule("index_put", "_unsafe_index_put")
def index_put(r: Relation, n: fx.Node) -> Dims:
    x, picks, values = r.dims(n.args[0]), listed(n.args[1]), r.dims(n.args[2])
    over = [d for d, pick in enumerate(picks) if isinstance(pick, fx.Node)]
    r.freeze(n, [x[d] for d in over], "written to along this axis")
    for d in over:
        r.freeze(n, r.dims(picks[d]), "written along this axis")
    rest = tuple(layout for d, layout in enumerate(x) if d not in over)
    if over and over[0] == 0:
        lead = len(values) - len(rest)
        r.broadcast([rest, values[lead:] if lead >= 0 else values])
        r.freeze(n, values[: max(lead, 0)], "written along this axis")
    else:
        r.freeze(n, [*values, *rest], "written to by a tensor of places")
    return x


@register_rule("index_select")
def index_select(r: Relation, n: fx.Node) -> Dims:
    x, picks = r.dims(n.args[0]), r.dims(n.args[2])
    dim = positive(n.args[1], len(x))
    r.freeze(n, [x[dim]], "picked from along this axis")
    return (*x[:dim], *picks, *x[dim + 1 :])


@register_rule("gather", "take_along_dim")
def gather(r: Relation, n: fx.Node) -> Dims:
    """As many as the index has, which elsewhere has the dims of what it picks from."""
    if isinstance(n.args[1], fx.Node):
        x, picks, over = r.dims(n.args[0]), r.dims(n.args[1]), n.args[2]
    else:
        x, picks, over = r.dims(n.args[0]), r.dims(n.args[2]), n.args[1]
    dim = positive(over, len(x))
    _alike(r, n, dim, x, picks)
    r.freeze(n, [x[dim]], "picked from along this axis")
    return picks


@register_rule("scatter", "scatter_add", "scatter_reduce")
def scatter(r: Relation, n: fx.Node) -> Dims:
    """What is written goes to named places; whether it adds there or replaces, none of it can be left out."""
    x, picks = r.dims(n.args[0]), r.dims(n.args[2])
    dim = positive(n.args[1], len(x))
    _alike(r, n, dim, x, picks)
    r.freeze(n, [x[dim], picks[dim]], "written to along this axis")
    if isinstance(n.args[3], fx.Node) and len(r.dims(n.args[3])) == len(x):
        source = r.dims(n.args[3])
        _alike(r, n, dim, x, source)
        r.freeze(n, [source[dim]], "written along this axis")
    return x


@register_rule("index_add", "index_copy", "index_reduce", "index_fill")
def index_add(r: Relation, n: fx.Node) -> Dims:
    """As a scatter whose places are one vector."""
    x = r.dims(n.args[0])
    dim = positive(n.args[1], len(x))
    r.freeze(n, [x[dim], *r.dims(n.args[2])], "written to along this axis")
    if isinstance(n.args[3], fx.Node) and len(r.dims(n.args[3])) == len(x):
        source = r.dims(n.args[3])
        _alike(r, n, dim, x, source)
        r.freeze(n, [source[dim]], "written along this axis")
    return x


def _alike(r: Relation, n: fx.Node, dim: int, x: Dims, other: Dims) -> None:
    """Two tensors have the same dims but for one; where one is shorter, what it takes of the other stays whole."""
    for d, (a, b) in enumerate(zip(x, other, strict=True)):
        if d != dim and a.extent == b.extent:
            r.unify(a, b)
        elif d != dim:
            r.freeze(n, [a, b], "taken in part")


@register_rule("select_scatter", "slice_scatter")
def into_place(r: Relation, n: fx.Node) -> Dims:
    x, source = r.dims(n.args[0]), r.dims(n.args[1])
    dim = positive(n.args[2] if len(n.args) > 2 else 0, len(x))
    r.freeze(n, [x[dim]], "written to along this axis")
    rest = (*x[:dim], *x[dim + 1 :])
    others = source if len(source) < len(x) else (*source[:dim], *source[dim + 1 :])
    if len(source) == len(x):
        r.freeze(n, [source[dim]], "written along this axis")
    for a, b in zip(rest, others, strict=True):
        r.unify(a, b)
    assert len(shape(n)) == len(x)
    return x
