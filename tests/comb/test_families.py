"""Real architectures: every group is found, and cutting equals masking."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cpd_edge.comb import comb
from cpd_edge.cut import cut, mask
from cpd_edge.layout import Keep
from cpd_edge.network import Combed

torchvision = pytest.importorskip("torchvision")

SHAPE = (3, 64, 64)
FAMILIES = {
    "resnet18": 12,
    "resnext50_32x4d": 53,
    "vgg11_bn": 10,
    "mobilenet_v2": 25,
    "mobilenet_v3_small": 27,
    "efficientnet_b0": 40,
    "densenet121": 120,
    "squeezenet1_1": 25,
}
"""Family to number of groups, counted by hand from the architecture's definition."""


def lively(model: nn.Module) -> nn.Module:
    """The model in float64 with statistics and zero-initialised parameters that matter."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.is_floating_point() and not tensor.any():
                tensor.normal_(0, 0.1, generator=generator)
    return model.double().eval()


def halves(combed: Combed) -> Keep:
    rng = np.random.default_rng(0)
    groups = combed.groups.groups
    return {g.name: np.sort(rng.permutation(g.units)[: max(1, g.units // 2)]) for g in groups}


@pytest.mark.parametrize("name", FAMILIES)
def test_half_of_every_group_equals_masking(name: str) -> None:
    """pruned == masked in float64, with the expected number of groups, all exact, and every parameter in reach."""
    combed = comb(lively(torchvision.models.get_model(name, weights=None)), SHAPE)
    small, masked = cut(combed, halves(combed)), mask(combed, halves(combed))
    x = combed.network.example()
    wanted = masked(x)
    assert (small(x) - wanted).abs().max() <= 1e-12 * wanted.abs().max()
    assert not torch.allclose(wanted, combed.network(x))
    assert sum(not g.depth for g in combed.groups.groups) == FAMILIES[name]
    assert all(g.exact for g in combed.groups.groups)
    reached = {slot.tensor for group in combed.groups.groups for slot in group.slots}
    sizes = {n: p.numel() for n, p in combed.network.named_parameters()}
    assert sum(sizes[n] for n in reached & set(sizes)) > 0.99 * sum(sizes.values())


def test_a_residual_stage_is_one_group() -> None:
    """Whatever is added to a stream shares its channels."""
    combed = comb(torchvision.models.resnet18(weights=None), SHAPE)
    stream = {slot.tensor for slot in combed.groups["conv1"].slots if not slot.reads}
    assert {"conv1.weight", "layer1.0.conv2.weight", "layer1.1.conv2.weight", "layer1.1.bn2.running_var"} <= stream


def test_flatten_spreads_a_channel_over_the_linear_layer() -> None:
    """A channel occupies one column of the classifier for each place of the map."""
    combed = comb(torchvision.models.vgg11_bn(weights=None), SHAPE)
    small = cut(combed, {"features.25": np.arange(100)})
    assert tuple(small.get_parameter("classifier.0.weight").shape) == (4096, 100 * 7 * 7)


def test_outputs_are_protected() -> None:
    """No group holds the classes."""
    combed = comb(torchvision.models.resnet18(weights=None), SHAPE)
    assert any(f.reason == "network output" and f.units == 1000 for f in combed.groups.frozen)
    assert tuple(cut(combed, halves(combed))(combed.network.example()).shape) == (2, 1000)
