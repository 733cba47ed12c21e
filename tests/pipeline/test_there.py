"""Laws of the main job on another device, over a real sshd: the local verdict, and nothing lost to a dropped link."""

from __future__ import annotations

import random
import time

import pytest
from cli.shell import Shell
from cli.worlds import PRUNE, QUICK
from measure.loopback import Loopback

from cpd_edge.cli.text import doctor_there_text
from cpd_edge.store import Run

DROPS = 5


@pytest.fixture(scope="module")
def there(shell: Shell, loop: Loopback) -> str:
    """This machine under a name of its own."""
    device = loop.device()
    words = ("--python", device.python, "--folder", device.folder, "--ssh-config", device.ssh_config)
    assert shell("devices", "add", device.name, device.url, *words, "--telemetry-s", "0").code == 0
    return device.name


def test_doctor_says_what_a_device_is_and_what_it_can_tell_apart(shell: Shell, there: str) -> None:
    """Its state and an engine against itself, timed there."""
    found = shell("doctor", "--device", there, "--json").json
    assert found["name"] == there and found["cores"] >= 1 and found["aa"]["samples"] > 0
    assert found["aa"]["runtime"] == "onnxruntime" and found["aa"]["noise_floor_percent"] >= 0
    told = doctor_there_text(found)
    assert "against itself is" in told and found["device"] in told


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("--device", "nobody"), "cpd-edge devices add"),
        (("--device", "loop", "--runtime", "openvino"), "other devices"),
    ],
)
def test_doctor_refuses_what_is_not_there(words: tuple[str, ...], hint: str, shell: Shell, there: str) -> None:
    """Before any connection, with what to type."""
    done = shell("doctor", *words)
    assert done.code == 2 and hint in done.err


@pytest.mark.slow
def test_prune_over_a_dropping_connection_gives_the_local_verdict(shell: Shell, loop: Loopback, there: str) -> None:
    """Five drops at random times: the run ends as the local one does, with every sample of table and measurement."""
    here = shell(*PRUNE, "--speedup", "1.2", *QUICK, "--out", "here", "--json")
    assert here.code == 0, here.err
    call = shell.start(*PRUNE, "--speedup", "1.2", *QUICK, "--device", there, "--out", "there", "--json")
    drawn = random.Random(0)
    call.wait_until(lambda: (shell.folder / "there").is_dir())
    for _ in range(DROPS):
        time.sleep(drawn.uniform(0.5, 4))
        loop.drop_sessions()
    done = call.done()
    assert done.code == 0, done.err
    assert done.json["verdict"] == here.json["verdict"] == "PASS"
    one, other = (Run(shell.folder / name).record for name in ("here", "there"))
    assert one["profile"]["samples"] == other["profile"]["samples"]
