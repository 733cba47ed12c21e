"""Laws of the driver probe: it says what is there and why nothing is, and never brings the process down."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from typing import Any

import pytest

from cpd_edge.errors import RuntimeMissing
from cpd_edge.measure.driver import Gpu, find_gpu, require_gpu

NO_GPU = find_gpu()[0] is None


class EmulatedDriver:
    """The seven calls of `libcuda.so.1` that the probe makes, for one Orin; emulated, no driver is involved."""

    def __init__(self, status: int = 0, gpus: int = 1) -> None:
        self.status, self.gpus = status, gpus

    def cuInit(self, flags: int) -> int:
        return self.status

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = self.gpus
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:
        device._obj.value = index
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:
        name.value = b"Orin"
        return 0

    def cuDeviceTotalMem_v2(self, memory: Any, device: Any) -> int:
        memory._obj.value = 8 << 30
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:
        value._obj.value = {75: 8, 76: 7}[attribute]
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 12060
        return 0


def test_a_gpu_is_described() -> None:
    """Name, compute capability, CUDA version and memory, as the driver has them."""
    expected = Gpu("Orin", "sm_87", "12.6", 8 << 30)
    assert (expected, "") == find_gpu(load=lambda name: EmulatedDriver())


@pytest.mark.parametrize(
    ("driver", "reason"),
    [
        (EmulatedDriver(status=999), "cuInit gives 999"),
        (EmulatedDriver(gpus=0), "shows 0 GPUs"),
    ],
)
def test_a_driver_without_a_gpu_says_why(driver: EmulatedDriver, reason: str) -> None:
    """None, and the reason."""
    gpu, why = find_gpu(load=lambda name: driver)
    assert gpu is None
    assert reason in why


def test_a_missing_library_is_a_reason() -> None:
    """No exception from the probe; the demand for a GPU raises it with what to do."""

    def missing(name: str) -> ctypes.CDLL:
        raise OSError(f"{name}: cannot open shared object file")

    assert (None, "no NVIDIA driver is installed (libcuda.so.1 is not found)") == find_gpu(load=missing)
    with pytest.raises(RuntimeMissing, match="engine x needs an NVIDIA GPU: no NVIDIA driver"):
        require_gpu("engine x", load=missing)


@pytest.mark.skipif(not NO_GPU, reason="this machine has a GPU")
def test_the_real_probe_survives_a_machine_without_a_driver() -> None:
    """In a process of its own, so that a crash would be seen."""
    code = "from cpd_edge.measure.driver import find_gpu; print(find_gpu())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (0, True) == (done.returncode, done.stdout.startswith("(None, '"))
