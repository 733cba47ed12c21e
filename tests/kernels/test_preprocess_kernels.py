"""The preprocessing kernels equal their reference, bit for bit, at every edge; and the reference is what it says."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
from on_host import Host, exactly, frames, pitched, sparse

from cpd_edge.errors import UsageError
from cpd_edge.kernels import Box, Frames, Preprocess, launches, reference

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def noise(*shape: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Random bytes."""
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def both(host: Host, recipe: Preprocess, image: npt.NDArray[np.uint8]) -> Iterator[npt.NDArray[np.generic]]:
    """What the kernel makes, then what the reference makes, as raw bits."""
    made = exactly((len(image), recipe.channels, recipe.h, recipe.w), recipe.dtype)
    host.run(launches.preprocess(recipe, frames(image), made.ctypes.data))
    bits = {"float32": np.uint32, "float16": np.uint16, "int8": np.int8}[recipe.dtype]
    yield made.view(bits)
    yield reference.preprocess(recipe, image).view(bits)


SIZES = [
    pytest.param((1, 1), (1, 1), id="one pixel"),
    pytest.param((1, 1), (5, 7), id="one pixel to many"),
    pytest.param((9, 7), (1, 1), id="many to one pixel"),
    pytest.param((8, 8), (8, 8), id="same size"),
    pytest.param((7, 5), (19, 33), id="larger"),
    pytest.param((37, 41), (11, 9), id="smaller"),
    pytest.param((3, 40), (40, 3), id="larger and smaller"),
    pytest.param((1, 17), (9, 35), id="one row"),
    pytest.param((17, 1), (35, 9), id="one column"),
]


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("letterbox", [False, True])
@pytest.mark.parametrize(("src", "dst"), SIZES)
def test_the_kernel_equals_the_reference(
    host: Host, src: tuple[int, int], dst: tuple[int, int], letterbox: bool, antialias: bool
) -> None:
    """Every size, stretched and letterboxed, with and without antialias, gives the reference's bits."""
    recipe = Preprocess(*dst, letterbox=letterbox, antialias=antialias, **IMAGENET)
    kernel, wanted = both(host, recipe, noise(2, *src, 3))
    assert np.array_equal(wanted, kernel)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("pixel", [1, 3, 4])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("antialias", [False, True])
def test_every_pixel_format_and_type(host: Host, dtype: str, pixel: int, reverse: bool, antialias: bool) -> None:
    """Grey, three and four bytes a pixel, in either order, become each type with the reference's bits."""
    recipe = Preprocess(
        13,
        35,
        channels=min(pixel, 3),
        mean=(0.45,),
        std=(0.22,),
        reverse=reverse,
        antialias=antialias,
        dtype=dtype,
        scale=0.017,
    )  # type: ignore[arg-type]
    kernel, wanted = both(host, recipe, noise(3, 21, 18, pixel))
    assert np.array_equal(wanted, kernel)


def test_gaps_between_rows_and_images_are_not_read(host: Host) -> None:
    """An image with a pitch gives what the same pixels give without one."""
    recipe, image = Preprocess(9, 14), noise(3, 6, 10, 3)
    (apart, _), (tight, _) = both(host, recipe, pitched(image, 22, 64)), both(host, recipe, image)
    assert np.array_equal(tight, apart)


def test_the_fourth_byte_is_not_read(host: Host) -> None:
    """BGRx pixels give what BGR pixels give, whatever x is."""
    recipe, image = Preprocess(9, 14, reverse=True), noise(1, 6, 10, 4)
    (four, _), (three, _) = both(host, recipe, image), both(host, recipe, np.ascontiguousarray(image[..., :3]))
    assert np.array_equal(three, four)


def test_reversing_swaps_the_outer_channels(host: Host) -> None:
    """A BGR image, reversed, gives what the RGB image gives: mean and std belong to the network's channels."""
    image = noise(1, 6, 10, 3)
    plain, _ = both(host, Preprocess(6, 10, **IMAGENET), image)
    turned, _ = both(host, Preprocess(6, 10, reverse=True, **IMAGENET), np.ascontiguousarray(image[..., ::-1]))
    assert np.array_equal(plain, turned)


