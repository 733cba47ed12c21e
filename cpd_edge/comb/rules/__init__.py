"""What each family of operations says about its dims. One short rule a family, no layer types.

To add one for a custom operator, see `register_rule`. In every rule `r` is the walk's `Relation`, `n` the call.
"""

from cpd_edge.comb.rules import contracting, creating, elementwise, indexing, shaping, statistical

__all__ = ["contracting", "creating", "elementwise", "indexing", "shaping", "statistical"]
