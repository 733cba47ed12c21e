"""The user's devices: a name, an address, and how to measure there, in one file of the user's configuration.

The file is `devices.json` under `$CPD_EDGE_CONFIG`, else `$XDG_CONFIG_HOME/cpd-edge`, else `~/.config/cpd-edge`.
Format history: 1, the first.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from cpd_edge.errors import StoreError, UsageError
from cpd_edge.measure.ssh import Address
from cpd_edge.store import read_json, write_json

FORMAT = 1
LOCAL = "local"
"""The name of this machine, which needs no entry."""

SIMULATED = "simulated"
"""The name of the device that is arithmetic: for trying the whole path, never for a number."""

FOLDER = "~/.cache/cpd-edge"
"""Where a device keeps what it is sent and what it measured, if not told otherwise."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
_RESERVED = (LOCAL, SIMULATED)


@dataclass(frozen=True)
class Device:
    """A named device.

    Attributes:
        name: lower-case letters, digits, `_`, `.` and `-`.
        url: `ssh://[user@]host[:port]`.
        python: interpreter on the device that has the runtime; '' is the `python3` that ssh finds.
        folder: where the device keeps files and jobs.
        ssh_config: file given to ssh as `-F`; '' is the user's own.
        telemetry_s: seconds between readings of its sensors; 0 reads none.

    Raises:
        UsageError: a name or an address that is none.
    """

    name: str
    url: str
    python: str = ""
    folder: str = FOLDER
    ssh_config: str = ""
    telemetry_s: float = 1.0

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name in _RESERVED:
            raise UsageError(
                f"{self.name!r} cannot be the name of a device",
                hint="lower-case letters, digits, '_', '.' and '-', not 'local' or 'simulated', for example orin-nano",
            )
        if self.telemetry_s and not 0.1 <= self.telemetry_s <= 60:
            raise UsageError(
                f"telemetry every {self.telemetry_s} s", hint="give 0.1 to 60 seconds, or 0 to read no sensors"
            )
        if "\0" in self.python + self.folder + self.ssh_config or not self.folder:
            raise UsageError(f"device {self.name}: a path with a zero byte, or an empty folder", hint="give a path")
        _ = self.address

    @property
    def address(self) -> Address:
        """Where `ssh` goes."""
        return Address.parse(self.url, self.ssh_config or None)


def config_folder() -> Path:
    """Where the user's configuration lies."""
    given = os.environ.get("CPD_EDGE_CONFIG")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "cpd-edge"


def registry() -> Path:
    """The file of the devices."""
    return config_folder() / "devices.json"


def load() -> dict[str, Device]:
    """All devices by name, in alphabetical order.

    Raises:
        StoreError: the file cannot be read, or is of another format.
    """
    path = registry()
    if not path.exists():
        return {}
    data = read_json(path)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else None
        raise StoreError(f"{path}: format {found}, this version reads {FORMAT}", hint="pip install -U cpd-edge")
    try:
        return {name: Device(name=name, **fields) for name, fields in sorted(data["devices"].items())}
    except (KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{path} is damaged: {error}", hint="correct it, or remove it and add the devices") from None


def get(name: str) -> Device:
    """One device.

    Raises:
        UsageError: there is none of this name.
    """
    known = load()
    if name not in known:
        raise UsageError(
            f"unknown device {name!r}" + (f"; known are {', '.join([LOCAL, *known])}" if known else ""),
            hint="add it: cpd-edge devices add NAME ssh://user@host, or measure on this machine: --device local",
        )
    return known[name]


def add(device: Device, *, replace: bool = False) -> None:
    """Writes a device down.

    Raises:
        UsageError: the name is taken.
    """
    known = load()
    if device.name in known and not replace:
        raise UsageError(
            f"there is a device {device.name} already, at {known[device.name].url}",
            hint="add --replace, or give another name",
        )
    _save({**known, device.name: device})


def remove(name: str) -> Device:
    """Forgets a device; nothing is changed on it.

    Raises:
        UsageError: there is none of this name.
    """
    gone = get(name)
    _save({other: device for other, device in load().items() if other != name})
    return gone


def _save(known: Mapping[str, Device]) -> None:
    rows = {name: {k: v for k, v in asdict(device).items() if k != "name"} for name, device in sorted(known.items())}
    write_json(registry(), {"format": FORMAT, "devices": rows})
