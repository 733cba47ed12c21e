"""The kernels run clean under the address, undefined-behaviour and thread sanitizers, and these do see what is wrong.

The tests of what the kernels compute run again, in a process of their own, on a build with the sanitizer in it. Then
the sources are broken on purpose, to see it speak.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
from on_host import build, compiler

from cpd_edge.bundled import bundled

HERE = Path(__file__).parent
CHECKS = {
    "address": ("-fsanitize=address,undefined,float-cast-overflow,float-divide-by-zero", "-fno-sanitize-recover=all"),
    "thread": ("-fsanitize=thread",),
}
PRELOADED = {"address": ("libasan.so", "libubsan.so"), "thread": ("libtsan.so",)}

TOPK = """
import numpy as np
from pathlib import Path
from on_host import Host
from cpd_edge.kernels import launches
logits, values, indices = np.zeros((1, 64), np.float32), np.zeros((1, 2), np.float32), np.zeros((1, 2), np.int32)
pointers = (logits.ctypes.data, logits.shape, values.ctypes.data, indices.ctypes.data, 2)
Host(Path(LIBRARY)).run(launches.topk(*pointers), 16)
"""

PREPROCESS = """
import numpy as np
from pathlib import Path
from on_host import Host, frames
from cpd_edge.kernels import Preprocess, launches
image, made = np.full((1, 4, 4, 1), 255, np.uint8), np.zeros(4 * 4, np.int8)
recipe = Preprocess(4, 4, channels=1, dtype="int8", scale=1e-6)
Host(Path(LIBRARY)).run(launches.preprocess(recipe, frames(image), made.ctypes.data))
"""


@pytest.fixture(scope="module")
def libraries() -> dict[str, str]:
    """The sanitizers' own libraries, which have to be in the process from its start."""
    if compiler() is None:
        pytest.skip("no g++ here to run the kernels on the CPU")
    return {check: " ".join(_library(name) for name in names) for check, names in PRELOADED.items()}


@cache
def _library(name: str) -> str:
    asked = subprocess.run(
        [compiler() or "g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    )
    if not os.path.isabs(asked.stdout.strip()):
        pytest.skip(f"this g++ came without {name}")
    return os.path.realpath(asked.stdout.strip())


def run(
    words: Sequence[str], check: str, libraries: dict[str, str], **settings: str
) -> subprocess.CompletedProcess[str]:
    """Python with the sanitizer in it, at fixed addresses where the system allows it, which the thread one needs."""
    fixed = [shutil.which("setarch"), "-R"] if shutil.which("setarch") and check == "thread" else []
    quiet = {"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "exitcode=66"}
    environment = {**os.environ, **quiet, **settings, "LD_PRELOAD": libraries[check], "PYTHONPATH": str(HERE)}
    command = [*map(str, fixed), sys.executable, *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    if "unexpected memory mapping" in done.stderr or "failed to set personality" in done.stderr:
        pytest.skip("this system places memory where the thread sanitizer cannot work")
    return done


@pytest.mark.slow
@pytest.mark.parametrize(
    ("check", "files"),
    [("address", ("preprocess", "segmentation", "topk", "timing")), ("thread", ("topk",))],
)
def test_the_kernels_run_clean(check: str, files: tuple[str, ...], libraries: dict[str, str], tmp_path: Path) -> None:
    """Every test of what the kernels compute passes with the sanitizer watching."""
    library = build(tmp_path / "edge.so", "-O1", "-g", *CHECKS[check])
    paths = [str(HERE / f"test_{name}_kernels.py") for name in files]
    options = ["-q", "-p", "no:xdist", "-o", f"cache_dir={tmp_path / 'cache'}", f"--rootdir={HERE.parents[1]}"]
    done = run(["-m", "pytest", *options, *paths], check, libraries, CPD_EDGE_HOST_KERNELS=str(library))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("check", "source", "line", "broken", "code", "says"),
    [
        pytest.param(
            "thread", "topk.cu", "      best[self] = mine;\n      __syncthreads();", "      best[self] = mine;", TOPK,
            "data race", id="a missing barrier",
        ),
        pytest.param(
            "address", "preprocess.cu", "if (x >= plan.dst_w) return;", "if (x > plan.dst_w) return;", PREPROCESS,
            "heap-buffer-overflow", id="one column too many",
        ),
        pytest.param(
            "address", "preprocess.cu", "fminf(fmaxf(q, -128.0f), 127.0f)", "q", PREPROCESS,
            "outside the range of representable values", id="a cast that overflows",
        ),
    ],
)  # fmt: skip
def test_the_sanitizer_sees_a_broken_kernel(
    check: str, source: str, line: str, broken: str, code: str, says: str, libraries: dict[str, str], tmp_path: Path
) -> None:
    """A barrier, a bound and a clamp that are taken out are each found."""
    folder = tmp_path / "kernels"
    shutil.copytree(bundled("kernels"), folder)
    text = (folder / source).read_text()
    assert line in text
    (folder / source).write_text(text.replace(line, broken))
    library = build(tmp_path / "edge.so", "-O1", "-g", *CHECKS[check], sources=folder)
    done = run(["-c", f"LIBRARY = {str(library)!r}\n{code}"], check, libraries)
    assert done.returncode != 0
    assert says in done.stderr
