"""How near a build lands to its budget: profile, magnitude scores, then the job's own loop, without any training.

    python tests/benchmarks/landing.py torchvision:resnet18 --shares 0.75,0.5,0.35 --out /tmp/landing

A share of 0.5 is the budget of half the dense latency. Prints one JSON object: for each share the rounds of the loop,
each with its measured interval, and how far the upper end of the best one is from the limit (0 is just inside, the
tolerance is 5 %). The table is kept in the folder, so that a second run begins with the loop.
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
from cpd_edge.pipeline.loop import close_loop
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
    plan = close_loop(job, subject, table, scores(subject.combed, None, request), None, "landing")
    rounds = run.record["round_log"]
    off = [row["measured"]["high"] / row["limit_ms"] - 1 for row in rounds if row["verdict"] == "PASS"]
    best = max(off, default=None)
    return {
        "rounds": rounds,
        "builds": len(rounds),
        "off": best,
        "landed": best is not None and best >= -request.budget.tolerance,
        "predicted_ms": plan.predicted_ms,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="for example torchvision:resnet18")
    parser.add_argument("--shares", default="0.75,0.5,0.35", help="budgets as shares of the dense latency")
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--input", default="3,224,224")
    parser.add_argument("--out", type=Path, required=True, help="folder of the measured table")
    asked = parser.parse_args()
    shape = tuple(int(extent) for extent in asked.input.split(","))
    module = load_model(asked.model, None, None, in_channels=shape[0])
    subject = Subject.of(module, shape, asked.threads, asked.runtime)
    found = {}
    for share in (float(x) for x in asked.shares.split(",")):
        request = Request(
            asked.model, "", Budget(speedup=1 / share), runtime=asked.runtime, threads=asked.threads,
            rounds=asked.rounds, score="magnitude", profiles=str(asked.out),
        )  # fmt: skip
        with tempfile.TemporaryDirectory(prefix="cpd-edge-landing-") as folder:
            found[share] = landed(subject, request, Path(folder) / "run")
    json.dump({"model": asked.model, "runtime": asked.runtime, "shares": found}, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
