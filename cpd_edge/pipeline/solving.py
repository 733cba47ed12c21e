"""A run's own table, solved again: for another budget, for other limits, for a second device as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cpd_edge import network as networks
from cpd_edge import store
from cpd_edge.comb import comb
from cpd_edge.errors import DataError, InfeasibleError, TableError, UsageError
from cpd_edge.intake.tasks import Task, load_task
from cpd_edge.network import Network
from cpd_edge.pipeline import aim
from cpd_edge.pipeline.mixture import Mixing
from cpd_edge.pipeline.outcome import macs_at, mixture
from cpd_edge.pipeline.plans import SOLVE_S, gone_with, on_device, posed
from cpd_edge.pipeline.precision import calibration_images
from cpd_edge.pipeline.profiling import INT8_TABLE, MIXING
from cpd_edge.pipeline.quantities import counted
from cpd_edge.pipeline.request import Request
from cpd_edge.pipeline.sensitivity import sensitivities
from cpd_edge.pipeline.steps import scores
from cpd_edge.pipeline.subject import Subject
from cpd_edge.profile.table import LatencyTable
from cpd_edge.solve.milp import solve as solved
from cpd_edge.solve.pose import Elsewhere
from cpd_edge.solve.ways import PLAIN
from cpd_edge.types import Budget, Interval, Limits


def solve(
    folder: Path, budget: Budget | None, limits: Limits | None = None, also: Sequence[str] = ()
) -> dict[str, Any]:
    """Solves a run's own table again, for its own limits or others, on the dense network's scores.

    Args:
        folder: the run.
        budget: latency limit, if not the run's own.
        limits: of what is counted; where one is None the run's own holds.
        also: other devices' tables of this model, each as `TABLE=MS` with its limit in that table's milliseconds.

    Raises:
        UsageError: a table that is none or was measured for another model, or a limit that the run's precision lacks.
        InfeasibleError: no plan meets the limits.
    """
    run = store.Run(folder)
    typed = {f"max_{name}": most for name, most in vars(limits or Limits()).items() if most is not None}
    request = replace(Request.from_json(run.record["request"]), **typed)
    mixed = request.mixed
    if mixed and also:
        raise UsageError("--also with a run in mixed precision: a table is of one precision", hint="leave --also out")
    if not all((run / name).exists() for name in ("table.json", *((INT8_TABLE, MIXING) if mixed else ()))):
        raise DataError(
            f"{folder} has no table yet", hint="let the run finish its profile: cpd-edge prune ... --resume"
        )
    table = LatencyTable.load(run / "table.json")
    others = _distinct([_elsewhere(text, table) for text in also], also)
    network = networks.load(run / "dense.pt2", networks.REMADE)
    constraints = request.constraints
    limits = constraints.limits
    task = _task(request)
    subject = _subject(request, network, task) if limits.any or mixed else None
    combed = subject.combed if subject else comb(network, network.input_shape)
    groups = combed.groups
    dense = Interval.from_json(run.record["dense_latency_ms"])
    pace = dense.estimate / table.predict(groups.widths)
    limit_ms = aim.limit_of(budget or request.budget, dense)
    importance, ways = scores(combed, task, request), PLAIN
    if mixed:
        assert subject is not None and task is not None
        otherwise = sensitivities(subject, subject.network, subject.widths, task, request)
        importance = replace(importance, otherwise=otherwise)
        ways = Mixing(**store.read_json(run / MIXING)).ways(subject, LatencyTable.load(run / INT8_TABLE))
    where = posed(
        table,
        importance,
        limit_ms / pace,
        groups,
        constraints,
        limits=counted(subject, limits) if subject else (),
        elsewhere=others,
        ways=ways,
    )
    try:
        found = solved(where.problem, time_limit_s=SOLVE_S)
    except InfeasibleError as error:
        raise on_device(error, table.regions, groups.widths, pace, limit_ms, 0.0) from error
    plan = where.plan(found)
    macs = [macs_at(table.regions, w) for w in (groups.widths, plan.widths)]
    widest = where.problem.used(where.problem.dense)
    return {
        "limit_ms": limit_ms,
        "predicted_ms": plan.predicted_ms * pace,
        "objective": plan.objective,
        "bound": plan.bound,
        "gap": plan.gap,
        "seconds": plan.seconds,
        "macs_ratio": macs[0] / max(macs[1], 1),
        "limits": [
            {"name": r.name, "unit": r.unit, "limit": r.limit, "used": found.used[r.name], "dense": widest[r.name]}
            for r in where.problem.resources[1:]
        ],
        "widths": {name: (n, plan.widths.get(name, n)) for name, n in groups.widths.items()},
        "gone": gone_with(table.regions, plan.widths),
        **(mixture(subject, plan) if subject and mixed else {}),
    }


def _subject(request: Request, network: Network, task: Task | None) -> Subject:
    """The dense network, as its run had it."""
    images = calibration_images(task, request.seed) if task and request.mixed else None
    precision = request.precision if request.mixed else "fp32"
    shape = network.input_shape
    return Subject.of(network, shape, request.threads, request.runtime, request.device, precision, images)


def _task(request: Request) -> Task | None:
    """The run's data, where its score needs any."""
    if request.score == "magnitude":
        return None
    return load_task(
        request.data,
        seed=request.seed,
        image_size=request.image_size,
        data_root=Path(request.data_root) if request.data_root else None,
    )


def _elsewhere(text: str, own: LatencyTable) -> Elsewhere:
    """Another device's table and its limit, from `TABLE=MS`."""
    example = "for example --also TABLE=12.5, with a folder that `cpd-edge profile` names"
    where, _, limit = text.rpartition("=")
    try:
        limit_ms = float(limit)
    except ValueError:
        limit_ms = 0.0
    if not where or not 0 < limit_ms < float("inf"):
        raise UsageError(f"--also {text}: wanted a table, '=' and milliseconds above 0", hint=example)
    path = Path(where) / "table.json" if Path(where).is_dir() else Path(where)
    if not path.is_file():
        raise UsageError(f"--also {text}: there is no table at {path}", hint=example)
    table = LatencyTable.load(path)
    if dict(table.groups) != dict(own.groups):
        odd = sorted(table.groups.items() ^ own.groups.items())[0][0]
        raise TableError(f"{path} is of another model: its groups differ in {odd}", hint="profile this model there")
    if table.key.get("signature") != own.key.get("signature"):
        raise TableError(
            f"{path} is of another model, or of another size of its images: its regions differ",
            hint="profile this model there, with the run's --input",
        )
    return Elsewhere(_named(table.key, where), table, limit_ms)


def _distinct(others: Sequence[Elsewhere], also: Sequence[str]) -> list[Elsewhere]:
    """The devices under names of their own: where two are called alike, by what was typed."""
    names = [other.name for other in others]
    if len(set(also)) < len(also):
        raise UsageError(f"--also {also[-1]} is given more than once", hint="give each table once")
    return [
        replace(other, name=text) if names.count(other.name) > 1 else other
        for other, text in zip(others, also, strict=True)
    ]


def _named(key: Mapping[str, Any], where: str) -> str:
    """What a table's device is called."""
    return " ".join(str(key[name]) for name in ("device", "runtime") if name in key) or where
