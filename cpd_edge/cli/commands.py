"""The commands and their options. Each one hands over to the pipeline and shows what comes back."""

from __future__ import annotations

import shlex
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from cpd_edge.cli.bench_commands import register as register_bench
from cpd_edge.cli.console import Interrupted, show, told
from cpd_edge.cli.device_commands import register as register_devices
from cpd_edge.cli.engine_commands import register
from cpd_edge.cli.options import (
    BudgetMs,
    Data,
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
    PrecisionOrMixed,
    Quantile,
    Runtime,
    Seed,
    Speedup,
    Threads,
    Weights,
    shape,
)
from cpd_edge.cli.plan_commands import register as register_plans
from cpd_edge.cli.sweep_command import register as register_sweep
from cpd_edge.cli.table_commands import register as register_tables
from cpd_edge.cli.text import comb_text, doctor_text, doctor_there_text, gpu_text, profiles_text, summary
from cpd_edge.cli.verify_text import verify_text
from cpd_edge.errors import InfeasibleError, UsageError
from cpd_edge.store import require_file, require_folder, resumed
from cpd_edge.types import EXIT_CODES, VOID, Budget, Limits

CRASHED = 70
"""Exit code of an error that nobody foresaw (`EX_SOFTWARE` of sysexits): 1 is a verdict."""

NO_GPU = 4
"""Exit code of a machine without what a check needs: an environment that does not do."""

