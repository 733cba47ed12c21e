"""Training a student with its dense teacher beside it, or a network alone: one loop, resumable to the bit.

`distil` and `train` differ in one function, the loss of a batch. Both return the history, one row per report:
`{step, epoch, loss, learning_rate}`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cpd_edge.distil.memory import arrange, memory_format
from cpd_edge.distil.state import generators, load_state, restore_generators, save_state, seed_generators
from cpd_edge.errors import DataError, UsageError

Progress = Callable[[float, str], None]
History = list[dict[str, float]]

ROWS = 200
"""A history has about this many rows, however long the run."""

WARM_UP = 0.05
"""Share of the steps in which the learning rate rises."""

CLIP = 5.0
"""Highest norm of the gradient."""


class Learnable(Protocol):
    """What training needs of a task."""

    @property
    def name(self) -> str:
        """How the user named the data; a checkpoint belongs to it."""

    def train_loader(self, batch: int, seed: int, skip: int = 0) -> Any:
        """One epoch of batches, the same for the same seed, from batch `skip` on; its length is what is left."""

    def val_loader(self, batch: int) -> Any:
        """The validation batches in order."""

    def metric(self) -> Any:
        """A fresh accumulator."""

    def update(self, metric: Any, outputs: object, targets: Tensor) -> None:
        """Adds a batch of outputs to the accumulator."""

    def loss(self, outputs: object, targets: Tensor) -> Tensor:
        """Loss against the labels."""

    def distil_loss(
        self, student_out: object, teacher_out: object, targets: Tensor, temperature: float, alpha: float
    ) -> Tensor:
        """Loss against the labels and the teacher."""


def distil(
    student: nn.Module,
    teacher: nn.Module,
    task: Learnable,
    *,
    epochs: float,
    batch: int = 64,
    lr: float = 3e-3,
    temperature: float = 2.0,
    alpha: float = 0.7,
    weight_decay: float = 0.01,
    seed: int = 0,
    checkpoint: Path | None = None,
    save_every_s: float = 30.0,
    progress: Progress | None = None,
    device: torch.device | str | None = None,
) -> History:
    """Trains the student in place on the labels and on the teacher's outputs for the same, equally augmented images.

    The loss is `(1 - alpha) * cross-entropy + alpha * T^2 * KL(teacher || student)`. AdamW, cosine schedule after a
    warm-up, no decay on norms and biases. With a `checkpoint` path, a run that was interrupted goes on from there and
    ends with the same weights, bit for bit, as one that was not. The student is left in eval mode, on the CPU.

    Args:
        epochs: passes over the training data, may be a fraction.
        lr: highest learning rate.
        temperature: softens both outputs.
        alpha: share of the teacher in the loss, 0 to 1.
        device: where to train; None takes the best there is.
        progress: called after each step with the fraction done and a message.

    Raises:
        UsageError: settings out of range, or a loss that is not finite.
        StoreError: the checkpoint belongs to another run.
    """
    if not 0 <= alpha <= 1 or temperature <= 0:
        raise UsageError(f"alpha {alpha}, temperature {temperature}", hint="alpha lies in 0 to 1, temperature above 0")
    where = torch.device(device or best_device())
    teacher.eval()

    def loss_of(images: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            taught = teacher(images)
        return task.distil_loss(student(images), taught, targets, temperature, alpha)

    request = {"epochs": epochs, "batch": batch, "lr": lr, "temperature": temperature, "alpha": alpha}
    request |= {"weight_decay": weight_decay, "seed": seed, "data": task.name}
    return _fit(_Job((student, teacher), task, loss_of, request, where, checkpoint, save_every_s, progress))


def train(
    model: nn.Module,
    task: Learnable,
    *,
    epochs: float,
    batch: int = 64,
    lr: float = 5e-3,
    weight_decay: float = 0.01,
    seed: int = 0,
    checkpoint: Path | None = None,
    save_every_s: float = 30.0,
    progress: Progress | None = None,
    device: torch.device | str | None = None,
) -> History:
    """Trains a network in place on the labels alone; all else as in `distil`.

    Raises:
        UsageError: settings out of range, or a loss that is not finite.
        StoreError: the checkpoint belongs to another run.
    """
    request = {"epochs": epochs, "batch": batch, "lr": lr, "weight_decay": weight_decay}
    request |= {"seed": seed, "data": task.name}

    def loss_of(images: Tensor, targets: Tensor) -> Tensor:
        return task.loss(model(images), targets)

    where = torch.device(device or best_device())
    return _fit(_Job((model,), task, loss_of, request, where, checkpoint, save_every_s, progress))


@dataclass(frozen=True)
class _Job:
    """One training: what is trained (the first network), on what, how far, and where its state is kept."""

    networks: tuple[nn.Module, ...]
    task: Learnable
    loss_of: Callable[[Tensor, Tensor], Tensor]
    request: Mapping[str, Any]
    device: torch.device
    checkpoint: Path | None
    save_every_s: float
    progress: Progress | None

    @property
    def model(self) -> nn.Module:
        """The network that is trained."""
        return self.networks[0]

    @property
    def per_epoch(self) -> int:
        """Steps in an epoch."""
        return len(self.task.train_loader(self.request["batch"], self.request["seed"]))

    @property
    def total(self) -> int:
        """Steps in the whole training."""
        return max(1, round(self.request["epochs"] * self.per_epoch))


def _fit(job: _Job) -> History:
    """Runs a job from its start or its checkpoint to its end. The caller's random generators are left as they were."""
    lr, batch, epochs = job.request["lr"], job.request["batch"], job.request["epochs"]
    if batch < 1 or epochs <= 0 or lr <= 0:
        raise UsageError(f"batch {batch}, {epochs} epochs, learning rate {lr}", hint="all of them must be above 0")
    if job.per_epoch < 1:
        raise DataError(f"{job.task.name} has no training batch", hint="it holds no images")
    state = load_state(job.checkpoint, job.request) if job.checkpoint else None
    images, _ = next(iter(job.task.val_loader(2)))
    laid_out = memory_format(job.networks, images, job.device)
    for network in job.networks:
        arrange(network.to(job.device), laid_out)
    optimizer = torch.optim.AdamW(_decayed(job.model, job.request["weight_decay"]), lr=lr)
    if state:
        job.model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    history: History = state["history"] if state else []
    callers = generators()
    try:
        job.model.train()
        _steps(job, optimizer, history, state, laid_out)
    finally:
        restore_generators(callers)
        for network in job.networks:
            arrange(network.eval().to("cpu"), torch.contiguous_format)
    return history


