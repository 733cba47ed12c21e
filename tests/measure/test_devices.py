"""Laws of the registry of devices, and of its commands."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from loopback import served
from typer.testing import CliRunner

from cpd_edge.cli.device_commands import register
from cpd_edge.errors import StoreError, UsageError
from cpd_edge.measure import devices
from cpd_edge.measure.devices import Device
from cpd_edge.measure.remote import device_runner, require_device


@pytest.fixture(autouse=True)
def own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CPD_EDGE_CONFIG", str(tmp_path / "config"))
    return tmp_path / "config"


def run(*words: str) -> tuple[int, str, Any]:
    """A command line: its exit code, its stderr, and its JSON."""
    app = typer.Typer()
    register(app)
    done = CliRunner().invoke(app, ["devices", *words, "--json"])
    return done.exit_code, done.stderr, json.loads(done.stdout or "null")


ORIN = Device("orin", "ssh://nvidia@192.168.1.20:22", python="~/venv/bin/python", telemetry_s=0.5)
NANO = Device("nano-2", "ssh://nano")


def test_what_is_added_is_what_is_read() -> None:
    """load(add(x)) == x, in alphabetical order."""
    devices.add(ORIN)
    devices.add(NANO)
    assert {"nano-2": NANO, "orin": ORIN} == devices.load()
    assert ["nano-2", "orin"] == list(devices.load())
    assert ORIN == devices.get("orin")


def test_a_name_is_taken_once_unless_it_is_to_be_replaced() -> None:
    """No device is overwritten by accident."""
    devices.add(ORIN)
    with pytest.raises(UsageError, match="--replace"):
        devices.add(Device("orin", "ssh://other"))
    devices.add(Device("orin", "ssh://other"), replace=True)
    assert "ssh://other" == devices.get("orin").url


def test_what_is_removed_is_gone() -> None:
    """The others stay."""
    devices.add(ORIN)
    devices.add(NANO)
    assert ORIN == devices.remove("orin")
    assert {"nano-2": NANO} == devices.load()
    with pytest.raises(UsageError, match="known are local, nano-2"):
        devices.get("orin")


@pytest.mark.parametrize(
    "name", ["", "local", "simulated", "-rf", "a/b", "../x", "Orin", "a b", "$(x)", "a\n", "x" * 64, ".hidden", "ö"]
)
def test_a_name_that_could_be_something_else_is_refused(name: str) -> None:
    """An option, a path, a shell's word, this machine: none is a device's name."""
    with pytest.raises(UsageError):
        Device(name, "ssh://host")


@pytest.mark.parametrize("more", [{"telemetry_s": 0.01}, {"telemetry_s": 1e9}, {"folder": ""}, {"python": "a\0b"}])
def test_settings_that_are_none_are_refused(more: dict[str, Any]) -> None:
    """Before they are written down."""
    with pytest.raises(UsageError):
        Device("orin", "ssh://host", **more)


def test_a_write_that_fails_leaves_the_old_file(own_config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry holds the old devices or the new ones, never half of them."""
    devices.add(ORIN)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(StoreError, match="cannot be written: No space left"):
        devices.add(NANO)
    monkeypatch.undo()
    monkeypatch.setenv("CPD_EDGE_CONFIG", str(own_config))
    assert {"orin": ORIN} == devices.load()
    assert ["devices.json"] == [p.name for p in own_config.iterdir()]


BROKEN = ["{", "[]", '{"format": 2, "devices": {}}', '{"format": 1, "devices": {"a": {"x": 1}}}']


@pytest.mark.parametrize("text", BROKEN)
def test_a_file_of_another_format_is_refused(text: str, own_config: Path) -> None:
    """With what is wrong, not with a traceback."""
    own_config.mkdir()
    (own_config / "devices.json").write_text(text)
    with pytest.raises(StoreError):
        devices.load()


def test_an_unknown_device_is_refused_with_the_command_that_adds_one() -> None:
    """Also where an engine is to be opened, and `local` needs no entry."""
    require_device("local", "anything")
    for refuse in (lambda: require_device("orin"), lambda: device_runner("orin", "onnxruntime", b"")):
        with pytest.raises(UsageError, match="cpd-edge devices add"):
            refuse()
    devices.add(ORIN)
    with pytest.raises(UsageError, match="--runtime onnxruntime"):
        require_device("orin", "openvino")


def test_the_commands_add_list_and_remove() -> None:
    """What they print as JSON is what the registry holds."""
    assert (0, "ssh://me@host") == (run("add", "box", "ssh://me@host")[0], devices.get("box").url)
    assert ["box"] == [row["name"] for row in run("list")[2]["devices"]]
    code, said, found = run("add", "box", "ssh://other")
    assert (2, "UsageError") == (code, found["error"])
    assert "--replace" in said
    assert 0 == run("remove", "box")[0]
    assert [] == run("list")[2]["devices"]
    assert 2 == run("probe", "box")[0]


@pytest.mark.parametrize("url", ["ssh://-oProxyCommand=x", "ssh://$(x)", "host"])
def test_the_commands_refuse_hostile_addresses(url: str) -> None:
    """As wrong usage; nothing is written."""
    assert 2 == run("add", "box", url)[0]
    assert {} == devices.load()


def test_a_device_is_added_probed_and_freed_through_a_real_sshd(tmp_path: Path) -> None:
    """The commands of docs/devices.md, from the first to the last."""
    (tmp_path / "sshd").mkdir()
    loop = served(tmp_path / "sshd")
    try:
        there = loop.device()
        options = ["--python", sys.executable, "--folder", there.folder, "--ssh-config", there.ssh_config]
        assert 0 == run("add", "loop", there.url, *options)[0]
        code, _, found = run("probe", "loop")
        assert (0, "loop", None) == (code, found["name"], found["lock"])
        assert "x86_64" != found["machine"] or "cpu-x86-64" == found["description"]
        assert found["runtimes"]["onnxruntime"]
        assert (0, None) == (run("free", "loop")[0], run("free", "loop")[2]["freed"])
        app = typer.Typer()
        register(app)
        text = CliRunner().invoke(app, ["devices", "probe", "loop"]).stdout
        assert "in use       no" in text and found["device"] in text
    finally:
        loop.close()
    assert 4 == run("probe", "loop")[0]
