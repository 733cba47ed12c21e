"""The segmentation kernels equal their reference: ties, NaN, pitches, offsets beyond 32 bits, palettes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from on_host import Host, exactly, frames, pitched, sparse

from cpd_edge.errors import UsageError
from cpd_edge.kernels import Frames, launches, reference

NAN = float("nan")
TYPES = ["float32", "float16"]


def class_map(host: Host, logits: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    """What the kernel makes of logits `[n, classes, h, w]`."""
    n, _, h, w = logits.shape
    made = exactly((n, h, w), np.uint8)
    host.run(launches.argmax(logits.ctypes.data, logits.shape, frames(made), dtype=logits.dtype.name))  # type: ignore[arg-type]
    return made


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 19, 7, 33), (3, 256, 9, 5), (1, 2, 1, 65), (2, 5, 17, 1)])
def test_argmax_equals_the_reference(host: Host, shape: tuple[int, int, int, int], dtype: str) -> None:
    """Any size, class count and type gives the reference's map."""
    logits = np.random.default_rng(1).normal(size=shape).astype(dtype)
    assert np.array_equal(reference.argmax(logits), class_map(host, logits))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("pixel", "winner"),
    [
        ([1, 3, 3, 2], 1),
        ([0.0, -0.0, 0.0], 0),
        ([-0.0, 0.0], 0),
        ([-np.inf, -np.inf], 0),
        ([-np.inf, -5, np.inf, np.inf], 2),
        ([1, NAN, 9], 1),
        ([NAN, 9], 0),
        ([np.inf, NAN, NAN], 1),
        ([NAN, NAN], 0),
        ([-NAN, 1], 0),
    ],
)
def test_ties_go_to_the_lower_class_and_nan_shows(host: Host, pixel: list[float], winner: int, dtype: str) -> None:
    """Equals give the lower class; the first NaN beats everything, so that a broken network is seen."""
    logits = np.array(pixel, dtype).reshape(1, -1, 1, 1)
    assert [winner, winner] == [class_map(host, logits).item(), reference.argmax(logits).item()]


def test_every_half_is_the_number_numpy_takes_it_for(host: Host) -> None:
    """Each of the 65,536 halves, against its neighbour, wins or loses as in NumPy."""
    halves = np.arange(65_536, dtype=np.uint16)
    logits = np.stack([halves, np.roll(halves, 1)]).reshape(1, 2, 256, 256).view(np.float16)
    assert np.array_equal(reference.argmax(logits), class_map(host, logits))


def test_gaps_in_the_map_are_not_written(host: Host) -> None:
    """A map with a pitch gets its pixels and keeps its gaps."""
    logits = np.random.default_rng(2).normal(size=(2, 3, 5, 9)).astype(np.float32)
    rows = exactly((2, 5, 16), np.uint8)
    target = Frames(rows.ctypes.data, 2, 5, 9, 1, 16)
    host.run(launches.argmax(logits.ctypes.data, logits.shape, target))
    assert np.array_equal(reference.argmax(logits), rows[:, :, :9])
    assert {0xA5} == set(rows[:, :, 9:].ravel().tolist())


def test_classes_beyond_two_gigabytes_are_read(host: Host) -> None:
    """A class plane that begins more than 2^31 elements behind the first is the one that is compared."""
    apart = (1 << 31) + 2
    with sparse(3 * 2 * apart) as room:
        memory = np.frombuffer(room, np.float16)
        memory[apart] = memory[2 * apart + 1] = 7
        made = exactly((1, 1, 2), np.uint8)
        launch = launches.argmax(memory.ctypes.data, (1, 3, 1, 2), frames(made), dtype="float16", class_elems=apart)
        host.run(launch)
        del memory
    assert [1, 2] == made.ravel().tolist()


def test_a_map_taller_than_a_grid_is_done_whole(host: Host) -> None:
    """More rows than a grid may have blocks are all processed, by argmax and by the palette."""
    h = 65_535 * 8 + 3
    logits = np.random.default_rng(9).normal(size=(1, 2, h, 1)).astype(np.float32)
    classes = class_map(host, logits)
    assert np.array_equal(reference.argmax(logits), classes)
    table, image = np.arange(768, dtype=np.uint16).astype(np.uint8).reshape(256, 3), exactly((1, h, 1, 3), np.uint8)
    host.run(launches.palette(frames(classes), frames(image), table.ctypes.data))
    assert np.array_equal(reference.palette(classes, table), image)


@pytest.mark.parametrize("pixel", [3, 4])
def test_the_palette_equals_the_reference(host: Host, pixel: int) -> None:
    """Every class has its colour, whatever the pitch, and a fourth byte is 255; gaps stay as they were."""
    rng = np.random.default_rng(3)
    table = rng.integers(0, 256, (256, 3), np.uint8)
    classes = rng.permutation(np.arange(2 * 16 * 33) % 256).astype(np.uint8).reshape(2, 16, 33)
    image = pitched(np.zeros((2, 16, 33, pixel), np.uint8), 13, 40)
    host.run(launches.palette(frames(classes), frames(image), table.ctypes.data))
    assert np.array_equal(reference.palette(classes, table, pixel), image)
    gap = np.lib.stride_tricks.as_strided(image[:, :, -1, -1:], (2, 15, 14), (*image.strides[:2], 1))
    assert {0xA5} == set(gap[:, :, 1:].ravel().tolist())


def test_what_does_not_fit_is_refused() -> None:
    """Too many classes, a map of another size, planes that overlap and colours of two bytes make no launch."""
    good = Frames(64, 1, 4, 4, 1)
    with pytest.raises(UsageError, match="257 classes"):
        launches.argmax(64, (1, 257, 4, 4), good)
    with pytest.raises(UsageError, match="class map"):
        launches.argmax(64, (1, 3, 4, 5), good)
    with pytest.raises(UsageError, match="too few"):
        launches.argmax(64, (1, 3, 4, 4), good, class_elems=15)
    with pytest.raises(UsageError, match="no colour"):
        launches.palette(good, Frames(64, 1, 4, 4, 2), 64)
    with pytest.raises(UsageError, match="class map"):
        launches.palette(Frames(64, 1, 4, 4, 3), Frames(64, 1, 4, 4, 3), 64)
