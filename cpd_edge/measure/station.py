"""Stations: one job on one device, whichever connection carries it. A connection that drops loses nothing.

The device works on by itself and writes each answer into a log. A station knows the number of its last request and
the byte up to which it has read the log, so it comes back, asks for the rest, and sends again only what never came.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import getpass
import hashlib
import os
import re
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from cpd_edge.errors import CpdError, EnvironmentMismatch, ModelError, RuntimeMissing
from cpd_edge.measure.descriptions import matching
from cpd_edge.measure.devices import Device, get
from cpd_edge.measure.ssh import OLDEST, TRANSIENT, DeviceError, Link, LinkLost

VERSION = 1
"""What the agent and we speak."""
CHUNK = 1 << 20
"""Bytes of a file in one message."""
HELLO_S = 60.0
PATIENCE_S = 600.0
"""How long a dropped connection is tried again."""
LINGER_S = 600.0
"""How long a device keeps a job whose host is gone, before it frees itself."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 30.0

_ERRORS: Mapping[str, type[CpdError]] = {
    "missing": RuntimeMissing, "model": ModelError, "fell-back": EnvironmentMismatch,
}  # fmt: skip

Record = dict[str, Any]
Connect = Callable[[Device], Link]


class Session:
    """An agent that has said hello over one connection: commands one at a time, and what it streams in between.

    Args:
        device: where.
        take: is given every streamed message.
        connect: makes the connection; over `ssh` if None.

    Raises:
        DeviceError: why there is no such agent.
    """

    def __init__(self, device: Device, take: Callable[[Record], None], connect: Connect | None = None) -> None:
        self.device, self._take, self._number = device, take, 0
        self.link = (connect or (lambda where: Link(where.address)))(device)
        try:
            self.call("hello", HELLO_S, folder=device.folder, python=device.python, version=VERSION)
        except TimeoutError:
            self.link.close()
            text = f"{device.name} was reached, but no agent answered within {HELLO_S:g} s"
            raise DeviceError(text, hint="does its login shell run commands?", name="unreachable") from None
        except LinkLost:
            self.link.close()
            raise self.link.failure() from None
        except BaseException:
            self.link.close()
            raise

    def call(self, do: str, timeout_s: float | None = None, **fields: Any) -> Record:
        """One command and its answer.

        Raises:
            LinkLost: the connection dropped; the command may have been done.
            TimeoutError: no answer came in time.
            DeviceError: the answer is a failure.
        """
        self._number += 1
        with contextlib.suppress(LinkLost):  # what it said before it went is still to be received, and then its loss
            self.link.send({**fields, "do": do, "id": self._number})
        while True:
            message = self.link.receive(timeout_s)
            if message.get("re") == self._number:
                return _checked(message, self.device.name)
            if "gone" in message and self._number == 1:  # the agent could not even begin
                _checked(message["gone"], self.device.name)
            self._take(message)

    def await_more(self) -> None:
        """Takes the next streamed message.

        Raises:
            LinkLost: the connection dropped.
        """
        self._take(self.link.receive())


def first(device: Device, take: Callable[[Record], None], connect: Connect | None = None) -> Session:
    """A first connection: made again where it drops while it is made, given up at once where there is nobody.

    Raises:
        DeviceError: why there is none.
    """
    for pause_s in (FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S):
        try:
            return Session(device, take, connect)
        except DeviceError as error:
            if error.name != "dropped":
                raise
        time.sleep(pause_s)
    return Session(device, take, connect)


