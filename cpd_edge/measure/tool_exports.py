"""Measurements from old files: what `trtexec` exported, read without a GPU.

Three formats of `--exportTimes` exist, told apart by their keys:

    startInMs ... endToEndMs     the oldest; transfers are called in and out
    startH2dMs ... endToEndMs    before 8.4
    startH2dMs ... latencyMs     8.4 to 11, where end-to-end is gone

The oldest ones, and some of 8.4, hold the warm-up as well: what began inside the warm-up (200 ms, if nothing else is
known) is left out, as the tool does for its own summary. `--exportProfile` is a list whose first entry is the number
of runs; medians came with 8.4. The defaults changed with 11: CUDA graph and spin-wait on, transfers off. They stand in
none of these files, so the log says them, or the user does, or they are recorded as unknown.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cpd_edge.errors import DataError
from cpd_edge.measure.engine_file import sha256
from cpd_edge.measure.stats import trend
from cpd_edge.store import read_json
from cpd_edge.types import Measurement

Metric = Literal["latency", "compute", "enqueue"]
"""`latency`: copy in, compute, copy out; `compute`: the GPU's part; `enqueue`: the CPU's part."""

Version = tuple[int, ...]

WARMUP_MS = 200.0
"""The tool's warm-up where nothing else was asked for."""

_NEWER_DEFAULTS = 11
_SWITCHES: Mapping[str, tuple[str, str, str]] = {
    "cuda_graph": ("CUDA Graph", "--useCudaGraph", "--noCudaGraph"),
    "spin_wait": ("Spin-wait", "--useSpinWait", "--noSpinWait"),
    "transfers": ("Data transfers", "--includeDataTransfers", "--noDataTransfers"),
}
"""By setting: its line in the log, the option that switches it on, the one that switches it off."""
_BEFORE_11: Mapping[str, str] = {"cuda_graph": "off", "spin_wait": "off", "transfers": "on"}
_FROM_11: Mapping[str, str] = {"cuda_graph": "on", "spin_wait": "on", "transfers": "off"}


@dataclass(frozen=True)
class ToolLog:
    """What a log of the tool says of the run it belongs to.

    Attributes:
        version: of TensorRT (`(8, 6, 1)`), or empty.
        command: the command line.
        options: lines of the option tables, such as `Precision` and `Input inference shape`.
        gpu: the device it selected, or ''.
    """

    version: Version = ()
    command: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    gpu: str = ""

    def setting(self, name: str, version: Version) -> str:
        """`on`, `off` or `unknown` for `cuda_graph`, `spin_wait` or `transfers`."""
        line, on, off = _SWITCHES[name]
        said = self.options.get(line, "").lower()
        if said.startswith(("enabled", "disabled")):
            return "on" if said.startswith("enabled") else "off"
        if on in self.command:
            return "on"
        if off in self.command:
            return "off"
        defaults = {} if not version else _FROM_11 if version[0] >= _NEWER_DEFAULTS else _BEFORE_11
        return defaults.get(name, "unknown")

    @property
    def warmup_ms(self) -> float:
        """Length of the warm-up."""
        given = next((w.partition("=")[2] for w in self.command if w.startswith("--warmUp=")), "")
        found = re.search(r"\+ (\d+) ?ms warm up", self.options.get("Duration", ""))
        return float(given or (found[1] if found else WARMUP_MS))


@dataclass(frozen=True)
class LayerTimes:
    """Times of an engine's layers over some runs, as the tool's profiler saw them.

    Attributes:
        runs: how many there were.
        average_ms: mean of each layer, by name, in execution order.
        median_ms: median of each layer; empty in files from before 8.4.
    """

    runs: int
    average_ms: Mapping[str, float]
    median_ms: Mapping[str, float]

    @property
    def ms(self) -> Mapping[str, float]:
        """Medians where there are some, else means."""
        return self.median_ms or self.average_ms


def read_log(text: str) -> ToolLog:
    """What a log of the tool says; everything is optional."""
    banner = re.search(r"RUNNING TensorRT\.\w+ \[TensorRT v([\d.]+)\](?: \[b\d+\])?(?: # (.*))?", text)
    options = {
        m[1].strip(): m[2].strip()
        for m in re.finditer(r"^(?:.*\[I\] )?([A-Z][\w /()-]{1,40}?) ?(?:\(profile \d+\))?: *(.*)$", text, re.M)
    }
    version = version_of(banner[1]) if banner else ()
    command = tuple(shlex.split(banner[2])) if banner and banner[2] else ()
    return ToolLog(version or version_of(options.get("TensorRT version", "")), command, options, _gpu(options))


