"""Combs, cuts, proves and exports every network of the lists, and lets Torch-Pruning try the same ones.

    python tests/benchmarks/coverage_run.py --list
    python tests/benchmarks/coverage_run.py --only 'resnet' --jobs 2

Each network and tool is one subprocess on one thread, with a limit of time and memory. Every result is one line of
JSON, appended at once; a run that was interrupted goes on where it was. A result belongs to the code and the versions
that gave it: when they change, it is made again. The report is written from all results that fit.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import coverage_models
import coverage_report

ROOT = Path(__file__).parents[2]
TOOLS = {"cpd-edge": "coverage_cpd_edge", "torch-pruning": "coverage_torch_pruning"}
"""Tool to the module whose `attempt` runs it."""

PACKAGES = {
    "cpd-edge": ("torch", "torchvision", "timm", "transformers", "onnx", "onnxscript", "onnxruntime"),
    "torch-pruning": (
        "torch-pruning",
        "torch",
        "torchvision",
        "timm",
        "transformers",
        "onnx",
        "onnxscript",
        "onnxruntime",
    ),
}
CODE = (
    "layout.py",
    "types.py",
    "canonical.py",
    "gates.py",
    "network.py",
    "comb",
    "cut",
    "deploy/onnx.py",
    "pipeline/enliven.py",
    "pipeline/lockstep.py",
    "pipeline/proof.py",
    "pipeline/verify.py",
)
"""What the results of cpd-edge follow from."""

RECIPE = 1
"""Raised by hand when what is asked of Torch-Pruning changes."""


@dataclass(frozen=True)
class Limits:
    """Of one subprocess: CPU seconds (and four times as many on the clock), and bytes that it may really hold."""

    seconds: float
    memory: float


@cache
def environment(tool: str) -> dict[str, Any]:
    """What the results of a tool belong to."""
    found: dict[str, Any] = {"python": platform.python_version(), "cpu": _cpu(), "threads": 1}
    for name in PACKAGES[tool]:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    found["code"] = f"recipe {RECIPE}" if tool == "torch-pruning" else _hash_of_code()
    return found


def _hash_of_code() -> str:
    total = hashlib.sha256()
    for part in CODE:
        path = ROOT / "cpd_edge" / part
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            if file.exists():
                total.update(file.read_bytes())
    return total.hexdigest()[:12]


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def fits(row: dict[str, Any], any_code: bool = False) -> bool:
    """Whether a result was given by today's code and versions; the CPU may be another."""
    free = {"cpu", "python", "transformers", *(["code"] if any_code else [])}
    return all(row["environment"].get(k) == v for k, v in environment(row["tool"]).items() if k not in free)


