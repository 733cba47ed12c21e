"""Laws of profiling on several devices at once: each gets its table or its error, and none loses another's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from measure.loopback import served
from typer.testing import CliRunner

from cpd_edge.cli.commands import app
from cpd_edge.errors import UsageError
from cpd_edge.measure import devices
from cpd_edge.measure.devices import Device
from cpd_edge.pipeline.profiles import profile

NETWORK = ("zoo:resnet8", "--input", "1,8,8", "--num-classes", "4", "--samples", "8")


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A device that is there, through a real sshd, and one where nobody listens."""
    monkeypatch.setenv("CPD_EDGE_CONFIG", str(tmp_path / "config"))
    (tmp_path / "sshd").mkdir()
    loop = served(tmp_path / "sshd")
    devices.add(loop.device("there"))
    devices.add(Device("gone", "ssh://127.0.0.1:1", ssh_config=str(loop.config)))
    yield
    loop.close()


@pytest.mark.slow
def test_one_device_that_fails_does_not_lose_the_other(two: None, tmp_path: Path) -> None:
    """The table of the one is kept and reported; the other's error is named, and is the exit code."""
    words = ("profile", *NETWORK, "--device", "gone,there", "--profiles", str(tmp_path / "tables"), "--json")
    done = CliRunner().invoke(app, words)
    assert 4 == done.exit_code, done.stderr
    found = json.loads(done.stdout)["devices"]
    assert ["gone", "there"] == list(found)
    assert "DeviceError" == found["gone"]["error"] and "cannot be reached" in found["gone"]["message"]
    assert found["there"]["environment"]["device"].startswith("there: ")
    assert (Path(found["there"]["table"]) / "table.json").is_file()


@pytest.mark.parametrize("names", ["a,a", "a,", ",", "local,local"])
def test_a_name_twice_or_none_is_refused(names: str) -> None:
    """Before any work."""
    with pytest.raises(UsageError, match="--device orin,nano"):
        profile("zoo:resnet8", device=names, progress=lambda *_: None)


def test_an_unknown_name_among_others_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is begun on the others."""
    monkeypatch.setenv("CPD_EDGE_CONFIG", str(tmp_path))
    with pytest.raises(UsageError, match="cpd-edge devices add"):
        profile("zoo:resnet8", device="local,nobody", progress=lambda *_: None)
