"""What a run came to: every figure of the record, computed from the engines and files in the run folder."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
import torch

from cpd_edge import store
from cpd_edge.cut import cut, mask
from cpd_edge.deploy.parity import Parity
from cpd_edge.intake.metrics import Accuracy, Metric, delta_interval, interval
from cpd_edge.layout import Widths, size
from cpd_edge.measure import stats
from cpd_edge.measure.devices import LOCAL, SIMULATED
from cpd_edge.measure.protocol import INSIDE
from cpd_edge.measure.runtimes import LAUNCHES, ON_CPU, TITLES
from cpd_edge.pipeline import aim
from cpd_edge.pipeline.aim import Window
from cpd_edge.pipeline.mixture import INT8
from cpd_edge.pipeline.plans import remaining
from cpd_edge.pipeline.quantities import FILE_SIZE, counted, macs
from cpd_edge.pipeline.request import Request
from cpd_edge.pipeline.steps import Student
from cpd_edge.pipeline.subject import Subject, comb_record
from cpd_edge.pipeline.weights import is_chance
from cpd_edge.profile.attribution import Attribution
from cpd_edge.profile.table import LatencyTable
from cpd_edge.report import write as write_report
from cpd_edge.types import Budget, Interval, Plan, Region

if TYPE_CHECKING:
    from cpd_edge.pipeline.job import Job

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
REPEATS = 30
"""Profiled inferences behind the times of layers."""
GIVEN = "weights given"
"""What stands among the hashes for the file of weights, which is no file of the run."""
AGAIN = "; measure again on a quieter machine: cpd-edge bench"
"""What to do about a trend."""
TOLD = 0.05
"""Median error of a table that predicts, on networks that it never saw."""
WORST = 5
"""How many classes are listed as the ones that lost most."""

MEASURED_LIMIT = (
    "Latency was measured on {where} with {runtime}, one image at a time, back to back; "
    "it says nothing of another device or runtime."
)
CPU_LIMIT = "No part of this was run on a GPU or a Jetson."
CHANCE_LIMIT = (
    "No weights were given, so those of the dense network are random: latency holds, "
    "the metric of either engine says nothing."
)
LAUNCH_LIMIT = (
    "Times of regions are those of launching them: this runtime does not tell what its kernels take on the GPU. "
    "Whole engines are timed to their end."
)
TABLE_LIMIT = (
    "Held-out plans also decide when profiling may stop, so the table's error on other plans may be a little larger."
)


SIMULATED_LIMIT = (
    "No latency here was measured: the device is simulated, its milliseconds are arithmetic, "
    "and they say nothing of any real device."
)


def limits_of(request: Request) -> list[str]:
    """What the numbers do not say, in words."""
    chance = [CHANCE_LIMIT] if is_chance(request) else []
    if request.device == SIMULATED:
        return [SIMULATED_LIMIT, *chance, CPU_LIMIT, TABLE_LIMIT]
    on_cpu = request.runtime in ON_CPU
    where = f"this machine's {'CPU' if on_cpu else 'GPU'}" if request.device == LOCAL else f"device {request.device}"
    measured = MEASURED_LIMIT.format(where=where, runtime=TITLES[request.runtime])
    launches = [LAUNCH_LIMIT] if request.runtime in LAUNCHES else []
    return [measured, *chance, *([CPU_LIMIT] if on_cpu and request.device == LOCAL else []), *launches, TABLE_LIMIT]


def write(job: Job, subject: Subject, table: LatencyTable, student: Student, window: Window, parity: Parity) -> None:
    """Completes the record of a run that pruned, and writes the report."""
    run, plan = job.run, student.plan
    pace = window.dense.estimate / table.predict(subject.widths)
    delta_ms = aim.delta_before(run.record.get("round_log", []), run.record["chosen_round"])

    def on_device(table_ms: float) -> float:
        return (table_ms + delta_ms) * pace

    with job.stage("evaluate"):
        quality = _quality(job)
    with job.stage("layers"):
        layers = _layers(job, subject, table, plan)
    report = table.report()
    run.update(
        plan={k: getattr(plan, k) for k in ("objective", "bound", "gap", "seconds", "strategy", "variants")}
        | {"limit_ms": on_device(plan.limit_ms)},
        gap=plan.gap,
        predicted_ms=on_device(plan.predicted_ms),
        parity=parity,
        profile=_profile_record(table, report),
        history=[{**row, "predicted_ms": on_device(row["predicted_ms"])} for row in student.history],
        rounds=len(run.record.get("round_log", [])),
        **(mixture(subject, plan) if job.request.mixed else {}),
        **_ratios(subject, student),
        **comb_record(subject.combed, remaining(subject.regions, plan.widths)),
        **quality,
        **layers,
    )
    with job.stage("verify"):
        checks = _checks(job, subject, student, window, parity, report)
    _conclude(job, window, checks)


def mixture(subject: Subject, plan: Plan) -> dict[str, Any]:
    """Which layers of a plan run in INT8, of how many that could."""
    left = [r for r in subject.weighted if all(plan.widths.get(branch, 1) for branch in r.within)]
    names = [r.fqn.removesuffix(".weight") or r.name for r in left if plan.variants.get(r.name) == INT8]
    return {"mixture": {"int8": names, "of": len(left)}}


def write_already_met(job: Job, subject: Subject, window: Window) -> None:
    """Completes the record of a run whose dense engine is inside the budget as it is: nothing is pruned."""
    run = job.run
    for ending in ("onnx", "pt2"):
        store.write_bytes(run / f"pruned.{ending}", (run / f"dense.{ending}").read_bytes())
    measured = run.load_measurement("dense")
    run.save_measurement(type(measured)(**{**measured.__dict__, "name": "pruned"}))
    run.update(
        macs_ratio=1.0, params_ratio=1.0, predicted_ms=window.latency.estimate, gap=0.0, rounds=0, already_met=True,
        **comb_record(subject.combed),
    )  # fmt: skip
    with job.stage("evaluate"):
        run.update(**_quality(job))
    _conclude(job, window, [])


def _conclude(job: Job, window: Window, checks: list[dict[str, Any]]) -> None:
    run, budget = job.run, job.request.budget
    samples = {name: run.load_measurement(name).samples_ns / 1e6 for name in ("dense", "pruned")}
    quantiles = {
        name: {label: _supported(stats.quantile_interval(ms, q)) for label, q in QUANTILES.items()}
        for name, ms in samples.items()
    }
    engines = [f"{name}{kind}.onnx" for name in ("dense", "pruned") for kind in ("", "-fp32")]
    files = [f for f in (*engines, "dense.pt2", "pruned.pt2") if (run / f).exists()]
    weights = run.record.get("weights") or {}
    given = {GIVEN: weights["sha256"]} if "sha256" in weights else {}
    run.update(
        budget_ms=window.limit_ms,
        quantile=budget.quantile,
        tolerance=budget.tolerance,
        latency_ms=window.latency,
        dense_latency_ms=window.dense,
        speedup=window.speedup,
        quantiles=quantiles,
        checks=[*checks, *_better_than_chance(run.record, job.task.num_classes)],
        precision=job.request.precision,
        **job.rig.gain(),
        hashes=given | {f: hashlib.sha256((run / f).read_bytes()).hexdigest() for f in files},
        input=job.task.data.contract(),
        size_bytes={n: (run / f"{n}.onnx").stat().st_size for n in ("dense", "pruned")},
        limits=limits_of(job.request),
        reason=_reason(run.record, window, budget),
        verdict=window.verdict,
    )
    with job.shown("report"):  # the report states the record, so the record is closed
        write_report(run.folder)


def _supported(found: Interval) -> Interval | None:
    return found if np.isfinite([found.low, found.high]).all() else None


def _reason(record: Mapping[str, Any], window: Window, budget: Budget) -> str:
    if record.get("already_met"):
        return "the dense engine already meets the budget; nothing was pruned"
    if window.verdict == "FAIL" and "reason" in record:
        return f"the engine is slower than the budget allows: {record['reason']}"
    if window.verdict == "FAIL":
        more = 2 * record["request"]["rounds"]
        return f"the engine is slower than the budget allows, and no round is left: start again with --rounds {more}"
    if window.verdict == "INCONCLUSIVE":
        return f"{_open(window, budget)}: measure longer, or on a quieter machine (cpd-edge bench)"
    if window.close < 1 - budget.tolerance:
        why = "the finished engine came out faster than the build that the loop stopped at"
        if not _stopped_near(record.get("round_log", []), budget.tolerance):
            why = "no nearer plan was found"
        return f"inside the budget by {1 - window.close:.1%}, not the {budget.tolerance:.0%} aimed at: {why}"
    return "the upper bound is inside the budget and within its tolerance"


def _open(window: Window, budget: Budget) -> str:
    """What leaves a verdict open."""
    if budget.speedup is not None and window.speedup.low < budget.speedup:
        return f"{budget.speedup:g} x lies inside the interval of the speed-up"
    if window.latency.low > window.limit_ms:
        return "the dense engine's interval leaves open what latency is asked for"
    return "the budget lies inside the interval"


def _stopped_near(log: Sequence[Mapping[str, Any]], tolerance: float) -> bool:
    """Whether the last round was a build of the loop that passed and was near enough to the limit."""
    if not log or "step" in log[-1] or log[-1]["verdict"] != "PASS":
        return False
    return bool(Interval.from_json(log[-1]["measured"]).high >= (1 - tolerance) * log[-1]["limit_ms"])


def _quality(job: Job) -> dict[str, Any]:
    """The task's metric of both engines, as deployed, with paired intervals over images."""
    dense = _engine_metric(job, "dense")
    pruned = dense if job.run.record.get("already_met") else _engine_metric(job, "pruned")
    return {
        "metric": job.task.metric_name,
        "metric_dense": dense.compute(),
        "metric_pruned": pruned.compute(),
        "metric_intervals": {
            "dense": interval(dense),
            "pruned": interval(pruned),
            "delta": delta_interval(dense, pruned),
        },
        "worst_classes": _worst(job.task.labels, dense, pruned),
    }


