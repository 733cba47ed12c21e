"""How rules read a call's arguments."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import fx

from cpd_edge.canonical import op_name
from cpd_edge.comb.relate import Dims, Misaligned, Relation, shape_of
from cpd_edge.layout import Layout

_SPACE = re.compile(r"\d(?=d)")
"""Dims of space in the name of an operation (`conv2d`, `avg_pool1d`); without one there are two."""


def shape(n: fx.Node) -> tuple[int, ...]:
    """Shape of what a call gives, a free batch as in the example."""
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


def chosen(dims: object, rank: int) -> list[int]:
    """One dim or several, counted from the front, ascending; none named means all."""
    given = dims if isinstance(dims, (list, tuple)) else [] if dims is None else [dims]
    return sorted({positive(d, rank) for d in given}) or list(range(rank))


def resized(r: Relation, n: fx.Node, x: Dims, dims: Sequence[int], reason: str) -> Dims:
    """The result's layouts where `dims` are mixed into dims of another extent: those stay whole, the rest pass."""
    r.freeze(n, [x[d] for d in dims], reason)
    new = shape(n)
    return tuple(r.axes.fixed(new[d], reason) if d in dims else layout for d, layout in enumerate(x))


def spatial(r: Relation, n: fx.Node, x: Dims, channels: Layout, out: Sequence[int], count: int | None = None) -> Dims:
    """Batch and `channels`, then fresh fixed dims for the space of `out`; what `x` has there is mixed: it stays whole.

    Dims of space are as many as `count`, or as the operation's name says.

    Raises:
        Misaligned: the input has no batch, so its dims are others than they seem.
    """
    space = _SPACE.search(op_name(n))
    if len(x) != 2 + (count or (int(space.group()) if space else 2)):
        raise Misaligned(f"its input of {len(x)} dims has no batch")
    r.freeze(n, x[2:], "spatial extent")
    return (x[0], channels, *(r.axes.fixed(s, "spatial extent") for s in out[2:]))
