"""The package's front: each public name is there, and is what it says."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

import cpd_edge


def test_version_is_the_distribution_s() -> None:
    """`cpd_edge.__version__` is what pip installed."""
    assert version("cpd-edge") == cpd_edge.__version__


@pytest.mark.parametrize("name", dir(cpd_edge))
def test_every_listed_name_can_be_fetched(name: str) -> None:
    """Whatever `dir(cpd_edge)` lists, `getattr` finds."""
    assert getattr(cpd_edge, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    """A misspelt name fails as on any module, naming itself."""
    with pytest.raises(AttributeError, match="prunee"):
        cpd_edge.prunee  # noqa: B018


def test_a_room_does_not_hide_the_function_of_its_name() -> None:
    """`cpd_edge.comb` stays a function after the room of that name is imported."""
    code = (
        "import cpd_edge, cpd_edge.comb\n"
        "from types import FunctionType\n"
        "assert isinstance(cpd_edge.comb, FunctionType), cpd_edge.comb\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