def read(path: Path, any_code: bool = False) -> dict[tuple[str, str], dict[str, Any]]:
    """The last result of each network and tool that fits; of any code, if so asked, which the report then says."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return {(row["model"], row["tool"]): row for row in rows if fits(row, any_code)}


def run_one(model: str, tool: str, limits: Limits) -> dict[str, Any]:
    """One network under one tool in its own process: its result, or what ended it."""
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    row: dict[str, Any] = {"model": model, "tool": tool, "environment": environment(tool)}
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        into, log = Path(folder, "result.json"), Path(folder, "log")
        words = [sys.executable, __file__, "--worker", tool, model, str(into)]
        with log.open("wb") as sink:
            child = subprocess.Popen(words, stdout=sink, stderr=sink, cwd=ROOT, env={**os.environ, **threads})
            ended, peak = _watched(child, limits)
        if into.exists():
            row |= json.loads(into.read_text())
        elif not ended:
            tail = log.read_text(errors="replace").strip().splitlines()
            ended = f"process ended with {child.returncode}: {tail[-1][:200] if tail else ''}"
    return row | {"ended": ended, "wall_seconds": time.monotonic() - started, "peak_mb": peak / 2**20}


def _watched(child: subprocess.Popen[bytes], limits: Limits) -> tuple[str, float]:
    """Waits for a process, or kills it at a limit; says which, and the most memory it held [bytes]."""
    deadline, peak = time.monotonic() + 4 * limits.seconds, 0.0
    while child.poll() is None:
        time.sleep(0.2)
        peak = max(peak, _resident(child.pid))
        late = _spent(child.pid) > limits.seconds or time.monotonic() > deadline
        over = "time" if late else "memory" if peak > limits.memory else ""
        if over:
            child.kill()
            child.wait()
            bound = f"{limits.seconds:g} s" if over == "time" else f"{limits.memory / 2**30:g} GiB"
            return f"{over} limit of {bound}", peak
    return "", peak


def _resident(pid: int) -> float:
    """Memory that a process holds [bytes]; 0 where the system does not say."""
    with contextlib.suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0.0


def _spent(pid: int) -> float:
    """CPU time that a process has taken [s]; 0 where the system does not say."""
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def work(tool: str, model: str, into: Path) -> None:
    """The subprocess: runs the tool and leaves the result in a file."""
    result = importlib.import_module(TOOLS[tool]).attempt(model)
    into.write_text(json.dumps(result))


def wanted(lists: Sequence[str], pattern: str) -> Iterator[tuple[str, str]]:
    """List and name of each chosen network, the named ones first."""
    for name, models in coverage_models.lists().items():
        if name in lists:
            yield from ((name, model) for model in models if pattern in model)


def main() -> None:
    """Runs what is missing, then writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="name the networks and leave")
    parser.add_argument("--only", default="", metavar="PATTERN", help="only networks whose name contains it")
    parser.add_argument("--lists", default="named,torchvision,hf", help="named, torchvision, hf; default all")
    parser.add_argument("--tools", default=",".join(TOOLS), help=f"default {','.join(TOOLS)}")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--limit-s", type=float, default=900.0, help="CPU seconds a network and tool may take")
    parser.add_argument("--limit-gb", type=float, default=12.0, help="memory a process may hold [GiB]")
    parser.add_argument("--report-only", action="store_true", help="run nothing, write the report")
    parser.add_argument("--again", action="store_true", help="also repeat what did not succeed")
    parser.add_argument("--any-code", action="store_true", help="results of other versions of our code count too")
    parser.add_argument("--results", type=Path, default=ROOT / "runs/coverage/results.jsonl", help="where results lie")
    parser.add_argument("--report", type=Path, default=ROOT / "reports/coverage", help="where the report goes")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        tool, model, into = given.worker
        return work(tool, model, Path(into))
    chosen = list(wanted(given.lists.split(","), given.only))
    if given.list:
        return print("\n".join(model for _, model in chosen))
    if not given.report_only:
        _run_all(given, chosen)
    coverage_report.write(
        read(given.results, given.any_code), {m: name for name, m in wanted(coverage_models.lists(), "")}, given.report
    )
    print(f"report in {given.report}")


def _run_all(given: argparse.Namespace, chosen: Sequence[tuple[str, str]]) -> None:
    done = read(given.results, given.any_code)
    if given.again:
        done = {key: row for key, row in done.items() if coverage_report.succeeded(row)}
    todo = [(m, tool) for _, m in chosen for tool in given.tools.split(",") if (m, tool) not in done]
    given.results.parent.mkdir(parents=True, exist_ok=True)
    limits = Limits(given.limit_s, given.limit_gb * 2**30)
    with ThreadPoolExecutor(given.jobs) as pool:
        running = [pool.submit(run_one, model, tool, limits) for model, tool in todo]
        for at, done_now in enumerate(as_completed(running), start=1):
            row = done_now.result()
            with given.results.open("a") as sink:
                sink.write(json.dumps(row) + "\n")
            print(
                f"[{at}/{len(todo)}] {row['tool']:<14} {row['wall_seconds']:6.1f} s  {coverage_report.line(row)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