def _engine_metric(job: Job, name: str) -> Metric:
    metric = job.task.metric()
    with job.rig.engine(name) as runner:
        for images, targets in job.task.val_loader(128):
            job.task.update(metric, torch.from_numpy(runner.outputs(images.numpy())), targets)
    return metric


def _worst(labels: tuple[str, ...], dense: Metric, pruned: Metric) -> list[dict[str, Any]]:
    before, after = dense.per_class(), pruned.per_class()
    order = [i for i in np.argsort(after - before, kind="stable")[:WORST] if after[i] < before[i]]
    return [{"label": labels[i], "dense": float(before[i]), "pruned": float(after[i])} for i in order]


def _ratios(subject: Subject, student: Student) -> dict[str, Any]:
    params = [sum(p.numel() for p in n.parameters()) for n in (subject.network, student.network)]
    macs = [macs_at(subject.regions, w) for w in (subject.widths, student.plan.widths)]
    return {
        "macs": {"dense": macs[0], "pruned": macs[1]},
        "params": {"dense": params[0], "pruned": params[1]},
        "macs_ratio": macs[0] / max(macs[1], 1),
        "params_ratio": params[0] / max(params[1], 1),
    }


def macs_at(regions: tuple[Region, ...], widths: Widths) -> int:
    """Multiply-accumulates of one image at some widths."""
    return round(macs(regions).at(widths))


