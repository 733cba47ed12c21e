"""Scorers: each one loop over slots. They differ only in the number that stands at each parameter element."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cpd_edge.errors import DataError, ModelError
from cpd_edge.layout import occupants
from cpd_edge.types import Group, Groups, Importance, Slot

Array = npt.NDArray[np.float64]


def magnitude(state: Mapping[str, Tensor], groups: Groups) -> Importance:
    """L2 norm of each unit's weights, divided by the mean norm of its group, so that groups can be compared.

    Weights are the group's slots in tensors of two or more dims; a group without such slots uses all it has. Batch-norm
    scales and statistics are left out, since their sizes say nothing beside a kernel's.

    Raises:
        ModelError: a slot names a tensor that the state lacks.
    """
    squares = {name: tensor.detach().double() ** 2 for name, tensor in state.items() if tensor.is_floating_point()}
    scores: dict[str, Array] = {}
    for group in groups.groups:
        weights = tuple(s for s in group.slots if s.tensor not in squares or squares[s.tensor].dim() > 1)
        norms = np.sqrt(unit_sums(squares, group, weights or group.slots))
        scores[group.name] = norms / norms.mean() if norms.any() else norms
    return Importance(scores, "magnitude")


def taylor(
    network: nn.Module,
    groups: Groups,
    loader: Iterable[tuple[Tensor, Tensor]],
    loss: Callable[[object, Tensor], Tensor],
    batches: int,
) -> Importance:
    """Expected rise of the loss when a unit is masked [nats per image], from first derivatives alone.

    Each batch gives the first-order loss change of masking a unit (`loss_changes`); its square, times half the number
    of images, averaged over batches, is the diagonal-Fisher estimate of the second-order change, which is what is left
    at a trained optimum (Theis et al., 2018; Molchanov et al., 2019). Squares, not roots: they add up over units. The
    network runs in eval mode and keeps its mode and its gradients.

    Raises:
        DataError: the loader gives no batch, or the loss is not finite.
        ModelError: a slot names a tensor that the network lacks.
    """
    totals: dict[str, Array] = {g.name: np.zeros(g.units) for g in groups.groups}
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    mode, count = network.training, 0
    network.eval()
    try:
        for images, targets in islice(loader, batches):
            value = loss(network(images.to(device)), targets.to(device))
            if not torch.isfinite(value):
                raise DataError(f"the loss is {value.item()} on batch {count}", hint="check the data and the weights")
            for name, change in loss_changes(network, groups, value).items():
                totals[name] += 0.5 * len(images) * change**2
            count += 1
    finally:
        network.train(mode)
    if not count:
        raise DataError("no batch to score units on", hint="a smaller batch, or more training images")
    return Importance({name: total / count for name, total in totals.items()}, "taylor")


def loss_changes(network: nn.Module, groups: Groups, loss: Tensor) -> dict[str, Array]:
    """First-order fall of `loss` when each unit is masked, by group `[units]`.

    It is the sum of weight times gradient over the weights that read the unit: one backward, one pass over slots. A
    group that no parameter reads uses all its slots. Buffers have no gradient and are skipped.

    Raises:
        ModelError: a slot names a tensor that the network lacks.
    """
    parameters = dict(network.named_parameters(remove_duplicate=False))
    buffers = {name for name, _ in network.named_buffers(remove_duplicate=False)}
    wanted = {s.tensor: parameters[s.tensor] for g in groups.groups for s in g.slots if s.tensor in parameters}
    leaves = list({id(p): p for p in wanted.values() if p.requires_grad}.values())
    gradients = dict(
        zip(map(id, leaves), torch.autograd.grad(loss, leaves, allow_unused=True) if leaves else (), strict=True)
    )
    products: dict[str, Tensor] = {}
    for name, parameter in wanted.items():
        gradient = gradients.get(id(parameter))
        products[name] = torch.zeros_like(parameter) if gradient is None else parameter.detach() * gradient
    out: dict[str, Array] = {}
    for group in groups.groups:
        slots = tuple(s for s in group.slots if s.tensor not in buffers)
        reading = tuple(s for s in slots if s.reads)
        out[group.name] = unit_sums(products, group, reading or slots)
    return out


def unit_sums(values: Mapping[str, Tensor], group: Group, slots: Iterable[Slot]) -> Array:
    """Sum of `values` over the elements that each unit occupies in the slots, `[units]`.

    Raises:
        ModelError: a slot names a tensor that is not among the values.
    """
    total = np.zeros(group.units)
    for slot in slots:
        if slot.tensor not in values:
            raise ModelError(f"group {group.name} occupies {slot.tensor}, which the network does not have")
        where = occupants(slot.layout, group.name)
        if where.size:
            rows = values[slot.tensor].double().movedim(slot.dim, 0)
            total += rows.reshape(len(rows), -1).sum(1).cpu().numpy()[where].sum(1)
    return total
