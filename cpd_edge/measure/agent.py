"""The agent: the one file that is sent to a device. It measures there and keeps what it measured until it is fetched.

It runs on any Python from 3.8 on with the standard library alone, plus NumPy and ONNX Runtime or TensorRT where engines
are to run; CUDA's runtime it calls by ctypes. It imports nothing of this package, which takes `state_of` alone from
it; that it is one file is why it is longer than others. Its TensorRT part has run on one GPU of ours, and on no Jetson.

    front    `python3 -I agent.py`: one for each connection. JSON lines on stdin and stdout, logs on stderr. Takes
             files, starts workers, passes requests on, and streams a job's logs from any byte offset.
    worker   one for each job, detached, so that it goes on when the connection drops. Holds the device's lock.
    sampler  one for each worker: power, temperatures, clocks, as raw readings.

A job is a folder: `requests` and `answers` are append-only lines of JSON, so a host that comes back with the number of
its last request and the offset of the last answer it read has lost nothing. Every failure is an object with
`error` (a name), `message` and `hint`.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import errno
import fcntl
import gc
import glob
import hashlib
import importlib
import json
import os
import platform
import re
import resource
import select
import shutil
import signal
import site
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from typing import Any, Dict, Iterator  # noqa: UP035  Python 3.8 knows no other way

VERSION = 1
RING = 8
LOCK = "cpd-edge-device.lock"
KEEP_BYTES = 2 << 30
KEEP_DAYS = 7
FAULT_BYTES = 4096
CHUNK = 1 << 18
QUICK_S, SLOW_S = 0.001, 0.05
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
STILL = ("session.force_spinning_stop", "1")  # threads that wait for the next inference take the CPU from other engines
JSON = Dict[str, Any]  # noqa: UP006


class Trouble(Exception):
    """A failure with a name that the host can act on."""

    def __init__(self, name: str, message: str, hint: str = "", **more: Any) -> None:
        super().__init__(message)
        self.record = dict(more, error=name, message=message, hint=hint)


def record_of(error: BaseException) -> JSON:
    """Any failure as an object with a name."""
    if isinstance(error, Trouble):
        return error.record
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        text = f"no space is left on the device ({error.strerror})"
        return {"error": "disk-full", "message": text, "hint": "free some space there, then do the same again"}
    if isinstance(error, MemoryError):
        hint = "close other programs on the device, or take a smaller batch"
        return {"error": "out-of-memory", "message": "the device has no memory left for this engine", "hint": hint}
    text = f"{type(error).__name__}: {error}"
    return {"error": "failed", "message": text, "hint": ""}


# ---------------------------------------------------------------------------------------------------- front


class Front:
    """Serves one connection."""

    def __init__(self, source: bytes) -> None:
        self.source = source
        self.folder = self.python = ""
        self.job: str | None = None
        self.offsets: dict[str, int] = {}
        self.gone = False
        self.looked = self.beat = 0.0
        self.child: subprocess.Popen[bytes] | None = None

    def serve(self) -> None:
        """Answers until stdin ends."""
        waiting, pause = bytearray(), SLOW_S
        while True:
            ready = bool(select.select([0], [], [], pause)[0])
            if ready:
                data = os.read(0, CHUNK)
                if not data:
                    return
                waiting += data
                *lines, rest = waiting.split(b"\n")
                waiting = bytearray(rest)
                for line in lines:
                    self.answer(json.loads(line))
            moved = self.stream()
            pause = QUICK_S if ready or moved else min(pause * 1.5, SLOW_S)

    def answer(self, message: JSON) -> None:
        """Does one command and says so, whatever came of it."""
        name = message.pop("do")
        number = message.pop("id")
        try:
            found = getattr(self, "on_" + name)(**message)
        except (Trouble, OSError, MemoryError, ValueError, TypeError, AttributeError) as error:
            found = record_of(error)
        self.say(dict(found, re=number))

    def say(self, message: JSON) -> None:
        """Sends one message."""
        self.write(json.dumps(message).encode() + b"\n")

    def write(self, data: bytes) -> None:
        """Writes all of it to stdout."""
        while data:
            data = data[os.write(1, data) :]

    def on_hello(self, folder: str, python: str, version: int) -> JSON:
        """Settles where things are kept and which interpreter measures."""
        if version != VERSION:
            raise Trouble("wrong-version", f"this agent speaks version {VERSION}, the host {version}")
        self.folder = os.path.abspath(os.path.expanduser(folder))
        for name in ("files", "jobs"):
            os.makedirs(os.path.join(self.folder, name), mode=0o700, exist_ok=True)
        python = os.path.expanduser(python)
        self.python = shutil.which(python) or "" if python else sys.executable
        if not self.python:
            raise Trouble(
                "python-missing", f"no interpreter {python} on the device", "give another with: devices add --python"
            )
        return {"agent": VERSION, "python": platform.python_version(), "folder": self.folder, "host": host_name()}

    def on_probe(self, root: str = "/") -> JSON:
        """What the device is, in what state, and with which runtimes."""
        done = subprocess.run(
            [self.python, "-I", self.installed(), "runtimes"], stdout=subprocess.PIPE, timeout=120, check=False
        )
        runtimes = json.loads(done.stdout) if done.returncode == 0 else {}
        disk = shutil.disk_usage(self.folder)
        found = dict(state_of(root), runtimes=runtimes, measures_with=self.python, lock=holder_now())
        found["load_1m"] = moment()["load_1m"]
        found.update(disk_free_bytes=disk.free, folder=self.folder, trtexec=trtexec(root))
        return dict(found, sensors=Sensors(root).read())

    def on_have(self, sha256: str) -> JSON:
        """How many bytes of a file are here, and whether it is whole."""
        whole, part = self.file(sha256)
        if os.path.exists(whole):
            os.utime(whole)
            return {"bytes": os.path.getsize(whole), "whole": True}
        return {"bytes": os.path.getsize(part) if os.path.exists(part) else 0, "whole": False}

    def on_put(self, sha256: str, at: int, data: str, size: int) -> JSON:
        """Appends a chunk; the file counts once it is whole and its hash is right."""
        whole, part = self.file(sha256)
        if os.path.exists(whole):
            return {"bytes": size, "whole": True}
        have = os.path.getsize(part) if os.path.exists(part) else 0
        if at != have:  # a chunk that was sent again after the connection dropped, or one that never came
            return {"bytes": have, "whole": False}
        with open(part, "ab") as stream:
            stream.write(base64.b64decode(data))
        have = os.path.getsize(part)
        if have < size:
            return {"bytes": have, "whole": False}
        if digest(part) != sha256:
            os.unlink(part)
            raise Trouble("damaged", f"file {sha256[:12]} did not arrive as it was sent", "send it again")
        os.replace(part, whole)
        self.trim(whole)
        return {"bytes": have, "whole": True}

    def file(self, sha256: str) -> tuple[str, str]:
        """Where a file lies once whole, and until then."""
        whole = os.path.join(self.folder, "files", named(sha256, r"[0-9a-f]{64}"))
        return whole, whole + ".part"

    def trim(self, keep: str) -> None:
        """Removes the files that were used longest ago, beyond a limit."""
        found = sorted(glob.glob(os.path.join(self.folder, "files", "*")), key=os.path.getmtime, reverse=True)
        total = 0
        for path in found:
            total += os.path.getsize(path)
            if total > KEEP_BYTES and path != keep:
                os.unlink(path)

    def on_start(self, job: str, holder: str, linger_s: float, telemetry_s: float, root: str = "/") -> JSON:
        """Starts a job's worker, or finds it running."""
        self.clean()
        folder = self.job_folder(job)
        if not os.path.exists(os.path.join(folder, "state")):
            os.makedirs(folder, mode=0o700, exist_ok=True)
            config = {"holder": holder, "linger_s": linger_s, "telemetry_s": telemetry_s, "root": root, "job": job}
            config["files"] = os.path.join(self.folder, "files")
            replace(os.path.join(folder, "config"), json.dumps(config).encode())
            replace(os.path.join(folder, "fault"), b" " * FAULT_BYTES)
            touch(os.path.join(folder, "alive"))
            with open(os.path.join(folder, "worker.log"), "ab") as log:
                self.child = subprocess.Popen(
                    [self.python, "-I", self.installed(), "worker", folder],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=folder,
                )  # fmt: skip
            self.await_worker(folder)
        return self.on_attach(job, 0, 0)

    def await_worker(self, folder: str) -> None:
        """Returns when the worker holds the lock; raises what kept it from that."""
        end = time.monotonic() + 60
        while not os.path.exists(os.path.join(folder, "state")):
            if self.child is not None and self.child.poll() is not None:
                fault = fault_of(folder)
                if fault["error"] == "busy":
                    shutil.rmtree(folder, ignore_errors=True)
                raise Trouble(fault.pop("error"), fault.pop("message"), fault.pop("hint"), **fault)
            if time.monotonic() > end:
                raise Trouble("worker-slow", "the worker did not start within 60 s", "see worker.log in " + folder)
            time.sleep(0.005)

    def on_attach(self, job: str, answers: int, telemetry: int) -> JSON:
        """Streams a job's logs from these byte offsets on."""
        folder = self.job_folder(job)
        if not os.path.isdir(folder):
            raise Trouble("no-job", f"the device knows no job {job}", "it was ended or cleaned away; run again")
        self.job, self.gone = job, False
        self.offsets = {"answers": answers, "telemetry": telemetry}
        touch(os.path.join(folder, "alive"))
        return {"seen": last_number(os.path.join(folder, "requests")), "job": job}

    def on_ask(self, seq: int, request: JSON) -> JSON:
        """Passes a request on, once, however often it is sent."""
        path = os.path.join(self.job_folder(self.job or ""), "requests")
        if seq > last_number(path):
            append(path, dict(request, seq=seq))
        return {}

    def on_end(self, job: str) -> JSON:
        """Ends a job, frees the device and removes the job's folder."""
        folder = self.job_folder(job)
        if os.path.isdir(folder):
            stop_worker(folder)
            shutil.rmtree(folder, ignore_errors=True)
        self.job = None
        return {}

    def on_free(self) -> JSON:
        """Ends whatever job holds the device."""
        holder = holder_now()
        if holder is None:
            return {"freed": None}
        try:
            stop_worker(holder["folder"])
        except OSError as error:
            text = f"the device is held by another user's job, which may not be ended: {error}"
            raise Trouble("busy", text, f"ask {holder['holder']}", holder=holder) from None
        return {"freed": holder}

    def job_folder(self, job: str) -> str:
        """A job's folder."""
        return os.path.join(self.folder, "jobs", named(job, r"[0-9a-f]{8,64}"))

    def installed(self) -> str:
        """This file, on the device's disk."""
        path = os.path.join(self.folder, "agent-" + hashlib.sha256(self.source).hexdigest()[:16] + ".py")
        if not os.path.exists(path):
            replace(path, self.source)
        return path

    def clean(self) -> None:
        """Removes jobs that nobody came back for."""
        for folder in glob.glob(os.path.join(self.folder, "jobs", "*")):
            if time.time() - os.path.getmtime(folder) > KEEP_DAYS * 86400 and not held(folder):
                shutil.rmtree(folder, ignore_errors=True)

    def stream(self) -> bool:
        """Sends what the job's logs have grown by; says once when the worker is gone."""
        if self.job is None:
            return False
        folder, now = self.job_folder(self.job), time.monotonic()
        moved = False
        look = not self.gone and now - self.looked > 0.25
        dead = look and not held(folder)  # asked before reading on: nothing is written after
        for name, at in self.offsets.items():
            lines = lines_from(os.path.join(folder, name), at)
            if lines:
                self.offsets[name] = at + len(lines)
                head = json.dumps({"log": name, "at": self.offsets[name]})[:-1].encode()
                self.write(head + b', "lines": [' + b",".join(lines.split(b"\n")[:-1]) + b"]}\n")
                moved = True
        if now - self.beat > 1:
            self.beat = now
            with contextlib.suppress(OSError):
                os.utime(os.path.join(folder, "alive"))
        if look and not moved:
            self.looked = now
            if dead:
                self.gone = True
                self.say({"gone": fault_of(folder)})
        return moved


