"""The nouns that rooms hand to each other: frozen dataclasses, one meaning each. No torch here.

*axis* one named, countable extent · *unit* one index of it · *slot* where units sit in a parameter ·
*group* units that go together · *region* what the runtime runs as one fused kernel · *table* measured
region latencies over widths · *quantity* what is counted from widths · *plan* kept units chosen for a budget ·
*measurement* raw samples with their environment · *budget* a quantile and a limit in ms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cpd_edge.errors import BudgetError, UsageError
from cpd_edge.layout import Keep, Layout, Widths, size

Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE"]

EXIT_CODES: Mapping[str, int] = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3}
"""Process exit code of a verdict; 2 is wrong usage, 4 an invalid environment."""
VOID = 4
"""Exit code of a measurement in which the device slowed itself down, whatever its verdict."""


@dataclass(frozen=True)
class Slot:
    """Where the units of a group sit in one dim of one parameter or buffer.

    Attributes:
        tensor: fully qualified name in the original module's `state_dict`.
        dim: dimension of that tensor.
        layout: how the dim's indices are made of axes, in original coordinates.
        reads: whether this dim is contracted, so that it consumes the units rather than makes them.
    """

    tensor: str
    dim: int
    layout: Layout
    reads: bool


@dataclass(frozen=True)
class Group:
    """Units that can be removed, each one together with everything that depends on it.

    Attributes:
        name: readable name, after the parameter that makes the units (`blocks.0.conv1`).
        units: how many there are.
        slots: every place in parameters and buffers that the units occupy.
        exact: removing a unit equals masking it. False where a statistic runs over the axis.
        depth: it stands for a run of calls that can be left out whole: one unit, no slots, and no unit may stay.
        role: `heads` for the heads of an attention, else ''.
    """

    name: str
    units: int
    slots: tuple[Slot, ...]
    exact: bool = True
    depth: bool = False
    role: str = ""


@dataclass(frozen=True)
class Frozen:
    """An axis that may not be cut, and why."""

    axis: str
    units: int
    reason: str
    source: str = ""
    """`file:line` of the user's code, where known."""
    params: int = 0
    """How many parameter elements this protects from being cut along this axis."""


@dataclass(frozen=True)
class Groups:
    """What comb found: the prunable groups and the frozen rest."""

    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]

    def __getitem__(self, name: str) -> Group:
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)

    @property
    def widths(self) -> dict[str, int]:
        """The dense network's width by group."""
        return {g.name: g.units for g in self.groups}


@dataclass(frozen=True)
class Limits:
    """Most that a plan may take beside its latency; None is no limit.

    Attributes:
        macs: multiply-accumulates of one image.
        params: parameters.
        size_mb: the model's file [10^6 bytes].
        memory_mb: activations alive at once, of one image [10^6 bytes].

    Raises:
        BudgetError: a value that is no limit.
    """

    macs: float | None = None
    params: float | None = None
    size_mb: float | None = None
    memory_mb: float | None = None

    @property
    def any(self) -> bool:
        """Whether there is one."""
        return self != Limits()

    def __post_init__(self) -> None:
        for name, example in (("macs", "1e9"), ("params", "5e6"), ("size_mb", "20"), ("memory_mb", "16")):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                flag = f"--max-{name.replace('_', '-')}"
                raise BudgetError(f"{flag} of {value}: it must be above 0", hint=f"for example {flag} {example}")


@dataclass(frozen=True)
class Constraints:
    """What a plan must respect beside the budget.

    Attributes:
        protect: shell patterns; groups whose name, or a tensor of which, matches stay whole.
        min_width: fewest units that a group keeps, where it has as many.
        multiple_of: widths are multiples of this, or dense; 1 leaves it to the measured table.
        heads: `free`, or `equal` in all layers that have as many.
        depth: whether branches may go whole.
        limits: most of what is counted.

    Raises:
        UsageError: a value that is none.
    """

    protect: tuple[str, ...] = ()
    min_width: int = 1
    multiple_of: int = 1
    heads: str = "free"
    depth: bool = True
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        for name in ("min_width", "multiple_of"):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise UsageError(f"{flag} of {getattr(self, name)}: at least 1", hint=f"for example --{flag} 8")
        if self.heads not in ("free", "equal"):
            raise UsageError(f"heads {self.heads!r}", hint="give --heads free or --heads equal")


