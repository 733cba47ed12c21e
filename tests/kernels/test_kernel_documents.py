"""What `docs/kernels.md` says is so: its signatures are the sources', and its Python runs.

The examples run on the CPU: cuda-core through the emulated driver, PyCUDA through a stand-in for its module.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest
from on_host import Host, pretending

from cpd_edge.bundled import bundled
from cpd_edge.kernels import FUNCTIONS

DOCUMENT = Path(__file__).parents[2] / "docs/kernels.md"
CORE = importlib.util.find_spec("cuda") is not None and importlib.util.find_spec("cuda.core") is not None

FRAME = """
import numpy as np
from cpd_edge.kernels import Preprocess, reference
wanted = Preprocess(224, 224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), reverse=True, dtype="float16")
room = np.random.default_rng(0).integers(0, 256, (30, 160), np.uint8)
image = room[:, :150].copy().reshape(1, 30, 50, 3)
made = np.zeros((1, 3, 224, 224), np.float16)
"""
CHECK = "\nassert np.array_equal(reference.preprocess(wanted, image), made)\nprint('equal')\n"

PYCUDA = """
import sys, types
import numpy as np
from pathlib import Path
sys.path.insert(0, HERE)
from on_host import Host
from cpd_edge.kernels import Launch
class Module:
    def __init__(self, data): assert data[:4] == b"\\x7fELF"
    def get_function(self, name):
        def call(*arguments, block, grid, stream=None):
            assert all(isinstance(argument, np.generic) for argument in arguments)
            Host(Path(LIBRARY)).run(Launch(name, grid, block, arguments))
        return call
pycuda = types.ModuleType("pycuda")
pycuda.driver = types.ModuleType("pycuda.driver")
pycuda.driver.module_from_buffer = Module
sys.modules.update({"pycuda": pycuda, "pycuda.driver": pycuda.driver})
"""


def blocks(language: str) -> list[str]:
    """The document's code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), re.M | re.S)


def example(word: str) -> str:
    """The one Python block that holds `word`."""
    (found,) = [block for block in blocks("python") if word in block]
    return found


def test_the_signatures_are_the_sources(host: Host) -> None:
    """Every kernel stands there once, with the types that the compiler sees."""
    letters = {"int": "i", "float": "f", "long long": "q", "unsigned long long": "Q"}
    shown = {}
    for name, parameters in re.findall(r"^void (\w+)\((.*)\);$", blocks("c")[0], re.M):
        types = [re.sub(r"\s*\w+$", "", parameter.strip()) for parameter in parameters.split(",")]
        shown[name] = "".join("P" if kind.endswith("*") else letters[kind] for kind in types)
    assert {name: host.signature(name) for names in FUNCTIONS.values() for name in names} == shown


def test_every_parameter_is_described_in_its_source() -> None:
    """Each name in a signature stands in the comment that opens its file."""
    sources = {
        name: (bundled("kernels") / f"{source}.cu").read_text() for source, names in FUNCTIONS.items() for name in names
    }
    missing = []
    for name, parameters in re.findall(r"^void (\w+)\((.*)\);$", blocks("c")[0], re.M):
        head = sources[name].partition("#include")[0]
        words = set(re.findall(r"\w+", head)) | ({"a0", "a1", "a2", "b0", "b1", "b2"} if "a*, b*" in head else set())
        words |= {"box_top", "box_left", "box_h", "box_w"} if "box_*" in head else set()
        missing += [(name, p) for p in re.findall(r"(\w+)(?:,|$)", parameters) if p not in words]
    assert [] == [
        (name, p) for name, p in missing if p not in ("n", "h", "w", "rows", "src_h", "src_w", "dst_h", "dst_w")
    ]


def test_the_example_for_cpd_edge_runs(driver: Path) -> None:
    """It gives the reference's frame."""
    call = "\nprepare(room.ctypes.data, made.ctypes.data, 30, 50, 160, 0x2a)"
    _equal(pretending(FRAME + example("import Frames, Preprocess, launches, load") + call + CHECK, driver))


@pytest.mark.skipif(not CORE, reason="cuda-core is not installed")
def test_the_example_for_cuda_core_runs(driver: Path) -> None:
    """It gives the reference's frame, through cuda-core and the emulated driver."""
    call = "\nprepare(room.ctypes.data, made.ctypes.data, 30, 50, 160)\nstream.sync()"
    _equal(pretending(FRAME + example("cuda.core") + call + CHECK, driver))


def test_the_example_for_pycuda_runs(driver: Path, host: Host, tmp_path: Path) -> None:
    """It hands over NumPy scalars of the right types, and gives the reference's frame."""
    setting = f"HERE, LIBRARY = {str(Path(__file__).parent)!r}, {str(host.path)!r}\n"
    cubin = (
        "import os\nfrom cpd_edge.kernels.__main__ import main\n"
        f"os.chdir({str(tmp_path)!r})\nmain(['--cubins', 'cubins', '--arch', 'sm_87'])\n"
    )
    call = "\nprepare(room.ctypes.data, made.ctypes.data, 30, 50, 160, None)"
    _equal(pretending(setting + PYCUDA + cubin + FRAME + example("pycuda") + call + CHECK, driver))


def _equal(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("equal\n")


@pytest.mark.parametrize("page", [DOCUMENT, bundled("kernels") / "README.md"], ids=lambda path: path.name)
def test_the_pages_say_that_no_jetson_has_run_them(page: Path) -> None:
    """Until one has, both pages say so in bold."""
    assert re.search(r"\*\*Never run on a Jetson by us\.?\*\*", page.read_text(encoding="utf-8"))