def stop_worker(folder: str, patience_s: float = 15.0) -> None:
    """Asks a worker to end, and kills it where it does not."""
    touch(os.path.join(folder, "stop"))
    end = time.monotonic() + patience_s
    while held(folder):
        if time.monotonic() > end:
            with open(os.path.join(folder, "state"), "rb") as stream:
                os.kill(json.load(stream)["pid"], signal.SIGKILL)
            end += patience_s
        time.sleep(0.005)


def fault_of(folder: str) -> JSON:
    """Why a worker is gone."""
    with contextlib.suppress(OSError, ValueError), open(os.path.join(folder, "fault"), "rb") as stream:
        found: JSON = json.loads(stream.read())
        return found
    tail = ""
    with contextlib.suppress(OSError), open(os.path.join(folder, "worker.log"), "rb") as stream:
        tail = stream.read()[-400:].decode(errors="replace").strip()
    text = "the worker on the device was killed" + (f": {tail}" if tail else "")
    hint = "was it out of memory? `dmesg` there says so. What it had measured is kept; run again"
    return {"error": "worker-killed", "message": text, "hint": hint}


# ---------------------------------------------------------------------------------------------------- files


def named(text: str, pattern: str) -> str:
    """A name that can be part of a path."""
    if not re.fullmatch(pattern, text):
        raise Trouble("bad-name", f"{text!r} is no name of a file or a job")
    return text


def replace(path: str, data: bytes) -> None:
    """Writes a file whole or not at all."""
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def touch(path: str) -> None:
    """Makes a file, or its time now."""
    with open(path, "ab"):
        os.utime(path)


def append(path: str, message: JSON) -> None:
    """Adds a line to a log."""
    with open(path, "ab", 0) as stream:
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[stream.write(data) :]


def lines_from(path: str, at: int) -> bytes:
    """Whole lines of a log from an offset on: a chunk of them, or one that is longer than a chunk."""
    found = b""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as stream:
        stream.seek(at)
        while True:
            data = stream.read(CHUNK)
            found += data
            if not data or b"\n" in data:
                break
    return found[: found.rfind(b"\n") + 1]


def last_number(path: str) -> int:
    """The number of the last request in a log."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as stream:
        whole = stream.read().split(b"\n")[:-1]
        return int(json.loads(whole[-1])["seq"]) if whole else 0
    return 0


def digest(path: str) -> str:
    """A file's hash."""
    found = hashlib.sha256()
    with open(path, "rb") as stream:
        for data in iter(lambda: stream.read(1 << 20), b""):
            found.update(data)
    return found.hexdigest()


def lock_path() -> str:
    """The lock's place, the same for all users of the device."""
    return os.path.join(tempfile.gettempdir(), LOCK)


