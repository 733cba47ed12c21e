"""Axes under unification: which dims must agree, refined only as far as an operation demands.

An `Axes` holds the bindings of axes to layouts made of finer axes. Operations that relate tensors
call four verbs: `unify` (two dims have the same units), `split` (a dim is cut into consecutive
parts), `factor` (a dim is reshaped into several), `freeze` (a dim may not be cut). Every verb only
ever couples or refines, so a relation that is dropped half-way leaves the system safe: too coarse,
never wrong. What the algebra cannot express raises `Misaligned`; the caller freezes instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from cpd_edge.layout import Layout, Leaf, Prod, Sum, leaves

UNIT: Layout = Prod(())
"""The layout of a dim of extent 1: the empty product."""


class Misaligned(Exception):
    """Two layouts cannot be brought to a common refinement."""


class Axes:
    """Axes, their refinements, and why some of them are frozen."""

    def __init__(self) -> None:
        self._bound: dict[str, Layout] = {}
        self._count = 0
        self.frozen: dict[str, tuple[str, str]] = {}
        """Reason and source line of each frozen axis; resolved axes only, once settled."""
        self.inexact: set[str] = set()
        self.heads: set[str] = set()

    def new(self, extent: int) -> Layout:
        """A fresh axis; a dim of extent 1 has none."""
        return UNIT if extent == 1 else self._part(extent)

    def fixed(self, extent: int, reason: str, source: str = "") -> Layout:
        """A fresh axis that is frozen from birth (batch, space, a protected output)."""
        layout = self.new(extent)
        self.freeze(layout, reason, source)
        return layout

    def resolve(self, layout: Layout) -> Layout:
        """The layout over current axes in normal form: no nested sums or products, no lone parts, no factors of 1."""
        if isinstance(layout, Leaf):
            bound = self._bound.get(layout.axis)
            if bound is None:
                return layout
            found = self.resolve(bound)
            self._bound[layout.axis] = found
            return found
        kind = type(layout)
        parts: list[Layout] = []
        for part in layout.parts:
            found = self.resolve(part)
            parts.extend(found.parts if isinstance(found, kind) else (found,))
        if kind is Prod:
            parts = [part for part in parts if part.extent != 1]
        return parts[0] if len(parts) == 1 else kind(tuple(parts))

    def freeze(self, layout: Layout, reason: str, source: str = "") -> None:
        """Forbids any cut along the layout's axes. The first reason stays."""
        for leaf in leaves(self.resolve(layout)):
            self.frozen.setdefault(leaf.axis, (reason, source))

    def mark_inexact(self, layout: Layout) -> None:
        """Says that a statistic runs over the layout, so that cutting it differs from masking it."""
        self.inexact.update(leaf.axis for leaf in leaves(self.resolve(layout)))

    def mark_heads(self, layout: Layout) -> None:
        """Says that the layout's units are the heads of an attention."""
        self.heads.update(leaf.axis for leaf in leaves(self.resolve(layout)))

    def unify(self, a: Layout, b: Layout) -> None:
        """Makes two dims carry the same units at the same indices.

        Raises:
            Misaligned: the extents differ, or no common refinement exists.
        """
        a, b = self.resolve(a), self.resolve(b)
        if a == b:
            return
        if a.extent != b.extent:
            raise Misaligned(f"extent {a.extent} against {b.extent}")
        if isinstance(a, Leaf):
            self._bind(a, b)
        elif isinstance(b, Leaf):
            self._bind(b, a)
        elif isinstance(a, Sum) and isinstance(b, Sum):
            self._unify_sums(a, b)
        elif isinstance(a, Prod) and isinstance(b, Prod):
            self._unify_prods(a, b)
        else:
            total, nest = (a, b) if isinstance(a, Sum) else (b, a)
            self._unify_sum_with_prod(total, nest)

    def split(self, layout: Layout, sizes: Sequence[int]) -> list[Layout]:
        """Cuts a dim into consecutive parts of `sizes`.

        Raises:
            Misaligned: a boundary falls inside the inner part of a product.
        """
        layout = self.resolve(layout)
        if sum(sizes) != layout.extent:
            raise Misaligned(f"parts {list(sizes)} of an extent of {layout.extent}")
        if len(sizes) == 1:
            return [layout]
        if isinstance(layout, Leaf):
            parts: list[Layout] = [self._part(n) for n in sizes]
            self._bind(layout, Sum(tuple(parts)))
            return parts
        if isinstance(layout, Prod):
            inner = math.prod(p.extent for p in layout.parts[1:])
            if not layout.parts or any(n % inner for n in sizes):
                raise Misaligned(f"parts {list(sizes)} of a product with an inner extent of {inner}")
            outer = self.split(layout.parts[0], [n // inner for n in sizes])
            return [self.resolve(Prod((o, *layout.parts[1:]))) for o in outer]
        return self._split_sum(layout, sizes)

    def factor(self, layout: Layout, sizes: Sequence[int]) -> list[Layout]:
        """Reshapes a dim into dims of `sizes`, row-major.

        Raises:
            Misaligned: the sizes do not follow the dim's own factors.
        """
        layout = self.resolve(layout)
        if math.prod(sizes) != layout.extent:
            raise Misaligned(f"factors {list(sizes)} of an extent of {layout.extent}")
        todo = list(layout.parts) if isinstance(layout, Prod) else [layout]
        out = []
        for wanted in sizes:
            got: list[Layout] = []
            have = 1
            while have < wanted:
                if not todo:
                    raise Misaligned(f"factors {list(sizes)} do not fit")
                part = todo.pop(0)
                need = wanted // have
                if wanted % have or (part.extent > need and part.extent % need):
                    raise Misaligned(f"factor {wanted} falls inside a factor of {part.extent}")
                if part.extent > need:
                    head, tail = self._factor_in_two(part, need)
                    part, todo = head, [tail, *todo]
                got.append(part)
                have *= part.extent
            out.append(self.resolve(Prod(tuple(got))) if got else UNIT)
        return out

    def _part(self, extent: int) -> Leaf:
        """A fresh axis, also for a part of a concat that is one index wide."""
        self._count += 1
        return Leaf(f".{self._count}", extent)  # no module's name begins with a dot

    def _bind(self, leaf: Leaf, layout: Layout) -> None:
        if any(x.axis == leaf.axis for x in leaves(layout)):
            raise Misaligned(f"{leaf.axis} would contain itself")
        self._bound[leaf.axis] = layout
        if leaf.axis in self.frozen:
            self.freeze(layout, *self.frozen.pop(leaf.axis))
        if leaf.axis in self.inexact:
            self.inexact.discard(leaf.axis)
            self.mark_inexact(layout)
        if leaf.axis in self.heads:
            self.heads.discard(leaf.axis)
            self.mark_heads(layout)

    def _unify_sums(self, a: Sum, b: Sum) -> None:
        left, right = list(a.parts), list(b.parts)
        while left and right:
            x, y = left.pop(0), right.pop(0)
            if x.extent > y.extent:
                x, rest = self.split(x, [y.extent, x.extent - y.extent])
                left.insert(0, rest)
            elif y.extent > x.extent:
                y, rest = self.split(y, [x.extent, y.extent - x.extent])
                right.insert(0, rest)
            self.unify(x, y)
            left, right = self._flat(left), self._flat(right)

    def _flat(self, parts: Iterable[Layout]) -> list[Layout]:
        out: list[Layout] = []
        for part in parts:
            found = self.resolve(part)
            out.extend(found.parts if isinstance(found, Sum) else (found,))
        return out

    def _unify_prods(self, a: Prod, b: Prod) -> None:
        cuts = _common_factors([p.extent for p in a.parts], [p.extent for p in b.parts])
        for x, y in zip(self.factor(a, cuts), self.factor(b, cuts), strict=True):
            self.unify(x, y)

    def _unify_sum_with_prod(self, total: Sum, nest: Prod) -> None:
        try:
            pieces = self.split(nest, [p.extent for p in total.parts])
        except Misaligned:
            for x, y in zip(self.factor(total, [p.extent for p in nest.parts]), nest.parts, strict=True):
                self.unify(x, y)
        else:
            for x, y in zip(total.parts, pieces, strict=True):
                self.unify(x, y)

    def _split_sum(self, layout: Sum, sizes: Sequence[int]) -> list[Layout]:
        todo, out = list(layout.parts), []
        for wanted in sizes:
            got: list[Layout] = []
            have = 0
            while have < wanted:
                part = self.resolve(todo.pop(0))
                need = wanted - have
                if part.extent > need:
                    part, rest = self.split(part, [need, part.extent - need])
                    todo.insert(0, rest)
                got.append(part)
                have += part.extent
            out.append(self.resolve(Sum(tuple(got))))
        return out

    def _factor_in_two(self, part: Layout, outer: int) -> tuple[Layout, Layout]:
        part = self.resolve(part)
        inner = part.extent // outer
        if isinstance(part, Leaf):
            pair = self.new(outer), self.new(inner)
            self._bind(part, Prod(pair))
            return pair
        if isinstance(part, Prod):
            first, second = self.factor(part, [outer, inner])
            return first, second
        if any(p.extent % inner for p in part.parts):
            raise Misaligned(f"a concat of {[p.extent for p in part.parts]} has no common inner extent of {inner}")
        heads, tails = [], []
        for piece in part.parts:
            n = piece.extent // inner
            head, tail = self.factor(piece, [n, inner]) if n > 1 else (self._part(1), piece)
            if n == 1:
                self.freeze(head, "one part of a packed tensor")
            heads.append(head)
            tails.append(tail)
        for tail in tails[1:]:
            self.unify(tails[0], tail)
        return self.resolve(Sum(tuple(heads))), self.resolve(tails[0])


def _common_factors(a: Sequence[int], b: Sequence[int]) -> list[int]:
    """Sizes of the coarsest row-major factorisation that refines both, e.g. (2, 6), (4, 3) -> 2, 2, 3."""
    out = []
    left, right = list(a), list(b)
    while left and right:
        x, y = left[0], right[0]
        small = min(x, y)
        if x % small or y % small:
            raise Misaligned(f"factors {list(a)} against {list(b)}")
        out.append(small)
        for side, extent in ((left, x), (right, y)):
            if extent == small:
                side.pop(0)
            else:
                side[0] = extent // small
    return out
