"""Cut: the combed network without the units that go, or with them masked."""

from cpd_edge.cut.surgery import cut, expand, in_own_coordinates, mask

__all__ = ["cut", "expand", "in_own_coordinates", "mask"]
