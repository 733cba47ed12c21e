"""Where the weights of a run's dense network come from: what its report says of them, and what `--resume` holds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cpd_edge.errors import UsageError
from cpd_edge.intake import userfile
from cpd_edge.intake.models import PRETRAINED, is_random
from cpd_edge.pipeline.request import Request


def origin(request: Request, module: bool = False) -> dict[str, str]:
    """For the record: `source` in words, and `sha256` where the weights are read from a file.

    Args:
        request: names the model and its weights.
        module: the network came as an object in place of the spec.
    """
    if module:
        return {"source": "those of the module that was given"}
    file, user = _file(request), userfile.split(request.model)
    if file is not None:
        source = str(file)
    elif request.weights is not None:
        source = f"published by {request.model.partition(':')[0]}"
    elif user:
        source = f"from {user[0]}"
    elif request.train:
        return {"source": "none given: trained from scratch by this run"}
    else:
        source = "none given: random"
    trained = ", then trained on the data by this run" if request.train else ""
    return {"source": source + trained, **({"sha256": _sha256(file)} if file and file.is_file() else {})}


def is_chance(request: Request) -> bool:
    """Whether the dense network's weights are random and stay so."""
    return is_random(request.model, _given(request)) and not request.train


def require_unchanged(request: Request, recorded: Mapping[str, Any]) -> None:
    """Refuses to resume a run whose file of weights holds something else now; one that is gone is not read again.

    Raises:
        UsageError: names the file and the ways out.
    """
    file, before = _file(request), recorded.get("sha256")
    if file is None or before is None or not file.is_file():
        return
    now = _sha256(file)
    if now != before:
        raise UsageError(
            f"{file} is not the file of weights that the run to resume began with: "
            f"its SHA-256 was {before[:12]}, now {now[:12]}",
            hint=f"put the old {file.name} back, or start a new --out",
        )


def _given(request: Request) -> Path | None:
    return Path(request.weights) if request.weights else None


def _file(request: Request) -> Path | None:
    """The file that weights are read from; None where they come from elsewhere."""
    weights = _given(request)
    if weights is None:
        return Path(request.model) if request.model.endswith(".pt2") else None
    return None if weights == PRETRAINED else weights


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
