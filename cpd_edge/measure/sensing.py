"""Sensors while engines are measured: this machine's, read by a process of its own, or a device's, read by its agent.

Both are read by the same code, `agent.py`'s sampler, on the monotonic clock of the samples. Nothing is changed on the
machine: clocks, power modes and fans are observed, never set.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

from cpd_edge.measure.remote import RemoteRunner
from cpd_edge.measure.simulated_runtime import SimulatedRuntime
from cpd_edge.measure.telemetry import Power, Reading, energy, mean_power, reading, throttling
from cpd_edge.types import Measurement

EVERY_S = 1.0
"""How often this machine's sensors are read."""
IDLE_S = 10.0
"""How long the idle power is looked at."""

_AROUND_NS = 5 * 10**9


class Sensors(Interface):
    """Where an engine runs, as its sensors say it."""

    def readings(self) -> list[Reading]:
        """All readings so far, in order of time."""


class HereSensors:
    """This machine's sensors, read by another process until `close`.

    Args:
        every_s: time between two readings [s].
        root: where `/proc` and `/sys` are looked for.
    """

    def __init__(self, every_s: float = EVERY_S, root: str = "/") -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="cpd-edge-sensors-")
        self._log = Path(self._folder.name) / "telemetry"
        (Path(self._folder.name) / "config").write_text(
            json.dumps({"root": root, "telemetry_s": every_s, "temporary": True})
        )
        agent = str(Path(__file__).with_name("agent.py"))
        command = [sys.executable, "-I", agent, "sampler", self._folder.name]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the parent, whose end is this one's too
        )

    def readings(self) -> list[Reading]:
        """See `Sensors`."""
        whole = self._log.read_bytes().split(b"\n")[:-1] if self._log.exists() else []
        return [reading(json.loads(line)) for line in whole]

    def close(self) -> None:
        """Ends the process."""
        self._process.terminate()
        self._process.wait()
        self._folder.cleanup()


class ThereSensors:
    """A device's sensors, as its agent has sent them."""

    def __init__(self, runner: RemoteRunner) -> None:
        self._station = runner.site.station

    def readings(self) -> list[Reading]:
        """See `Sensors`; asks the device, so that what it has read by now is here."""
        self._station.ask("moment")
        return [reading(raw) for raw in self._station.telemetry]


@contextlib.contextmanager
def sensing(runner: object, *, every_s: float = EVERY_S, root: str = "/") -> Iterator[Sensors]:
    """The sensors of where an engine runs, for as long as it is measured."""
    if isinstance(runner, RemoteRunner):
        yield ThereSensors(runner)
    elif sys.platform != "linux" or isinstance(runner, SimulatedRuntime):
        yield _NoSensors()
    else:
        with contextlib.closing(HereSensors(every_s, root)) as here:
            yield here


def idle_power(sensors: Sensors, seconds: float = IDLE_S) -> Power | None:
    """Mean power of the next seconds, in which nothing of ours runs; None where it cannot be read."""
    before = len(sensors.readings())
    time.sleep(seconds)
    return mean_power(sensors.readings()[before:])


def observed(sensors: Sensors, found: Measurement, idle: Power | None = None) -> dict[str, Any]:
    """What the sensors said while an engine was measured.

    Keys: `energy` (see `Energy`; pauses between blocks count, so it is of the run, not of one engine where two
    alternate), `throttling` (what says that the device slowed itself down, in words) and `void` (the part of it that
    makes the numbers void).
    """
    start_ns, end_ns = int(found.starts_ns[0]), int(found.starts_ns[-1] + found.samples_ns[-1])
    near = [r for r in sensors.readings() if start_ns - _AROUND_NS <= r.time_ns <= end_ns + _AROUND_NS]
    said = throttling(near)
    return {
        "energy": energy(near, start_ns, end_ns, len(found.samples_ns), idle),
        "throttling": [slowdown.what for slowdown in said],
        "void": [slowdown.what for slowdown in said if slowdown.voids],
    }


class _NoSensors:
    def readings(self) -> list[Reading]:
        return []


__all__ = [
    "EVERY_S",
    "IDLE_S",
    "HereSensors",
    "Sensors",
    "ThereSensors",
    "idle_power",
    "observed",
    "sensing",
]
