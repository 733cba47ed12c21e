"""One spelling for each call of an exported graph, so that rules and cuts need to know only one.

What a cut may change stands in a call's arguments as a plain integer; what depends on the batch stands as -1;
packed tensors are split before they are reshaped, so that their parts may have different widths.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten

TRAINING_ARGUMENT = {"batch_norm": 5, "dropout": 2, "dropout_": 2, "feature_dropout": 2, "instance_norm": 5}
"""Position of the training flag in the calls that behave differently while training."""

FOLDED = "constant_"
"""How the names of buffers begin that hold what a graph computed from nothing."""

_REWRITTEN = {"conv1d": 6, "conv2d": 6, "conv3d": 6, "slice": 4}
"""Last argument that a cut or a rule may read, by call: defaults up to there are written out."""

_SPLITS = ("chunk", "split", "tensor_split", "hsplit", "vsplit", "dsplit")
"""Calls that cut a tensor into parts."""

_STACKS = {"vstack": 0, "hstack": 1, "column_stack": 1, "dstack": 2}
"""Calls that lay tensors with that dim behind each other along it."""

_SIZES = {"view": 1, "reshape": 1, "_unsafe_view": 1, "unflatten": 2}
"""Position of the sizes in the calls that reshape."""


def op_name(node: fx.Node) -> str:
    """Name of an ATen call without its overload (`conv2d`), or '' for anything else."""
    target = node.target
    if node.op == "call_function" and isinstance(target, torch._ops.OpOverload):
        return target._schema.name.split("::")[-1]
    return ""


def argument_at(arguments: Any, path: Sequence[int]) -> Any:
    """What stands at a path in a call's arguments, outermost position first."""
    for position in path:
        arguments = arguments[position]
    return arguments


def with_argument(arguments: Any, path: Sequence[int], value: object) -> Any:
    """The arguments with another value at a path."""
    head, *rest = path
    new = list(arguments)
    new[head] = with_argument(new[head], rest, value) if rest else value
    return tuple(new) if isinstance(arguments, tuple) else new


def canonical(root: torch.nn.Module, graph: fx.Graph) -> None:
    """Rewrites a graph in place; it computes the same.

    Args:
        root: what the graph's `get_attr` and `call_module` nodes refer to.
        graph: an exported graph with shapes at its calls (`node.meta["val"]`).
    """
    for node in list(graph.nodes):
        if op_name(node).startswith("wrap_with_") or _is_wrapper(node):
            _inline(root, graph, node)
    for node in list(graph.nodes):
        if not node.users and (node.op in ("call_module", "get_attr") or op_name(node) == "_assert_tensor_metadata"):
            graph.erase_node(node)
    graph.eliminate_dead_code(is_impure_node=has_effect)
    _fold(root, graph)
    for node in graph.nodes:
        _without_writing(node)
    for node in graph.nodes:
        _write_out(node)
    for node in list(graph.nodes):
        if op_name(node) in ("unbind", "select"):
            _unpack(graph, node)
    for node in reversed(list(graph.nodes)):
        if not node.users and (op_name(node) in _FREE_OF_EFFECT or node.target in _ARITHMETIC):
            graph.erase_node(node)


def has_effect(node: fx.Node) -> bool:
    """Whether a call matters though nobody takes its result: it writes into memory, or is an end of the graph."""
    writes = isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
    return writes or node.op in ("placeholder", "output")


_CREATED = frozenset(
    """
    arange empty eye full linspace new_empty new_full new_ones new_zeros ones scalar_tensor zeros
    """.split()  # noqa: SIM905
)


def _fold(root: torch.nn.Module, graph: fx.Graph) -> None:
    """Tensors that are made and written to piece by piece, whatever the input, become buffers, such as attention masks.

    Nothing is folded where no call writes to such a tensor.
    """
    known: dict[fx.Node, Any] = {}
    written = False
    for node in graph.nodes:
        if node.op == "get_attr" and "lifted_tensor" in str(node.target):
            known[node] = operator.attrgetter(str(node.target))(root)
        value = node.meta.get("val")
        fixed = isinstance(value, Tensor) and all(type(size) is int for size in value.shape)
        before = [] if op_name(node) in _CREATED else node.all_input_nodes
        if not fixed or not op_name(node) or any(n not in known for n in before):
            continue
        if not before and op_name(node) not in _CREATED:
            continue
        if op_name(node).startswith("new_"):
            made = {"new_empty": "zeros"}.get(op_name(node), op_name(node)[4:])
            known[node] = getattr(aten, made).default(*node.args[1:], dtype=value.dtype)
        else:
            known[node] = node.target(*fx.node.map_arg(node.args, known.get), **fx.node.map_arg(node.kwargs, known.get))
        written = written or op_name(node).endswith("_")
    if not written:
        return
    for i, node in enumerate(node for node in known if any(user not in known for user in node.users)):
        root.register_buffer(f"{FOLDED}{i}", known[node].detach().clone())
        with graph.inserting_before(node):
            held = graph.get_attr(f"{FOLDED}{i}")
        held.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(held, delete_user_cb=lambda user: user not in known)
    for node in reversed(list(known)):
        graph.erase_node(node)


