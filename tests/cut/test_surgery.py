"""Cuts: what is refused, and that nothing but the cut changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cpd_edge.comb import comb
from cpd_edge.cut import cut, expand, mask
from cpd_edge.network import Combed


@pytest.fixture
def combed() -> Combed:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten())
    return comb(model, (3, 6, 6))


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        ({"nobody": [0]}, "no group is called"),
        ({"0": []}, "at least one"),
        ({"0": [2, 1]}, "must ascend"),
        ({"0": [1, 1]}, "must ascend"),
        ({"0": [0, 6]}, "must ascend within 0..5"),
        ({"0": [-1, 2]}, "must ascend"),
    ],
)
def test_a_keep_that_does_not_fit_is_refused(combed: Combed, keep: dict[str, list[int]], said: str) -> None:
    """Wrong units are an error, not another network."""
    with pytest.raises(ValueError, match=said):
        cut(combed, {name: np.array(units, np.int64) for name, units in keep.items()})


def test_a_cut_slices_every_slot(combed: Combed) -> None:
    """Weights, biases and running statistics keep exactly the kept units' values."""
    small, dense = cut(combed, {"0": np.array([1, 4])}).state_dict(), combed.network.state_dict()
    assert torch.equal(small["0.weight"], dense["0.weight"][[1, 4]])
    assert torch.equal(small["1.running_var"], dense["1.running_var"][[1, 4]])
    assert torch.equal(small["3.weight"], dense["3.weight"][:, [1, 4]])
    assert torch.equal(small["3.bias"], dense["3.bias"])


def test_a_cut_leaves_the_dense_network_alone(combed: Combed) -> None:
    """The dense network is the teacher: nobody changes it."""
    before = {name: t.clone() for name, t in combed.network.state_dict().items()}
    small = cut(combed, {"0": np.array([0])})
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.add_(1)
    assert all(torch.equal(t, before[name]) for name, t in combed.network.state_dict().items())


def test_expanding_puts_trained_values_where_they_came_from(combed: Combed) -> None:
    """Original coordinates: kept units carry the student's values, the others the dense network's."""
    keep = {"0": np.array([1, 4])}
    small = cut(combed, keep)
    with torch.no_grad():
        small.get_parameter("0.weight").fill_(7)
    whole = expand(combed, keep, small)
    assert (whole["0.weight"][[1, 4]] == 7).all()
    assert torch.equal(whole["0.weight"][[0, 2, 3, 5]], combed.network.state_dict()["0.weight"][[0, 2, 3, 5]])


def test_a_cut_network_trains(combed: Combed) -> None:
    """Gradients reach every parameter of the cut network."""
    small = cut(combed, {"0": np.array([1, 4])}).train()
    small(small.example(4)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in small.parameters())


def test_a_cut_network_can_be_combed_again(combed: Combed) -> None:
    """The cut network's groups are the dense one's, at the widths that were kept."""
    again = comb(cut(combed, {"0": np.array([1, 4, 5])}), (3, 6, 6))
    assert again.groups.widths == {**combed.groups.widths, "0": 3}


class Tied(nn.Module):
    """One kernel under two names, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
        self.two.weight = self.one.weight
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.two(self.one(self.stem(x))).mean((2, 3)))


def test_a_tied_parameter_stays_tied() -> None:
    """Two names of one tensor are one parameter: counted once, cut once, trained once."""
    combed = comb(Tied().double(), (3, 4, 4))
    assert [g.name for g in combed.groups.groups if not g.depth] == ["stem"]
    small = cut(combed, {"stem": np.array([0, 3])})
    assert small.get_parameter("one.weight") is small.get_parameter("two.weight")
    x = small.example(3)
    assert torch.allclose(small(x), mask(combed, {"stem": np.array([0, 3])})(x), atol=1e-12)
