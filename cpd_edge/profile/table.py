"""The latency table: what was measured, the models fitted to it, and the latency of any widths.

Format history: 1, the first; 2, `within`; 3, `fused` and `reformats_ms`; 4, `geometry` of regions; 5,
`noise` is a standard error; 6, no `scale`, and a turn counts with its median; 7, turns are with a small reference and
have a lead-in, and `bend`; 8, `joined` of regions.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cpd_edge.errors import TableError
from cpd_edge.layout import Layout, Leaf, Widths, axes, from_json, to_json
from cpd_edge.profile.doubts import least_certain
from cpd_edge.profile.fit import Samples
from cpd_edge.profile.forms import Extra, Fitted, Floats, Form, Fused, Ints, Model, addends, reached
from cpd_edge.profile.whole import fit_whole
from cpd_edge.store import read_json, write_json
from cpd_edge.types import STRAIGHT, Bend, Region

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 8
Elsewhere: TypeAlias = Callable[[Sequence[Region], Samples], Mapping[str, Model]]
"""Given regions and what was measured of them here: by region, what fits it in other networks."""
ENOUGH = 24
"""From so many samples on, a network's own say more than what fits its layers elsewhere.

ResNet-18 after ResNet-34 on a CPU: with 12 own samples the held-out median error falls from 5.1 to 3.8 %, with 16 from
4.6 to 3.6 %; with 24 it is 3.5 % without, 4.2 % with.
"""
SLIGHT = 1e-3
"""Share of the dense network that a region may cost more without a solver being kept from what makes it so."""
AGAIN = "measure it: cpd-edge profile MODEL"


@dataclass(frozen=True)
class Sample:
    """One network at sampled widths, as measured.

    Attributes:
        widths: by group.
        ms: by region, with the profiler on; of regions that are fused, by the first of them [ms].
        kernels: how many kernels each region ran as.
        rest_ms: kernels that belong to no region [ms].
        total_ms: whole inference without the profiler, at the pace of `reference_ms` [ms].
        reference_ms: inference of the reference, a small network, in turns with it, the median [ms].
        held_out: kept out of the fit, to test it.
        reformats_ms: changes of format among `rest_ms` [ms].
        noise: relative standard error of `total_ms`.
    """

    widths: Mapping[str, int]
    ms: Mapping[str, float]
    kernels: Mapping[str, int]
    rest_ms: float
    total_ms: float
    reference_ms: float
    held_out: bool
    reformats_ms: float = 0.0
    noise: float = 0.0


@dataclass(frozen=True)
class LatencyTable:
    """Measured latency of every region over widths, for one model on one device and runtime.

    The latency of widths is `Σ region + fixed_ms`, bent, where regions share out the time that was measured without
    the profiler.

    Attributes:
        key: environment that the numbers belong to, and the model's `signature`.
        groups: units by group.
        regions: the regions, in execution order.
        samples: all raw samples.
        models: fitted model by region.
        fixed_ms: what no region accounts for [ms].
        bend: how the latency follows from the sum; at the largest network that was measured they are equal.
        seconds: how long measuring took.
        isolated_ms: the sum of regions timed alone, by index of the held-out sample [ms].
        fused: regions that the runtime runs as one kernel, in the network's order: they are measured and fitted as
            one, and what a single one of them costs is the fit's share of that.
        known_regions: how many regions other networks' tables knew; they inform the fit below `ENOUGH` samples.
    """

    key: Mapping[str, Any]
    groups: Mapping[str, int]
    regions: tuple[Region, ...]
    samples: tuple[Sample, ...]
    models: Mapping[str, Model]
    fixed_ms: float
    bend: Bend = STRAIGHT
    seconds: float = 0.0
    isolated_ms: Mapping[int, float] = field(default_factory=dict)
    fused: tuple[tuple[str, ...], ...] = ()
    known_regions: int = 0

    @classmethod
    def fitted(
        cls,
        key: Mapping[str, Any],
        groups: Mapping[str, int],
        regions: Sequence[Region],
        samples: Sequence[Sample],
        seconds: float = 0.0,
        fused: Sequence[Sequence[str]] = (),
        elsewhere: Elsewhere | None = None,
    ) -> LatencyTable:
        """Fits models to the samples that are not held out, each freed of the machine's drift.

        Args:
            key, groups, regions, samples, seconds, fused: see the attributes.
            elsewhere: what was measured of these regions in other networks.

        Raises:
            TableError: fewer than four samples to fit.
        """
        own, fixed_ms = _to_fit(groups, samples)
        measured = _measured(regions, fused)
        alone = [r for r in measured if isinstance(r, Region)]
        known = elsewhere(alone, own) if elsewhere else {}
        models, bend = fit_whole(measured, own, fixed_ms, known if len(own) < ENOUGH else {})
        return cls(
            dict(key),
            dict(groups),
            tuple(regions),
            tuple(samples),
            models,
            fixed_ms,
            bend,
            seconds,
            fused=tuple(tuple(names) for names in fused),
            known_regions=len(known),
        )

    @cached_property
    def ranges(self) -> dict[str, tuple[int, int]]:
        """Smallest sampled width and dense width by group; a group of one unit is a branch, which can go."""
        return {
            g: (min(s.widths[g] for s in self.samples) if units > 1 else 0, units) for g, units in self.groups.items()
        }

    def predict(self, widths: Widths) -> float:
        """Latency at widths; absent groups are dense [ms].

        Raises:
            TableError: a group that the table does not know, or a width that was not sampled around.
        """
        columns = {g: np.asarray([w]) for g, w in widths.items()}
        self._check(columns)
        here = (self.points(r.name, {g: c for g, c in columns.items() if g in self._axes(r)}) for r in self.regions)
        return float(self.bend.whole(self.fixed_ms + sum(float(ms.reshape(-1)[0]) for ms in here)))

    def region_ms(self, name: str, widths: Widths) -> float:
        """Latency of one region at widths, before the bend [ms].

        Raises:
            TableError: a region or group that the table does not know, or a width that was not sampled around.
        """
        return float(self.points(name, {g: np.asarray([w]) for g, w in widths.items()}).reshape(-1)[0])

    def cost(self, name: str, groups: Mapping[str, Ints]) -> Floats:
        """Latency of a region over a grid: one dim a group, in the order given [ms].

        Raises:
            TableError: as `region_ms`.
        """
        shape = tuple(len(v) for v in groups.values())
        grid = dict(zip(groups, np.ix_(*groups.values()), strict=True))
        return np.array(np.broadcast_to(self.points(name, grid), shape), np.float64)

    def points(self, name: str, widths: Mapping[str, Ints]) -> Floats:
        """Latency of a region at arrays of widths that broadcast against each other [ms].

        Raises:
            TableError: as `region_ms`.
        """
        self._check(widths)
        region = self._by_name.get(name)
        if region is None:
            raise TableError(f"region {name!r} is not in this table of {len(self.regions)} regions", hint=AGAIN)
        ms = self.models[name].ms(region, widths)
        for branch in region.within:
            if branch in widths:
                ms = ms * (np.asarray(widths[branch]) > 0)
        return ms

    def contained(self, group: str, widths: Ints) -> npt.NDArray[np.bool_]:
        """Which widths of a group leave the cost of regions that neither read nor write it as it is `[widths]`.

        At others a region that joins what is made of the group runs otherwise too, see `Region`. Of groups that are
        multiplied the last one answers for all widths of the others. Of parts that add up each answers for itself: what
        leaves a sum divisible alone does so together. The dense width is among them always.
        """
        fine = np.ones(len(widths), bool)
        for region in self.regions:
            own = (*axes(region.reads, region.writes, *region.weight), *region.within)
            for layout, part in ((whole, part) for whole in region.joined for part in addends(whole)):
                names = [g for g in axes(part) if g in self.groups and g not in own]
                if group in names[-1:]:
                    others = {g: np.arange(self.ranges[g][0], self.ranges[g][1] + 1) for g in names[:-1]}
                    most = self.points(region.name, {}) + SLIGHT * self._dense_ms
                    for i in np.flatnonzero(fine):
                        extents = reached(layout, {**others, group: widths[i : i + 1]})
                        fine[i] = (self._joining(region, layout, extents) <= most).all()
        return np.asarray(fine | (widths == self.groups[group]), np.bool_)

    def _joining(self, region: Region, layout: Layout, extents: Ints) -> Floats:
        """Latency of a region, dense but for one of the layouts that it joins, at extents of that one [ms]."""
        joined = Leaf("joined", layout.extent)
        here = replace(region, joined=tuple(joined if one == layout else one for one in region.joined))
        return self.models[region.name].ms(here, {joined.axis: extents})

    @cached_property
    def _dense_ms(self) -> float:
        """The sum of all regions, dense [ms]."""
        return float(sum(self.points(r.name, {}).reshape(-1)[0] for r in self.regions))

    def unsure(self, networks: Sequence[Widths], count: int, known: Sequence[Widths] = ()) -> list[int]:
        """Indices of the networks, `count` of them, that it would tell least surely once `known` are measured too."""
        own, _ = _to_fit(self.groups, self.samples)
        every = [*known, *networks]
        columns = {g: np.asarray([w[g] for w in every], np.int64) for g in self.groups}
        every_region = _measured(self.regions, self.fused)
        found = least_certain(every_region, own, self.models, columns, count, len(known))
        return [i - len(known) for i in found]

    def report(self) -> dict[str, Any]:
        """What a run's record says of the table: counts, held-out errors, and the scatter behind them."""
        scatter: list[dict[str, float | None]] = []
        errors: list[float] = []
        alone: list[float] = []
        noise = [s.noise for s in self.samples if s.held_out]
        for i, (sample, factor) in enumerate(zip(self.samples, drift(self.samples), strict=True)):
            if not sample.held_out:
                continue
            measured, predicted = float(sample.total_ms * factor), self.predict(sample.widths)
            single = self.isolated_ms.get(i)
            errors.append(abs(predicted / measured - 1))
            if single is not None:
                alone.append(abs(single / measured - 1))
            scatter.append({"predicted_ms": predicted, "measured_ms": measured, "isolated_ms": single})
        return {
            "samples": len(self.samples),
            "regions": len(self.regions),
            "known_regions": self.known_regions,
            "seconds": self.seconds,
            "holdout_median_error": float(np.median(errors)) if errors else None,
            "holdout_p90_error": float(np.quantile(errors, 0.9)) if errors else None,
            "holdout_worst_error": max(errors, default=None),
            "within_5_percent": _share_within(errors, 0.05),
            "within_10_percent": _share_within(errors, 0.10),
            "noise": float(np.median(noise)) if noise else None,
            "isolated_median_error": float(np.median(alone)) if alone else None,
            "scatter": scatter,
        }

    def to_pandas(self) -> pd.DataFrame:
        """Raw samples as rows: sample, held_out, region, op, fqn, ms, predicted_ms, total_ms and every width.

        Of regions that are fused, the first has the time of all.
        """
        import pandas as pd

        rows = [
            {
                "sample": i, "held_out": s.held_out, "region": r.name, "op": r.op, "fqn": r.fqn,
                "ms": s.ms.get(r.name, 0.0), "predicted_ms": self.region_ms(r.name, s.widths), "total_ms": s.total_ms,
                **{f"width.{g}": w for g, w in s.widths.items()},
            }
            for i, s in enumerate(self.samples)
            for r in self.regions
        ]  # fmt: skip
        return pd.DataFrame(rows)

    def save(self, path: Path) -> None:
        """Writes the table, samples and fit, as JSON."""
        write_json(
            path,
            {
                "format": FORMAT,
                "key": self.key,
                "groups": self.groups,
                "regions": [_region_json(r) for r in self.regions],
                "samples": self.samples,
                "models": self.models,
                "fixed_ms": self.fixed_ms,
                "bend": self.bend,
                "seconds": self.seconds,
                "isolated_ms": self.isolated_ms,
                "fused": self.fused,
                "known_regions": self.known_regions,
            },
        )

    @classmethod
    def load(cls, path: Path) -> LatencyTable:
        """Inverse of `save`.

        Raises:
            StoreError: the file is missing or no JSON.
            TableError: another format.
        """
        data = read_json(path)
        if data.get("format") != FORMAT:
            raise TableError(
                f"{path}: table format {data.get('format')}, this version reads {FORMAT}",
                hint="pip install -U cpd-edge, or delete the table to have it measured again",
            )
        return cls(
            key=data["key"],
            groups=data["groups"],
            regions=tuple(_region_from(r) for r in data["regions"]),
            samples=tuple(Sample(**s) for s in data["samples"]),
            models={name: _model_from(m) for name, m in data["models"].items()},
            fixed_ms=data["fixed_ms"],
            bend=Bend(**data["bend"]),
            seconds=data["seconds"],
            isolated_ms={int(i): ms for i, ms in data["isolated_ms"].items()},
            fused=tuple(tuple(names) for names in data["fused"]),
            known_regions=data["known_regions"],
        )

    def with_isolated(self, isolated_ms: Mapping[int, float]) -> LatencyTable:
        """The same table with what isolated timing predicts for held-out samples."""
        return replace(self, isolated_ms=dict(isolated_ms))

    @cached_property
    def _by_name(self) -> dict[str, Region]:
        return {r.name: r for r in self.regions}

    def _axes(self, region: Region) -> frozenset[str]:
        return frozenset((*axes(region.reads, region.writes, *region.weight, *region.joined), *region.within))

    def _check(self, widths: Mapping[str, Ints]) -> None:
        for group, values in widths.items():
            if group not in self.groups:
                raise TableError(f"group {group!r} is not in this table of {len(self.groups)} groups", hint=AGAIN)
            low, high = self.ranges[group]
            outside = values[(values < low) | (values > high)]
            if len(outside):
                raise TableError(
                    f"group {group}: width {int(outside.flat[0])} is outside the sampled {low} to {high}",
                    hint=f"measure it with samples of {group} down to {int(outside.min())}: cpd-edge profile MODEL",
                )


