"""Laws of the remote path, through a real sshd on loopback with its own keys, and of addresses that are hostile."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loopback import Loopback, descendants, served

from cpd_edge.errors import EnvironmentMismatch, ModelError, RuntimeMissing, UsageError
from cpd_edge.measure import OnnxRunner, Protocol, compare, measure, require_comparable
from cpd_edge.measure.doctor import tiny_model
from cpd_edge.measure.protocol import INSIDE
from cpd_edge.measure.remote import RemoteRunner
from cpd_edge.measure.site import Pace, times_ms
from cpd_edge.measure.ssh import OLDEST, REMOTE, Address, DeviceError, explain
from cpd_edge.measure.station import Session, Station, free, probe

SHORT = Protocol(warmup_s=0.05, block_s=0.01, target=0.2, limit_s=3.0)


@pytest.fixture(scope="module")
def shared(loop: Loopback) -> Iterator[Station]:
    """A job that well-behaved tests share."""
    found = Station(loop.device())
    yield found
    found.close()


@pytest.fixture
def runner(shared: Station) -> Iterator[RemoteRunner]:
    with contextlib.closing(RemoteRunner(shared, tiny_model())) as found:
        yield found


@pytest.mark.parametrize(
    "url",
    [
        "ssh://-oProxyCommand=touch x", "ssh://-l", "ssh://user@-host", "ssh://-oX@host", "ssh://host name",
        "ssh://$(touch x)", "ssh://`id`", "ssh://a;b", "ssh://a'b", 'ssh://a"b', "ssh://host\n-oX=y", "ssh://a|b",
        "ssh://user name@host", "ssh://$(x)@host", "ssh://@host", "ssh://host:port", "ssh://host:99999",
        "ssh://host/path", "ssh://host?x", "ssh://host#x", "ssh://", "host", "http://host", "ssh://u:secret@host", "",
    ],
)  # fmt: skip
def test_what_is_no_plain_address_is_refused(url: str) -> None:
    """An option in a host's place, a shell's characters, a password, a path: refused before any process is made."""
    with pytest.raises(UsageError):
        Address.parse(url)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("ssh://orin", Address("orin")),
        ("ssh://nvidia@192.168.1.20:2222", Address("192.168.1.20", "nvidia", 2222)),
        ("ssh://anna@[fe80::1%eth0]:22", Address("fe80::1%eth0", "anna", 22)),
        ("ssh://Jetson_1.local", Address("Jetson_1.local")),
    ],
)
def test_a_plain_address_is_read(url: str, expected: Address) -> None:
    """User and port are the config's where they are not given."""
    assert expected == Address.parse(url)


def test_nothing_of_the_user_reaches_a_shell() -> None:
    """The command for the device is one constant, behind the `--` that ends options."""
    command = Address("host", "user", 22, "/a folder/$(x)").command()
    assert ["--", "host", REMOTE] == command[-3:]
    assert "BatchMode=yes" in command
    assert "/a folder/$(x)" == command[command.index("-F") + 1]
    assert not set("$`\\!\n") & set(REMOTE)


@pytest.mark.parametrize(
    ("code", "said", "name", "hint"),
    [
        (255, "Host key verification failed.", "host-key", "ssh -p 2222 anna@orin"),
        (255, "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @", "host-key", "ssh-keygen -R '[orin]:2222'"),
        (255, "anna@orin: Permission denied (publickey).", "refused", "ssh-copy-id -p 2222 anna@orin"),
        (127, "bash: line 1: python3: command not found", "python-missing", "apt install python3"),
        (255, "Connection to orin closed by remote host.", "dropped", "ssh -p 2222 anna@orin true"),
        (255, "ssh: Could not resolve hostname orin", "unreachable", "ssh -p 2222 anna@orin true"),
    ],
)
def test_what_ssh_says_becomes_a_name_and_the_next_thing_to_type(code: int, said: str, name: str, hint: str) -> None:
    """Every failure has a hint that can be pasted."""
    found = explain(Address("orin", "anna", 2222), code, said)
    assert name == found.name
    assert hint in found.hint


def test_a_host_whose_key_is_unknown_is_not_talked_to(loop: Loopback) -> None:
    """Host keys are checked by ssh's own configuration; we say what to type."""
    with pytest.raises(DeviceError, match=f"ssh -F .*stranger -p {loop.port}") as caught:
        probe(loop.device(config=loop.stranger()))
    assert "host-key" == caught.value.name


