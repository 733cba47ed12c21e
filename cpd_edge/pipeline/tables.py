"""The stored tables: listed, exported, imported. They return what `--json` prints."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cpd_edge.errors import TableError
from cpd_edge.pipeline.request import tables_root
from cpd_edge.profile import exchange
from cpd_edge.profile.table import LatencyTable


def _root(profiles: str | None) -> Path:
    return Path(profiles) if profiles else tables_root()


def _matching(
    found: Iterable[tuple[Path, LatencyTable | None]], device: str, model: str
) -> list[tuple[Path, LatencyTable]]:
    return [
        (folder, table)
        for folder, table in found
        if table is not None
        and device.lower() in str(table.key["device"]).lower()
        and str(table.key["signature"]).startswith(model)
    ]


def list_tables(profiles: str | None, device: str, model: str) -> dict[str, Any]:
    """The stored tables of devices whose name holds `device` and of models whose signature begins with `model`.

    Beside them, `outdated`: the folders whose tables are of another version's format, which is not read here.
    """
    tables, found = [], list(exchange.stored(_root(profiles)))
    for folder, table in _matching(found, device, model):
        report = table.report()
        named = {name: table.key[name] for name in exchange.NAMED}
        told = {name: report[name] for name in ("samples", "regions", "known_regions", "holdout_median_error")}
        tables.append({**named, **told, "folder": str(folder), "environment": table.key})
    outdated = [str(folder) for folder, table in found if table is None]
    return {"profiles": str(_root(profiles)), "tables": tables, "outdated": outdated}


def export_tables(file: Path, profiles: str | None, device: str, model: str) -> dict[str, Any]:
    """Writes them into a file.

    Raises:
        TableError: there are none.
        UsageError: a file that is neither CSV nor Parquet.
    """
    tables = [table for _, table in _matching(exchange.stored(_root(profiles)), device, model)]
    if not tables:
        raise TableError(f"no such table under {_root(profiles)}", hint="see what there is: cpd-edge tables list")
    frame = exchange.to_frame(tables)
    exchange.write_file(frame, file)
    return {"file": str(file), "tables": len(tables), "rows": len(frame)}


def import_tables(file: Path, profiles: str | None) -> dict[str, Any]:
    """Takes the tables of a file into the store.

    Raises:
        TableError: the file is no file of tables; nothing is imported then.
    """
    frame = exchange.read_file(file)
    tables = exchange.from_frame(frame, str(file))
    new = sum(exchange.merge(table, _root(profiles)) for table in tables)
    return {"file": str(file), "tables": len(tables), "rows": len(frame), "new_samples": new}
