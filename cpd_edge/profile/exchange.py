"""Tables as files for others: rows of raw samples, through pandas, as CSV or Parquet.

One row a table, sample and region. What belongs to the table or to the sample is repeated in its rows; a table that is
read back is fitted again, from its own samples.

Format history: 1, the first; 2, `noise`; 3, as a standard error; 4, `joined` of regions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpd_edge.errors import RuntimeMissing, TableError, UsageError
from cpd_edge.layout import from_json, size, to_json
from cpd_edge.profile.table import LatencyTable, Sample, table_folder
from cpd_edge.store import held, write_with
from cpd_edge.types import Region

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 4
TEXT, WHOLE, REAL, TRUTH, DATA = "text", "whole number", "number", "true or false", "JSON"
OF_THE_TABLE = {
    "format": WHOLE, "device": TEXT, "runtime": TEXT, "runtime_version": TEXT, "precision": TEXT, "threads": WHOLE,
    "signature": TEXT, "environment": DATA, "groups": DATA, "fused": DATA, "seconds": REAL,
}  # fmt: skip
OF_THE_SAMPLE = {
    "sample": WHOLE, "held_out": TRUTH, "widths": DATA, "total_ms": REAL, "reference_ms": REAL, "rest_ms": REAL,
    "reformats_ms": REAL, "noise": REAL, "isolated_ms": REAL,
}  # fmt: skip
OF_THE_REGION = {"region": TEXT, "op": TEXT, "fqn": TEXT, "geometry": TEXT, "described": DATA}
MEASURED = {"reads": WHOLE, "writes": WHOLE, "ms": REAL, "kernels": WHOLE}
COLUMNS = {**OF_THE_TABLE, **OF_THE_SAMPLE, **OF_THE_REGION, **MEASURED}
"""Every column and what it holds. Times are in ms; `reads` and `writes` are extents at the sample's widths."""
NAMED = ("device", "runtime", "runtime_version", "precision", "threads", "signature")
"""Parts of the key that have a column of their own, for who reads the file; `environment` holds all of it."""
ENDINGS = (".csv", ".parquet")
KINDS: Mapping[str, type | tuple[type, ...]] = {TEXT: str, WHOLE: int, REAL: (int, float), TRUTH: bool}


def stored(root: Path) -> Iterator[tuple[Path, LatencyTable | None]]:
    """The finished tables under a folder, with their own, in order of path; None for one of another format."""
    for path in sorted(root.glob("*/*/*/table.json")):
        try:
            yield path.parent, LatencyTable.load(path)
        except TableError:
            yield path.parent, None


