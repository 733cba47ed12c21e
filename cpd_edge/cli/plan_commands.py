"""Commands that choose widths on a table: for another budget, and by other strategies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cpd_edge.cli.console import show, told
from cpd_edge.cli.options import (
    BudgetMs,
    Device,
    InputShape,
    Json,
    MaxMacs,
    MaxMemoryMb,
    MaxParams,
    MaxSizeMb,
    Model,
    NumClasses,
    Precision,
    Runtime,
    Seed,
    Speedup,
    Threads,
    Weights,
    numbers,
    shape,
)
from cpd_edge.cli.text import solve_text, strategies_text
from cpd_edge.errors import UsageError
from cpd_edge.types import Budget, Limits


def register(app: typer.Typer) -> None:
    """Adds the commands to the command line."""
    app.command()(solve)
    app.command("compare-strategies")(compare_strategies)


def solve(
    run: Annotated[Path, typer.Argument(help="run folder")],
    budget_ms: BudgetMs = None,
    speedup: Speedup = None,
    max_macs: MaxMacs = None,
    max_params: MaxParams = None,
    max_size_mb: MaxSizeMb = None,
    max_memory_mb: MaxMemoryMb = None,
    also: Annotated[
        list[str] | None, typer.Option(help="TABLE=MS: a table of this model on another device, and its limit")
    ] = None,
    as_json: Json = False,
) -> None:
    """Solve a run's table for another budget: what would it take, and what would be left?"""
    with told(as_json):
        limit = Budget(budget_ms, speedup) if budget_ms is not None or speedup is not None else None
        limits = Limits(max_macs, max_params, max_size_mb, max_memory_mb)
        from cpd_edge.pipeline.solving import solve as work

        found = work(run, limit, limits, also or ())
    show(found, as_json, solve_text)


def compare_strategies(
    model: Model,
    speedup: Annotated[str | None, typer.Option("--speedup", help="speed-ups over the dense network: 1.5,2,3")] = None,
    budget_ms: Annotated[
        str | None, typer.Option("--budget-ms", help="limits in the table's milliseconds: 12,8,5")
    ] = None,
    input_shape: InputShape = "3,224,224",
    weights: Weights = None,
    num_classes: NumClasses = None,
    data: Annotated[str, typer.Option("--data", help="data, for scores that need any; its shape is the input's")] = "",
    data_root: Annotated[str | None, typer.Option(help="where downloaded data sets lie")] = None,
    score: Annotated[
        str | None, typer.Option(help="fisher, taylor or magnitude; fisher with --data, else magnitude")
    ] = None,
    device: Device = "local",
    runtime: Runtime = "onnxruntime",
    threads: Threads = 1,
    precision: Precision = "fp32",
    samples: Annotated[int, typer.Option(help="networks the table is fitted on, at most; up to 10 more test it")] = 96,
    max_macs: MaxMacs = None,
    max_params: MaxParams = None,
    max_size_mb: MaxSizeMb = None,
    max_memory_mb: MaxMemoryMb = None,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="build each distinct plan and time it against dense")
    ] = True,
    limit_s: Annotated[float, typer.Option(help="longest time to sample each plan [s]")] = 6.0,
    profiles: Annotated[str | None, typer.Option(help="folder of measured tables")] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Run every strategy on MODEL's table: objective, predicted latency, measured latency."""
    with told(as_json) as (_, progress):
        budgets = [Budget(speedup=x) for x in numbers(speedup, "--speedup 1.5,2,3")]
        budgets += [Budget(limit_ms=x) for x in numbers(budget_ms, "--budget-ms 12,8,5")]
        if not budgets:
            raise UsageError("no budget to compare for", hint="give --speedup 1.5,2,3 or --budget-ms 12,8,5")
        if measure and not limit_s > 0:
            raise UsageError(f"--limit-s {limit_s}: it must be above 0", hint="or give --no-measure")
        from cpd_edge.pipeline.request import Request, tables_root
        from cpd_edge.pipeline.strategies import compare_strategies as work

        request = Request(
            model,
            data,
            budgets[0],
            weights=weights,
            num_classes=num_classes,
            data_root=data_root,
            score=score or ("fisher" if data else "magnitude"),
            device=device,
            runtime=runtime,
            threads=threads,
            precision=precision,
            samples=samples,
            seed=seed,
            max_macs=max_macs,
            max_params=max_params,
            max_size_mb=max_size_mb,
            max_memory_mb=max_memory_mb,
            profiles=profiles or str(tables_root()),
        )
        found = work(request, budgets, shape(input_shape), measure_s=limit_s if measure else 0.0, progress=progress)
    show(found, as_json, strategies_text)