def test_an_alias_behind_a_jump_host_is_reached_as_the_config_says(loop: Loopback) -> None:
    """Alias, port, user and ProxyJump are ssh's: the address is the alias alone, and two connections carry it."""
    there = replace(loop.device("behind", config=loop.jumping()), url="ssh://behind")
    with contextlib.closing(Session(there, lambda _: None).link) as link:
        assert sum("-W" in arguments(pid) for pid in descendants(link.process.pid)) == 1
    assert os.cpu_count() == probe(there)["cores"]


def arguments(pid: int) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return []


def test_a_key_that_is_not_let_in_is_named(loop: Loopback) -> None:
    """No password is asked for: it fails at once, with ssh-copy-id as the hint."""
    with pytest.raises(DeviceError, match="ssh-copy-id") as caught:
        probe(loop.device(config=loop.intruder()))
    assert "refused" == caught.value.name


def test_a_device_without_python_or_with_an_old_one_is_named(loop: Loopback) -> None:
    """What the shell there says is understood."""
    try:
        loop.python3("echo 'bash: python3: command not found' >&2; exit 127")
        with pytest.raises(DeviceError) as caught:
            probe(loop.device())
        assert "python-missing" == caught.value.name
    finally:
        loop.python3(f'echo "Welcome to the device {{"; exec {sys.executable} "$@"')  # and a greeting on stdout


def test_a_device_is_probed(loop: Loopback) -> None:
    """What it is, and what it can run; the words of a login on stdout do no harm."""
    found = probe(loop.device())
    assert os.cpu_count() == found["cores"]
    assert found["runtimes"]["onnxruntime"] and found["runtimes"]["numpy"]
    with pytest.raises(DeviceError, match="no interpreter"):
        probe(loop.device(python="/nowhere/python3"))


@pytest.mark.parametrize(
    "folder", ["a b", "$(touch pwned)", "'; touch pwned; '", 'x"`touch pwned`', "-rf", "new\nline"]
)
def test_hostile_folders_on_the_device_are_only_names(folder: str, loop: Loopback) -> None:
    """They travel as JSON: a folder of that very name is made, and nothing is run."""
    there = loop.folder / "hostile" / folder
    found = Session(loop.device(folder=str(there)), lambda _: None)
    assert {"bytes": 0, "whole": False, "re": 2} == found.call("have", sha256="0" * 64)
    found.link.close()
    assert (there / "files").is_dir()
    assert not list(loop.folder.rglob("pwned"))


def test_the_device_computes_what_this_machine_computes(runner: RemoteRunner) -> None:
    """Outputs of a feed of any batch, bit for bit where the runtime is the same."""
    feed = np.random.default_rng(1).standard_normal((3, 3, 32, 32)).astype(np.float32)
    with contextlib.closing(OnnxRunner(tiny_model())) as here:
        assert np.array_equal(here.outputs(feed), runner.outputs(feed))


def test_its_environment_names_the_device_and_never_mixes_with_this_machine(runner: RemoteRunner) -> None:
    """Even on the same machine: a number measured there is not one measured here."""
    assert runner.environment["device"].startswith("loop: ")
    with contextlib.closing(OnnxRunner(tiny_model())) as here:
        assert set(here.environment) <= set(runner.environment)
        with pytest.raises(EnvironmentMismatch, match="device"):
            require_comparable(here.environment, runner.environment)
        with pytest.raises(UsageError, match="different devices"), contextlib.suppress(EnvironmentMismatch):
            from cpd_edge.measure.site import site_of

            site_of([here, runner], time.perf_counter_ns, time.sleep)


def test_measuring_there_obeys_the_protocol(runner: RemoteRunner) -> None:
    """Blocks, starts and samples as of a local engine; the stop rule is ours, the clock the device's."""
    found = measure(runner, "it", SHORT)
    assert INSIDE == found.stop
    assert len(found.samples_ns) == len(found.starts_ns) == len(found.blocks)
    assert list(range(found.blocks[-1] + 1)) == sorted(set(found.blocks.tolist()))
    assert np.all(np.diff(found.starts_ns) >= found.samples_ns[:-1])
    assert found.environment["protocol"] == SHORT.words
    assert set(found.environment) >= {"pinned", "load_1m", "power_mode", "clocks", "l4t"}


