"""Telemetry: what a device's sensors said while it worked, in units, and what that proves.

Readings come from the agent's sampler: sysfs (INA3221, INA238, thermal zones, devfreq, RAPL), NVIDIA's management
library (NVML), or lines of its tegrastats, whose dialects from Nano to Thor differ; unknown fields are passed over. The
agent sends raw numbers, and this is the one place where they get a meaning.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

OFF_C = -256.0
"""What a thermal sensor reads that is off."""
LEAST_S = 30.0
"""Shortest window for energy: boards average power over a second and more."""

_INPUTS: Mapping[str, str] = {"VDD_IN": "module", "POM_5V_IN": "module", "VIN": "board input", "NVML": "GPU board"}
"""Rails that carry everything, and what everything is."""
_EVENTS: Mapping[int, tuple[str, bool]] = {
    0x4: ("its power cap held the GPU's clock down", False),
    0x8: ("the GPU's hardware slowed its clock down", True),
    0x20: ("the driver slowed the GPU down for its temperature", True),
    0x40: ("the GPU's hardware slowed its clock down for its temperature", True),
    0x80: ("an external power brake slowed the GPU down", True),
}
"""Reasons of NVML's clock events (`nvml.h`, nvmlClocksEventReason*), and whether numbers under them are void. An idle
GPU's low clock (0x1) and clocks that a user set (0x2) are neither."""
_WITHIN: Mapping[str, str] = {"VDDQ_VDD2_1V8AO": "VIN_SYS_5V0"}
"""Rails that are fed by another that is measured too (NVIDIA developer forum, thread 223111)."""

_FIELD = re.compile(
    r"(?P<temp>[A-Za-z]\w*)@(?P<c>-?\d+(?:\.\d+)?)C"
    r"|(?P<clock>[A-Z]\w*_FREQ) (?:(?P<load>\d+)%)?(?:@\[?(?P<mhz>\d+)[\d,]*\]?)?"
    r"|CPU \[(?P<cpus>[^\]]*)\]"
    r"|RAM (?P<used>\d+)/(?P<total>\d+)MB"
    r"|(?P<rail>[A-Z][A-Z0-9_]*) (?P<mw>-?\d+)(?:mW)?/-?\d+(?:mW)?(?=[ /]|$)"
)


@dataclass(frozen=True)
class Reading:
    """What all sensors said at one time. What was not said is absent.

    Attributes:
        time_ns: on the device's monotonic clock, the same as a measurement's starts [ns].
        power_mw: by rail [mW].
        temperature_c: by zone; a sensor that is off is absent [°C].
        gpu_mhz, cpu_mhz, emc_mhz: clocks; of the CPU one for each core that is on [MHz].
        gpu_percent: load of the GPU.
        ram_mb: memory in use [MB].
        cooling: state of each throttling device; 0 is idle.
        overcurrent: events counted since boot, by counter.
        cpu_throttled: times that CPU cores slowed down for their temperature, counted since boot.
        gpu_events: bits of NVML's clock events, of all GPUs.
        energy_uj: running energy counters, by domain [µJ].
    """

    time_ns: int = 0
    power_mw: Mapping[str, float] = field(default_factory=dict)
    temperature_c: Mapping[str, float] = field(default_factory=dict)
    gpu_mhz: int | None = None
    cpu_mhz: tuple[int, ...] = ()
    emc_mhz: int | None = None
    gpu_percent: int | None = None
    ram_mb: int | None = None
    cooling: Mapping[str, int] = field(default_factory=dict)
    overcurrent: Mapping[str, int] = field(default_factory=dict)
    cpu_throttled: int = 0
    gpu_events: int = 0
    energy_uj: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Power:
    """Mean power and what it is of [mW]."""

    mw: float
    scope: str


@dataclass(frozen=True)
class Slowdown:
    """Evidence that a device slowed itself down.

    Attributes:
        what: in words.
        voids: whether numbers measured meanwhile are void; a power cap only goes with them.
    """

    what: str
    voids: bool = True


@dataclass(frozen=True)
class Energy:
    """Energy of one inference.

    Attributes:
        gross_mj: everything in `scope`, idle included; None where `reason` says why there is no number [mJ].
        net_mj: above the idle power; None where that is not known in the same scope [mJ].
        mean_mw: mean power over the window [mW].
        scope: what was measured (`module (VDD_IN)`, `sum of rails ...`, `CPU package`); never the wall.
        seconds: length of the window [s].
        readings: readings inside it.
        reason: why there is no number, else ''.
    """

    gross_mj: float | None
    net_mj: float | None
    mean_mw: float | None
    scope: str
    seconds: float
    readings: int
    reason: str = ""


