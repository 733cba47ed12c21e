"""Prune: cut the combed network, or mask it."""

from cpd_edge.prune.surgery import cut, expand, mask

__all__ = ["cut", "expand", "mask"]