def test_two_engines_there_alternate_in_one_window(shared: Station, runner: RemoteRunner) -> None:
    """ABBA on the device's clock, and the slower one comes out slower."""
    with contextlib.closing(RemoteRunner(shared, tiny_model((3, 64, 64, 64)))) as larger:
        found = compare(larger, runner, ("larger", "small"), SHORT)
    starts = sorted(
        [(int(t), "a", int(b)) for t, b in zip(found.a.starts_ns, found.a.blocks, strict=True)]
        + [(int(t), "b", int(b)) for t, b in zip(found.b.starts_ns, found.b.blocks, strict=True)]
    )
    order = [key for key, _ in dict.fromkeys((name, block) for _, name, block in starts)]
    assert list("abba") * (len(order) // 4) == order
    assert "faster" == found.outcome


def test_paced_mode_waits_there(runner: RemoteRunner) -> None:
    """One inference in each frame period of the device's clock."""
    visits = runner.site.visit([runner], Pace(30_000_000, 5_000_000), 2, 10**10)
    assert 2 == len(visits.blocks)
    for block in visits.blocks:
        assert np.all(np.diff(np.asarray(block.starts_ns) // 5_000_000) > 0)


def test_single_inferences_are_timed_there_too(runner: RemoteRunner) -> None:
    """A loop over `run` would time the network: the site makes the loop."""
    found = times_ms(runner, 20, time.perf_counter_ns)
    assert (20,) == found.shape
    begin = time.perf_counter_ns()
    runner.run()
    assert np.median(found) < (time.perf_counter_ns() - begin) / 1e6


@pytest.mark.parametrize("profile", [False, True])
def test_the_profiler_there_gives_the_kernels_that_it_gives_here(profile: bool, shared: Station) -> None:
    """Names, operators and order of a local profile; times are the device's."""
    with contextlib.closing(RemoteRunner(shared, tiny_model(), profile=profile)) as there:
        found = there.kernel_times(5)
    with contextlib.closing(OnnxRunner(tiny_model())) as here:
        expected = here.kernels(5)
    assert [(k.name, k.op, k.order) for k in expected] == [(k.name, k.op, k.order) for k in found.kernels]
    assert all(k.ms.shape == (5,) and np.all(k.ms >= 0) for k in found.kernels)
    assert 0 < sum(float(k.ms.mean()) for k in found.kernels) <= 1.05 * float(found.totals_ms.mean())


def test_inputs_that_are_given_are_the_ring_there(shared: Station) -> None:
    """Samples travel as a file; the range that the environment declares is theirs."""
    images = np.random.default_rng(0).uniform(3, 4, (20, 3, 32, 32)).astype(np.float32)
    with contextlib.closing(RemoteRunner(shared, tiny_model(), batch=2, sample_input=images)) as there:
        assert 3 <= there.environment["input_low"] < there.environment["input_high"] <= 4
        assert "2x3x32x32" == there.environment["shape"]


def test_what_the_runtime_there_does_not_take_is_refused_in_its_words(shared: Station) -> None:
    """A broken model is the model's fault, a provider that is not there the device's; the job lives on."""
    with pytest.raises(ModelError, match="does not take the model"):
        RemoteRunner(shared, b"no model at all")
    with pytest.raises(RuntimeMissing, match="CUDAExecutionProvider"):
        RemoteRunner(shared, tiny_model(), provider="cuda")
    with contextlib.closing(RemoteRunner(shared, tiny_model())) as found:
        assert found.warm_load_ms() > 0


def test_a_file_that_the_device_threw_away_is_sent_again(shared: Station, loop: Loopback) -> None:
    """Its cache is limited: what is missing when an engine is opened comes again."""
    model = tiny_model((3, 8))
    name = shared.send(model)
    sent = shared.send

    def forget(data: bytes) -> str:
        found = sent(data)
        shared.send = sent  # type: ignore[method-assign]
        (loop.folder / "device/files" / name).unlink()
        return found

    shared.send = forget  # type: ignore[method-assign]
    with contextlib.closing(RemoteRunner(shared, model)) as found:
        assert found.environment["runtime"] == "onnxruntime"


class Saboteur(threading.Thread):
    """Kills the connection again and again: now the client, now the server's session, at random moments."""

    def __init__(self, station: Station, loop: Loopback, times: int) -> None:
        super().__init__()
        self.station, self.loop, self.times = station, loop, times
        self.random = random.Random(3)
        self.done = 0

    def run(self) -> None:
        for i in range(self.times):
            before = self.station.drops
            time.sleep(self.random.uniform(0.05, 0.4))
            if i % 2:
                self.loop.drop_sessions()
            else:
                os.kill(self.station._session.link.process.pid, signal.SIGKILL)
            end = time.monotonic() + 20
            while self.station.drops == before and time.monotonic() < end:
                time.sleep(0.01)
            self.done += self.station.drops > before


def logged(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_connections_that_drop_at_random_lose_nothing(loop: Loopback, shared: Station) -> None:
    """Five kills within one measurement: what arrives is what the device wrote down, each visit once, in order."""
    with contextlib.closing(RemoteRunner(shared, tiny_model())) as runner:
        saboteur = Saboteur(shared, loop, 5)
        before = shared.drops
        saboteur.start()
        visits = runner.site.visit([runner, runner], Pace(5_000_000), 600, int(60e9))
        while saboteur.is_alive():
            assert shared.ask("moment")
        saboteur.join()
        log = logged(loop.folder / "device/jobs" / shared.job / "answers")
    assert 5 == saboteur.done == shared.drops - before
    numbers = [line["seq"] for line in log if line["kind"] == "done"]
    assert list(range(1, len(numbers) + 1)) == numbers  # no request was lost, none was done twice
    (asked,) = {line["seq"] for line in log if line["kind"] == "visit" and len(line["blocks"]) == 2}
    written = [line for line in log if line["seq"] == asked and line["kind"] == "visit"]
    assert list(range(600)) == [line["visit"] for line in written]
    expected = [block for line in written for block in line["blocks"]]
    assert expected == [[list(b.samples_ns), list(b.starts_ns)] for b in visits.blocks]


def test_a_drop_while_a_file_is_sent_sends_the_rest(loop: Loopback, shared: Station) -> None:
    """It goes on from what arrived, and what arrived is whole."""
    data = os.urandom(12 << 20)
    saboteur = Saboteur(shared, loop, 2)
    saboteur.start()
    name = shared.send(data)
    while saboteur.is_alive():
        shared.ask("moment")
    assert 2 == saboteur.done
    assert data == (loop.folder / "device/files" / name).read_bytes()


def test_a_device_that_stays_away_is_given_up_with_the_way_back(tmp_path: Path) -> None:
    """After the patience that was agreed on, by name, with what to do once it is there again."""
    alone = served(tmp_path)
    found = Station(alone.device(), patience_s=0.5)
    alone.close()
    with pytest.raises(DeviceError, match="--resume") as caught:
        found.ask("moment")
    assert "unreachable" == caught.value.name
    found.close()
    worker = json.loads((tmp_path / "device/jobs" / found.job / "state").read_text())["pid"]
    os.kill(worker, signal.SIGTERM)


def test_another_host_is_told_and_may_free_the_device(loop: Loopback, tmp_path: Path) -> None:
    """Two hosts at once: the second hears who holds it, and ends that job only when told to."""
    alone = served(tmp_path)
    try:
        first = Station(alone.device())
        with pytest.raises(DeviceError, match=r"in use by .* since \d{4}-") as caught:
            Station(alone.device("other"))
        assert "busy" == caught.value.name
        assert first.ask("moment")
        freed = free(alone.device("other"))
        assert freed is not None and first.job == freed["job"]
        with pytest.raises(DeviceError) as ended:
            first.ask("moment")
        assert ended.value.name in ("ended", "no-job")
        assert free(alone.device("other")) is None
        first.close()
    finally:
        alone.close()


def test_a_python_older_than_the_oldest_is_refused_before_it_reads_the_agent() -> None:
    """The loader says so in an answer of its own; here in one that thinks the oldest is still to come."""
    loader = REMOTE.split('"')[1]
    assert f"<{OLDEST} " in loader
    command = [sys.executable, "-I", "-c", loader.replace(str(OLDEST), "(99,)")]
    said = subprocess.run(command, input=b"1\n(", stdout=subprocess.PIPE, check=True).stdout
    assert json.loads(said)["gone"]["error"] == "old-python"