_VIEWS = frozenset(
    """
    alias chunk detach diagonal expand flatten narrow permute reshape select slice split split_with_sizes squeeze t
    transpose unbind unflatten unfold unsqueeze view view_as
    """.split()  # noqa: SIM905
)
"""Calls whose result may share memory with their argument."""


def _without_writing(node: fx.Node) -> None:
    """A call that writes into its argument makes a new tensor instead, where nothing else sees the memory."""
    name, written = op_name(node), node.args[0] if node.args else None
    if not name.endswith("_") or not hasattr(aten, name[:-1]) or not isinstance(written, fx.Node):
        return
    overload = node.target._overloadname  # type: ignore[union-attr]
    found = getattr(getattr(aten, name[:-1]), overload, None)
    seen = written.op == "get_attr" or op_name(written) in _VIEWS or written.target is operator.getitem
    if found is None or seen or any(op_name(u) in _VIEWS for u in written.users):
        return
    now, was = node.meta["val"], written.meta["val"]
    if any(x.meta["val"].dtype != now.dtype for x in node.all_input_nodes if isinstance(x.meta.get("val"), Tensor)):
        return
    if now.dtype != was.dtype or now.dim() != was.dim():
        return
    node.target = found
    written.replace_all_uses_with(node, delete_user_cb=lambda user: node < user)


def _write_out(node: fx.Node) -> None:
    """Defaults become arguments, splits and views carry sizes, a squeeze names what it drops."""
    name = op_name(node)
    wanted = TRAINING_ARGUMENT.get(name, _REWRITTEN.get(name, -1))
    if len(node.args) <= wanted:
        schema = node.target._schema.arguments  # type: ignore[union-attr]
        extra = [node.kwargs.get(a.name, a.default_value) for a in schema[len(node.args) : wanted + 1]]
        node.args = (*node.args, *extra)
        node.kwargs = {k: v for k, v in node.kwargs.items() if k not in {a.name for a in schema[: wanted + 1]}}
    if name in _SPLITS:
        rank = node.args[0].meta["val"].dim()  # type: ignore[union-attr]
        given = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
        dim = {"hsplit": min(rank - 1, 1), "vsplit": 0, "dsplit": 2}.get(name, given)
        sizes = [part.shape[dim] for part in node.meta["val"]]
        if all(type(size) is int for size in sizes):
            node.target = aten.split_with_sizes.default
            node.args, node.kwargs = (node.args[0], sizes, dim), {}
    if name in _STACKS and all(x.meta["val"].dim() > _STACKS[name] for x in node.all_input_nodes):
        node.target, node.args = aten.cat.default, (node.args[0], _STACKS[name])
    if name == "narrow" and all(type(a) is int for a in node.args[1:]):
        source, dim, start, length = node.args
        node.target, node.args = aten.slice.Tensor, (source, dim, start, start + length, 1)  # type: ignore[operator]
    if name == "adaptive_avg_pool2d" and all(s == 1 for s in node.args[1]):  # type: ignore[union-attr]
        node.target, node.args = aten.mean.dim, (node.args[0], [-2, -1], True)
    if name == "squeeze":
        source = node.args[0]
        assert isinstance(source, fx.Node)
        given = source.meta["val"].shape
        named = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", list(range(len(given))))
        dims = [d for d in (named if isinstance(named, (list, tuple)) else [named]) if type(given[d]) is int]
        node.target = aten.squeeze.dims
        node.args, node.kwargs = (source, [d for d in dims if given[d] == 1]), {}
    if name in _SIZES or name == "flatten":
        _write_sizes(node, name)


def _write_sizes(node: fx.Node, name: str) -> None:
    """The one size that depends on the batch is -1, all others are integers; several such sizes stay as they are."""
    shape = node.meta["val"].shape
    if name == "unflatten":
        source, dim, given = node.args[:3]
        rank = source.meta["val"].dim()  # type: ignore[union-attr]
        shape = shape[int(dim) % rank :][: len(given)]  # type: ignore[arg-type,call-overload]
    free = [type(size) is not int for size in shape]
    if sum(free) > 1 or not len(shape):
        return
    sizes = [-1 if f else int(size) for f, size in zip(free, shape, strict=True)]
    if name == "unflatten":
        node.update_arg(2, sizes)
    elif name == "flatten":
        node.target = aten.reshape.default
        node.args, node.kwargs = (node.args[0], sizes), {}
    elif node.target is not aten.view.dtype:
        written = any(op_name(user).endswith("_") for user in node.users)
        node.target = node.target if written else aten.reshape.default
        node.update_arg(1, sizes)