def version_of(text: str) -> Version:
    """A version, dotted (`11.1.0.106`) or as the banner packs it: `8502` is 8.5.2, `100300` is 10.3.0."""
    if not re.fullmatch(r"\d+(\.\d+)*", text):
        return ()
    if "." in text or int(text) < 1000:
        return tuple(int(part) for part in text.split("."))
    packed = int(text)
    major, rest = divmod(packed, 10000 if packed >= 100000 else 1000)
    return (major, rest // 100, rest % 100)


def read_times(
    path: Path,
    *,
    name: str = "",
    metric: Metric = "latency",
    log: ToolLog | None = None,
    version: Version = (),
    device: str = "",
    precision: str = "",
    shape: str = "",
) -> Measurement:
    """The measurement in a file that `--exportTimes` wrote, marked as imported.

    Args:
        path: the file.
        name: of the measurement; the file's stem if ''.
        metric: which of the recorded times counts.
        log: what the tool printed in that run.
        version: of TensorRT, where no log says it.
        device, precision, shape: what the files do not say (`Jetson Orin NX`, `fp16`, `1x3x224x224`).

    Raises:
        DataError: it is no such file, or holds no times of this metric.
    """
    rows = read_json(path)
    if not isinstance(rows, list) or not rows or not all(isinstance(r, dict) and "startEnqMs" in r for r in rows):
        raise DataError(f"{path} holds no inference times", hint="give the file that trtexec --exportTimes wrote")
    log = log or ToolLog()
    version = log.version or version
    wait = "H2d" if "startH2dMs" in rows[0] else "In"
    begins = np.array([_number(r, f"start{wait}Ms", path) for r in rows])
    warm = np.array([_number(r, "startComputeMs", path) for r in rows]) < log.warmup_ms
    kept = ~warm if not warm.all() else np.ones(len(rows), bool)
    ms = np.array([_milliseconds(r, metric, path) for r in rows])[kept]
    order = np.argsort(begins[kept], kind="stable")
    samples_ns = np.round(ms[order] * 1e6).astype(np.int64)
    settings = {key: _settled(key, rows, wait, log, version) for key in _SWITCHES}
    words = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in settings.items())
    environment = {
        "device": device or log.gpu or "unknown",
        "runtime": "tensorrt",
        "runtime_version": ".".join(map(str, version)) or "unknown",
        "precision": precision or log.options.get("Precision", "") or "unknown",
        "shape": shape or _shape(log) or "unknown",
        "providers": words,
        "protocol": f"trtexec, {metric}, {words}",
        "imported": True,
        "imported_from": path.name,
        "imported_sha256": sha256(path.read_bytes()),
        "format": _format(rows[0]),
        "warmup_dropped": int(warm.sum()) if not warm.all() else 0,
        "clock": "CUDA events" if metric != "enqueue" else "wall",
        **settings,
    }
    return Measurement(
        name or path.stem,
        samples_ns,
        np.round(begins[kept][order] * 1e6).astype(np.int64),
        np.zeros(len(samples_ns), np.int64),
        environment,
        not trend(ms[order]),
        "imported: another tool decided when to stop",
    )


def read_profile(path: Path) -> LayerTimes:
    """The layer times in a file that `--exportProfile` wrote. Layers of one name are added up.

    Raises:
        DataError: it is no such file.
    """
    rows = read_json(path)
    layers = [r for r in rows if isinstance(r, dict) and "name" in r] if isinstance(rows, list) else []
    if not layers or "count" not in rows[0]:
        raise DataError(f"{path} holds no layer times", hint="give the file that trtexec --exportProfile wrote")
    runs = int(_number(rows[0], "count", path))
    average: dict[str, float] = {}
    median: dict[str, float] = {}
    for row in layers:
        key = str(row["name"])
        average[key] = average.get(key, 0.0) + _number(row, "averageMs", path)
        if "medianMs" in row:
            median[key] = median.get(key, 0.0) + _number(row, "medianMs", path)
    return LayerTimes(runs, average, median)


def _settled(key: str, rows: list[dict[str, Any]], wait: str, log: ToolLog, version: Version) -> str:
    """A setting: what the times themselves show, then the log, then the version's default."""
    if key == "transfers":
        copied = any(r[f"end{wait}Ms"] > r[f"start{wait}Ms"] for r in rows if f"end{wait}Ms" in r)
        return "on" if copied else "off"
    return log.setting(key, version)


def _milliseconds(row: Mapping[str, Any], metric: Metric, path: Path) -> float:
    if metric == "enqueue":
        return _number(row, "endEnqMs", path) - _number(row, "startEnqMs", path)
    return _number(row, "latencyMs" if metric == "latency" else "computeMs", path)


def _number(row: Mapping[str, Any], key: str, path: Path) -> float:
    value = row.get(key)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise DataError(f"{path}: {key} is {value!r}, a number is needed", hint="the file is cut off or not trtexec's")
    return float(value)


def _format(row: Mapping[str, Any]) -> str:
    if "startInMs" in row:
        return "exportTimes with in, out and end-to-end (the oldest)"
    return "exportTimes before 8.4" if "endToEndMs" in row else "exportTimes from 8.4 on"


def _shape(log: ToolLog) -> str:
    """Shape of the one input, as the log has it (`input=1x3x224x224`)."""
    said = log.options.get("Input inference shape", "")
    found = re.fullmatch(r"[^=]+=([\dx]+)", said)
    return found[1] if found else ""


def _gpu(options: Mapping[str, str]) -> str:
    return options.get("Selected Device", "")


__all__ = [
    "WARMUP_MS",
    "LayerTimes",
    "Metric",
    "ToolLog",
    "Version",
    "read_log",
    "read_profile",
    "read_times",
    "version_of",
]
