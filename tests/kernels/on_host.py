"""The CUDA sources as a library for this CPU, launched with the very arguments a GPU would get."""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cpd_edge.bundled import bundled
from cpd_edge.kernels import Frames, Launch

STRICT = ("-std=c++17", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-ffp-contract=off", "-pthread")
LETTERS = {np.uint64: "P", np.int64: "q", np.int32: "i", np.float32: "f"}


def compiler() -> str | None:
    """The C++ compiler, or None."""
    return shutil.which("g++")


def build(target: Path, *flags: str, sources: Path | None = None) -> Path:
    """Compiles every kernel for the CPU into `target`."""
    folder = sources or bundled("kernels")
    command = [
        compiler() or "g++",
        *STRICT,
        *flags,
        "-I",
        str(folder),
        str(folder / "host/launch.cpp"),
        "-o",
        str(target),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def build_beside(target: Path, host: Path, source: Path) -> Path:
    """Compiles `source` into a library that calls `host`."""
    command = [
        compiler() or "g++",
        *STRICT,
        "-O1",
        str(source),
        str(host),
        f"-Wl,-rpath,{host.parent}",
        "-o",
        str(target),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return target


class Host:
    """Launches on the CPU; memory is NumPy's, and an address is an array's."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def library(self) -> ctypes.CDLL:
        """The loaded library."""
        library = ctypes.CDLL(str(self.path))
        library.edge_signature.restype = ctypes.c_char_p
        return library

    def signature(self, function: str) -> str:
        """The kernel's parameter types, one letter each."""
        found = self.library.edge_signature(function.encode())
        assert found is not None, function
        return str(found.decode())

    def run(self, launch: Launch, block: int | None = None) -> None:
        """Runs a launch as it stands, or with fewer threads along x."""
        assert self.signature(launch.function).replace("Q", "P") == "".join(LETTERS[type(a)] for a in launch.arguments)
        launch = replace(launch, block=(block, 1, 1)) if block else launch
        cells = [np.array([argument]) for argument in launch.arguments]
        pointers = (ctypes.c_void_p * len(cells))(*(cell.ctypes.data for cell in cells))
        extents = [(ctypes.c_uint * 3)(*extent) for extent in (launch.grid, launch.block)]
        assert self.library.edge_launch(launch.function.encode(), *extents, pointers) == 0


def exactly(shape: Sequence[int], dtype: npt.DTypeLike, fill: int = 0xA5) -> npt.NDArray[np.generic]:
    """An array whose bytes are all `fill`, to see what was not written."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.full(size, fill, np.uint8).view(dtype).reshape(shape)


def frames(image: npt.NDArray[np.uint8]) -> Frames:
    """An array `[n, h, w, bytes]` or `[n, h, w]` as frames with its own pitch."""
    n, h, w = image.shape[:3]
    pixel = image.shape[3] if image.ndim == 4 else 1
    return Frames(image.ctypes.data, n, h, w, pixel, image.strides[1], image.strides[0])


def pitched(image: npt.NDArray[np.uint8], row_gap: int, image_gap: int) -> npt.NDArray[np.uint8]:
    """The same pixels in memory with gaps of 0xA5 after each row and each image."""
    n, h, w, pixel = image.shape
    room = exactly((n, h * (w * pixel + row_gap) + image_gap), np.uint8)
    strides = (room.strides[0], w * pixel + row_gap, pixel, 1)
    view = np.lib.stride_tricks.as_strided(room.view(np.uint8), image.shape, strides)
    view[:] = image
    return view


def sparse(size_bytes: int) -> mmap.mmap:
    """Zeros, more of them than there may be memory: pages come when they are written."""
    without_reserve = 0x4000  # MAP_NORESERVE on Linux; the module names it from Python 3.13 on
    return mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | without_reserve)


def pretending(code: str, driver: Path, **settings: int) -> subprocess.CompletedProcess[str]:
    """Runs `code` in a process that takes the emulated driver in folder `driver` for NVIDIA's.

    Args:
        code: Python.
        driver: folder of the emulated `libcuda.so.1`.
        settings: what it pretends: `sm`, `cuda`, `context`, `status`.
    """
    places = {"LD_LIBRARY_PATH": str(driver), "CPD_EDGE_CUBINS": str(driver / "cubins")}
    places["CUDA_PYTHON_DISABLE_MAJOR_VERSION_WARNING"] = "1"  # it pretends to be older than the bindings
    pretended = {f"EMULATED_{name.upper()}": str(value) for name, value in settings.items()}
    environment = {**os.environ, **places, **pretended}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