def parse_tegrastats(line: str, time_ns: int = 0) -> Reading:
    """One line of tegrastats, of any board and release; fields that are not known are passed over.

    Power is the present value, the first of a rail's two or three.
    """
    power: dict[str, float] = {}
    zones: dict[str, float] = {}
    clocks: dict[str, re.Match[str]] = {}
    cores: tuple[int, ...] = ()
    ram = None
    for found in _FIELD.finditer(line):
        if found["temp"]:
            if float(found["c"]) != OFF_C:
                zones[found["temp"]] = float(found["c"])
        elif found["clock"]:
            clocks[found["clock"]] = found
        elif found["cpus"] is not None:
            cores = tuple(int(mhz) for mhz in re.findall(r"%@(\d+)", found["cpus"]))
        elif found["used"]:
            ram = int(found["used"])
        elif found["rail"] not in ("NC", "RAM", "SWAP", "IRAM"):
            power[found["rail"]] = float(found["mw"])
    gpu, emc = clocks.get("GR3D_FREQ"), clocks.get("EMC_FREQ")
    return Reading(
        time_ns,
        power_mw=power,
        temperature_c=zones,
        gpu_mhz=int(gpu["mhz"]) if gpu and gpu["mhz"] else None,
        cpu_mhz=cores,
        emc_mhz=int(emc["mhz"]) if emc and emc["mhz"] else None,
        gpu_percent=int(gpu["load"]) if gpu and gpu["load"] else None,
        ram_mb=ram,
    )


def reading(raw: Mapping[str, Any]) -> Reading:
    """The agent's raw numbers with their units; its tegrastats line, if it has one, fills what sysfs did not show."""
    line = parse_tegrastats(raw["tegrastats"]) if raw.get("tegrastats") else Reading()
    zones = {name: milli / 1e3 for name, milli in raw["zones"] if milli is not None and milli != OFF_C * 1e3}
    gpu = [row[1] for row in raw["devfreq"] if row[1] is not None and _is_gpu(row[0])]
    board, events = _discrete(raw.get("gpus", ()))
    counted = {name: micro for name, micro in raw["rapl"] if micro is not None and name.startswith("package")}
    return Reading(
        raw["t_ns"],
        power_mw=_rails(raw["rails"]) or line.power_mw or board.power_mw,
        temperature_c={name.removesuffix("-thermal"): c for name, c in zones.items()} | dict(board.temperature_c)
        or line.temperature_c,
        gpu_mhz=round(max(gpu) / 1e6) if gpu else line.gpu_mhz or board.gpu_mhz,
        cpu_mhz=tuple(round(khz / 1e3) for khz in raw["cpufreq"] if khz is not None) or line.cpu_mhz,
        emc_mhz=line.emc_mhz,
        gpu_percent=line.gpu_percent,
        ram_mb=line.ram_mb,
        cooling={name: now for name, now, _ in raw["cooling"] if now is not None and "throttle" in name},
        overcurrent={name: count for name, count in raw["overcurrent"].items() if count is not None},
        cpu_throttled=sum(count for count in raw.get("cpu_throttle", ()) if count is not None),
        gpu_events=events,
        energy_uj={**counted, **board.energy_uj},
    )


def _discrete(rows: Sequence[Mapping[str, Any]]) -> tuple[Reading, int]:
    """What NVML says of the one GPU, and the clock events of all; power of one among several is not attributed."""
    events = 0
    for row in rows:
        events |= row["reasons"] or 0
    if len(rows) != 1:
        return Reading(), events
    (one,) = rows
    counted = one["energy_mj"] is not None
    return Reading(
        power_mw={"NVML": one["power_mw"]} if one["power_mw"] is not None and not counted else {},
        temperature_c={} if one["temperature_c"] is None else {"gpu": float(one["temperature_c"])},
        gpu_mhz=one["sm_mhz"],
        energy_uj={"GPU board": one["energy_mj"] * 1000} if counted else {},
    ), events


def _rails(rows: Sequence[Sequence[Any]]) -> dict[str, float]:
    """Power by rail [mW] from chip, label, mV, mA, and power in the chip's own unit."""
    out: dict[str, float] = {}
    for chip, label, millivolt, milliampere, power in rows:
        if "sum" in label.lower() or label == "NC":  # a sum of shunt voltages is no rail
            continue
        if millivolt is not None and milliampere is not None:
            out[label] = millivolt * milliampere / 1e3
        elif power is not None:  # hwmon counts µW; the INA3221 driver of L4T 32 counts mW
            out[label or "VIN"] = power if chip == "ina3221x" else power / 1e3
    return out


def _is_gpu(name: str) -> bool:
    """Whether a devfreq device is the GPU: gv11b, gp10b, ga10b, `57000000.gpu`, `gpu-gpc-0` and the like."""
    return bool(re.search(r"gpu|g[vpa]\d\db", name)) and "nvd" not in name


def total_mw(power_mw: Mapping[str, float]) -> tuple[float, str] | None:
    """Power of everything and what everything is: the input's rail, else the sum of the rails, never both."""
    for rail, scope in _INPUTS.items():
        if rail in power_mw:
            return power_mw[rail], f"{scope} ({rail})"
    parts = [rail for rail in power_mw if _WITHIN.get(rail) not in power_mw]
    return (sum(power_mw[rail] for rail in parts), f"sum of rails {' + '.join(parts)}") if parts else None


