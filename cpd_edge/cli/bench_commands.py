"""The command that times an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cpd_edge.cli.console import show, told
from cpd_edge.cli.options import BudgetMs, Device, Json, Quantile, Runtime, Threads
from cpd_edge.cli.text import bench_text
from cpd_edge.types import EXIT_CODES


def register(app: typer.Typer) -> None:
    """Adds the command to the command line."""
    app.command()(bench)


def bench(
    engine: Annotated[Path, typer.Argument(help="ONNX file")],
    against: Annotated[Path | None, typer.Option(help="reference engine to compare with, in the same window")] = None,
    budget_ms: BudgetMs = None,
    quantile: Quantile = 0.5,
    runtime: Runtime = "onnxruntime",
    device: Device = "local",
    threads: Threads = 1,
    limit_s: Annotated[float, typer.Option(help="longest time to sample [s]")] = 30.0,
    target: Annotated[float, typer.Option(help="relative half-width of the interval to stop at")] = 0.01,
    period_ms: Annotated[float | None, typer.Option(help="one inference per period, as a camera asks for them")] = None,
    out: Annotated[Path | None, typer.Option(help="file for the raw samples")] = None,
    as_json: Json = False,
) -> None:
    """Time an engine, alone or against another, with an interval and a verdict."""
    with told(as_json) as (_, progress):
        from cpd_edge.pipeline.bench import bench as work

        found = work(
            engine,
            against,
            budget_ms=budget_ms,
            quantile=quantile,
            runtime=runtime,
            device=device,
            threads=threads,
            limit_s=limit_s,
            target=target,
            period_ms=period_ms,
            out=out,
            progress=progress,
        )
    show(found, as_json, bench_text)
    raise typer.Exit(EXIT_CODES.get(found.get("verdict", "PASS"), 0))