def take_lock(holder: JSON) -> int:
    """The device's lock; the system lets go of it when this process ends, however it ends."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        handle = os.open(lock_path(), flags)
    except FileNotFoundError:
        handle = os.open(lock_path(), flags | os.O_CREAT, 0o666)
        with contextlib.suppress(PermissionError):
            os.fchmod(handle, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        found = holder_now() or {"holder": "someone", "since": "just now"}
        text = f"the device is in use by {found['holder']} since {found['since']}"
        hint = "wait, or end that job: cpd-edge devices free NAME"
        raise Trouble("busy", text, hint, holder=found) from None
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(holder).encode(), 0)
    return handle


def holder_now() -> JSON | None:
    """Who holds the device, or None."""
    try:
        handle = os.open(lock_path(), os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    with open(handle, "rb") as stream:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
        except BlockingIOError:
            with contextlib.suppress(ValueError):
                found: JSON = json.loads(stream.read())
                return found
    return {"holder": "someone", "since": "just now", "folder": ""}


def held(folder: str) -> bool:
    """Whether the worker of a job lives."""
    try:
        with open(os.path.join(folder, "held"), "rb") as stream:
            fcntl.flock(stream.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


# ---------------------------------------------------------------------------------------------------- worker


class Worker:
    """Does a job's requests one after another, and writes each answer down before the next one."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        with open(self.path("config"), "rb") as stream:
            self.config: JSON = json.load(stream)
        self.engines: dict[int, Any] = {}  # or what stands around one
        self.read = 0
        self.locks: list[int] = []
        self.sampler: subprocess.Popen[bytes] | None = None

    def path(self, name: str) -> str:
        """A file of the job."""
        return os.path.join(self.folder, name)

    def run(self) -> None:
        """Takes the lock, then works until it is told to stop or nobody listens any more."""
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        mine = {"holder": self.config["holder"], "since": since, "pid": os.getpid(), "folder": self.folder}
        self.locks.append(take_lock(dict(mine, job=self.config["job"])))
        self.locks.append(os.open(self.path("held"), os.O_RDWR | os.O_CREAT, 0o600))
        fcntl.flock(self.locks[1], fcntl.LOCK_EX)
        if self.config["telemetry_s"]:
            command = [sys.executable, "-I", __file__, "sampler", self.folder]
            self.sampler = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        replace(self.path("state"), json.dumps(mine).encode())
        try:
            for request in self.requests():
                self.do(request)
        finally:
            if self.sampler is not None:
                self.sampler.terminate()
                self.sampler.wait()
        raise Trouble("ended", "the job was ended")

    def requests(self) -> Iterator[JSON]:
        """Requests as they come."""
        pause = QUICK_S
        while not self.stopped():
            lines = lines_from(self.path("requests"), self.read).split(b"\n")[:-1]
            for line in lines:
                self.read += len(line) + 1
                yield json.loads(line)
            pause = QUICK_S if lines else min(pause * 1.5, SLOW_S)
            time.sleep(pause)
            if not lines and time.time() - os.path.getmtime(self.path("alive")) > self.config["linger_s"]:
                raise Trouble(
                    "abandoned", f"no host asked for this job for {self.config['linger_s']:g} s", "start it again"
                )

    def stopped(self) -> bool:
        """Whether the job was told to end."""
        return os.path.exists(self.path("stop"))

    def do(self, request: JSON) -> None:
        """Does one request and writes its answer, whatever came of it."""
        name, seq = request.pop("do"), request.pop("seq")
        try:
            found = getattr(self, "do_" + name)(seq, **request)
        except (Trouble, MemoryError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
            traceback.print_exc()
            found = record_of(error)
        except Exception as error:  # what ONNX Runtime raises has no base of its own; an unfit disk ends the worker
            if isinstance(error, OSError):
                raise
            traceback.print_exc()
            found = record_of(error)
        append(self.path("answers"), dict(found, seq=seq, kind="done"))

    def do_load(self, seq: int, engine: int, sha256: str, **options: Any) -> JSON:
        """Opens an engine, and says where and how it runs."""
        kind = BuiltEngine if options.get("runtime") == "tensorrt" else Engine
        self.engines[engine] = found = kind(self.file(sha256), options, self.file)
        return {"environment": dict(state_of(self.config["root"]), **found.environment), "load_ms": found.load_ms}

    def file(self, sha256: str) -> str:
        """A file that was sent."""
        path = os.path.join(self.config["files"], named(sha256, r"[0-9a-f]{64}"))
        if not os.path.exists(path):
            raise Trouble("no-file", f"file {sha256[:12]} is not on the device", "send it again")
        return path

    def do_close(self, seq: int, engine: int) -> JSON:
        """Closes an engine."""
        found = self.engines.pop(engine, None)
        if found is not None:
            found.close()
        return {}

    def do_frame(self, seq: int, engine: int, sha256: str, plan: JSON) -> JSON:
        """Puts the stages of a deployment around an engine; their code is a file that was sent."""
        module("numpy")
        module("PIL", "pillow")
        scope: JSON = {"__name__": "stages"}
        with open(self.file(sha256), "rb") as stream:
            exec(compile(stream.read(), "stages.py", "exec"), scope)
        self.engines[engine] = framed = scope["Framed"](self.engines[engine], plan)
        return {"words": framed.words}

    def do_stages(self, seq: int, engine: int, starts_ns: list[int]) -> JSON:
        """How long each stage took in the runs that samples began with [ns]."""
        return {"rows_ns": self.engines[engine].rows_ns(starts_ns)}

    def do_moment(self, seq: int) -> JSON:
        """The part of the environment that changes."""
        return {"moment": moment()}

    def do_warm(self, seq: int, order: list[int], warmup_ns: int, period_ns: int | None) -> JSON:
        """Runs each engine for so long, untimed."""
        for number in order:
            end = time.perf_counter_ns() + warmup_ns
            while time.perf_counter_ns() < end:
                await_frame(period_ns)
                self.engines[number].run()
        return {}

    def do_visits(
        self,
        seq: int,
        order: list[int],
        most: int,
        left_ns: int,
        block_ns: int,
        period_ns: int | None,
        leads: list[int],
        lead_ns: list[int],
    ) -> JSON:
        """Blocks of each engine in turn; every visit is in the log before the next one begins."""
        engines = [(self.engines[number], leads[i]) for i, number in enumerate(order)]
        gc.collect()
        gc.disable()
        begin, switches, visits = time.perf_counter_ns(), involuntary(), 0
        try:
            while True:
                blocks = [block(engine.run, block_ns, period_ns, lead, lead_ns) for engine, lead in engines]
                elapsed_ns = time.perf_counter_ns() - begin
                append(self.path("answers"), {"seq": seq, "kind": "visit", "visit": visits, "blocks": blocks})
                visits += 1
                if visits >= most or elapsed_ns >= left_ns or self.stopped():
                    break
        finally:
            gc.enable()
        return {"visits": visits, "elapsed_ns": elapsed_ns, "switches": involuntary() - switches}

    def do_times(self, seq: int, engine: int, repeats: int) -> JSON:
        """So many inferences back to back [ns]."""
        run, clock, out = self.engines[engine].run, time.perf_counter_ns, []
        for _ in range(repeats):
            start = clock()
            run()
            out.append(clock() - start)
        return {"samples_ns": out}

    def do_kernels(self, seq: int, engine: int, repeats: int) -> JSON:
        """Events of every kernel in so many runs."""
        found: JSON = self.engines[engine].kernels(repeats, self.folder)
        return found

    def do_tool(self, seq: int, words: list[list[str]], sent: dict[str, str], wanted: list[str]) -> JSON:
        """Runs trtexec without a shell: each word is a text, and the name of a file of this job behind it or ''."""
        tool = trtexec(self.config["root"])
        if not tool:
            text = "trtexec is neither on the device's path nor where JetPack puts it"
            raise Trouble("missing", text, "there: apt install tensorrt")
        folder = self.path("tool")
        os.makedirs(folder, mode=0o700, exist_ok=True)
        paths = {name: os.path.join(folder, named(name, "[a-z]{1,16}")) for _, name in words if name}
        paths.update((name, self.file(sha256)) for name, sha256 in sent.items())
        line = [tool] + [text + paths[name] if name else text for text, name in words]
        log = os.path.join(folder, "log")
        with open(log, "wb") as stream:
            child = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT)
            while child.poll() is None:
                time.sleep(SLOW_S)
                if self.stopped():
                    child.kill()
        made = [name for name in wanted if os.path.exists(paths[name])]
        files = {name: base64.b64encode(bytes_of(paths[name])).decode() for name in made}
        return {"status": child.returncode, "said": bytes_of(log).decode(errors="replace"), "files": files}

    def do_warm_load(self, seq: int, engine: int) -> JSON:
        """Time to load the model once more [ms]."""
        return {"ms": self.engines[engine].open()[1]}

    def do_outputs(self, seq: int, engine: int, sha256: str) -> JSON:
        """The first output for a feed that was sent as a file."""
        numpy = module("numpy")
        found = self.engines[engine].outputs(numpy.load(self.file(sha256), allow_pickle=False))
        data = base64.b64encode(numpy.ascontiguousarray(found).tobytes()).decode()
        return {"dtype": str(found.dtype), "shape": list(found.shape), "data": data}


