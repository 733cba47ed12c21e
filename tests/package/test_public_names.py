"""The package's front: each public name is there, and is what it says."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

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


def test_no_room_is_called_like_a_public_name() -> None:
    """Importing a room never hides a function of the package."""
    rooms = {path.stem for path in Path(cpd_edge.__file__).parent.iterdir()}
    assert not rooms & set(dir(cpd_edge))
