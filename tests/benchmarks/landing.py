"""How near a build lands to its budget: profile, magnitude scores, then the job's own loop, without any training.

    make landing
    python tests/benchmarks/landing.py torchvision:resnet18 --shares 0.75,0.5,0.35 --out /tmp/landing

A share of 0.5 is the budget of half the dense latency. Each network's result is a JSON file in the folder: for each
share the rounds of the loop, each with its measured interval, and how far the upper end of the best one is from the
limit (0 is just inside, the tolerance is 5 %). README.md is written from the files that are there. A share that no
round lands on is an exit code of 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

from cpd_edge import store
from cpd_edge.intake.models import load_model
from cpd_edge.intake.tasks import Task
from cpd_edge.pipeline.job import Job
from cpd_edge.pipeline.planner import Planner
from cpd_edge.pipeline.request import Request
from cpd_edge.pipeline.steps import scores
from cpd_edge.pipeline.subject import Subject
from cpd_edge.types import Budget


def landed(subject: Subject, request: Request, folder: Path) -> dict[str, Any]:
    """Rounds of one budget's loop, and the distance of the plan that it returns."""
    run = store.Run.create(folder, request.to_json())
    no_task = cast(Task, None)  # nothing is trained, and no data is read
    job = Job(request, run, no_task, lambda stage, fraction, text: None)
    store.write_bytes(run / "dense.onnx", subject.build(subject.widths))
    job.already_met(subject)
    table = job.tables.table(subject)
    planner = Planner(job.rig, job.tables, subject, table)
    plan = planner.close_loop(scores(subject.combed, None, request), None, folder / "trials.json")
    rounds = run.record["round_log"]
    inside = [row for row in rounds if row["verdict"] == "PASS"]
    best = max(inside, key=_off) if inside else rounds[-1]
    landed = bool(inside) and _off(best) >= -request.budget.tolerance
    return {"rounds": rounds, "best": best, "off": _off(best), "landed": landed, "predicted_ms": plan.predicted_ms}


def _off(row: dict[str, Any]) -> float:
    """How far the upper end of a round's interval is from the limit, relative; above 0 it is over."""
    if row["measured"]["high"] is None:
        sys.exit("a measured interval has no upper end: the machine is not quiet enough, run it again later")
    return float(row["measured"]["high"] / row["limit_ms"] - 1)


def page(results: list[dict[str, Any]]) -> str:
    """The results as one page of Markdown."""
    lines = [
        "# How near builds land to their budget",
        "",
        "Made by `make landing` from the JSON files beside it: the table is measured, the solver's plan is built with",
        "untrained weights and timed in turns with the dense engine, and what it was off by corrects the next plan.",
        "Budgets are shares of the dense latency; *off* is how far the upper end of the measured 95 % interval is from",
        "the limit: a build has landed from -5 % to 0.",
        "",
        "| model | runtime | budget | limit | builds | predicted | measured p50 | off |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for found in results:
        for share, landing in found["shares"].items():
            row, seen = landing["best"], landing["best"]["measured"]
            cells = [
                found["model"].removeprefix("torchvision:"), found["runtime"], f"{float(share):g} of dense",
                f"{row['limit_ms']:.4g} ms", len(landing["rounds"]), f"{row['predicted_ms']:.4g} ms",
                f"{seen['estimate']:.4g} ms [{seen['low']:.4g}, {seen['high']:.4g}]", f"{landing['off']:+.1%}",
            ]  # fmt: skip
            lines.append("| " + " | ".join(str(c) for c in cells) + " |")
    named = ("device", "cores", "os", "runtime", "runtime_version", "threads", "shape")
    seen_at = {", ".join(f"{k} {found['environment'][k]}" for k in named) for found in results}
    return "\n".join([*lines, "", "Environments:", "", *(f"- {line}" for line in sorted(seen_at)), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="for example torchvision:resnet18")
    parser.add_argument("--shares", default="0.75,0.5,0.35", help="budgets as shares of the dense latency")
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--input", default="3,224,224")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    shape = tuple(int(extent) for extent in asked.input.split(","))
    for model in asked.models:
        print(f"{model} on {asked.runtime}", flush=True)
        subject = Subject.of(load_model(model, None, None, in_channels=shape[0]), shape, 1, asked.runtime)
        found: dict[str, Any] = {"model": model, "runtime": asked.runtime, "environment": subject.key(), "shares": {}}
        with tempfile.TemporaryDirectory(prefix="cpd-edge-landing-") as folder:
            for share in asked.shares.split(","):
                request = Request(
                    model, "", Budget(speedup=1 / float(share)), runtime=asked.runtime, rounds=asked.rounds,
                    score="magnitude", profiles=f"{folder}/profiles",
                )  # fmt: skip
                found["shares"][share] = landed(subject, request, Path(folder) / f"run-{share}")
        name = f"{model.rpartition(':')[2]}-{asked.runtime}.json"
        (asked.out / name).write_text(json.dumps(found, indent=1, default=float) + "\n")
        results = [json.loads(path.read_text()) for path in sorted(asked.out.glob("*.json"))]
        (asked.out / "README.md").write_text(page(results))
        if not all(landing["landed"] for landing in found["shares"].values()):
            sys.exit(1)


if __name__ == "__main__":
    main()
