"""The doctor: what is installed, what state the machine is in, and the smallest difference it can show."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from statistics import NormalDist
from typing import Any

import numpy as np

from cpd_edge.errors import RuntimeMissing, UsageError
from cpd_edge.measure.devices import LOCAL, SIMULATED
from cpd_edge.measure.driver import find_gpu
from cpd_edge.measure.environment import load_average, pinned, state
from cpd_edge.measure.protocol import Clock, Progress, Protocol, Runner, Sleep, compare
from cpd_edge.measure.remote import RUNTIME, device_runner, require_device
from cpd_edge.measure.runtimes import RUNNERS
from cpd_edge.measure.station import examined
from cpd_edge.measure.stats import half_width, outliers, quantile_interval
from cpd_edge.types import Comparison

OPTIONAL = {
    "torchvision": "models torchvision:NAME, data fashion-mnist: pip install 'cpd-edge[zoo]'",
    "timm": "models timm:NAME: pip install 'cpd-edge[zoo]'",
    "pyarrow": "tables as Parquet files: pip install 'cpd-edge[parquet]'",
    "cuda-bindings": "our CUDA kernels on an NVIDIA GPU: pip install 'cpd-edge[gpu]'",
}
"""Packages that some things need, and which."""
PACKAGES = (
    "numpy", "scipy", "pandas", "scikit-learn", "torch", "onnx", "onnxscript", "typer", "rich", "jinja2", *OPTIONAL,
)  # fmt: skip
RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "openvino")
"""Packages that bring a runtime."""

LEVEL = 0.99
"""Coverage of the doctor's interval: at 95 % one healthy machine in twenty would find an engine faster than itself."""

_POWER = 0.8