def to_frame(tables: Sequence[LatencyTable]) -> pd.DataFrame:
    """Rows of raw samples: `COLUMNS`."""
    import pandas as pd

    rows = [row for table in tables for row in _rows(table)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _rows(table: LatencyTable) -> Iterator[dict[str, Any]]:
    of_table = {
        "format": FORMAT, **{name: table.key[name] for name in NAMED}, "environment": _text(table.key),
        "groups": _text(table.groups), "fused": _text(table.fused), "seconds": table.seconds,
    }  # fmt: skip
    regions = [(r, _of_region(r)) for r in table.regions]
    for i, s in enumerate(table.samples):
        of_sample = {
            "sample": i, "held_out": s.held_out, "widths": _text(s.widths), "total_ms": s.total_ms,
            "reference_ms": s.reference_ms, "rest_ms": s.rest_ms, "reformats_ms": s.reformats_ms, "noise": s.noise,
            "isolated_ms": table.isolated_ms.get(i),
        }  # fmt: skip
        for region, of_region in regions:
            measured = {
                "reads": size(region.reads, s.widths), "writes": size(region.writes, s.widths),
                "ms": s.ms.get(region.name), "kernels": s.kernels.get(region.name),
            }  # fmt: skip
            yield {**of_table, **of_sample, **of_region, **measured}


def _of_region(region: Region) -> dict[str, Any]:
    described = {
        "nodes": region.nodes, "reads": to_json(region.reads), "writes": to_json(region.writes),
        "weight": [to_json(x) for x in region.weight], "dense_macs": region.dense_macs, "within": region.within,
        "joined": [to_json(x) for x in region.joined],
    }  # fmt: skip
    plain = {"region": region.name, "op": region.op, "fqn": region.fqn, "geometry": region.geometry}
    return {**plain, "described": _text(described)}


def _text(data: object) -> str:
    return json.dumps(data)


def from_frame(frame: pd.DataFrame, source: str) -> list[LatencyTable]:
    """The tables in rows that `to_frame` made, fitted again.

    Raises:
        TableError: columns are missing or foreign, the format is another, or a value is none; it says which, and where.
    """
    _check_columns(frame, source)
    rows: dict[str, list[dict[str, Any]]] = {}
    for at, row in enumerate(frame[list(COLUMNS)].to_dict("records")):
        read = {name: _value(row[name], kind, f"{source}, row {at + 1}, {name}") for name, kind in COLUMNS.items()}
        if read["format"] != FORMAT:
            raise TableError(
                f"{source}: format {read['format']} of rows, this version reads {FORMAT}",
                hint="pip install -U cpd-edge, here or where the file is from; then export it again",
            )
        rows.setdefault(row["environment"], []).append(read)
    return [_table(part, source) for part in rows.values()]


def _check_columns(frame: pd.DataFrame, source: str) -> None:
    missing, foreign = ([n for n in a if n not in b] for a, b in ((COLUMNS, frame.columns), (frame.columns, COLUMNS)))
    if missing or foreign:
        raise TableError(
            f"{source} is no file of tables: it lacks {', '.join(missing) or 'nothing'}; "
            f"it has, and may not have, {', '.join(map(str, foreign)) or 'nothing'}",
            hint="times are in milliseconds, one row a sample and region: see `cpd-edge tables export`",
        )


def _value(given: object, kind: str, where: str) -> Any:
    """A cell as what its column holds; None where it is empty and may be."""
    name = where.rpartition(", ")[2]
    if given is None or given != given or (given == "" and kind != TEXT):
        if name in ("ms", "kernels", "isolated_ms"):
            return None
        raise TableError(f"{where}: empty, wanted {kind}")
    try:
        found: Any = given
        if isinstance(given, str) and kind != TEXT:
            found = json.loads(given.lower() if kind == TRUTH else given)
        if kind == WHOLE and isinstance(found, float) and found.is_integer():
            found = int(found)
    except ValueError:
        raise TableError(f"{where}: {given!r}, wanted {kind}") from None
    if kind in KINDS and (not isinstance(found, KINDS[kind]) or (kind != TRUTH and isinstance(found, bool))):
        raise TableError(f"{where}: {given!r}, wanted {kind}")
    if kind == REAL and not 0 <= found < float("inf"):
        raise TableError(f"{where}: {found}, wanted a number of 0 or more")
    return found


def _table(rows: Sequence[Mapping[str, Any]], source: str) -> LatencyTable:
    first = rows[0]
    key = first["environment"]
    for name in NAMED:
        if key.get(name) != first[name]:
            raise TableError(f"{source}: {name} is {first[name]!r}, but {key.get(name)!r} in environment")
    samples: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        samples.setdefault(row["sample"], []).append(row)
    regions = [_region(row) for row in next(iter(samples.values()))]
    names = [r.name for r in regions]
    for i, part in samples.items():
        if [row["region"] for row in part] != names:
            raise TableError(f"{source}: sample {i} of {first['signature']} has other regions than the first")
    if not any(part[0]["held_out"] for part in samples.values()):
        raise TableError(
            f"{source}: no sample of {first['signature']} is held out: nothing tells how well its table predicts",
            hint="take in all that was exported, held-out samples too",
        )
    table = LatencyTable.fitted(
        key, first["groups"], regions, [_sample(part) for part in samples.values()], first["seconds"], first["fused"]
    )
    alone = {at: part[0]["isolated_ms"] for at, part in enumerate(samples.values())}
    return replace(table, isolated_ms={at: ms for at, ms in alone.items() if ms is not None})


def _sample(rows: Sequence[Mapping[str, Any]]) -> Sample:
    ms, kernels = ({r["region"]: r[name] for r in rows if r[name] is not None} for name in ("ms", "kernels"))
    alike = ("widths", "rest_ms", "total_ms", "reference_ms", "held_out", "reformats_ms", "noise")
    return Sample(ms=ms, kernels=kernels, **{name: rows[0][name] for name in alike})


def _region(row: Mapping[str, Any]) -> Region:
    d = row["described"]
    return Region(
        name=row["region"], op=row["op"], nodes=tuple(d["nodes"]), reads=from_json(d["reads"]),
        writes=from_json(d["writes"]), weight=tuple(from_json(x) for x in d["weight"]), dense_macs=d["dense_macs"],
        fqn=row["fqn"], within=tuple(d["within"]), geometry=row["geometry"],
        joined=tuple(from_json(x) for x in d["joined"]),
    )  # fmt: skip


def write_file(frame: pd.DataFrame, path: Path) -> None:
    """Writes rows as the file's ending says, so that it is whole or not there.

    Raises:
        UsageError: another ending than `.csv` or `.parquet`.
        RuntimeMissing: Parquet, and pyarrow is not installed.
    """
    if _ending(path) == ".csv":
        write_with(path, lambda stream: frame.to_csv(stream, index=False))
    else:
        write_with(path, lambda stream: frame.to_parquet(stream, index=False))


def read_file(path: Path) -> pd.DataFrame:
    """Inverse of `write_file`.

    Raises:
        UsageError, RuntimeMissing: as `write_file`.
        TableError: the file is not there, or not what its ending says.
    """
    import pandas as pd

    ending = _ending(path)
    if not path.is_file():
        raise TableError(f"no file at {path}", hint="make one with: cpd-edge tables export FILE.csv")
    try:
        if ending == ".csv":
            return pd.read_csv(path, dtype=str, keep_default_na=False)
        return pd.read_parquet(path)
    except (ValueError, OSError) as error:
        raise TableError(
            f"{path} does not read as {ending.removeprefix('.')}: {error}",
            hint=f"make it again with: cpd-edge tables export {path}",
        ) from None


def _ending(path: Path) -> str:
    if path.suffix not in ENDINGS:
        raise UsageError(f"{path}: a file of tables is .csv or .parquet", hint="for example tables.csv")
    if path.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise RuntimeMissing(
                "Parquet needs pyarrow, which is not installed", hint="pip install 'cpd-edge[parquet]', or use .csv"
            ) from None
    return path.suffix


def merge(table: LatencyTable, root: Path) -> int:
    """Puts a table into the store under `root`; gives how many of its samples were new there.

    Samples that are there already are not doubled, and none that is there is lost.

    Raises:
        TableError: a table of that key with other regions or groups is there.
    """
    folder = table_folder(root, table.key)
    with held(folder):
        if not (folder / "table.json").exists():
            table.save(folder / "table.json")
            return len(table.samples)
        known = LatencyTable.load(folder / "table.json")
        if (known.key, known.groups, known.regions, known.fused) != (
            table.key, table.groups, table.regions, table.fused,
        ):  # fmt: skip
            raise TableError(
                f"{folder} holds another table of that key", hint="delete it, or import into another --profiles"
            )
        fresh = [i for i, s in enumerate(table.samples) if s not in known.samples]
        if fresh:
            alone = {
                len(known.samples) + n: table.isolated_ms[i] for n, i in enumerate(fresh) if i in table.isolated_ms
            }
            samples = (*known.samples, *(table.samples[i] for i in fresh))
            seconds = max(known.seconds, table.seconds)
            joined = LatencyTable.fitted(table.key, table.groups, table.regions, samples, seconds, table.fused)
            joined.with_isolated({**known.isolated_ms, **alone}).save(folder / "table.json")
        return len(fresh)
