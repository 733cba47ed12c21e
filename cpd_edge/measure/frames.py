"""End to end: an engine with the stages that a deployment puts around it, timed as one and stage by stage.

A frame of a camera, uint8 `[h, w, channels]` in BGR, is resized, normalised and laid out; the engine runs; logits
become the top-k classes, or class map and colours. On a CPU these stages are Pillow's and NumPy's; around a TensorRT
engine they are the CUDA kernels of this project on the engine's own stream (see `device_frames`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

import numpy as np
import numpy.typing as npt

from cpd_edge.errors import ModelError, UsageError
from cpd_edge.kernels.recipe import Dtype, Preprocess
from cpd_edge.measure import host_stages
from cpd_edge.measure.site import Runner

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, as most networks take them; what the stages cost does not depend on the values."""
MOST = 5
"""The k of top-k."""

Milliseconds = npt.NDArray[np.float64]


class StagedRunner(Runner, Interface):
    """An engine with its stages, ready to be measured."""

    def stage_ms(self, starts_ns: npt.NDArray[np.int64]) -> Mapping[str, Milliseconds]:
        """Time of each stage in the runs that samples began with, by name `[samples]` [ms]: not of lead-ins."""


class InPlace(Runner, Interface):
    """An engine that can read and write arrays of this process."""

    def in_place(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """The input that `run` reads from now on, and the first output that it writes."""


@dataclass(frozen=True)
class Camera:
    """Where frames come from, and how they are fitted into the network's input.

    Attributes:
        h, w: of a frame.
        letterbox: keep the aspect ratio and pad, instead of stretching.

    Raises:
        UsageError: frames without pixels.
    """

    h: int = 1080
    w: int = 1920
    letterbox: bool = False

    def __post_init__(self) -> None:
        if not 0 < min(self.h, self.w) <= max(self.h, self.w) <= 1 << 15:
            raise UsageError(f"frames of {self.h} x {self.w}", hint="height and width, for example --frame 1080,1920")

    def recipe(self, shape: tuple[int, ...], dtype: Dtype = "float32") -> Preprocess:
        """What brings a frame into an input `[1, channels, h, w]`.

        Raises:
            ModelError: no image of 1 or 3 channels goes in there.
        """
        if len(shape) != 4 or shape[1] not in (1, 3) or shape[0] != 1:
            raise ModelError(
                f"the model's input is {list(shape)}, a camera's frame becomes [1, 1 or 3, height, width]",
                hint="measure the engine alone: leave out --end-to-end",
            )
        mean, std = (MEAN, STD) if shape[1] == 3 else (MEAN[1:2], STD[1:2])
        how = {"reverse": True, "antialias": True, "letterbox": self.letterbox}
        return Preprocess(shape[2], shape[3], shape[1], mean, std, dtype=dtype, **how)

    def plan(self, shape: tuple[int, ...], seed: int = 0) -> dict[str, Any]:
        """The same for `host_stages.Framed`, as plain data."""
        recipe = self.recipe(shape)
        box = recipe.box(self.h, self.w)
        return {
            "frame": [self.h, self.w, recipe.channels],
            "box": [box.top, box.left, box.h, box.w],
            "a": recipe.a.tolist(),
            "b": recipe.b.tolist(),
            "pad": recipe.pad,
            "reverse": recipe.reverse,
            "most": MOST,
            "colours": colours().tolist(),
            "seed": seed,
        }

    def described(self, channels: int, words: str) -> dict[str, Any]:
        """What the environment says of frames and stages."""
        fit = "letterboxed" if self.letterbox else "stretched"
        return {
            "frame": f"{self.h}x{self.w}x{channels}",
            "stages": f"{fit}, {words}",
            "inputs": f"ring of {host_stages.RING}, uniform frames",
            "input_low": 0.0,
            "input_high": 255.0,
        }


class HostFrames:
    """An engine of this process with its stages on the CPU.

    Raises:
        ModelError: it is no network from one frame to classes or a class map.
    """

    def __init__(self, engine: InPlace, camera: Camera) -> None:
        shape = tuple(int(n) for n in str(engine.environment["shape"]).split("x"))
        plan = camera.plan(shape)
        try:
            self._framed = host_stages.Framed(engine, plan)
        except ValueError as error:
            raise refused(str(error)) from None
        self.environment: Mapping[str, Any] = {
            **engine.environment,
            **camera.described(plan["frame"][2], self._framed.words),
        }

    @property
    def result(self) -> Any:
        """Of the last frame: values and classes of the top-k, or a colour image `[h, w, 3]`."""
        return self._framed.result

    def run(self) -> None:
        """One frame, from the camera to the result."""
        self._framed.run()

    def stage_ms(self, starts_ns: npt.NDArray[np.int64]) -> Mapping[str, Milliseconds]:
        """See `StagedRunner`."""
        return by_stage(host_stages.STAGES, self._framed.rows_ns(starts_ns))

    def close(self) -> None:
        """Frees the engine and the frames."""
        self._framed.close()


def refused(why: str) -> ModelError:
    """A network that the stages do not fit."""
    return ModelError(
        f"the stages do not fit this network: {why}", hint="measure the engine alone: leave out --end-to-end"
    )


def by_stage(names: tuple[str, ...], rows_ns: Any) -> Mapping[str, Milliseconds]:
    """Rows of one run each `[runs, stages]` [ns] as one array for each stage [ms]."""
    ms = np.asarray(rows_ns, np.float64).reshape(-1, len(names)) / 1e6
    return {name: ms[:, i].copy() for i, name in enumerate(names)}


def colours() -> npt.NDArray[np.uint8]:
    """A palette `[256, 3]` in which neighbouring classes differ: the bits of the class dealt out to the channels."""
    classes = np.arange(256)
    channels = [sum(((classes >> (3 * i + c)) & 1) << (7 - i) for i in range(3)) for c in range(3)]
    return np.stack(channels, axis=1).astype(np.uint8)


@cache
def stages_source() -> bytes:
    """The file of the CPU's stages, as it is sent to a device."""
    return Path(host_stages.__file__).read_bytes()


__all__ = [
    "Camera", "HostFrames", "InPlace", "StagedRunner", "by_stage", "colours", "refused", "stages_source",
]  # fmt: skip