def doctor(
    make_runner: Callable[[], Runner] | None = None,
    *,
    protocol: Protocol | None = None,
    clock: Clock = time.perf_counter_ns,
    sleep: Sleep = time.sleep,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Examines this machine; plain data.

    Keys: `python`, `platform`, `device`, `cores`, `pinned`, `governor`, `turbo`, `load_1m`, `packages` (version or
    None), `missing` (what each package that is not there would be for), `runtimes` (`version` or None, `install`),
    `aa` (see `aa_report`, or None without a runtime), `warnings`.

    Args:
        make_runner: makes the engine to run against itself; a small convolutional network on the first runtime that
            is installed if None.
        protocol: of the A/A comparison; at most 5 s if None.
        clock, sleep, progress: as in `compare`.
    """
    versions = {name: installed(name) for name in (*PACKAGES, *RUNTIMES)}
    here, load = state(), load_average()
    aa, missing = _against_itself(make_runner or _tiny_runner, protocol, clock, sleep, progress)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": here["device"],
        "governor": here["governor"],
        "cores": here["cores"],
        "turbo": here["turbo"],
        "load_1m": load,
        "pinned": list(pinned()),
        "packages": {name: versions[name] for name in PACKAGES},
        "missing": {name: use_of(name) for name in PACKAGES if versions[name] is None},
        "runtimes": {
            name: {"version": versions[name], "install": line}
            for name, line in install_lines(versions, find_gpu()[0] is not None).items()
        },
        "aa": aa,
        "warnings": [*missing, *_package_warnings(versions), *_state_warnings(aa, here["governor"], load)],
    }


def doctor_there(
    device: str, runtime: str = RUNTIME, *, protocol: Protocol | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Examines another device over ssh; plain data: all that `examined` says, and `aa` and `warnings` as above.

    Args:
        device: the name that it was added under.
        runtime: what runs the engine there, one of `remote.THERE`.
        protocol, progress: see `doctor`.

    Raises:
        UsageError: an unknown device or runtime.
        DeviceError: the device cannot be reached, or is in use.
    """
    if device in (LOCAL, SIMULATED):
        raise UsageError(
            f"device {device} is not reached over ssh, and takes no --runtime here",
            hint="this machine: cpd-edge doctor; the simulated one is arithmetic and has nothing to examine",
        )
    require_device(device, runtime)
    state = examined(device)

    def make() -> Runner:
        return device_runner(device, runtime, tiny_model())

    aa, missing = _against_itself(make, protocol, time.perf_counter_ns, time.sleep, progress)
    return {
        **state,
        "aa": aa,
        "warnings": [*missing, *_state_warnings(aa, state["governor"], state["load_1m"])],
    }


def _against_itself(
    make_runner: Callable[[], Runner],
    protocol: Protocol | None,
    clock: Clock,
    sleep: Sleep,
    progress: Progress | None,
) -> tuple[dict[str, Any] | None, list[str]]:
    """What `aa_report` says of an engine and itself, or None and why there is no engine."""
    try:
        runner = make_runner()
    except RuntimeMissing as error:
        return None, [str(error)]
    chosen = protocol or Protocol(level=LEVEL, limit_s=5.0)
    try:
        found = compare(runner, runner, ("a", "a again"), chosen, clock=clock, sleep=sleep, progress=progress)
    finally:
        runner.close()
    return {"runtime": runner.environment["runtime"], **aa_report(found, chosen.level)}, []


def aa_report(comparison: Comparison, level: float = 0.95) -> dict[str, Any]:
    """What a comparison of an engine with itself says about the machine; plain data.

    Keys: `outcome`, `sound` (no difference was found), `ratio` and its `ratio_low`, `ratio_high`,
    `noise_floor_percent` (largest difference that the interval does not exclude), `detectable_percent` (smallest true
    difference that is found in 80 % of runs, never below the noise floor), `margin_percent`, `median_ms`,
    `spread_percent` (half-width of the median's interval), `samples`, `outliers`, `steady`, `interference`, `stop`.
    """
    a, ratio = comparison.a, comparison.speedup
    values_ms = a.samples_ns / 1e6
    median = quantile_interval(values_ms, 0.5, level)
    reach = NormalDist().inv_cdf((1 + level) / 2)
    floor = max(ratio.high - 1, 1 - ratio.low)
    detectable = half_width(ratio) * (reach + NormalDist().inv_cdf(_POWER)) / reach
    return {
        "outcome": comparison.outcome,
        "sound": comparison.outcome in ("equivalent", "inconclusive"),
        "ratio": ratio.estimate,
        "ratio_low": ratio.low,
        "ratio_high": ratio.high,
        "noise_floor_percent": 100 * floor,
        "detectable_percent": 100 * max(floor, detectable),
        "margin_percent": 100 * comparison.margin,
        "median_ms": median.estimate,
        "spread_percent": 100 * half_width(median),
        "samples": median.n,
        "outliers": len(outliers(values_ms)),
        "steady": a.steady,
        "interference": a.interference,
        "stop": a.stop,
    }


def install_lines(versions: Mapping[str, str | None], gpu: bool) -> dict[str, str]:
    """How each runtime is installed beside what is there, or why not.

    `onnxruntime` and `onnxruntime-gpu` are one module, so the extras `cpu` and `gpu` exclude each other.

    Args:
        versions: of installed packages.
        gpu: whether there is an NVIDIA GPU.
    """
    on_gpu = "pip install 'cpd-edge[gpu]'"
    if not gpu:
        on_gpu = "needs an NVIDIA GPU, none is here"
    elif versions.get("onnxruntime"):
        on_gpu = f"pip uninstall onnxruntime, then {on_gpu}"
    there = versions.get("onnxruntime-gpu")
    return {
        "onnxruntime": "onnxruntime-gpu is there instead" if there else "pip install 'cpd-edge[cpu]'",
        "onnxruntime-gpu": on_gpu,
        "tensorrt": on_gpu,
        "tensorrt-rtx": "pip install 'cpd-edge[rtx]'",
        "openvino": "pip install 'cpd-edge[openvino]'",
    }


def use_of(package: str) -> str:
    """What a package that is not there would be for, and the line that installs it."""
    found = OPTIONAL.get(package)
    return f"only for {found}" if found else f"cpd-edge needs it: pip install {package}"


def installed(package: str) -> str | None:
    """A package's version, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def tiny_model(channels: Sequence[int] = (3, 16, 32, 32), size: int = 32, classes: int = 10) -> bytes:
    """A few convolutions with ReLU, a pool and a classifier, as ONNX bytes with a symbolic `batch`."""
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    nodes, weights, source = [], [], "image"
    for i, (c_in, c_out) in enumerate(pairwise(channels)):
        weight = (random.standard_normal((c_out, c_in, 3, 3)) / np.sqrt(9 * c_in)).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"weight{i}"))
        nodes.append(helper.make_node("Conv", [source, f"weight{i}"], [f"conv{i}"], f"conv{i}", pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"conv{i}"], [f"relu{i}"], f"relu{i}"))
        source = f"relu{i}"
    head = random.standard_normal((channels[-1], classes)).astype(np.float32)
    weights.append(numpy_helper.from_array(head, "head_weight"))
    nodes += [
        helper.make_node("GlobalAveragePool", [source], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["features"], "flatten"),
        helper.make_node("MatMul", ["features", "head_weight"], ["logits"], "head"),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", channels[0], size, size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    serialized: bytes = model.SerializeToString()
    return serialized


def _tiny_runner() -> Runner:
    """The tiny model on the first runtime that is installed.

    Raises:
        RuntimeMissing: none is.
    """
    missing: list[RuntimeMissing] = []
    for make in RUNNERS.values():
        try:
            return make(tiny_model())
        except RuntimeMissing as error:
            missing.append(error)
    raise missing[0]


def _package_warnings(versions: Mapping[str, str | None]) -> list[str]:
    if versions["onnxruntime"] and versions["onnxruntime-gpu"]:
        return [
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: "
            "pip uninstall both, then install one"
        ]
    return []


def _state_warnings(aa: Mapping[str, Any] | None, governor: str, load: float | None) -> list[str]:
    """What makes numbers of a machine in this state less trustworthy, in words."""
    found = []
    if governor not in ("performance", "unknown", ""):
        found.append(f"the CPU governor is {governor}: clocks move with the load; set it to performance")
    if load is not None and load > 0.5:
        found.append(f"the load average is {load}: something else is running")
    if aa is not None and not aa["sound"]:
        found.append(f"an engine compared with itself came out {aa['outcome']}: this machine is not quiet, try again")
    if aa is not None and not aa["steady"]:
        found.append("latency had a trend while it was measured: the machine was not steady")
    return found
