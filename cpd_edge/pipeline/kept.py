"""The final bench of a run that was stopped behind it: kept whole, and taken up again only where it still holds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cpd_edge import store
from cpd_edge.deploy.parity import Parity
from cpd_edge.errors import EnvironmentMismatch
from cpd_edge.measure.environment import require_comparable
from cpd_edge.types import Comparison, Interval

FILES = ("dense.onnx", "pruned.onnx", "samples/dense.json", "samples/pruned.json")
"""What a bench was made of, and what it made."""
NAME = "bench.json"


def keep_bench(run: store.Run, folder: Path, step: int, found: Comparison, parity: Parity) -> None:
    """Says that the bench after a step is whole. Written last: samples and record are there already.

    Args:
        run: holds engines and samples.
        folder: of what only an unfinished run needs.
        step: whose student was measured.
        found: the bench.
        parity: of the engine with torch.
    """
    rest = {"speedup": found.speedup, "outcome": found.outcome, "margin": found.margin, "parity": parity}
    store.write_json(folder / NAME, {"step": step, "files": _hashes(run), **rest})


def kept_bench(
    run: store.Run, folder: Path, step: int, environment: Mapping[str, Any]
) -> tuple[Comparison, Parity] | None:
    """The bench after a step; None where there is no whole one of these very files, taken in this environment."""
    if not (folder / NAME).exists():
        return None
    kept = store.read_json(folder / NAME)
    if kept["step"] != step or kept["files"] != _hashes(run):
        return None
    dense, pruned = (run.load_measurement(name) for name in ("dense", "pruned"))
    try:
        require_comparable(pruned.environment, environment)
    except EnvironmentMismatch:
        return None
    found = Comparison(dense, pruned, Interval.from_json(kept["speedup"]), kept["outcome"], kept["margin"])
    return found, Parity(**kept["parity"])


def _hashes(run: store.Run) -> dict[str, str]:
    """SHA-256 of each file that is there."""
    found = (name for name in FILES if (run / name).exists())
    return {name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in found}


__all__ = ["keep_bench", "kept_bench"]
