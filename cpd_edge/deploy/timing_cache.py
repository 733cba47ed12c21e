"""Timing caches: what a builder measured of its kernels, kept for the next build on the same device.

One file a runtime, version and device. It is read before a build and written after it, atomically; a file that the
runtime does not take is begun anew, which costs time and nothing else.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from cpd_edge.store import write_bytes


def cache_folder() -> Path:
    """`$CPD_EDGE_CACHE`, or the user's cache folder."""
    given = os.environ.get("CPD_EDGE_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(given).expanduser() if given else Path(home).expanduser() / "cpd-edge"


def cache_path(folder: Path, runtime: str, version: str, gpu: str, power_mode: str = "") -> Path:
    """The file for one runtime, version and device; kernels are ranked differently in another power mode."""
    words = "-".join(word for word in (runtime, version, gpu, power_mode) if word)
    return folder / f"{re.sub(r'[^A-Za-z0-9.]+', '-', words).strip('-').lower()}.timing"


def attach(config: Any, path: Path) -> str:
    """Gives a builder configuration the cache, and says what became of it: `reused`, `new` or `refused`."""
    data = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(data)
    if config.set_timing_cache(cache, False):
        return "reused" if data else "new"
    config.set_timing_cache(config.create_timing_cache(b""), False)
    return "refused"


def keep(config: Any, path: Path) -> None:
    """Writes what the build has added."""
    cache = config.get_timing_cache()
    if cache is not None:
        write_bytes(path, bytes(cache.serialize()))


__all__ = ["attach", "cache_folder", "cache_path", "keep"]