@pytest.mark.parametrize("antialias", [False, True])
def test_same_size_is_exact(host: Host, antialias: bool) -> None:
    """Resizing to the same size gives the pixels."""
    image = noise(1, 11, 13, 3)
    kernel, _ = both(host, Preprocess(11, 13, std=(1 / 255,), antialias=antialias), image)
    assert np.array_equal(image.transpose(0, 3, 1, 2), kernel.view(np.float32))


def test_int8_rounds_half_to_even_and_saturates(host: Host) -> None:
    """Ties go to the even step on both sides of 0, and what is beyond the type stops at its ends."""
    levels = np.array([0, 1, 2, 3, 4, 5, 6, 7, 250, 255], np.uint8)
    recipe = Preprocess(1, 10, channels=1, mean=(3 / 255,), std=(1 / 255,), dtype="int8", scale=2.0)
    kernel, _ = both(host, recipe, levels.reshape(1, 1, 10, 1))
    assert [-2, -1, 0, 0, 0, 1, 2, 2, 124, 126] == kernel.ravel().tolist()  # -1.5 -1 -0.5 0 0.5 1 1.5 2 123.5 126
    steep = Preprocess(1, 10, channels=1, mean=(3 / 255,), std=(1 / 255,), dtype="int8", scale=1e-30, zero=5)
    kernel, _ = both(host, steep, levels.reshape(1, 1, 10, 1))
    assert [-128, -128, -128, 5, 127, 127, 127, 127, 127, 127] == kernel.ravel().tolist()


def test_half_precision_equals_numpy_everywhere(host: Host) -> None:
    """Values around every exponent, subnormals, ties and overflow become the float16 that NumPy makes."""
    level = np.arange(256, dtype=np.uint8).reshape(1, 1, 256, 1)
    for power in range(-34, 9):
        recipe = Preprocess(1, 256, channels=1, mean=(0.3,), std=(2.0**-power / 255 * 1.003,), dtype="float16")
        kernel, wanted = both(host, recipe, level)
        assert np.array_equal(wanted, kernel), power


def test_nothing_outside_the_output_is_written(host: Host) -> None:
    """The byte before and the byte after the output stay as they were."""
    recipe = Preprocess(5, 33, channels=1, dtype="int8")
    room = exactly((1 + 2 * 5 * 33 + 1,), np.uint8)
    host.run(launches.preprocess(recipe, frames(noise(2, 4, 4, 1)), room.ctypes.data + 1))
    assert [0xA5, 0xA5] == [room[0], room[-1]]


def test_offsets_beyond_two_gigabytes_are_followed(host: Host) -> None:
    """Rows and images that begin 2 GiB and more behind the first are the ones that are read."""
    image_bytes, row_bytes = 3 << 31, 5 << 29
    with sparse(2 * image_bytes) as room:
        pixels = noise(2, 2, 2, 1)
        for (i, y, x, _), value in np.ndenumerate(pixels):
            room[i * image_bytes + y * row_bytes + x] = int(value)
        memory = np.frombuffer(room, np.uint8)
        far = Frames(memory.ctypes.data, 2, 2, 2, 1, row_bytes, image_bytes)
        made = exactly((2, 1, 2, 2), np.float32)
        host.run(launches.preprocess(Preprocess(2, 2, channels=1, std=(1 / 255,)), far, made.ctypes.data))
        del memory
    assert np.array_equal(pixels.reshape(2, 1, 2, 2), made)


def test_an_output_taller_than_a_grid_is_done_whole(host: Host) -> None:
    """More rows than a grid may have blocks are all processed: y strides."""
    kernel, wanted = both(host, Preprocess(65_535 * 8 + 3, 1, channels=1), noise(1, 5, 1, 1))
    assert np.array_equal(wanted, kernel)


