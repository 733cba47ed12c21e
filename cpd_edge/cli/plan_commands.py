"""Commands that choose widths on a table that is there: solve it again for another budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cpd_edge.cli.console import show, told
from cpd_edge.cli.options import BudgetMs, Json, Speedup
from cpd_edge.cli.text import solve_text
from cpd_edge.types import Budget


def register(app: typer.Typer) -> None:
    """Adds the commands to the command line."""
    app.command()(solve)


def solve(
    run: Annotated[Path, typer.Argument(help="run folder")],
    budget_ms: BudgetMs = None,
    speedup: Speedup = None,
    as_json: Json = False,
) -> None:
    """Solve a run's table for another budget: what would it take, and what would be left?"""
    with told(as_json):
        from cpd_edge.pipeline.verbs import solve as work

        limit = Budget(budget_ms, speedup) if budget_ms is not None or speedup is not None else None
        found = work(run, limit)
    show(found, as_json, solve_text)
