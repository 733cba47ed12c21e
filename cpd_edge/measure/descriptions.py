"""Device descriptions: what public documents say of a board or a GPU, and which document says it.

A description is facts, and no measurement: no latency is in it, none is derived from it, and what no source was found
for is left out. The files lie in `profiles/devices/`, one JSON object each; `profiles/README.md` has the format.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from cpd_edge.bundled import bundled
from cpd_edge.errors import StoreError, UsageError

Kind = Literal["jetson", "gpu", "cpu"]

NO_FACTS = frozenset({"name", "title", "kind", "sources", "notes"})
"""Fields that need no source."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Source:
    """A public document, and the fields that it backs.

    Attributes:
        title: what it is.
        url: where it is.
        facts: names of fields of `DeviceDescription`.
    """

    title: str
    url: str
    facts: tuple[str, ...]


@dataclass(frozen=True)
class PowerMode:
    """One mode that `nvpmodel` can set.

    Attributes:
        id: number, unique within a configuration and not across configurations.
        name: as `nvpmodel -q` prints it.
        watts: power budget, where the mode states one.
        gpu_max_mhz: cap on the GPU's clock, where the mode sets one.
    """

    id: int
    name: str
    watts: float | None = None
    gpu_max_mhz: float | None = None


@dataclass(frozen=True)
class PowerModes:
    """The modes of one `nvpmodel` configuration; a board may have another after an update.

    Attributes:
        configuration: what tells it apart.
        modes: in the order of their numbers.
    """

    configuration: str
    modes: tuple[PowerMode, ...]


@dataclass(frozen=True)
class Rail:
    """A measured supply.

    Attributes:
        name: label under hwmon, powercap or in tegrastats.
        monitor: what measures it (`ina3221`, `ina238`, `rapl`).
    """

    name: str
    monitor: str


@dataclass(frozen=True)
class Software:
    """Versions that belong together on a Jetson.

    Attributes:
        jetpack, l4t, cuda, tensorrt, python: versions as their documents write them.
    """

    jetpack: str
    l4t: str
    cuda: str
    tensorrt: str
    python: str | None = None


@dataclass(frozen=True)
class DeviceDescription:
    """One device. What is None or empty is not known here, except that no accelerator is `dla_cores` 0.

    Attributes:
        name: of the file (`jetson-orin-nano-8gb`).
        title: for people.
        kind: `jetson`, `gpu` (discrete) or `cpu`.
        sources: documents and what each backs.
        arch: compute capability as compilers write it (`sm_87`).
        memory_bytes: on a Jetson shared by CPU and GPU, on a GPU its own.
        memory_type: `LPDDR5`.
        memory_gb_per_s: theoretical bandwidth [10^9 bytes/s].
        gpu_max_mhz: highest clock (boost clock of a GPU).
        dla_cores: deep learning accelerators.
        cpu: name of the processor.
        cpu_cores: physical cores.
        cpu_max_mhz: highest clock.
        board_watts: board power of a GPU.
        power_modes: by configuration.
        rails: that can be measured.
        total_rails: the rails whose sum is the total; None where that is not known.
        total_scope: what the total covers.
        software: version sets that support it.
        notes: what a reader must know besides.
    """

    name: str
    title: str
    kind: Kind
    sources: tuple[Source, ...]
    arch: str | None = None
    memory_bytes: int | None = None
    memory_type: str | None = None
    memory_gb_per_s: float | None = None
    gpu_max_mhz: float | None = None
    dla_cores: int | None = None
    cpu: str | None = None
    cpu_cores: int | None = None
    cpu_max_mhz: float | None = None
    board_watts: float | None = None
    power_modes: tuple[PowerModes, ...] = ()
    rails: tuple[Rail, ...] = ()
    total_rails: tuple[str, ...] | None = None
    total_scope: str | None = None
    software: tuple[Software, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def facts(self) -> tuple[str, ...]:
        """Names of the fields that say something and need a source."""
        fields = (f.name for f in dataclasses.fields(self) if f.name not in NO_FACTS)
        return tuple(name for name in fields if getattr(self, name) not in (None, ()))


@cache
def descriptions(folder: Path | None = None) -> Mapping[str, DeviceDescription]:
    """Every description by name, in the order of names.

    Args:
        folder: of the JSON files; those that came with the package if None.

    Raises:
        StoreError: a file that is not JSON, or has unknown, missing or mistyped fields.
        RuntimeMissing: the package came without descriptions.
    """
    files = sorted((folder or bundled("devices")).glob("*.json"))
    return {path.stem: read_description(path) for path in files}


def description(name: str) -> DeviceDescription:
    """The description called `name`.

    Raises:
        UsageError: there is none of that name.
    """
    known = descriptions()
    if name not in known:
        raise UsageError(f"no device description is called {name!r}", hint=f"there are {', '.join(known)}")
    return known[name]


def matching(model: str, memory_bytes: int, machine: str = "") -> DeviceDescription | None:
    """The description of a board that calls itself `model`, or None: no guess is better than a wrong board.

    Every word of the title's board must be in the model's name, and of several the one with the most words is meant
    (`Orin Nano` is no `Nano`); the memory that the system sees is a little less than the board's.

    Args:
        model: the device tree's, or a processor's name.
        memory_bytes: that the system sees; 0 where that is not known.
        machine: architecture, as `uname -m` says it.
    """
    said = _words(model)
    fits = [
        found
        for found in descriptions().values()
        if found.kind != "gpu"
        and _board(found) <= said
        and (found.memory_bytes is None or memory_bytes <= found.memory_bytes <= 1.5 * memory_bytes)
    ]
    if fits:
        return max(fits, key=lambda found: (len(_board(found)), -(found.memory_bytes or 0)))
    return descriptions()["cpu-x86-64"] if machine == "x86_64" else None


def _board(found: DeviceDescription) -> frozenset[str]:
    """The words of a title that name the board: not its memory, and not what stands behind a comma."""
    return frozenset(word for word in _words(found.title.partition(",")[0]) if not re.fullmatch(r"\d+gb", word))


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z0-9]+", text.lower()))


