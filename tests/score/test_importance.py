"""Laws of scorers: a gate's slope is the slope of masking; every reader of a unit counts; a branch is left out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cpd_edge.comb import comb
from cpd_edge.cut import cut
from cpd_edge.errors import DataError, ModelError
from cpd_edge.gates import gated
from cpd_edge.layout import Leaf
from cpd_edge.network import Combed
from cpd_edge.score.importance import magnitude, taylor
from cpd_edge.types import Group, Groups, Slot


class Net(nn.Module):
    """conv (4 units) -> batch norm -> a residual branch -> twice -> 2x2 positions flattened -> fc."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.branch = nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(8 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn(self.conv(x)))
        y = y + self.branch(y)
        return self.fc(torch.cat([y, y], 1).flatten(1))


class Attention(nn.Module):
    """One head of 4: queries and keys meet in a product of activations, which no weight reads."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(5, 4) for _ in range(3))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        return self.head(((q @ k.transpose(1, 2)).softmax(-1) @ v).mean(1))


def loss(outputs: object, targets: Tensor) -> Tensor:
    assert isinstance(outputs, Tensor)
    return F.cross_entropy(outputs, targets)


@pytest.fixture
def combed() -> Combed:
    return comb(Net().double(), (2, 2, 2))


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 2, 2, 2, dtype=torch.double), torch.arange(6) % 3


def scaled_loss(combed: Combed, batch: tuple[Tensor, Tensor], group: str, unit: int, share: float) -> float:
    """The loss once every reader sees a unit scaled down by a share."""
    gates = gated(combed)
    with torch.no_grad():
        for name, factor in gates.factors().items():
            keep = {group: np.delete(np.arange(combed.groups[group].units), unit)}
            shut = gated(combed)
            shut.close(keep)
            factor -= share * (factor - shut.factors()[name])
        return loss(gates.network(batch[0]), batch[1]).item()


@pytest.mark.parametrize(("net", "shape", "group"), [(Net, (2, 2, 2), "conv"), (Attention, (3, 5), "q")])
def test_the_score_is_the_slope_of_masking(net: type[nn.Module], shape: tuple[int, ...], group: str) -> None:
    """It is half of n times the squared central difference of scaling a unit where it is read, for every unit."""
    combed = comb(net().double(), shape)
    batch = torch.randn(6, *shape, dtype=torch.double), torch.arange(6) % 3
    found = taylor(combed, [batch], loss, 1).by_group[group]
    step = 1e-4
    slopes = [
        (scaled_loss(combed, batch, group, u, -step) - scaled_loss(combed, batch, group, u, step)) / (2 * step)
        for u in range(4)
    ]
    assert found == pytest.approx(0.5 * 6 * np.array(slopes) ** 2, rel=1e-5)


def test_the_score_is_a_mean_over_batches(combed: Combed, batch: tuple[Tensor, Tensor]) -> None:
    """Over two batches it is the mean of theirs; the network keeps its mode and its gradients."""
    images, targets = batch
    halves = [(images[:3], targets[:3]), (images[3:], targets[3:])]
    combed.network.train()
    both = taylor(combed, [*halves, batch], loss, 2).by_group["conv"]
    assert combed.network.training and all(p.grad is None and p.requires_grad for p in combed.network.parameters())
    alone = [taylor(combed, [half], loss, 1).by_group["conv"] for half in halves]
    assert both == pytest.approx((alone[0] + alone[1]) / 2)


def test_a_branch_is_left_out(combed: Combed, batch: tuple[Tensor, Tensor]) -> None:
    """What a branch is worth is how much the loss rises without it, never less than nothing."""
    (branch,) = combed.branches
    without = cut(combed, {branch.name: np.zeros(0, np.int64)})
    with torch.no_grad():
        rise = loss(without(batch[0]), batch[1]) - loss(combed.network(batch[0]), batch[1])
    found = taylor(combed, [batch], loss, 1).by_group[branch.name]
    assert found == pytest.approx([max(rise.item(), 0.0)])
    assert taylor(combed, [batch], loss, 1, lambda a, b, t: torch.tensor(-1.0)).by_group[branch.name] == [0.0]


def test_a_dead_unit_scores_zero(combed: Combed, batch: tuple[Tensor, Tensor]) -> None:
    """A unit that nobody reads can go for nothing, and only that one."""
    with torch.no_grad():
        state = dict(combed.network.named_parameters())
        state["fc.weight"].view(3, 2, 4, 4)[:, :, 2] = 0
        state["branch.weight"][:, 2] = 0
        state["branch.weight"][2] = 0
    found = taylor(combed, [batch], loss, 1).by_group["conv"]
    assert found[2] == 0 and (np.delete(found, 2) > 0).all()


def test_magnitude_is_the_norm_over_a_units_weights(combed: Combed) -> None:
    """By hand: the root of the summed squares of a unit's filters and readers, over the group's mean; no branches."""
    state = combed.network.state_dict()
    found = magnitude(state, combed.groups).by_group
    squares = (state["conv.weight"] ** 2).sum((1, 2, 3)) + (state["fc.weight"].view(3, 2, 4, 4) ** 2).sum((0, 1, 3))
    squares += (state["branch.weight"] ** 2).sum((0, 2, 3)) + (state["branch.weight"] ** 2).sum((1, 2, 3))
    by_hand = squares.sqrt() / squares.sqrt().mean()
    assert found.keys() == {"conv"}
    assert found["conv"] == pytest.approx(by_hand.numpy()) and found["conv"].mean() == pytest.approx(1)


def test_an_unknown_tensor_is_named(combed: Combed) -> None:
    """Groups of another network are refused by the tensor's name."""
    groups = Groups((Group("c", 4, (Slot("conv9.weight", 0, Leaf("c", 4), reads=True),)),), ())
    with pytest.raises(ModelError, match=r"conv9\.weight"):
        magnitude(combed.network.state_dict(), groups)


def test_no_data_and_no_number_are_errors(combed: Combed, batch: tuple[Tensor, Tensor]) -> None:
    """No batch, or a loss that is no number, gives no score."""
    with pytest.raises(DataError, match="no batch"):
        taylor(combed, [], loss, 3)
    with pytest.raises(DataError, match="the loss is nan"):
        taylor(combed, [(batch[0] * float("nan"), batch[1])], loss, 1)
