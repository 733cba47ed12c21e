"""The sections on quality and choice: accuracy, parity, prediction, the solver's certificate, training."""

from __future__ import annotations

from cpd_edge.report import curves
from cpd_edge.report import format as write
from cpd_edge.report.headline import budget_ms, share_metric
from cpd_edge.report.record import Record
from cpd_edge.report.view import Block, Bullets, Column, Facts, Figure, Section, Table

MOVING = (
    "Each round has its own measurement of the dense engine, and so has the final bench. "
    "The budget is relative to that latency, so the limit in ms and the prediction move with it."
)
"""What is said of the rounds of a run whose budget is a speed-up."""


def present(*pairs: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    """The pairs that have a value."""
    return tuple((name, value) for name, value in pairs if value and value != write.MISSING)


def facts(caption: str, *pairs: tuple[str, str], wide: bool = True) -> list[Block]:
    """A list of facts, or nothing where none is known."""
    known = present(*pairs)
    return [Facts(caption, known, wide)] if known else []


def accuracy(record: Record) -> Section:
    """The metric before and after with its interval, the classes that lost most, engine against torch."""
    share, blocks = share_metric(record), list[Block]()
    if record.number("metric_dense") is not None or record.number("metric_pruned") is not None:
        before = record.number("fp32", "metric")
        rows = [] if before is None else [("dense, fp32", write.score(before, share), "", "")]
        for name in ("dense", "pruned"):
            interval = record.interval("metric_intervals", name)
            value = write.score(record.number(f"metric_{name}"), share)
            rows.append((name, value, write.score_bounds(interval, share), write.count(interval.n) if interval else ""))
        change = record.interval("metric_intervals", "delta")
        if change is not None:
            told = write.score_change(change.estimate, share)
            rows.append(("change, paired", told, write.score_bounds(change, share), write.count(change.n)))
        columns = (
            Column("engine"),
            Column(record.text("metric") or "metric", True),
            Column("95 %", True),
            Column("n", True),
        )
        blocks.append(Table("Accuracy on the evaluation data", columns, tuple(rows), wide=False))
    worst = tuple(_class(row, share) for row in record.rows("worst_classes"))
    if worst:
        heads = (Column("class"), *(Column(c, True) for c in ("dense", "pruned", "change")))
        blocks.append(Table("Classes that lost most", heads, worst, wide=False))
    parity, agreement = record.at("parity"), record.number("parity", "agreement")
    blocks += facts(
        "Engine against torch, on the same inputs",
        ("largest absolute difference", write.number(parity.number("max_abs"), 2)),
        ("largest relative difference", write.number(parity.number("max_rel"), 2)),
        ("tolerance", write.number(parity.number("tolerance"), 2)),
        ("inputs compared", write.count(parity.number("inputs"))),
        ("same decision", write.percent(agreement, 4)),
    )
    blocks += facts("What it computes in", *precision(record))
    return Section("accuracy", "Accuracy", tuple(blocks))


def precision(record: Record) -> tuple[tuple[str, str], ...]:
    """Precision of both engines as their kernels tell it, how it was made, and the gain over the dense one in fp32."""
    made, before, gain = (
        record.at("quantisation"),
        record.interval("fp32", "latency_ms"),
        record.interval("fp32", "speedup"),
    )
    images = write.count(made.number("images")) if made else ""
    bits = write.count(made.number("weight_bits")) if made else ""
    return present(
        ("precision", record.at("environment").text("precision")),
        ("weighted layers", record.at("environment").text("layers")),
        ("chosen for each region", mixture(record)),
        ("quantised by", f"{made.text('method')}, weights of {bits} bits" if made else ""),
        ("calibration images", images),
        ("dense engine in fp32", write.interval_ms(before) if before else ""),
        ("speed-up over it", f"{write.ratio(gain.estimate)} {write.bounds(gain)}" if gain else ""),
    )


def mixture(record: Record) -> str:
    """`int8 in 2 of 9 regions: conv1, conv2`, where each region has its own precision."""
    found, of = record.at("mixture"), record.number("mixture", "of")
    names = found.texts("int8")
    return f"int8 in {len(names)} of {of:.0f} regions{': ' if names else ''}{', '.join(names)}" if of else ""


def _class(row: Record, share: bool) -> tuple[str, ...]:
    dense, pruned = row.number("dense"), row.number("pruned")
    change = None if dense is None or pruned is None else pruned - dense
    told = (write.score(dense, share), write.score(pruned, share), write.score_change(change, share))
    return (row.text("label") or "unnamed", *told)


def prediction(record: Record) -> Section:
    """How well the latency table foretells engines it has not seen, and this one."""
    profile, blocks = record.at("profile"), list[Block]()
    points = [
        (told, seen, row.number("isolated_ms"))
        for row in profile.rows("scatter")
        if (told := row.number("predicted_ms")) is not None and (seen := row.number("measured_ms")) is not None
    ]
    error, alone = profile.number("holdout_median_error"), profile.number("isolated_median_error")
    if points:
        title = "Predicted against measured, held-out plans"
        reading = f"{len(points)} plans that the table was not fitted on: median error {write.percent(error)}"
        reading += f", against {write.percent(alone)} for the sum of isolated layers." if alone is not None else "."
        blocks.append(Figure(curves.scatter("fig-scatter", title, reading, points), title, reading))
    hoped, found = record.number("predicted_ms"), record.interval("latency_ms")
    off = None if hoped is None or found is None or not found.estimate else hoped / found.estimate - 1
    blocks += facts(
        "Latency table",
        ("this plan, predicted", write.ms(hoped)),
        ("this plan, measured", write.interval_ms(found) if hoped is not None else ""),
        ("prediction off by", "" if off is None else write.signed(write.percent(off))),
        ("held-out plans, median error", write.percent(error)),
        ("held-out plans, p90 error", write.percent(profile.number("holdout_p90_error"))),
        ("isolated layers, median error", write.percent(alone)),
        ("networks measured", write.count(profile.number("samples"))),
        ("regions", write.count(profile.number("regions"))),
        ("time to profile", write.duration(profile.number("seconds"))),
        wide=False,
    )
    return Section("prediction", "Prediction", tuple(blocks))


def choice(record: Record) -> Section:
    """The certificate of the plan and the rounds that led to it."""
    plan, gap = record.at("plan"), record.number("plan", "gap")
    drawn, table = _rounds(record)
    certificate = facts(
        "Certificate of the plan",
        ("strategy", plan.text("strategy")),
        ("expected loss", write.number(plan.number("objective"), 5)),
        ("proven lower bound", write.number(plan.number("bound"), 5)),
        ("optimality gap", write.percent(record.number("gap") if gap is None else gap)),
        ("limit solved for", write.ms(plan.number("limit_ms"))),
        ("time to solve", write.duration(plan.number("seconds"))),
        ("rounds", write.count(record.number("rounds"))),
        wide=False,
    )
    return Section("choice", "Choice", (*drawn, *certificate, *table))


def _rounds(record: Record) -> tuple[list[Block], list[Block]]:
    log, limit = record.rows("round_log"), budget_ms(record)
    if not log:
        return [], []
    steps = [
        (r.text("round") or str(i), r.number("limit_ms"), r.number("predicted_ms"), r.interval("measured"))
        for i, r in enumerate(log, 1)
    ]
    drawn: list[Block] = []
    if any(v is not None for _, *values in steps for v in values):
        title = "Rounds of the loop"
        reading = f"Each round solves for a limit, builds, measures and corrects the table. Rounds: {len(log)}."
        drawn.append(Figure(curves.rounds("fig-rounds", title, reading, steps, limit), title, reading))
    rows = tuple(
        (n, *map(write.ms, (asked, told)), write.interval_ms(seen), write.ms(r.number("delta_ms")), r.text("verdict"))
        for r, (n, asked, told, seen) in zip(log, steps, strict=True)
    )
    names = ("round", "limit", "predicted", "measured", "correction δ")
    columns = (*(Column(n, n != "round") for n in names), Column("verdict"))
    moving = [Bullets((MOVING,))] if record.number("request", "speedup") is not None else []
    return drawn, [Table("Solve, build, measure, correct", columns, rows), *moving]


def training(record: Record) -> Section:
    """Loss, metric and predicted latency over the course of distillation."""
    rows, share = record.rows("history"), share_metric(record)
    in_steps = any(r.number("step") is not None for r in rows)
    key = "step" if in_steps else "epoch"
    drawn: list[Figure] = []
    for name, title, limit in (
        ("loss", "Loss", None),
        ("metric", f"{record.text('metric') or 'Metric'}{' [%]' if share else ''}", None),
        ("predicted_ms", "Predicted latency [ms]", budget_ms(record)),
        ("learning_rate", "Learning rate", None),
    ):
        factor = 100.0 if name == "metric" and share else 1.0
        points = [
            (x, y * factor) for r in rows if (x := r.number(key)) is not None and (y := r.number(name)) is not None
        ]
        if points:
            reading = f"{write.number(points[0][1])} at {key} {write.count(points[0][0])}, "
            reading += f"{write.number(points[-1][1])} at {key} {write.count(points[-1][0])}."
            svg = curves.curve(f"fig-{name.replace('_', '-')}", title, reading, points, key, limit)
            drawn.append(Figure(svg, title, reading))
    return Section("training", "Training", tuple(drawn))


def _exactness(exact: object) -> str:
    return "" if not isinstance(exact, bool) else "yes" if exact else "no: a statistic runs over it"


def axes(record: Record) -> Section:
    """What could be cut and how much stayed; what could not, and why."""
    blocks: list[Block] = []
    groups = record.rows("groups")
    if groups:
        rows = tuple(
            (
                write.shorten(g.text("name"), 44),
                write.count(g.number("units")),
                write.count(g.number("kept")),
                "" if not g.number("units") else write.percent((g.number("kept") or 0.0) / (g.number("units") or 1.0)),
                _exactness(g.value("exact")),
                curves.bar(g.number("units"), g.number("kept"), g.number("units") or 0.0),
            )
            for g in groups
        )
        names = ("units", "kept", "share")
        columns = (
            Column("group"),
            *(Column(n, True) for n in names),
            Column("cut equals mask"),
            Column("kept", drawn=True),
        )
        blocks.append(Table("Groups that could be cut", columns, rows))
    frozen = tuple(
        (
            f.text("axis"),
            write.count(f.number("units")),
            write.count(f.number("params")),
            f.text("reason"),
            f.text("source"),
        )
        for f in record.rows("frozen")
    )
    if frozen:
        columns = (
            Column("axis"),
            Column("units", True),
            Column("parameters", True),
            Column("why it stays whole"),
            Column("where"),
        )
        blocks.append(Table("Frozen axes", columns, frozen))
    return Section("axes", "Groups and frozen axes", tuple(blocks))
