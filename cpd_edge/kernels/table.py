"""The table of kernels: registers, spills and size for each architecture, as recorded and as they compile."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cpd_edge.bundled import bundled
from cpd_edge.errors import RuntimeMissing, StoreError
from cpd_edge.kernels.cubin import Cubin, compile_cubin
from cpd_edge.kernels.sources import ARCHITECTURES, FUNCTIONS

COLUMNS = (
    "function", "arch", "compiler", "registers", "spill_store_bytes", "spill_load_bytes", "stack_bytes",
    "shared_bytes", "cubin_bytes",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One kernel on one architecture; `cubin_bytes` is the whole source's, which its kernels share."""

    function: str
    arch: str
    compiler: str
    registers: int
    spill_store_bytes: int
    spill_load_bytes: int
    stack_bytes: int
    shared_bytes: int
    cubin_bytes: int


def rows_of(cubin: Cubin) -> tuple[Row, ...]:
    """One row for each kernel in `cubin`."""
    return tuple(
        Row(
            use.function, cubin.arch, cubin.compiler, use.registers, use.spill_store_bytes, use.spill_load_bytes,
            use.stack_bytes, use.shared_bytes, len(cubin.data),
        )
        for use in cubin.usage
    )  # fmt: skip


def compiled_rows() -> tuple[tuple[Row, ...], tuple[str, ...]]:
    """Compiles every source for every architecture: the rows, and why an architecture has none."""
    rows: list[Row] = []
    missing: list[str] = []
    for arch in ARCHITECTURES:
        try:
            cubins = [compile_cubin(name, arch) for name in FUNCTIONS]
        except RuntimeMissing as error:
            missing.append(f"{arch}: {error}")
            continue
        rows += [row for cubin in cubins for row in rows_of(cubin)]
    return tuple(rows), tuple(missing)


def record_path() -> Path:
    """The file that keeps the recorded table."""
    return bundled("kernels") / "registers.csv"


def recorded_rows() -> tuple[Row, ...]:
    """The table as it was recorded.

    Raises:
        StoreError: there is none, or it has other columns.
    """
    path = record_path()
    try:
        lines = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
        numbers = COLUMNS[3:]
        return tuple(
            Row(**{name: line[name] for name in COLUMNS[:3]}, **{n: int(line[n]) for n in numbers})  # type: ignore[arg-type]
            for line in lines
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{path} is no table of registers: {error}", hint="write it: make kernels RECORD=1") from None


def csv_text(rows: Iterable[Row]) -> str:
    """The table as CSV, with a header line."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([getattr(row, name) for name in COLUMNS] for row in rows)
    return lines.getvalue()


def text(rows: Iterable[Row]) -> str:
    """The table for people: one line a kernel, one column an architecture, `registers` or `registers+spilled bytes`."""
    rows = list(rows)
    archs = list(dict.fromkeys(row.arch for row in rows))
    cell = {(row.function, row.arch): _cell(row) for row in rows}
    functions = list(dict.fromkeys(row.function for row in rows))
    lines = [["registers", *archs], *([name, *(cell.get((name, arch), "-") for arch in archs)] for name in functions)]
    size = {(row.function, row.arch): row.cubin_bytes for row in rows}
    lines.append(["cubin bytes", *([""] * len(archs))])
    lines += [
        [source, *(str(size.get((first, arch), "-")) for arch in archs)] for source, (first, *_) in FUNCTIONS.items()
    ]
    compiler = {row.arch: row.compiler for row in rows}
    lines.append(["NVRTC", *(compiler[arch] for arch in archs)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(archs) + 1)]
    return "\n".join(_aligned(line, widths) for line in lines)


def _cell(row: Row) -> str:
    spilled = row.spill_store_bytes + row.spill_load_bytes
    return f"{row.registers}+{spilled}B" if spilled else str(row.registers)


def _aligned(line: list[str], widths: list[int]) -> str:
    first, *rest = (
        word.ljust(w) if i == 0 else word.rjust(w) for i, (word, w) in enumerate(zip(line, widths, strict=True))
    )
    return "  ".join([first, *rest]).rstrip()