def lead_in(run: Any, lead: int, least_ns: int, most_ns: int) -> None:
    """Inferences that do not count: at least so many, for so long."""
    clock = time.perf_counter_ns
    begun, done, elapsed_ns = clock(), 0, 0
    while elapsed_ns < most_ns and (done < lead or elapsed_ns < least_ns):
        run()
        done, elapsed_ns = done + 1, clock() - begun


def block(run: Any, block_ns: int, period_ns: int | None, lead: int, lead_ns: list[int]) -> list[list[int]]:
    """Latencies and starts of one block, at least one inference long, after a lead-in that does not count [ns]."""
    clock = time.perf_counter_ns
    samples: list[int] = []
    starts: list[int] = []
    if lead:
        lead_in(run, lead, *lead_ns)
    end = clock() + block_ns
    while True:
        await_frame(period_ns)
        start = clock()
        run()
        finish = clock()
        starts.append(start)
        samples.append(finish - start)
        if finish >= end:
            return [samples, starts]


def await_frame(period_ns: int | None) -> None:
    """In paced mode, waits for the next frame of a camera that does not wait."""
    if period_ns:
        time.sleep((-time.perf_counter_ns() % period_ns) / 1e9)


def involuntary() -> int:
    """Times the system took the CPU from this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


class Engine:
    """An ONNX model with one input, on one provider of ONNX Runtime and on no other."""

    def __init__(self, path: str, options: JSON, file: Any) -> None:
        self.path, self.options = path, options
        self.ort, self.numpy = module("onnxruntime"), module("numpy")
        self.provider = PROVIDERS.get(options["provider"], options["provider"])
        if self.provider not in self.ort.get_available_providers():
            have = ", ".join(self.ort.get_available_providers())
            raise Trouble("missing", f"ONNX Runtime on the device has no {self.provider}, only {have}", "see --python")
        if self.provider != PROVIDERS["cpu"]:
            with contextlib.redirect_stdout(sys.stderr):  # where pip put CUDA, ONNX Runtime does not look by itself
                getattr(self.ort, "preload_dlls", lambda: None)()
        self.dims: dict[str, int] = {"batch": options["batch"]}
        self.folder = tempfile.mkdtemp(prefix="cpd-edge-") if options["profile"] else None
        self.session, first_ms = self.open(self.folder)
        source = self.only_input()
        ring = None if options["ring"] is None else self.numpy.load(file(options["ring"]), allow_pickle=False)
        shape = self.shape_of(source.shape, None if ring is None else list(ring.shape[2:]))
        symbols = [(name, shape[i]) for i, name in enumerate(source.shape) if isinstance(name, str)]
        if symbols:
            self.dims.update(symbols)
            self.session, _ = self.open(self.folder)
        self.profiled = self.session if self.folder else None
        self.free: Any = None
        self.name = source.name
        self.ring = self.make_ring(source.type, shape, ring)
        self.bindings = self.bind(self.session)
        self.turn = 0
        self.require_placed()
        start = time.perf_counter_ns()
        self.run()
        self.load_ms = {"first_load": first_ms, "first_inference": (time.perf_counter_ns() - start) / 1e6}

    def run(self) -> None:
        """One inference on the next input of the ring."""
        self.session.run_with_iobinding(self.bindings[self.turn])
        self.turn = (self.turn + 1) % RING

    @property
    def environment(self) -> JSON:
        """What runs the engine, and on which inputs."""
        return {
            "runtime": "onnxruntime",
            "runtime_version": self.ort.__version__,
            "providers": ",".join(self.session.get_providers()),
            **({} if self.provider == PROVIDERS["cpu"] else {"gpu": gpu_name()}),
            "shape": "x".join(str(n) for n in self.ring[0].shape),
            "input_low": float(min(values.min() for values in self.ring)),
            "input_high": float(max(values.max() for values in self.ring)),
            "profiled": bool(self.options["profile"]),
        }

    def open(self, folder: str | None = None, free: bool = False) -> tuple[Any, float]:
        """A session, profiled into `folder` if one is given, and its load time [ms]."""
        options = self.ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads, options.inter_op_num_threads = self.options["threads"], 1
        options.add_session_config_entry(*STILL)
        for name, extent in () if free else self.dims.items():
            options.add_free_dimension_override_by_name(name, extent)
        if folder is not None:
            options.enable_profiling = True
            options.profile_file_prefix = os.path.join(folder, "run")
        chain = [self.provider]
        if self.provider == PROVIDERS["tensorrt"]:
            chain.append(PROVIDERS["cuda"])
        start = time.perf_counter_ns()
        exact = [{"use_tf32": "0"} if name == PROVIDERS["cuda"] and self.knows_tf32() else {} for name in chain]
        session = self.ort.InferenceSession(self.path, options, chain, exact)
        load_ms = (time.perf_counter_ns() - start) / 1e6
        if session.get_providers()[0] != self.provider:
            used = session.get_providers()[0]
            raise Trouble("fell-back", f"{self.provider} did not start on the device; {used} would have run", "")
        return session, load_ms

    def only_input(self) -> Any:
        """The one input of the model."""
        found = self.session.get_inputs()
        if len(found) != 1:
            raise Trouble("model", f"the ONNX model has {len(found)} inputs, a vision model has one")
        return found[0]

    def shape_of(self, found: list[Any], rest: list[int] | None) -> tuple[int, ...]:
        """The input's shape with symbolic dims settled: first the batch, the rest by the given inputs."""
        batch = self.options["batch"]
        if isinstance(found[0], int) and found[0] != batch:
            raise Trouble("model", f"the model's batch is fixed at {found[0]}, {batch} was asked for")
        shape = [n if isinstance(n, int) or rest is None else rest[i] for i, n in enumerate(found[1:])]
        if not all(isinstance(n, int) for n in shape) or (rest is not None and shape != rest):
            raise Trouble("model", f"the model's input is {found}, the images are {rest}", "give sample_input")
        return (batch, *shape)

    def make_ring(self, kind: str, shape: tuple[int, ...], given: Any) -> list[Any]:
        """Seeded inputs: those that were sent, or standard normal ones."""
        kinds = {"tensor(float)": self.numpy.float32, "tensor(float16)": self.numpy.float16}
        if kind not in kinds:
            raise Trouble("model", f"the model's input is {kind}, not float32 or float16", "export it with floats")
        if given is not None:
            return [self.numpy.ascontiguousarray(values, kinds[kind]) for values in given]
        random = self.numpy.random.default_rng(self.options["seed"])
        return [random.standard_normal(shape).astype(kinds[kind]) for _ in range(RING)]

    def bind(self, session: Any) -> list[Any]:
        """One binding for each input of the ring; outputs stay with the runtime."""
        place, out = "cpu" if self.provider == PROVIDERS["cpu"] else "cuda", []
        for values in self.ring:
            binding = session.io_binding()
            binding.bind_ortvalue_input(self.name, self.ort.OrtValue.ortvalue_from_numpy(values, place, 0))
            for output in session.get_outputs():
                binding.bind_output(output.name, place)
            out.append(binding)
        return out

    def knows_tf32(self) -> bool:
        """Whether CUDA's provider can be told to leave products in fp32; before 1.18 it cannot."""
        return [int(n) for n in self.ort.__version__.split(".")[:2]] >= [1, 18]

    def in_place(self) -> tuple[Any, Any]:
        """The input that `run` reads from now on, and the first output that it writes."""
        if self.provider != PROVIDERS["cpu"]:
            raise Trouble("missing", f"stages around {self.provider} are not offered, only around the CPU's", "")
        source, outputs, value = self.ring[0].copy(), self.session.get_outputs(), self.ort.OrtValue.ortvalue_from_numpy
        made = self.numpy.ascontiguousarray(self.session.run([outputs[0].name], {self.name: source})[0])
        binding = self.session.io_binding()
        binding.bind_ortvalue_input(self.name, value(source, "cpu", 0))
        binding.bind_ortvalue_output(outputs[0].name, value(made, "cpu", 0))
        for output in outputs[1:]:
            binding.bind_output(output.name, "cpu")
        self.bindings = [binding] * RING
        return source, made

    def require_placed(self) -> None:
        """Refuses a model of which the runtime put a node elsewhere than it was asked."""
        if self.provider == PROVIDERS["cpu"]:
            return
        folder = tempfile.mkdtemp(prefix="cpd-edge-")
        try:
            session = self.open(folder)[0]
            session.run_with_iobinding(self.bind(session)[0])
            ran = nodes(session, ("op_name", "provider", "output_type_shape"))
            fell = [e["name"] for e in ran if e["args"].get("provider") == PROVIDERS["cpu"] and computes(e["args"])]
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if fell:
            text = f"{len(fell)} nodes run on the CPU instead of {self.provider}: {', '.join(fell[:10])}"
            raise Trouble("fell-back", text, "export the model without these operators, or take the provider cpu")

    def kernels(self, repeats: int, folder: str) -> JSON:
        """The profiler's events of so many runs, and their wall times [ms]."""
        session, place = self.profiled, self.folder
        if session is None or place is None:
            place = tempfile.mkdtemp(prefix="profile-", dir=folder)
            session = self.open(place)[0]
        self.profiled = self.folder = None
        try:
            bindings, totals = self.bind(session), []
            for turn in range(3):
                session.run_with_iobinding(bindings[turn])
            for turn in range(repeats):
                start = time.perf_counter_ns()
                session.run_with_iobinding(bindings[turn % RING])
                totals.append((time.perf_counter_ns() - start) / 1e6)
            return {"events": nodes(session), "totals_ms": totals}
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def outputs(self, feed: Any) -> Any:
        """The first output for a feed of any batch."""
        if self.free is None:
            self.free = self.open(free=True)[0]
        return self.free.run(None, {self.name: feed})[0]

    def close(self) -> None:
        """Frees the sessions and the profiler's files."""
        if self.folder is not None:
            self.session.end_profiling()
            shutil.rmtree(self.folder, ignore_errors=True)
        self.bindings = []
        self.session = self.profiled = self.free = self.folder = None


