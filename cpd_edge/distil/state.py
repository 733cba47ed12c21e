"""Training state on disk: enough that a run which was interrupted ends with the very weights it would have had."""

from __future__ import annotations

import pickle
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cpd_edge.errors import StoreError
from cpd_edge.store import write_with

FORMAT = 1


def save_state(
    path: Path,
    request: Mapping[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    history: list[dict[str, float]],
    losses: list[float],
) -> None:
    """Writes weights, optimizer, generators, position and the losses that are not yet in the history, atomically."""
    state = {
        "format": FORMAT,
        "request": dict(request),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "generators": generators(),
        "step": step,
        "history": history,
        "losses": losses,
    }
    write_with(path, lambda stream: torch.save(state, stream))


def load_state(path: Path, request: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `save_state` wrote, or None where there is no such file yet.

    Raises:
        StoreError: the file is damaged, or belongs to a run with other settings.
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found = state["request"] if state["format"] == FORMAT else {"format": state["format"]}
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError) as error:
        raise StoreError(f"checkpoint {path} cannot be read: {error}", hint=f"start afresh: rm {path}") from error
    differ = [f"{k} {found.get(k)} there, {v} asked" for k, v in request.items() if found.get(k) != v]
    if differ:
        raise StoreError(f"checkpoint {path} is of another run: {'; '.join(differ)}", hint=f"start afresh: rm {path}")
    return state


def generators() -> dict[str, Any]:
    """State of every global random generator that a user's augmentation or a dropout may draw from."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), position, has_gauss, gauss),
    }


def restore_generators(state: Mapping[str, Any]) -> None:
    """Inverse of `generators`."""
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    random.setstate(state["python"])
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, np.asarray(keys, np.uint32), position, has_gauss, gauss))


def seed_generators(seed: int) -> None:
    """Seeds every global random generator."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
