"""Recurrent cells, attention along the edges of a graph, and mixtures of experts are cut like they are masked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from corpus import described, lively, wrong
from torch import Tensor, nn

from cpd_edge.comb import comb
from cpd_edge.network import Combed

pytestmark = pytest.mark.filterwarnings("ignore:The tensor attributes")  # recurrent modules hold parameters twice


class Tagger(nn.Module):
    """A cell over steps `[batch, steps, features]`, then a head over the sum of its outputs and its last states."""

    def __init__(self, cell: type[nn.RNNBase], batch_first: bool, **options: Any) -> None:
        super().__init__()
        self.given = nn.Linear(4, 5)
        self.cell = cell(5, 3, num_layers=2, bidirectional=True, batch_first=batch_first, **options)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.given(x))
        out, last = self.cell(x if self.cell.batch_first else x.transpose(0, 1))
        last = last[0] if isinstance(last, tuple) else last
        out = out if self.cell.batch_first else out.transpose(0, 1)
        return self.head(out.sum(1) + torch.cat([last[-2], last[-1]], -1))


class GraphAttention(nn.Module):
    """Nodes `[batch, nodes, features]` gather from their neighbours, by a softmax over the edges that come in."""

    def __init__(self, c_in: int, heads: int, width: int, edges: Tensor) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.lift = nn.Linear(c_in, heads * width, bias=False)
        self.source, self.target = nn.Parameter(torch.zeros(heads, width)), nn.Parameter(torch.zeros(heads, width))
        self.register_buffer("edge_index", edges)

    def forward(self, x: Tensor) -> Tensor:
        start, end = self.edge_index[0], self.edge_index[1]
        h = self.lift(x).view(x.shape[0], x.shape[1], self.heads, self.width)
        score = (h * self.source).sum(-1)[:, start] + (h * self.target).sum(-1)[:, end]
        weight = F.leaky_relu(score, 0.2).exp()
        total = torch.zeros_like(h.sum(-1)).index_add(1, end, weight)
        share = weight / total.index_select(1, end)
        message = h.index_select(1, start) * share.unsqueeze(-1)
        where = end.view(1, -1, 1, 1).expand(x.shape[0], -1, self.heads, self.width)
        return torch.zeros_like(h).scatter_add(1, where, message).flatten(2)


class Graph(nn.Module):
    """Two layers of graph attention; the nodes are summed up."""

    def __init__(self) -> None:
        super().__init__()
        edges = torch.tensor([[0, 1, 2, 3, 4, 1, 2], [1, 2, 3, 4, 0, 0, 4]])
        self.first, self.second = GraphAttention(3, 2, 4, edges), GraphAttention(8, 3, 2, edges)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(F.elu(self.first(x))).sum(1))


class Experts(nn.Module):
    """The two best of four experts, each as wide inside as the others."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate = nn.Linear(3, 6), nn.Linear(6, 4)
        self.up, self.down = nn.Parameter(torch.zeros(4, 6, 8)), nn.Parameter(torch.zeros(4, 8, 6))
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        value, chosen = self.gate(x).topk(2, -1)
        weight = torch.zeros_like(self.gate(x)).scatter(-1, chosen, value.softmax(-1))
        inside = F.gelu(torch.einsum("bi,eij->bej", x, self.up))
        return self.head(x + torch.einsum("be,bej,ejo->bo", weight, inside, self.down))


def exact(combed: Combed) -> bool:
    return all(g.exact for g in combed.groups.groups)


@pytest.mark.parametrize(
    ("cell", "batch_first", "options"), [(nn.LSTM, True, {}), (nn.LSTM, False, {}), (nn.GRU, True, {"bias": False})]
)
def test_recurrent_cells(cell: type[nn.RNNBase], batch_first: bool, options: dict[str, Any]) -> None:
    """Hidden units are one group over both layers and directions; steps and gates stay."""
    combed = comb(lively(Tagger(cell, batch_first, **options)), (2, 4))
    assert wrong(combed) == ""
    assert sorted(g.units for g in combed.groups.groups) == [3, 5]
    assert exact(combed)


def test_graph_attention() -> None:
    """Heads and their widths are groups; nodes and edges stay."""
    combed = comb(lively(Graph()), (5, 3))
    assert wrong(combed) == ""
    assert described(combed) == "first:2 first:2:4 second:3 second:2:2"


def test_mixtures_of_experts() -> None:
    """The stem and the experts' common width are groups; the experts, chosen by their scores, stay."""
    combed = comb(lively(Experts()), (3,))
    assert wrong(combed) == ""
    assert described(combed) == "down:6 up:2:8"
