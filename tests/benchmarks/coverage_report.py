"""The coverage report: totals, one line a network, versions, and the same as CSV."""

from __future__ import annotations

import csv
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
OURS, THEIRS = "cpd-edge", "torch-pruning"
EQUAL = 1e-6
"""Largest relative difference, in float64, of a pruned network and the masked one that counts as the same."""

TITLES = {
    "named": "62 networks of torchvision and timm, one or two of a family",
    "torchvision": "The other classifiers and segmenters of torchvision below 150 M parameters",
    "hf": "Small Hugging Face networks",
}
COLUMNS = (
    "list", "model", "tool", "passed", "stages", "cause", "params_before", "params_after", "macs_before", "macs_after",
    "groups", "units", "exact_groups", "depth_groups", "prunable_params_fraction", "keeps", "same_error",
    "inexact_error", "least_effect", "onnx_error", "seconds", "wall_seconds", "peak_mb",
)  # fmt: skip

Row = Mapping[str, Any]


def succeeded(row: Row) -> bool:
    """Whether every stage was reached: the pruned network runs, and its ONNX file agrees with torch."""
    if row["tool"] == OURS:
        return bool(row.get("verified"))
    return not stopped(row) and "onnx" in row["stages"]


def stopped(row: Row) -> str:
    """What ended it early, on one line without this machine's folders; or ''."""
    text = str(row.get("ended") or row.get("cause") or "").replace(f"{ROOT}/", "")
    return re.sub(r"\S*/site-packages/", "", text).replace("|", "/")


def line(row: Row) -> str:
    """A result on one line, for the terminal."""
    return f"{row['model']}: {stopped(row) or 'all stages'}"


def write(rows: Mapping[tuple[str, str], Row], lists: Mapping[str, str], folder: Path) -> None:
    """Writes `README.md` and `coverage.csv`.

    Args:
        rows: results by network and tool.
        lists: the list that each network belongs to.
        folder: where to; made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shown = [m for m in lists if any((m, tool) in rows for tool in (OURS, THEIRS))]
    with (folder / "coverage.csv").open("w", newline="") as sink:
        table = csv.writer(sink)
        table.writerow(COLUMNS)
        for (model, _), row in rows.items():
            if model in lists:
                table.writerow([_cell(row, lists[model], name) for name in COLUMNS])
    (folder / "README.md").write_text(_page(rows, lists, shown))


def _cell(row: Row, where: str, column: str) -> object:
    special = {"list": where, "passed": succeeded(row), "cause": stopped(row), "keeps": _source(row)}
    if column in special:
        return special[column]
    value = row.get(column, "")
    return " ".join(value) if isinstance(value, list) else f"{value:.4g}" if isinstance(value, float) else value


def _page(rows: Mapping[tuple[str, str], Row], lists: Mapping[str, str], shown: Sequence[str]) -> str:
    parts = ["# Coverage", "", _INTRODUCTION, ""]
    for name, title in TITLES.items():
        models = [m for m in shown if lists[m] == name]
        if models:
            parts += [f"## {title}", "", *_totals(rows, models, sum(n == name for n in lists.values())), ""]
            parts += [*_table(rows, models), ""]
    return "\n".join(
        [*parts, "## Read the table", "", _LEGEND, "", "## Environment", "", *_environments(rows, shown), ""]
    )


def _totals(rows: Mapping[tuple[str, str], Row], models: Sequence[str], of: int) -> list[str]:
    ours = [rows[m, OURS] for m in models if (m, OURS) in rows]
    theirs = [rows[m, THEIRS] for m in models if (m, THEIRS) in rows]
    said = [] if len(models) == of else [f"{len(models)} of the {of} networks have results so far.", ""]
    said += ["| | cpd_edge | Torch-Pruning |", "|---|---|---|"]
    judged = [r for r in theirs if r.get("same_error") is not None]
    lines = {
        "networks tried": (len(ours), len(theirs)),
        "graph and groups found": (_count(ours, "comb"), _count(theirs, "graph")),
        "half of every group cut, and the network runs": (_count(ours, "cut"), _count(theirs, "forward")),
        "cut equals masked": (
            f"{_count(ours, 'equal')}, each group alone and together",
            f"{sum(r['same_error'] <= EQUAL for r in judged)} of {len(judged)} where it can be asked",
        ),
        "ONNX file agrees with torch": (_count(ours, "onnx"), _count(theirs, "onnx")),
        "**everything**": (f"**{sum(map(succeeded, ours))}**", f"**{sum(map(_right, theirs))}**"),
        "parameters left, median": (_median(ours, "params"), _median(theirs, "params")),
        "multiply-accumulates left, median": (_median(ours, "macs"), _median(theirs, "macs")),
        "CPU seconds, median": (_seconds(ours), _seconds(theirs)),
    }
    return [*said, *(f"| {name} | {a} | {b} |" for name, (a, b) in lines.items())]


def _right(row: Row) -> bool:
    """Every stage, and where it can be asked, the right outputs."""
    return succeeded(row) and (row.get("same_error") is None or row["same_error"] <= EQUAL)


def _count(rows: Iterable[Row], stage: str) -> int:
    return sum(stage in row.get("stages", ()) for row in rows)


def _ratio(row: Row, what: str) -> float | None:
    after, before = row.get(f"{what}_after"), row.get(f"{what}_before")
    return after / before if after and before else None


def _median(rows: Iterable[Row], what: str) -> str:
    found = [r for row in rows if (r := _ratio(row, what)) is not None]
    return f"{statistics.median(found):.0%}" if found else "–"


def _seconds(rows: Sequence[Row]) -> str:
    found = [row["seconds"] for row in rows if "seconds" in row]
    return f"{statistics.median(found):.0f}" if found else "–"


def _table(rows: Mapping[tuple[str, str], Row], models: Iterable[str]) -> list[str]:
    ours = "groups | can be cut | left at half: params, MACs | cut = mask | ONNX | s"
    theirs = "TP: reached | left: params, MACs | cut = mask | ONNX"
    head = f"| network | M params | {ours} | {theirs} | what stopped it, what stays whole |"
    lines = [head, "|" + "---|" * (head.count("|") - 1)]
    for model in models:
        a, b = rows.get((model, OURS), {}), rows.get((model, THEIRS), {})
        size = (a or b).get("params_before")
        notes = [f"cpd_edge: {stopped(a)}" if a and stopped(a) else "", f"stays: {_source(a)}" if _source(a) else ""]
        notes += [f"TP: {stopped(b)}" if b and stopped(b) else ""]
        cells = [model, f"{size / 1e6:.1f}" if size else "", *_our_cells(a), *_their_cells(b)]
        lines.append(f"| {' | '.join(cells)} | {'; '.join(n for n in notes if n)} |")
    return lines


def _our_cells(row: Row) -> list[str]:
    if not row:
        return ["–"] * 6
    widths = row.get("groups", 0) - row.get("depth_groups", 0)
    groups = f"{widths} + {row.get('depth_groups', 0)}" if "groups" in row else "–"
    share = row.get("prunable_params_fraction")
    equal = _error(row.get("same_error")) if "equal" in row.get("stages", ()) else "**no**"
    onnx = _error(row.get("onnx_error")) if "onnx" in row.get("stages", ()) else "**no**"
    return [groups, "–" if share is None else f"{share:.1%}", _left(row), equal, onnx, f"{row.get('seconds', 0):.0f}"]


def _their_cells(row: Row) -> list[str]:
    if not row:
        return ["–"] * 4
    stages = row.get("stages", [])
    same = row.get("same_error")
    equal = "not asked" if same is None else _error(same) if same <= EQUAL else f"**no**, {_error(same)}"
    return [
        stages[-1] if stages else "nothing",
        _left(row),
        equal if "forward" in stages else "–",
        _error(row["onnx_error"]) if "onnx" in stages else "**no**" if "forward" in stages else "–",
    ]


def _left(row: Row) -> str:
    ratios = [_ratio(row, "params"), _ratio(row, "macs")]
    return ", ".join(f"{r:.0%}" for r in ratios if r is not None) or "–"


def _error(error: float | None) -> str:
    return "–" if error is None else f"{error:.0e}"


def _source(row: Row) -> str:
    """What keeps the most parameters whole, where that is worth a word."""
    if row.get("prunable_params_fraction", 1) > 0.99:
        return ""
    return re.sub(r"\S*site-packages/", "", str(row.get("keeps", ""))).replace("|", "/")


def _environments(rows: Mapping[tuple[str, str], Row], shown: Sequence[str]) -> list[str]:
    lines = []
    for tool in (OURS, THEIRS):
        found = {tuple(sorted((k, str(v)) for k, v in rows[m, tool]["environment"].items() if v is not None))
                 for m in shown if (m, tool) in rows}  # fmt: skip
        if len(found) > 1:
            lines.append(f"Results of {tool} come from {len(found)} environments:")
        lines += [f"- {tool}: {', '.join(f'{k} {v}' for k, v in one)}" for one in sorted(found)]
    return lines


_INTRODUCTION = """\
Which networks can be combed, cut and deployed, and does the cut network compute what it should? Every network has
random weights from a fixed seed. Torch-Pruning is run beside on the same networks, the way its own examples use it.

    make coverage                                    # all of it: hours on one core; goes on where it was interrupted
    make coverage COVERAGE='--only resnet --jobs 2'  # a part

