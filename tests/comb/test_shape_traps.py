"""Where dims are not what they seem: each of these networks was once cut wrongly, or not at all."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cpd_edge.comb import comb
from cpd_edge.cut import cut, mask
from cpd_edge.network import Combed

SHAPE = (3, 8, 8)
C = 6


class Net(nn.Module):
    """Two convolutions of six channels on one image, `between` them and the head; the head reads what comes."""

    def __init__(self, between: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, C, 3, padding=1), nn.Conv2d(3, C, 3, padding=1)
        self.between = between
        with torch.no_grad():
            width = between(torch.ones(2, C, 8, 8), torch.ones(2, C, 8, 8)).flatten(1).shape[1]
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self.one(x), self.two(x)).flatten(1))


def tokens(x: Tensor) -> Tensor:
    """Positions before channels `[b, h * w, c]`."""
    return x.flatten(2).transpose(1, 2)


TRAPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "pooled over channels": lambda a, b: F.max_pool1d(tokens(a), 2),
    "convolved over channels": lambda a, b: F.conv1d(tokens(a), torch.ones(2, 64, 3).to(a)),
    "pooled without a batch": lambda a, b: F.avg_pool1d(a.mean((2, 3)), 3, stride=1, padding=1),
    "shuffled from channels to space": lambda a, b: F.pixel_shuffle(tokens(a).unsqueeze(3), 2),
    "sorted": lambda a, b: a.flatten(2).sort(2)[0],
    "rolled as a whole": lambda a, b: torch.roll(a[:1].expand_as(a), 1),
    "shifted by padding": lambda a, b: F.pad(a, (0, 0, 0, 0, 1, -1)),
    "expanded as another": lambda a, b: a.mean((2, 3), keepdim=True).expand_as(b),
    "viewed as another": lambda a, b: a.flatten(1).view_as(b),
    "clamped by another": lambda a, b: torch.clamp(a, min=b),
    "squeezed": lambda a, b: a.mean((2, 3), keepdim=True).squeeze((1, 2, 3)),
    "squeezed of all it can": lambda a, b: a.mean((2, 3), keepdim=True).squeeze(),
    "sliced over the batch": lambda a, b: a + torch.cat([a, b], 0)[1:].sum(0, keepdim=True),
    "sliced to nothing": lambda a, b: torch.cat([a, b[:, C:]], 1),
}


def widths(combed: Combed) -> list[dict[str, np.ndarray[tuple[int, ...], np.dtype[np.int64]]]]:
    """One unit of every group, and two of six of each group alone."""
    alone = [{g.name: np.array([0, g.units - 1])} for g in combed.groups.groups]
    return [{g.name: np.array([g.units - 1]) for g in combed.groups.groups}, *alone]


@pytest.mark.parametrize("name", TRAPS)
def test_no_shape_is_mistaken_for_another(name: str) -> None:
    """Whatever comb lets go, the cut network runs at any batch size and equals the masked one."""
    combed = comb(Net(TRAPS[name]).double(), SHAPE)
    for keep in widths(combed):
        for batch in (1, 2, 5):
            x = combed.network.example(batch)
            torch.testing.assert_close(cut(combed, keep)(x), mask(combed, keep)(x), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "name", ["expanded as another", "viewed as another", "clamped by another", "squeezed of all it can"]
)
def test_channels_that_only_pass_stay_prunable(name: str) -> None:
    """Care costs nothing where the channels are plain."""
    combed = comb(Net(TRAPS[name]), SHAPE)
    assert [g.name for g in combed.groups.groups if g.units == C] != []


COUNTED = range(34, 40)


class Named(nn.Module):
    """Layers with names that count like an axis's own."""

    def __init__(self) -> None:
        super().__init__()
        for i in COUNTED:
            self.add_module(f"a{i}", nn.Conv2d(3 if i == COUNTED[0] else C, C, 3, padding=1))
        self.head = nn.Linear(C, 3)

    def forward(self, x: Tensor) -> Tensor:
        for i in COUNTED:
            x = getattr(self, f"a{i}")(x)
        return self.head(x.mean((2, 3)))


def test_no_layer_is_mistaken_for_an_axis() -> None:
    """Groups are named after layers; an axis without a layer has a name that no layer can have."""
    assert [g.name for g in comb(Named(), SHAPE).groups.groups] == [f"a{i}" for i in COUNTED]


class Transposed(nn.Module):
    """A weight that is read through a transposition: `x @ w.t()`."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.weight = nn.Parameter(torch.randn(5, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.first(x)) @ self.weight.t()


def test_a_transposed_weight_still_reads() -> None:
    """Masking zeroes the columns of the weight, not of its transpose, and equals cutting."""
    combed = comb(Transposed().double(), (6,))
    keep = {"first": np.array([1, 4, 5])}
    x = combed.network.example()
    assert torch.allclose(cut(combed, keep)(x), mask(combed, keep)(x), atol=1e-12)
    assert ("weight", 1, True) in {(s.tensor, s.dim, s.reads) for s in combed.groups["first"].slots}
