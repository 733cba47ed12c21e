"""Laws of timing caches: one file a device, read before a build, written after it, and begun anew where refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpd_edge.deploy.build_progress import progress_monitor
from cpd_edge.deploy.timing_cache import attach, cache_folder, cache_path, keep


class Config:
    """A builder configuration that takes caches of its own kind; emulated, TensorRT-RTX keeps none."""

    def __init__(self, entries: bytes = b"") -> None:
        self.entries, self.cache = entries, b""

    def create_timing_cache(self, data: bytes) -> bytes:
        return data

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        taken = not cache or cache.startswith(b"10.3")
        self.cache = cache if taken else self.cache
        return taken

    def get_timing_cache(self) -> Config:
        return self

    def serialize(self) -> bytes:
        return self.cache + self.entries


def test_a_cache_grows_over_builds_and_a_foreign_one_is_begun_anew(tmp_path: Path) -> None:
    """New, then reused; what the runtime does not take costs time and nothing else."""
    path = tmp_path / "caches/orin.timing"
    first = Config(b"10.3 conv")
    assert "new" == attach(first, path)
    keep(first, path)
    second = Config(b" gemm")
    assert "reused" == attach(second, path)
    keep(second, path)
    assert b"10.3 conv gemm" == path.read_bytes()
    path.write_bytes(b"8.6 conv")
    assert "refused" == attach(Config(), path)


def test_devices_versions_and_power_modes_have_files_of_their_own(tmp_path: Path) -> None:
    """And names become file names."""
    paths = {
        cache_path(tmp_path, "tensorrt", version, gpu, mode)
        for version in ("8.6.1", "10.3.0") for gpu in ("Orin", "NVIDIA A100/80GB") for mode in ("", "MAXN")
    }  # fmt: skip
    assert 8 == len(paths)
    assert tmp_path / "tensorrt-10.3.0-nvidia-a100-80gb-maxn.timing" in paths


def test_the_folder_is_the_user_s_or_the_one_that_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`CPD_EDGE_CACHE` before `XDG_CACHE_HOME`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CPD_EDGE_CACHE", raising=False)
    assert tmp_path / "cpd-edge" == cache_folder()
    monkeypatch.setenv("CPD_EDGE_CACHE", str(tmp_path / "mine"))
    assert tmp_path / "mine" == cache_folder()


def test_a_runtime_without_progress_tells_its_beginning_and_end() -> None:
    """As TensorRT 8 does."""
    seen: list[tuple[float, str]] = []
    progress_monitor(object(), object(), lambda fraction, text: seen.append((fraction, text))).finish()
    progress_monitor(object(), object(), None).finish()
    assert [(0.0, "building"), (1.0, "")] == seen