def _steps(
    job: _Job,
    optimizer: torch.optim.Optimizer,
    history: History,
    state: Mapping[str, Any] | None,
    laid_out: torch.memory_format,
) -> None:
    """All steps that are left; appends to the history."""
    total, per_epoch, saved = job.total, job.per_epoch, time.monotonic()
    losses = [torch.tensor(value, device=job.device) for value in (state["losses"] if state else [])]
    for step, images, targets in _batches(job, state):
        rate = learning_rate(job.request["lr"], step, total)
        for group in optimizer.param_groups:
            group["lr"] = rate
        images = images.to(job.device).clone(memory_format=laid_out)
        loss = job.loss_of(images, targets.to(job.device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(job.model.parameters(), CLIP)
        optimizer.step()
        losses.append(loss.detach())
        done = step + 1
        if done % max(1, total // ROWS) == 0 or done == total:
            value, losses = torch.stack(losses).mean().item(), []
            if not math.isfinite(value):
                raise UsageError(f"the loss is {value} at step {done} of {total}", hint="give a lower --lr")
            epoch = round(done / per_epoch, 4)
            history.append({"step": done, "epoch": epoch, "loss": value, "learning_rate": rate})
        if job.checkpoint and (time.monotonic() - saved >= job.save_every_s or done == total):
            pending = [value.item() for value in losses]
            save_state(job.checkpoint, job.request, job.model, optimizer, done, history, pending)
            saved = time.monotonic()
        if job.progress:
            shown = f"loss {history[-1]['loss']:.3f}" if history else "first steps"
            job.progress(done / total, f"epoch {done / per_epoch:.1f} of {total / per_epoch:.1f}, {shown}")


def _batches(job: _Job, state: Mapping[str, Any] | None) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Every step's number and batch, from the checkpoint's position and generators on."""
    total, per_epoch = job.total, job.per_epoch
    first = step = state["step"] if state else 0
    while step < total:
        epoch, skip = divmod(step, per_epoch)
        seed = job.request["seed"] * 10_007 + epoch
        seed_generators(seed)
        batches = iter(job.task.train_loader(job.request["batch"], seed, skip))
        if state and skip and step == first:
            restore_generators(state["generators"])
        for images, targets in islice(batches, total - step):
            yield step, images, targets
            step += 1


def learning_rate(highest: float, step: int, total: int) -> float:
    """Rate at a step: linear warm-up over the first steps, then half a cosine towards zero."""
    warm = max(1, round(WARM_UP * total))
    if step < warm:
        return highest * (step + 1) / warm
    return highest * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def _decayed(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters in two groups: kernels and matrices decay, norms and biases do not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]


def best_device() -> torch.device:
    """CUDA where there is a GPU, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
