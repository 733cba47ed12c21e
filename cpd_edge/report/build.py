"""From a run folder to the two files: read, build the view model once, lay it out twice."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from cpd_edge import store
from cpd_edge.errors import StoreError
from cpd_edge.report import evidence, headline, latency
from cpd_edge.report import format as form
from cpd_edge.report.evidence import facts
from cpd_edge.report.record import Record, as_number, as_text
from cpd_edge.report.view import Block, Bullets, Checks, Code, Column, Report, Section, Table

ENGINES = ("dense", "pruned")


def write(folder: Path) -> Path:
    """Writes `report.html` and `report.md` into a run folder and gives the path of the page.

    A run that has not finished gives a report that says what is missing.

    Raises:
        StoreError: the folder holds no run, or one of a newer format, or samples that cannot be read.
    """
    run = store.Run(folder)
    report = view({**run.record, "run": str(folder)} if moved(run) else run.record, samples(run))
    store.write_text(folder / "report.md", markdown(report))
    page = folder / "report.html"
    store.write_text(page, html(report))
    return page


def moved(run: store.Run) -> bool:
    """Whether a run lies in another folder than its record says: it was moved or copied since."""
    return Path(as_text(run.record.get("run"))).resolve() != run.folder.resolve()


def samples(run: store.Run) -> latency.Samples:
    """The raw samples of both engines, as far as they were taken.

    Raises:
        StoreError: a file of samples is there but does not read.
    """
    found = {}
    for engine in ENGINES:
        file = run / f"samples/{engine}.json"
        if not file.exists():
            continue
        try:
            measurement = run.load_measurement(engine)
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"{file} holds no measurement: {error!r}", hint="measure again with: cpd-edge bench"
            ) from error
        if len(measurement.samples_ns):
            found[engine] = measurement
    return found


def view(record: Mapping[str, Any], raw: latency.Samples) -> Report:
    """Everything the report says, from the record and the raw samples; both twins lay this out."""
    read = Record(record)
    return Report(
        title="Deployment report",
        subject=read.text("request", "model") or "unnamed model",
        meta=headline.meta(read),
        headline=headline.headline(read),
        tiles=headline.tiles(read),
        sections=(
            latency.latency(read, raw),
            latency.where(read),
            evidence.accuracy(read),
            evidence.prediction(read),
            evidence.choice(read),
            evidence.training(read),
            checks(read),
            limits(read),
            latency.layers(read),
            evidence.axes(read),
            surroundings(read),
            repeat(read),
        ),
    )


def checks(record: Record) -> Section:
    """What was checked on the way, passed or failed."""
    items = tuple(
        (
            row.text("name") or "unnamed",
            row.value("passed") if isinstance(row.value("passed"), bool) else None,
            row.text("detail"),
        )
        for row in record.rows("checks")
    )
    return Section("checks", "Checks", (Checks(items),) if items else ())


def limits(record: Record) -> Section:
    """What these numbers do not say."""
    found = record.texts("limits")
    return Section("limits", "Limits", (Bullets(found),) if found else ())


def surroundings(record: Record) -> Section:
    """The environment the numbers belong to, the request, and the time each stage took."""
    env, request, seconds = record.at("environment"), record.at("request"), record.at("seconds")
    blocks: list[Block] = []
    blocks += facts("Environment", *((k, as_text(env.value(k))) for k in env))
    asked = ((k, as_text(request.value(k))) for k in request if k not in ("budget_ms", "speedup"))
    blocks += facts("Request", ("budget", headline.requested(record)), *asked)
    times = {k: s for k in seconds if (s := as_number(seconds.value(k))) is not None}
    total = ("all stages", form.duration(sum(times.values())) if times else "")
    blocks += facts("Time by stage", *((k, form.duration(s)) for k, s in times.items()), total)
    return Section("environment", "Environment", tuple(blocks))


def repeat(record: Record) -> Section:
    """The command that made this run, or goes on with it where it is unfinished, and the hashes of its files."""
    blocks: list[Block] = []
    done = bool(record.text("verdict"))
    command = headline.repeating(record) if done else headline.going_on(record)
    if command:
        blocks.append(Code(command))
    hashes = record.at("hashes")
    rows = tuple((file, hashes.text(file)) for file in hashes)
    if rows:
        blocks.append(Table("SHA-256 of the files", (Column("file"), Column("hash")), rows))
    return Section("repeat", "To repeat" if done else "To go on", tuple(blocks))


def html(report: Report) -> str:
    """One page without scripts and without anything to load; all text is escaped."""
    return _environment(autoescape=True).get_template("report.html.j2").render(report=report)


def markdown(report: Report) -> str:
    """The same facts as GitHub-flavoured Markdown; drawings are replaced by their readings."""
    text = _environment(autoescape=False).get_template("report.md.j2").render(report=report)
    return re.sub(r"\n{3,}", "\n\n", re.sub(r" +$", "", text, flags=re.MULTILINE)).strip() + "\n"


def plain(text: str) -> str:
    """Text that Markdown shows as it is: one line, no markup of its own."""
    line = " ".join(text.split())
    line = re.sub(r"([\\`*|<]|~~|(?<!\w)_|_(?!\w)|\](?=\())", r"\\\1", line)
    return re.sub(r"^([#>+-])", r"\\\1", line)


@cache
def _environment(autoescape: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("cpd_edge.report"),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["plain"] = plain
    return environment
