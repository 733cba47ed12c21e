"""Scorers: what it costs to lose a unit, by the size of its weights or by the loss that it holds down."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cpd_edge.errors import DataError, ModelError
from cpd_edge.gates import Gates, gated
from cpd_edge.layout import occupants
from cpd_edge.network import Combed
from cpd_edge.types import Group, Groups, Importance, Slot

Array = npt.NDArray[np.float64]


def magnitude(state: Mapping[str, Tensor], groups: Groups) -> Importance:
    """L2 norm of each unit's weights, divided by the mean norm of its group, so that groups can be compared.

    Weights are the group's slots in tensors of two or more dims; a group without such slots uses all it has. Batch-norm
    scales and statistics are left out, since their sizes say nothing beside a kernel's; so are branches, for good.

    Raises:
        ModelError: a slot names a tensor that the state lacks.
    """
    squares = {name: tensor.detach().double() ** 2 for name, tensor in state.items() if tensor.is_floating_point()}
    scores: dict[str, Array] = {}
    for group in groups.groups:
        if group.depth:
            continue
        weights = tuple(s for s in group.slots if s.tensor not in squares or squares[s.tensor].dim() > 1)
        norms = np.sqrt(unit_sums(squares, group, weights or group.slots))
        scores[group.name] = norms / norms.mean() if norms.any() else norms
    return Importance(scores, "magnitude")


def taylor(
    combed: Combed,
    loader: Iterable[tuple[Tensor, Tensor]],
    loss: Callable[[object, Tensor], Tensor],
    batches: int,
    rise: Callable[[object, object, Tensor], Tensor] | None = None,
    device: torch.device | None = None,
) -> Importance:
    """Expected rise of the loss when a unit is masked [nats per image].

    A gate stands wherever units are read. Its gradient is the first-order loss change of masking a unit; the square,
    times half the number of images, averaged over batches, is the diagonal-Fisher estimate of the second-order change,
    which is what is left at a trained optimum (Theis et al., 2018; Molchanov et al., 2019). Squares, not roots: they
    add up over units. A whole branch is too large a change for that: it is left out on a quarter of the batches, and
    the loss is seen to rise. The network runs in eval mode; its mode, weights and gradients are not touched.

    Args:
        combed: the network and its groups.
        loader: batches of images and targets.
        loss: of outputs and targets, a mean over images.
        batches: how many batches to take.
        rise: of the outputs with a branch left out, the outputs with it, and targets; the difference of `loss` if None.
        device: where to run; None leaves the network where it is.

    Raises:
        DataError: the loader gives no batch, or the loss is not finite.
    """
    gates = gated(combed)
    device = device or next((p.device for p in gates.network.parameters()), torch.device("cpu"))
    network = gates.network.to(device).eval().requires_grad_(False)
    factors = {name: factor.requires_grad_(True) for name, factor in gates.factors().items()}
    units = {g.name: g.units for g in combed.groups.groups if not g.depth}
    totals: dict[str, Array] = {name: np.zeros(n) for name, n in units.items()}
    rises: dict[str, list[float]] = {branch.name: [] for branch in combed.branches}
    count = 0
    for images, targets in islice(loader, batches):
        images, targets = images.to(device), targets.to(device)
        outputs = network(images)
        value = loss(outputs, targets)
        if not torch.isfinite(value):
            raise DataError(f"the loss is {value.item()} on batch {count}", hint="check the data and the weights")
        slopes = torch.autograd.grad(value, list(factors.values()), allow_unused=True) if factors else ()
        changes = {name: s for name, s in zip(factors, slopes, strict=True) if s is not None}
        for name, n in units.items():
            totals[name] += 0.5 * len(images) * gates.unit_sums(changes, name, n) ** 2
        if count % 4 == 0:
            for name, risen in rises.items():
                risen.append(_left_out(gates, name, images, targets, outputs, loss, rise))
        count += 1
    if not count:
        raise DataError("no batch to score units on", hint="a smaller batch, or more training images")
    scores = {name: total / count for name, total in totals.items()}
    depth = {g.name: np.asarray([np.mean(rises.get(g.name) or 0.0)]) for g in combed.groups.groups if g.depth}
    return Importance(scores | depth, "taylor")


@torch.no_grad()
def _left_out(
    gates: Gates,
    name: str,
    images: Tensor,
    targets: Tensor,
    outputs: object,
    loss: Callable[[object, Tensor], Tensor],
    rise: Callable[[object, object, Tensor], Tensor] | None,
) -> float:
    """How much the loss rises on a batch without a branch; never below 0."""
    with gates.closed({name: np.zeros(0, np.int64)}):
        without = gates.network(images)
    change = rise(without, outputs, targets) if rise else loss(without, targets) - loss(outputs, targets)
    return max(float(change), 0.0)


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
