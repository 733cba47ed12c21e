"""How well latency tables predict whole networks: profiles the models on the runtimes, and writes the table of it.

    make fidelity
    python tests/benchmarks/fidelity_run.py --out /tmp/fidelity --models resnet18 --runtimes onnxruntime --threads 1,2

Each profile is a process of its own, `cpd-edge profile torchvision:MODEL --json`, that reuses nothing. Its result is a
file in the folder, so a run that was interrupted goes on where it was; `--again` measures anew. README.md is written
from the files that are there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

MODELS = ("resnet18", "mobilenet_v2", "lraspp_mobilenet_v3_large", "resnet50", "vit_b_16")
RUNTIMES = ("onnxruntime", "openvino")
COLUMNS = (
    "model", "runtime", "threads", "dense ms", "seconds", "networks", "regions", "median", "90 % within", "worst",
    "within 5 %", "within 10 %", "noise", "isolated median",
)  # fmt: skip


def measured(model: str, runtime: str, threads: int, samples: int) -> dict[str, Any]:
    """What `cpd-edge profile` prints, with an empty folder of tables."""
    with tempfile.TemporaryDirectory(prefix="cpd-edge-fidelity-") as profiles:
        command = [
            sys.executable, "-m", "cpd_edge", "profile", f"torchvision:{model}", "--device", "local", "--runtime",
            runtime, "--threads", str(threads), "--samples", str(samples), "--profiles", profiles, "--json",
        ]  # fmt: skip
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    del found["table"]  # the folder is gone
    return found


def page(results: list[dict[str, Any]]) -> str:
    """The results as one page of Markdown."""
    lines = [
        "# Latency tables against whole networks",
        "",
        "Made by `make fidelity` from the JSON files beside it.",
        "Errors are of held-out networks, which the fit never saw: predicted latency against the latency that was",
        "measured without a profiler, both freed of the machine's drift by the small reference that ran in turns with",
        "them. *Noise* is the standard error of one such measurement, the median over the same networks: no table can",
        "predict better than that. *Isolated* is the sum of operations timed alone, as the literature has it.",
        "*Seconds* is the whole profile, from combing to the fit.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
    ]
    for r in results:
        where = r["environment"]
        cells = [
            r["model"].removeprefix("torchvision:"), where["runtime"], where["threads"], f"{r['dense_ms']:.4g}",
            f"{r['seconds']:.0f}", r["samples"], r["regions"],
            *(_percent(r[key]) for key in (
                "holdout_median_error", "holdout_p90_error", "holdout_worst_error", "within_5_percent",
                "within_10_percent", "noise", "isolated_median_error",
            )),
        ]  # fmt: skip
        lines.append("| " + " | ".join(str(c) for c in cells) + " |")
    seen = {
        ", ".join(
            f"{k} {r['environment'][k]}" for k in ("device", "cores", "os", "runtime", "runtime_version", "shape")
        )
        for r in results
    }
    return "\n".join([*lines, "", "Environments:", "", *(f"- {line}" for line in sorted(seen)), ""])


def _percent(value: float | None) -> str:
    return "not timed" if value is None else f"{value:.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--models", default=",".join(MODELS), help="torchvision names")
    parser.add_argument("--runtimes", default=",".join(RUNTIMES))
    parser.add_argument("--threads", default="1", help="for example 1,2")
    parser.add_argument("--samples", type=int, default=96)
    parser.add_argument("--again", action="store_true", help="measure also what has a result")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    every = itertools.product(asked.models.split(","), asked.runtimes.split(","), map(int, asked.threads.split(",")))
    for model, runtime, threads in every:
        path = asked.out / f"{model}-{runtime}-t{threads}.json"
        if path.exists() and not asked.again:
            continue
        print(f"{path.stem}", flush=True)
        path.write_text(json.dumps(measured(model, runtime, threads, asked.samples), indent=1) + "\n")
        order = {name: i for i, name in enumerate(MODELS)}
        results = [json.loads(p.read_text()) for p in sorted(asked.out.glob("*.json"))]
        results.sort(key=lambda r: order.get(r["model"].removeprefix("torchvision:"), len(order)))
        (asked.out / "README.md").write_text(page(results))


if __name__ == "__main__":
    main()