class Cuda:
    """What TensorRT needs of CUDA's runtime: memory, copies and one stream. Every call is checked."""

    NAMES = ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libcudart.so.10.2")
    FOLDERS = ("", "/usr/local/cuda/lib64/", "/usr/local/cuda/targets/aarch64-linux/lib/")

    def __init__(self) -> None:
        self.driver = self.loaded("libcuda.so.1")
        if self.driver is None or self.driver.cuInit(0) != 0:
            raise Trouble(
                "missing", "the device has no NVIDIA driver that starts", "TensorRT runs on NVIDIA GPUs alone"
            )
        wheels = [os.path.join(folder, "") for path in sys.path for folder in glob.glob(path + "/nvidia/*/lib")]
        found = (self.loaded(folder + name) for folder in (*self.FOLDERS, *wheels) for name in self.NAMES)
        self.library = next((library for library in found if library is not None), None)
        if self.library is None:
            raise Trouble(
                "missing",
                "CUDA's runtime (libcudart) is not found on the device",
                "there: pip install nvidia-cuda-runtime-cu12",
            )
        self.taken: list[ctypes.c_void_p] = []
        self.stream = ctypes.c_void_p()
        self.call("cudaStreamCreate", ctypes.byref(self.stream))

    @staticmethod
    def loaded(name: str) -> Any:
        """A shared library, or None."""
        try:
            return ctypes.CDLL(name)
        except OSError:
            return None

    def arch(self) -> str:
        """Compute capability, as `sm_87`."""
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.driver.cuDeviceGetAttribute(ctypes.byref(major), 75, 0)
        self.driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, 0)
        return f"sm_{major.value}{minor.value}"

    def call(self, name: str, *arguments: Any) -> None:
        """One call of the runtime."""
        status = getattr(self.library, name)(*arguments)
        if status == 2:
            raise MemoryError
        if status:
            raise Trouble("cuda", f"CUDA's {name} failed with status {status}")

    def allocate(self, size: int) -> int:
        """Address of new device memory."""
        found = ctypes.c_void_p()
        self.call("cudaMalloc", ctypes.byref(found), ctypes.c_size_t(max(size, 1)))
        self.taken.append(found)
        return int(found.value or 0)

    def upload(self, address: int, values: Any) -> None:
        """Copies a contiguous array to the device."""
        self.copy(address, values.ctypes.data, values.nbytes, 1)

    def download(self, values: Any, address: int) -> None:
        """Copies device memory into a contiguous array."""
        self.copy(values.ctypes.data, address, values.nbytes, 2)

    def copy(self, to: int, source: int, size: int, kind: int) -> None:
        """Copies, and returns when it is done."""
        self.call("cudaMemcpy", ctypes.c_void_p(to), ctypes.c_void_p(source), ctypes.c_size_t(size), kind)

    def wait(self) -> None:
        """Returns when all that was enqueued is done."""
        self.call("cudaStreamSynchronize", self.stream)

    def close(self) -> None:
        """Gives everything back."""
        for address in self.taken:
            self.call("cudaFree", address)
        self.taken = []
        self.call("cudaStreamDestroy", self.stream)


def gpu_name() -> str:
    """What the driver calls its first GPU; nothing where it does not say."""
    name = ctypes.create_string_buffer(256)
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        said = driver.cuDeviceGetName(name, ctypes.c_int(256), ctypes.c_int(0)) == 0
        return name.value.decode(errors="replace") if said else ""
    except OSError:
        return ""


