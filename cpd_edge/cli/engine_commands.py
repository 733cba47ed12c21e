"""Commands about engines: build one, compare two, read another tool's exports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cpd_edge.cli.console import show, told
from cpd_edge.cli.options import Json
from cpd_edge.cli.text import span
from cpd_edge.store import require_file, require_folder
from cpd_edge.types import EXIT_CODES

_MIB = 1 << 20
_WIDTH = 34


def register(app: typer.Typer) -> None:
    """Adds the commands to the command line."""
    app.command()(build)
    app.command("compare-engines")(compare_engines)
    app.command("import-trtexec")(import_trtexec)
    app.command()(trtexec)


def build(
    model: Annotated[Path, typer.Argument(help="ONNX file")],
    runtime: Annotated[str, typer.Option(help="tensorrt, or tensorrt-rtx, which builds without a GPU")] = "tensorrt",
    arch: Annotated[str, typer.Option(help="GPU to build for, as in sm_86; this machine's if not given")] = "",
    precision: Annotated[str, typer.Option(help="fp32, tf32, fp16, int8 or int8+fp16")] = "fp32",
    batch: Annotated[str, typer.Option(help="batch, or smallest,usual,largest")] = "1",
    input_shape: Annotated[
        str | None, typer.Option("--input", help="channels,height,width, where the model leaves them free")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="inputs to quantise with: a .npy file [n, c, h, w], as the model takes them")
    ] = None,
    fp32_layer: Annotated[
        list[str] | None, typer.Option(help="pattern of nodes or modules that stay in fp32; may be repeated")
    ] = None,
    workspace_mib: Annotated[int | None, typer.Option(help="most scratch memory of a kernel [MiB]")] = None,
    level: Annotated[int | None, typer.Option(help="builder optimisation level, 0 to 5")] = None,
    dla_core: Annotated[int | None, typer.Option(help="DLA core, with the GPU for what it does not take")] = None,
    timing_cache: Annotated[Path | None, typer.Option(help="folder of timing caches")] = None,
    power_mode: Annotated[
        str | None, typer.Option(help="the device's power mode, for the record; this machine's if not given")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="file of the engine; beside the model if not given")] = None,
    as_json: Json = False,
) -> None:
    """Build a TensorRT engine from MODEL, and show what was fused."""
    with told(as_json) as (_, progress):
        if out is not None:
            require_file(out)
        from cpd_edge.deploy.engine import EngineSpec
        from cpd_edge.pipeline.engines import build as work

        spec = EngineSpec(
            precision=precision,  # type: ignore[arg-type]
            batch=_batch(batch),
            shape=_integers(input_shape, "--input 3,224,224") if input_shape else None,
            arch=arch,
            workspace_bytes=None if workspace_mib is None else workspace_mib * _MIB,
            level=level,
            dla_core=dla_core,
            fp32_layers=tuple(fp32_layer or ()),
        )
        found = work(
            model,
            runtime,
            spec,
            out=out,
            images=calibration,
            cache=timing_cache,
            power_mode=power_mode,
            progress=progress,
        )
    show(found, as_json, _built_text)


def compare_engines(
    left: Annotated[Path, typer.Argument(help="engine, or the file of trtexec --exportLayerInfo")],
    right: Annotated[Path, typer.Argument(help="engine, or the file of trtexec --exportLayerInfo")],
    as_json: Json = False,
) -> None:
    """Show the fused layers of two engines side by side, such as dense and pruned."""
    with told(as_json):
        from cpd_edge.pipeline.engines import compare_engines as work

        found = work(left, right)
    show(found, as_json, _compared_text)


def import_trtexec(
    times: Annotated[Path, typer.Argument(help="file of trtexec --exportTimes")],
    profile: Annotated[Path | None, typer.Option(help="file of --exportProfile")] = None,
    layers: Annotated[Path | None, typer.Option(help="file of --exportLayerInfo")] = None,
    log: Annotated[Path | None, typer.Option(help="what trtexec printed")] = None,
    name: Annotated[str, typer.Option(help="what the measurement is called")] = "",
    metric: Annotated[str, typer.Option(help="latency, compute or enqueue")] = "latency",
    tensorrt_version: Annotated[str, typer.Option(help="version that wrote the files, where no log says it")] = "",
    device: Annotated[str, typer.Option(help="device that ran it, where no log says it")] = "",
    precision: Annotated[str, typer.Option(help="precision of the engine, where no log says it")] = "",
    shape: Annotated[str, typer.Option(help="shape of the input, as in 1x3x224x224")] = "",
    quantile: Annotated[float, typer.Option(help="quantile of latency that the budget limits")] = 0.5,
    budget_ms: Annotated[float | None, typer.Option("--budget-ms", help="latency limit in milliseconds")] = None,
    out: Annotated[Path | None, typer.Option(help="file for the measurement and the layers")] = None,
    as_json: Json = False,
) -> None:
    """Read what trtexec exported elsewhere as a measurement with an interval, a verdict and a layer table."""
    with told(as_json):
        from cpd_edge.errors import UsageError
        from cpd_edge.pipeline.engines import import_exports as work

        if metric not in ("latency", "compute", "enqueue"):
            raise UsageError(f"metric {metric!r}", hint="one of latency, compute, enqueue")
        if out is not None:
            require_file(out)
        found = work(
            times,
            profile=profile,
            layers=layers,
            log=log,
            name=name,
            metric=metric,  # type: ignore[arg-type]
            version=tensorrt_version,
            device=device,
            precision=precision,
            shape=shape,
            quantile=quantile,
            budget_ms=budget_ms,
            out=out,
        )
    show(found, as_json, _imported_text)
    raise typer.Exit(EXIT_CODES.get(found.get("verdict", "PASS"), 0))


def trtexec(
    model: Annotated[Path, typer.Argument(help="ONNX file")],
    out: Annotated[Path, typer.Option(help="folder for the engine, the logs and what trtexec exports")],
    device: Annotated[str, typer.Option(help="local, or a device that was added")] = "local",
    precision: Annotated[str, typer.Option(help="fp32, tf32, fp16, int8 or int8+fp16")] = "fp32",
    shape: Annotated[str, typer.Option(help="of the input where it is free, as in image:1x3x224x224")] = "",
    seconds: Annotated[int, typer.Option(help="length of the measurement")] = 10,
    quantile: Annotated[float, typer.Option(help="quantile of latency that the budget limits")] = 0.5,
    budget_ms: Annotated[float | None, typer.Option("--budget-ms", help="latency limit in milliseconds")] = None,
    as_json: Json = False,
) -> None:
    """Build and time a model with trtexec, here or on a device, where TensorRT has no Python."""
    with told(as_json):
        require_folder(out)
        from cpd_edge.pipeline.engines import time_by_tool as work

        found = work(
            model, out, device=device, precision=precision, shape=shape, seconds=seconds, quantile=quantile,
            budget_ms=budget_ms,
        )  # fmt: skip
    show(found, as_json, _imported_text)
    raise typer.Exit(EXIT_CODES.get(found.get("verdict", "PASS"), 0))


def _batch(text: str) -> tuple[int, int, int]:
    found = _integers(text, "--batch 1,4,8")
    return (found[0], found[len(found) // 2], found[-1])


def _integers(text: str, example: str) -> tuple[int, ...]:
    from cpd_edge.errors import UsageError

    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{text!r} is no list of integers", hint=f"for example {example}") from None


def _built_text(r: dict[str, Any]) -> str:
    where = "no GPU in particular" if r["arch"] == "any" else f"{r['arch']} {r['gpu']}".strip()
    lines = [
        f"{r['engine']}: {r['size_bytes'] / 1e6:.1f} MB in {r['seconds']:.1f} s, {r['precision']}, "
        f"{r['runtime']} {r['runtime_version']} for {where}",
        *_layer_lines(r["regions"]),
        *(f"note: {note}" for note in r["notes"]),
    ]
    return "\n".join(lines)


def _layer_lines(regions: list[dict[str, Any]]) -> list[str]:
    """The fused layers as a table: one line each."""
    head = f"{'layer':<{_WIDTH}} {'type':<18} {'precision':<12} {'writes':<16} {'ms':>8}  ONNX nodes"
    rows = [
        f"{_cut(layer['name'], _WIDTH):<{_WIDTH}} {_cut(layer['type'], 18):<18} {layer['precision']:<12} "
        f"{_cut(' '.join(layer['outputs']), 16):<16} {_ms(layer['ms']):>8}  {' '.join(layer['onnx_layers'])}"
        for layer in regions
    ]
    return [head, *rows] if rows else ["the runtime did not say what it fused"]


def _compared_text(r: dict[str, Any]) -> str:
    sizes = [f"{size / 1e6:.1f} MB" if size is not None else "size unknown" for size in r["size_bytes"]]
    lines = [f"left   {r['left']}: {r['layers'][0]} layers, {sizes[0]}"]
    lines += [f"right  {r['right']}: {r['layers'][1]} layers, {sizes[1]}"]
    lines += [", ".join(f"{count} {change}" for change, count in r["counts"].items())]
    mark = {"same": "=", "changed": "~", "only left": "<", "only right": ">"}
    for pair in r["pairs"]:
        what = " ".join(pair["nodes"]) or "no ONNX node"
        lines.append(f"{mark[pair['change']]} {_cut(what, 2 * _WIDTH)}")
        height = max(len(pair["left"]), len(pair["right"])) if pair["nodes"] else 0
        for i in range(height):
            sides = [_brief(pair[side][i]) if i < len(pair[side]) else "" for side in ("left", "right")]
            lines.append(f"    {sides[0]:<52} {sides[1]}".rstrip())
        if not pair["nodes"]:
            lines.append(f"    {len(pair['left'])} layers {'':<42} {len(pair['right'])} layers")
    return "\n".join(lines)


def _brief(layer: dict[str, Any]) -> str:
    words = (_cut(layer["type"] or layer["name"], 18), layer["precision"], " ".join(layer["outputs"]), _ms(layer["ms"]))
    return _cut(" ".join(word for word in words if word), 52)


def _imported_text(r: dict[str, Any]) -> str:
    e = r["environment"]
    lines = [
        f"{r['name']}: p{100 * r['quantile']:g} {span(r['latency_ms'])}, n {r['latency_ms']['n']}",
        f"{e['device']}, TensorRT {e['runtime_version']}, {e['precision']}, {e['shape']}",
        f"{e['protocol']}; {e['format']}, {e['warmup_dropped']} warm-up runs left out",
    ]
    lines += [] if r["steady"] else ["not steady: latency has a trend"]
    lines += _layer_lines(r["layers"]) if r["layers"] else []
    lines += [f"sum of the layers {r['layers_ms']:.4g} ms, as profiled"] if r["layers_ms"] else []
    lines += [f"{r['verdict']} for {r['budget_ms']:.4g} ms"] if "verdict" in r else []
    return "\n".join(lines)


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
