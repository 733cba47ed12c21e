"""Folders of the repository that are not Python and that the package needs: found in a wheel and in a checkout.

A wheel carries them inside the package (`[tool.hatch.build.targets.wheel.force-include]` in `pyproject.toml`); an
editable install reads them where they are edited.
"""

from __future__ import annotations

from pathlib import Path

from cpd_edge.errors import RuntimeMissing

_PACKAGE = Path(__file__).parent
_PLACES = {
    "kernels": (_PACKAGE / "_kernels", _PACKAGE.parent / "kernels"),
    "devices": (_PACKAGE / "_devices", _PACKAGE.parent / "profiles" / "devices"),
}
"""Where each folder lies in a wheel, and where in a checkout."""


def bundled(name: str) -> Path:
    """The folder `kernels` (CUDA sources) or `devices` (device descriptions).

    Raises:
        RuntimeMissing: the installed package came without it.
    """
    for place in _PLACES[name]:
        if place.is_dir():
            return place
    raise RuntimeMissing(
        f"this installation of cpd-edge has no {name}: neither {_PLACES[name][0]} nor {_PLACES[name][1]} is there",
        hint="install it again: pip install --force-reinstall --no-deps cpd-edge",
    )
