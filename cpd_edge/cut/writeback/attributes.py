"""Attributes of modules: where integers and tensors stand in them, which are read, and how one is replaced.

Nothing that a module refers to is changed in place: a list, a configuration object or a partial that is shared with
other modules, or with the teacher, stays as it was, and the module gets its own copy.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

OWN = frozenset(vars(nn.Module()))
"""What every module has in its dictionary."""


@dataclass(frozen=True)
class Address:
    """Where a value stands: a module's path, an attribute's name, and the way into what the attribute holds.

    Attributes:
        module: the module's path, '' for the root.
        steps: the attribute's name first; then keys and positions, or names of a plain object's attributes.
    """

    module: str
    steps: tuple[str | int, ...]

    def __str__(self) -> str:
        rest = "".join(f"[{s}]" if isinstance(s, int) else f".{s}" for s in self.steps[1:])
        return f"{self.module}.{self.steps[0]}{rest}".lstrip(".")


def integers(path: str, module: nn.Module, *, members: bool) -> Iterator[tuple[Address, int]]:
    """The integers that a module's attributes hold, those of its class that its forward may read among them.

    Args:
        path: the module's path.
        module: the module.
        members: also those of plain objects, such as a configuration.
    """
    for name, held in _attributes(module).items():
        for steps, value in _leaves(held, (name,), members):
            if type(value) is int:
                yield Address(path, steps), value


def tensors(path: str, module: nn.Module) -> Iterator[tuple[Address, Tensor]]:
    """The tensors that are neither parameters nor buffers of a module, but plain attributes."""
    for name, held in vars(module).items():
        if name not in OWN:
            for steps, value in _leaves(held, (name,), members=True):
                if isinstance(value, Tensor):
                    yield Address(path, steps), value


def fetch(module: nn.Module, address: Address) -> Any:
    """The value at an address of its module."""
    held: Any = getattr(module, str(address.steps[0]))
    for step in address.steps[1:]:
        held = _into(held, step)
    return held


def put(module: nn.Module, address: Address, value: object) -> None:
    """Sets the value at an address of its module; what holds it on the way is copied, not changed."""
    name, *rest = address.steps
    vars(module)[str(name)] = _rebuilt(getattr(module, str(name)), rest, value) if rest else value


@contextlib.contextmanager
def reads(model: nn.Module) -> Iterator[set[tuple[int, str]]]:
    """Collects which attributes of a model's modules are read, by anyone, as `(id of the module, name)`."""
    seen: set[tuple[int, str]] = set()
    watched = {id(module) for module in model.modules()}

    def read(self: nn.Module, name: str) -> Any:
        if id(self) in watched:
            seen.add((id(self), name))
        return object.__getattribute__(self, name)

    nn.Module.__getattribute__ = read  # type: ignore[assignment,method-assign]
    try:
        yield seen
    finally:
        del nn.Module.__getattribute__


def _attributes(module: nn.Module) -> dict[str, Any]:
    """What a module holds itself, and the plain integers of its class where that is not torch's."""
    found: dict[str, Any] = {}
    for kind in reversed(type(module).__mro__):
        if not kind.__module__.startswith("torch.") and kind is not object:
            found.update((k, v) for k, v in vars(kind).items() if type(v) is int and not k.startswith("_"))
    found.update((k, v) for k, v in vars(module).items() if k not in OWN)
    return found


def _leaves(held: Any, steps: tuple[str | int, ...], members: bool) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    if isinstance(held, (list, tuple)) and len(steps) < 4:
        for i, value in enumerate(held):
            yield from _leaves(value, (*steps, i), members)
    elif isinstance(held, Mapping) and len(steps) < 4:
        for key, value in held.items():
            if isinstance(key, (str, int)):
                yield from _leaves(value, (*steps, key), members)
    elif isinstance(held, functools.partial) and len(steps) < 3:
        yield from _leaves(held.keywords, (*steps, "keywords"), members)
    elif members and _is_plain(held) and len(steps) == 1:
        for name, value in vars(held).items():
            yield from _leaves(value, (*steps, name), members)
    else:
        yield steps, held


def _is_plain(held: Any) -> bool:
    """Whether it is a user's own object that is no module: a configuration, a namespace, a dataclass."""
    made_here = type(held).__module__.partition(".")[0] not in ("torch", "numpy", "builtins")
    return hasattr(held, "__dict__") and made_here and not isinstance(held, (nn.Module, Tensor, type)) \
        and not callable(held)  # fmt: skip


def _into(held: Any, step: str | int) -> Any:
    return held[step] if isinstance(held, (list, tuple, Mapping)) else getattr(held, str(step))


def _rebuilt(held: Any, steps: list[str | int], value: object) -> Any:
    step, *rest = steps
    new = _rebuilt(_into(held, step), rest, value) if rest else value
    if isinstance(held, tuple):
        parts = [new if i == step else part for i, part in enumerate(held)]
        return type(held)(*parts) if hasattr(held, "_fields") else type(held)(parts)
    if isinstance(held, functools.partial):
        return functools.partial(held.func, *held.args, **new)
    copied = copy.copy(held)
    if isinstance(copied, (list, dict)):
        copied[step] = new  # type: ignore[index]
    else:
        object.__setattr__(copied, str(step), new)
    return copied