@dataclass(frozen=True)
class Budget:
    """A latency limit on one quantile: either `limit_ms`, or a `speedup` over the dense engine.

    Raises:
        BudgetError: not exactly one limit, or a value that is no limit.
    """

    limit_ms: float | None = None
    speedup: float | None = None
    quantile: float = 0.5
    tolerance: float = 0.05

    def __post_init__(self) -> None:
        if (self.limit_ms is None) == (self.speedup is None):
            raise BudgetError(
                "a budget is either milliseconds or a speed-up", hint="give --budget-ms MS or --speedup X"
            )
        if self.limit_ms is not None and not (math.isfinite(self.limit_ms) and self.limit_ms > 0):
            raise BudgetError(
                f"budget of {self.limit_ms} ms: it must be finite and above 0", hint="for example --budget-ms 12"
            )
        if self.speedup is not None and not (math.isfinite(self.speedup) and self.speedup >= 1):
            raise BudgetError(
                f"speed-up of {self.speedup}: it must be finite and at least 1", hint="for example --speedup 2"
            )
        if not 0 < self.quantile < 1:
            raise BudgetError(
                f"quantile {self.quantile}: it must lie between 0 and 1", hint="for example --quantile 0.99"
            )
        if not 0 < self.tolerance < 1:
            raise BudgetError(f"tolerance {self.tolerance}: it must lie between 0 and 1", hint="for example 0.05")


@dataclass(frozen=True)
class Interval:
    """`[low, estimate, high]` at 95 %, from `n` raw samples. `high` is `inf` below the sample floor."""

    estimate: float
    low: float
    high: float
    n: int

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Interval:
        """From the form that it has in a record, where an open bound is null."""
        low = -math.inf if data["low"] is None else float(data["low"])
        high = math.inf if data["high"] is None else float(data["high"])
        return cls(float(data["estimate"]), low, high, int(data["n"]))