def _measured(regions: Sequence[Region], fused: Sequence[Sequence[str]]) -> list[Fitted]:
    """What has a time of its own: regions, and sets of them that are fused."""
    by_name = {r.name: r for r in regions}
    sets = {names[0]: Fused(names[0], tuple(by_name[n] for n in names)) for names in fused}
    inside = {name for names in fused for name in names}
    return [sets.get(r.name, r) for r in regions if r.name in sets or r.name not in inside]


def _to_fit(groups: Mapping[str, int], samples: Sequence[Sample]) -> tuple[Samples, float]:
    used = [(s, factor) for s, factor in zip(samples, drift(samples), strict=True) if not s.held_out]
    if len(used) < 4:
        raise TableError(f"{len(used)} samples: a table needs at least 4", hint=AGAIN)
    widths = {g: np.asarray([s.widths[g] for s, _ in used], np.int64) for g in groups}
    total = np.asarray([s.total_ms * factor for s, factor in used], np.float64)
    by_region, fixed_ms = _shared_out(used, total)
    return Samples(widths, by_region), fixed_ms


def _shared_out(drifted: Sequence[tuple[Sample, float]], total: Floats) -> tuple[dict[str, Floats], float]:
    """Latency of each region `[samples]`, and what belongs to none: up to how that varies, they add up to the whole.

    The profiler says how the whole divides; the whole is measured without it. What the profiler adds to each kernel is
    seen in the network that takes least time, where kernels have next to nothing to do. What belongs to no region is
    the least that any network leaves over, and the usual time of kernels that have none.
    """
    names = tuple(drifted[0][0].ms)
    ms = np.asarray([[s.ms[n] * factor for n in names] for s, factor in drifted], np.float64)
    count = np.asarray([[s.kernels[n] for n in names] for s, _ in drifted], np.float64)
    rest = np.asarray([s.rest_ms * factor for s, factor in drifted], np.float64)
    least = int(np.argmin(total))
    added = max(float(ms[least].sum() + rest[least] - total[least]) / max(float(count[least].sum()), 1.0), 0.0)
    own = np.maximum(ms - added * count, 0.1 * ms)
    kernels = own.sum(axis=1) + rest
    fixed_ms = max(float(np.min(total - kernels)), 0.0)
    pace = (total - fixed_ms) / kernels
    own *= pace[:, None]
    return {n: own[:, i] for i, n in enumerate(names)}, fixed_ms + float(np.median(rest * pace))


