"""Loading and launching: clear without a driver, and right through the real bindings and an emulated driver.

The emulated driver runs the CPU build of the kernels. Nothing here says that a GPU does the same.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from on_host import pretending

from cpd_edge.errors import RuntimeMissing
from cpd_edge.kernels import Cubin, Module, driver_version, launches, load_cubin

SEGMENT = """
import numpy as np
from cpd_edge.kernels import Frames, launches, load, reference
logits = np.random.default_rng(0).normal(size=(2, 5, 9, 35)).astype(np.float16)
made = np.zeros((2, 9, 35), np.uint8)
module = load("segmentation")
target = Frames(made.ctypes.data, 2, 9, 35, 1)
module.launch(launches.argmax(logits.ctypes.data, logits.shape, target, dtype="float16"), stream=0x2a)
assert np.array_equal(reference.argmax(logits), made)
module.unload()
"""

PREPROCESS = """
import numpy as np
from cpd_edge.kernels import Frames, Preprocess, launches, load, reference
image = np.random.default_rng(0).integers(0, 256, (1, 8, 6, 3), np.uint8)
recipe = Preprocess(5, 7, mean=(0.4, 0.5, 0.6), std=(0.2,), letterbox=True, dtype="int8", scale=0.02, zero=-3)
made = np.zeros((1, 3, 5, 7), np.int8)
load("preprocess").launch(launches.preprocess(recipe, Frames(image.ctypes.data, 1, 8, 6), made.ctypes.data))
assert np.array_equal(reference.preprocess(recipe, image), made)
"""


def test_without_a_driver_it_says_so() -> None:
    """No driver is an error that says what to do, not a crash."""
    with pytest.raises(RuntimeMissing, match=r"no NVIDIA driver: libnone\.so\.1 cannot be loaded\n.*where the GPU is"):
        driver_version("libnone.so.1")


@pytest.mark.parametrize("code", [SEGMENT, PREPROCESS])
def test_a_launch_arrives_as_it_was_made(driver: Path, code: str) -> None:
    """Through the real bindings, a kernel gets its extents and arguments and gives the reference's result."""
    done = pretending(code, driver)
    assert done.returncode == 0, done.stderr
    assert ("on stream 0x2a" in done.stderr) == (code is SEGMENT)


@pytest.mark.parametrize(
    ("pretend", "says"),
    [
        ({"status": 100}, "the NVIDIA driver is there and finds no GPU (cuInit: status 100)"),
        ({"context": 0}, "no CUDA context is current in this thread"),
        ({"cuda": 9000}, "the driver here is for CUDA 9.0, and NVRTC"),
        ({"sm": 99}, "compiles for sm_99"),
    ],
)
def test_what_is_wrong_is_said(driver: Path, pretend: dict[str, int], says: str) -> None:
    """No GPU, no context, a driver older than the compiler and an unknown GPU each have their own sentence."""
    done = pretending(SEGMENT, driver, **pretend)
    assert done.returncode == 1
    assert says in done.stderr


def test_a_cubin_for_another_gpu_is_refused_by_name(driver: Path) -> None:
    """The driver's own word for it stands in the error."""
    code = "from cpd_edge.kernels import compile_cubin, load_cubin\nload_cubin(compile_cubin('topk', 'sm_86'))"
    done = pretending(code, driver)
    assert done.returncode == 1
    assert "CUDA_ERROR_NO_BINARY_FOR_GPU" in done.stderr


def test_an_older_driver_gets_no_newer_cubin() -> None:
    """The refusal comes before the driver is asked, and names the compiler to take."""
    cubin = Cubin("topk", "sm_87", "13.0.88", b"", ())
    with pytest.raises(RuntimeMissing, match=r"CUDA 12\.6.*NVRTC 13\.0\.88(.|\n)*cuda=12"):
        load_cubin(cubin, (12, 6))


def test_a_launch_for_another_module_names_the_right_one() -> None:
    """A kernel of another source is refused with the name of its own."""
    module = Module(Cubin("topk", "sm_87", "12.9.86", b"", ()), None, {})
    with pytest.raises(Exception, match=r"spin is not in 'topk'\n.*load\('timing'\)"):
        module.launch(launches.spin(64, 1))