class BuiltEngine:
    """A TensorRT engine, built here from an ONNX model with one input, or kept from before."""

    def __init__(self, path: str, options: JSON, file: Any) -> None:
        self._trt, self.numpy, self.options = module("tensorrt"), module("numpy"), options
        self.cuda = Cuda()
        self.log = self.logger()
        self.runtimes: list[Any] = []
        self.plan_path = self.built(path)
        self.engine, first_ms = self.open()
        self.context = self.engine.create_execution_context()
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        mode = self._trt.TensorIOMode.INPUT
        (self.source,) = [name for name in names if self.engine.get_tensor_mode(name) == mode]
        shape = (options["batch"], *tuple(self.engine.get_tensor_profile_shape(self.source, 0)[1])[1:])
        self.context.set_input_shape(self.source, shape)
        self.outs = [(n, self.cuda.allocate(self.size(n))) for n in names if n != self.source]
        for name, address in self.outs:
            self.context.set_tensor_address(name, address)
        self.ring = self.make_ring(shape, None if options["ring"] is None else file(options["ring"]))
        self.places = [self.cuda.allocate(values.nbytes) for values in self.ring]
        for i, values in enumerate(self.ring):
            self.cuda.upload(self.places[i], values)
        self.turn = 0
        start = time.perf_counter_ns()
        self.run()
        self.load_ms = {"first_load": first_ms, "first_inference": (time.perf_counter_ns() - start) / 1e6}

    def run(self) -> None:
        """One inference on the next input of the ring, finished when this returns."""
        self.enqueue(self.context, self.places[self.turn])
        self.cuda.wait()
        self.turn = (self.turn + 1) % RING

    def enqueue(self, context: Any, address: int) -> None:
        """Puts one inference on the stream."""
        context.set_tensor_address(self.source, address)
        if not context.execute_async_v3(self.cuda.stream.value or 0):
            raise Trouble("failed", "the engine does not run: " + self.said())

    @property
    def environment(self) -> JSON:
        """What runs the engine, and on which inputs; in the words of an engine of the host's own GPU."""
        return {
            "runtime": "tensorrt",
            "runtime_version": self._trt.__version__,
            "providers": self.cuda.arch() + ",enqueue,without transfers,driver's wait",
            "gpu": gpu_name(),
            "shape": "x".join(str(n) for n in self.ring[0].shape),
            "input_low": float(min(values.min() for values in self.ring)),
            "input_high": float(max(values.max() for values in self.ring)),
            "profiled": False,
        }

    def built(self, path: str) -> str:
        """Where the engine lies; what changes it is in its name."""
        precision, batch, version = self.options["precision"], self.options["batch"], self._trt.__version__
        folder = os.path.join(os.path.dirname(os.path.dirname(path)), "engines")
        os.makedirs(folder, mode=0o700, exist_ok=True)
        place = "-".join((version, self.cuda.arch(), re.sub(r"\W+", "-", power_mode("/"))))
        whole = os.path.join(folder, f"{os.path.basename(path)}-{precision}-{batch}-{place}.plan")
        if not os.path.exists(whole):
            replace(whole, self.build(path, os.path.join(folder, place + ".timing")))
        os.utime(whole)
        found = sorted(glob.glob(os.path.join(folder, "*.plan")), key=os.path.getmtime, reverse=True)
        sizes = [os.path.getsize(name) for name in found]
        for i, name in enumerate(found):
            if sum(sizes[: i + 1]) > KEEP_BYTES and name != whole:
                os.unlink(name)
        return whole

    def build(self, path: str, timings: str) -> bytes:
        """A serialised engine, and the timing cache with what the build has added."""
        trt, half = self._trt, self.options["precision"].endswith("fp16")
        weakly = hasattr(trt.BuilderFlag, "FP16")
        if half and not weakly and not self.options["typed"]:
            raise Trouble("typed", f"TensorRT {trt.__version__} takes the types from the file")
        try:
            builder = trt.Builder(self.log)
        except TypeError:  # what its binding makes of a builder that is none
            text = f"TensorRT {trt.__version__} does not start on the device: {self.said()}"
            hint = "no model was looked at: are its libraries whole, and of one version?"
            raise Trouble("no-start", text, hint) from None
        flag = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
        network = builder.create_network(0 if flag is None else 1 << int(flag))
        parser = trt.OnnxParser(network, self.log)
        with open(path, "rb") as stream:
            if not parser.parse(stream.read()):
                raise Trouble("model", f"TensorRT {trt.__version__} does not take the model: {self.said()}")
        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        if half and weakly:
            config.set_flag(trt.BuilderFlag.FP16)
        if self.options["precision"].startswith("int8") and weakly:
            config.set_flag(trt.BuilderFlag.INT8)
        if self.options["precision"] == "fp32":
            config.clear_flag(trt.BuilderFlag.TF32)
        source = network.get_input(0)
        shape = (self.options["batch"], *tuple(source.shape)[1:])
        if network.num_inputs != 1 or -1 in shape or list(source.shape) not in ([-1, *shape[1:]], list(shape)):
            text = f"the model has {network.num_inputs} inputs, the first of shape {list(source.shape)}"
            raise Trouble("model", text, "one input is needed, of which only the batch is free")
        profile = builder.create_optimization_profile()
        profile.set_shape(source.name, shape, shape, shape)
        config.add_optimization_profile(profile)
        cache = config.create_timing_cache(bytes_of(timings))
        if not config.set_timing_cache(cache, False):
            config.set_timing_cache(config.create_timing_cache(b""), False)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise Trouble("model", f"TensorRT {trt.__version__} built no engine: {self.said()}")
        replace(timings, bytes(config.get_timing_cache().serialize()))
        return bytes(plan)

    def open(self) -> tuple[Any, float]:
        """The engine, deserialised, and its load time [ms]."""
        start = time.perf_counter_ns()
        runtime = self._trt.Runtime(self.log)
        self.runtimes.append(runtime)  # each must outlive its engine
        found = runtime.deserialize_cuda_engine(bytes_of(self.plan_path))
        if found is None:
            os.unlink(self.plan_path)
            raise Trouble("failed", "the engine does not load: " + self.said(), "it was removed: do the same again")
        return found, (time.perf_counter_ns() - start) / 1e6

    def make_ring(self, shape: tuple[int, ...], given: str | None) -> list[Any]:
        """Seeded inputs: those that were sent, or standard normal ones."""
        kind = self.kind(self.source)
        if given is not None:
            return [self.numpy.ascontiguousarray(values, kind) for values in self.numpy.load(given, allow_pickle=False)]
        random = self.numpy.random.default_rng(self.options["seed"])
        return [random.standard_normal(shape).astype(kind) for _ in range(RING)]

    def kind(self, name: str) -> Any:
        """NumPy's type of a tensor. TensorRT's own answer needs a NumPy as old as itself."""
        word = self.engine.get_tensor_dtype(name).name
        return self.numpy.dtype({"FLOAT": "float32", "HALF": "float16"}.get(word, word.lower()))

    def size(self, name: str) -> int:
        """Bytes of a tensor at the settled shape."""
        shape = tuple(self.context.get_tensor_shape(name))
        return int(self.numpy.prod(shape)) * int(self.kind(name).itemsize)

    def kernels(self, repeats: int, folder: str) -> JSON:
        """What the inspector says, and the time of every layer in so many runs, on a context of their own."""
        inspector = self.engine.create_engine_inspector()
        told = inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)
        context, recorder, totals = self.engine.create_execution_context(), self.recorder(), []
        context.set_input_shape(self.source, self.ring[0].shape)
        for name, address in self.outs:
            context.set_tensor_address(name, address)
        context.profiler, context.enqueue_emits_profile = recorder, False
        for turn in range(3 + repeats):
            recorder.runs.append([])
            start = time.perf_counter_ns()
            self.enqueue(context, self.places[turn % RING])
            self.cuda.wait()
            totals.append((time.perf_counter_ns() - start) / 1e6)
            context.report_to_profiler()
        names = [name for name, _ in recorder.runs[3]]
        if any([name for name, _ in run] != names for run in recorder.runs[3:]):
            raise Trouble("model", "the profiled runs did not execute the same layers")
        ms = [[value for _, value in run] for run in recorder.runs[3:]]
        return {"inspector": told, "names": names, "ms": ms, "totals_ms": totals[3:]}

    def outputs(self, feed: Any) -> Any:
        """The first output for a feed of any batch, in pieces of the engine's."""
        size, (name, address), pieces = self.ring[0].shape[0], self.outs[0], []
        for start in range(0, len(feed), size):
            rows = self.numpy.arange(start, start + size) % len(feed)
            self.cuda.upload(self.places[0], self.numpy.ascontiguousarray(feed[rows], self.ring[0].dtype))
            self.enqueue(self.context, self.places[0])
            self.cuda.wait()
            values = self.numpy.empty(tuple(self.context.get_tensor_shape(name)), self.kind(name))
            self.cuda.download(values, address)
            pieces.append(values)
        self.cuda.upload(self.places[0], self.ring[0])
        return self.numpy.concatenate(pieces)[: len(feed)]

    def close(self) -> None:
        """Gives back the engine and everything on the device."""
        self.context = self.engine = None
        self.runtimes = []
        self.cuda.close()

    def logger(self) -> Any:
        """Keeps what TensorRT says went wrong."""

        class Log(self._trt.ILogger):  # type: ignore[misc,name-defined]
            errors: list[str] = []  # noqa: RUF012

            def log(self, severity: Any, msg: str) -> None:
                if severity.name in ("ERROR", "INTERNAL_ERROR"):
                    self.errors.append(" ".join(msg.split()))

        return Log()

    def recorder(self) -> Any:
        """A profiler that keeps layers and times of each run."""

        class Recorder(self._trt.IProfiler):  # type: ignore[misc,name-defined]
            runs: list[list[tuple[str, float]]] = []  # noqa: RUF012

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                self.runs[-1].append((layer_name, ms))

        found = Recorder()
        found.runs = []
        return found

    def said(self) -> str:
        """The last errors, in TensorRT's words."""
        return "; ".join(self.log.errors[-3:]) or "it gives no reason"