def test_a_batch_larger_than_a_grid_is_done_whole(host: Host) -> None:
    """More images than a grid may have blocks are all processed: z strides."""
    image = noise(65_537, 1, 1, 1)
    kernel, wanted = both(host, Preprocess(1, 1, channels=1, std=(1 / 255,)), image)
    assert np.array_equal(wanted, kernel)


@pytest.mark.parametrize(
    ("src", "dst", "box"),
    [
        ((480, 640), (640, 640), Box(80, 0, 480, 640)),
        ((3, 4), (8, 8), Box(1, 0, 6, 8)),
        ((2, 5), (7, 7), Box(2, 0, 3, 7)),  # 2.8 rows; 4 left over, 2 and 2
        ((5, 3), (8, 8), Box(0, 1, 8, 5)),  # 4.8 columns; 3 left over: 1 before, 2 after
        ((1, 1000), (4, 4), Box(1, 0, 1, 4)),  # never less than one row
        ((7, 7), (4, 9), Box(0, 2, 4, 4)),
        ((4, 5), (2, 9), Box(0, 3, 2, 2)),  # 2.5 columns: half to even
        ((4, 7), (2, 9), Box(0, 2, 2, 4)),  # 3.5 columns: half to even
    ],
)
def test_a_letterbox_is_centred_with_the_odd_pixel_behind(src: tuple[int, int], dst: tuple[int, int], box: Box) -> None:
    """The limiting side fits, the other is rounded half to even, the larger half of the rest lies behind."""
    assert box == Preprocess(*dst, letterbox=True).box(*src)


def test_padding_is_normalised_like_a_pixel(host: Host) -> None:
    """Around a letterboxed image lies what a pixel of the pad's level becomes."""
    recipe = Preprocess(8, 8, letterbox=True, pad=114, **IMAGENET)
    kernel, _ = both(host, recipe, np.full((1, 4, 8, 3), 114, np.uint8))
    flat = kernel.view(np.float32)
    assert np.array_equal(np.broadcast_to(flat[:, :, :1, :1], flat.shape), flat)


def test_points_go_back_to_the_source_image() -> None:
    """The corners of the box in the output are the corners of the source image; what is outside is clipped to it."""
    box = Preprocess(640, 640, letterbox=True).box(480, 1280)
    corners = np.array([[box.left, box.top], [box.left + box.w, box.top + box.h], [0, 0]])
    assert [[0, 0], [1280, 480], [0, 0]] == box.to_source(corners, 480, 1280).tolist()
    assert [0, -400] == box.to_source(np.array([0, 0]), 480, 1280, clip=False).tolist()


@pytest.mark.parametrize(
    "wrong",
    [
        {"h": 0}, {"w": 1 << 30}, {"channels": 2}, {"mean": (0.1, 0.2)}, {"std": (0.0,)}, {"std": (-1.0,)},
        {"mean": (float("nan"),)}, {"std": (1e-39,)}, {"pad": 256}, {"scale": 0.0, "dtype": "int8"},
        {"scale": 1e-45, "dtype": "int8"}, {"zero": 128}, {"dtype": "float64"}, {"std": (1e-6,), "dtype": "float16"},
    ],
)  # fmt: skip
def test_a_recipe_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    """Numbers that no kernel can carry are refused when they are named, not met on a device."""
    with pytest.raises(UsageError):
        Preprocess(**{"h": 4, "w": 4, **wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        {"row_bytes": 11}, {"image_bytes": 40}, {"pixel_bytes": 1}, {"pixel_bytes": 2}, {"n": 0}, {"h": -1}, {"w": 0},
        {"data": 0},
    ],
)  # fmt: skip
def test_frames_that_overlap_or_do_not_fit_are_refused(wrong: dict[str, int]) -> None:
    """A launch that would read beside the image is not made."""
    with pytest.raises(UsageError):
        launches.preprocess(Preprocess(2, 2), Frames(**{"data": 64, "n": 1, "h": 4, "w": 4, **wrong}), 64)
