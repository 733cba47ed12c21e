"""Laws of environments: what is comparable, and what pinning leaves behind."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from boards import fake_board

from cpd_edge.errors import EnvironmentMismatch
from cpd_edge.measure import agent, capture, key, pin, require_comparable
from cpd_edge.measure.environment import moment, state


def captured(**other: Any) -> dict[str, Any]:
    return {**capture("onnxruntime", "1.20", 1, 1, (1, 3, 32, 32), protocol="back-to-back"), **other}


def test_load_and_time_do_not_make_numbers_incomparable() -> None:
    """They change while a process lives."""
    assert require_comparable(captured(load_1m=0.0, captured_at="then"), captured(load_1m=9.0)) is None


@pytest.mark.parametrize(("name", "value"), [("threads", 2), ("precision", "int8"), ("shape", "8x3x32x32")])
def test_a_mismatch_names_the_keys_that_differ_and_no_other(name: str, value: object) -> None:
    """With both values."""
    with pytest.raises(EnvironmentMismatch) as caught:
        require_comparable(captured(), captured(**{name: value}))
    assert f"{name} ({captured()[name]} against {value})" in caught.value.what
    assert caught.value.what.count(" against ") == 1


def test_what_one_side_does_not_say_is_a_mismatch() -> None:
    """A number without its environment is not comparable."""
    with pytest.raises(EnvironmentMismatch, match="unknown"):
        require_comparable(captured(), {})


def test_an_environment_is_flat_and_survives_a_file() -> None:
    """JSON scalars only."""
    environment = captured()
    assert json.loads(json.dumps(environment)) == environment
    assert key(environment).items() <= environment.items()


def test_a_boards_power_mode_and_clocks_are_in_what_makes_numbers_comparable(tmp_path: Path) -> None:
    """Read as the agent reads them on another device; a machine without them says nothing of them."""
    fake_board(tmp_path)
    found = state(str(tmp_path))
    assert {"l4t": "36.4.4", "power_mode": "2", "clocks": "locked", "governor": "schedutil"}.items() <= found.items()
    assert found["device"].startswith("NVIDIA Jetson") and found.keys() <= {*key(found), "kernel", "python"}
    assert state(str(tmp_path / "none")).keys().isdisjoint({"l4t", "power_mode", "clocks"})


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the agent is for Linux")
def test_what_changes_is_told_as_the_agent_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """One definition for this machine and for devices; a system without affinities has the same keys."""
    monkeypatch.setattr(agent, "moment", lambda: {"pinned": "7", "load_1m": 0.5, "captured_at": "now"})
    assert moment() == agent.moment() and captured()["pinned"] == "7"
    monkeypatch.delattr(os, "sched_getaffinity")
    assert moment().keys() == agent.moment().keys() and moment()["pinned"] == ""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no CPU affinity")
def test_pinning_is_undone_even_after_an_error() -> None:
    """Inside, one CPU; outside, what it was."""
    before = os.sched_getaffinity(0)
    one = {min(before)}
    with pytest.raises(KeyError), pin(one):
        assert os.sched_getaffinity(0) == one
        raise KeyError
    assert os.sched_getaffinity(0) == before
