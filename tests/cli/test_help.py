"""Laws of the help: every verb has it, every option is explained."""

from __future__ import annotations

import subprocess
import sys

import pytest
from cli.shell import Shell

from cpd_edge.cli import commands
from cpd_edge.measure.runtimes import TITLES
from cpd_edge.types import EXIT_CODES

VERBS = ("prune", "comb", "profile", "solve", "bench", "report", "doctor", "sweep")


def test_help_names_every_verb_and_loads_no_torch() -> None:
    """`cpd-edge --help` lists the verbs in a process that never imports torch."""
    code = """
import sys
sys.argv = ["cpd-edge", "--help"]
from cpd_edge.cli import main
try:
    main()
finally:
    assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(f"  {verb} " in done.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_is_explained(shell: Shell, verb: str) -> None:
    """Each option and argument of a verb has its own words, and each verb has `--json`."""
    done = shell(verb, "--help")
    lines = [line for line in done.out.splitlines() if line.startswith("  ") and line.strip()]
    options = [i for i, line in enumerate(lines) if line.startswith("  -")]
    assert done.code == 0 and "--json" in done.out
    assert [] == [lines[i] for i in options if len(lines[i].split("  ")) < 3 and not lines[i + 1].startswith("    ")]


def test_every_runtime_is_offered(shell: Shell) -> None:
    """The help of `--runtime` names all that there are."""
    said = "".join(shell("profile", "--help").out.split())
    assert [] == [name for name in TITLES if name not in said]


@pytest.mark.parametrize("arguments", [("prun",), ("prune",), ("bench", "x.onnx", "--budgetms", "3")])
def test_words_that_are_no_command_are_refused(shell: Shell, arguments: tuple[str, ...]) -> None:
    """An unknown verb or option, or a missing argument, exits 2 and points at the help."""
    done = shell(*arguments)
    assert done.code == 2 and "--help" in done.err and "Traceback" not in done.err


def test_a_crash_is_no_verdict(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An error that nobody foresaw ends with its traceback and a code that stands for no verdict."""

    def crash() -> None:
        raise ZeroDivisionError("unforeseen")

    monkeypatch.setattr(commands, "app", crash)
    with pytest.raises(SystemExit) as ended:
        commands.main()
    assert ended.value.code == commands.CRASHED
    assert ended.value.code not in EXIT_CODES.values()
    assert "ZeroDivisionError: unforeseen" in capsys.readouterr().err
