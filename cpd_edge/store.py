"""Run folders: every file of a run in one place, written atomically, with a format version.

    RUN/
      run.json        what was asked, every stage's result, the verdict; the object `--json` prints
      groups.json     what comb found
      table.json      the latency table the plan was solved on
      plan.json       kept units and the certificate of the choice
      dense.onnx      pruned.onnx    pruned.pt2    quality.json    layers.json
      samples/        raw latencies with their environment, one file a measurement
      checkpoints/    training state, so that `--resume` goes on; removed when the run is done
      report.html     report.md

Format history: 1, the first.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cpd_edge.errors import StoreError
from cpd_edge.types import Measurement

FORMAT = 1
DAMAGED = "it is damaged, or another file was meant; a table or a checkpoint is made again where it is deleted"
PARTIAL = ".partial-"
"""How the name of a file begins that is being written; one that a killed run left is of no use."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Says what to do where the system does not let a file be written.

    Raises:
        StoreError: no room is left, or nothing may be written there.
    """
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written: {error.strerror}",
            hint="make room there, or let it be written, then go on: what was written before is whole",
        ) from error


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Writes `data` so that `path` holds either its old content or all of the new one, never a part.

    Raises:
        StoreError: as `writing`.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{PARTIAL}{path.name}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """`write_bytes` in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, data: object) -> None:
    """Writes JSON that any parser reads: no NaN, no Infinity (both become null)."""
    write_text(path, json.dumps(plain(data), indent=1, allow_nan=False) + "\n")


def write_with(path: Path, save: Callable[[BinaryIO], object]) -> None:
    """`write_bytes` of what `save` writes to a stream in memory: torch ends the process where a disk is full."""
    stream = io.BytesIO()
    save(stream)
    write_bytes(path, stream.getbuffer())


def require_file(path: Path, option: str = "--out") -> None:
    """Refuses a path that no file can be written at, before the work whose result is to be there.

    Raises:
        StoreError: it is a folder, or nothing can be written beside it.
    """
    if path.is_dir():
        raise StoreError(f"{option} {path} is a folder, wanted a file", hint=f"for example {option} {path / 'NAME'}")
    _require_writable(path.parent, option)


def require_folder(path: Path, option: str = "--out") -> None:
    """As `require_file`, for a folder that is there or is to be made."""
    if path.is_file():
        raise StoreError(f"{option} {path} is a file, wanted a folder", hint=f"give a new folder to {option}")
    _require_writable(path, option)


def _require_writable(folder: Path, option: str) -> None:
    """Makes a nameless file in the folder, or in the nearest one above it that is there."""
    there = next(p for p in (folder, *folder.absolute().parents) if os.path.exists(p))
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise StoreError(
            f"nothing can be written in {there}: {error.strerror}", hint=f"give another {option}"
        ) from None


@contextlib.contextmanager
def held(folder: Path, waiting: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Holds a folder that several processes write to: others wait here until this one is done, or dead.

    Args:
        folder: made if it is not there.
        waiting: called once before waiting for another process.

    Raises:
        StoreError: nothing can be written there, or the system has no such locks, as Windows.
    """
    try:
        import fcntl
    except ImportError:
        raise StoreError(
            f"{folder} is written to by several processes, and this system has no locks for that",
            hint="run it on Linux; on Windows that is WSL",
        ) from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        opened = (folder / ".lock").open("a")
    except OSError as error:
        raise StoreError(f"{folder} cannot be written: {error.strerror}", hint="give another folder") from None
    with opened as lock:  # the system drops the lock with the process that has it
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def plain(data: object) -> Any:
    """Dataclasses, mappings, arrays and NumPy scalars as JSON's own types."""
    if hasattr(data, "__dataclass_fields__"):
        return {name: plain(getattr(data, name)) for name in data.__dataclass_fields__}
    if isinstance(data, Mapping):
        return {str(k): plain(v) for k, v in data.items()}
    if isinstance(data, np.ndarray):
        return plain(data.tolist())
    if isinstance(data, (list, tuple, set, frozenset)):
        return [plain(v) for v in data]
    if isinstance(data, np.generic):
        return plain(data.item())
    if isinstance(data, Path):
        return str(data)
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data


def read_json(path: Path, damaged: str = DAMAGED) -> Any:
    """Reads JSON; `damaged` is the hint where it is none.

    Raises:
        StoreError: the file is not there, cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(f"{path} does not exist", hint="give the folder that `cpd-edge prune` printed") from None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}", hint="give a file that you may read") from None
    except ValueError as error:
        raise StoreError(f"{path} is not JSON: {error}", hint=damaged) from None


class Run:
    """One run folder. Opening reads `run.json`; `update` rewrites it atomically.

    Raises:
        StoreError: the folder is a file, or holds no run, or one of a newer format.
    """

    def __init__(self, folder: Path) -> None:
        if folder.is_file():
            raise StoreError(f"{folder} is a file, wanted a run folder", hint="give the folder that holds run.json")
        self.folder = folder
        self.record: dict[str, Any] = read_json(folder / "run.json", "it is damaged: start again with a new --out")
        found = self.record.get("format")
        if found != FORMAT:
            raise StoreError(
                f"{folder}: run format {found}, this version reads {FORMAT}",
                hint="upgrade with: pip install -U cpd-edge",
            )

    @classmethod
    def create(cls, folder: Path, request: Mapping[str, Any]) -> Run:
        """Makes the folder and its first `run.json`.

        Raises:
            StoreError: the folder already holds a run, or files that are none of a run's.
        """
        if (folder / "run.json").exists():
            raise StoreError(
                f"{folder} already holds a run", hint="add --resume to go on with it, or give another --out"
            )
        foreign = [p.name for p in folder.iterdir() if not p.name.startswith(PARTIAL)] if folder.is_dir() else []
        if foreign:
            raise StoreError(
                f"{folder} is no run folder and not empty: it holds {', '.join(sorted(foreign)[:3])}",
                hint="give a new --out",
            )
        write_json(folder / "run.json", {"format": FORMAT, "run": str(folder), "request": request, "seconds": {}})
        return cls(folder)

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def update(self, **fields: object) -> None:
        """Sets top-level fields of the record and writes it."""
        self.record = {**self.record, **{k: plain(v) for k, v in fields.items()}}
        write_json(self / "run.json", self.record)

    def save_measurement(self, measurement: Measurement) -> None:
        """Keeps the raw samples under `samples/NAME.json`."""
        write_json(self / f"samples/{measurement.name}.json", {"format": FORMAT, **plain(measurement)})

    def load_measurement(self, name: str) -> Measurement:
        """Inverse of `save_measurement`."""
        return measurement_from(read_json(self / f"samples/{name}.json"))


def resumed(command: str, folder: Path) -> str:
    """The command that goes on with what a command began in a folder."""
    words = [w for w in shlex.split(command) if w != "--resume"]
    named = any(w == "--out" or w.startswith("--out=") for w in words)
    return shlex.join([*words, *([] if named else ["--out", str(folder)]), "--resume"])


def measurement_from(data: Mapping[str, Any]) -> Measurement:
    """A measurement from its JSON form."""
    arrays: dict[str, Any] = {k: np.asarray(data[k], np.int64) for k in ("samples_ns", "starts_ns", "blocks")}
    rest = {k: data[k] for k in ("name", "environment", "steady", "stop", "interference")}
    return Measurement(**arrays, **rest)