Every number below is in `coverage.csv`."""

_LEGEND = """\
**cpd_edge.** `groups`: groups of units + residual branches that can go whole. `can be cut`: share of the parameters'
elements that some unit occupies. `left at half`: of parameters and multiply-accumulates, once half of the units of
every group are gone (branches stay). `cut = mask`: largest difference of a cut network and the network whose readers
ignore what was cut, relative to the largest value, in float64, over each group alone, over random widths of all of
them, and with random branches left out; 1e-9 is the limit. Groups that a statistic runs over (a layer norm over the
embedding) differ from any mask by nature: they have to cut, run and give finite outputs. `ONNX`: ONNX Runtime against
torch at half of everything, relative to the largest output; 1e-4 is the limit. `s`: CPU seconds for all of that, on one
thread.

**Torch-Pruning** (TP): `MetaPruner`, magnitude, `pruning_ratio=0.5`, not global; layers that make the classes are
ignored; `num_heads` is declared for every module that says how many heads it has and holds `qkv`, `query` or `q_proj`
(keys and values likewise); `out_channel_groups` for `nn.MultiheadAttention`; afterwards the numbers that a forward
reads from its module (`num_heads`, `head_dim`, `attn_dim`, `all_head_size`, torchvision's `hidden_dim` and the like)
are brought up to date. That is what its published examples do; pruners written by hand for one network, such as its
example for Swin's patch merging, are not used. It has no mask to compare with. Its `cut = mask` is our own check, in
float64, from its own record of what it removed: the dense network whose layers ignore those inputs has to give the
same outputs. It is not asked where features are multiplied by features or a statistic runs over channels. Its ONNX
file has a fixed batch of one, made by whichever of torch's two exporters works; ours has a free batch.

A process may take 15 minutes and 12 GiB."""
