"""Cut: the combed network without the units that go, or with them masked."""

from cpd_edge.cut.surgery import cut, expand, mask

__all__ = ["cut", "expand", "mask"]
