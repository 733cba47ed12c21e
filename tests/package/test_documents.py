"""What the documents tell a user to type exists."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("*/README.md")), *sorted(ROOT.glob("docs/*.md"))]


def code_lines(text: str) -> list[str]:
    """Lines of the indented and fenced code blocks, without their comments."""
    fenced = [line for block in re.findall(r"^```.*?\n(.*?)^```", text, re.M | re.S) for line in block.splitlines()]
    indented = re.findall(r"^ {4}(\S.*)$", text, re.M)
    return [line.partition(" #")[0].strip() for line in [*fenced, *indented]]


def typed(word: str, *documents: Path) -> list[str]:
    """Every distinct command line in the documents' code that runs `word`."""
    lines = [line for document in documents for line in code_lines(document.read_text())]
    lines += [word + rest for d in documents for rest in re.findall(rf"`{word}( [^`]+)`", d.read_text())]
    return sorted({line for line in lines if line.split(" ")[0] == word})


def demo_line() -> str:
    """The command that `make demo` runs."""
    found = re.search(r"^DEMO = (cpd-edge .*)$", (ROOT / "Makefile").read_text(), re.M)
    assert found is not None
    return found[1]


@cache
def help_text(command: str) -> str:
    """What `cpd-edge COMMAND --help` prints."""
    environment = {**os.environ, "COLUMNS": "300", "NO_COLOR": "1", "TERM": "dumb"}
    words = [sys.executable, "-m", "cpd_edge", *([command] if command else []), "--help"]
    return subprocess.run(words, capture_output=True, text=True, check=True, env=environment).stdout


COMMANDS = [*typed("cpd-edge", *DOCUMENTS), demo_line()]


def test_the_readme_shows_the_command_line() -> None:
    """The two tests below have something to look at."""
    assert len(COMMANDS) >= 8


@pytest.mark.parametrize("line", [line for line in COMMANDS if "COMMAND" not in line])
def test_every_command_in_the_documents_exists(line: str) -> None:
    """Each `cpd-edge COMMAND --option` that a document shows is in the CLI's help."""
    words = shlex.split(line)[1:]
    command = "" if words[0].startswith("-") else words[0]
    options = {word.partition("=")[0] for word in words if word.startswith("--")} - {"--help"}
    assert command in help_text("").split() or not command
    assert set() == options - set(re.findall(r"--[a-z][a-z-]*", help_text(command)))


@pytest.mark.parametrize("line", typed("make", *DOCUMENTS))
def test_every_make_target_in_the_documents_exists(line: str) -> None:
    """Each `make TARGET` that a document shows can be planned by make."""
    subprocess.run(["make", "--dry-run", *shlex.split(line)[1:]], cwd=ROOT, check=True, capture_output=True)


def test_make_alone_lists_every_target() -> None:
    """`make` names every phony target with a sentence."""
    shown = subprocess.run(["make", "--silent"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    phony = set(re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M))
    assert phony == set(re.findall(r"^make ([a-z-]+) +\S", shown, re.M))


def test_every_room_is_in_the_readme() -> None:
    """The README's house has each folder and module of the package."""
    text = (ROOT / "README.md").read_text()
    package = ROOT / "cpd_edge"
    rooms = {f"{p.name}/" if p.is_dir() else p.name for p in package.iterdir() if not p.name.startswith(("_", "."))}
    assert set() == {room for room in rooms if f"`{room}`" not in text}