@dataclass(frozen=True)
class Measurement:
    """Raw latencies of one engine in one window, with the environment they belong to.

    Attributes:
        name: what was measured (`dense`, `pruned`, a file's stem).
        samples_ns: latency of each inference, in order [ns].
        starts_ns: when each inference began, monotonic clock [ns].
        blocks: block number of each inference.
        environment: device, runtime, precision, threads, power state, shape, protocol: the key.
        steady: no trend between the first and the last third.
        stop: why sampling ended (`interval inside target`, or the condition that was not met).
        interference: involuntary context switches per second of measuring, or None where unreadable.
    """

    name: str
    samples_ns: npt.NDArray[np.int64]
    starts_ns: npt.NDArray[np.int64]
    blocks: npt.NDArray[np.int64]
    environment: Mapping[str, Any]
    steady: bool
    stop: str
    interference: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Two engines measured in ABBA blocks of one window.

    Attributes:
        a, b: the two measurements (a: reference, b: candidate).
        speedup: latency of a over latency of b, paired by block.
        outcome: `faster`, `slower`, `equivalent` (inside `margin`) or `inconclusive`, said of b.
        margin: equivalence margin, relative.
    """

    a: Measurement
    b: Measurement
    speedup: Interval
    outcome: Literal["faster", "slower", "equivalent", "inconclusive"]
    margin: float


@dataclass(frozen=True)
class Region:
    """What the runtime runs as one fused kernel: an operation and the elementwise chain behind it.

    Attributes:
        name: stable over widths: the name of the ONNX node that heads it.
        op: ONNX operator of that node (`Conv`, `Gemm`, `MaxPool`, `Concat` ...).
        nodes: names of all ONNX nodes it holds, head first.
        reads, writes: layout of the features it consumes and produces.
        weight: layout of each dim of its weight, or empty.
        dense_macs: multiply-accumulates at dense width and batch 1.
        fqn: name of the torch parameter that it works with, its weight's first, or ''.
        within: depth groups that take it along when they go.
        geometry: what else fixes its cost: the head's attributes, its dense shapes, and all operators it holds.
        joined: layouts that the convolutions read from which it gets what it adds, concatenates or pools: where one of
            them cannot run in a runtime's own memory format, neither can this.
    """

    name: str
    op: str
    nodes: tuple[str, ...]
    reads: Layout
    writes: Layout
    weight: tuple[Layout, ...]
    dense_macs: int
    fqn: str = ""
    within: tuple[str, ...] = ()
    geometry: str = ""
    joined: tuple[Layout, ...] = ()

    @property
    def dense_elements(self) -> tuple[float, float]:
        """Elements of the first tensor read and of the first one written, as `geometry` has them; else 0."""
        ends = self.geometry.rpartition(" ")[2].split(">")
        return (_elements(ends[0]), _elements(ends[1])) if len(ends) == 2 else (0.0, 0.0)


def _elements(shapes: str) -> float:
    """Elements of the first of some shapes: `1x64x56x56,64x64x3x3`."""
    extents = shapes.partition(",")[0].split("x")
    return float(math.prod(map(int, extents))) if all(map(str.isdigit, extents)) else 0.0


@dataclass(frozen=True)
class Bend:
    """How a whole follows from the sum of its parts: `anchor · (sum / anchor)^exponent`, at the anchor the sum itself.

    Kernels of a large network run slower than the same kernels in a small one: each finds less of its memory in the
    caches. Any whole is known by its sum, so what bounds the one bounds the other.

    Attributes:
        exponent: 1 where parts simply add up.
        anchor: where sum and whole are equal, above 0.
    """

    exponent: float = 1.0
    anchor: float = 1.0

    def whole(self, total: Any) -> Any:
        """The whole of a sum, or of an array of sums."""
        return total if self.exponent == 1 else self.anchor * (total / self.anchor) ** self.exponent

    def total(self, whole: Any) -> Any:
        """Inverse of `whole`."""
        return whole if self.exponent == 1 else self.anchor * (whole / self.anchor) ** (1 / self.exponent)


STRAIGHT = Bend()
"""Parts simply add up."""


@dataclass(frozen=True)
class Amount:
    """`times · Π size(dim)`, or nothing where a branch that it stands within goes: a weight, a tensor, a product.

    Attributes:
        times: what one index of all dims counts.
        dims: layouts whose extents multiply.
        within: depth groups that take it along when they go.
        name: of the region, tensor or parameter that it is counted for.
    """

    times: float
    dims: tuple[Layout, ...] = ()
    within: tuple[str, ...] = ()
    name: str = ""

    def at(self, widths: Widths) -> float:
        """The amount at widths; absent groups are dense."""
        if not all(widths.get(branch, 1) for branch in self.within):
            return 0.0
        return self.times * math.prod(size(dim, widths) for dim in self.dims)


@dataclass(frozen=True)
class Quantity:
    """What is counted from widths, not measured: MACs, parameters, bytes; the most of all moments where there are some.

    Attributes:
        name: what it is (`MACs`, `peak memory` ...).
        unit: of its numbers, '' for a plain count.
        moments: amounts that add up; a total has one moment, a peak one for each time at which it may stand.
    """

    name: str
    unit: str
    moments: tuple[tuple[Amount, ...], ...]

    def at(self, widths: Widths) -> float:
        """The quantity at widths; absent groups are dense."""
        return max((math.fsum(amount.at(widths) for amount in moment) for moment in self.moments), default=0.0)


@dataclass(frozen=True)
class Passage:
    """A value that one region makes and another one reads.

    Attributes:
        before, after: the regions.
        elements: how many numbers it holds.
    """

    before: str
    after: str
    elements: Amount


@dataclass(frozen=True)
class Plan:
    """Which units stay, chosen for a limit, with the certificate of the choice.

    Attributes:
        keep: ascending kept units by group name; a group that is absent stays whole.
        limit_ms: latency limit that was solved for [ms].
        predicted_ms: latency the table predicts, fixed part included [ms].
        objective: loss expected from what was removed (lower is better).
        bound: proven lower bound of the objective.
        gap: relative gap between the two.
        seconds: time to solve.
        strategy: `milp` or a baseline's name.
        variants: name of the way each region runs in (`int8`, `fp32`), by region; empty where there was no choice.
    """

    keep: Mapping[str, tuple[int, ...]]
    limit_ms: float
    predicted_ms: float
    objective: float
    bound: float
    gap: float
    seconds: float
    strategy: str = "milp"
    variants: Mapping[str, str] = field(default_factory=dict)

    @property
    def widths(self) -> dict[str, int]:
        """Kept units by group."""
        return {name: len(units) for name, units in self.keep.items()}

    @property
    def kept(self) -> Keep:
        """The kept units as index arrays."""
        return {name: np.asarray(units, np.int64) for name, units in self.keep.items()}


@dataclass(frozen=True)
class Importance:
    """Loss expected from a change to the network, by what is changed: additive, not negative, all in one unit.

    Attributes:
        by_group: from removing each unit, arrays `[units]` by group.
        metric: what the loss is.
        otherwise: from running a region in another way, such as `int8`, by the way's name and the region's. Only
            regions that are there may run so.
    """

    by_group: Mapping[str, npt.NDArray[np.float64]]
    metric: str = "taylor"
    otherwise: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


__all__ = [
    "EXIT_CODES", "VOID", "Amount", "Budget", "Comparison", "Constraints", "Frozen", "Group", "Groups", "Importance",
    "Interval", "Keep", "Layout", "Limits", "Measurement", "Passage", "Plan", "Quantity", "Region", "Slot", "Verdict",
    "Widths",
]  # fmt: skip
