"""Laws of sensing: this machine's sensors are read by the agent's own code while an engine is measured."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from boards import fake_board
from loopback import device, over_pipes

from cpd_edge.measure import telemetry
from cpd_edge.measure.doctor import tiny_model
from cpd_edge.measure.remote import RemoteRunner
from cpd_edge.measure.sensing import HereSensors, Sensors, idle_power, observed, sensing
from cpd_edge.measure.station import Station
from cpd_edge.measure.telemetry import Power, Reading
from cpd_edge.types import Measurement

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sensors are read on Linux")


def until(sensors: Sensors, count: int) -> list[Reading]:
    end = time.monotonic() + 20
    while len(found := sensors.readings()) < count:
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def measured(start_ns: int, end_ns: int, n: int) -> Measurement:
    """A measurement of `n` inferences that fill a window."""
    starts = np.linspace(start_ns, end_ns, n + 1).astype(np.int64)
    return Measurement("it", np.diff(starts), starts[:-1], np.zeros(n, np.int64), {}, True, "")


def test_this_machine_s_sensors_mean_what_a_device_s_mean(tmp_path: Path) -> None:
    """The same files, the same reading, on the clock of the samples; the reader ends with the measurement."""
    fake_board(tmp_path)
    before = time.perf_counter_ns()
    with sensing(object(), every_s=0.05, root=str(tmp_path)) as sensors:
        found = until(sensors, 3)
        assert isinstance(sensors, HereSensors)
        reader = sensors._process
    assert before < found[0].time_ns < found[-1].time_ns < time.perf_counter_ns()
    assert (4984 * 1856 / 1e3, "module (VDD_IN)") == telemetry.total_mw(found[0].power_mw)
    assert reader.poll() is not None


def test_a_reader_hears_no_ctrl_c_and_leaves_nothing_when_its_parent_is_killed() -> None:
    """It is in a session of its own; after a `kill -9` of the parent it ends, and its folder is gone."""
    code = """if True:
        import time
        from cpd_edge.measure.sensing import HereSensors
        sensors = HereSensors(0.05)
        print(sensors._process.pid, sensors._folder.name, flush=True)
        time.sleep(60)"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid, folder = parent.stdout.readline().split()
        assert int(pid) == os.getsid(int(pid))
        became(Path(folder, "telemetry").exists)
        parent.kill()
    became(lambda: not Path(folder).exists())


def became(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_energy_over_a_window_is_gross_and_net_of_idle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A board whose power does not change spends nothing net of idle."""
    monkeypatch.setattr(telemetry, "LEAST_S", 0.2)
    fake_board(tmp_path)
    with contextlib.closing(HereSensors(0.05, str(tmp_path))) as sensors:
        until(sensors, 1)
        idle = idle_power(sensors, 0.3)
        found = until(sensors, 12)
        seen = observed(sensors, measured(found[1].time_ns, found[-1].time_ns, 10), idle)
    joules = 4984 * 1856 / 1e6 * (found[-1].time_ns - found[1].time_ns) / 1e9
    assert Power(pytest.approx(4984 * 1856 / 1e3), "module (VDD_IN)") == idle
    assert joules * 1e3 / 10 == pytest.approx(seen["energy"].gross_mj, rel=1e-6)
    assert 0 == pytest.approx(seen["energy"].net_mj, abs=1e-3)
    assert ([], []) == (seen["throttling"], seen["void"])


def test_a_slowdown_inside_the_window_voids_it_and_one_before_does_not() -> None:
    """Readings from 5 s before to 5 s after count; a power cap is told and voids nothing."""

    class Recorded:
        def readings(self) -> list[Reading]:
            events = {0: 0x40, 20: 0x4, 30: 0}
            return [Reading(t * 10**9, gpu_events=events.get(t, 0)) for t in range(40)]

    capped = observed(Recorded(), measured(10 * 10**9, 30 * 10**9, 5))
    assert (1, []) == (len(capped["throttling"]), capped["void"])
    hot = observed(Recorded(), measured(4 * 10**9, 30 * 10**9, 5))
    assert 1 == len(hot["void"]) and "temperature" in hot["void"][0]


def test_a_device_s_sensors_are_those_that_its_agent_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the device has read by now is here when it is asked for."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    fake_board(tmp_path / "board")
    there = device(tmp_path / "device", telemetry_s=0.1)
    station = Station(there, connect=over_pipes(sys.executable), root=str(tmp_path / "board"))
    try:
        with contextlib.closing(RemoteRunner(station, tiny_model())) as runner, sensing(runner) as sensors:
            found = until(sensors, 3)
    finally:
        station.close()
    assert (4984 * 1856 / 1e3, "module (VDD_IN)") == telemetry.total_mw(found[-1].power_mw)


def test_a_discrete_gpu_is_asked_through_its_own_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An emulated one: calls arrive with their types, what is missing or closed is absent."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ here to make the emulated library")
    source = Path(__file__).with_name("emulated_nvml.cpp")
    subprocess.run(["g++", "-shared", "-fPIC", str(source), "-o", str(tmp_path / "libnvidia-ml.so.1")], check=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    with contextlib.closing(HereSensors(0.05)) as sensors:
        found = until(sensors, 1)[0]
    assert 5 * 10**15 == found.energy_uj["GPU board"]
    assert (54, 0) == (found.temperature_c["gpu"], found.gpu_events)
