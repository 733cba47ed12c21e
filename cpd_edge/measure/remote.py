"""Engines on another device: the same questions as to a local one, answered there, timed there."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cpd_edge.errors import ModelError, UsageError
from cpd_edge.measure.arithmetic import computed_in
from cpd_edge.measure.devices import LOCAL, SIMULATED, get
from cpd_edge.measure.engine_runner import layer_kernels
from cpd_edge.measure.frames import Camera, by_stage, refused, stages_source
from cpd_edge.measure.host_stages import STAGES
from cpd_edge.measure.layers import layers_from_inspector
from cpd_edge.measure.providers import provider_name, runtime_name
from cpd_edge.measure.runners import RING, Kernel, KernelTimes, _kernels
from cpd_edge.measure.runtimes import ModelRunner, model_runner
from cpd_edge.measure.simulated_runtime import SimulatedRuntime
from cpd_edge.measure.site import LEAD_NS, Block, Pace, Runs, Visits
from cpd_edge.measure.ssh import DeviceError
from cpd_edge.measure.station import Station, station

RUNTIME = "onnxruntime"
THERE: Mapping[str, Mapping[str, str]] = {
    RUNTIME: {},
    "onnxruntime-cuda": {"provider": "cuda"},
    "onnxruntime-tensorrt": {"provider": "tensorrt"},
    "tensorrt": {"runtime": "tensorrt"},
}
"""What other devices run engines on, and what is asked of the agent for it."""


class UntypedModel(ModelError):
    """A strongly typed runtime was given a model in other types than those that were asked for."""


@dataclass(frozen=True)
class RemoteSite:
    """A device that times its own engines: one request a visit schedule, no message between two inferences."""

    station: Station

    def moment(self) -> Mapping[str, Any]:
        """See `Site`: the device's, not ours."""
        found: dict[str, Any] = self.station.ask("moment")[0]["moment"]
        return found

    def warm_up(self, runners: Sequence[Runs], pace: Pace, warmup_ns: int) -> None:
        """See `Site`."""
        self.station.ask("warm", order=_numbers(runners), warmup_ns=warmup_ns, period_ns=pace.period_ns)

    def visit(self, order: Sequence[Runs], pace: Pace, most: int, left_ns: int) -> Visits:
        """See `Site`. Time in which the device waits for us does not count."""
        done, visits = self.station.ask(
            "visits",
            order=_numbers(order),
            most=most,
            left_ns=left_ns,
            block_ns=pace.block_ns,
            period_ns=pace.period_ns,
            leads=pace.leads(order),
            lead_ns=LEAD_NS,
        )
        if len(visits) != done["visits"]:
            raise DeviceError(
                f"{self.station.device.name} made {done['visits']} visits, {len(visits)} arrived",
                hint="this is a bug: please report it",
                name="lost",
            )
        blocks = tuple(Block(samples, starts) for visit in visits for samples, starts in visit)
        return Visits(blocks, done["elapsed_ns"], done["switches"])

    def times_ns(self, runner: Runs, repeats: int) -> npt.NDArray[np.int64]:
        """See `Site`."""
        done, _ = self.station.ask("times", engine=_numbers([runner])[0], repeats=repeats)
        return np.asarray(done["samples_ns"], np.int64)