def _layers(job: Job, subject: Subject, table: LatencyTable, plan: Plan) -> dict[str, Any]:
    """Widths and profiled times of every region, dense and pruned, and what the median latency holds beside them.

    In mixed precision also what each region computes in.

    Of regions that the runtime runs as one kernel, the first has the time of all.
    """
    times, rest, widths, ways = {}, {}, plan.widths, job.tables.ways(subject, table)

    def stays(region: Region) -> bool:
        return all(widths.get(branch, 1) for branch in region.within)

    gone = {"dense": [], "pruned": [r.name for r in subject.regions if not stays(r)]}
    for name, lacking in gone.items():
        data = (job.run / f"{name}.onnx").read_bytes()
        attribution = Attribution.of(subject.regions, subject.dense_onnx).fused(table.fused)
        attribution = attribution.adapted(onnx.load_from_string(data), lacking)
        with contextlib.closing(subject.runner(data, True)) as runner:
            times[name] = attribution.times(runner.kernels(REPEATS)).ms
        median_ms = float(np.median(job.run.load_measurement(name).samples_ns)) / 1e6
        rest[name] = median_ms - sum(times[name].values())

    at = {g: widths.get(g, n) for g, n in subject.widths.items()}
    together = {name: names if name == names[0] else () for names in table.fused for name in names}
    predicted_ms = ways.predict(table, at, plan.variants)
    pace = predicted_ms / table.bend.total(predicted_ms)
    rows = [
        {
            "name": r.name, "op": r.op, "fqn": r.fqn,
            "dense_in": r.reads.extent, "dense_out": r.writes.extent,
            "pruned_in": size(r.reads, widths) if stays(r) else 0,
            "pruned_out": size(r.writes, widths) if stays(r) else 0,
            "dense_ms": times["dense"].get(r.name, 0.0), "pruned_ms": times["pruned"].get(r.name, 0.0),
            "predicted_ms": pace * sum(
                ways.region_ms(table, name, at, plan.variants) for name in together.get(r.name, (r.name,))
            ),
            **({"precision": ways.of(r.name, plan.variants)} if job.request.mixed and stays(r) else {}),
        }
        for r in subject.regions
    ]  # fmt: skip
    return {"layers": rows, "unattributed_ms": rest}


