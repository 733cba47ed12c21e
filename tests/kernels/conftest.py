"""One build of the kernels for this CPU, and an emulated driver over it, shared by the tests of a session."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
from on_host import Host, build, build_beside, compiler

GIVEN = os.environ.get("CPD_EDGE_HOST_KERNELS")
"""A library that was built already: how the tests run again under a sanitizer."""


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    """The kernels on this CPU."""
    if GIVEN:
        return Host(Path(GIVEN))
    if compiler() is None:
        pytest.skip("no g++ here to run the kernels on the CPU")
    return Host(build(tmp_path_factory.mktemp("kernels") / "edge.so", "-O2"))


@pytest.fixture(scope="session")
def driver(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a library that calls itself the NVIDIA driver."""
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.bindings") is None:
        pytest.skip("cuda-bindings is not installed")
    folder = tmp_path_factory.mktemp("driver")
    build_beside(folder / "libcuda.so.1", host.path, Path(__file__).with_name("emulated_driver.cpp"))
    return folder