def read_description(path: Path) -> DeviceDescription:
    """Reads one file.

    Raises:
        StoreError: it is not JSON, its name is another than its `name`, or a field is unknown, missing or mistyped.
    """
    try:
        found = _build(DeviceDescription, json.loads(path.read_text(encoding="utf-8")), "")
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: {error}", hint="profiles/README.md has the format") from None
    if found.name != path.stem:
        raise StoreError(f"{path}: its name is {found.name!r}", hint="name the file after the device, or the reverse")
    return found


def _build(kind: type[_T], data: Any, place: str) -> _T:
    """A frozen dataclass from JSON; every key is known, every type is right.

    Raises:
        ValueError: names the place and what is wrong there.
    """
    if not isinstance(data, dict):
        raise ValueError(f"{place or 'the file'} is {type(data).__name__}, not an object")
    hints = get_type_hints(kind)
    unknown = sorted(set(data) - set(hints))
    if unknown:
        raise ValueError(f"{place or 'the file'} has unknown fields: {', '.join(unknown)}")
    fields: Any = dataclasses.fields(kind)  # type: ignore[arg-type]
    missing = [f.name for f in fields if f.default is dataclasses.MISSING and f.name not in data]
    if missing:
        raise ValueError(f"{place or 'the file'} lacks {', '.join(missing)}")
    return kind(**{key: _value(hints[key], value, f"{place}{key}") for key, value in data.items()})


def _value(hint: Any, data: Any, place: str) -> Any:
    """`data` as the type that `hint` names."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        if data is None:
            raise ValueError(f"{place} is null: leave it out")
        return _value(next(part for part in get_args(hint) if part is not NoneType), data, place)
    if origin is tuple:
        if not isinstance(data, list):
            raise ValueError(f"{place} is {type(data).__name__}, not a list")
        return tuple(_value(get_args(hint)[0], item, f"{place}[{i}].") for i, item in enumerate(data))
    if origin is Literal:
        if data not in get_args(hint):
            raise ValueError(f"{place} is {data!r}, not one of {', '.join(get_args(hint))}")
        return data
    if dataclasses.is_dataclass(hint):
        return _build(hint, data, place)  # type: ignore[arg-type]
    right = (int, float) if hint is float else (hint,)
    if isinstance(data, bool) or not isinstance(data, right):
        raise ValueError(f"{place} is {data!r}, not {hint.__name__}")
    return hint(data)