def _is_wrapper(node: fx.Node) -> bool:
    return node.op == "call_function" and isinstance(node.target, torch._ops.HigherOrderOperator)


def _inline(root: torch.nn.Module, graph: fx.Graph, node: fx.Node) -> None:
    """Puts the body of a region without gradients, or with autocast switched off, in its place."""
    kind = str(getattr(node.target, "_name", node.target))
    if kind == "wrap_with_set_grad_enabled":
        detached, at = not node.args[0], 1
    elif kind == "wrap_with_autocast" and node.args[2] is False:
        detached, at = False, 4
    else:
        return
    held = node.args[at]
    assert isinstance(held, fx.Node)
    body = root.get_submodule(str(held.target))
    given = iter(node.args[at + 1 :])
    env: dict[fx.Node, Any] = {}
    with graph.inserting_before(node):
        for inner in body.graph.nodes:  # type: ignore[union-attr]
            if inner.op == "placeholder":
                env[inner] = next(given)
            elif inner.op == "output":
                outputs = fx.node.map_arg(inner.args[0], lambda x: env[x])
            else:
                copied = graph.node_copy(inner, lambda x: env[x])
                if inner.op in ("get_attr", "call_module"):
                    copied.target = f"{held.target}.{inner.target}"
                env[inner] = copied
        if detached:
            outputs = fx.node.map_arg(outputs, lambda x: _detached(graph, x))
    if isinstance(node.meta["val"], Tensor):
        (outputs,) = outputs if isinstance(outputs, (list, tuple)) else (outputs,)
        node.replace_all_uses_with(outputs)
    else:
        for user in list(node.users):
            user.replace_all_uses_with(outputs[user.args[1]])
            graph.erase_node(user)
    graph.erase_node(node)
    if held.op in ("get_attr", "call_module") and not held.users:
        graph.erase_node(held)


def _detached(graph: fx.Graph, node: fx.Node) -> fx.Node:
    new = graph.call_function(aten.detach.default, (node,))
    new.meta = dict(node.meta)
    return new


def _transposed(node: fx.Node, rank: int) -> list[int]:
    order = list(range(rank))
    a, b = (int(d) % rank for d in node.args[1:3]) if len(node.args) > 2 else (0, 1)  # type: ignore[call-overload]
    order[a], order[b] = order[b], order[a]
    return order


def _order(node: fx.Node, rank: int) -> list[int]:
    if op_name(node) == "permute":
        return [int(d) % rank for d in node.args[1]]  # type: ignore[union-attr,call-overload]
    return _transposed(node, rank) if op_name(node) in ("transpose", "t", "swapaxes") else list(range(rank))


_MOVES = ("permute", "transpose", "swapaxes", "t", "clone", "contiguous", "squeeze", "unsqueeze")
"""Calls that only move the dims of one tensor."""

_FREE_OF_EFFECT = frozenset(["sym_size", "mul", "unbind", "select", *_SIZES, *_MOVES])
_ARITHMETIC = (operator.mul, operator.floordiv, operator.add)
"""What may be left over once sizes are written out and packed tensors are split."""


def _unpack(graph: fx.Graph, last: fx.Node) -> None:
    """Turns reshape, moves, unbind (or select) of a packed tensor into a split, and a reshape and moves of each part.

    Parts of one packed tensor then need not be of one width: queries and keys share theirs, values have their own.
    """
    source = last.args[0] if not last._erased else None
    if not isinstance(source, fx.Node) or not isinstance(source.meta.get("val"), Tensor):
        return
    takers = [u for u in source.users if op_name(u) == op_name(last)]
    dim = int(last.args[1]) if len(last.args) > 1 else 0  # type: ignore[call-overload]
    dim %= source.meta["val"].dim()
    same = all((int(u.args[1]) if len(u.args) > 1 else 0) % source.meta["val"].dim() == dim for u in takers)  # type: ignore[call-overload]
    if len(takers) != len(source.users) or not same or last is not takers[0]:
        return
    chain: list[tuple[fx.Node, int]] = []
    node, at = source, dim
    while op_name(node) in _MOVES:
        before = node.args[0]
        assert isinstance(before, fx.Node)
        rank = before.meta["val"].dim()
        if op_name(node) == "squeeze":
            dropped = {int(d) % rank for d in node.args[1]}  # type: ignore[union-attr,call-overload]
            at = [d for d in range(rank) if d not in dropped][at]
        elif op_name(node) == "unsqueeze":
            new = int(node.args[1]) % (rank + 1)  # type: ignore[call-overload]
            if new == at:
                return
            at -= new < at
        else:
            at = _order(node, rank)[at]
        chain.append((node, at))
        node = before
        if op_name(node) in _MOVES and len(node.users) > 1:
            return
    if op_name(node) not in _SIZES or (chain and len(node.users) > 1):
        return
    packed = node.args[0]
    if not isinstance(packed, fx.Node) or "val" not in packed.meta:
        return
    shape, whole = node.meta["val"].shape, packed.meta["val"].shape
    held = _leading(whole, shape, at)
    if held is None:
        return
    count = int(shape[at])
    _split_up(graph, node, packed, held, count, at, chain, takers, dim)