def bytes_of(path: str) -> bytes:
    """A file's content; nothing where there is none."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as stream:
        return stream.read()
    return b""


def computes(arguments: JSON) -> bool:
    """Whether a kernel writes anything but shapes and masks, which belong on the CPU; it does where nothing tells."""
    kinds = {str(kind) for shape in arguments.get("output_type_shape", []) for kind in shape}
    return not kinds or any("float" in kind or "double" in kind for kind in kinds)


def nodes(session: Any, told: tuple[str, ...] = ("op_name", "provider", "input_type_shape")) -> list[JSON]:
    """Ends a session's profile: its runs and kernels, without what nobody reads; of what a kernel reads, the first."""
    path = session.end_profiling()
    with open(path, encoding="utf-8") as stream:
        events = json.load(stream)
    os.unlink(path)
    kept = []
    for event in events:
        if event["name"] == "model_run" or (event["cat"] == "Node" and event["name"].endswith("_kernel_time")):
            given = event.get("args", {})
            few = {name: given[name] for name in told if name in given}
            few.update((name, few[name][:1]) for name in ("input_type_shape",) if name in few)
            kept.append(
                {"name": event["name"], "cat": event["cat"], "ts": event["ts"], "dur": event["dur"], "args": few}
            )
    return kept


def module(name: str, package: str = "") -> Any:
    """A module of the interpreter that measures, the user's own packages included."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        text = f"{name} does not import on the device under {sys.executable}: {error}"
        package = package or name
        hint = f"there: {sys.executable} -m pip install {package}, or name another interpreter: devices add --python"
        raise Trouble("missing", text, hint, package=name) from None


def runtimes() -> JSON:
    """Versions of what this interpreter can import, None where it cannot."""
    found: JSON = {}
    for name in ("numpy", "onnxruntime", "tensorrt"):
        try:
            found[name] = str(importlib.import_module(name).__version__)
        except (ImportError, AttributeError, OSError):
            found[name] = None
    if found["onnxruntime"]:
        found["providers"] = importlib.import_module("onnxruntime").get_available_providers()
    return found


# ---------------------------------------------------------------------------------------------- state


def text_of(path: str) -> str:
    """A small system file, or '' where it is missing or closed to this user."""
    try:
        with open(path, "rb") as stream:
            return stream.read().decode(errors="replace").strip("\0 \n")
    except OSError:
        return ""


def number_of(path: str) -> int | None:
    """A small system file's number, or None."""
    text = text_of(path)
    return int(text) if re.fullmatch(r"-?\d+", text) else None


def host_name() -> str:
    """The device's own name."""
    return socket.gethostname()


