"""A real sshd on this machine's loopback, with keys of its own, and agents over plain pipes."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cpd_edge.measure import ssh
from cpd_edge.measure.devices import Device
from cpd_edge.measure.ssh import Address, Link


def interpreters(oldest: tuple[int, int], below: tuple[int, int] = (3, 99)) -> list[str]:
    """Other Pythons of this machine, one of each minor version: those of pyenv, and those on the PATH."""
    places = [*os.get_exec_path()]
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    places = [*(str(p) for p in sorted(root.glob("versions/*/bin"))), *places]
    found: dict[tuple[int, int], str] = {}
    for minor in range(6, 20):
        if not oldest <= (3, minor) < below:
            continue
        for place in places:
            path = Path(place) / f"python3.{minor}"
            if path.exists() and "shims" not in place and (3, minor) not in found:
                found[3, minor] = str(path)
    return list(found.values())


def over_pipes(python: str) -> Callable[[Device], Link]:
    """What connects to an agent without ssh: the same loader, in another interpreter."""
    command = [python, "-I", "-c", ssh.REMOTE.split('"')[1]]
    return lambda device: Link(device.address, command)


def device(folder: Path, **more: Any) -> Device:
    """A device that is never reached by ssh."""
    settled = {"python": "", "telemetry_s": 0.0, **more}
    return Device("piped", "ssh://nowhere", folder=str(folder), **settled)


class Loopback:
    """An sshd of the current user on a high port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("host_key", "user_key", "other_key"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(folder / name)]
            subprocess.run(command, check=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        public = (folder / "host_key.pub").read_text()
        (folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {public}")
        shutil.copy(folder / "user_key.pub", folder / "authorized")
        self.bin = folder / "bin"
        self.bin.mkdir()
        (folder / "tmp").mkdir()
        self.python3(f'exec {sys.executable} "$@"')
        self.config = self._client("config", "known_hosts", "user_key")
        self.process = self._served()

    def python3(self, script: str) -> None:
        """What the device's `python3` does."""
        path = self.bin / "python3"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def device(self, name: str = "loop", config: Path | None = None, **more: Any) -> Device:
        """This machine as a device."""
        settled = {"folder": str(self.folder / "device"), "python": sys.executable, "telemetry_s": 0.0, **more}
        url = f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}"
        return Device(name, url, ssh_config=str(config or self.config), **settled)

    def _client(self, name: str, known: str, key: str, *more: str) -> Path:
        path = self.folder / name
        lines = [
            "Host *", f"  UserKnownHostsFile {self.folder / known}", "  GlobalKnownHostsFile /dev/null",
            "  StrictHostKeyChecking yes", f"  IdentityFile {self.folder / key}", "  IdentitiesOnly yes", *more,
        ]  # fmt: skip
        path.write_text("\n".join(lines) + "\n")
        return path

    def stranger(self) -> Path:
        """A client that has never seen the host's key."""
        return self._client("stranger", "nothing_known", "user_key")

    def intruder(self) -> Path:
        """A client with a key that the host does not know."""
        return self._client("intruder", "known_hosts", "other_key")

    def jumping(self) -> Path:
        """A client whose config knows this host by the alias `behind`, through itself as the jump host."""
        host = ["  HostName 127.0.0.1", f"  Port {self.port}", f"  User {getpass.getuser()}"]
        return self._client(
            "jumping", "known_hosts", "user_key", "Host jump", *host, "Host behind", *host, "  ProxyJump jump"
        )

    def _served(self) -> subprocess.Popen[bytes]:
        sshd = shutil.which("sshd", path=os.defpath + ":/usr/sbin:/usr/local/sbin")
        assert sshd is not None
        if os.getuid() == 0:
            os.makedirs("/run/sshd", exist_ok=True)
        lines = [
            f"Port {self.port}", "ListenAddress 127.0.0.1", f"HostKey {self.folder / 'host_key'}", "UsePAM no",
            f"AuthorizedKeysFile {self.folder / 'authorized'}", "StrictModes no", "PidFile none",
            "PasswordAuthentication no", "KbdInteractiveAuthentication no", "LogLevel ERROR", "MaxStartups 100",
            f"ForceCommand PATH={self.bin}:/usr/bin:/bin TMPDIR={self.folder / 'tmp'} "
            'exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"',
        ]  # fmt: skip
        config = self.folder / "sshd_config"
        for more in (["PerSourcePenalties no"], []):  # a newer sshd would shut out who drops often
            config.write_text("\n".join([*lines, *more]) + "\n")
            if subprocess.run([sshd, "-t", "-f", str(config)], capture_output=True).returncode == 0:
                break
        with (self.folder / "sshd.log").open("wb") as log:
            process = subprocess.Popen([sshd, "-D", "-e", "-f", str(config)], stdin=subprocess.DEVNULL, stderr=log)
        for _ in range(500):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return process
            time.sleep(0.01)
        process.kill()
        process.wait()
        pytest.skip(f"sshd does not serve here: {(self.folder / 'sshd.log').read_text()}")

    def drop_sessions(self) -> int:
        """Kills every session of the server, as a network does: the processes of sshd, not what they started.

        Returns how many processes there were.
        """
        killed = 0
        for pid in descendants(self.process.pid):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().startswith("sshd"):
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
        return killed

    def close(self) -> None:
        self.drop_sessions()
        self.process.kill()
        self.process.wait()


def descendants(pid: int) -> list[int]:
    """Processes below one."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            found = re.match(r"(\d+) \(.*\) \S (\d+)", path.read_text(), re.S)
            if found:
                parents.setdefault(int(found[2]), []).append(int(found[1]))
    out, todo = [], [pid]
    while todo:
        below = parents.get(todo.pop(), [])
        out += below
        todo += below
    return out


def served(folder: Path) -> Loopback:
    """An sshd, or a skip that says why there is none."""
    if sys.platform != "linux":
        pytest.skip("the device's side runs on Linux")
    for program, path in (("ssh", None), ("ssh-keygen", None), ("sshd", os.defpath + ":/usr/sbin:/usr/local/sbin")):
        if shutil.which(program, path=path) is None:
            pytest.skip(f"{program} is not installed (apt install openssh-server)")
    loop = Loopback(folder)
    command = Address.parse(f"ssh://{getpass.getuser()}@127.0.0.1:{loop.port}", str(loop.config)).command()[:-1]
    done = subprocess.run([*command, "true"], capture_output=True, text=True)
    if done.returncode != 0:
        loop.close()
        pytest.skip(f"sshd lets nobody in here: {done.stderr} {(folder / 'sshd.log').read_text()}")
    return loop
