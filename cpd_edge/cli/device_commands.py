"""Commands about devices: name one, list them, look at one, free it, forget it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cpd_edge.cli.console import show, told
from cpd_edge.cli.options import Json
from cpd_edge.cli.text import probe_text

Name = Annotated[str, typer.Argument(help="the device's name, as --device takes it")]

devices = typer.Typer(
    help="Other machines to measure on, over ssh.", no_args_is_help=True, add_completion=False, rich_markup_mode=None
)


def register(app: typer.Typer) -> None:
    """Adds the commands to the command line."""
    app.add_typer(devices, name="devices")


@devices.command()
def add(
    name: Name,
    url: Annotated[str, typer.Argument(help="ssh://[user@]host[:port]; the host may be an alias of your ssh config")],
    python: Annotated[str, typer.Option(help="interpreter there that has the runtime; its python3 if not given")] = "",
    folder: Annotated[str, typer.Option(help="where the device keeps files and jobs")] = "~/.cache/cpd-edge",
    ssh_config: Annotated[str, typer.Option(help="file for ssh -F; your own configuration if not given")] = "",
    telemetry_s: Annotated[float, typer.Option(help="seconds between readings of its sensors; 0: none")] = 1.0,
    replace: Annotated[bool, typer.Option("--replace", help="take the place of a device of this name")] = False,
    as_json: Json = False,
) -> None:
    """Give a machine that ssh reaches a name for --device. Nothing is done on it yet."""
    with told(as_json):
        from cpd_edge.measure.devices import Device
        from cpd_edge.measure.devices import add as work

        work(Device(name, url, python, folder, ssh_config, telemetry_s), replace=replace)
    show(
        {"added": name, "url": url}, as_json, lambda found: f"added {name}; see it with: cpd-edge devices probe {name}"
    )


@devices.command("list")
def list_(as_json: Json = False) -> None:
    """List the devices."""
    with told(as_json):
        from dataclasses import asdict

        from cpd_edge.measure.devices import load, registry

        found = {"devices": [asdict(device) for device in load().values()], "file": str(registry())}
    show(found, as_json, _list_text)


@devices.command()
def probe(name: Name, as_json: Json = False) -> None:
    """Show what a device is, its state, and its runtimes. Nothing is measured."""
    with told(as_json):
        from cpd_edge.measure.station import examined

        found = examined(name)
    show(found, as_json, probe_text)


@devices.command()
def free(name: Name, as_json: Json = False) -> None:
    """End the job that holds a device, such as one whose host is gone."""
    with told(as_json):
        from cpd_edge.measure.devices import get
        from cpd_edge.measure.station import free as work

        freed = work(get(name))
    said = "nobody held it" if freed is None else f"ended the job of {freed['holder']}, begun {freed['since']}"
    show({"freed": freed}, as_json, lambda _: said)


@devices.command()
def remove(name: Name, as_json: Json = False) -> None:
    """Forget a device. Nothing is changed on it."""
    with told(as_json):
        from cpd_edge.measure.devices import remove as work

        gone = work(name)
    show({"removed": name, "folder": gone.folder}, as_json, lambda _: f"forgot {name}; its files stay in {gone.folder}")


def _list_text(found: dict[str, Any]) -> str:
    if not found["devices"]:
        return "no devices yet; add one: cpd-edge devices add NAME ssh://user@host"
    return "\n".join(f"{row['name']:<16} {row['url']}" for row in found["devices"])
