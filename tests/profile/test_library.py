"""Laws of the store: one table is measured once, nothing is lost or doubled, and equal layers inform each other."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formula_runtime import GROUPS, KEY, REGIONS, Device, build, measured

from cpd_edge.cli.text import tables_text
from cpd_edge.errors import RuntimeMissing, TableError, UsageError
from cpd_edge.layout import Leaf, Prod, Sum
from cpd_edge.pipeline.tables import list_tables
from cpd_edge.profile import fit
from cpd_edge.profile.exchange import COLUMNS, from_frame, merge, read_file, stored, to_frame, write_file
from cpd_edge.profile.fit import Samples
from cpd_edge.profile.forms import Extra, Form, Model
from cpd_edge.profile.library import Library, region_signature
from cpd_edge.profile.sample import FIRST_CHECK, profile
from cpd_edge.profile.table import ENOUGH, LatencyTable, table_folder
from cpd_edge.store import held, write_json
from cpd_edge.types import Region

SPAWN = multiprocessing.get_context("fork")
PATIENCE_S = 300.0
"""How long another process may take on a machine that has other work."""
SHAPED = tuple(replace(r, geometry=f"{r.op} 3x3 {r.dense_macs}") for r in REGIONS)
RENAMED = {"a": "x", "b": "y", "c": "z", "d": "w"}
"""The same network under other names."""


def renamed(layout: Any) -> Any:
    if isinstance(layout, Leaf):
        return Leaf(RENAMED.get(layout.axis, layout.axis), layout.extent)
    return type(layout)(tuple(renamed(p) for p in layout.parts))


def twin(region: Region) -> Region:
    """A region of another network that is the same work."""
    return replace(
        region, name=f"other.{region.name}", nodes=(f"other.{region.name}",), fqn=f"other.{region.fqn}",
        reads=renamed(region.reads), writes=renamed(region.writes), weight=tuple(map(renamed, region.weight)),
    )  # fmt: skip


def shaped(device: Device, folder: Path | None, key: Mapping[str, Any] = KEY, **options: object) -> LatencyTable:
    arguments = {"samples": 24, "holdout": 6, "repeats": 8, "clock": device.clock, **options}
    return profile(build, SHAPED, GROUPS, device.make_runner, key, folder=folder, **arguments)  # type: ignore[arg-type]


@pytest.fixture(scope="module", autouse=True)
def few_forms() -> Iterator[None]:
    """The fit tries the forms that the formula needs and no others, so that it costs little."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "BLOCKS", (1, 16))
        patch.setattr(fit, "MOST_EXTRAS", 0)
        yield


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> LatencyTable:
    """One measured table, with an isolated baseline and a window that was not quiet for each sample."""
    made = shaped(Device(noise=0.01), table_folder(tmp_path_factory.mktemp("one"), KEY))
    made = replace(made, samples=tuple(replace(s, noise=0.001 * (i + 1)) for i, s in enumerate(made.samples)))
    return made.with_isolated({i: 1.5 * s.total_ms for i, s in enumerate(made.samples) if s.held_out})


def work_and_die(folder: Path, after: int) -> None:
    """Measures, and is killed without a word in the middle of its `after`th sample, a torn line behind it."""

    class Deadly(Device):
        def make_runner(self, model: bytes, profiled: bool) -> Any:
            if profiled and len(self.profiled) == after:
                with (folder / "samples.jsonl").open("a") as stream:
                    stream.write('{"widths": {"a": 3')
                os.kill(os.getpid(), signal.SIGKILL)
            return super().make_runner(model, profiled)

    shaped(Deadly(), folder)


def work_and_count(folder: Path, counts: Any) -> None:
    device = Device()
    shaped(device, folder)
    counts.put(len(device.profiled))


