"""Telemetry: what a device's sensors said while it worked, in units, and what that proves.

Readings come from the agent's sampler (sysfs: INA3221, INA238, thermal zones, devfreq, RAPL) or from lines of NVIDIA's
tegrastats, whose dialects from Nano to Thor differ; unknown fields are passed over. The agent sends raw numbers of
files, and this is the one place where they get a meaning.
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

_INPUTS: Mapping[str, str] = {"VDD_IN": "module", "POM_5V_IN": "module", "VIN": "board input"}
"""Rails that carry everything, and what everything is."""
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
    energy_uj: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Energy:
    """Energy of one inference.

    Attributes:
        gross_mj: everything in `scope`, idle included; None where `reason` says why there is no number [mJ].
        net_mj: above the idle power; None where that was not given [mJ].
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
    return Reading(
        raw["t_ns"],
        power_mw=_rails(raw["rails"]) or line.power_mw,
        temperature_c={name.removesuffix("-thermal"): c for name, c in zones.items()} or line.temperature_c,
        gpu_mhz=round(max(gpu) / 1e6) if gpu else line.gpu_mhz,
        cpu_mhz=tuple(round(khz / 1e3) for khz in raw["cpufreq"] if khz is not None) or line.cpu_mhz,
        emc_mhz=line.emc_mhz,
        gpu_percent=line.gpu_percent,
        ram_mb=line.ram_mb,
        cooling={name: now for name, now, _ in raw["cooling"] if now is not None and "throttle" in name},
        overcurrent={name: count for name, count in raw["overcurrent"].items() if count is not None},
        energy_uj={name: micro for name, micro in raw["rapl"] if micro is not None and name.startswith("package")},
    )


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
    readings: Sequence[Reading], start_ns: int, end_ns: int, inferences: int, idle_mw: float | None = None
) -> Energy:
    """Energy of an inference over a window: the integral of power, divided by how many there were.

    Args:
        readings: in order of time.
        start_ns, end_ns: the window, on the readings' clock.
        inferences: that ended inside it.
        idle_mw: power of the idle device in the same scope, for the net energy [mW].
    """
    seconds = (end_ns - start_ns) / 1e9
    inside = [r for r in readings if start_ns <= r.time_ns <= end_ns]

    def none(reason: str, scope: str = "") -> Energy:
        return Energy(None, None, None, scope, seconds, len(inside), reason)

    if inferences < 1:
        return none("no inference ended in the window")
    if seconds < LEAST_S:
        return none(f"the window is {seconds:.1f} s long, {LEAST_S:g} s are needed")
    found = _joules(readings, start_ns, end_ns, inside)
    if isinstance(found, str):
        return none(found)
    joules, scope = found
    mean_mw = joules / seconds * 1e3
    net = None if idle_mw is None else (joules - idle_mw / 1e3 * seconds) * 1e3 / inferences
    return Energy(joules * 1e3 / inferences, net, mean_mw, scope, seconds, len(inside))


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
        return "no power rail and no energy counter can be read"
    first, last = inside[0], inside[-1]
    spent = {name: last.energy_uj.get(name, -1) - at for name, at in first.energy_uj.items()}
    if min(spent.values()) < 0:
        return "an energy counter ran over within the window"
    span = (last.time_ns - first.time_ns) / 1e9
    return sum(spent.values()) / 1e6 * seconds / span, f"CPU package (RAPL: {', '.join(spent)})"


def throttling(readings: Sequence[Reading]) -> tuple[str, ...]:
    """What says that the device slowed itself down between the first and the last reading, in words."""
    if not readings:
        return ()
    first, last = readings[0], readings[-1]
    counted = {name: last.overcurrent.get(name, at) - at for name, at in first.overcurrent.items()}
    states = {name: max(r.cooling.get(name, 0) for r in readings) for name in last.cooling}
    return (
        *(f"{n} over-current event{'s' * (n > 1)} ({name})" for name, n in counted.items() if n > 0),
        *(f"{name} was active (state {state})" for name, state in states.items() if state > 0),
    )


__all__ = ["Energy", "Reading", "energy", "parse_tegrastats", "reading", "throttling", "total_mw"]
