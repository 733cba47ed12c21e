"""The stages around an engine on a CPU: a camera's frame to the network's input, the network's output to a result.

Pillow resizes and NumPy does the rest: what a deployment uses that has neither OpenCV nor a GPU. This file is also sent
to devices, whose agent runs it: it needs NumPy, Pillow and Python 3.8, and imports nothing of this package.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import PIL
from PIL import Image

STAGES = ("preprocess", "engine", "postprocess")
RING = 8


class Framed:
    """An engine with its stages: `run` takes the next frame to a result, and keeps how long each stage took.

    Args:
        engine: has `run`, `in_place` (the arrays that it reads and writes) and `close`.
        plan: plain data. `frame` is the camera's `[h, w, channels]`; `box` says where the resized frame lies in the
            input (top, left, h, w); `a` and `b` give `pixel * a + b` for each channel of the network; `pad` is the grey
            around the box; `reverse` says that the camera's channels come in the other order; `most` is the k of top-k;
            `colours` is the palette `[256, 3]`.

    Attributes:
        result: of the last frame: values and indices of the top-k `[k]`, or a colour image `[h, w, 3]`.
        begun_ns, stage_ns: when each run began, and `STAGES` of it [ns].
        words: what ran the stages.

    Raises:
        ValueError: the network is neither a classifier nor a segmenter, or takes more than one frame at once.
    """

    def __init__(self, engine: Any, plan: Any) -> None:
        self.engine = engine
        self.result: Any = None
        self.input, self.output = engine.in_place()
        h, w, channels = plan["frame"]
        if len(self.input) != 1 or self.input.shape[1] != channels:
            raise ValueError(f"one frame of {channels} channels goes into no input of {list(self.input.shape)}")
        self.finish, ending = self.head(plan)
        self.top, self.left, self.box_h, self.box_w = plan["box"]
        self.a, self.b = np.asarray(plan["a"], np.float32), np.asarray(plan["b"], np.float32)
        self.sources = range(channels)[:: -1 if plan["reverse"] else 1]
        self.input[0] = (np.float32(plan["pad"]) * self.a + self.b)[:, None, None]
        pixels = np.random.default_rng(plan["seed"]).integers(0, 256, (RING, h, w, channels), np.uint8)
        self.frames: Any = pixels if channels > 1 else pixels[..., 0]
        self.turn = 0
        self.begun_ns: list[int] = []
        self.stage_ns: list[tuple[int, int, int]] = []
        how = f"Pillow {PIL.__version__} resize, NumPy {np.__version__} normalise"
        self.words = f"{how}; NumPy {ending}; on the CPU"

    def head(self, plan: Any) -> Any:
        """What turns the output into a result, and its name."""
        shape = self.output.shape
        if self.output.ndim == 2:
            self.most = min(plan["most"], shape[1])
            return self.best, f"top-{self.most}"
        if self.output.ndim == 4 and shape[1] <= 256:
            self.colours = np.asarray(plan["colours"], np.uint8)
            return self.painted, "argmax and palette"
        raise ValueError(f"an output of {list(shape)} is neither [1, classes] nor [1, up to 256 classes, h, w]")

    def run(self) -> None:
        """One frame, from the camera to the result."""
        clock = time.perf_counter_ns
        begun = clock()
        self.prepare(self.frames[self.turn])
        ready = clock()
        self.engine.run()
        done = clock()
        self.result = self.finish()
        self.begun_ns.append(begun)
        self.stage_ns.append((ready - begun, done - ready, clock() - done))
        self.turn = (self.turn + 1) % RING

    def rows_ns(self, starts_ns: Any) -> Any:
        """`STAGES` of the first run that began at or after each time [ns]."""
        return [self.stage_ns[i] for i in np.searchsorted(self.begun_ns, starts_ns)]

    def prepare(self, frame: Any) -> None:
        """Resizes a frame as Pillow and torchvision do in training, normalises it and lays it out, in one place."""
        small = np.asarray(Image.fromarray(frame).resize((self.box_w, self.box_h), Image.BILINEAR))  # type: ignore[attr-defined]
        small = small.reshape(self.box_h, self.box_w, -1)
        box = self.input[0, :, self.top : self.top + self.box_h, self.left : self.left + self.box_w]
        for channel, source in enumerate(self.sources):
            np.multiply(small[..., source], self.a[channel], out=box[channel], dtype=np.float32, casting="same_kind")
            box[channel] += self.b[channel]

    def best(self) -> Any:
        """The largest logits and their classes, largest first."""
        logits = self.output[0]
        found = np.argpartition(logits, -self.most)[-self.most :]
        found = found[np.argsort(-logits[found], kind="stable")]
        return logits[found], found

    def painted(self) -> Any:
        """The colour of each pixel's class."""
        return self.colours[self.output[0].argmax(axis=0)]

    def close(self) -> None:
        """Frees the engine and the frames."""
        self.engine.close()
        self.frames = self.input = self.output = self.result = None
