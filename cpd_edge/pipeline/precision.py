"""What an engine computes in: fp32 as it is exported, or int8, quantised by ranges seen on the task's own images."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from cpd_edge.deploy.calibrate import Ranges
from cpd_edge.deploy.quantize import CPU, CPU_SATURATING, TENSORRT, Scheme, calibrate, quantise
from cpd_edge.errors import EnvironmentMismatch
from cpd_edge.intake.tasks import Task
from cpd_edge.measure.devices import LOCAL
from cpd_edge.measure.environment import integers_saturate
from cpd_edge.measure.runtimes import ON_CPU

CALIBRATION_IMAGES = 128
"""Training images that the ranges come from."""
UNSEEN = (-1.0, 1.0)
"""Range of a value that only a build to be timed has: latency does not depend on it."""
PARITY: Mapping[str, float] = {
    "fp32": 1e-4, "tf32": 1e-2, "fp16": 2e-2, "bf16": 0.1, "int8": 0.25, "int8+fp16": 0.25, "mixed": 0.25,
}  # fmt: skip
"""Largest difference of engine and torch by precision, relative to the largest output; a wrong engine is off by all."""


@dataclass(frozen=True)
class Quantiser:
    """Makes INT8 of fp32 models of one network, at any widths.

    Attributes:
        scheme: what the device has integer kernels for.
        ranges: of the dense network's values.
        images: how many calibration images they come from.
    """

    scheme: Scheme
    ranges: Ranges
    images: int

    @classmethod
    def of(
        cls, model: onnx.ModelProto, images: npt.NDArray[Any], runtime: str = ON_CPU[0], device: str = LOCAL
    ) -> Quantiser:
        """Calibrated on a dense model. Of another device it is not known whether its sums saturate, so they may."""
        on_cpu = CPU_SATURATING if device != LOCAL or integers_saturate() else CPU
        scheme = on_cpu if runtime in ON_CPU else TENSORRT
        return cls(scheme, calibrate(model, images, scheme), len(images))

    def recalibrated(
        self, model: onnx.ModelProto, images: npt.NDArray[Any], nodes: Collection[str] | None = None
    ) -> Quantiser:
        """For a network whose values are others than the dense one's, or of which only `nodes` are quantised."""
        return replace(self, ranges=calibrate(model, images, self.scheme, nodes=nodes), images=len(images))

    def ship(self, model: onnx.ModelProto, nodes: Collection[str] | None = None) -> onnx.ModelProto:
        """The quantised model, each value by its own range; with `nodes`, all but those weighted nodes stay fp32."""
        return quantise(model, self.ranges, self.scheme, nodes=nodes)

    def time(self, model: onnx.ModelProto, nodes: Collection[str] | None = None) -> onnx.ModelProto:
        """The same of a cut network, to be timed: values that the dense one lacks have a range assumed."""
        return quantise(model, self.ranges, self.scheme, nodes=nodes, unseen=UNSEEN)

    def to_json(self) -> dict[str, Any]:
        """How it was made, for the record."""
        bits = 8 if self.scheme.weight_max > 64 else 7
        return {"method": "static QDQ, extremes", "images": self.images, "weight_bits": bits}


def calibration_images(task: Task, seed: int, count: int = CALIBRATION_IMAGES) -> npt.NDArray[np.float32]:
    """The first `count` images `[n, c, h, w]` of one seeded epoch of training, as training sees them."""
    taken: list[npt.NDArray[np.float32]] = []
    for images, _ in task.train_loader(32, seed):
        taken.append(np.asarray(images.numpy(), np.float32))
        if sum(map(len, taken)) >= count:
            break
    return np.concatenate(taken)[:count]


def noise(input_shape: tuple[int, ...], seed: int, count: int = 8) -> npt.NDArray[np.float32]:
    """Standard normal inputs `[count, ...]`, for a network that is only timed and comes without data."""
    return np.random.default_rng(seed).standard_normal((count, *input_shape)).astype(np.float32)


def require_computed(environment: Mapping[str, Any], precision: str) -> None:
    """Refuses an engine whose kernels compute in another precision than was asked for.

    Raises:
        EnvironmentMismatch: says what they compute in.
    """
    found = environment.get("precision")
    if found != precision:
        raise EnvironmentMismatch(
            f"{precision} was asked for, {environment['runtime']} computes in {environment.get('layers', found)}",
            hint=f"--precision {found}",
        )


__all__ = ["PARITY", "Quantiser", "calibration_images", "noise", "require_computed"]
