"""Links to a device's agent over the system's `ssh`: its config, agent, ProxyJump and host keys just work.

No text of a user reaches a shell: the remote command is one constant, and everything else travels as JSON on stdin.
Names that `ssh` itself could read as an option or that hold anything but plain characters are refused.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import queue
import re
import shlex
import shutil
import subprocess
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from cpd_edge.errors import CpdError, RuntimeMissing, UsageError

OLDEST = (3, 8)
"""Oldest Python that the agent runs on."""

_LOADER = (
    "import sys,io,json;"
    "f=io.BufferedReader(io.FileIO(0,closefd=False),1);"
    "s=f.read(int(f.readline()));"  # to the end first: who does not read it has the host write into a closed pipe
    f"sys.version_info<{OLDEST} and "
    "sys.exit(print(json.dumps({'gone':{'error':'old-python',"
    "'message':'python3 on the device is '+sys.version.split()[0],'hint':''}})));"
    "exec(compile(s,'agent.py','exec'),{'__name__':'__main__','SOURCE':s})"
)
REMOTE = 'exec python3 -I -c "' + _LOADER + '"'
"""What the device's shell is given, always the same: Python, and a loader that reads the agent from stdin."""

_OPTIONS = ("BatchMode=yes", "ConnectTimeout=15", "ServerAliveInterval=10", "ServerAliveCountMax=3")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*|[0-9A-Fa-f:.]+(%[A-Za-z0-9]+)?")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*")


class DeviceError(CpdError):
    """A device that cannot be reached, or that cannot do what was asked.

    Args:
        name: the failure's name (`busy`, `disk-full`, `old-python`, `worker-killed`, `host-key` ...).
    """

    exit_code = 4

    def __init__(self, what: str, *, hint: str = "", name: str = "failed") -> None:
        super().__init__(what, hint=hint)
        self.name = name


class LinkLost(Exception):
    """The connection dropped. What the device does goes on; see `Station`, which comes back."""


@dataclass(frozen=True)
class Address:
    """Where `ssh` goes: a host, or an alias of the user's ssh config.

    Attributes:
        host: name, alias or address.
        user: None leaves it to ssh's config, and so does `port`.
        config: file given to ssh as `-F`.
    """

    host: str
    user: str | None = None
    port: int | None = None
    config: str | None = None

    @classmethod
    def parse(cls, url: str, config: str | None = None) -> Address:
        """`ssh://[user@]host[:port]` as an address.

        Raises:
            UsageError: it is none, or a part of it is not plain.
        """
        hint = "for example ssh://nvidia@192.168.1.20 or ssh://orin, an alias of ~/.ssh/config"
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise UsageError(f"{url!r} is no address", hint=hint) from None
        if "\n" in url or "\r" in url or "\t" in url or _more(parts):
            raise UsageError(f"{url!r} is no address of the form ssh://[user@]host[:port]", hint=hint)
        if parts.password is not None:
            raise UsageError("an address holds no password", hint="use a key: ssh-copy-id puts it on the device")
        host = parts.netloc.rpartition("@")[2]
        host = host[1 : host.index("]")] if host.startswith("[") and "]" in host else host.partition(":")[0]
        if not _HOST.fullmatch(host):
            raise UsageError(f"{host!r} is no host name", hint=hint)
        user = parts.netloc.rpartition("@")[0] or None
        if user is not None and not _USER.fullmatch(user):
            raise UsageError(f"{user!r} is no user name", hint=hint)
        if "@" in parts.netloc and user is None:
            raise UsageError(f"{url!r} has an empty user name", hint=hint)
        return cls(host, user, port, config)

    def command(self) -> list[str]:
        """The arguments of the program that connects; nothing in them is for a shell here.

        Raises:
            RuntimeMissing: there is no `ssh`.
        """
        found = shutil.which("ssh")
        if found is None:
            raise RuntimeMissing("the program ssh is not installed", hint="on Debian and Ubuntu: apt install ssh")
        options = [word for option in _OPTIONS for word in ("-o", option)]
        config = ["-F", self.config] if self.config else []
        return [found, "-T", "-x", "-a", *config, *options, *self._port(), *self._login(), "--", self.host, REMOTE]

    def typed(self, program: str = "ssh") -> str:
        """A command for the user to type, that reaches the same place."""
        config = ["-F", self.config] if self.config else []
        port = self._port("-P" if program == "scp" else "-p")
        target = self.host if self.user is None else f"{self.user}@{self.host}"
        return shlex.join([program, *config, *port, target])

    def _port(self, flag: str = "-p") -> list[str]:
        return [] if self.port is None else [flag, str(self.port)]

    def _login(self) -> list[str]:
        return [] if self.user is None else ["-l", self.user]


def _more(parts: SplitResult) -> bool:
    """Whether an address says more than user, host and port."""
    return parts.scheme != "ssh" or not parts.netloc or bool(parts.path.strip("/") or parts.query or parts.fragment)