app = typer.Typer(
    help="Prune a trained torch vision model until its engine meets a latency budget, as measured on the device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command()
def prune(
    model: Model,
    data: Data,
    budget_ms: BudgetMs = None,
    speedup: Speedup = None,
    quantile: Quantile = 0.5,
    tolerance: Annotated[float, typer.Option(help="how far below the limit is near enough")] = 0.05,
    device: Device = "local",
    runtime: Runtime = "onnxruntime",
    threads: Threads = 1,
    precision: PrecisionOrMixed = "fp32",
    weights: Weights = None,
    num_classes: NumClasses = None,
    image_size: Annotated[
        int | None, typer.Option(help="height and width that folders of images are scaled to")
    ] = None,
    data_root: Annotated[str | None, typer.Option(help="where downloaded data sets lie")] = None,
    train: Annotated[bool, typer.Option("--train", help="train the model on the data first")] = False,
    train_epochs: Annotated[float, typer.Option(help="epochs of that training")] = 10.0,
    epochs: Annotated[float | None, typer.Option(help="epochs of distillation in all")] = None,
    steps: Annotated[int, typer.Option(help="prunings, with distillation after each")] = 2,
    batch: Annotated[int | None, typer.Option(help="training batch")] = None,
    lr: Annotated[float, typer.Option(help="highest learning rate")] = 1e-3,
    temperature: Annotated[float, typer.Option(help="distillation temperature")] = 2.0,
    alpha: Annotated[float, typer.Option(help="share of the teacher in the loss")] = 0.7,
    score: Annotated[str, typer.Option(help="fisher, taylor or magnitude")] = "fisher",
    calibration_batches: Annotated[int, typer.Option(help="batches of 128 that scores and statistics see")] = 16,
    samples: Annotated[int, typer.Option(help="networks the table is fitted on, at most; up to 10 more test it")] = 96,
    rounds: Annotated[int, typer.Option(help="build-and-measure rounds, at most")] = 4,
    parity: Annotated[
        float | None, typer.Option(help="largest difference of engine and torch, relative; 1e-4 in fp32, 0.25 in int8")
    ] = None,
    seed: Seed = 0,
    protect: Annotated[list[str] | None, typer.Option(help="groups or tensors to leave whole: a shell pattern")] = None,
    min_width: Annotated[int, typer.Option(help="fewest units that a group keeps")] = 1,
    multiple_of: Annotated[int, typer.Option(help="widths are multiples of this, or dense")] = 1,
    heads: Annotated[str, typer.Option(help="heads of an attention: free, or equal in all layers")] = "free",
    depth: Annotated[bool, typer.Option("--depth/--no-depth", help="whether branches may go whole")] = True,
    max_macs: MaxMacs = None,
    max_params: MaxParams = None,
    max_size_mb: MaxSizeMb = None,
    max_memory_mb: MaxMemoryMb = None,
    refine: Annotated[
        int, typer.Option(help="best plans that each choice tries on calibration data; 1: the solver's own is taken")
    ] = 1,
    limit_s: Annotated[
        float | None, typer.Option(help="longest time to sample in the final bench [s]; 45 if not given")
    ] = None,
    target: Annotated[
        float | None,
        typer.Option(help="relative half-width of the interval to stop the final bench at; 0.01 if not given"),
    ] = None,
    profiles: Annotated[str | None, typer.Option(help="folder of measured tables")] = None,
    out: Annotated[Path | None, typer.Option(help="run folder")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run in --out")] = False,
    as_json: Json = False,
) -> None:
    """Prune MODEL to a latency budget, distil, build, measure, report."""
    with told(as_json) as (say, progress):
        limits = Limits(max_macs, max_params, max_size_mb, max_memory_mb)
        if limits.any and budget_ms is None and speedup is None:
            speedup = 1.0  # no slower than it is
        limit = Budget(budget_ms, speedup, quantile, tolerance)
        if resume and out is None:
            from cpd_edge.errors import StoreError

            raise StoreError("--resume does not say which run", hint="add --out RUN")
        from cpd_edge.pipeline import new_folder, run
        from cpd_edge.pipeline.request import Request, tables_root

        request = Request(
            model=model,
            data=data,
            budget=limit,
            weights=weights,
            num_classes=num_classes,
            image_size=image_size,
            data_root=data_root,
            train=train,
            train_epochs=train_epochs,
            device=device,
            runtime=runtime,
            threads=threads,
            precision=precision,
            epochs=epochs,
            steps=steps,
            batch=batch,
            lr=lr,
            temperature=temperature,
            alpha=alpha,
            score=score,
            calibration_batches=calibration_batches,
            samples=samples,
            rounds=rounds,
            parity=parity,
            seed=seed,
            protect=tuple(protect or ()),
            min_width=min_width,
            multiple_of=multiple_of,
            heads=heads,
            depth=depth,
            max_macs=max_macs,
            max_params=max_params,
            max_size_mb=max_size_mb,
            max_memory_mb=max_memory_mb,
            refine=refine,
            limit_s=limit_s,
            target=target,
            profiles=profiles or str(tables_root()),
        )
        folder = out or new_folder(model)
        require_folder(folder)
        command = shlex.join(["cpd-edge", *sys.argv[1:]])
        try:
            begun = partial(say, kept_in(folder, out))
            done, _ = run(request, folder, resume=resume, command=command, progress=progress, begun=begun)
        except KeyboardInterrupt:
            again = resumed(command, folder)
            raise Interrupted("interrupted; nothing finished is lost. Go on with:", hint=again) from None
        except InfeasibleError as error:
            if not as_json:
                raise
            from cpd_edge.store import Run

            say(f"error: {error}")
            show(Run(folder).record, as_json, summary)
            raise typer.Exit(error.exit_code) from None
    show(done.record, as_json, summary)
    raise typer.Exit(VOID if done.record.get("void") else EXIT_CODES[done.record["verdict"]])


@app.command()
def comb(
    model: Model,
    input_shape: InputShape = "3,224,224",
    weights: Weights = None,
    num_classes: NumClasses = None,
    draw: Annotated[Path | None, typer.Option("--draw", help="SVG file for a drawing of the groups")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="cut each group, alone and together; compare")] = False,
    plans: Annotated[int, typer.Option(help="random whole-network cuts that --verify compares")] = 3,
    onnx: Annotated[
        bool, typer.Option("--onnx/--no-onnx", help="--verify also compares the network's ONNX file")
    ] = True,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Show what can be removed together, and what is frozen and why; --verify proves it by numbers."""
    with told(as_json) as (_, progress):
        if draw is not None:
            require_file(draw, "--draw")
        from cpd_edge.pipeline.verbs import comb as work
        from cpd_edge.pipeline.verbs import proving

        size = shape(input_shape)
        proof = proving(size, plans=plans, onnx=onnx, seed=seed, progress=progress) if verify else None
        found = work(model, size, weights, num_classes, drawing=draw, proof=proof)
    show(found, as_json, verify_text if verify else comb_text)
    raise typer.Exit(int(not found.get("verified", True)))


@app.command()
def profile(
    model: Model,
    input_shape: InputShape = "3,224,224",
    weights: Weights = None,
    num_classes: NumClasses = None,
    device: Device = "local",
    runtime: Runtime = "onnxruntime",
    threads: Threads = 1,
    precision: Precision = "fp32",
    samples: Annotated[int, typer.Option(help="networks the table is fitted on, at most; up to 10 more test it")] = 96,
    profiles: Annotated[str | None, typer.Option(help="folder of measured tables")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="measure again, though there is a table")] = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure the latency table of MODEL on the device, or on several at once (orin,nano)."""
    with told(as_json) as (_, progress):
        from cpd_edge.pipeline.profiles import profile as work

        try:
            found, code = work(
                model,
                shape(input_shape),
                weights,
                num_classes,
                device=device,
                runtime=runtime,
                threads=threads,
                precision=precision,
                samples=samples,
                seed=seed,
                profiles=profiles,
                fresh=fresh,
                progress=progress,
            )
        except KeyboardInterrupt:
            again = shlex.join(["cpd-edge", *(word for word in sys.argv[1:] if word != "--fresh")])
            raise Interrupted("interrupted; what was measured is kept. Go on with:", hint=again) from None
    show(found, as_json, profiles_text)
    raise typer.Exit(code)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="run folder")], as_json: Json = False) -> None:
    """Write a run's report again, from its files."""
    with told(as_json):
        from cpd_edge.report import write

        path = write(run)
    show({"report": str(path)}, as_json, lambda found: found["report"])


