"""Laws of metrics and of their intervals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cpd_edge.errors import DataError
from cpd_edge.intake.metrics import Accuracy, MeanIoU, delta_interval, interval


def accuracy_of(right: list[int]) -> Accuracy:
    metric = Accuracy(2)
    metric.update(torch.tensor([[r, 0.5] for r in right]), torch.zeros(len(right), dtype=torch.long))
    return metric


def test_accuracy_is_the_share_of_right_answers() -> None:
    """Three of four right is 0.75, and each image's part is kept."""
    metric = accuracy_of([1, 1, 0, 1])
    assert metric.compute() == 0.75 and metric.per_sample()[:, 1].tolist() == [1, 1, 0, 1]
    assert metric.per_class()[0] == 0.75 and np.isnan(metric.per_class()[1])


def test_mean_iou_is_intersection_over_union_by_class() -> None:
    """By hand: class 0 meets 1 of 2 pixels, class 1 meets 1 of 2, class 2 does not occur, one pixel is ignored."""
    targets = torch.tensor([[[0, 1], [1, 255]]])
    found = torch.tensor([[[0, 0], [1, 1]]])
    metric = MeanIoU(3)
    metric.update(torch.nn.functional.one_hot(found, 3).permute(0, 3, 1, 2).float(), targets)
    assert metric.per_class()[:2].tolist() == [0.5, 0.5] and metric.compute() == 0.5


def test_batches_add_up() -> None:
    """Two updates give what one update of both gives."""
    logits, targets = torch.randn(6, 3, 4, 4), torch.randint(0, 3, (6, 4, 4))
    whole, parts = MeanIoU(3), MeanIoU(3)
    whole.update(logits, targets)
    parts.update(logits[:2], targets[:2])
    parts.update(logits[2:], targets[2:])
    assert np.array_equal(whole.per_sample(), parts.per_sample())


@pytest.mark.parametrize("kind", [Accuracy, MeanIoU])
def test_drawing_each_image_once_gives_the_metric(kind: type) -> None:
    """`resampled` with every image once is `compute`."""
    metric = kind(3)
    shape = (5,) if kind is Accuracy else (5, 4, 4)
    metric.update(torch.randn(5, 3, *shape[1:]), torch.randint(0, 3, shape))
    assert metric.resampled(np.ones((1, 5), np.int64))[0] == pytest.approx(metric.compute())


def test_a_network_does_not_differ_from_itself() -> None:
    """The paired interval of a against a is zero wide: pairing removes what the images contribute."""
    metric = accuracy_of([1, 0] * 50)
    found = delta_interval(metric, metric)
    assert (found.low, found.estimate, found.high, found.n) == (0, 0, 0, 100)


def test_networks_that_agree_on_few_images_may_still_differ() -> None:
    """Of 100 images none changed sides: the interval around zero is as wide as one image, either way, and narrows."""
    few, many = (delta_interval(*(accuracy_of([1, 0] * n) for _ in range(2))) for n in (50, 5000))
    assert few.estimate == 0 and few.low == -few.high and 0.01 < few.high < 0.03
    assert 0 < many.high < few.high / 50


@pytest.mark.parametrize(("changed", "most"), [(0.02, 1000), (0.1, 980), (0.3, 970)])
def test_the_paired_interval_of_accuracy_covers(changed: float, most: int) -> None:
    """Of 1,000 drawn pairs on 100 images about 95 % hold the true difference, more where next to nothing changes."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(1000):
        before = rng.random(100) < 0.8
        moved, up = rng.random(100) < changed, rng.random(100) < 0.1
        found = delta_interval(accuracy_of(before), accuracy_of(np.where(moved, up, before)))
        truth = changed * (0.1 * 0.2 - 0.9 * 0.8)
        held += found.low <= truth <= found.high
    assert 930 <= held <= most


def test_a_lost_tenth_is_seen() -> None:
    """Ten of a hundred images lost: the interval of b - a is around -0.1 and below zero."""
    found = delta_interval(accuracy_of([1] * 100), accuracy_of([1] * 90 + [0] * 10))
    assert found.estimate == pytest.approx(-0.1)
    assert -0.2 < found.low < -0.1 < found.high < 0


def test_wilson_interval_has_its_known_value() -> None:
    """81 of 263, Newcombe (1998): 0.2553 to 0.3662."""
    found = interval(accuracy_of([1] * 81 + [0] * 182))
    assert (found.low, found.high) == pytest.approx((0.2553, 0.3662), abs=1e-4)


def test_miou_interval_holds_its_estimate() -> None:
    """The bootstrap interval of a mean IoU surrounds it."""
    metric = MeanIoU(3)
    metric.update(torch.randn(40, 3, 4, 4), torch.randint(0, 3, (40, 4, 4)))
    found = interval(metric)
    assert found.low < found.estimate < found.high and found.n == 40


def test_unpaired_images_are_refused() -> None:
    """A paired interval over different images would be a lie."""
    with pytest.raises(DataError, match="2 against 3"):
        delta_interval(accuracy_of([1, 0]), accuracy_of([1, 0, 1]))


def test_a_target_outside_the_classes_is_refused() -> None:
    """A class index that the data does not have is an error, not another class's pixel."""
    with pytest.raises(DataError, match="class 3"):
        MeanIoU(3).update(torch.zeros(1, 3, 2, 2), torch.full((1, 2, 2), 3))
