"""`cpd-edge tables`: what was measured on which device, to list, to hand on as a file, and to take in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cpd_edge.cli.console import show, told
from cpd_edge.cli.options import Json
from cpd_edge.cli.text import exchange_text, tables_text

Profiles = Annotated[str | None, typer.Option("--profiles", help="folder of measured tables")]
File = Annotated[Path, typer.Argument(help="FILE.csv or FILE.parquet")]
Matching = Annotated[str, typer.Option("--device", help="only tables of devices whose name holds this")]
Signed = Annotated[str, typer.Option("--model", help="only tables of models whose signature begins so")]


def register(app: typer.Typer) -> None:
    """Adds the commands to the command line."""
    group = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List, export and import measured tables.")
    group.command("list")(list_tables)
    group.command("export")(export_tables)
    group.command("import")(import_tables)
    app.add_typer(group, name="tables")


def list_tables(device: Matching = "", model: Signed = "", profiles: Profiles = None, as_json: Json = False) -> None:
    """Show the stored tables: device, runtime, precision, threads, model, error."""
    with told(as_json):
        from cpd_edge.pipeline.tables import list_tables as work

        found = work(profiles, device, model)
    show(found, as_json, tables_text)


def export_tables(
    file: File, device: Matching = "", model: Signed = "", profiles: Profiles = None, as_json: Json = False
) -> None:
    """Write stored tables into FILE, one row a sample and region."""
    with told(as_json):
        from cpd_edge.pipeline.tables import export_tables as work

        found = work(file, profiles, device, model)
    show(found, as_json, exchange_text)


def import_tables(file: File, profiles: Profiles = None, as_json: Json = False) -> None:
    """Take the tables of FILE into the store; samples that are there already are not doubled."""
    with told(as_json):
        from cpd_edge.pipeline.tables import import_tables as work

        found = work(file, profiles)
    show(found, as_json, exchange_text)
