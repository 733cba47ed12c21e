"""The metric of a network, and batch-norm statistics that belong to its weights."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from cpd_edge.distil.state import generators, restore_generators
from cpd_edge.distil.train import Learnable, Progress, best_device
from cpd_edge.errors import DataError

_STATISTICS = ("running_mean", "running_var")
"""How the buffers of a norm end."""


def evaluate(
    model: nn.Module,
    task: Learnable,
    *,
    batch: int = 128,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> Any:
    """The task's metric accumulator over all validation images, in order; the model's mode stays as it was.

    Args:
        batch: images at a time.
        device: where to run; None takes the best there is. The model comes back to the CPU.
        progress: called after each batch with the fraction done and the metric so far.
    """
    where = torch.device(device or best_device())
    metric, loader, mode = task.metric(), task.val_loader(batch), model.training
    model.to(where).eval()
    try:
        with torch.no_grad():
            for done, (images, targets) in enumerate(loader, 1):
                task.update(metric, model(images.to(where)), targets.to(where))
                if progress:
                    progress(done / len(loader), f"{done * batch} images")
    finally:
        model.train(mode).to("cpu")
    return metric


def recalibrate(
    student: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    batches: int,
    device: torch.device | str | None = None,
) -> None:
    """Replaces batch-norm running statistics by those of the given batches, pooled over them.

    Relies on nothing but `train()` and buffers named `running_mean` and `running_var`, so it works on exported graphs.
    A training-mode forward moves a buffer to `(1 - m) * old + m * found`: from 0 it gives `m * found`, and a second
    forward of the first batch from 1 gives m. Weights, other buffers, random generators and the mode stay as they were.
    Batches should be of equal size. It runs on `device`, the best there is if None, and the student ends on the CPU.

    Raises:
        DataError: the loader gives no batch.
    """
    before = {name: b.clone() for name, b in student.named_buffers()}
    if not any(name.endswith(_STATISTICS) for name in before):
        return
    where, mode = torch.device(device or best_device()), student.training
    student.to(where).train()
    try:
        with torch.no_grad(), torch.random.fork_rng([where] if where.type == "cuda" else []):
            pooled = _pooled(student, loader, batches, before, where)
    finally:
        student.train(mode).to("cpu")
        _restore(student, before)
    _restore(student, pooled)


def _pooled(
    student: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    batches: int,
    before: dict[str, Tensor],
    where: torch.device,
) -> dict[str, Tensor]:
    """Mean and variance over all batches, of the norms that ran."""
    found, momentum = list[dict[str, Tensor]](), dict[str, Tensor]()
    for images, _ in islice(loader, batches):
        images = images.to(where)
        found.append(_forward_from(0.0, student, images, before))
        if not momentum:
            moved = _forward_from(1.0, student, images, before)
            momentum = {name: 1 - (moved[name] - found[0][name]).median() for name in moved}
    if not found:
        raise DataError("no batch to take statistics from", hint="a smaller batch, or more training images")
    ran = [name for name, share in momentum.items() if share > 1e-6]
    seen = {name: torch.stack([f[name] for f in found]) / momentum[name] for name in ran}
    out = {name: values.mean(0) for name, values in seen.items()}
    for name in ran:
        means = name.removesuffix("running_var") + "running_mean"
        if name.endswith("running_var") and means in seen:
            out[name] = out[name] + seen[means].var(0, correction=0)
    return out


def _forward_from(start: float, student: nn.Module, images: Tensor, before: dict[str, Tensor]) -> dict[str, Tensor]:
    """Statistics, in double, that one forward leaves when they start from a constant."""
    _restore(student, before)
    statistics = {name: b for name, b in student.named_buffers() if name.endswith(_STATISTICS)}
    for buffer in statistics.values():
        buffer.fill_(start)
    state = generators()
    student(images)
    restore_generators(state)
    return {name: buffer.cpu().double() for name, buffer in statistics.items()}


def _restore(student: nn.Module, values: dict[str, Tensor]) -> None:
    for name, buffer in student.named_buffers():
        if name in values:
            buffer.copy_(values[name])