@functools.cache
def agent_source() -> bytes:
    """The file that is sent."""
    return Path(__file__).with_name("agent.py").read_bytes()


class Link:
    """One connection to an agent: JSON lines both ways. It does not come back by itself.

    Args:
        address: where to.
        command: another program that gives an agent's stdin and stdout; `ssh` if None.
    """

    def __init__(self, address: Address, command: list[str] | None = None) -> None:
        self.address = address
        self._said: deque[str] = deque(maxlen=20)
        self._inbox: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.process = subprocess.Popen(
            command or address.command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for us, who then end the job in good order
            env={**os.environ, "LC_ALL": "C"},
        )
        self._threads = [threading.Thread(target=f, daemon=True) for f in (self._read, self._read_errors)]
        for thread in self._threads:
            thread.start()
        source = agent_source()
        with contextlib.suppress(LinkLost):  # the first receive says what is wrong
            self._write(b"%d\n" % len(source) + source)

    def send(self, message: Mapping[str, Any]) -> None:
        """Sends one message.

        Raises:
            LinkLost: the connection is gone.
        """
        self._write(json.dumps(message).encode() + b"\n")

    def receive(self, timeout_s: float | None = None) -> dict[str, Any]:
        """The next message.

        Raises:
            LinkLost: the connection is gone.
            TimeoutError: none came in time.
        """
        try:
            found = self._inbox.get(timeout=timeout_s)
        except queue.Empty:
            raise TimeoutError from None
        if found is None:
            self._inbox.put(None)
            raise LinkLost("\n".join(self._said))
        return found

    def close(self) -> None:
        """Ends the connection; what runs on the device goes on."""
        with contextlib.suppress(OSError):
            self.process.stdin.close()  # type: ignore[union-attr]
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for thread in self._threads:
            thread.join(5)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def failure(self) -> DeviceError:
        """Why the connection could not be made, in words, with what to type next."""
        code = self.process.wait(10)
        for thread in self._threads:
            thread.join(5)
        return explain(self.address, code, "\n".join(self._said))

    def _write(self, data: bytes) -> None:
        try:
            self.process.stdin.write(data)  # type: ignore[union-attr]
            self.process.stdin.flush()  # type: ignore[union-attr]
        except (OSError, ValueError) as error:
            raise LinkLost(str(error)) from None

    def _read(self) -> None:
        """Puts messages into the inbox; anything else on stdout, such as a login's greeting, is kept as said."""
        for line in self.process.stdout or ():
            try:
                message = json.loads(line)
            except ValueError:
                self._said.append(line.decode(errors="replace").strip())
                continue
            if isinstance(message, dict):
                self._inbox.put(message)
        self._inbox.put(None)

    def _read_errors(self) -> None:
        for line in self.process.stderr or ():
            self._said.append(line.decode(errors="replace").strip())


TRANSIENT = ("unreachable", "dropped")
"""Failures of a connection that may pass by themselves."""


def explain(address: Address, code: int, said: str) -> DeviceError:
    """What `ssh` said, as an error with a name and the next thing to type."""
    where, last = address.typed().partition(" ")[2], said.strip().splitlines()[-1:] or ["it said nothing"]
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in said:
        return DeviceError(
            f"the host key of {where} is not the one that is known: another machine, or the device was set up anew",
            hint=f"if you know why, forget the old key: {_forget(address)}",
            name="host-key",
        )
    if "Host key verification failed" in said:
        return DeviceError(
            f"the host key of {where} is not known",
            hint=f"connect once by hand and compare the fingerprint: {address.typed()}",
            name="host-key",
        )
    if "Permission denied" in said or "Too many authentication failures" in said:
        return DeviceError(
            f"{where} does not let this user in: {last[0]}",
            hint=f"put your key there: {address.typed('ssh-copy-id')}   (a key with a passphrase needs ssh-agent)",
            name="refused",
        )
    if code == 127 or "command not found" in said or "python3: not found" in said:
        return DeviceError(
            f"{where} has no python3",
            hint="on the device: sudo apt install python3 (3.8 or newer)",
            name="python-missing",
        )
    if "Bad configuration option" in said or "terminating" in said or "Can't open user config file" in said:
        return DeviceError(f"ssh does not take its configuration: {last[0]}", hint="correct that file", name="config")
    cut = re.search("[Cc]onnection (closed|reset|to .* closed)|Broken pipe", said)
    name = "dropped" if cut or code != 255 else "unreachable"
    hint = f"does this work? {address.typed()} true"
    return DeviceError(f"{where} cannot be reached: {last[0]}", hint=hint, name=name)


def _forget(address: Address) -> str:
    name = address.host if address.port is None else f"[{address.host}]:{address.port}"
    return shlex.join(["ssh-keygen", "-R", name])
