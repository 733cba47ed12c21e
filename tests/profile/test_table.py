"""Laws of the table: the simulated runtime's truth is recovered, an interruption costs nothing, keys hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formula_runtime import GROUPS, KEY, REGIONS, A, C, D, Device, build, measured, truth_ms

from cpd_edge.errors import TableError
from cpd_edge.layout import Leaf, Prod, Sum, size
from cpd_edge.profile.forms import Extra, Form, Model, extent, reached
from cpd_edge.profile.sample import profile
from cpd_edge.profile.table import LatencyTable, Sample, table_folder
from cpd_edge.types import STRAIGHT, Region


@pytest.mark.parametrize(
    "device", [Device(), Device(noise=0.03), Device(noise=0.02, drift=0.01), Device(noise=0.01, profiler_ms=0.02)],
    ids=["quiet", "noisy", "drifting", "costly profiler"],
)  # fmt: skip
def test_the_truth_is_recovered(device: Device) -> None:
    """Held-out networks are predicted within 3 %, through noise, drift and a profiler that costs time."""
    table = measured(device, samples=40, holdout=10)
    report = table.report()
    assert report["holdout_median_error"] <= 0.03
    assert len(report["scatter"]) == 10
    reference = np.median([s.reference_ms for s in table.samples]) / table.samples[0].reference_ms
    rng = np.random.default_rng(1)
    for _ in range(20):
        widths = {g: int(16 * rng.integers(1, n // 16 + 1)) for g, n in GROUPS.items()}
        true = 0.03 + sum(truth_ms(r, widths) for r in REGIONS)
        assert table.predict(widths) == pytest.approx(true * reference, rel=0.08)


def test_what_the_profiler_adds_is_taken_off() -> None:
    """Regions of a network with many kernels cost what they cost without it, to a quarter of what it adds to each."""
    table = measured(Device(profiler_ms=0.02), samples=40)
    widths = {"a": 16, "b": 32, "c": 32, "d": 48}
    for region in REGIONS:
        assert table.region_ms(region.name, widths) == pytest.approx(truth_ms(region, widths), rel=0.15, abs=0.005)


def test_a_machine_at_half_its_pace_now_and_then_leaves_the_table_as_it_is() -> None:
    """What drifts is the whole, the regions and the rest alike."""
    found = measured(Device(noise=0.01, profiler_ms=0.02), samples=24).samples
    steady = [replace(s, rest_ms=0.05, total_ms=s.total_ms + 0.05) for s in found]
    table = LatencyTable.fitted(KEY, GROUPS, REGIONS, steady)
    slow = [
        replace(
            s, ms={n: 2 * ms for n, ms in s.ms.items()}, rest_ms=2 * s.rest_ms, total_ms=2 * s.total_ms,
            reference_ms=2 * s.reference_ms,
        )
        if i % 3 == 1
        else s
        for i, s in enumerate(table.samples)
    ]  # fmt: skip
    again = LatencyTable.fitted(KEY, GROUPS, REGIONS, slow)
    pace = np.median([s.reference_ms for s in slow]) / np.median([s.reference_ms for s in table.samples])
    assert again.fixed_ms == pytest.approx(pace * table.fixed_ms, rel=1e-6)
    for region in REGIONS:
        there = pace * table.region_ms(region.name, {"a": 16, "b": 32, "c": 32, "d": 48})
        assert again.region_ms(region.name, {"a": 16, "b": 32, "c": 32, "d": 48}) == pytest.approx(there, rel=1e-6)


def test_the_staircase_is_found() -> None:
    """A region's latency is flat inside a block of 16 and steps at its end, as the runtime's is."""
    table = measured(Device(), samples=48)
    at = [table.region_ms("three", {"d": d, "b": 32, "c": 32}) for d in (33, 40, 48, 49, 64)]
    assert at[0] == pytest.approx(at[2], rel=0.01)
    assert at[1] == pytest.approx(at[2], rel=0.01)
    assert at[3] > 1.1 * at[2]
    assert at[3] == pytest.approx(at[4], rel=0.01)


@pytest.mark.parametrize("exponent", [1.0, 1.08])
def test_a_machine_that_slows_large_networks_down_is_found_out(exponent: float) -> None:
    """Kernels that are slower the larger the network: the whole is predicted, and how it bends is told."""
    device = Device(noise=0.01, exponent=exponent)
    table = measured(device, samples=60, holdout=10)
    assert 1 + 0.25 * (exponent - 1) - 0.01 < table.bend.exponent < exponent + 0.01, "regions take up a part of it"
    assert table.report()["holdout_p90_error"] < 0.02
    straight = replace(table, bend=STRAIGHT)
    worst = straight.report()["holdout_worst_error"]
    assert worst > 0.04 if exponent > 1 else worst < 0.03


def past_a_cache_ms(region: Region, widths: Mapping[str, int]) -> float:
    """A launch, a price for each channel written, and five times that for each beyond 40."""
    written = size(region.writes, widths)
    return 0.01 + 0.0005 * written + 0.002 * max(written - 40, 0)


def test_what_exceeds_a_cache_costs_more_from_there_on() -> None:
    """A knee in what is written, at 40 channels of 28 by 28: predicted on both sides of it, and near where it is.

    Capacities are tried in powers of two, of which the nearest is 42 channels.
    """
    knee = tuple(replace(r, geometry=f"Conv 1x3x28x28>1x{size(r.writes, GROUPS)}x28x28") for r in REGIONS)
    device = Device(cost_ms=past_a_cache_ms)
    here = {"make_runner": device.make_runner, "key": KEY, "clock": device.clock}
    table = profile(build, knee, GROUPS, samples=40, holdout=8, repeats=5, **here)  # type: ignore[arg-type]
    for width in (8, 24, 48, 96, 128):
        told = table.region_ms("three", {"d": width, "b": 32, "c": 32})
        assert table.bend.exponent == pytest.approx(1.0, abs=0.02)
        assert told == pytest.approx(past_a_cache_ms(knee[4], {**GROUPS, "d": width}), rel=0.08)


def joining_ms(region: Region, widths: Mapping[str, int]) -> float:
    """As usual, but the fourth region takes longer where it or what is joined to it reads no multiple of 4 channels."""
    odd = any(widths[g] % 4 != 0 and widths[g] >= 16 for g in "ad")
    return truth_ms(region, widths) + 0.3 * (region.name == "four" and odd)


def test_a_region_costs_more_where_what_it_joins_comes_in_another_format() -> None:
    """A group that it neither reads nor writes decides it; the other widths of that group leave all as it is."""
    joining = tuple(replace(r, joined=(A,)) if r.name == "four" else r for r in REGIONS)
    device = Device(cost_ms=joining_ms)
    here = {"make_runner": device.make_runner, "key": KEY, "clock": device.clock}
    table = profile(build, joining, GROUPS, samples=40, holdout=8, repeats=5, **here)  # type: ignore[arg-type]
    for a, more in ((8, 0.0), (15, 0.0), (24, 0.0), (25, 0.3), (30, 0.3), (32, 0.0)):
        assert table.predict({"a": a, "b": 32, "c": 32, "d": 64}) == pytest.approx(
            0.03 + sum(truth_ms(r, {"a": a, "b": 32, "c": 32, "d": 64}) for r in REGIONS) + more, rel=0.04
        )
    contained = table.contained("a", np.asarray([8, 15, 16, 17, 24, 30, 32]))
    assert contained.tolist() == [True, True, True, False, True, False, True]
    assert table.contained("b", np.arange(1, 65)).all()
    assert table.contained("d", np.arange(1, 129)).all(), "its own cost, which a grid over it has"
    slight = {n: replace(m, coefficients=tuple(1e-3 * c for c in m.coefficients)) for n, m in table.models.items()}
    assert replace(table, models={**table.models, "four": slight["four"]}).contained("a", np.arange(1, 33)).all()


def test_of_several_groups_that_are_joined_the_last_answers_for_all() -> None:
    """Where channels are groups times their width, widths are left that fit whatever the number of groups is."""
    channels = Prod((Leaf("groups", 4), Leaf("per", 8)))
    join = Region("join", "Add", ("join",), Leaf("x", 16), Leaf("x", 16), (), 0, joined=(channels,))
    form = Form(extras=(Extra("joined", "indivisible", 4, 8),))
    every = tuple(Sample({"groups": g, "per": p}, {}, {}, 0.0, 1.0, 1.0, False) for g, p in ((4, 8), (1, 1)))
    model = Model(form, (0.1, 0.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0))
    table = LatencyTable({}, {"groups": 4, "per": 8}, (join,), every, {"join": model}, 0.0)
    groups, per = np.arange(1, 5), np.arange(1, 9)
    left = [
        (int(g), int(p)) for g in groups[table.contained("groups", groups)] for p in per[table.contained("per", per)]
    ]
    assert {p for _, p in left} == {1, 2, 4, 8} and {g for g, _ in left} == {1, 2, 3, 4}
    assert {table.predict({"groups": g, "per": p}) for g, p in left} == {0.1}


def test_every_extent_of_a_layout_is_reached_and_no_other() -> None:
    """As by enumeration: of sums, of products, of parts that come twice."""
    a, b, c = Leaf("a", 6), Leaf("b", 5), Leaf("c", 4)
    widths = {"a": np.arange(2, 7), "b": np.asarray([1, 3, 5]), "c": np.arange(1, 5)}
    mesh = dict(zip(widths, np.meshgrid(*widths.values()), strict=True))
    for layout in (a, Sum((a, b, c)), Prod((a, b)), Sum((Prod((a, b)), c, c)), Sum((a, a)), Prod((Sum((a, b)), c))):
        assert reached(layout, widths).tolist() == np.unique(extent(layout, mesh)).tolist()
    assert reached(Sum((a, b)), {"b": np.asarray([2])}).tolist() == [8]


def test_a_concat_of_many_wide_groups_may_be_joined() -> None:
    """As in Inception's blocks, whose widths have 10^15 combinations: widths are left that fit whatever the others are.

    What counts is their sum, and a plan of such widths costs what each region says of its own.
    """
    parts = tuple(Leaf(f"g{i}", 384) for i in range(6))
    concat = Sum((Sum(parts[:3]), *parts[3:]))
    join = Region("join", "Concat", ("join",), Leaf("x", 16), Leaf("x", 16), (), 0, joined=(concat,))
    model = Model(Form(extras=(Extra("joined", "indivisible", 4, 8),)), (0.1, 0.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0))
    ends = tuple(Sample({p.axis: w for p in parts}, {}, {}, 0.0, 1.0, 1.0, False) for w in (384, 1))
    table = LatencyTable({}, {p.axis: 384 for p in parts}, (join,), ends, {"join": model}, 0.0)
    widths = np.asarray([1, 8, 383, 384])
    for part in parts:
        assert table.contained(part.axis, widths).tolist() == [False, True, False, True]
    fits = np.arange(1, 385)[table.contained("g5", np.arange(1, 385))]
    drawn = np.random.default_rng(0).choice(fits, (50, len(parts)))
    assert {0.1} == {table.predict({p.axis: int(w) for p, w in zip(parts, row, strict=True)}) for row in drawn}
    flat = replace(table, models={"join": Model(Form(), (0.1, 0.0, 0.0, 0.0))})
    assert flat.contained("g5", widths).all()


def test_what_takes_no_time_has_none() -> None:
    """Operators that a runtime drops are regions still: their latency is 0, and the rest is fitted."""
    table = measured(
        Device(cost_ms=lambda region, widths: truth_ms(region, widths) * (region.op != "Conv")), samples=12
    )
    assert {table.region_ms(r.name, {}) for r in REGIONS if r.op == "Conv"} == {0.0}
    assert table.region_ms("cat", {"b": 32, "c": 32}) == pytest.approx(0.004 + 0.0002 * 64, rel=0.05)


def test_steps_as_wide_as_a_gpu_s_tiles_are_found() -> None:
    """Blocks of 64 are told from blocks of 16."""

    def tiles_ms(region: Region, widths: Mapping[str, int]) -> float:
        return 0.01 + 0.05 * -(-size(region.writes, widths) // 64)

    table = measured(Device(cost_ms=tiles_ms), samples=40)
    at = [table.region_ms("three", {"d": d, "b": 32, "c": 32}) for d in (65, 100, 128, 64, 33)]
    assert at[0] == pytest.approx(at[2], rel=0.02)
    assert at[1] == pytest.approx(at[2], rel=0.02)
    assert at[3] == pytest.approx(at[4], rel=0.02)
    assert at[2] > 1.5 * at[3]


def test_sum_of_costs_and_fixed_is_the_prediction() -> None:
    """What the solver adds up is what `predict` says, at every cell of every grid."""
    table = measured(Device(noise=0.01))
    axis = {g: np.asarray(w) for g, w in {"a": [1, 16, 32], "b": [8, 64], "c": [16, 33, 64], "d": [128]}.items()}
    index = {"a": 1, "b": 0, "c": 1, "d": 0}
    widths = {g: int(axis[g][i]) for g, i in index.items()}
    touched = {
        "stem": "a", "one": "ab", "two": "bc", "cat": "bc", "three": "bcd", "four": "dc", "head": "c",
    }  # fmt: skip
    total = table.fixed_ms
    for name, groups in touched.items():
        grid = table.cost(name, {g: axis[g] for g in groups})
        assert grid.shape == tuple(len(axis[g]) for g in groups)
        total += grid[tuple(index[g] for g in groups)]
    assert table.bend.whole(total) == pytest.approx(table.predict(widths))


@pytest.mark.parametrize("dies_after", [0, 1, 7, 29])
def test_an_interruption_costs_one_sample(dies_after: int, tmp_path: Path) -> None:
    """Killed after any sample, then resumed: the same table, and no finished sample measured again."""
    whole = measured(Device(noise=0.02))
    first, second = Device(noise=0.02, dies_after=dies_after), Device(noise=0.02)
    with pytest.raises(KeyboardInterrupt):
        measured(first, tmp_path)
    resumed = measured(second, tmp_path)
    assert first.profiled + second.profiled == [build(s.widths) for s in whole.samples]
    assert resumed.samples == whole.samples
    assert resumed.models == whole.models


def test_a_torn_line_is_measured_again(tmp_path: Path) -> None:
    """A sample that was being written when the power went is dropped, the ones before are kept."""
    with pytest.raises(KeyboardInterrupt):
        measured(Device(dies_after=5), tmp_path)
    log = tmp_path / "samples.jsonl"
    log.write_text(log.read_text()[:-20])
    device = Device()
    resumed = measured(device, tmp_path)
    assert len(device.profiled) == len(resumed.samples) - 4
    assert len(log.read_text().splitlines()) == len(resumed.samples) + 1


def test_a_finished_table_is_reused(tmp_path: Path) -> None:
    """With the same key nothing is run; the table is equal to the first."""
    first, second = Device(), Device()
    table = measured(first, tmp_path)
    assert measured(second, tmp_path) == table
    assert not second.opened


@pytest.mark.parametrize("other", [{"threads": 2}, {"precision": "int8"}, {"signature": "9"}])
def test_another_key_is_measured_anew(other: dict[str, object], tmp_path: Path) -> None:
    """Neither the table nor the samples of another environment are used."""
    measured(Device(), tmp_path)
    device = Device()
    table = measured(device, tmp_path, key={**KEY, **other})
    assert len(device.profiled) == len(table.samples)
    assert table.key == {**KEY, **other}


def test_load_of_save_is_the_table(tmp_path: Path) -> None:
    """load(save(table)) == table, isolated predictions included; another format is refused."""
    table = measured(Device(noise=0.01)).with_isolated({3: 1.5})
    path = tmp_path / "table.json"
    table.save(path)
    assert LatencyTable.load(path) == table
    path.write_text(json.dumps({"format": 99}))
    with pytest.raises(TableError, match="format 99"):
        LatencyTable.load(path)


def test_what_was_not_measured_is_an_error() -> None:
    """A missing region, group or width says what to measure; it never counts as zero."""
    table = measured(Device())
    with pytest.raises(TableError, match="region 'five' is not in this table"):
        table.region_ms("five", {"a": 8})
    with pytest.raises(TableError, match="group 'z' is not in this table"):
        table.predict({"z": 8})
    for width in (0, 33):
        with pytest.raises(TableError, match=f"width {width} is outside the sampled 1 to 32"):
            table.predict({"a": width})
    with pytest.raises(TableError, match="lacks signature"):
        table_folder(Path("profiles"), {k: v for k, v in KEY.items() if k != "signature"})


def test_the_folder_says_device_runtime_and_model() -> None:
    """profiles/<device>/<runtime>-<version>-<precision>-t<threads>/<signature>-<state>, in plain characters."""
    here = table_folder(Path("profiles"), KEY)
    assert here.parent == Path("profiles/simulated-tm-cpu/simulated-1.0-fp32-t1") and here.name.startswith("0123-")


def test_the_power_state_has_a_folder_of_its_own() -> None:
    """Tables of two power states, governors or pinnings stand side by side; neither is written over the other."""
    states: list[dict[str, object]] = [{}, {"power_mode": "15W"}, {"power_mode": "MAXN"}, {"governor": "performance"}]
    assert len({table_folder(Path("profiles"), {**KEY, **state}) for state in states}) == len(states)


def test_kernels_of_no_region_are_refused() -> None:
    """A profile that no region claims says so, instead of a table of zeros."""
    device = Device()
    renamed = tuple(replace(r, name=f"x{r.name}", nodes=(f"x{r.name}",)) for r in REGIONS)
    with pytest.raises(TableError, match="none of the profiled kernels"):
        profile(build, renamed, GROUPS, device.make_runner, KEY, repeats=5, clock=device.clock)


def test_sampling_ends_early_where_held_out_errors_are_small() -> None:
    """An exact runtime needs fewer samples than asked for."""
    assert len(measured(Device(), samples=200, holdout=6).samples) < 100


def test_the_frame_has_a_row_per_region_and_sample() -> None:
    """The export holds raw and predicted latency beside the widths."""
    table = measured(Device())
    frame = table.to_pandas()
    assert len(frame) == len(REGIONS) * len(table.samples)
    assert {"region", "ms", "predicted_ms", "held_out", "width.a"} <= set(frame.columns)


@pytest.mark.parametrize(
    ("change", "extra_ms", "outside"),
    [
        ({"joined": (D,)}, 0.0075, True),
        ({"joined": (D,)}, 0.0065, False),
        ({"joined": (D,), "within": ("d",)}, 0.3, False),
        ({"joined": (D,), "reads": D}, 0.3, False),
        ({"joined": (D,), "writes": D}, 0.3, False),
        ({"joined": (D,), "weight": (C, D)}, 0.3, False),
    ],
    ids=["joined", "slight", "within", "read", "written", "weighed"],
)
def test_a_width_is_outside_where_it_moves_a_region_that_does_not_know_the_group(
    change: dict[str, Any], extra_ms: float, outside: bool
) -> None:
    """Joining an odd width costs it more: unless a grid over the group has that, or it is a thousandth of the whole."""
    extra = Extra("joined", "indivisible", 4, 8)
    regions = tuple(replace(r, **change) if r.name == "two" else r for r in REGIONS)
    models = {r.name: Model(Form(), (1.0, 0.0, 0.0, 0.0)) for r in regions}
    models["two"] = Model(Form(extras=(extra,)), (1.0, 0.0, 0.0, 0.0, extra_ms, 0.0, 0.0, 0.0))
    least = Sample(dict.fromkeys(GROUPS, 1), {}, {}, 0.0, 1.0, 1.0, False)
    table = LatencyTable(KEY, GROUPS, regions, (least,), models, 0.0)
    told = table.contained("d", np.asarray([7, 12, 13, 127, 128]))
    assert told.tolist() == [True, True, not outside, not outside, True]
