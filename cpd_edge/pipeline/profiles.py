"""Latency tables of one model on several devices at once: one process a device, so that none can spoil another's.

Devices work at the same time; this machine, where it is one of them, works when the others have ended, since what the
others are sent is made here and would be in its way.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from cpd_edge.errors import CpdError, UsageError
from cpd_edge.measure.devices import LOCAL
from cpd_edge.measure.remote import RUNTIME, require_device
from cpd_edge.pipeline import verbs

Progress = Callable[[str, float, str], None]

_PATIENCE_S = 10.0


@dataclass(frozen=True)
class Failed:
    """What one device's profile ended in, as it travels between processes."""

    error: str
    message: str
    hint: str
    exit_code: int

    @classmethod
    def of(cls, error: CpdError) -> Failed:
        """An error of ours."""
        return cls(type(error).__name__, error.what, error.hint, error.exit_code)

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints errors."""
        return {"error": self.error, "message": self.message, "hint": self.hint}


def profile(model: str, *arguments: Any, device: str, progress: Progress, **options: Any) -> tuple[dict[str, Any], int]:
    """`verbs.profile` on one device, or on several whose names are joined by commas.

    Returns:
        What `--json` prints and the exit code: that of the one table, or `devices` with a table or an error for each,
        and the code of the first that failed.

    Raises:
        UsageError: a name twice, none, or one that is not known.
        CpdError: the one device failed.
    """
    names = device.split(",")
    if "" in names or len(set(names)) < len(names):
        raise UsageError(f"devices {device!r}", hint="names joined by commas, each once: --device orin,nano")
    if len(names) == 1:
        return verbs.profile(model, *arguments, device=device, progress=progress, **options), 0
    for name in names:
        require_device(name, options.get("runtime", RUNTIME))
    others = [name for name in names if name != LOCAL]
    ended = _at_once({name: (model, arguments, {**options, "device": name}) for name in others}, progress)
    if LOCAL in names:
        tell = _named(LOCAL, progress)
        try:
            ended[LOCAL] = verbs.profile(model, *arguments, device=LOCAL, progress=tell, **options)
        except CpdError as error:
            ended[LOCAL] = Failed.of(error)
    codes = [found.exit_code for name in names if isinstance(found := ended[name], Failed)]
    told = {name: e.to_json() if isinstance(e := ended[name], Failed) else e for name in names}
    return {"model": model, "devices": told}, codes[0] if codes else 0


def _at_once(jobs: Mapping[str, Any], progress: Progress) -> dict[str, dict[str, Any] | Failed]:
    """One process a job; what each came to, however the others ended."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[Connection, str] = {}
    processes: list[Any] = []
    ended: dict[str, dict[str, Any] | Failed] = {}
    try:
        for name, job in jobs.items():
            receiver, sender = context.Pipe(duplex=False)
            processes.append(context.Process(target=_work, args=(sender, *job), name=f"profile {name}", daemon=True))
            processes[-1].start()
            sender.close()
            pipes[receiver] = name
        while pipes:
            for ready in wait(list(pipes)):
                receiver = next(pipe for pipe in pipes if pipe is ready)
                name = pipes[receiver]
                try:
                    kind, what = receiver.recv()
                except EOFError:
                    del pipes[receiver]
                    hint = "what was measured is kept: give the same command again"
                    ended.setdefault(name, Failed("Crashed", f"{name}: its process ended without a word", hint, 70))
                    continue
                if kind == "progress":
                    _named(name, progress)(*what)
                else:
                    ended[name] = what
    finally:
        for process in processes:
            process.join(_PATIENCE_S if pipes else None)
            if process.is_alive():
                process.terminate()
    return ended


def _work(sender: Connection, model: str, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> None:
    """One device's profile, told to the process that asked for it."""
    try:
        found: dict[str, Any] | Failed = verbs.profile(
            model, *arguments, progress=lambda *step: sender.send(("progress", step)), **options
        )
    except CpdError as error:
        found = Failed.of(error)
    except (KeyboardInterrupt, BrokenPipeError):
        return
    sender.send(("ended", found))


def _named(name: str, progress: Progress) -> Progress:
    """Progress whose stages carry a device's name."""
    return lambda stage, fraction, text: progress(f"{name} {stage}", fraction, text)


__all__ = ["profile"]
