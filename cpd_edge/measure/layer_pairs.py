"""Layers of two engines side by side: which kernels of one do the work of which kernels of the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cpd_edge.measure.layers import EngineLayer


@dataclass(frozen=True)
class Pair:
    """Layers of two engines that share ONNX nodes; one side is empty where the other engine has no such node.

    Attributes:
        nodes: the ONNX nodes, as they are matched; empty for layers of which no node is known.
        left, right: layers of either engine, in execution order.
    """

    nodes: tuple[str, ...]
    left: tuple[EngineLayer, ...]
    right: tuple[EngineLayer, ...]

    @property
    def change(self) -> str:
        """`same`, `changed`, `only left` or `only right`, by type, precision and shapes."""
        if not self.right:
            return "only left"
        if not self.left:
            return "only right"
        looks = [[(la.type, la.precision, la.outputs) for la in side] for side in (self.left, self.right)]
        return "same" if looks[0] == looks[1] else "changed"

    def to_json(self) -> dict[str, Any]:
        """As it stands in `--json`."""
        sides = {"left": self.left, "right": self.right}
        return {
            "nodes": list(self.nodes),
            "change": self.change,
            **{k: [la.to_json() for la in v] for k, v in sides.items()},
        }


def paired(
    left: Sequence[EngineLayer],
    right: Sequence[EngineLayer],
    left_names: Mapping[str, str] | None = None,
    right_names: Mapping[str, str] | None = None,
) -> tuple[Pair, ...]:
    """Rows in the left engine's order, what only the right one has behind, and layers without nodes last.

    Two engines fuse differently: a row holds every layer that is linked by shared nodes, directly or through others.

    Args:
        left, right: layers of the two engines.
        left_names, right_names: what each ONNX node is called in both engines, by its name in its own file. Exporters
            number nodes, and the numbers of two exports need not agree.
    """
    sides = [
        [(layer, tuple((names or {}).get(n, n) for n in layer.onnx)) for layer in layers]
        for layers, names in ((left, left_names), (right, right_names))
    ]
    root: dict[str, str] = {}
    for _, keys in (*sides[0], *sides[1]):
        for key in keys:
            _join(root, keys[0], key)
    groups: dict[str, tuple[list[EngineLayer], list[EngineLayer], dict[str, None]]] = {}
    for side, layers in enumerate(sides):
        for layer, keys in layers:
            group = groups.setdefault(_find(root, keys[0]) if keys else "", ([], [], {}))
            (group[1] if side else group[0]).append(layer)
            group[2].update(dict.fromkeys(keys))
    without = groups.pop("", None)
    ordered = [*groups.values(), *([without] if without else [])]
    return tuple(Pair(tuple(keys), tuple(a), tuple(b)) for a, b, keys in ordered)


def _find(root: dict[str, str], key: str) -> str:
    while root.get(key, key) != key:
        key = root[key]
    return key


def _join(root: dict[str, str], a: str, b: str) -> None:
    first, second = _find(root, a), _find(root, b)
    root.setdefault(first, first)
    root[second] = first


__all__ = ["Pair", "paired"]
