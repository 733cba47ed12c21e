"""What a user asks for: one frozen object that the command line and the Python API both make."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cpd_edge.errors import StoreError, UsageError
from cpd_edge.measure.remote import require_device
from cpd_edge.measure.runtimes import MIXED, require_known, require_mixed, require_precision
from cpd_edge.types import Budget, Constraints, Limits

LEAST = {
    "threads": 1, "steps": 1, "batch": 1, "calibration_batches": 1, "samples": 8, "rounds": 1, "num_classes": 1,
    "image_size": 1, "seed": 0, "refine": 1,
}  # fmt: skip
"""Smallest value of each setting that is a number of things."""

POSITIVE = {
    "lr": 1e-3, "temperature": 2.0, "parity": 1e-4, "train_epochs": 10.0, "limit_s": 45, "target": 0.01,
}  # fmt: skip
"""Settings that are numbers above 0, with a value that would do."""

SCORES = ("fisher", "taylor", "magnitude")

IMAGES_SEEN = 200_000
"""Training images of a whole run, over which the default number of epochs is computed."""


def _again(name: str, value: object) -> str:
    """The hint that shows a value which would do."""
    return f"for example --{name.replace('_', '-')} {value}"


def tables_root() -> Path:
    """Where measured tables are kept: `$CPD_EDGE_PROFILES`, else the user's cache."""
    given = os.environ.get("CPD_EDGE_PROFILES")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cpd-edge" / "profiles"


