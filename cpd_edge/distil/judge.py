"""The metric of a network, and batch-norm statistics that belong to its weights."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from cpd_edge.distil.train import Learnable, Progress, best_device
from cpd_edge.errors import DataError


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


def recalibrate(student: nn.Module, loader: Iterable[tuple[Tensor, Tensor]], batches: int) -> None:
    """Replaces batch-norm running statistics by those of the given batches, pooled over them.

    Relies on nothing but `train()` and buffers named `running_mean` and `running_var`, so it works on exported graphs.
    A training-mode forward moves a buffer to `(1 - m) * old + m * found`: from 0 it gives `m * found`, and a second
    forward of the first batch from 1 gives m. Weights, other buffers, random generators and the mode stay as they were.
    Batches should be of equal size.

    Raises:
        DataError: the loader gives no batch.
    """
    buffers = {n: b for n, b in student.named_buffers() if n.endswith(("running_mean", "running_var"))}
    if not buffers:
        return
    before = {name: b.clone() for name, b in student.named_buffers()}
    mode, found, momentum = student.training, [], {}
    where = next(iter(buffers.values())).device
    devices = [where] if where.type == "cuda" else []
    student.train()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            for images, _ in islice(loader, batches):
                images = images.to(where)
                found.append(_forward_from(0.0, student, images, before, buffers))
                if not momentum:
                    moved = _forward_from(1.0, student, images, before, buffers)
                    momentum = {n: 1 - (moved[n] - found[0][n]).median() for n in buffers}
    finally:
        student.train(mode)
        _restore(student, before)
    if not found:
        raise DataError("no batch to take statistics from", hint="a smaller batch, or more training images")
    for name, buffer in buffers.items():
        if momentum[name] > 1e-6:  # else its norm did not run
            values = torch.stack([f[name] for f in found]) / momentum[name]
            buffer.copy_(values.mean(0))
            partner = name.removesuffix("running_var") + "running_mean"
            if name.endswith("running_var") and partner in buffers:
                means = torch.stack([f[partner] for f in found]) / momentum[partner]
                buffer.add_(means.var(0, correction=0))


def _forward_from(
    start: float, student: nn.Module, images: Tensor, before: dict[str, Tensor], buffers: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Statistics, in double, that one forward leaves when they start from a constant."""
    _restore(student, before)
    for buffer in buffers.values():
        buffer.fill_(start)
    state = torch.get_rng_state()
    student(images)
    torch.set_rng_state(state)
    return {name: buffer.double() for name, buffer in buffers.items()}


def _restore(student: nn.Module, before: dict[str, Tensor]) -> None:
    for name, buffer in student.named_buffers():
        buffer.copy_(before[name])
