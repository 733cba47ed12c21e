"""A run's cut in the user's own module."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from cli.shell import Done, Shell
from torch import nn

from cpd_edge.errors import ModelError
from cpd_edge.network import load
from cpd_edge.pipeline import Pruned
from cpd_edge.store import Run


@pytest.fixture
def mine(shell: Shell) -> Any:
    """The user's file."""
    spec = importlib.util.spec_from_file_location("mine_written_back", shell.folder / "mine.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pruned(classified: tuple[Run, Done]) -> Pruned:
    """What `prune` gave back for the run."""
    run, _ = classified
    names = (run / "pruned.onnx", run / "report.html", run.folder)
    return Pruned(load(run / "pruned.pt2"), *names, run.record, run.load_measurement("pruned"))


def test_the_users_module_becomes_what_was_pruned(pruned: Pruned, mine: Any) -> None:
    """The module of the user's class, under its own names, computes what the run's network does."""
    model = mine.make_net().eval()
    names, whole = list(model.state_dict()), sum(p.numel() for p in model.parameters())
    assert pruned.write_back(model) is model
    inputs = pruned.module.example(5)
    with torch.no_grad():
        got, want = model(inputs), pruned.module(inputs)
    assert (got - want).abs().max() < 1e-5 * want.abs().max()
    assert names == list(model.state_dict())
    assert sum(p.numel() for p in model.parameters()) < whole


def test_another_model_is_refused(pruned: Pruned, mine: Any) -> None:
    """A run's cut fits the model that it was made for, and no other."""
    model = mine.make_net()
    model.body = nn.Conv2d(24, 16, 3)
    model.head = nn.Linear(16, 4)
    with pytest.raises(ModelError, match="is not the model of"):
        pruned.write_back(model)
