"""`trtexec` on another device, where TensorRT may have no Python: its command lines run there, its files come here."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

from cpd_edge.measure.station import Station

SENT: Mapping[str, str] = {"--onnx": "model"}
"""Options that name a file of this machine, which the tool reads there."""
KEPT: Mapping[str, str] = {"--saveEngine": "engine", "--loadEngine": "engine", "--timingCacheFile": "timings"}
"""Options that name a file which stays there, for the next command line of the same job."""
FETCHED: Mapping[str, str] = {"--exportTimes": "times", "--exportProfile": "profile", "--exportLayerInfo": "layers"}
"""Options that name a file which is written there and wanted here."""


def tool_on(station: Station) -> Callable[..., SimpleNamespace]:
    """What runs a list of words on a device as `subprocess.run` does here; the first of them is `trtexec` there.

    Raises, when it is called:
        RuntimeMissing: the device has no `trtexec`.
        DeviceError: it cannot be reached or used.
    """

    def run(words: Sequence[str], **given: object) -> SimpleNamespace:
        line: list[tuple[str, str]] = []
        sent: dict[str, str] = {}
        fetched: dict[str, Path] = {}
        for word in words[1:]:
            option, _, value = word.partition("=")
            if option in SENT:
                sent[SENT[option]] = station.send(Path(value).read_bytes())
            if option in FETCHED:
                fetched[FETCHED[option]] = Path(value)
            name = {**SENT, **KEPT, **FETCHED}.get(option, "")
            line.append((f"{option}=", name) if name else (word, ""))
        done = station.ask("tool", words=line, sent=sent, wanted=list(fetched))[0]
        for name, data in done["files"].items():
            fetched[name].write_bytes(base64.b64decode(data))
        return SimpleNamespace(returncode=done["status"], stdout=done["said"])

    return run


__all__ = ["tool_on"]