def energy(
    readings: Sequence[Reading], start_ns: int, end_ns: int, inferences: int, idle: Power | None = None
) -> Energy:
    """Energy of an inference over a window: the integral of power, divided by how many there were.

    Args:
        readings: in order of time.
        start_ns, end_ns: the window, on the readings' clock.
        inferences: that ended inside it.
        idle: power of the idle device, for the net energy.
    """
    seconds = (end_ns - start_ns) / 1e9
    inside = [r for r in readings if start_ns <= r.time_ns <= end_ns]

    def none(reason: str, scope: str = "") -> Energy:
        return Energy(None, None, None, scope, seconds, len(inside), reason)

    if not any(r.power_mw or r.energy_uj for r in readings):
        return none("no power rail and no energy counter can be read")
    if inferences < 1:
        return none("no inference ended in the window")
    if seconds < LEAST_S:
        return none(f"the window is {seconds:.1f} s long, {LEAST_S:g} s are needed")
    found = _joules(readings, start_ns, end_ns, inside)
    if isinstance(found, str):
        return none(found)
    joules, scope = found
    mean_mw = joules / seconds * 1e3
    net = (joules - idle.mw / 1e3 * seconds) * 1e3 / inferences if idle is not None and idle.scope == scope else None
    return Energy(joules * 1e3 / inferences, net, mean_mw, scope, seconds, len(inside))


def mean_power(readings: Sequence[Reading]) -> Power | None:
    """Mean power from the first to the last reading; None where there is none, or less than two readings."""
    if len(readings) < 2:
        return None
    start_ns, end_ns = readings[0].time_ns, readings[-1].time_ns
    found = _joules(readings, start_ns, end_ns, readings)
    return None if isinstance(found, str) else Power(found[0] / (end_ns - start_ns) * 1e12, found[1])


def _joules(
    readings: Sequence[Reading], start_ns: int, end_ns: int, inside: Sequence[Reading]
) -> tuple[float, str] | str:
    """Energy of a window and its scope, or why there is none."""
    totals = [(r.time_ns, total_mw(r.power_mw)) for r in readings]
    known = [(at, total) for at, total in totals if total is not None]
    if not known:
        return _counted(inside, (end_ns - start_ns) / 1e9)
    if len({scope for _, (_, scope) in known}) > 1:
        return "the rails changed within the window"
    times_s = np.array([at for at, _ in known], np.float64) / 1e9
    start_s, end_s = start_ns / 1e9, end_ns / 1e9
    edges = np.concatenate([[start_s], times_s[(times_s > start_s) & (times_s < end_s)], [end_s]])
    widest = float(np.diff(edges).max())
    if times_s[0] > start_s + 5 or times_s[-1] < end_s - 5 or widest > 5:
        return f"power was not read for {widest:.1f} s of the window"
    power_w = np.interp(edges, times_s, np.array([total[0] for _, total in known]) / 1e3)
    return float(((power_w[1:] + power_w[:-1]) / 2 * np.diff(edges)).sum()), known[0][1][1]


def _counted(inside: Sequence[Reading], seconds: float) -> tuple[float, str] | str:
    """Energy from running counters, scaled from the readings' span to the window's."""
    if len(inside) < 2 or not inside[0].energy_uj:
        return "the energy counters were not read twice in the window"
    first, last = inside[0], inside[-1]
    spent = {name: last.energy_uj.get(name, -1) - at for name, at in first.energy_uj.items()}
    if min(spent.values()) < 0:
        return "an energy counter ran over within the window"
    span = (last.time_ns - first.time_ns) / 1e9
    return sum(spent.values()) / 1e6 * seconds / span, f"sum of counters {' + '.join(spent)} (RAPL, NVML)"


def throttling(readings: Sequence[Reading]) -> tuple[Slowdown, ...]:
    """What says that the device slowed itself down between the first and the last reading."""
    if not readings:
        return ()
    first, last = readings[0], readings[-1]
    counted = {name: last.overcurrent.get(name, at) - at for name, at in first.overcurrent.items()}
    states = {name: max(r.cooling.get(name, 0) for r in readings) for name in last.cooling}
    cores, events = last.cpu_throttled - first.cpu_throttled, 0
    for at in readings:
        events |= at.gpu_events
    return (
        *(Slowdown(f"{n} over-current event{'s' * (n > 1)} ({name})") for name, n in counted.items() if n > 0),
        *(Slowdown(f"{name} was active (state {state})") for name, state in states.items() if state > 0),
        *((Slowdown(f"CPU cores slowed down for their temperature {cores} times"),) if cores > 0 else ()),
        *(Slowdown(what, voids) for bit, (what, voids) in _EVENTS.items() if events & bit),
    )


__all__ = [
    "Energy", "Power", "Reading", "Slowdown", "energy", "mean_power", "parse_tegrastats", "reading", "throttling",
    "total_mw",
]  # fmt: skip