def _share_within(errors: Sequence[float], bound: float) -> float | None:
    return sum(e <= bound for e in errors) / len(errors) if errors else None


def drift(samples: Sequence[Sample]) -> Floats:
    """Factor for each sample that takes the machine's drift out: the reference's latency overall over that then."""
    reference = np.asarray([s.reference_ms for s in samples], np.float64)
    return np.asarray(np.median(reference) / reference, np.float64)


def table_folder(root: Path, key: Mapping[str, Any]) -> Path:
    """`root/<device>/<runtime>-<version>-<precision>-t<threads>/<signature>-<state>`.

    The state is twelve hex digits of the whole key, power state included: a table is never mistaken for, or written
    over, one that was measured in another state or on a device of nearly the same name.

    Raises:
        TableError: the key lacks one of device, runtime, runtime_version, precision, threads, signature.
    """
    wanted = ("device", "runtime", "runtime_version", "precision", "threads", "signature")
    missing = [name for name in wanted if name not in key]
    if missing:
        raise TableError(f"the key of a table lacks {', '.join(missing)}: it has {', '.join(key)}")
    slug = {name: re.sub(r"[^a-z0-9.]+", "-", str(key[name]).lower()).strip("-.") or "unknown" for name in wanted}
    state = hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()[:12]
    runtime = "{runtime}-{runtime_version}-{precision}-t{threads}".format(**slug)
    return root / slug["device"] / runtime / f"{slug['signature']}-{state}"


def _region_json(region: Region) -> dict[str, Any]:
    layouts = {"reads": to_json(region.reads), "writes": to_json(region.writes)}
    return {
        "name": region.name, "op": region.op, "nodes": list(region.nodes), **layouts,
        "weight": [to_json(x) for x in region.weight], "dense_macs": region.dense_macs, "fqn": region.fqn,
        "within": list(region.within), "geometry": region.geometry, "joined": [to_json(x) for x in region.joined],
    }  # fmt: skip


def _region_from(data: Mapping[str, Any]) -> Region:
    return Region(
        name=data["name"], op=data["op"], nodes=tuple(data["nodes"]), reads=from_json(data["reads"]),
        writes=from_json(data["writes"]), weight=tuple(from_json(x) for x in data["weight"]),
        dense_macs=data["dense_macs"], fqn=data["fqn"], within=tuple(data["within"]), geometry=data["geometry"],
        joined=tuple(from_json(x) for x in data["joined"]),
    )  # fmt: skip


def _model_from(data: Mapping[str, Any]) -> Model:
    form = data["form"]
    extras = tuple(Extra(**e) for e in form["extras"])
    return Model(Form(form["reads"], form["writes"], form["soft"], extras), tuple(data["coefficients"]))