def test_a_killed_process_loses_one_sample_and_keeps_nothing_waiting(tmp_path: Path) -> None:
    """Killed twice while it writes, the third process goes on: every sample once, the torn lines gone, no lock left."""
    for after in (5, 4):
        process = SPAWN.Process(target=work_and_die, args=(tmp_path / "t", after))
        process.start()
        process.join(PATIENCE_S)
        assert process.exitcode == -signal.SIGKILL
    device = Device()
    found = shaped(device, tmp_path / "t")
    assert len(device.profiled) == len(found.samples) - 9
    lines = [json.loads(line) for line in (tmp_path / "t/samples.jsonl").read_text().splitlines()[1:]]
    assert [line["widths"] for line in lines] == [dict(s.widths) for s in found.samples]
    assert found.samples == shaped(Device(), tmp_path / "alone/whole").samples


def test_two_processes_measure_one_table_once(tmp_path: Path) -> None:
    """Of two that begin together, one measures and the other waits and takes it: nothing is doubled."""
    counts = SPAWN.Queue()
    both = [SPAWN.Process(target=work_and_count, args=(tmp_path / "t", counts)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(PATIENCE_S)
    seen = sorted(counts.get(timeout=PATIENCE_S) for _ in both)
    found = LatencyTable.load(tmp_path / "t/table.json")
    assert seen == [0, len(found.samples)]
    assert len((tmp_path / "t/samples.jsonl").read_text().splitlines()) == 1 + len(found.samples)


def test_who_must_wait_is_told(tmp_path: Path) -> None:
    """A folder that another process holds says so once, and is free as soon as that process is killed."""
    ready = SPAWN.Event()

    def hold() -> None:
        with held(tmp_path):
            ready.set()
            signal.pause()

    process = SPAWN.Process(target=hold)
    process.start()
    assert ready.wait(PATIENCE_S)
    told: list[int] = []

    def waiting() -> None:
        told.append(1)
        process.kill()

    with held(tmp_path, waiting):
        assert told == [1]
    process.join(PATIENCE_S)


def test_fresh_measures_again(tmp_path: Path) -> None:
    """`fresh` leaves neither table nor samples of the old measurement."""
    shaped(Device(), tmp_path / "t")
    device = Device()
    found = shaped(device, tmp_path / "t", fresh=True)
    assert len(device.profiled) == len(found.samples)


def test_equal_work_has_one_signature() -> None:
    """Names do not count; attributes, extents and which axes are shared do."""
    other = [twin(r) for r in SHAPED]
    assert [region_signature(r) for r in other] == [region_signature(r) for r in SHAPED]
    two = SHAPED[2]
    changed = [
        replace(two, geometry="Conv 1x1"), replace(two, writes=Leaf("c", 63)), replace(two, writes=two.reads),
        replace(two, reads=Sum((Leaf("b", 32), Leaf("e", 32)))), replace(two, reads=Prod((Leaf("b", 64),))),
    ]  # fmt: skip
    assert len({region_signature(r) for r in (two, *changed)}) == 1 + len(changed)


def test_known_layers_are_found_at_the_level_they_have_here(tmp_path: Path, table: LatencyTable) -> None:
    """Another network's fit is taken for equal layers only, in this one's names, scaled to the samples here."""
    table.save(table_folder(tmp_path, KEY) / "table.json")
    key = {**KEY, "signature": "4567"}
    library = Library.beside(table_folder(tmp_path, key), key)
    assert [t.key for t in library.tables] == [KEY]
    regions = (*map(twin, SHAPED[:4]), replace(twin(SHAPED[4]), geometry="Conv 5x5"))
    widths = {RENAMED[g]: np.asarray([n, n // 2, n // 4]) for g, n in GROUPS.items()}
    there = {r.name: table.models[r.name].ms(r, {g: widths[RENAMED[g]] for g in GROUPS}) for r in SHAPED[:5]}
    here = Samples(widths, {f"other.{name}": 2 * np.broadcast_to(ms, 3) for name, ms in there.items()})
    known = library.known(regions, here)
    assert set(known) == {r.name for r in regions[:4]}
    for region in regions[:4]:
        assert np.allclose(known[region.name].ms(region, widths), here.ms[region.name])
    assert 0 < library.share(regions) < 1


def test_of_several_tables_the_one_that_meets_the_samples_is_taken(table: LatencyTable) -> None:
    """Whichever comes first: the other one's layers climb other steps."""
    region = SHAPED[2]
    model = table.models[region.name]
    flat = Model(Form(), (model.coefficients[0] + 1.0, 0.0, 0.0, 0.0))
    other = replace(table, models={**table.models, region.name: flat})
    widths = {g: np.asarray([n, n // 2, n // 4]) for g, n in GROUPS.items()}
    here = Samples(widths, {region.name: np.broadcast_to(model.ms(region, widths), 3)})
    for tables in ((table, other), (other, table)):
        assert Library(tables).known([region], here)[region.name].form == model.form
        assert np.allclose(Library(tables).known([region], here)[region.name].ms(region, widths), here.ms[region.name])


def test_what_a_layer_joins_is_read_here(tmp_path: Path, table: LatencyTable) -> None:
    """Equal work that joins something else in another network is known there, at this one's conditions."""
    extra = Extra("joined", "indivisible", 4, 8)
    model = Model(Form(extras=(extra,)), (0.1, 1.0, 0.5, 0.5, 0.4, 0.0, 0.0, 0.0))
    there = replace(SHAPED[1], joined=(Leaf("rgb", 30),))
    here = replace(twin(SHAPED[1]), joined=(Leaf("other.d", 128),))
    regions = (there, *SHAPED[2:])
    replace(table, regions=regions, models={**table.models, there.name: model}).save(
        table_folder(tmp_path, KEY) / "table.json"
    )
    key = {**KEY, "signature": "4567"}
    widths = {"other.a": np.asarray([32, 16, 8]), "other.b": np.asarray([64, 32, 8])}
    widths |= {"other.d": np.asarray([128, 61, 127])}
    samples = Samples(widths, {here.name: np.broadcast_to(model.ms(here, widths), 3)})
    known = Library.beside(table_folder(tmp_path, key), key).known([here], samples)
    assert known[here.name].coefficients == pytest.approx(model.coefficients)


def test_a_profile_that_was_stopped_goes_on_whatever_was_measured_meanwhile(tmp_path: Path) -> None:
    """A relative's table, there since, would have had errors looked at sooner: no sample is lost to that."""
    folder = table_folder(tmp_path, {**KEY, "signature": "89ab"})
    whole = shaped(Device(noise=0.01), None, {**KEY, "signature": "89ab"}, samples=40, holdout=8)
    first, second = Device(noise=0.01, dies_after=9), Device(noise=0.01)
    with pytest.raises(KeyboardInterrupt):
        shaped(first, folder, {**KEY, "signature": "89ab"}, samples=40, holdout=8)
    shaped(Device(noise=0.01), table_folder(tmp_path, KEY), samples=40, holdout=8)
    resumed = shaped(second, folder, {**KEY, "signature": "89ab"}, samples=40, holdout=8)
    assert len(first.profiled) + len(second.profiled) == len(resumed.samples)
    assert resumed.samples[:9] == whole.samples[:9]


@pytest.mark.parametrize("other", [{"threads": 2}, {"power_mode": "15W"}, {"precision": "int8"}])
def test_another_place_knows_nothing(other: dict[str, object], tmp_path: Path, table: LatencyTable) -> None:
    """Layers measured with other threads, power state or precision are not taken, not even from the folder beside."""
    replace(table, key={**KEY, **other}).save(tmp_path / "beside/table.json")
    assert Library.beside(tmp_path / "mine", KEY).tables == ()


def test_a_network_of_known_layers_needs_fewer_samples(tmp_path: Path) -> None:
    """After its twin, a network is looked at sooner, says how many regions were known, and is predicted as well."""
    first = shaped(Device(noise=0.01), table_folder(tmp_path, KEY), samples=40, holdout=8)
    key = {**KEY, "signature": "89ab"}
    second = shaped(Device(noise=0.01), table_folder(tmp_path, key), key, samples=40, holdout=8)
    assert first.known_regions == 0 and second.known_regions == len(SHAPED)
    assert len(second.samples) < len(first.samples)
    assert second.report()["holdout_median_error"] <= 0.03


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_import_of_export_is_the_table(ending: str, tmp_path: Path, table: LatencyTable) -> None:
    """All there is to a table comes back, to the last bit; what comes twice is not doubled."""
    other = replace(table, key={**KEY, "signature": "89ab", "pinned": "", "power_mode": "15W"})
    file = tmp_path / f"tables.{ending}"
    write_file(to_frame([table, other]), file)
    back = from_frame(read_file(file), str(file))
    assert back == [table, other]
    assert [merge(t, tmp_path / "store") for t in (*back, *back)] == [len(table.samples)] * 2 + [0, 0]
    kept = [t for _, t in stored(tmp_path / "store") if t is not None]
    assert sorted((t.key["signature"], t) for t in kept) == [("0123", table), ("89ab", other)]


def test_merging_adds_what_is_new(tmp_path: Path, table: LatencyTable) -> None:
    """Two halves make the whole, in any overlap, with the isolated baseline at its sample."""
    n = len(table.samples)
    parts = [(*range(n - 4),), (*range(3, n),)]
    for part in parts:
        alone = {at: table.isolated_ms[i] for at, i in enumerate(part) if i in table.isolated_ms}
        half = LatencyTable.fitted(KEY, GROUPS, SHAPED, [table.samples[i] for i in part]).with_isolated(alone)
        merge(half, tmp_path)
    [(_, whole)] = stored(tmp_path)
    assert whole is not None
    assert whole.samples == table.samples and whole.isolated_ms == table.isolated_ms
    assert whole.models == table.models


def test_a_table_of_another_version_hides_no_other(tmp_path: Path, table: LatencyTable) -> None:
    """It is told of as what is not read here, beside those that are."""
    merge(table, tmp_path)
    old = table_folder(tmp_path, {**KEY, "signature": "89ab"}) / "table.json"
    write_json(old, {"format": 1})
    assert [t for _, t in stored(tmp_path)] == [table, None]
    told = list_tables(str(tmp_path), "", "")
    assert (1, [str(old.parent)]) == (len(told["tables"]), told["outdated"]) and str(old.parent) in tables_text(told)


def test_a_table_of_other_regions_is_not_merged(tmp_path: Path, table: LatencyTable) -> None:
    """The same key with other regions is refused by the folder's name, and what is there stays."""
    merge(table, tmp_path)
    with pytest.raises(TableError, match="another table of that key"):
        merge(replace(table, regions=tuple(map(twin, SHAPED))), tmp_path)
    assert [t for _, t in stored(tmp_path)] == [table]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f.drop(columns=["ms"]), "lacks ms"),
        (lambda f: f.rename(columns={"ms": "us"}), "may not have, us"),
        (lambda f: f.assign(format=7), "format 7"),
        (lambda f: f.assign(device="Jetson"), "device is 'Jetson'"),
        (lambda f: f.assign(total_ms=-1.0), "row 1, total_ms: -1.0, wanted a number of 0 or more"),
        (lambda f: f.assign(total_ms="12 us"), "row 1, total_ms: '12 us', wanted number"),
        (lambda f: f.assign(held_out="maybe"), "row 1, held_out"),
        (lambda f: f.assign(sample=0.5), "row 1, sample: 0.5, wanted whole number"),
        (lambda f: f[f["region"] != "two"].iloc[:-1], "has other regions"),
        (lambda f: f.assign(widths=""), "row 1, widths: empty"),
    ],
)
def test_what_is_no_file_of_tables_is_refused(change: Any, said: str, table: LatencyTable) -> None:
    """Columns, format, units and values that are wrong are named."""
    with pytest.raises(TableError) as refused:
        from_frame(change(to_frame([table]).astype({"held_out": object})), "f.csv")
    assert said in str(refused.value) and "f.csv" in str(refused.value)


def test_samples_without_those_held_out_are_no_table(table: LatencyTable) -> None:
    """A run states at its end how well its table predicts plans that the fit has not seen."""
    frame = to_frame([table])
    with pytest.raises(TableError, match="no sample of 0123 is held out"):
        from_frame(frame[~frame["held_out"]], "part.csv")


def test_files_that_do_not_read_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another ending, no file, a file that lies about its kind, and Parquet without pyarrow."""
    with pytest.raises(UsageError, match=r"\.csv or \.parquet"):
        read_file(tmp_path / "tables.xlsx")
    with pytest.raises(TableError, match="no file at"):
        read_file(tmp_path / "tables.csv")
    (tmp_path / "lies.parquet").write_text("a,b\n")
    with pytest.raises(TableError, match="does not read as parquet"):
        read_file(tmp_path / "lies.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(RuntimeMissing, match="pyarrow"):
        read_file(tmp_path / "lies.parquet")


def test_every_column_is_there(table: LatencyTable) -> None:
    """A frame has the promised columns, a row for each sample and region."""
    frame = to_frame([table])
    assert list(frame.columns) == list(COLUMNS) and len(frame) == len(table.samples) * len(SHAPED)
    assert frame["reads"].iloc[1] == GROUPS["a"] and not measured(Device(), samples=8).known_regions


def test_a_profile_that_goes_on_looks_at_errors_when_it_meant_to(tmp_path: Path) -> None:
    """A relative's table that came since changes nothing of which networks are measured until then."""
    key = {**KEY, "signature": "89ab"}
    folder, options = table_folder(tmp_path, key), {"samples": 40, "holdout": 8}
    whole = shaped(Device(noise=0.01), None, key, **options)
    with pytest.raises(KeyboardInterrupt):
        shaped(Device(noise=0.01, dies_after=2), folder, key, **options)
    shaped(Device(noise=0.01), table_folder(tmp_path, KEY), **options)
    resumed = shaped(Device(noise=0.01), folder, key, **options)
    first = FIRST_CHECK + 8
    assert resumed.known_regions and [s.widths for s in resumed.samples[:first]] == [
        s.widths for s in whole.samples[:first]
    ]


@pytest.mark.parametrize(("own", "leans"), [(ENOUGH - 1, True), (ENOUGH, False)])
def test_enough_samples_of_its_own_speak_for_themselves(own: int, leans: bool) -> None:
    """From so many on, what fits the layers in other networks does not move the fit; its count is still told."""
    samples = [replace(s, held_out=False) for s in shaped(Device(noise=0.01), None, samples=ENOUGH).samples[:own]]
    alone = LatencyTable.fitted(KEY, GROUPS, SHAPED, samples)
    wrong = {n: replace(m, coefficients=tuple(2 * c for c in m.coefficients)) for n, m in alone.models.items()}
    found = LatencyTable.fitted(KEY, GROUPS, SHAPED, samples, elsewhere=lambda regions, here: wrong)
    assert (found.models != alone.models, found.known_regions) == (leans, len(SHAPED))


def test_only_who_measures_says_that_it_starts(tmp_path: Path) -> None:
    """Not who finds the table, which may have come while this process waited."""
    starts: list[int] = []
    for i, fresh in enumerate((False, False, True)):
        shaped(Device(), tmp_path / "t", fresh=fresh, samples=8, starting=lambda i=i: starts.append(i))
    assert starts == [0, 2]
