"""What is drawn of a network: the nouns that the pipeline fills and the drawing lays out."""

from __future__ import annotations

from dataclasses import dataclass

from cpd_edge.layout import Layout
from cpd_edge.types import Groups


@dataclass(frozen=True)
class Row:
    """One layer: a weight with the vectors of its module, and the layers that only follow its units.

    Attributes:
        name: the layer's name in the network, dotted.
        kind: name of the call that computes with it.
        shape: the weight's shape.
        params: parameter elements of the row, counted once where tied.
        tensors: every parameter and buffer of the row, the weight first.
        reads: layout of each dim that the call sums over.
        makes: layout of each dim that comes out.
        carries: layout of each dim that keeps its place (norms, biases, depthwise weights).
        before, after: followers that share the row, named from here.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    params: int
    tensors: tuple[str, ...]
    reads: tuple[Layout, ...] = ()
    makes: tuple[Layout, ...] = ()
    carries: tuple[Layout, ...] = ()
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Branch:
    """Layers that can be left out as a whole: a group's name and the indices of its rows."""

    name: str
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Picture:
    """All that is drawn of a network.

    Attributes:
        title: the model's name.
        input_shape: shape of one input, without the batch.
        params: parameter elements of the network.
        prunable: share of them that some group can cut.
        rows: layers in graph order.
        groups: what can be removed, and what cannot.
        branches: runs of layers that can go whole.
    """

    title: str
    input_shape: tuple[int, ...]
    params: int
    prunable: float
    rows: tuple[Row, ...]
    groups: Groups
    branches: tuple[Branch, ...] = ()
