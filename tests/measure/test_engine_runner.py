"""Laws of the engine runner, on an emulated GPU: see `emulated_gpu`. None of this has run on a real one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measure.emulated_gpu import LAYER_MS, ORIN, EmulatedCuda, emulated_tensorrt, engine_in, runner_in

from cpd_edge.errors import CpdError, EnvironmentMismatch, ModelError, RuntimeMissing
from cpd_edge.measure import Protocol, compare, measure
from cpd_edge.measure.device_stream import DeviceStream, cuda_runtime
from cpd_edge.measure.driver import find_gpu
from cpd_edge.measure.engine_runner import EngineRunner, runtime_module
from cpd_edge.measure.runners import RING

SHORT = Protocol(warmup_s=0.001, block_s=0.001, limit_s=0.05)
RUN_MS = sum(LAYER_MS.values())


@pytest.mark.parametrize("options", [{}, {"graph": True}, {"transfers": True}, {"graph": True, "transfers": True}])
@pytest.mark.parametrize("older", [False, True])
def test_an_inference_is_timed_by_both_clocks(tmp_path: Path, options: dict[str, Any], older: bool) -> None:
    """However it is enqueued, the events see what the kernels take, and the wall clock sees at least a call."""
    cuda = EmulatedCuda()
    runner = runner_in(tmp_path, cuda, older=older, batch=2, **options)
    found = measure(runner, "net", SHORT)
    by_events = runner.by_events(found)
    assert {round(2 * RUN_MS * 1e6)} == set(by_events.samples_ns.tolist())
    assert (found.samples_ns > 0).all()
    assert len(found.samples_ns) == len(by_events.samples_ns)
    assert ("wall", "CUDA events") == (found.environment["clock"], by_events.environment["clock"])
    assert options.get("transfers", False) == (2 in cuda.copies)
    assert options.get("graph", False) == (cuda.replays > 0)
    assert 4096 == runner.context_bytes
    runner.close()


def test_outputs_are_the_engine_s_for_any_number_of_images(tmp_path: Path) -> None:
    """In pieces of the engine's batch, also after a graph was captured."""
    cuda = EmulatedCuda()
    runner = runner_in(tmp_path, cuda, batch=4, graph=True)
    feed = np.random.default_rng(0).standard_normal((7, 3, 8, 8)).astype(np.float32)
    runner.run()
    np.testing.assert_allclose(runner.outputs(feed)[:, 0], feed.mean(axis=(1, 2, 3)), rtol=1e-5)
    runner.close()


def test_the_ring_is_run_in_turn(tmp_path: Path) -> None:
    """Eight inputs, then the first again; each graph holds its own input's address."""
    cuda = EmulatedCuda()
    runner = runner_in(tmp_path, cuda, graph=True)
    seen = []
    for _ in range(RING + 1):
        runner.run()
        (output,) = runner._outputs
        seen.append(float(np.ctypeslib.as_array((np.ctypeslib.ctypes.c_float * 1).from_address(output.address))[0]))
    means = [float(values.mean()) for values in runner.ring]
    assert seen == pytest.approx([*means[1:], *means[:2]], rel=1e-4, abs=1e-7)
    runner.close()


def test_layer_times_come_in_execution_order_with_one_time_a_run(tmp_path: Path) -> None:
    """From the profiler of a context of its own; types and ONNX nodes from the inspector."""
    runner = runner_in(tmp_path, EmulatedCuda())
    times = runner.kernel_times(3)
    assert [("conv", "CONV", 0, [1.25] * 3), ("pool", "POOL", 1, [0.5] * 3)] == [
        (k.name, k.op, k.order, k.ms.tolist()) for k in times.kernels
    ]
    assert (3,) == times.totals_ms.shape
    assert [("/conv",), ("/pool",)] == [layer.onnx for layer in runner.layers()]
    runner.close()


