"""What is built and what is tracked: complete, and nothing of the machine it was made on."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRIVATE = [f"/{name}" + "/" for name in ("root", "work", "home", "Users")]
HOSTS = ["pypi" + ".org", "pythonhosted" + ".org", "download" + ".pytorch", "pypi" + ".nvidia", "deb" + ".debian"]
"""Written in halves, so that this file does not hold what it looks for."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Names in the sdist and in the wheel made from it."""
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    with tarfile.open(sdist) as tar, zipfile.ZipFile(wheel) as archive:
        return {"sdist": {name.partition("/")[2] for name in tar.getnames()}, "wheel": set(archive.namelist())}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sdist", "wheel"])
def test_the_package_is_complete(built: dict[str, set[str]], kind: str) -> None:
    """Every tracked file of the package, the report's templates too, is in the sdist and in the wheel."""
    wanted = {name for name in tracked() if name.startswith("cpd_edge/")}
    assert any(name.startswith("cpd_edge/report/templates/") for name in wanted)
    assert set() == wanted - built[kind]


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(built: dict[str, set[str]]) -> None:
    """No tests, no build files: the wheel is `cpd_edge` and its metadata."""
    assert {"cpd_edge", "cpd_edge-0.1.0.dist-info"} == {name.partition("/")[0] for name in built["wheel"]}


@pytest.mark.slow
def test_the_wheel_carries_kernels_and_devices(built: dict[str, set[str]]) -> None:
    """Every CUDA source and device description is in the wheel."""
    homes = {"kernels/": "cpd_edge/_kernels/", "profiles/devices/": "cpd_edge/_devices/"}
    wanted = {new + name[len(old) :] for old, new in homes.items() for name in tracked() if name.startswith(old)}
    assert wanted and set() == wanted - built["wheel"]


@pytest.mark.slow
def test_the_sdist_holds_no_tests(built: dict[str, set[str]]) -> None:
    """The sdist is the package, its metadata and its texts."""
    assert set() == {name for name in built["sdist"] if name.startswith(("tests", ".ci", "ci"))}


def tracked() -> list[str]:
    """Files that are in the repository, or would be with the next commit."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    return [name for name in names if name and (ROOT / name).is_file()]


def test_no_tracked_file_names_a_machine_or_a_registry() -> None:
    """No absolute path of somebody's machine and no registry host stands in any tracked file."""
    marks = re.compile("|".join(map(re.escape, [*PRIVATE, *HOSTS])).encode())
    assert [] == [name for name in tracked() if marks.search((ROOT / name).read_bytes())]


def test_tracked_files_are_small() -> None:
    """No tracked file is above 1 MiB: measured data and models stay out of the repository."""
    assert [] == [name for name in tracked() if (ROOT / name).stat().st_size > 1 << 20]
