"""A network, a runtime and a device become a table: latency of every fused region over widths, in context."""
