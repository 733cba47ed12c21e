"""The groups drawn over the network: one self-contained SVG, a pure function of a `Picture`.

    picture  →  rails (lanes, colours), outline (modules)  →  sheet (places)  →  draw (SVG text)

Reads from left to right: the module tree, the weight, its parameters, what the layer reads and what it
makes, then one vertical rail a group with a mark in every row that touches it. Hovering tells the rest.
"""

from cpd_edge.report.drawing.draw import draw
from cpd_edge.report.drawing.picture import Branch, Picture, Row

__all__ = ["Branch", "Picture", "Row", "draw"]
