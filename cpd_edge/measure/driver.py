"""The NVIDIA driver, asked before anything that would crash without one.

TensorRT's runtime ends the process where no driver is loaded, so this asks the driver's own library, by ctypes, and
nothing else.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cpd_edge.errors import RuntimeMissing

LIBRARY = "libcuda.so.1"

_MAJOR, _MINOR = 75, 76
"""`CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR` and `_MINOR` of the driver API."""

Load = Callable[[str], Any]


@dataclass(frozen=True)
class Gpu:
    """What the driver says of one GPU.

    Attributes:
        name: as the driver calls it.
        arch: compute capability as compilers write it (`sm_87`).
        driver: newest CUDA version that the driver serves (`12.6`).
        memory_bytes: total memory; on a Jetson it is shared with the CPU.
    """

    name: str
    arch: str
    driver: str
    memory_bytes: int


def find_gpu(index: int = 0, load: Load = ctypes.CDLL) -> tuple[Gpu | None, str]:
    """The GPU, or None and why there is none. Never raises and never crashes.

    Args:
        index: which of the driver's GPUs.
        load: opens a shared library by name.
    """
    try:
        library = load(LIBRARY)
    except OSError:
        return None, f"no NVIDIA driver is installed ({LIBRARY} is not found)"
    status = int(library.cuInit(0))
    if status != 0:
        return None, f"the NVIDIA driver does not start (cuInit gives {status})"
    count = ctypes.c_int()
    if library.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value <= index:
        return None, f"the NVIDIA driver shows {count.value} GPUs, number {index} was asked for"
    return _describe(library, index), ""


def require_gpu(purpose: str, index: int = 0, load: Load = ctypes.CDLL) -> Gpu:
    """The GPU.

    Args:
        purpose: what needs it, as the subject of the message.
        index: which of the driver's GPUs.
        load: opens a shared library by name.

    Raises:
        RuntimeMissing: there is none, with the reason.
    """
    gpu, reason = find_gpu(index, load)
    if gpu is None:
        raise RuntimeMissing(
            f"{purpose} needs an NVIDIA GPU: {reason}",
            hint="run this on the device; `cpd-edge build --runtime tensorrt-rtx` builds without a GPU",
        )
    return gpu


def _describe(library: Any, index: int) -> Gpu:
    device, name, memory = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
    major, minor, driver = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    library.cuDeviceGet(ctypes.byref(device), index)
    library.cuDeviceGetName(name, len(name), device)
    library.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    library.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
    library.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
    library.cuDriverGetVersion(ctypes.byref(driver))
    return Gpu(
        name.value.decode(errors="replace"),
        f"sm_{major.value}{minor.value}",
        f"{driver.value // 1000}.{driver.value % 1000 // 10}",
        int(memory.value),
    )


__all__ = ["LIBRARY", "Gpu", "find_gpu", "require_gpu"]
