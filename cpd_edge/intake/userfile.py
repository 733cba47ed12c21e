"""A user's `FILE.py:NAME`: imported from its path, with the user's own line in every error."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from cpd_edge.errors import CpdError, UsageError


def split(spec: str) -> tuple[Path, str] | None:
    """`FILE.py:NAME` as path and name; None where the spec has another form."""
    file, colon, name = spec.rpartition(":")
    if not colon:
        return (Path(spec), "") if spec.endswith(".py") else None
    return (Path(file), name) if file.endswith(".py") else None


def load(spec: str, kind: type[UsageError], **offered: object) -> Any:
    """What `NAME` in `FILE.py` gives: called if it is callable, with those of `offered` that it names as parameters.

    Raises:
        UsageError: of the given kind: no such file, no such name, or the user's code raised.
    """
    found = split(spec)
    if found is None:
        raise kind(f"{spec!r} is not FILE.py:NAME", hint="for example my_models.py:make_net")
    file, name = found
    if not file.is_file():
        raise kind(f"{file} does not exist (from {spec!r})", hint=f"the working folder is {Path.cwd()}")
    with _siblings(file), _users_line(file, kind):
        module = _import(file)
        if not hasattr(module, name):
            own = module.__name__
            public = [n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == own]
            wrong = f"{file} has no {name!r}" if name else f"{spec!r} names nothing in the file: give {file}:NAME"
            raise kind(wrong, hint=f"it defines: {', '.join(public) or 'nothing'}")
        thing = getattr(module, name)
        return _call(thing, offered) if isinstance(thing, type) or not hasattr(thing, "state_dict") else thing


def _call(factory: Any, offered: dict[str, object]) -> Any:
    if not callable(factory):
        return factory
    named = inspect.signature(factory).parameters
    return factory(**{key: value for key, value in offered.items() if key in named and value is not None})


def _import(file: Path) -> ModuleType:
    """Runs the file as a module of its own name, registered so that its classes can be found again."""
    name = f"cpd_edge_user_{file.stem}"
    made = importlib.util.spec_from_file_location(name, file)
    assert made is not None and made.loader is not None, file
    module = importlib.util.module_from_spec(made)
    sys.modules[name] = module
    made.loader.exec_module(module)
    return module


@contextmanager
def _siblings(file: Path) -> Iterator[None]:
    """Lets the user's file import the files beside it, as `python FILE.py` would."""
    folder = str(file.resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


@contextmanager
def _users_line(file: Path, kind: type[UsageError]) -> Iterator[None]:
    """Turns whatever the user's code raises into one error that names the user's file and line."""
    try:
        yield
    except CpdError:
        raise
    except SyntaxError as error:
        raise kind(f"{error.filename}:{error.lineno}: SyntaxError: {error.msg}") from error
    except Exception as error:  # the user's code may raise anything; it is kept as the cause
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if Path(f.filename).resolve() == file.resolve()]
        at = own[-1] if own else frames[-1]
        said = f"{at.filename}:{at.lineno}: {type(error).__name__}: {error}"
        raise kind(said, hint=f"in: {(at.line or '').strip()}") from error
