"""`cpd-edge` in a process of its own, forked from a server that has torch loaded: a call costs its work only."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

PATIENCE_S = 60.0
"""After so long a call counts as hung."""

Death = tuple[str, int]
"""A stage and the number of the progress report in it at which the process is killed."""


@dataclass(frozen=True)
class Done:
    """What a call left: exit code (negative: the signal), stdout and stderr."""

    code: int | None
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """Stdout as the one JSON object that it must be."""
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


@dataclass(frozen=True)
class Call:
    """A running `cpd-edge`."""

    process: BaseProcess
    log: Path

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Returns as soon as the condition holds; fails if the process ends, or hangs, before."""
        started = time.monotonic()
        while not condition():
            assert self.process.is_alive(), self.log.with_suffix(".err").read_text()
            assert time.monotonic() - started < PATIENCE_S
            time.sleep(0.01)

    def send(self, number: signal.Signals) -> None:
        """Sends a signal."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def done(self) -> Done:
        """Waits for the end."""
        self.process.join(PATIENCE_S)
        if self.process.is_alive():
            self.process.kill()
            raise AssertionError(f"hung: {self.log.with_suffix('.err').read_text()}")
        out, err = (self.log.with_suffix(end).read_text() for end in (".out", ".err"))
        return Done(self.process.exitcode, out, err)


class Shell:
    """Runs `cpd-edge` with short measurements, in `folder`, where relative paths lie."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._calls = 0
        self._server: ForkServerContext = multiprocessing.get_context("forkserver")
        self._server.set_forkserver_preload(["cli.warm"])
        with pytest.MonkeyPatch.context() as patch:  # the server does not look where this process does
            patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=os.pathsep)
            forkserver.ensure_running()

    def start(
        self, *arguments: str, kill_at: Death | None = None, missing: Sequence[str] = (), folder: Path | None = None
    ) -> Call:
        """Starts a call. `kill_at` is a `kill -9` from within; `missing` are packages that are not installed."""
        self._calls += 1
        where = folder or self.folder
        log = self.folder / f".call-{os.getpid()}-{self._calls}"
        environment = {
            "CPD_EDGE_PROFILES": str(self.folder / "profiles"), "CPD_EDGE_CONFIG": str(self.folder / "config"),
            "COLUMNS": "200",
        }  # fmt: skip
        process = self._server.Process(target=run, args=(arguments, where, log, environment, kill_at, tuple(missing)))
        process.start()
        return Call(process, log)

    def __call__(self, *arguments: str, **options: Any) -> Done:
        """A call from start to end."""
        return self.start(*arguments, **options).done()


def run(
    arguments: Sequence[str], folder: Path, log: Path, environment: Mapping[str, str], kill_at: Death | None,
    missing: Sequence[str],
) -> None:  # fmt: skip
    """The forked process: `cpd-edge ARGUMENTS`, its output in files."""
    for stream, end in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(log.with_suffix(end), os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644), stream)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    os.environ.update(environment)
    sys.argv = ["cpd-edge", *arguments]
    sys.modules.update(dict.fromkeys(missing))  # type: ignore[arg-type]
    hasten()
    if kill_at is not None:
        die(*kill_at)
    from cpd_edge.cli import main

    main()


def hasten() -> None:
    """Short measurements, and a checkpoint after every training step."""
    from cpd_edge.pipeline import profiling, rig, steps
    from cpd_edge.profile import turns

    rig.QUICK = replace(rig.QUICK, limit_s=0.4, warmup_s=0.02, target=0.5, min_blocks=3, block_s=0.01)
    rig.FULL = replace(rig.FULL, limit_s=0.8, warmup_s=0.02, target=0.5, min_blocks=6, block_s=0.01)
    profiling.ISOLATED_S = 0.2
    turns.HELD_OUT_S, turns.PROFILED_S = turns.TURNS_S, 0.05
    doctor: Any = import_module("cpd_edge.measure.doctor")
    doctor.doctor, doctor.doctor_there = (partial(f, protocol=rig.FULL) for f in (doctor.doctor, doctor.doctor_there))
    steps.distil = partial(steps.distil, save_every_s=0.0)


def die(stage: str, report: int) -> None:
    """Arranges a `kill -9` of this process at a progress report of a stage."""
    from cpd_edge.pipeline.job import Job

    made = Job.__init__

    def init(self: Job, *arguments: Any) -> None:
        made(self, *arguments)
        tell, left = self._tell, [report]

        def deadly(name: str, fraction: float, text: str) -> None:
            tell(name, fraction, text)
            left[0] -= name == stage
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        self._tell = deadly

    Job.__init__ = init  # type: ignore[method-assign]
