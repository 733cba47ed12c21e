"""One NVRTC library in a process of its own, through ctypes: started by `nvrtc.py`, standard library only.

Two NVRTC libraries of different releases in one process can crash it (11.8 beside 12.9 does), and another package may
have loaded one already. Request and answer are one JSON object each, on stdin and stdout:

    {"library": PATH}
        → {"version": [12, 9], "release": "12.9.86", "architectures": [53, …]}
    {"library": PATH, "texts": [[NAME, TEXT], …], "options": […]}
        → {"status": 0, "log": "…", "cubin": BASE64}
"""

from __future__ import annotations

import base64
import ctypes
import glob
import json
import os
import re
import sys
from collections.abc import Sequence
from typing import Any


def main() -> None:
    """Answers one request."""
    request = json.load(sys.stdin)
    library = _load(request["library"])
    answer = _compile(library, request["texts"], request["options"]) if "texts" in request else _describe(library)
    json.dump(answer, sys.stdout)


def _load(path: str) -> ctypes.CDLL:
    """The library, and before it the part that it opens by name alone and would look for in the system's folders."""
    for part in glob.glob(os.path.join(glob.escape(os.path.dirname(path)), "libnvrtc-builtins.so.*")):
        ctypes.CDLL(part)
    return ctypes.CDLL(path)


def _describe(library: ctypes.CDLL) -> dict[str, Any]:
    major, minor, count = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    _check(library, library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    _check(library, library.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
    numbers = (ctypes.c_int * count.value)()
    _check(library, library.nvrtcGetSupportedArchs(numbers))
    # The release, to the build, stands in the PTX that NVRTC makes and nowhere else.
    ptx = base64.b64decode(_compile(library, [["empty.cu", ""]], [], "nvrtcGetPTX")["cubin"])
    found = re.search(rb"\bV(\d+\.\d+\.\d+)", ptx)
    release = found[1].decode() if found else f"{major.value}.{minor.value}"
    return {"version": [major.value, minor.value], "release": release, "architectures": list(numbers)}


def _compile(
    library: ctypes.CDLL, texts: Sequence[Sequence[str]], options: Sequence[str], result: str = "nvrtcGetCUBIN"
) -> dict[str, Any]:
    """Compiles the first of `texts`, which may include the others by name."""
    (name, source), *headers = texts
    program = ctypes.c_void_p()
    contents, names = _strings([text for _, text in headers]), _strings([header for header, _ in headers])
    create = (ctypes.byref(program), source.encode(), name.encode(), len(headers), contents, names)
    _check(library, library.nvrtcCreateProgram(*create))
    status = library.nvrtcCompileProgram(program, len(options), _strings(options))
    log = _result(library, program, "nvrtcGetProgramLog").decode(errors="replace").rstrip("\0")
    made = b"" if status else _result(library, program, result)
    return {"status": status, "log": log, "cubin": base64.b64encode(made).decode()}


def _result(library: ctypes.CDLL, program: ctypes.c_void_p, getter: str) -> bytes:
    """The bytes of a getter that comes with a `...Size`."""
    size = ctypes.c_size_t()
    _check(library, library[f"{getter}Size"](program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(library, library[getter](program, buffer))
    return buffer.raw


def _strings(values: Sequence[str]) -> ctypes.Array[ctypes.c_char_p]:
    return (ctypes.c_char_p * len(values))(*(value.encode() for value in values))


def _check(library: ctypes.CDLL, status: int) -> None:
    """Raises on a status other than success, with NVRTC's own word for it."""
    if status:
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise OSError((library.nvrtcGetErrorString(status) or b"").decode() or f"NVRTC status {status}")


if __name__ == "__main__":
    main()
