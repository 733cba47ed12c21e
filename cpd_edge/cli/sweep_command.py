"""`sweep`: `prune` over several budgets. Its settings are those of `prune`, all but the budget."""

from __future__ import annotations

import inspect
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from cpd_edge.cli.console import Interrupted, show, told
from cpd_edge.cli.options import Data, Json, Model, Quantile, numbers
from cpd_edge.cli.text import sweep_text
from cpd_edge.store import require_folder, resumed
from cpd_edge.types import EXIT_CODES, VOID

OWN = ("budget_ms", "speedup", "quantile", "tolerance", "model", "data", "out", "resume", "as_json")
"""Parameters of `prune` that are no settings, or that a sweep has in its own way."""


def register(app: typer.Typer, prune: Callable[..., None], kept_in: Callable[[Path, Path | None], str]) -> None:
    """Adds the command, with the settings that `prune` has, and its words on where a run is kept."""

    def sweep(
        model: Model,
        data: Data,
        budgets: Annotated[str | None, typer.Option(help="latency limits in milliseconds: 20,15,10")] = None,
        speedups: Annotated[str | None, typer.Option(help="limits as speed-ups over the dense engine: 1.5,2,3")] = None,
        quantile: Quantile = 0.5,
        tolerance: Annotated[float, typer.Option(help="how far below each limit is near enough")] = 0.05,
        out: Annotated[Path | None, typer.Option(help="folder of the sweep")] = None,
        resume: Annotated[
            bool, typer.Option("--resume", help="go on with the sweep in --out; budgets may be added")
        ] = False,
        as_json: Json = False,
        **settings: Any,
    ) -> None:
        """Prune MODEL to several budgets, each beginning where the wider one ended: metric against latency."""
        with told(as_json) as (say, progress):
            from cpd_edge.errors import StoreError
            from cpd_edge.pipeline import new_folder
            from cpd_edge.pipeline.request import Request, tables_root
            from cpd_edge.pipeline.sweeps import budgets as wanted
            from cpd_edge.pipeline.sweeps import sweep as work

            if resume and out is None:
                raise StoreError("--resume does not say which sweep", hint="add --out SWEEP")
            limits_ms, ratios = numbers(budgets, "--budgets 20,15,10"), numbers(speedups, "--speedups 1.5,2,3")
            over = wanted(limits_ms, ratios, quantile, tolerance)
            given = {**settings, "profiles": settings["profiles"] or str(tables_root())}
            request = Request(model, data, over[0], **{**given, "protect": tuple(given["protect"] or ())})
            folder = out or new_folder(f"sweep-{model}")
            require_folder(folder)
            command = shlex.join(["cpd-edge", *sys.argv[1:]])
            try:
                begun = partial(say, kept_in(folder, out))
                found = work(request, over, folder, resume=resume, command=command, progress=progress, begun=begun)
            except KeyboardInterrupt:
                again = resumed(command, folder)
                raise Interrupted("interrupted; nothing finished is lost. Go on with:", hint=again) from None
        show(found.record, as_json, sweep_text)
        raise typer.Exit(VOID if found.void else EXIT_CODES[found.verdict])

    shared = [p for p in inspect.signature(prune, eval_str=True).parameters.values() if p.name not in OWN]
    own = [p for p in inspect.signature(sweep, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
    sweep.__signature__ = inspect.Signature([*own[:-3], *shared, *own[-3:]])  # type: ignore[attr-defined]
    app.command()(sweep)
