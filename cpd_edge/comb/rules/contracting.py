"""Dims are summed away: convolutions, matrix products, attention, recurrent cells."""

from __future__ import annotations

from torch import fx

from cpd_edge.canonical import op_name
from cpd_edge.comb.relate import Dims, Misaligned, Relation, register_rule
from cpd_edge.comb.rules.arguments import argument, integer, listed, positive, shape, spatial
from cpd_edge.layout import Layout, Prod, Sum


@register_rule("conv1d", "conv2d", "conv3d")
def convolution(r: Relation, n: fx.Node) -> Dims:
    return _convolve(r, n, out_dim=0, in_dim=1)


@register_rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed_convolution(r: Relation, n: fx.Node) -> Dims:
    return _convolve(r, n, out_dim=1, in_dim=0)


@register_rule("convolution")
def either_convolution(r: Relation, n: fx.Node) -> Dims:
    """What an exporter makes of a transposed convolution, and may make of any other."""
    transposed = bool(n.args[6])
    return _convolve(r, n, out_dim=int(transposed), in_dim=int(not transposed), at=8)


def _convolve(r: Relation, n: fx.Node, *, out_dim: int, in_dim: int, at: int = 6) -> Dims:
    """Channels in are contracted, channels out come from the weight, kernel and space are fixed.

    With groups, whose number is argument `at`, the weight's leading dim is groups x per-group and its other dim is
    per group.
    """
    x, w, groups = r.dims(n.args[0]), list(r.dims(n.args[1])), integer(argument(n, at, "groups", 1))
    if len(x) != len(w):
        raise Misaligned(f"its input of {len(x)} dims has no batch")
    for kernel in w[2:]:
        r.axes.freeze(kernel, "kernel extent")
    c_in, c_out = x[1], w[out_dim]
    if groups == 1:
        r.unify(c_in, w[in_dim])
        r.contract(n, (0, 1), (1, in_dim))
    else:
        g = r.axes.new(groups)
        other = r.axes.new(w[0].extent // groups)
        per_out, per_in = (other, w[1]) if out_dim == 0 else (w[1], other)
        r.unify(w[0], Prod((g, other)))
        r.unify(c_in, Prod((g, per_in)))
        c_out = Prod((g, per_out))
        if per_in.extent > 1:
            r.contract(n, (0, 1), *(((1, 1),) if in_dim == 1 else ()), passing=g)
        r.shape_argument(n, (at,), g)
    bias = r.optional(n, 2)
    if bias:
        r.unify(bias[0], c_out)
    strides = argument(n, 3, "stride", 1)
    dense = all(s == 1 for s in (strides if isinstance(strides, (list, tuple)) else [strides]))
    if dense and all(k.extent == 1 for k in w[2:]) and shape(n)[2:] == tuple(d.extent for d in x[2:]):
        return (x[0], c_out, *x[2:])  # each place for itself
    return spatial(r, n, x, c_out, shape(n), len(w) - 2)


@register_rule("linear")
def linear(r: Relation, n: fx.Node) -> Dims:
    x, w = r.dims(n.args[0]), r.dims(n.args[1])
    r.unify(x[-1], w[-1])
    r.contract(n, (0, -1), (1, -1))
    bias = r.optional(n, 2)
    if bias:
        r.unify(bias[0], w[0])
    return (*x[:-1], *w[:-1])


@register_rule("bilinear")
def bilinear(r: Relation, n: fx.Node) -> Dims:
    a, b, w = (r.dims(x) for x in n.args[:3])
    r.unify(a[-1], w[1])
    r.unify(b[-1], w[2])
    r.contract(n, (0, -1), (2, 1))
    r.contract(n, (1, -1), (2, 2))
    bias = r.optional(n, 3)
    if bias:
        r.unify(bias[0], w[0])
    return (*r.broadcast([a[:-1], b[:-1]]), w[0])


@register_rule("matmul", "bmm", "mm", "mv", "dot", "vdot")
def matmul(r: Relation, n: fx.Node) -> Dims:
    a, b = r.dims(n.args[0]), r.dims(n.args[1])
    at = max(len(b) - 2, 0)
    r.unify(a[-1], b[at])
    r.contract(n, (0, -1), (1, at))
    activations = all(isinstance(x, fx.Node) and x.op != "get_attr" for x in n.args[:2])
    for layout in a[1:-2] if activations and len(a) == len(b) else ():
        r.axes.mark_heads(layout)
    rows, columns = a[-2:-1], b[-1:] if len(b) > 1 else ()
    return (*(r.broadcast([a[:-2], b[:-2]]) if len(a) > 2 or len(b) > 2 else ()), *rows, *columns)


@register_rule("addmm", "baddbmm", "addbmm", "addmv")
def addmm(r: Relation, n: fx.Node) -> Dims:
    if op_name(n) == "addbmm":
        raise Misaligned("it sums over the batch")
    bias, a, b = (r.dims(x) for x in n.args[:3])
    at = max(len(b) - 2, 0)
    r.unify(a[-1], b[at])
    r.contract(n, (1, -1), (2, at))
    batch = r.broadcast([a[:-2], b[:-2]]) if len(a) > 2 else ()
    return r.broadcast([bias, (*batch, a[-2], *(b[-1:] if len(b) > 1 else ()))])


@register_rule("tensordot", "inner")
def tensordot(r: Relation, n: fx.Node) -> Dims:
    """Chosen dims are paired and summed over; those of the first tensor that are left stand in front."""
    a, b = r.dims(n.args[0]), r.dims(n.args[1])
    over = [(-1,), (-1,)] if op_name(n) == "inner" else [listed(dims) for dims in n.args[2:4]]
    first, second = ([positive(d, len(x)) for d in dims] for x, dims in zip((a, b), over, strict=True))
    for i, j in zip(first, second, strict=True):
        r.unify(a[i], b[j])
        r.contract(n, (0, i), (1, j))
    left = (layout for x, gone in ((a, first), (b, second)) for d, layout in enumerate(x) if d not in gone)
    return tuple(left)


@register_rule("outer", "ger")
def outer(r: Relation, n: fx.Node) -> Dims:
    return (*r.dims(n.args[0]), *r.dims(n.args[1]))


@register_rule("einsum")
def einsum(r: Relation, n: fx.Node) -> Dims:
    """A letter is one axis wherever it stands; letters that the result lacks are summed over."""
    equation, tensors = str(n.args[0]).replace(" ", ""), listed(n.args[1])
    given, arrow, result = equation.partition("->")
    terms = given.split(",")
    if not arrow:
        counts = {c: given.count(c) for c in sorted(set(given) - {",", "."})}
        result = "".join(c for c, k in counts.items() if k == 1)
    of: dict[str, Layout] = {}
    read: dict[str, list[tuple[tuple[int, ...], int]]] = {}
    dots: list[Dims] = []
    for i, (term, tensor) in enumerate(zip(terms, tensors, strict=True)):
        dims = r.dims(tensor)
        before, dotted, after = term.partition("...")
        middle = len(dims) - len(before) - len(after)
        if dotted:
            dots.append(dims[len(before) : len(before) + middle])
        places = [*enumerate(before), *((len(before) + middle + j, c) for j, c in enumerate(after))]
        for d, letter in places:
            if letter in of and of[letter].extent > 1 and dims[d].extent > 1:
                r.unify(of[letter], dims[d])
            elif letter not in of or dims[d].extent > 1:
                of[letter] = dims[d]
            if letter not in result:
                read.setdefault(letter, []).append(((1, i), d))
    for ends in read.values():  # a dim of extent 1 stretches: what is masked is the other
        r.contract(n, *sorted(ends, key=lambda end: r.dims(tensors[end[0][1]])[end[1]].extent == 1))
    lead = r.broadcast(dots) if dots else ()
    before, dotted, after = result.partition("...")
    if lead and not dotted:
        raise Misaligned("it sums over '...'")
    return (*(of[c] for c in before), *(lead if dotted else ()), *(of[c] for c in after))


@register_rule("scaled_dot_product_attention")
def attention(r: Relation, n: fx.Node) -> Dims:
    """Queries and keys share a width, values have their own; the scale stays what it was."""
    q, k, v = (r.dims(a) for a in n.args[:3])
    if argument(n, 6, "scale") is None:
        n.update_kwarg("scale", q[-1].extent ** -0.5)
    r.unify(q[-1], k[-1])
    r.unify(k[-2], v[-2])
    r.contract(n, (0, -1), (1, -1))
    r.contract(n, (2, -2))
    r.axes.mark_inexact(k[-2])
    if argument(n, 5, "is_causal", False):
        r.freeze(n, [q[-2], k[-2]], "its order along this axis matters")
    lead = r.broadcast([q[:-2], k[:-2], v[:-2]])
    for layout in lead[1:]:
        r.axes.mark_heads(layout)
    mask = r.optional(n, 3)
    if mask:
        r.broadcast([mask, (*lead, q[-2], k[-2])])
    return (*lead, q[-2], v[-1])


@register_rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrent(r: Relation, n: fx.Node) -> list[Dims]:
    """Rows of a cell's weights are gates x hidden; its hidden units are read by its own next step, too.

    Every layer and direction has as many hidden units, since their states are one tensor. A step is read by the next.
    """
    x, state, parameters = r.dims(n.args[0]), n.args[1], listed(n.args[2])
    several = isinstance(state, (list, tuple))
    states = [r.dims(s) for s in (state if several else [state])]
    biased, layers, both = bool(n.args[3]), integer(n.args[4]), bool(n.args[7])
    gates = {"lstm": 4, "gru": 3}.get(op_name(n), 1)
    each = 4 if biased else 2
    if len(parameters) != layers * (1 + both) * each:
        raise Misaligned("it projects its hidden units")
    hidden = states[0][-1]
    for other in states[1:]:
        r.unify(hidden, other[-1])
    steps = 1 if len(x) == 3 and argument(n, 8, "batch_first", False) else 0
    r.freeze(n, [x[steps], *(s[0] for s in states)], "its order along this axis matters")
    given, first = x[-1], states[0]
    for layer in range(layers):
        for direction in range(1 + both):
            at = (layer * (1 + both) + direction) * each
            inward, own, *biases = (r.dims(p) for p in parameters[at : at + each])
            r.unify(given, inward[1])
            r.unify(hidden, own[1])
            r.contract(n, ((2, at), 1))
            r.contract(n, ((2, at + 1), 1))
            for rows in (inward[0], own[0], *(b[0] for b in biases)):
                r.unify(rows, Prod((r.axes.fixed(gates, "gates of a cell"), hidden)))
        given = Sum((hidden, hidden)) if both else hidden
    return [(*x[:-1], given), *([first] * (len(states)))]


@register_rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def cell(r: Relation, n: fx.Node) -> Dims | list[Dims]:
    """One step of a cell: as many hidden units go in as come out."""
    x, state = r.dims(n.args[0]), n.args[1]
    states = [r.dims(s) for s in (state if isinstance(state, (list, tuple)) else [state])]
    inward, own = r.dims(n.args[2]), r.dims(n.args[3])
    biases = [b for b in (r.optional(n, 4), r.optional(n, 5)) if b]
    gates = {"lstm_cell": 4, "gru_cell": 3}.get(op_name(n), 1)
    hidden = states[0][-1]
    for other in states[1:]:
        r.unify(hidden, other[-1])
    r.unify(x[-1], inward[1])
    r.unify(hidden, own[1])
    r.contract(n, (2, 1))
    r.contract(n, (3, 1))
    for rows in (inward[0], own[0], *(b[0] for b in biases)):
        r.unify(rows, Prod((r.axes.fixed(gates, "gates of a cell"), hidden)))
    out = (*x[:-1], hidden)
    return [out] * len(n.meta["val"]) if isinstance(n.meta["val"], (list, tuple)) else out
