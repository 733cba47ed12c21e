"""Laws of the agent, run as a device runs it: alone, isolated, by this and by other Pythons, from an empty folder."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from boards import fake_board
from loopback import device, interpreters, over_pipes

from cpd_edge.errors import RuntimeMissing
from cpd_edge.measure import ssh
from cpd_edge.measure.devices import Device
from cpd_edge.measure.doctor import tiny_model
from cpd_edge.measure.ssh import DeviceError, Link, LinkLost
from cpd_edge.measure.station import Session, Station

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the device's side runs on Linux")

AGENT = Path(ssh.__file__).with_name("agent.py")
OTHERS = interpreters((3, 8))
TOO_OLD = interpreters((3, 6), (3, 8))
PATIENCE_S = 60.0
"""How long what is bound to come may take on a machine that has other work."""


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock of the test's own, and an empty folder to start in."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.chdir(tmp_path / "empty")


@contextlib.contextmanager
def session(folder: Path, python: str = sys.executable) -> Iterator[Session]:
    found = Session(device(folder), lambda _: None, over_pipes(python))
    try:
        yield found
    finally:
        found.link.close()


@contextlib.contextmanager
def job(folder: Path, **more: Any) -> Iterator[Station]:
    found = Station(device(folder, **more.pop("device", {})), connect=over_pipes(sys.executable), **more)
    try:
        yield found
    finally:
        found.close()


def worker_of(folder: Path, station: Station) -> int:
    state = json.loads((folder / "jobs" / station.job / "state").read_text())
    return int(state["pid"])


def became(condition: Callable[[], bool]) -> None:
    """Waits for what is bound to come."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_it_stands_alone() -> None:
    """It imports the standard library, and only the reader of this machine's environment takes something from it."""
    tree = ast.parse(AGENT.read_text(), feature_version=(3, 8))
    found = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    found |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert found <= sys.stdlib_module_names
    sources = [line for p in AGENT.parents[1].rglob("*.py") for line in p.read_text().splitlines()]
    taken = [line for line in sources if "measure.agent" in line or "measure import agent" in line]
    assert taken == ["from cpd_edge.measure import agent"]


@pytest.mark.skipif(not OTHERS, reason="no other Python from 3.8 on is installed")
@pytest.mark.parametrize("python", OTHERS, ids=lambda path: Path(path).name)
def test_other_pythons_run_it_and_say_what_they_lack(python: str, tmp_path: Path) -> None:
    """Probe, files and jobs need the standard library alone; an engine says which package to install."""
    with session(tmp_path / "device", python) as found:
        state = found.call("probe")
        assert f"python{'.'.join(state['python'].split('.')[:2])}" == Path(python).name
        assert state["cores"] >= 1 and state["disk_free_bytes"] > 0
    found = Station(device(tmp_path / "device"), connect=over_pipes(python))
    try:
        model = found.send(tiny_model())
        options = {"threads": 1, "batch": 1, "seed": 0, "profile": False, "provider": "cpu", "ring": None}
        if state["runtimes"]["onnxruntime"] and state["runtimes"]["numpy"]:
            assert found.ask("load", engine=1, sha256=model, **options)[0]["load_ms"]["first_load"] > 0
        else:
            with pytest.raises(RuntimeMissing, match="pip install"):
                found.ask("load", engine=1, sha256=model, **options)
    finally:
        found.close()


@pytest.mark.skipif(not TOO_OLD, reason="no Python before 3.8 is installed")
@pytest.mark.parametrize("python", TOO_OLD, ids=lambda path: Path(path).name)
def test_a_python_that_is_too_old_is_named(python: str, tmp_path: Path) -> None:
    """Not a syntax error, but the version that is there and the one that is needed."""
    with pytest.raises(DeviceError, match=r"3\.[67]\.\d+\n.*3\.8 or newer") as caught, session(tmp_path, python):
        pass
    assert "old-python" == caught.value.name


def test_what_an_agent_said_before_it_went_is_read(tmp_path: Path) -> None:
    """It may have gone before the first command is sent, and it has said why."""

    class Went(Link):
        def send(self, message: Mapping[str, Any]) -> None:
            raise LinkLost("Broken pipe")

    said = json.dumps({"gone": {"error": "old-python", "message": "python3 on the device is 3.7.1", "hint": ""}})
    command = [sys.executable, "-c", f"import sys; sys.stdin.buffer.read(1); print({said!r})"]
    with pytest.raises(DeviceError, match=r"is 3\.7\.1\n.*3\.8 or newer"):
        Session(device(tmp_path), lambda _: None, lambda where: Went(where.address, command))


def test_it_runs_as_a_file_too(tmp_path: Path) -> None:
    """`python3 -I agent.py`, typed by hand, answers JSON lines."""
    hello = {"do": "hello", "id": 5, "folder": str(tmp_path / "device"), "python": "", "version": 1}
    done = subprocess.run(
        [sys.executable, "-I", str(AGENT)], input=json.dumps(hello).encode() + b"\n", stdout=subprocess.PIPE, check=True
    )
    assert 5 == json.loads(done.stdout)["re"]


