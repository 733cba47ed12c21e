"""One run, from a request to a finished record: what is refused at the door, what is resumed, what follows what."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import torch
from torch import nn

from cpd_edge import network as networks
from cpd_edge import store
from cpd_edge.errors import InfeasibleError, StoreError
from cpd_edge.intake.models import RandomWeightsWarning, load_model
from cpd_edge.intake.tasks import Task, check_model, load_task
from cpd_edge.measure.runtimes import require_runtime
from cpd_edge.network import Network
from cpd_edge.pipeline import aim, outcome
from cpd_edge.pipeline.job import Job
from cpd_edge.pipeline.planner import Planner
from cpd_edge.pipeline.profiling import INT8_TABLE, MIXING
from cpd_edge.pipeline.request import Request
from cpd_edge.pipeline.steps import START, Progress, Student, plan_from_json, save_student
from cpd_edge.pipeline.weights import origin, require_unchanged
from cpd_edge.report import moved
from cpd_edge.report import write as write_report


def run(
    request: Request,
    folder: Path,
    *,
    model: nn.Module | None = None,
    data: Task | None = None,
    resume: bool = False,
    start: Path | None = None,
    command: str = "",
    progress: Progress | None = None,
    begun: Callable[[], None] | None = None,
) -> tuple[store.Run, Network]:
    """Runs the main job, or goes on with it, and writes the report.

    Args:
        request: the settings.
        folder: run folder.
        model, data: objects in place of the request's specs.
        resume: go on with the run in `folder`.
        start: a finished run of the same request but for a wider budget: its dense network, its table and its student
            are what this one begins with.
        command: what was typed, for the record.
        progress: gets stage, fraction and message.
        begun: called when the folder holds the run, before the long work.

    Returns:
        The run, and the pruned network.

    Raises:
        CpdError: bad input, before any work; or a stage that failed, with what it was.
        InfeasibleError: no plan meets the budget; the record and the report say so too.
    """
    tell = progress or (lambda stage, fraction, text: None)
    require_runtime(request.runtime, request.device)
    torch.manual_seed(request.seed)
    tell("load", 0.0, "")
    task = data or load_task(
        request.data,
        seed=request.seed,
        image_size=request.image_size,
        data_root=Path(request.data_root) if request.data_root else None,
    )
    record = _opened(request, folder, resume)
    if record is not None and "verdict" in record.record:
        tell("load", 1.0, "")
        return record, _finished(record)
    traced, module = None, model is not None
    if start is None and (record is None or not (record / "dense.pt2").exists()):
        model = model if model is not None else _model(request, task)
        check_model(task, model)
        traced = networks.trace(model, task.input_shape)
    if record is None:
        record = store.Run.create(folder, request.to_json())
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        record.update(command=command, created=now, weights=origin(request, module))
    if start is not None:
        begin(record, start)
    tell("load", 1.0, "")
    if begun is not None:
        begun()
    job = Job(request, record, task, tell)
    try:
        network = _stages(job, model, traced)
    except InfeasibleError as found:
        error = aim.in_speedups(found, request.budget, record.record["dense_latency_ms"]["estimate"])
        record.update(
            verdict="FAIL", reason=error.what, floor_ms=error.floor_ms, binding=error.binding, hint=error.hint
        )
        write_report(folder)
        _tidy(record)
        raise error from found
    _tidy(record)
    return record, network


def begin(record: store.Run, start: Path) -> None:
    """Gives a run that has no step yet what another has left: dense network and engine, table, the student so far."""
    if "start" in record.record or any((record / "checkpoints").glob("step-*")):
        return
    other = store.Run(start)
    tables = (other / name for name in ("table.json", INT8_TABLE, MIXING))
    for path in (other / "dense.pt2", *tables, *other.folder.glob("dense*.onnx")):
        if path.exists():
            store.write_bytes(record / path.name, path.read_bytes())
    if (other / "plan.json").exists():
        plan = {k: v for k, v in store.read_json(other / "plan.json").items() if k != "format"}
        student = Student(networks.load(other / "pruned.pt2"), plan_from_json(plan), ())
        save_student(record / "checkpoints", START, student)
    record.update(start=str(other.folder), weights=other.record.get("weights"))


def _finished(record: store.Run) -> Network:
    """The network of a run that has its verdict already; writes the report if that was all that was missing.

    Raises:
        StoreError: a file that the record names is gone.
        InfeasibleError: the run's own, where no plan met its budget.
    """
    found = record.record
    gone = [name for name in found.get("hashes", {}) if name != outcome.GIVEN and not (record / name).exists()]
    if gone:
        raise StoreError(
            f"{record.folder} has its verdict, but {', '.join(gone)} {'is' if len(gone) == 1 else 'are'} gone",
            hint="a finished run makes nothing again: put them back, or start again with a new --out",
        )
    if not (record / "report.html").exists() or not (record / "report.md").exists():
        write_report(record.folder)
    _tidy(record)
    if not (record / "pruned.pt2").exists():
        raise InfeasibleError(
            found["reason"], floor_ms=found["floor_ms"], binding=tuple(found["binding"]), hint=found["hint"]
        )
    return networks.load(record / "pruned.pt2")


def _tidy(record: store.Run) -> None:
    """Removes what only an unfinished run needs, and what a killed one left half written."""
    shutil.rmtree(record / "checkpoints", ignore_errors=True)
    for path in record.folder.rglob(f"{store.PARTIAL}*"):
        path.unlink(missing_ok=True)


def _stages(job: Job, model: nn.Module | None, traced: Network | None) -> Network:
    subject = job.dense(model, traced)
    met = job.already_met(subject)
    if met is not None:
        outcome.write_already_met(job, subject, met)
        return subject.network
    table = job.tables.table(subject)
    if not any(job.checkpoints.glob("step-*")):
        Planner(job.rig, job.tables, subject, table).reachable()
    student = job.start
    for index in range(job.request.steps):
        student = job.step(index, job.request.steps, subject, table, student)
    assert student is not None
    window, parity, student = job.finish(subject, table, student)
    with job.stage("save"):
        networks.save(student.network, job.run / "pruned.pt2")
    store.write_json(job.run / "plan.json", {"format": store.FORMAT, **store.plain(student.plan)})
    outcome.write(job, subject, table, student, window, parity)
    return student.network


def _opened(request: Request, folder: Path, resume: bool) -> store.Run | None:
    if not (folder / "run.json").exists():
        return None
    if not resume:
        store.Run.create(folder, {})  # refuses: the folder holds a run
    found = store.Run(folder)
    request.require_same(found.record["request"])
    require_unchanged(request, found.record.get("weights") or {})
    if moved(found):
        found.update(run=str(folder))
        (found / "report.html").unlink(missing_ok=True)  # it names the old folder; `_finished` writes it again
    return found


def _model(request: Request, task: Task) -> nn.Module:
    weights = Path(request.weights) if request.weights else None
    classes = request.num_classes or task.num_classes
    with warnings.catch_warnings():
        if request.train:
            warnings.simplefilter("ignore", RandomWeightsWarning)
        return load_model(request.model, weights, num_classes=classes, in_channels=task.input_shape[0])
