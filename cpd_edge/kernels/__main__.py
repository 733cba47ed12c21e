"""`python -m cpd_edge.kernels` compiles every kernel for every architecture and prints what each takes of a GPU.

With `--record` it also writes `kernels/registers.csv`; with `--cubins DIR` it leaves the cubins there, one file a
source and architecture, for applications that load them themselves.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cpd_edge.errors import CpdError
from cpd_edge.kernels.cubin import compile_cubin
from cpd_edge.kernels.sources import ARCHITECTURES, FUNCTIONS
from cpd_edge.kernels.table import compiled_rows, csv_text, record_path, text
from cpd_edge.store import write_bytes, write_text


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; the exit code is 0, or 2 where an architecture's compiler is missing."""
    parser = argparse.ArgumentParser(prog="python -m cpd_edge.kernels", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write kernels/registers.csv")
    parser.add_argument("--cubins", type=Path, metavar="DIR", help="write SOURCE-ARCH.cubin files here")
    parser.add_argument("--arch", choices=ARCHITECTURES, help="with --cubins: this architecture only")
    options = parser.parse_args(arguments)
    try:
        if options.cubins is not None:
            return _write_cubins(options.cubins, (options.arch,) if options.arch else ARCHITECTURES)
        rows, missing = compiled_rows()
        sys.stdout.write(f"{text(rows)}\n")
        for reason in missing:
            sys.stderr.write(f"{reason}\n")
        if missing:
            return 2
        if options.record:
            write_text(record_path(), csv_text(rows))
            sys.stdout.write(f"recorded in {record_path()}\n")
    except CpdError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


def _write_cubins(folder: Path, architectures: tuple[str, ...]) -> int:
    for arch in architectures:
        for name in FUNCTIONS:
            path = folder / f"{name}-{arch}.cubin"
            cubin = compile_cubin(name, arch)
            write_bytes(path, cubin.data)
            sys.stdout.write(f"{path}  {len(cubin.data)} bytes, NVRTC {cubin.compiler}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