def test_a_file_is_sent_on_from_where_it_broke_off(tmp_path: Path) -> None:
    """Half now, half over another connection; the hash decides."""
    import base64

    data = os.urandom(300_000)
    name = hashlib.sha256(data).hexdigest()
    for at, end, state in ((0, 100_000, (100_000, False)), (100_000, 300_000, (300_000, True))):
        with session(tmp_path / "device") as found:
            assert at == found.call("have", sha256=name)["bytes"]
            part = base64.b64encode(data[at:end]).decode()
            answer = found.call("put", sha256=name, at=at, data=part, size=len(data))
            assert state == (answer["bytes"], answer["whole"])
            assert end == found.call("put", sha256=name, at=at, data=part, size=len(data))["bytes"]  # sent twice
    assert data == (tmp_path / "device/files" / name).read_bytes()


def test_a_file_that_arrives_damaged_is_refused(tmp_path: Path) -> None:
    """A wrong hash leaves nothing behind."""
    with session(tmp_path / "device") as found:
        with pytest.raises(DeviceError, match="did not arrive") as caught:
            found.call("put", sha256="0" * 64, at=0, data="aGVsbG8=", size=5)
        assert "damaged" == caught.value.name
        assert 0 == found.call("have", sha256="0" * 64)["bytes"]


@pytest.mark.parametrize("name", ["../../etc/passwd", "a" * 63, "A" * 64, "a" * 64 + "\n", ""])
def test_names_that_could_be_paths_are_refused(name: str, tmp_path: Path) -> None:
    """A file is named by its hash and by nothing else."""
    with session(tmp_path / "device") as found, pytest.raises(DeviceError) as caught:
        found.call("have", sha256=name)
    assert "bad-name" == caught.value.name


def test_a_full_disk_is_named_when_a_file_is_sent(tmp_path: Path) -> None:
    """ENOSPC of the real kernel, from /dev/full, comes back as `disk-full` with what to do."""
    data = b"x" * 100_000
    part = tmp_path / "device/files" / (hashlib.sha256(data).hexdigest() + ".part")
    part.parent.mkdir(parents=True)
    part.symlink_to("/dev/full")
    with job(tmp_path / "device") as found:
        with pytest.raises(DeviceError, match="free some space") as caught:
            found.send(data)
        assert "disk-full" == caught.value.name
        part.unlink()
        assert found.send(data) in part.name  # and the job lives on


def test_a_full_disk_is_named_when_an_answer_is_written(tmp_path: Path) -> None:
    """The worker has room set aside for its last words, and what fitted before is whole."""
    limited = tmp_path / "limited"
    limited.write_text(f'#!/bin/sh\nulimit -f 16\nexec {sys.executable} "$@"\n')  # the worker's logs end at 8 KiB
    limited.chmod(0o755)
    answers = 0
    with job(tmp_path / "device", device={"python": str(limited)}) as found:
        with pytest.raises(DeviceError, match="no space") as caught:
            while answers < 1000:
                assert found.ask("moment")[0]["moment"]["load_1m"] is not None
                answers += 1
        assert "disk-full" == caught.value.name
        assert not found.alive and answers > 10


def test_a_second_host_is_told_who_holds_the_device_and_since_when(tmp_path: Path) -> None:
    """One job at a time, whatever folder the other one uses; the next one starts when the first has ended."""
    with job(tmp_path / "device") as first:
        begun = time.strftime("%Y-%m-%d")
        with pytest.raises(DeviceError) as caught, job(tmp_path / "elsewhere"):
            pass
        assert "busy" == caught.value.name
        assert f"(process {os.getpid()}) since {begun}" in caught.value.what
        assert "devices free piped" in caught.value.hint
        assert first.ask("moment")[0]["moment"]["captured_at"]
    with job(tmp_path / "elsewhere") as second:
        assert second.alive
    assert [] == list((tmp_path / "device/jobs").iterdir())


def test_a_killed_worker_is_named_and_its_lock_breaks(tmp_path: Path) -> None:
    """The system lets go of a dead process's lock; the host hears of the death."""
    with job(tmp_path / "device") as first:
        os.kill(worker_of(tmp_path / "device", first), signal.SIGKILL)
        with pytest.raises(DeviceError, match="was killed") as caught:
            first.ask("moment")
        assert "worker-killed" == caught.value.name
        with job(tmp_path / "elsewhere") as second:
            assert second.ask("moment")


def test_a_job_whose_host_is_gone_frees_the_device(tmp_path: Path) -> None:
    """After the time that it lingers, and not before its host is gone."""
    first = Station(device(tmp_path / "device"), connect=over_pipes(sys.executable), linger_s=4.0)
    heard = tmp_path / "device/jobs" / first.job / "alive"
    begun = heard.stat().st_mtime
    became(lambda: heard.stat().st_mtime > begun + 4)
    assert first.ask("moment")  # a host that listens keeps it
    first._session.link.close()
    with session(tmp_path / "device") as found:
        became(lambda: found.call("probe")["lock"] is None)
        assert heard.stat().st_mtime < time.time() - 4