@app.command()
def doctor(
    gpu: Annotated[bool, typer.Option("--gpu", help="check what needs an NVIDIA GPU, in some ten minutes")] = False,
    out: Annotated[Path, typer.Option(help="with --gpu: the file to send")] = Path("cpd-edge-gpu.json"),
    device: Annotated[str, typer.Option(help="local, or a device you added: its state and its noise floor")] = "local",
    runtime: Annotated[
        str | None,
        typer.Option(
            help="on another device: onnxruntime (the default), onnxruntime-cuda, onnxruntime-tensorrt, tensorrt"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check the installation, and measure this machine's noise floor, or another device's."""
    if device != "local" or runtime is not None:
        with told(as_json) as (_, progress):
            from cpd_edge.measure.doctor import doctor_there

            if gpu:
                raise UsageError("doctor --gpu checks the machine that it runs on", hint="on it: cpd-edge doctor --gpu")
            at = runtime or "onnxruntime"
            there = doctor_there(device, at, progress=lambda fraction, text: progress("doctor", fraction, text))
        show(there, as_json, doctor_there_text)
        return
    if gpu:
        with told(as_json) as (_, progress):
            require_file(out)
            from cpd_edge.pipeline.gpu_check import gpu_check

            checked = gpu_check(out, lambda fraction, text: progress("doctor --gpu", fraction, text))
        show(checked, as_json, gpu_text)
        raise typer.Exit(1 if checked["failed"] else 0 if checked["possible"] else NO_GPU)
    with told(as_json) as (_, progress):
        from cpd_edge.measure.doctor import doctor as work

        found = work(progress=lambda fraction, text: progress("doctor", fraction, text))
    show(found, as_json, doctor_text)


register_plans(app)
register_bench(app)
register(app)
register_devices(app)
register_tables(app)


def kept_in(folder: Path, out: Path | None) -> str:
    """Where a run is kept, and what goes on with it, whether or not its folder was named."""
    added = "--resume" if out is not None else f"--out {shlex.quote(str(folder))} --resume"
    return f"kept in {folder}; should it stop, the same command with {added} goes on"


register_sweep(app, prune, kept_in)


def main() -> None:
    """Entry point of `cpd-edge`. What nobody foresaw ends with a traceback and a code that is no verdict's."""
    try:
        app()
    except Exception:  # a bug of ours, or of a library
        traceback.print_exc()
        sys.exit(CRASHED)