def _profile_record(table: LatencyTable, report: Mapping[str, Any]) -> dict[str, Any]:
    return {**report, "regions": len(table.regions), "samples": len(table.samples)}


def _checks(
    job: Job, subject: Subject, student: Student, window: Window, parity: Parity, report: Mapping[str, Any]
) -> list[dict[str, Any]]:
    plan, gap, stop = student.plan, masked_gap(subject, student), str(job.run.record.get("stop"))
    median, most = report["holdout_median_error"], report["holdout_p90_error"]
    void = [str(what) for what in job.run.record.get("void", [])]
    steady = bool(job.run.record.get("steady"))
    drift = ", ".join(f"{n} {_drift(job.run.load_measurement(n).samples_ns):+.1%}" for n in ("dense", "pruned"))
    rows = [
        (
            "engine equals torch",
            parity.max_rel <= parity.tolerance,
            f"{parity.max_rel:.1e} of the largest output on {parity.inputs} images, tolerance {parity.tolerance:.2g}",
        ),
        ("interval inside its target", stop == INSIDE, stop),
        ("no trend while measuring", steady, f"last third against first: {drift}{'' if steady else AGAIN}"),
        ("no slow-down of the device", not void, "; ".join(void) or "its sensors told of none"),
        ("optimal plan", plan.gap <= 1e-3, f"gap {plan.gap:.2%} of the objective, solved in {plan.seconds:.2f} s"),
        (
            "table predicts",
            median <= TOLD,
            f"held-out plans: median error {median:.1%}, wanted {TOLD:.0%} or less, 90 % within {most:.1%}",
        ),
    ]
    for quantity, most in counted(subject, job.request.constraints.limits):
        used = quantity.at(plan.widths) if quantity.name != FILE_SIZE else (job.run / "pruned.onnx").stat().st_size
        dense = quantity.at(subject.widths)
        detail = f"{used:,.0f} {quantity.unit}".strip() + f" of {most:,.0f} allowed, {dense:,.0f} when dense"
        rows.append((f"{quantity.name} inside its limit", used <= most, detail))
    if job.request.mixed:
        kernels, chosen = str(job.run.record["environment"].get("layers", "")), mixture(subject, plan)["mixture"]
        counts = dict(part.split(" ")[:2] for part in kernels.split(", ")) if kernels else {}
        detail = f"{len(chosen['int8'])} of {chosen['of']} regions are to be int8, kernels say {kernels or 'nothing'}"
        rows.append(("precisions as chosen", int(counts.get(INT8, 0)) == len(chosen["int8"]), detail))
    if gap is not None:
        rows.append(("cut equals masked", gap < 1e-5, f"differ by {gap:.1e} of the largest output, in float64"))
    return [{"name": n, "passed": ok, "detail": detail} for n, ok, detail in rows]


def _drift(samples_ns: npt.NDArray[np.int64]) -> float:
    """How far the median of the last third lies above that of the first, relative."""
    third = max(len(samples_ns) // 3, 1)
    return float(np.median(samples_ns[-third:]) / np.median(samples_ns[:third])) - 1


def _better_than_chance(record: Mapping[str, Any], classes: int) -> list[dict[str, Any]]:
    """A check that the dense network classifies at all; none for other tasks."""
    if record["metric"] != Accuracy.name:
        return []
    found = Interval.from_json(record["metric_intervals"]["dense"])
    detail = f"dense accuracy {found.estimate:.1%} [{found.low:.1%}, {found.high:.1%}], chance {1 / classes:.1%}"
    return [{"name": "better than chance", "passed": found.low > 1 / classes, "detail": detail}]


def masked_gap(subject: Subject, student: Student) -> float | None:
    """How far the cut dense network is from the masked one, relative; None where a group is not exact."""
    groups = subject.combed.groups
    if not all(g.exact for g in groups.groups if len(student.plan.keep.get(g.name, ())) < g.units):
        return None
    keep = student.plan.kept
    inputs = subject.network.example().double()
    with torch.no_grad():
        a, b = (_tensor(n.double()(inputs)) for n in (cut(subject.combed, keep), mask(subject.combed, keep)))
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))


def _tensor(outputs: Any) -> torch.Tensor:
    while not isinstance(outputs, torch.Tensor):
        outputs = next(iter(outputs.values())) if isinstance(outputs, dict) else outputs[0]
    return outputs