@dataclass(frozen=True)
class Request:
    """One run's settings. Model and data are specs, or objects when they come through the Python API.

    Attributes:
        model: `torchvision:NAME`, `timm:NAME`, `zoo:NAME`, `FILE.py:FACTORY`, `FILE.pt2`, or a module's class name.
        data: `digits`, `fashion-mnist`, `imagefolder:DIR`, `segfolder:DIR`, `FILE.py:FACTORY`.
        budget: latency limit and quantile.
        weights: state dict for the model.
        train: train the model on the data first, for models that come without weights.
        train_epochs: epochs of that training.
        device, runtime, threads: where and on what the engine runs.
        precision: what both engines compute in; `int8` is quantised on training images. `mixed`: the dense engine in
            fp32, and of the pruned one the regions that the solver chooses in int8.
        epochs: epochs of distillation in all; None: as many as show about 200,000 images, 3 to 30.
        steps: prunings, with distillation after each.
        batch: training batch; None: 16 to 128, as the training set is large.
        lr, temperature, alpha: of the distillation.
        score: `fisher` (derivatives of the divergence from the network itself), `taylor` (of the loss) or `magnitude`.
        calibration_batches: batches that scores and batch-norm statistics see.
        samples: networks measured for the table, at most.
        rounds: most build-and-measure rounds of the loop.
        parity: largest difference of engine and torch, relative to the largest output; None: what fits the precision.
        seed: of everything that is drawn.
        protect, min_width, multiple_of, heads, depth: see `Constraints`.
        max_macs, max_params, max_size_mb, max_memory_mb: see `Limits`.
        refine: how many of the best plans are tried on calibration data in each choice; 1: the solver's own is taken.
        limit_s: longest time to sample in the final bench [s]; None: 45.
        target: relative half-width of the interval to stop at in the final bench; None: 0.01.
    """

    model: str
    data: str
    budget: Budget
    weights: str | None = None
    num_classes: int | None = None
    image_size: int | None = None
    data_root: str | None = None
    train: bool = False
    train_epochs: float = 10.0
    device: str = "local"
    runtime: str = "onnxruntime"
    threads: int = 1
    precision: str = "fp32"
    epochs: float | None = None
    steps: int = 2
    batch: int | None = None
    lr: float = 1e-3
    temperature: float = 2.0
    alpha: float = 0.7
    score: str = "fisher"
    calibration_batches: int = 16
    samples: int = 96
    rounds: int = 4
    parity: float | None = None
    seed: int = 0
    protect: tuple[str, ...] = ()
    min_width: int = 1
    multiple_of: int = 1
    heads: str = "free"
    depth: bool = True
    max_macs: float | None = None
    max_params: float | None = None
    max_size_mb: float | None = None
    max_memory_mb: float | None = None
    refine: int = 1
    limit_s: float | None = None
    target: float | None = None
    profiles: str = field(default_factory=lambda: str(tables_root()))

    @property
    def mixed(self) -> bool:
        """Whether each region has its own precision."""
        return self.precision == MIXED

    def __post_init__(self) -> None:
        require_known(self.runtime)
        require_device(self.device, self.runtime)
        if self.mixed:
            require_mixed(self.runtime)
            self._require_nats()
        else:
            require_precision(self.precision, self.runtime)
        if self.precision != "fp32" and (self.max_size_mb is not None or self.max_memory_mb is not None):
            raise UsageError(
                f"bytes are counted for fp32 only, and the precision is {self.precision}",
                hint="limit --max-params in place of --max-size-mb and --max-memory-mb",
            )
        object.__setattr__(self, "protect", (self.protect,) if isinstance(self.protect, str) else tuple(self.protect))
        _ = self.constraints
        if self.score not in SCORES:
            raise UsageError(f"unknown score {self.score!r}", hint=f"give --score {', '.join(SCORES)}")
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{name.replace('_', ' ')} of {value}: at least {least}", hint=_again(name, least))
        for name, example in POSITIVE.items():
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UsageError(
                    f"{name.replace('_', ' ')} of {value}: it must be finite and above 0", hint=_again(name, example)
                )
        if not 0 <= self.alpha <= 1:
            raise UsageError(f"alpha of {self.alpha}: it must lie between 0 and 1", hint=_again("alpha", 0.7))
        if self.epochs is not None and not (math.isfinite(self.epochs) and self.epochs >= 0):
            raise UsageError(f"epochs of {self.epochs}: it must be 0 or more", hint=_again("epochs", 3))

    def _require_nats(self) -> None:
        """Refuses a score that losses of precision cannot be added to."""
        if self.score == "magnitude":
            raise UsageError(
                f"--precision {MIXED} sets the loss of int8 against that of removing units, and a magnitude is no loss",
                hint="give --score fisher or taylor",
            )

    def require_one_precision(self, what: str) -> None:
        """Refuses mixed precision where all of an engine is in one.

        Raises:
            UsageError: says what to give.
        """
        if self.mixed:
            raise UsageError(
                f"{what} takes one precision at a time, not {MIXED}",
                hint="give --precision fp32, then --precision int8",
            )

    @property
    def constraints(self) -> Constraints:
        """What a plan must respect beside the budget."""
        limits = Limits(self.max_macs, self.max_params, self.max_size_mb, self.max_memory_mb)
        return Constraints(self.protect, self.min_width, self.multiple_of, self.heads, self.depth, limits)

    def to_json(self) -> dict[str, Any]:
        """Flat, with the budget's parts beside the rest."""
        flat = {k: getattr(self, k) for k in self.__dataclass_fields__ if k != "budget"} | {"protect": [*self.protect]}
        b = self.budget
        return flat | {"budget_ms": b.limit_ms, "speedup": b.speedup, "quantile": b.quantile, "tolerance": b.tolerance}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Request:
        """Inverse of `to_json`."""
        rest = dict(data)
        budget = Budget(rest.pop("budget_ms"), rest.pop("speedup"), rest.pop("quantile"), rest.pop("tolerance"))
        return cls(budget=budget, **rest)

    def require_same(self, recorded: Mapping[str, Any]) -> None:
        """Refuses to resume a run that was asked for something else; a setting that it did not know was the usual one.

        Raises:
            StoreError: names the settings that differ.
        """
        mine, before = self.to_json(), {**Request(self.model, self.data, self.budget).to_json(), **recorded}
        differ = [k for k, v in mine.items() if before[k] != v and k != "profiles"]
        if differ:
            said = ", ".join(f"{k} was {before[k]!r}, now {mine[k]!r}" for k in differ[:4])
            raise StoreError(
                f"the run to resume was asked for something else: {said}", hint="give the same settings, or a new --out"
            )

    def training_batch(self, images: int) -> int:
        """The training batch, for a training set of so many images: a power of two."""
        return self.batch if self.batch is not None else 2 ** min(7, max(4, (images // 45).bit_length() - 1))

    def distil_epochs(self, images: int) -> float:
        """Epochs of distillation in all, for a training set of so many images."""
        return self.epochs if self.epochs is not None else min(30.0, max(3.0, round(IMAGES_SEEN / max(images, 1), 1)))
