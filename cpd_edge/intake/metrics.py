"""Metrics that keep every image's part, so that two networks can be compared image by image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cpd_edge.errors import DataError
from cpd_edge.types import Interval

Z95 = 1.959963984540054
"""Standard normal quantile of 97.5 %."""


class Metric(Protocol):
    """An accumulator over images: `update` with logits and targets, then read."""

    name: str

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Adds a batch: logits `[b, classes, ...]`, targets `[b, ...]`."""

    def compute(self) -> float:
        """The metric over all images so far, in 0 to 1."""

    def per_sample(self) -> npt.NDArray[np.int64]:
        """Each image's own part, `[n, ...]`; everything else follows from it."""

    def per_class(self) -> npt.NDArray[np.float64]:
        """The metric of each class `[classes]`; NaN for a class that does not occur."""

    def resampled(self, times: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """The metric `[draws]` if image i had occurred `times[draw, i]` times."""


class Accuracy:
    """Top-1 accuracy. `per_sample` is `[n, 2]`: the class, and 1 where it was found."""

    name = "accuracy"

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self._rows: list[npt.NDArray[np.int64]] = [np.zeros((0, 2), np.int64)]

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Adds a batch: logits `[b, classes]`, targets `[b]`."""
        _check_targets(targets, self.num_classes)
        right = logits.argmax(1) == targets
        self._rows.append(torch.stack([targets, right.to(targets.dtype)], 1).cpu().numpy().astype(np.int64))

    def per_sample(self) -> npt.NDArray[np.int64]:
        """`[n, 2]`: the class, and 1 where it was found."""
        return np.concatenate(self._rows)

    def compute(self) -> float:
        """Share of images whose highest logit is the target; NaN without images."""
        rows = self.per_sample()
        return float(rows[:, 1].mean()) if len(rows) else float("nan")

    def per_class(self) -> npt.NDArray[np.float64]:
        """Recall of each class `[classes]`; NaN for a class that does not occur."""
        label, right = self.per_sample().T
        counts = np.bincount(label, minlength=self.num_classes)
        return _ratio(np.bincount(label, weights=right, minlength=self.num_classes), counts)

    def resampled(self, times: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """The accuracy `[draws]` if image i had occurred `times[draw, i]` times."""
        right = self.per_sample()[:, 1]
        return (times @ right.astype(np.float64)) / times.sum(1)


class MeanIoU:
    """Mean intersection over union of the classes that occur in targets or predictions.

    `per_sample` is `[n, classes, 2]`: pixels in the intersection and in the union.
    """

    name = "mIoU"

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self._rows: list[npt.NDArray[np.int64]] = [np.zeros((0, num_classes, 2), np.int64)]

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Adds a batch: logits `[b, classes, h, w]`, targets `[b, h, w]`; ignored pixels count nowhere."""
        found, c = logits.argmax(1), self.num_classes
        image = torch.arange(len(targets), device=targets.device)[:, None, None].expand_as(targets)
        valid = targets != self.ignore_index
        _check_targets(targets[valid], c)
        cell = (image * c + targets) * c + found
        confusion = torch.bincount(cell[valid], minlength=len(targets) * c * c).reshape(len(targets), c, c)
        both = confusion.diagonal(dim1=1, dim2=2)
        union = confusion.sum(1) + confusion.sum(2) - both
        self._rows.append(torch.stack([both, union], 2).cpu().numpy().astype(np.int64))

    def per_sample(self) -> npt.NDArray[np.int64]:
        """`[n, classes, 2]`: pixels in the intersection and in the union."""
        return np.concatenate(self._rows)

    def compute(self) -> float:
        """Mean over classes of intersection over union, both summed over images; NaN without images."""
        found = self.per_class()
        return float(np.nanmean(found)) if np.isfinite(found).any() else float("nan")

    def per_class(self) -> npt.NDArray[np.float64]:
        """Intersection over union of each class `[classes]`; NaN for a class that does not occur."""
        both, union = self.per_sample().sum(0).T
        return _ratio(both, union)

    def resampled(self, times: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """The mean IoU `[draws]` if image i had occurred `times[draw, i]` times."""
        rows = self.per_sample()
        sums = (times.astype(np.float64) @ rows.reshape(len(rows), -1)).reshape(len(times), self.num_classes, 2)
        return np.nanmean(_ratio(sums[..., 0], sums[..., 1]), axis=1)


def interval(metric: Metric, *, draws: int = 2000, seed: int = 0) -> Interval:
    """95 % interval of a metric: Wilson's for accuracy, a percentile bootstrap over images for the rest.

    Raises:
        DataError: the metric has seen no image.
    """
    n = len(metric.per_sample())
    if n == 0:
        raise DataError("no image was evaluated, so there is no interval")
    if isinstance(metric, Accuracy):
        p = metric.compute()
        centre = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
        half = Z95 / (1 + Z95**2 / n) * float(np.sqrt(p * (1 - p) / n + Z95**2 / (4 * n * n)))
        return Interval(p, max(0.0, centre - half), min(1.0, centre + half), n)
    spread = np.concatenate([metric.resampled(times) for times in _draws(n, draws, seed)])
    low, high = np.quantile(spread, [0.025, 0.975])
    return Interval(metric.compute(), float(low), float(high), n)


def delta_interval(metric_a: Metric, metric_b: Metric, *, draws: int = 2000, seed: int = 0) -> Interval:
    """95 % interval of `b - a` on the same images; a metric does not differ from itself.

    For accuracy it is Wald's with the adjustment of Bonett and Price (2012), which does not shrink to nothing where no
    image changes sides; for the rest a bootstrap that draws the same images for both.

    Raises:
        DataError: the two metrics have not seen the same number of images, or none.
    """
    n, other = len(metric_a.per_sample()), len(metric_b.per_sample())
    if n != other or n == 0:
        raise DataError(f"a paired interval needs the same images: {n} against {other}")
    delta = metric_b.compute() - metric_a.compute()
    if metric_a is metric_b:
        return Interval(delta, 0.0, 0.0, n)
    if isinstance(metric_a, Accuracy):
        sides = metric_b.per_sample()[:, 1] - metric_a.per_sample()[:, 1]
        won, lost = (float((np.sum(sides == side) + 1) / (n + 2)) for side in (1, -1))
        centre, half = won - lost, Z95 * float(np.sqrt((won + lost - (won - lost) ** 2) / (n + 2)))
        return Interval(delta, max(-1.0, centre - half), min(1.0, centre + half), n)
    spread = np.concatenate([metric_b.resampled(t) - metric_a.resampled(t) for t in _draws(n, draws, seed)])
    low, high = np.quantile(spread, [0.025, 0.975])
    return Interval(delta, float(low), float(high), n)


def _draws(n: int, draws: int, seed: int, cells: int = 5_000_000) -> Iterator[npt.NDArray[np.int64]]:
    """How often each of n images is drawn, `[some, n]` at a time: at most `cells` counts, `draws` rows in all."""
    rng = np.random.default_rng(seed)
    most = max(1, cells // n)
    for start in range(0, draws, most):
        some = min(most, draws - start)
        picks = rng.integers(0, n, (some, n)) + np.arange(some)[:, None] * n
        yield np.bincount(picks.ravel(), minlength=some * n).reshape(some, n)


def _ratio(part: npt.NDArray[np.generic], whole: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """The ratio of two counts, NaN where whole is 0."""
    p, w = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(p, w, out=np.full_like(w, np.nan), where=w > 0)


def _check_targets(targets: Tensor, num_classes: int) -> None:
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < num_classes:
        raise DataError(f"a target of class {int(targets.max())}, where the classes are 0 to {num_classes - 1}")
