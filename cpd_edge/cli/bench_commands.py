"""The command that times an engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cpd_edge.cli.console import show, told
from cpd_edge.cli.options import BudgetMs, Device, Json, Quantile, Runtime, Threads, shape
from cpd_edge.cli.text import bench_text
from cpd_edge.store import require_file
from cpd_edge.types import EXIT_CODES, VOID

if TYPE_CHECKING:
    from cpd_edge.measure.frames import Camera


def register(app: typer.Typer) -> None:
    """Adds the command to the command line."""
    app.command()(bench)


def bench(
    engine: Annotated[Path, typer.Argument(help="ONNX file, built engine, or the .json of an earlier measurement")],
    against: Annotated[Path | None, typer.Option(help="reference engine to compare with, in the same window")] = None,
    budget_ms: BudgetMs = None,
    quantile: Quantile = 0.5,
    runtime: Runtime = "onnxruntime",
    device: Device = "local",
    threads: Threads = 1,
    precision: Annotated[
        str | None,
        typer.Option("--precision", help="what engines are made in; fp32, or as the file says, if not given"),
    ] = None,
    limit_s: Annotated[float, typer.Option(help="longest time to sample [s]")] = 30.0,
    target: Annotated[float, typer.Option(help="relative half-width of the interval to stop at")] = 0.01,
    period_ms: Annotated[float | None, typer.Option(help="one inference per period, as a camera asks for them")] = None,
    end_to_end: Annotated[
        bool, typer.Option("--end-to-end", help="from a camera's frame to top-k or class colours, stage by stage")
    ] = False,
    frame: Annotated[
        str | None, typer.Option(help="with --end-to-end: height,width of a frame; 1080,1920 if not given")
    ] = None,
    letterbox: Annotated[bool, typer.Option("--letterbox", help="with --end-to-end: keep the aspect ratio")] = False,
    energy: Annotated[
        bool, typer.Option("--energy", help="sample for 30 s and more, after 10 s of rest, for energy per inference")
    ] = False,
    cpus: Annotated[str | None, typer.Option("--pin", help="CPUs of this machine to stay on, for example 0,1")] = None,
    processes: Annotated[int, typer.Option(help="fresh processes to measure in; their spread is reported")] = 1,
    force: Annotated[
        bool, typer.Option("--force", help="compare two measurement files although their environments differ")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="file for the raw samples, of both engines where there are two")
    ] = None,
    as_json: Json = False,
) -> None:
    """Time an engine, alone or against another, with an interval and a verdict."""
    with told(as_json) as (_, progress):
        from functools import partial

        from cpd_edge.pipeline.bench import bench as once
        from cpd_edge.pipeline.replicas import replicated
        from cpd_edge.pipeline.saved import any_saved, judge_saved

        if out is not None:
            require_file(out)
        if any_saved(engine, against, out, force):
            found = judge_saved(engine, against, budget_ms=budget_ms, quantile=quantile, force=force)
            raise ended(found, as_json)
        work = once if processes == 1 else partial(replicated, processes)
        found = work(
            engine=engine,
            against=against,
            budget_ms=budget_ms,
            quantile=quantile,
            runtime=runtime,
            device=device,
            threads=threads,
            precision=precision,
            limit_s=limit_s,
            target=target,
            period_ms=period_ms,
            camera=_camera(end_to_end, frame, letterbox),
            energy=energy,
            cpus=_cpus(cpus),
            out=out,
            progress=progress,
        )
    raise ended(found, as_json)


def ended(found: dict[str, Any], as_json: bool) -> typer.Exit:
    """Shows a result; its verdict is the exit code."""
    show(found, as_json, bench_text)
    return typer.Exit(VOID if found.get("void") else EXIT_CODES.get(found.get("verdict", "PASS"), 0))


def _cpus(text: str | None) -> tuple[int, ...]:
    """`0,1` as numbers."""
    if text is not None and not all(part.isdecimal() for part in text.split(",")):
        from cpd_edge.errors import UsageError

        raise UsageError(f"--pin {text!r}: numbers of CPUs, joined by commas", hint="for example --pin 0,1")
    return () if text is None else tuple(map(int, text.split(",")))


def _camera(end_to_end: bool, frame: str | None, letterbox: bool) -> Camera | None:
    """The camera that the options describe; None where the engine alone is timed."""
    from cpd_edge.errors import UsageError
    from cpd_edge.measure.frames import Camera

    if not end_to_end:
        if frame is not None or letterbox:
            raise UsageError("--frame and --letterbox are of the end-to-end mode", hint="add --end-to-end")
        return None
    extents = shape(frame, "--frame 1080,1920") if frame is not None else (Camera.h, Camera.w)
    if len(extents) != 2:
        raise UsageError(f"frame {frame!r}", hint="height and width, for example --frame 1080,1920")
    return Camera(*extents, letterbox)