@pytest.mark.parametrize("options", [{}, {"graph": True, "transfers": True}])
def test_everything_is_given_back(tmp_path: Path, options: dict[str, Any]) -> None:
    """And closing twice is closing once."""
    cuda = EmulatedCuda()
    runner = runner_in(tmp_path, cuda, **options)
    assert cuda.live
    runner.close()
    runner.close()
    assert {} == cuda.live


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch": 8}, r"takes \[1, 3, 8, 8\] to \[4, 3, 8, 8\], \[8, 3, 8, 8\] was asked for"),
        ({"inputs": 2}, "has the inputs"),
    ],
)
def test_what_the_engine_does_not_take_is_refused_and_leaves_nothing(
    tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    """A refusal frees what was allocated before it."""
    cuda = EmulatedCuda()
    with pytest.raises(ModelError, match=words):
        runner_in(tmp_path, cuda, **options)
    assert {} == cuda.live


def test_an_engine_that_does_not_load_says_why(tmp_path: Path) -> None:
    """In the runtime's words, with the command that builds it here."""
    cuda = EmulatedCuda()
    trt = emulated_tensorrt(cuda)
    with pytest.raises(EnvironmentMismatch, match=r"net\.plan: magic tag does not match\n.*cpd-edge build net\.onnx"):
        EngineRunner(engine_in(tmp_path, plan=b"old plan"), trt=trt, cuda=cuda, gpu=ORIN)
    assert {} == cuda.live


def test_an_engine_of_another_version_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    """Nothing is allocated."""
    cuda = EmulatedCuda()
    with pytest.raises(EnvironmentMismatch, match=r"its version is 8\.6\.1, not 10\.3\.0"):
        EngineRunner(engine_in(tmp_path), trt=emulated_tensorrt(cuda, older=True), cuda=cuda, gpu=ORIN)
    assert {} == cuda.live


def test_a_failed_cuda_call_is_named(tmp_path: Path) -> None:
    """With its status."""
    with pytest.raises(CpdError, match="cudaMalloc failed: cudaErrorMemoryAllocation"):
        runner_in(tmp_path, EmulatedCuda(fail="cudaMalloc"))


def test_two_engines_are_compared_like_any_others(tmp_path: Path) -> None:
    """The measuring protocol takes them as they are; another way to enqueue is another environment."""
    cuda = EmulatedCuda()
    a, b, c = runner_in(tmp_path, cuda), runner_in(tmp_path, cuda), runner_in(tmp_path, cuda, graph=True)
    assert (compare(a, b, ("a", "b"), SHORT).a.samples_ns > 0).all()
    with pytest.raises(EnvironmentMismatch, match="providers"):
        compare(a, c, ("a", "c"), SHORT)


def test_paced_mode_is_the_protocol_s(tmp_path: Path) -> None:
    """One inference a frame; the runner needs to know nothing of it."""
    runner = runner_in(tmp_path, EmulatedCuda())
    found = measure(runner, "net", Protocol(warmup_s=0.0, mode="paced", period_ms=2.0, limit_s=0.05, min_blocks=2))
    assert "paced every 2 ms" in found.environment["protocol"]
    assert np.diff(found.starts_ns).mean() >= 1e6


def test_events_of_runs_that_never_were_are_refused(tmp_path: Path) -> None:
    """A measurement of another runner has other inferences."""
    cuda = EmulatedCuda()
    long = measure(runner_in(tmp_path, cuda), "net", SHORT)
    fresh = runner_in(tmp_path, cuda)
    with pytest.raises(ModelError, match="this engine ran 1"):
        fresh.by_events(long)


@pytest.mark.skipif(find_gpu()[0] is not None, reason="this machine has a GPU")
def test_without_a_driver_it_ends_in_an_error_and_not_in_a_crash(tmp_path: Path) -> None:
    """The driver is asked for before TensorRT or CUDA is touched."""
    with pytest.raises(RuntimeMissing, match=r"engine .*net\.plan needs an NVIDIA GPU"):
        EngineRunner(engine_in(tmp_path))


@pytest.mark.skipif(find_gpu()[0] is not None, reason="this machine has a GPU")
def test_the_real_bindings_without_a_driver_give_a_status() -> None:
    """Not a crash: `cudaErrorInsufficientDriver`, as an error of ours."""
    pytest.importorskip("cuda.bindings.runtime")
    with pytest.raises(CpdError, match=r"cudaStreamCreate failed: cudaError"):
        DeviceStream(cuda_runtime())


def test_every_emulated_cuda_call_exists_in_the_real_bindings() -> None:
    """The emulation has no name that NVIDIA's bindings do not have."""
    real = pytest.importorskip("cuda.bindings.runtime")
    emulated = [name for name in vars(EmulatedCuda) if name.startswith("cuda")]
    assert [] == [name for name in emulated if not hasattr(real, name)]
    assert real.cudaStreamCaptureMode(1).name == "cudaStreamCaptureModeThreadLocal"
    assert {"cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost"} <= set(real.cudaMemcpyKind.__members__)


def test_an_unknown_or_missing_runtime_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which there are, or how to install it."""
    with pytest.raises(RuntimeMissing, match="one of tensorrt, tensorrt-rtx"):
        runtime_module("onnxruntime")
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    with pytest.raises(RuntimeMissing, match="comes with JetPack"):
        runtime_module("tensorrt")
