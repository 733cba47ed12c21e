"""What a network loses when one of its regions is quantised and all others are not, on the task's own images."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np
import torch

from cpd_edge.deploy.onnx import export_onnx, finish
from cpd_edge.intake.tasks import Task
from cpd_edge.layout import Widths
from cpd_edge.measure.runtimes import MIXED, ON_CPU, model_runner
from cpd_edge.network import Network
from cpd_edge.pipeline.precision import calibration_images
from cpd_edge.pipeline.request import Request
from cpd_edge.pipeline.subject import Subject

WORK = 2e12
"""Multiply-accumulates of all regions together, after which images are spared: a minute of one core."""
FEWEST, MOST = 16, 128
"""Images, at least and at most."""
BATCH = 16


def sensitivities(
    subject: Subject, network: Network, widths: Widths, task: Task, request: Request
) -> dict[str, dict[str, float]]:
    """Loss of running each region in INT8 while the others stay in fp32, by `int8` and region [nats per image].

    The unit is that of the scores of units and branches, so that the solver may add them up: the divergence of the
    outputs from those of the network as it is (`fisher`), at the same temperature, or the rise of the task's loss
    (`taylor`); never below 0. Units are scored by the second-order change of that divergence, branches and regions by
    the divergence itself. Two regions side by side that are both quantised share the integers between them, which are
    counted for each: the sum is a cautious one. Computed by ONNX Runtime from the file that would be shipped, with
    ranges of the network's own values.

    Args:
        subject: the dense network; in one precision there is nothing to measure.
        network: what is scored, in its own coordinates.
        widths: of it, by group; of regions whose branch has gone nothing is said.
        task: gives the images.
        request: temperature, score and seed.
    """
    if subject.precision != MIXED or subject.quantiser is None:
        return {}
    model = subject.dense_onnx if network is subject.network else finish(export_onnx(network).model)
    quantiser = subject.quantiser.recalibrated(model, calibration_images(task, request.seed))
    images, targets = seen(task, request.seed, images_for(subject))
    plain = _outputs(bytes(model.SerializeToString()), images)
    found = {}
    for region in subject.weighted:
        nodes = subject.quantised(model, widths, {region.name: "int8"})
        if nodes:
            integers = _outputs(bytes(quantiser.ship(model, nodes).SerializeToString()), images)
            found[region.name] = rise(task, request)(integers, plain, targets)
    return {"int8": found}


def rise(task: Task, request: Request) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], float]:
    """How much worse some outputs are than others: in the unit, and at the temperature, of the request's scores."""

    def by_divergence(outputs: torch.Tensor, plain: torch.Tensor, targets: torch.Tensor) -> float:
        return max(float(task.divergence(outputs, plain, targets, request.temperature)), 0.0)

    def by_loss(outputs: torch.Tensor, plain: torch.Tensor, targets: torch.Tensor) -> float:
        return max(float(task.loss(outputs, targets) - task.loss(plain, targets)), 0.0)

    return by_loss if request.score == "taylor" else by_divergence


def images_for(subject: Subject) -> int:
    """How many images each region is judged by: fewer of a network of many multiply-accumulates."""
    work = sum(region.dense_macs for region in subject.regions) * (len(subject.weighted) + 1)
    return int(np.clip(WORK / max(work, 1), FEWEST, MOST))


def seen(task: Task, seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first images and targets of one seeded epoch of training."""
    images, targets, taken = list[torch.Tensor](), list[torch.Tensor](), 0
    for batch, wanted in task.train_loader(32, seed):
        images.append(batch)
        targets.append(wanted)
        taken += len(batch)
        if taken >= count:
            break
    return torch.cat(images)[:count], torch.cat(targets)[:count]


def _outputs(model: bytes, images: torch.Tensor) -> torch.Tensor:
    """What the file computes of images, on ONNX Runtime."""
    with contextlib.closing(model_runner(ON_CPU[0], model)) as runner:
        parts = [runner.outputs(part.numpy()) for part in images.split(BATCH)]
    return torch.from_numpy(np.concatenate(parts))


__all__ = ["images_for", "rise", "seen", "sensitivities"]
