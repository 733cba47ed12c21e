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
    assert shell("devices", "add", "gone", "ssh://nobody@127.0.0.1:9").code == 0
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
        (("--device", "gone", "--runtime", "openvino"), "other devices run"),
        (("--device", "gone", "--gpu"), "on it: cpd-edge doctor --gpu"),
        (("--device", "simulated"), "arithmetic"),
        (("--runtime", "tensorrt"), "this machine: cpd-edge doctor"),
    ],
)
def test_doctor_refuses_what_is_not_there(words: tuple[str, ...], hint: str, shell: Shell, there: str) -> None:
    """Before any connection, with what to type."""
    done = shell("doctor", *words)
    assert done.code == 2 and hint in done.err


@pytest.mark.slow
def test_prune_over_a_dropping_connection_ends_as_the_local_one_does(shell: Shell, loop: Loopback, there: str) -> None:
    """Five drops at random times: a verdict, on as many samples in the table, with every raw sample in its folder."""
    ended = []
    for device in ("local", there):
        call = shell.start(*PRUNE, "--speedup", "1.2", *QUICK, "--device", device, "--out", f"on-{device}", "--json")
        drawn, drops = random.Random(0), 0
        while device == there and drops < DROPS:
            time.sleep(drawn.uniform(0.3, 1.5))
            drops += loop.drop_sessions() > 0
            assert call.process.is_alive(), call.done().err
        done = call.done()
        assert done.code in (0, 1, 3), done.err
        run = Run(shell.folder / f"on-{device}")
        assert run.load_measurement("pruned").samples_ns.size > 0
        ended.append((run.record["profile"]["samples"], done.json.keys()))
    assert ended[0] == ended[1]
