"""Writes `reports/solver/README.md`: the exact choice beside the baselines, on drawn problems. Seeds are fixed.

Objectives are the same on every machine; seconds are this one's.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from solve.families import FAMILIES, drawn, resnet50_sized  # noqa: E402

from cpd_edge.solve.baselines import BASELINES  # noqa: E402
from cpd_edge.solve.milp import solve  # noqa: E402

INSTANCES = 60
GROUPS = 8
SAME = 1e-6
"""Relative difference of objectives below which two choices are equally good."""

HEAD = """# The exact choice beside the baselines

Written by `make compare-solvers` on drawn problems; the seeds are fixed, so the objectives are the same everywhere.

## Four families of cost

{instances} problems a family: a chain of {groups} groups with a skip region and a concat, at a drawn limit between the
floor and dense. *equal* costs are products of widths; *launch* adds a cost to every region; *staircase* steps every
16 channels as well; *noisy* varies every cell by 20 %. All solved to a gap of 1e-6. A cell says in how many problems
the exact choice loses less than the baseline's, and how much more the baseline loses, median and most, of the exact
loss. A baseline was better in {worse} of {all} comparisons.
"""


def family_row(family: str) -> tuple[list[str], int]:
    """Cells of one family, and how often a baseline was better."""
    excess: dict[str, list[float]] = {name: [] for name in BASELINES}
    for seed in range(INSTANCES):
        problem = drawn(family, 1000 + seed, groups=GROUPS)
        exact = solve(problem, gap=1e-6).objective
        for name, baseline in BASELINES.items():
            other = baseline(problem).objective
            excess[name].append((other - exact) / max(exact, 1e-9))
    worse = sum(value < -SAME for values in excess.values() for value in values)
    cells = [
        f"{sum(v > SAME for v in values)}/{INSTANCES}, {np.median(values):.1%}, {max(values):.0%}"
        for values in excess.values()
    ]
    return [family, *cells], worse


def large_rows() -> Iterator[list[str]]:
    """Problems as large as ResNet-50's: gap and seconds."""
    for share, macs_share in ((0.75, np.inf), (0.5, np.inf), (0.35, np.inf), (0.5, 0.4)):
        found = [solve(resnet50_sized(seed, share, macs_share), gap=1e-3) for seed in range(3)]
        limit = f"{share:.0%} of the latency" + (f", {macs_share:.0%} of the MACs" if np.isfinite(macs_share) else "")
        seconds = [f.seconds for f in found]
        yield [limit, f"{max(f.gap for f in found):.3%}", f"{np.median(seconds):.1f}", f"{max(seconds):.1f}"]


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main() -> None:
    """Measures and writes."""
    families = [family_row(family) for family in FAMILIES]
    count = INSTANCES * len(FAMILIES) * len(BASELINES)
    text = HEAD.format(instances=INSTANCES, groups=GROUPS, worse=sum(worse for _, worse in families), all=count)
    text += "\n" + table(["costs", *BASELINES], [row for row, _ in families])
    text += (
        "\n## As large as ResNet-50\n\n37 groups of 16 widths and 54 regions, three seeds each, asked for a gap of "
        f"0.1 %; HiGHS through scipy, {platform.system()} on {platform.machine()}.\n\n"
    )
    text += table(["limit", "largest gap", "median seconds", "most seconds"], list(large_rows()))
    out = ROOT / "reports" / "solver" / "README.md"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