def _leading(source: Sequence[Any], shape: Sequence[Any], at: int) -> int | None:
    """The dim of `source` that the dim `at` of a reshape leads: it is cut into as many equal parts; or None."""
    if type(shape[at]) is not int or shape[at] < 2:
        return None
    want, have = 1, 1
    for size in shape[:at]:
        want *= _expression(size)
    for d, size in enumerate(source):
        if have == want and not (type(size) is int and size == 1):
            fits = type(size) is int and size % shape[at] == 0 and size > shape[at]
            return d if fits else None
        have *= _expression(size)
    return None


def _expression(size: Any) -> Any:
    """A size that compares without guarding: an integer, or a free one's formula."""
    return size if type(size) is int else size.node.expr


def _split_up(
    graph: fx.Graph, reshape: fx.Node, packed: fx.Node, held: int, count: int, at: int,
    chain: Sequence[tuple[fx.Node, int]], takers: Sequence[fx.Node], dim: int,
) -> None:  # fmt: skip
    size = int(packed.meta["val"].shape[held]) // count
    with graph.inserting_before(reshape):
        parts = _made(graph, reshape, aten.split_with_sizes.default, (packed, [size] * count, held))
    shape = [s if type(s) is int else -1 for s in reshape.meta["val"].shape]
    if shape.count(-1) > 1:
        return
    del shape[at]
    results: dict[int, fx.Node] = {}
    wanted = set(range(count))
    if op_name(takers[0]) == "select":
        wanted = {int(t.args[2]) % count for t in takers}  # type: ignore[call-overload]
    for i in sorted(wanted):
        with graph.inserting_before(reshape):
            part = _made(graph, reshape, operator.getitem, (parts, i))
            part = _made(graph, reshape, aten.reshape.default, (part, shape))
        gone = at
        for node, here in reversed(chain):
            part, gone = _moved(graph, node, part, here, gone)
        results[i] = part
    for taker in takers:
        if op_name(taker) == "select":
            taker.replace_all_uses_with(results[int(taker.args[2]) % count])  # type: ignore[call-overload]
            graph.erase_node(taker)
        else:
            for user in list(taker.users):
                user.replace_all_uses_with(results[user.args[1]])
                graph.erase_node(user)
            graph.erase_node(taker)


def _moved(graph: fx.Graph, node: fx.Node, part: fx.Node, here: int, gone: int) -> tuple[fx.Node, int]:
    """The same move of a part that lacks the dim `here` of the move's input; and which dim its output then lacks."""
    assert here == gone
    name, rank = op_name(node), node.args[0].meta["val"].dim()  # type: ignore[union-attr]

    def without(d: int) -> int:
        return d - (d > gone)

    with graph.inserting_before(node):
        if name in ("clone", "contiguous"):
            return _made(graph, node, aten.contiguous.default, (part,)), gone
        if name == "squeeze":
            dropped = [int(d) % rank for d in node.args[1]]  # type: ignore[union-attr,call-overload]
            new = _made(graph, node, aten.squeeze.dims, (part, [without(d) for d in dropped]))
            return new, gone - sum(d < gone for d in dropped)
        if name == "unsqueeze":
            d = int(node.args[1]) % (rank + 1)  # type: ignore[call-overload]
            new = _made(graph, node, aten.unsqueeze.default, (part, d - (d > gone)))
            return new, gone + (d <= gone)
        order = _order(node, rank)
        new = _made(graph, node, aten.permute.default, (part, [without(d) for d in order if d != gone]))
        return new, order.index(gone)


def _made(graph: fx.Graph, like: fx.Node, target: Any, args: tuple[Any, ...]) -> fx.Node:
    """A call with its result's shape recorded, and the source line of the call that it stands for."""
    node = graph.call_function(target, args)
    node.meta = {k: v for k, v in like.meta.items() if k in ("stack_trace", "nn_module_stack")}
    tensors = [x.meta["val"] for x in node.all_input_nodes if isinstance(x.meta["val"], Tensor)]
    with tensors[0].fake_mode if tensors else contextlib.nullcontext():
        node.meta["val"] = target(*fx.node.map_arg(args, lambda x: x.meta["val"]))
    return node
