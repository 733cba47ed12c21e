"""A runtime whose latencies are a formula, so that a table's truth is known."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cpd_edge.layout import Leaf, Prod, Sum, size
from cpd_edge.profile.sample import profile
from cpd_edge.profile.table import LatencyTable
from cpd_edge.types import Region

GROUPS = {"a": 32, "b": 64, "c": 64, "d": 128}
KEY = {
    "device": "Simulated (TM) CPU", "runtime": "simulated", "runtime_version": "1.0", "precision": "fp32",
    "threads": 1, "signature": "0123",
}  # fmt: skip


def conv(name: str, reads: object, writes: object, macs: int) -> Region:
    return Region(name, "Conv", (name,), reads, writes, (writes, reads), macs, f"{name}.weight")  # type: ignore[arg-type]


A, B, C, D = (Leaf(g, n) for g, n in GROUPS.items())
REGIONS = (
    conv("stem", Prod(()), A, 100_000),
    conv("one", A, B, 2_000_000),
    conv("two", B, C, 4_000_000),
    Region("cat", "Concat", ("cat",), Sum((B, C)), Sum((B, C)), (), 0),
    conv("three", Sum((B, C)), D, 16_000_000),
    conv("four", D, C, 8_000_000),
    Region("head", "Gemm", ("head",), C, Leaf("out", 10), (Leaf("out", 10), C), 640, "head.weight"),
)


def truth_ms(region: Region, widths: Mapping[str, int]) -> float:
    """A launch cost, then blocks of 16 read times blocks of 16 written; memory for a concat."""
    read, write = (-(-size(layout, widths) // 16) for layout in (region.reads, region.writes))
    if region.op == "Concat":
        return 0.004 + 0.0002 * size(region.reads, widths)
    return 0.005 + 0.01 * read * write + 0.002 * read


@dataclass(frozen=True)
class Kernel:
    name: str
    op: str
    order: int
    ms: npt.NDArray[np.float64]
    nodes: tuple[str, ...] = ()


class Device:
    """A runtime whose latencies are a formula, with noise and a drift, on a clock of its own."""

    def __init__(
        self,
        *,
        noise: float = 0.0,
        drift: float = 0.0,
        profiler_ms: float = 0.0,
        dies_after: int = -1,
        exponent: float = 1.0,
        cost_ms: Callable[[Region, Mapping[str, int]], float] = truth_ms,
    ) -> None:
        self.noise, self.drift, self.profiler_ms, self.dies_after = noise, drift, profiler_ms, dies_after
        self.exponent, self.cost_ms = exponent, cost_ms
        self.now_ns, self.opened, self.profiled = 0, [], []  # type: ignore[var-annotated]

    def clock(self) -> int:
        return self.now_ns

    def slow(self) -> float:
        return 1 + self.drift * len(self.profiled)

    def make_runner(self, model: bytes, profiled: bool) -> Engine:
        if profiled:
            if len(self.profiled) == self.dies_after:
                raise KeyboardInterrupt
            self.profiled.append(model)
        self.opened.append(model)
        return Engine(self, json.loads(model), profiled)


class Engine:
    def __init__(self, device: Device, widths: dict[str, int], profiled: bool) -> None:
        self.device, self.widths, self.open = device, widths, True
        self.random = np.random.default_rng(zlib.crc32(json.dumps([widths, profiled]).encode()))
        self.total_noise = float(self.jitter(1)[0]) ** 0.25

    def jitter(self, *shape: int) -> npt.NDArray[np.float64]:
        return np.exp(self.device.noise * np.abs(self.random.standard_normal(shape)))

    @property
    def pace(self) -> float:
        """How much slower kernels are than in a network of 1 ms, for the network's size."""
        total = 0.03 + sum(self.device.cost_ms(r, self.widths) for r in REGIONS)
        return total ** (self.device.exponent - 1)

    def run(self) -> None:
        total = 0.03 + sum(self.device.cost_ms(r, self.widths) for r in REGIONS)
        self.device.now_ns += round(total * self.pace * self.total_noise * self.device.slow() * 1e6)

    def kernels(self, repeats: int) -> list[Kernel]:
        assert self.open
        found: list[tuple[str, str, float]] = []
        for r in REGIONS:
            ms = self.device.cost_ms(r, self.widths) * self.pace * self.device.slow()
            found.append((r.name, r.op, ms + self.device.profiler_ms))
            if size(r.writes, self.widths) % 16:
                found.append(("ReorderOutput", "ReorderOutput", self.device.profiler_ms))
        return [Kernel(name, op, i, ms * self.jitter(repeats)) for i, (name, op, ms) in enumerate(found)]

    def close(self) -> None:
        self.open = False


def build(widths: Mapping[str, int]) -> bytes:
    return json.dumps(dict(widths), sort_keys=True).encode()


def measured(device: Device, folder: Path | None = None, **options: object) -> LatencyTable:
    arguments = {"key": KEY, "samples": 24, "holdout": 6, "repeats": 20, **options}
    here = {"make_runner": device.make_runner, "folder": folder, "clock": device.clock}
    return profile(build, REGIONS, GROUPS, **here, **arguments)  # type: ignore[arg-type]
