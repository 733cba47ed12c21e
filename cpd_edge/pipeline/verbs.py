"""The parts of the main job, each on its own: comb, profile. They return what `--json` prints."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from cpd_edge.comb import comb as comb_module
from cpd_edge.errors import UsageError
from cpd_edge.intake.models import load_model
from cpd_edge.measure.runners import onnxruntime
from cpd_edge.measure.runtimes import require_runtime
from cpd_edge.pipeline.draw import check_place, write_drawing
from cpd_edge.pipeline.profiling import measured_table
from cpd_edge.pipeline.request import Request, tables_root
from cpd_edge.pipeline.subject import Subject, comb_record
from cpd_edge.pipeline.verify import Verification, prunable_fraction, verify
from cpd_edge.profile.sample import FIRST_CHECK, reusable
from cpd_edge.profile.table import table_folder
from cpd_edge.types import Budget

Progress = Callable[[str, float, str], None]


def comb(
    model: str,
    input_shape: tuple[int, ...],
    weights: str | None,
    num_classes: int | None,
    drawing: Path | None = None,
    proof: Callable[[nn.Module], Verification] | None = None,
) -> dict[str, Any]:
    """Groups, units, exactness and the frozen rest of a model; a drawing and a proof of them where they are asked for.

    Args:
        model: spec of the model.
        input_shape: shape of one input, without the batch.
        weights: state dict for the model.
        num_classes: outputs of its head.
        drawing: SVG file.
        proof: verifies the module (see `proving`).
    """
    if drawing is not None:
        check_place(drawing)
    module = _model(model, input_shape, weights, num_classes)
    combed = comb_module(module, input_shape)
    fraction = prunable_fraction(combed)
    found = {"model": model, "prunable_params_fraction": fraction, **comb_record(combed)}
    if proof is not None:
        found = proof(module).to_json(model)
    if drawing is not None:
        write_drawing(combed, model, fraction, drawing)
        found["drawing"] = str(drawing)
    return found


def proving(
    input_shape: tuple[int, ...], *, plans: int, onnx: bool, seed: int, progress: Progress
) -> Callable[[nn.Module], Verification]:
    """A verification of modules that take such inputs; what it lacks is said before any work.

    Raises:
        UsageError: fewer than no plans.
        RuntimeMissing: the ONNX file is asked for, and ONNX Runtime is not installed.
    """
    if onnx:
        onnxruntime()
    if plans < 0:
        raise UsageError(f"plans of {plans}: at least 0", hint="for example --plans 3")
    return partial(verify, input_shape=input_shape, plans=plans, onnx=onnx, seed=seed, progress=progress)


def _model(model: str, input_shape: tuple[int, ...], weights: str | None, num_classes: int | None) -> nn.Module:
    """The model, made for inputs of this shape where its origin lets that be chosen."""
    channels = input_shape[0] if len(input_shape) == 3 else None
    return load_model(model, Path(weights) if weights else None, num_classes, in_channels=channels)


def profile(
    model: str,
    input_shape: tuple[int, ...],
    weights: str | None,
    num_classes: int | None,
    *,
    device: str,
    runtime: str = "onnxruntime",
    threads: int,
    precision: str = "fp32",
    samples: int,
    seed: int,
    profiles: str | None,
    fresh: bool = False,
    progress: Progress,
) -> dict[str, Any]:
    """Measures, or finds, the latency table of a model and says how well it predicts; `fresh` measures it again."""
    where = {"device": device, "runtime": runtime, "threads": threads, "precision": precision}
    asked = Request(model, "", Budget(speedup=2), samples=samples, **where)  # type: ignore[arg-type]
    asked.require_one_precision("a table")
    require_runtime(runtime, device)
    progress("comb", 0.0, "")
    begun = time.perf_counter()
    subject = Subject.of(_model(model, input_shape, weights, num_classes), input_shape, **where)  # type: ignore[arg-type]
    progress("comb", 1.0, "")
    key = subject.key()
    before_s = time.perf_counter() - begun
    folder = table_folder(Path(profiles) if profiles else tables_root(), key)
    found, starts = None if fresh else reusable(folder, key, subject.widths, subject.regions), list[bool]()
    table = found or measured_table(
        subject,
        key,
        folder,
        samples=samples,
        seed=seed,
        fresh=fresh,
        progress=lambda fraction, text: progress("profile", fraction, text),
        starting=lambda: starts.append(True),
    )
    own = sum(not s.held_out for s in table.samples)
    return {
        "model": model,
        **table.report(),
        "reused": not starts,
        "samples_saved": max(0, min(samples, FIRST_CHECK) - own) if table.known_regions else 0,
        "seconds": before_s + table.seconds,
        "regions": len(table.regions),
        "samples": len(table.samples),
        "dense_ms": table.predict(subject.widths),
        "table": str(folder),
        "environment": table.key,
    }


__all__ = ["comb", "profile"]
