"""Our kernels on a real GPU: probes the driver, loads a cubin into the caller's context, launches.

The driver is asked before anything else touches it: without one, some libraries crash rather than say so. Memory,
streams and contexts stay the caller's; nothing here allocates, synchronises or makes a context.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np

from cpd_edge.errors import RuntimeMissing, UsageError
from cpd_edge.kernels.cubin import Cubin, cached_cubin
from cpd_edge.kernels.launches import Launch
from cpd_edge.kernels.sources import source_of

_TYPES: dict[type[np.generic], Any] = {
    np.int32: ctypes.c_int32,
    np.int64: ctypes.c_int64,
    np.uint64: ctypes.c_uint64,
    np.float32: ctypes.c_float,
}


def driver_version(library: str = "libcuda.so.1") -> tuple[int, int]:
    """CUDA version of the driver, `(12, 6)`, once it has said that there is a device.

    Args:
        library: the driver's file name.

    Raises:
        RuntimeMissing: no driver, or one that finds no device.
    """
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        raise RuntimeMissing(
            f"no NVIDIA driver: {library} cannot be loaded",
            hint="run this where the GPU is; to make cubins here: python -m cpd_edge.kernels --cubins DIR",
        ) from None
    status, number = cuda.cuInit(0), ctypes.c_int()
    if status or cuda.cuDriverGetVersion(ctypes.byref(number)):
        raise RuntimeMissing(
            f"the NVIDIA driver is there and finds no GPU (cuInit: status {status})",
            hint="look at nvidia-smi; in a container, start it with --gpus all or --runtime nvidia",
        )
    return number.value // 1000, number.value % 1000 // 10


@dataclass(frozen=True)
class Module:
    """A loaded cubin, bound to the context that was current when it was loaded.

    Attributes:
        cubin: what was loaded.
        handle: the driver's module, as cuda-bindings has it.
        functions: the driver's function of each kernel.
    """

    cubin: Cubin
    handle: Any
    functions: dict[str, Any]

    def launch(self, launch: Launch, stream: int = 0) -> None:
        """Enqueues `launch` on `stream` and returns at once; errors of the kernel itself come with a later call.

        Args:
            launch: made by `cpd_edge.kernels.launches`.
            stream: the stream's address; 0 is the default stream.

        Raises:
            UsageError: a kernel of another source, or a launch that the driver refuses.
        """
        if launch.function not in self.functions:
            raise UsageError(
                f"{launch.function} is not in {self.cubin.source!r}",
                hint=f"load({source_of(launch.function)!r}) has it",
            )
        values = tuple(value.item() for value in launch.arguments)
        types = tuple(_TYPES[type(value)] for value in launch.arguments)
        function = self.functions[launch.function]
        driver = _bindings()
        _done(driver, driver.cuLaunchKernel(function, *launch.grid, *launch.block, 0, stream, (values, types), 0))

    def unload(self) -> None:
        """Gives the module back to the driver; its functions are of no use afterwards."""
        driver = _bindings()
        _done(driver, driver.cuModuleUnload(self.handle))


def load(source: str) -> Module:
    """Compiles `source` for the current context's GPU, or takes what was compiled before, and loads it there.

    Raises:
        RuntimeMissing: no driver, no cuda-bindings, or no compiler for this GPU.
        UsageError: no context is current in this thread, or the driver refuses the cubin.
    """
    version = driver_version()
    driver = _bindings()
    context = _done(driver, driver.cuCtxGetCurrent())
    if not int(context):
        raise UsageError(
            "no CUDA context is current in this thread",
            hint="make one first: torch.cuda.init(), cuda.core.Device().set_current() or pycuda.autoprimaryctx",
        )
    device = _done(driver, driver.cuCtxGetDevice())
    attribute = driver.CUdevice_attribute
    major, minor = (
        int(_done(driver, driver.cuDeviceGetAttribute(name, device)))
        for name in (
            attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        )
    )
    return load_cubin(cached_cubin(source, f"sm_{major}{minor}"), version)


def load_cubin(cubin: Cubin, version: tuple[int, int] | None = None) -> Module:
    """Loads a cubin that was made before, perhaps on another machine, into the current context.

    Args:
        cubin: made by `compile_cubin`.
        version: of the driver; asked if None.

    Raises:
        RuntimeMissing: no driver, no cuda-bindings, or a driver older than the cubin's compiler.
        UsageError: the driver refuses it, as where it was compiled for another GPU.
    """
    major, minor = version or driver_version()
    if cubin.cuda > major:
        raise RuntimeMissing(
            f"the driver here is for CUDA {major}.{minor}, and NVRTC {cubin.compiler} made this cubin",
            hint=f"compile with NVRTC {major}: compile_cubin({cubin.source!r}, {cubin.arch!r}, cuda={major})",
        )
    driver = _bindings()
    handle = _done(driver, driver.cuModuleLoadData(cubin.data))
    names = (use.function for use in cubin.usage)
    functions = {name: _done(driver, driver.cuModuleGetFunction(handle, name.encode())) for name in names}
    return Module(cubin, handle, functions)


def _bindings() -> Any:
    try:
        from cuda.bindings import driver
    except ImportError:
        raise RuntimeMissing("cuda-bindings is not installed", hint="pip install cuda-bindings") from None
    return driver


def _done(driver: Any, answer: tuple[Any, ...]) -> Any:
    """The value of a driver call, or an error with the driver's own word for what went wrong."""
    status, *values = answer
    if status != driver.CUresult.CUDA_SUCCESS:
        raise UsageError(
            f"the CUDA driver refused: {status.name}",
            hint="INVALID_IMAGE and NO_BINARY_FOR_GPU mean a cubin of another architecture or of a newer compiler",
        )
    return values[0] if values else None