class Station:
    """One job on a device, begun now; see `station` for the one that a whole process shares.

    Args:
        device: where.
        patience_s: how long a dropped connection is tried again.
        linger_s: how long the device waits for this host before it drops the job.
        connect: makes a connection to the device's agent; over `ssh` if not given.
        root: where the device's `/proc` and `/sys` are looked for.

    Attributes:
        telemetry: the device's raw readings so far, as they came.
        drops: how often the connection dropped and was made again.

    Raises:
        DeviceError: it cannot be reached or used; `name` says why.
    """

    def __init__(
        self,
        device: Device,
        *,
        patience_s: float = PATIENCE_S,
        linger_s: float = LINGER_S,
        connect: Connect | None = None,
        root: str = "/",
    ) -> None:
        self.device, self.job = device, secrets.token_hex(8)
        self.telemetry: list[Record] = []
        self.drops = 0
        self._connect = connect
        self._patience_s = patience_s
        self._lock = threading.RLock()
        self._answers: deque[Record] = deque()
        self._offsets = {"answers": 0, "telemetry": 0}
        self._gone: Record | None = None
        self._started = False
        self._asked = self._engines = 0
        self._session = first(device, self._take, connect)
        start = {"job": self.job, "holder": holder(), "linger_s": linger_s, "telemetry_s": device.telemetry_s}
        try:
            self._start({**start, "root": root})
        except BaseException:
            self._session.link.close()
            raise
        self._started = True

    @property
    def alive(self) -> bool:
        """Whether the job can still be asked."""
        return self._gone is None

    def ask(self, do: str, **request: Any) -> tuple[Record, list[Any]]:
        """Has the device do one thing, and waits for it through any number of dropped connections.

        Returns:
            The answer, and the visits that it consists of, if it does.

        Raises:
            DeviceError: it failed; `name` says why.
        """
        with self._lock:
            self._asked += 1
            self._call("ask", seq=self._asked, request={**request, "do": do})
            visits: list[Any] = []
            while True:
                while self._answers:
                    line = self._answers.popleft()
                    if line["seq"] != self._asked:  # of a request that was interrupted
                        continue
                    if line["kind"] == "visit":
                        visits.append(line["blocks"])
                    else:
                        return _checked(line, self.device.name), visits
                if self._gone is not None:
                    _checked(self._gone, self.device.name)
                self._await_more()

    def send(self, data: bytes) -> str:
        """Sends a file, or the rest of one that was partly sent before; its hash is its name there.

        Raises:
            DeviceError: the device's disk is full, or the file arrived damaged.
        """
        with self._lock:
            name = hashlib.sha256(data).hexdigest()
            state = self._call("have", sha256=name)
            while not state["whole"]:
                at = state["bytes"] if state["bytes"] <= len(data) else 0
                part = base64.b64encode(data[at : at + CHUNK]).decode()
                state = self._call("put", sha256=name, at=at, data=part, size=len(data))
            return name

    def next_engine(self) -> int:
        """A number that no engine of this job has had."""
        self._engines += 1
        return self._engines

    def close(self) -> None:
        """Ends the job, which frees the device."""
        with self._lock, contextlib.suppress(LinkLost, DeviceError, TimeoutError):
            if self._started and self._session.link.process.poll() is not None:
                self._session.link.close()
                self._session = Session(self.device, self._take, self._connect)
            self._started = False
            self._session.call("end", HELLO_S, job=self.job)
        self._gone = self._gone or {"error": "ended", "message": "the job was ended", "hint": "open it again"}
        self._session.link.close()

    def _start(self, request: Mapping[str, Any]) -> None:
        """Starts the worker; frees the device first where its holder was a process of ours that is dead."""
        try:
            self._call("start", **request)
        except DeviceError as error:
            if error.name != "busy" or not ours_and_dead(error.what):
                raise
            self._call("free")
            self._call("start", **request)

    def _call(self, do: str, **fields: Any) -> Record:
        """One command to the agent, sent again after a drop: each can be given twice."""
        while True:
            try:
                return self._session.call(do, **fields)
            except LinkLost:
                self._come_back()

    def _await_more(self) -> None:
        try:
            self._session.await_more()
        except LinkLost:
            self._come_back()

    def _take(self, message: Record) -> None:
        """Keeps what the device streams."""
        if "gone" in message:
            self._gone = message["gone"]
        elif "log" in message:
            self._offsets[message["log"]] = message["at"]
            (self._answers if message["log"] == "answers" else self.telemetry).extend(message["lines"])

    def _come_back(self) -> None:
        """Connects again and goes on reading where it stopped.

        Raises:
            DeviceError: the device did not come back in time, or refuses us now.
        """
        end, pause_s = time.monotonic() + self._patience_s, FIRST_PAUSE_S
        while True:
            self._session.link.close()
            try:
                self._session = Session(self.device, self._take, self._connect)
                if self._started:
                    self._session.call("attach", HELLO_S, job=self.job, **self._offsets)
                self.drops += 1
                return
            except (LinkLost, TimeoutError):
                why = "each connection that is made is lost again before it goes on with the job"
            except DeviceError as error:
                if error.name not in TRANSIENT:
                    raise
                why = error.what
            if time.monotonic() > end:
                raise DeviceError(
                    f"{self.device.name} did not come back within {self._patience_s:g} s: {why}",
                    hint="once it is reachable, give the same command with --resume",
                    name="unreachable",
                )
            time.sleep(min(pause_s, max(0.0, end - time.monotonic()) + 0.01))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def holder() -> str:
    """Who holds a device, as others are told."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container without a name for its user
        user = "someone"
    return f"{user}@{socket.gethostname()} (process {os.getpid()})"


def ours_and_dead(text: str) -> bool:
    """Whether a device is held for a process of this user and host that is no more."""
    found = re.search(re.escape(holder().rpartition(" (")[0]) + r" \(process (\d+)\)", text)
    if found is None or int(found[1]) == os.getpid():
        return False
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _checked(message: Record, name: str) -> Record:
    """An answer, or the error that it is."""
    if "error" not in message:
        return message
    what, hint, kind = f"{name}: {message['message']}", message.get("hint", ""), message["error"]
    if kind == "old-python":
        hint = "the agent needs Python {}.{} or newer under the name python3 on the device".format(*OLDEST)
    hint = hint.replace("NAME", name)
    if kind in _ERRORS:
        raise _ERRORS[kind](what, hint=hint)
    raise DeviceError(what, hint=hint, name=kind)


_OPEN: dict[Device, Station] = {}


def station(device: Device) -> Station:
    """This process's station on a device: made on first use, ended with the process."""
    known = _OPEN.get(device)
    if known is None or not known.alive:
        known = _OPEN[device] = Station(device)
        atexit.register(known.close)
    return known


def probe(device: Device, *, root: str = "/") -> Record:
    """What a device is and what state it is in; nothing is measured and nobody is disturbed.

    Raises:
        DeviceError: it cannot be reached.
    """
    return _once(device, "probe", root=root)


def examined(name: str) -> Record:
    """`probe` of the device of this name, with its `name`, and in `description` what public documents call it.

    Raises:
        UsageError: no device has the name.
        DeviceError: it cannot be reached.
    """
    found = probe(get(name))
    known = matching(found["device"], found["memory_bytes"], found["machine"])
    return {"name": name, **found, "description": None if known is None else known.name}


def free(device: Device) -> Record | None:
    """Ends the job that holds a device, and says whose it was; None where none did.

    Raises:
        DeviceError: it cannot be reached, or the job is another user's.
    """
    freed: Record | None = _once(device, "free")["freed"]
    return freed


def _once(device: Device, do: str, **fields: Any) -> Record:
    """One command over a connection of its own."""
    session = first(device, lambda _: None)
    try:
        return session.call(do, **fields)
    except LinkLost:
        raise session.link.failure() from None
    finally:
        session.link.close()