class RemoteRunner:
    """An ONNX model on a device's ONNX Runtime or TensorRT, which builds its engine there: a runner, elsewhere.

    Args:
        at: the device's station, or the name of a device.
        model, threads, batch, seed, profile, sample_input, precision, provider: as of `OnnxRunner`; the ring of inputs
            is the same, as far as NumPy's generator is.
        runtime: `onnxruntime` or `tensorrt`.
        typed: the model has the types of its precision already, which TensorRT wants from 11 on.

    Attributes:
        load_ms: `first_load` and `first_inference`, apart.
        site: the device, which times by itself.

    Raises:
        DeviceError: the device cannot be reached or used.
        RuntimeMissing: it lacks the runtime, or its build lacks the provider.
        ModelError: no model that the runtime there takes.
        EnvironmentMismatch: the provider did not start there, or nodes fell back to its CPU.
        UntypedModel: that TensorRT takes the precision from the model alone, and it was not given so.
    """

    def __init__(
        self,
        at: Station | str,
        model: Path | bytes,
        *,
        threads: int = 1,
        batch: int = 1,
        seed: int = 0,
        profile: bool = False,
        sample_input: npt.NDArray[Any] | None = None,
        precision: str = "fp32",
        provider: str = "cpu",
        runtime: str = RUNTIME,
        typed: bool = False,
    ) -> None:
        self._station = station(get(at)) if isinstance(at, str) else at
        self.site = RemoteSite(self._station)
        self._options = {
            "threads": threads, "batch": batch, "seed": seed, "profile": profile, "provider": provider,
            "runtime": runtime, "precision": precision, "typed": typed,
        }  # fmt: skip
        self._data = model if isinstance(model, bytes) else model.read_bytes()
        ring = None
        if sample_input is not None:
            picks = np.random.default_rng(seed).integers(0, len(sample_input), (RING, batch))
            ring = self._station.send(_npy(sample_input[picks]))
        self.number, answer = self._load(ring)
        found = answer["environment"]
        self.load_ms: Mapping[str, float] = answer["load_ms"]
        self._captured: Mapping[str, Any] = {
            **{name: value for name, value in found.items() if not name.startswith("memory_")},
            "device": f"{self._station.device.name}: " + ", ".join(filter(None, [found["device"], found.get("gpu")])),
            "runtime": runtime if runtime != RUNTIME else runtime_name(provider_name(provider)),
            "precision": precision,
            "threads": threads,
            "batch": batch,
            "inputs": f"ring of {RING}, " + ("standard normal" if sample_input is None else "given samples"),
            "protocol": "",
            **self.site.moment(),
        }

    @property
    def environment(self) -> Mapping[str, Any]:
        """Of the device; its name comes first, so that it is never taken for this machine."""
        return {**self._captured, **self._computed}

    @cached_property
    def _computed(self) -> Mapping[str, str]:
        return computed_in((k.op, k.precision) for k in self.kernels(1))

    def frame(self, camera: Camera) -> None:
        """Puts the stages of a deployment around the engine, on the device's CPU: `run` takes frames from now on.

        Raises:
            ModelError: it is no network from one frame to classes or a class map.
            RuntimeMissing: the device lacks Pillow.
            UsageError: the engine does not run on ONNX Runtime's CPU provider.
        """
        if self.environment["runtime"] != RUNTIME:
            raise UsageError(
                f"--end-to-end around {self.environment['runtime']} on another device",
                hint=f"there the stages go around --runtime {RUNTIME} only: leave out --end-to-end",
            )
        shape = tuple(int(n) for n in str(self.environment["shape"]).split("x"))
        plan, code = camera.plan(shape), self._station.send(stages_source())
        try:
            words = self._station.ask("frame", engine=self.number, sha256=code, plan=plan)[0]["words"]
        except DeviceError as error:
            raise (refused(error.what) if error.name == "failed" else error) from error
        self._captured = {**self._captured, **camera.described(plan["frame"][2], words)}

    def stage_ms(self, starts_ns: npt.NDArray[np.int64]) -> Mapping[str, npt.NDArray[np.float64]]:
        """See `StagedRunner`; timed on the device."""
        rows = self._station.ask("stages", engine=self.number, starts_ns=starts_ns.tolist())[0]["rows_ns"]
        return by_stage(STAGES, rows)

    def run(self) -> None:
        """One inference; to time it, use `site`: this waits for the network too."""
        self.site.times_ns(self, 1)

    def warm_load_ms(self) -> float:
        """Time to load the model there once more, now that file and runtime are warm [ms]."""
        return float(self._station.ask("warm_load", engine=self.number)[0]["ms"])

    def outputs(self, feed: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The first output for `feed` `[any batch, ...]`, computed on the device."""
        sent = self._station.send(_npy(np.asarray(feed)))
        found, _ = self._station.ask("outputs", engine=self.number, sha256=sent)
        values = np.frombuffer(base64.b64decode(found["data"]), np.dtype(found["dtype"]))
        found_values: npt.NDArray[Any] = values.reshape(found["shape"]).copy()
        return found_values

    def kernels(self, repeats: int) -> list[Kernel]:
        """`kernel_times` without the totals."""
        return list(self.kernel_times(repeats).kernels)

    def kernel_times(self, repeats: int) -> KernelTimes:
        """Times of every kernel in `repeats` runs, from the profiler of the runtime there, in execution order."""
        found, _ = self._station.ask("kernels", engine=self.number, repeats=repeats)
        totals_ms = np.asarray(found["totals_ms"], np.float64)
        if "inspector" in found:
            layers, ms = layers_from_inspector(found["inspector"]), np.asarray(found["ms"], np.float64)
            return KernelTimes(layer_kernels(layers, found["names"], ms), totals_ms)
        return KernelTimes(_kernels(found["events"], repeats), totals_ms)

    def close(self) -> None:
        """Frees the engine there; the device stays ours until the process ends."""
        if self._station.alive:
            self._station.ask("close", engine=self.number)

    def _load(self, ring: str | None) -> tuple[int, dict[str, Any]]:
        """Opens the engine there; sends the model again where the device had no room to keep it."""
        for last in (False, True):
            name, number = self._station.send(self._data), self._station.next_engine()
            try:
                return number, self._station.ask("load", engine=number, sha256=name, ring=ring, **self._options)[0]
            except DeviceError as error:
                if error.name == "typed":
                    raise UntypedModel(error.what, hint="give the model in the types of its precision") from error
                if error.name == "failed":
                    raise ModelError(
                        f"{self._options['runtime']} there does not take the model: {error.what.splitlines()[0]}",
                        hint="give an ONNX file that its version supports; cpd-edge devices probe NAME shows it",
                    ) from error
                if error.name != "no-file" or last:
                    raise
        raise AssertionError  # the loop returns or raises


def device_runner(device: str, runtime: str, model: Path | bytes, **options: Any) -> ModelRunner:
    """A model, ready to run on a runtime of a device; `local` is this machine.

    Args:
        device: `local`, `simulated`, or the name of a device that was added.
        runtime: a name of `runtimes.RUNNERS` here, of `THERE` on another device.
        model: ONNX file, or its bytes.
        options: `threads`, `batch`, `profile`, `precision`; of other devices also `typed`.

    Raises:
        UsageError: an unknown device, or a runtime that is not offered there.
    """
    if device == LOCAL:
        return model_runner(runtime, model, **options)
    if device == SIMULATED:
        return SimulatedRuntime(model, **options)
    require_device(device, runtime)
    return RemoteRunner(device, model, **{**options, **THERE[runtime]})


def require_device(device: str, runtime: str = RUNTIME) -> None:
    """Refuses a device that is unknown, or that a runtime is not offered on, before any work.

    Raises:
        UsageError: says which, and what to type.
    """
    if device in (LOCAL, SIMULATED):
        return
    get(device)
    if runtime not in THERE:
        offered = " or ".join(f"--runtime {name}" for name in THERE)
        raise UsageError(f"runtime {runtime} on device {device}", hint=f"other devices run {offered}")


def _numbers(runners: Sequence[Runs]) -> list[int]:
    """The numbers that the device knows these engines by."""
    return [runner.number for runner in runners if isinstance(runner, RemoteRunner)]


def _npy(values: npt.NDArray[Any]) -> bytes:
    """An array as a `.npy` file."""
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(values), allow_pickle=False)
    return stream.getvalue()


__all__ = ["THERE", "RemoteRunner", "RemoteSite", "UntypedModel", "device_runner", "require_device"]
