"""Laws of the kernels' part of `doctor --gpu`: it launches what NumPy says, and tells when a kernel does not.

The kernels run on this CPU, in emulated device memory; no GPU is involved.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
from measure.emulated_gpu import ORIN, EmulatedCuda
from on_host import Host

from cpd_edge.kernels import FUNCTIONS, Launch
from cpd_edge.pipeline import gpu_check
from cpd_edge.pipeline.gpu_check import Bench, CheckFailed, cubins


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Launch], None]], EmulatedCuda]:
    """Puts in a device whose kernels are run by what is given, and gives the device."""

    def put(launch: Callable[[Launch], None]) -> EmulatedCuda:
        device = EmulatedCuda()
        monkeypatch.setattr(gpu_check, "require_gpu", lambda purpose: ORIN)
        monkeypatch.setattr(gpu_check, "cuda_runtime", lambda: device)
        monkeypatch.setattr(gpu_check, "load", lambda source: SimpleNamespace(launch=lambda x, stream: launch(x)))
        return device

    return put


def test_kernels_that_compute_what_numpy_does_are_equal(
    host: Host, run: Callable[..., EmulatedCuda], tmp_path: object
) -> None:
    """Every source but the one for timing, in every type that is checked; the device's memory is given back."""
    launched: list[str] = []

    def launch(x: Launch) -> None:
        launched.append(x.function)
        host.run(x)

    device = run(launch)
    found = cubins(Bench(tmp_path))  # type: ignore[arg-type]
    assert found == {name: "equal" for name in FUNCTIONS if name != "timing"}
    assert {"preprocess_f32", "preprocess_f16", "preprocess_i8", "argmax_f32", "palette", "topk_f32"} == set(launched)
    assert device.live == {}


def test_a_kernel_that_writes_nothing_is_found_out(run: Callable[..., EmulatedCuda], tmp_path: object) -> None:
    """With its name and how much of it differs."""
    run(lambda x: None)
    with pytest.raises(CheckFailed, match=r"kernel preprocess to float32: \d+ of 3072 values differ"):
        cubins(Bench(tmp_path))  # type: ignore[arg-type]