def test_a_device_held_for_a_dead_process_of_ours_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was killed does not shut out the one that resumes it."""
    from cpd_edge.measure import station

    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    mine = station.holder()
    monkeypatch.setattr(station, "holder", lambda: mine.replace(f"process {os.getpid()}", f"process {child.pid}"))
    first = Station(device(tmp_path / "device"), connect=over_pipes(sys.executable))
    first._session.link.close()
    monkeypatch.undo()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    with job(tmp_path / "device") as second:
        assert second.ask("moment")


def test_a_first_connection_that_drops_is_made_again(tmp_path: Path) -> None:
    """It may drop before the agent has said hello; where nobody is, nothing is tried twice."""
    tried: list[str] = []

    def connect(said: str) -> Callable[[Device], Link]:
        def link(where: Device) -> Link:
            tried.append(said)
            shout = ["sh", "-c", 'echo "$0" >&2; exit 255', said]
            return Link(where.address, shout) if len(tried) < 3 else over_pipes(sys.executable)(where)

        return link

    found = Station(device(tmp_path / "device"), connect=connect("Connection to host closed by remote host."))
    assert found.ask("moment") and 3 == len(tried)
    found.close()
    tried.clear()
    with pytest.raises(DeviceError) as caught:
        Station(device(tmp_path / "device"), connect=connect("ssh: connect to host x: Connection refused"))
    assert ("unreachable", 1) == (caught.value.name, len(tried))


def test_a_device_whose_connections_are_lost_at_once_is_given_up_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says hello each time, and never gets as far as the job."""
    call, until = Session.call, time.monotonic() + PATIENCE_S

    def lost(self: Session, do: str, timeout_s: float | None = None, **fields: Any) -> Any:
        if do == "attach":
            assert time.monotonic() < until
            raise LinkLost
        return call(self, do, timeout_s, **fields)

    with job(tmp_path / "device", patience_s=0.5) as found:
        monkeypatch.setattr(Session, "call", lost)
        found._session.link.process.kill()
        with pytest.raises(DeviceError, match=r"did not come back within 0\.5 s: each connection") as caught:
            found.ask("moment")
        assert "unreachable" == caught.value.name
        monkeypatch.setattr(Session, "call", call)


def test_a_request_that_is_sent_twice_is_done_once(tmp_path: Path) -> None:
    """Numbers of requests only grow, so a host may repeat what it is not sure of."""
    with job(tmp_path / "device") as found:
        for _ in range(3):
            found._session.call("ask", seq=1, request={"do": "moment"})
        found._session.call("ask", seq=2, request={"do": "moment"})
        answers = tmp_path / "device/jobs" / found.job / "answers"
        became(lambda: answers.exists() and len(answers.read_text().splitlines()) >= 2)
        assert [1, 2] == [json.loads(line)["seq"] for line in answers.read_text().splitlines()]


def test_a_board_is_described_without_privileges(tmp_path: Path) -> None:
    """Model, release, power mode, clocks, memory, and sensors as their files have them."""
    fake_board(tmp_path / "board")
    with session(tmp_path / "device") as found:
        state = found.call("probe", root=str(tmp_path / "board"))
    assert "NVIDIA Jetson Orin Nano Developer Kit" == state["device"]
    assert ("36.4.4", "2", "locked", "schedutil") == tuple(
        state[k] for k in ("l4t", "power_mode", "clocks", "governor")
    )
    assert 7802820 << 10 == state["memory_bytes"]
    rails = [["ina3221", "VDD_IN", 4984, 1856, None], ["ina238", "", None, None, 26686000]]
    assert [*rails, ["ina3221x", "POM_5V_IN", None, None, 2532]] == state["sensors"]["rails"]
    assert [["cpu-thermal", 49468], ["gpu-thermal", None]] == state["sensors"]["zones"]
    assert {"oc3": 27} == state["sensors"]["overcurrent"]


def test_telemetry_is_streamed_while_the_job_runs_and_means_what_it_says(tmp_path: Path) -> None:
    """What the sampler writes is what the host's reader understands, on the clock of the samples."""
    from cpd_edge.measure.telemetry import reading, total_mw

    fake_board(tmp_path / "board")
    before = time.perf_counter_ns()
    with job(tmp_path / "device", device={"telemetry_s": 0.1}, root=str(tmp_path / "board")) as found:
        became(lambda: bool(found.ask("moment")) and len(found.telemetry) >= 4)
        readings = [reading(raw) for raw in found.telemetry]
    assert before < readings[0].time_ns < readings[-1].time_ns < time.perf_counter_ns()
    assert (4984 * 1856 / 1e3, "module (VDD_IN)") == total_mw(readings[0].power_mw)
    assert (625, (1510,), {"cpu": 49.468}) == (readings[0].gpu_mhz, readings[0].cpu_mhz, readings[0].temperature_c)
