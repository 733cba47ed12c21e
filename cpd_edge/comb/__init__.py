"""Comb: resolve the layer dependencies of any architecture into groups that can be removed together."""

from cpd_edge.comb.groups import comb
from cpd_edge.comb.relate import Misaligned, Relation, register_rule

__all__ = ["Misaligned", "Relation", "comb", "register_rule"]
