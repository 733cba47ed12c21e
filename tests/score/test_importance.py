"""Laws of scorers: Taylor is the slope of masking; every slot of a unit counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cpd_edge.errors import DataError, ModelError
from cpd_edge.layout import Leaf, Prod, Sum
from cpd_edge.score.importance import loss_changes, magnitude, taylor
from cpd_edge.types import Group, Groups, Slot


class Net(nn.Module):
    """conv (4 units `c`) -> batch norm -> concatenated with itself -> 2x2 positions flattened -> fc."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(8 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn(self.conv(x)))
        return self.fc(torch.cat([y, y], 1).flatten(1))


C = Leaf("c", 4)
READ = Slot("fc.weight", 1, Prod((Sum((C, C)), Leaf("place", 4))), reads=True)
MADE = tuple(
    Slot(name, 0, C, reads=False) for name in ("conv.weight", "conv.bias", "bn.weight", "bn.bias", "bn.running_mean")
)
GROUPS = Groups((Group("c", 4, (*MADE, READ)),), ())


def loss(outputs: object, targets: Tensor) -> Tensor:
    assert isinstance(outputs, Tensor)
    return F.cross_entropy(outputs, targets)


@pytest.fixture
def net() -> Net:
    return Net().double().eval()


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 2, 2, 2, dtype=torch.double), torch.arange(6) % 3


def masked_loss(net: Net, batch: tuple[Tensor, Tensor], unit: int, share: float) -> float:
    """The loss once the reading weights of a unit are scaled down by a share."""
    weight = net.fc.weight.detach().clone()
    weight.view(3, 2, 4, 4)[:, :, unit] *= 1 - share
    return loss(torch.func.functional_call(net, {"fc.weight": weight}, (batch[0],)), batch[1]).item()


def test_taylor_is_the_slope_of_masking(net: Net, batch: tuple[Tensor, Tensor]) -> None:
    """The first-order change equals a central finite difference of scaling the unit's readers, for every unit."""
    found = loss_changes(net, GROUPS, loss(net(batch[0]), batch[1]))["c"]
    step = 1e-4
    slopes = [(masked_loss(net, batch, u, -step) - masked_loss(net, batch, u, step)) / (2 * step) for u in range(4)]
    assert found == pytest.approx(np.array(slopes), rel=1e-6)


def test_taylor_is_half_the_mean_square_per_image(net: Net, batch: tuple[Tensor, Tensor]) -> None:
    """Over two batches it is the mean of n/2 times the squared change; the network is as it was."""
    net.train()
    images, targets = batch
    found = taylor(net, GROUPS, [(images[:3], targets[:3]), (images[3:], targets[3:]), batch], loss, 2).by_group["c"]
    assert net.training and net.fc.weight.grad is None
    net.eval()
    halves = [loss_changes(net, GROUPS, loss(net(images[s]), targets[s]))["c"] for s in (slice(0, 3), slice(3, 6))]
    assert found == pytest.approx(0.5 * 3 * (halves[0] ** 2 + halves[1] ** 2) / 2)


def test_a_dead_unit_scores_zero(net: Net, batch: tuple[Tensor, Tensor]) -> None:
    """A unit that nobody reads can go for nothing, and only that one."""
    with torch.no_grad():
        net.fc.weight.view(3, 2, 4, 4)[:, :, 2] = 0
    found = taylor(net, GROUPS, [batch], loss, 1).by_group["c"]
    assert found[2] == 0 and (np.delete(found, 2) > 0).all()


def test_equal_slots_sum(net: Net, batch: tuple[Tensor, Tensor]) -> None:
    """A slot that stands twice counts twice: the first-order change doubles."""
    value = loss(net(batch[0]), batch[1])
    twice = Groups((Group("c", 4, (READ, READ)),), ())
    once = loss_changes(net, GROUPS, loss(net(batch[0]), batch[1]))["c"]
    assert loss_changes(net, twice, value)["c"] == pytest.approx(2 * once)


def test_a_group_that_no_parameter_reads_uses_what_it_has(net: Net, batch: tuple[Tensor, Tensor]) -> None:
    """Without readers the makers' weights score, and the buffer among them is skipped."""
    groups = Groups((Group("c", 4, MADE),), ())
    found = loss_changes(net, groups, loss(net(batch[0]), batch[1]))["c"]
    gradients = torch.autograd.grad(loss(net(batch[0]), batch[1]), [net.conv.weight, net.bn.bias, net.bn.weight])
    by_hand = (
        (gradients[0] * net.conv.weight).sum((1, 2, 3)) + gradients[1] * net.bn.bias + gradients[2] * net.bn.weight
    )
    bias = torch.autograd.grad(loss(net(batch[0]), batch[1]), net.conv.bias)[0] * net.conv.bias
    assert found == pytest.approx((by_hand + bias).detach().numpy())


def test_magnitude_is_the_norm_over_a_units_weights(net: Net) -> None:
    """By hand: the root of the summed squares of a unit's filters and readers, over the group's mean."""
    found = magnitude(net.state_dict(), GROUPS).by_group["c"]
    squares = (net.conv.weight**2).sum((1, 2, 3)) + (net.fc.weight.view(3, 2, 4, 4) ** 2).sum((0, 1, 3))
    by_hand = squares.sqrt() / squares.sqrt().mean()
    assert found == pytest.approx(by_hand.detach().numpy()) and found.mean() == pytest.approx(1)


def test_an_unknown_tensor_is_named(net: Net, batch: tuple[Tensor, Tensor]) -> None:
    """Groups of another network are refused by the tensor's name."""
    groups = Groups((Group("c", 4, (Slot("conv9.weight", 0, C, reads=True),)),), ())
    with pytest.raises(ModelError, match=r"conv9\.weight"):
        magnitude(net.state_dict(), groups)
    with pytest.raises(ModelError, match=r"conv9\.weight"):
        taylor(net, groups, [batch], loss, 1)


def test_no_data_and_no_number_are_errors(net: Net, batch: tuple[Tensor, Tensor]) -> None:
    """No batch, or a loss that is no number, gives no score."""
    with pytest.raises(DataError, match="no batch"):
        taylor(net, GROUPS, [], loss, 3)
    with pytest.raises(DataError, match="the loss is nan"):
        taylor(net, GROUPS, [(batch[0] * float("nan"), batch[1])], loss, 1)
