"""The top-k kernels equal their reference: order, ties, NaN, rows of any length."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from on_host import Host, exactly

from cpd_edge.errors import UsageError
from cpd_edge.kernels import launches, reference

NAN = float("nan")
TYPES = ["float32", "float16"]


def topk(
    host: Host, logits: npt.NDArray[np.floating], k: int, block: int = 16
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """What the kernel makes of logits `[rows, classes]`, with few threads, since here each is one of the system's."""
    values, indices = exactly((len(logits), k), np.float32), exactly((len(logits), k), np.int32)
    pointers = (logits.ctypes.data, logits.shape, values.ctypes.data, indices.ctypes.data, k)
    gap = logits.strides[0] // logits.itemsize
    host.run(launches.topk(*pointers, dtype=logits.dtype.name, row_elems=gap), block)  # type: ignore[arg-type]
    return values, indices


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("rows", "classes", "k"), [(1, 1, 1), (3, 5, 5), (2, 16, 3), (2, 17, 4), (2, 1000, 5)])
def test_topk_equals_the_reference(host: Host, rows: int, classes: int, k: int, dtype: str) -> None:
    """Rows shorter, as long and longer than the block give the reference's values and indices."""
    logits = np.random.default_rng(4).normal(size=(rows, classes)).astype(dtype)
    (values, indices), (best, where) = topk(host, logits, k), reference.topk(logits, k)
    assert np.array_equal(where, indices)
    assert np.array_equal(best, values)


@pytest.mark.parametrize("block", [1, 2, 128, 256])
def test_any_power_of_two_of_threads_gives_the_same(host: Host, block: int) -> None:
    """The result does not depend on how many threads share a row."""
    logits = np.random.default_rng(5).integers(-9, 9, (1, 300)).astype(np.float32)
    assert np.array_equal(reference.topk(logits, 3)[1], topk(host, logits, 3, block)[1])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("row", "order"),
    [
        ([1, 3, 3, 2], [1, 2, 3, 0]),
        ([0.0, -0.0, 0.0, -1], [0, 1, 2, 3]),
        ([5, NAN, 9, NAN], [1, 3, 2, 0]),
        ([np.inf, NAN, -np.inf, np.inf], [1, 0, 3, 2]),
        ([-NAN, NAN, -np.inf, 0], [0, 1, 3, 2]),
        ([-np.inf, -np.inf, -np.inf, -np.inf], [0, 1, 2, 3]),
        ([-1e-7, 1e-7, -60000, 60000], [3, 1, 0, 2]),
    ],
)
def test_ties_keep_their_order_and_nan_comes_first(host: Host, row: list[float], order: list[int], dtype: str) -> None:
    """Equals come by index, +0 and -0 are equal, and a NaN comes before every number."""
    logits = np.array([row], dtype)
    values, indices = topk(host, logits, 4)
    assert [order, order] == [indices[0].tolist(), reference.topk(logits, 4)[1][0].tolist()]
    assert np.array_equal(logits[0, order].astype(np.float32), values[0], equal_nan=True)


def test_rows_may_lie_apart(host: Host) -> None:
    """With a gap between rows, each row is its own and the gap, though larger, is not read."""
    room = np.full((3, 9), 1e9, np.float32)
    room[:, :6] = np.random.default_rng(6).normal(size=(3, 6))
    assert np.array_equal(reference.topk(room[:, :6], 2)[1], topk(host, room[:, :6], 2)[1])


def test_more_places_than_classes_make_no_launch() -> None:
    """k above the number of classes, or none, is refused."""
    for k in (0, 6):
        with pytest.raises(UsageError, match="largest of 5"):
            launches.topk(64, (1, 5), 64, 64, k)


def test_places_beyond_the_classes_are_marked(host: Host) -> None:
    """A kernel that is asked for too many all the same writes index -1 and minus infinity, not what lay there."""
    logits = np.array([[2, 4]], np.float32)
    values, indices = exactly((1, 3), np.float32), exactly((1, 3), np.int32)
    launch = launches.topk(logits.ctypes.data, (1, 2), values.ctypes.data, indices.ctypes.data, 2)
    arguments = (*launch.arguments[:5], np.int32(3), *launch.arguments[6:])
    host.run(replace(launch, arguments=arguments), 4)
    wanted_values, wanted_indices = reference.topk(logits, 3)
    assert [[4, 2, -np.inf], [1, 0, -1]] == [values[0].tolist(), indices[0].tolist()]
    assert [[4, 2, -np.inf], [1, 0, -1]] == [wanted_values[0].tolist(), wanted_indices[0].tolist()]