def state_of(root: str = "/") -> JSON:
    """What the device is and in what state, as far as an unprivileged user sees."""

    def at(path: str) -> str:
        return os.path.join(root, path)

    release = re.match(r"# R(\d+) .*?REVISION: ([\d.]+)", text_of(at("etc/nv_tegra_release")))
    governors = {text_of(path) for path in glob.glob(at("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor"))}
    turbo = text_of(at("sys/devices/system/cpu/intel_pstate/no_turbo"))
    boost = text_of(at("sys/devices/system/cpu/cpufreq/boost"))
    memory = dict(re.findall(r"(\w+): +(\d+) kB", text_of(at("proc/meminfo"))))
    return {
        "device": text_of(at("proc/device-tree/model")) or cpu_model(root),
        "machine": platform.machine(),
        "cores": os.cpu_count() or 0,
        "os": platform.system(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "l4t": ".".join(release.groups()) if release else "",
        "power_mode": power_mode(root),
        "clocks": clocks(root),
        "governor": ",".join(sorted(governors - {""})) or "unknown",
        "turbo": {"1": "off", "0": "on"}.get(turbo) or {"1": "on", "0": "off"}.get(boost, "unknown"),
        "memory_bytes": int(memory.get("MemTotal", 0)) << 10,
        "memory_available_bytes": int(memory.get("MemAvailable", 0)) << 10,
    }


def cpu_model(root: str) -> str:
    """The CPU's name, where there is no board's."""
    found = re.search(r"^model name\s*: (.*)$", text_of(os.path.join(root, "proc/cpuinfo")), re.M)
    return found.group(1).strip() if found else platform.processor() or platform.machine() or "unknown"


def power_mode(root: str) -> str:
    """The board's power mode, `id name`; '' where there is no such thing."""
    tool = shutil.which("nvpmodel") if root == "/" else None
    if tool:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run(
                [tool, "-q"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=10, check=False
            )
            found = re.search(r"NV Power Mode: *(\S+)\s+(\d+)", done.stdout.decode(errors="replace"))
            if found:
                return f"{found.group(2)} {found.group(1)}"
    found = re.search(r"pmode:0*(\d+)", text_of(os.path.join(root, "var/lib/nvpmodel/status")))
    return found.group(1) if found else ""


def clocks(root: str) -> str:
    """`locked` where every CPU and GPU clock has one frequency left, `free` where not, '' where nothing tells."""
    ends = []
    for pattern, low, high in (
        ("sys/devices/system/cpu/cpu[0-9]*/cpufreq", "scaling_min_freq", "scaling_max_freq"),
        ("sys/class/devfreq/*", "min_freq", "max_freq"),
    ):
        for folder in glob.glob(os.path.join(root, pattern)):
            ends.append((number_of(os.path.join(folder, low)), number_of(os.path.join(folder, high))))
    known = [pair for pair in ends if None not in pair]
    return ("locked" if all(low == high for low, high in known) else "free") if known else ""


def moment() -> JSON:
    """What changes while a job lives, in the words of a local environment."""
    allowed = sorted(os.sched_getaffinity(0))
    pinned = [] if len(allowed) == os.cpu_count() else allowed
    now = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
    load = round(os.getloadavg()[0], 2)
    return {"pinned": ",".join(str(cpu) for cpu in pinned), "load_1m": load, "captured_at": now}


def trtexec(root: str) -> str:
    """Where trtexec is, or ''."""
    usual = os.path.join(root, "usr/src/tensorrt/bin/trtexec")
    return shutil.which("trtexec") or (usual if os.path.exists(usual) else "")


class Sensors:
    """Where a device's sensors are; `read` gives them as raw numbers in the units of their files."""

    def __init__(self, root: str = "/") -> None:
        self.root = root
        self.rails: list[tuple[str, str, str, str, str]] = []
        self.overcurrent = self.find("sys/class/hwmon/hwmon*/oc*_event_cnt")
        self.zones = self.find("sys/class/thermal/thermal_zone*")
        self.cooling = self.find("sys/class/thermal/cooling_device*")
        self.devfreq = self.find("sys/class/devfreq/*")
        self.cpufreq = self.find("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")
        self.rapl = self.find("sys/class/powercap/intel-rapl:*/energy_uj")
        self.cpu_throttle = self.find("sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count")
        self.gpus = Gpus() if root == "/" else None
        for folder in self.find("sys/class/hwmon/hwmon*"):
            self.add_hwmon(folder)
        for path in self.find("sys/bus/i2c/drivers/ina3221x/*/iio:device*/rail_name_*"):
            folder, channel = os.path.dirname(path), path.rsplit("_", 1)[1]
            power = os.path.join(folder, f"in_power{channel}_input")
            self.rails.append(("ina3221x", text_of(path), "", "", power))

    def find(self, pattern: str) -> list[str]:
        """Paths that match below the root."""
        return sorted(glob.glob(os.path.join(self.root, pattern)))

    def add_hwmon(self, folder: str) -> None:
        """The power rails of one chip: volts times amperes by label, or power where the chip says it."""
        chip = text_of(os.path.join(folder, "name"))
        for path in sorted(glob.glob(os.path.join(folder, "in*_input"))):
            channel = os.path.basename(path)[2:-6]
            label, current = (os.path.join(folder, n) for n in (f"in{channel}_label", f"curr{channel}_input"))
            if os.path.exists(label) and os.path.exists(current):
                self.rails.append((chip, text_of(label), path, current, ""))
        power = os.path.join(folder, "power1_input")
        if chip.startswith("ina2") and os.path.exists(power):
            self.rails.append((chip, text_of(os.path.join(folder, "power1_label")), "", "", power))

    def read(self) -> JSON:
        """Raw readings: mV, mA, µW or mW by chip, m°C, Hz, kHz, counts; of GPUs mW, mJ, °C, MHz and bits."""

        def within(folder: str, *names: str) -> list[int | None]:
            return [number_of(os.path.join(folder, name)) for name in names]

        return {
            "t_ns": time.perf_counter_ns(),
            "time": time.time(),
            "rails": [
                [chip, label] + [number_of(path) if path else None for path in paths]
                for chip, label, *paths in self.rails
            ],
            "zones": [[text_of(os.path.join(f, "type")), *within(f, "temp")] for f in self.zones],
            "cooling": [[text_of(os.path.join(f, "type")), *within(f, "cur_state", "max_state")] for f in self.cooling],
            "devfreq": [[os.path.basename(f), *within(f, "cur_freq", "min_freq", "max_freq")] for f in self.devfreq],
            "cpufreq": [number_of(path) for path in self.cpufreq],
            "overcurrent": {os.path.basename(path)[: -len("_event_cnt")]: number_of(path) for path in self.overcurrent},
            "cpu_throttle": [number_of(path) for path in self.cpu_throttle],
            "gpus": [] if self.gpus is None else self.gpus.read(),
            "rapl": [[text_of(os.path.join(os.path.dirname(path), "name")), number_of(path)] for path in self.rapl],
        }


class Gpus:
    """Discrete GPUs, as NVIDIA's management library sees them; none where it is not there."""

    def __init__(self) -> None:
        self.handles: list[Any] = []
        try:
            self.library = ctypes.CDLL("libnvidia-ml.so.1")
        except OSError:
            return
        count = ctypes.c_uint()
        if self.library.nvmlInit_v2() == 0 and self.library.nvmlDeviceGetCount_v2(ctypes.byref(count)) == 0:
            found = [ctypes.c_void_p() for _ in range(count.value)]
            get = self.library.nvmlDeviceGetHandleByIndex_v2
            self.handles = [h for i, h in enumerate(found) if get(ctypes.c_uint(i), ctypes.byref(h)) == 0]

    def read(self) -> list[JSON]:
        """One row a GPU; what a GPU does not tell is None."""
        wide = ctypes.c_ulonglong
        return [
            {
                "power_mw": self.ask("nvmlDeviceGetPowerUsage", handle),
                "energy_mj": self.ask("nvmlDeviceGetTotalEnergyConsumption", handle, kind=wide),
                "temperature_c": self.ask("nvmlDeviceGetTemperature", handle, ctypes.c_int(0)),
                "sm_mhz": self.ask("nvmlDeviceGetClockInfo", handle, ctypes.c_int(1)),
                "reasons": self.ask("nvmlDeviceGetCurrentClocksThrottleReasons", handle, kind=wide),
            }
            for handle in self.handles
        ]

    def ask(self, name: str, *arguments: Any, kind: Any = ctypes.c_uint) -> int | None:
        """One number, or None where the library or the GPU has none."""
        found, call = kind(), getattr(self.library, name, None)
        return int(found.value) if call is not None and call(*arguments, ctypes.byref(found)) == 0 else None


def sample(folder: str) -> None:
    """Writes a job's telemetry until its worker is gone: sysfs, or tegrastats where sysfs shows no rail."""
    with open(os.path.join(folder, "config"), "rb") as stream:
        config = json.load(stream)
    parent, log = os.getppid(), os.path.join(folder, "telemetry")
    sensors, tool = Sensors(config["root"]), shutil.which("tegrastats")
    blind = all(row[-1] is None and row[2] is None for row in sensors.read()["rails"])
    if blind and tool and config["root"] == "/":
        interval = str(max(100, int(config["telemetry_s"] * 1000)))
        with subprocess.Popen([tool, "--interval", interval], stdout=subprocess.PIPE) as child:
            for line in child.stdout or ():
                append(log, dict(sensors.read(), tegrastats=line.decode(errors="replace").strip()))
                if os.getppid() != parent:
                    break
            child.terminate()
        return
    while os.getppid() == parent:
        append(log, sensors.read())
        time.sleep(config["telemetry_s"])
    if config.get("temporary"):  # nobody is left to remove it
        shutil.rmtree(folder, ignore_errors=True)


def main(arguments: list[str]) -> None:
    """Front, worker, sampler, or the answer to what can be imported."""
    own = site.getusersitepackages()  # isolated mode leaves it out; runtimes are often installed there
    if os.path.isdir(own):
        site.addsitedir(own)
    if not arguments:
        source: bytes | None = globals().get("SOURCE")
        if source is None:
            with open(__file__, "rb") as stream:
                source = stream.read()
        with contextlib.suppress(BrokenPipeError):
            Front(source).serve()
    elif arguments[0] == "runtimes":
        sys.stdout.write(json.dumps(runtimes()))
    elif arguments[0] == "sampler":
        sample(arguments[1])
    else:
        work(arguments[1])


def work(folder: str) -> None:
    """A worker, whose reason to end is written where there is room for it even on a full disk."""
    try:
        Worker(folder).run()
    except Exception as error:  # the last one to see it: it becomes the job's fault
        if not isinstance(error, Trouble):
            traceback.print_exc()
        data = json.dumps(record_of(error)).encode()[:FAULT_BYTES]
        handle = os.open(os.path.join(folder, "fault"), os.O_WRONLY)
        os.pwrite(handle, data.ljust(FAULT_BYTES), 0)
        os.close(handle)


if __name__ == "__main__":
    main(sys.argv[1:] if "SOURCE" not in globals() else [])
