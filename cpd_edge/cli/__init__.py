"""The command line. Only this room prints; torch is imported by the commands that need it, never by `--help`."""

from cpd_edge.cli.commands import app, main

__all__ = ["app", "main"]
