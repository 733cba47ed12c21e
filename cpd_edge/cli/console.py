"""The terminal: progress on stderr, errors as a message and an exit code, one result on stdout."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer

from cpd_edge.errors import CpdError

INTERRUPTED = 130


class Interrupted(CpdError):
    """Ctrl-C, with the command that goes on."""

    exit_code = INTERRUPTED


@contextmanager
def told(as_json: bool) -> Iterator[tuple[Callable[[str], None], Callable[[str, float, str], None]]]:
    """Turns our errors into a message and an exit code, and draws progress on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    bar = Progress(
        TextColumn("{task.description:<16}"),
        BarColumn(24),
        TimeElapsedColumn(),
        TextColumn("{task.fields[text]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    rows: dict[str, Any] = {}
    begun: dict[str, float] = {}

    def progress(stage: str, fraction: float, text: str) -> None:
        if stage not in rows and fraction >= 1.0:
            return
        if stage not in rows:
            rows[stage] = bar.add_task(stage, total=1.0, text="")
            begun[stage] = time.monotonic()
        bar.update(rows[stage], completed=fraction, text=text[:72])
        if fraction >= 1.0:
            bar.remove_task(rows.pop(stage))
            console.print(f"{stage:<16} {time.monotonic() - begun.pop(stage):6.1f} s", style="dim")

    def warned(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if category.__module__.startswith("cpd_edge"):
            console.print(f"warning: {message}", style="yellow", markup=False)

    with warnings.catch_warnings():
        warnings.showwarning = warned
        try:
            with bar:
                yield lambda text: console.print(text, markup=False), progress
        except KeyboardInterrupt:
            console.print("interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except CpdError as error:
            said = str(error) if isinstance(error, Interrupted) else f"error: {error}"
            console.print(said, style="red", markup=False)
            if as_json:
                typer.echo(json.dumps({"error": type(error).__name__, "message": error.what, "hint": error.hint}))
            raise typer.Exit(error.exit_code) from None


def show(found: dict[str, Any], as_json: bool, text: Callable[[dict[str, Any]], str]) -> None:
    """Prints a result, as one JSON object or as text."""
    from cpd_edge.store import plain

    typer.echo(json.dumps(plain(found)) if as_json else text(found))
