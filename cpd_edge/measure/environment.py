"""Environments: what a number was measured on, the part of it that makes two numbers comparable, and pinning.

An environment is a flat mapping of JSON scalars, so that it survives a round trip through a file.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path
from typing import Any

from cpd_edge.errors import EnvironmentMismatch, UsageError
from cpd_edge.measure import agent

KEYS = (
    "device", "machine", "cores", "os", "runtime", "runtime_version", "providers", "precision", "threads", "batch",
    "shape", "inputs", "frame", "stages", "profiled", "l4t", "power_mode", "clocks", "governor", "turbo", "pinned",
    "protocol",
)  # fmt: skip
"""What must be equal for two numbers to be comparable. Load, time and versions of Python are not in it."""

STATE = (
    "device", "machine", "cores", "os", "kernel", "python", "l4t", "power_mode", "clocks", "governor", "turbo",
)  # fmt: skip
"""What an environment says of the machine."""
STATE_S = 5.0
"""How long at most what was read of the machine holds."""


def capture(
    runtime: str,
    runtime_version: str,
    threads: int,
    batch: int,
    shape: Sequence[int],
    precision: str = "fp32",
    protocol: str = "",
    *,
    providers: Sequence[str] = (),
) -> dict[str, Any]:
    """The environment as it is now.

    Args:
        runtime: what runs the engine (`onnxruntime`, `tensorrt`).
        runtime_version: its version.
        threads: intra-op threads.
        batch: images per inference.
        shape: of the input, batch included.
        precision: of the weights and arithmetic (`fp32`, `int8`).
        protocol: the protocol in words.
        providers: execution providers that the runtime really uses, first choice first.
    """
    return {
        **state(),
        "runtime": runtime,
        "runtime_version": runtime_version,
        "providers": ",".join(providers),
        "precision": precision,
        "threads": threads,
        "batch": batch,
        "shape": "x".join(str(extent) for extent in shape),
        "protocol": protocol,
        **moment(),
    }


def moment() -> dict[str, Any]:
    """The part that changes while a process lives, in the agent's words: pinned CPUs, load average, time."""
    if hasattr(os, "sched_getaffinity"):
        return agent.moment()
    return {
        "pinned": "",
        "load_1m": load_average(),
        "captured_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def key(environment: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an environment that makes numbers comparable."""
    return {name: environment[name] for name in KEYS if name in environment}


def require_comparable(a: Mapping[str, Any], b: Mapping[str, Any], across: Collection[str] = ()) -> None:
    """Refuses two environments whose numbers may not be compared.

    Args:
        a, b: the environments.
        across: keys that may differ, because their effect is what is asked for.

    Raises:
        EnvironmentMismatch: names every key that differs, with both values.
    """
    left, right = key(a), key(b)
    differing = [
        f"{name} ({left.get(name, 'unknown')} against {right.get(name, 'unknown')})"
        for name in KEYS
        if left.get(name) != right.get(name) and name not in across
    ]
    if differing:
        raise EnvironmentMismatch(
            f"these numbers come from different environments: {', '.join(differing)}",
            hint="measure both in one environment, in one run",
        )


@contextlib.contextmanager
def pin(cpus: Iterable[int]) -> Iterator[None]:
    """Keeps this process, and threads made inside, on `cpus`; restores on leaving. No CPUs: no change.

    Make the runner inside, so that the runtime's threads inherit it.

    Raises:
        UsageError: a CPU that this process may not use, or a system that cannot pin.
    """
    wanted = set(cpus)
    if not wanted:
        yield
        return
    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if not wanted <= before:
        asked, usable = (", ".join(map(str, sorted(cpus))) for cpus in (wanted, before))
        raise UsageError(
            f"CPUs {asked}: this process may use {usable or 'what the system gives it'}",
            hint=f"for example --pin {min(before)}" if before else "this system cannot pin: leave --pin out",
        )
    os.sched_setaffinity(0, wanted)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def pinned() -> tuple[int, ...]:
    """CPUs this process may use, ascending; empty where it may use all of them or the system does not say."""
    if not hasattr(os, "sched_getaffinity"):
        return ()
    allowed = tuple(sorted(os.sched_getaffinity(0)))
    return () if len(allowed) == os.cpu_count() else allowed


def state(root: str = "/") -> dict[str, Any]:
    """What this machine is and in what state, read as the agent reads another device.

    `device` is the board's name where the device tree has one, else the CPU's; `l4t`, `power_mode` and `clocks` are
    there where the machine tells them. Read anew after `STATE_S`: every engine that is opened asks.
    """
    found = _state_at(root, int(time.monotonic() // STATE_S))
    return {name: found[name] for name in STATE if found[name] != ""}


@lru_cache(maxsize=1)
def _state_at(root: str, period: int) -> dict[str, Any]:
    return agent.state_of(root)


def integers_saturate() -> bool:
    """Whether this CPU adds two products of 8-bit integers into 16 bits, where they may not fit: x86 without VNNI."""
    if platform.machine().lower() not in ("x86_64", "amd64", "i686"):
        return False
    lines = list[str]()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return "vnni" not in flags


def load_average() -> float | None:
    """Load over the last minute, or None where the system does not say."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
