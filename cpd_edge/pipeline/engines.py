"""Engines as verbs of their own: build, compare, import. They return what `--json` prints."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from cpd_edge import store
from cpd_edge.deploy import timing_cache
from cpd_edge.deploy.calibrate import calibration
from cpd_edge.deploy.engine import RTX, Built, EngineSpec, build_engine
from cpd_edge.deploy.quantize import TENSORRT, calibrate, is_quantised, quantise
from cpd_edge.deploy.readable import readable
from cpd_edge.deploy.typed import matches, scope
from cpd_edge.errors import DataError, ModelError, StoreError, UsageError
from cpd_edge.measure import stats
from cpd_edge.measure.devices import LOCAL, get
from cpd_edge.measure.driver import Gpu, find_gpu, require_gpu
from cpd_edge.measure.engine_file import PORTABLE, EngineRecord, read_record, record_path, save_engine, sha256
from cpd_edge.measure.engine_runner import EngineRunner, runtime_module
from cpd_edge.measure.environment import state
from cpd_edge.measure.layer_pairs import paired
from cpd_edge.measure.layers import EngineLayer, layers_from_inspector, layers_from_log, timed
from cpd_edge.measure.listening import listener
from cpd_edge.measure.protocol import Runner
from cpd_edge.measure.runners import OnnxRunner
from cpd_edge.measure.station import station
from cpd_edge.measure.tool_command import TOOL
from cpd_edge.measure.tool_exports import Metric, ToolLog, read_log, read_profile, read_times, version_of
from cpd_edge.measure.tool_run import time_with_tool
from cpd_edge.measure.tool_there import tool_on

Progress = Callable[[str, float, str], None]

_SHOWN = 5


def build(
    model: Path,
    runtime: str,
    spec: EngineSpec,
    *,
    out: Path | None = None,
    images: Path | None = None,
    cache: Path | None = None,
    power_mode: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Builds an engine from an ONNX file, and says what the runtime fused.

    Args:
        model: the ONNX file.
        runtime: `tensorrt` or `tensorrt-rtx`.
        spec: what to build.
        out: file of the engine; beside the model, named after it, if None.
        images: calibration inputs (`.npy`), to quantise a model that holds no Q/DQ nodes.
        cache: folder of timing caches; the user's cache folder if None.
        power_mode: of the device now, for the record; None: as this machine says it, of an engine for its own GPU.
        progress: gets stage, fraction and message.

    Raises:
        CpdError: bad input, a missing runtime or driver, refused operators, a failed build.
    """
    trt = runtime_module(runtime)
    proto, digest = read_model(model)
    gpu = _target_gpu(trt, spec)
    spec = _spec_for(trt, spec, gpu)
    if spec.precision.startswith("int8") and images is not None and not is_quantised(proto):
        proto = _quantised(proto, images, progress)
    if hasattr(trt.BuilderFlag, "FP16"):  # one that takes types from the file reads it as it is exported
        proto = readable(proto)
    name = gpu.name if gpu else spec.arch
    if power_mode is None:
        power_mode = "" if spec.arch else str(state().get("power_mode", ""))
    path = timing_cache.cache_path(cache or timing_cache.cache_folder(), runtime, trt.__version__, name, power_mode)
    begun = time.perf_counter()
    built = build_engine(
        trt, listener(trt), proto, spec, name=str(model), cache=path, progress=_stage(progress, "build")
    )
    engine = out or model.with_name(f"{model.stem}.{spec.precision.replace('+', '-')}.plan")
    layers = _layers(trt, built, gpu)
    record = EngineRecord(
        onnx=model.name,
        onnx_sha256=digest,
        runtime=runtime,
        runtime_version=trt.__version__,
        arch=spec.arch or (gpu.arch if gpu else PORTABLE),
        gpu=gpu.name if gpu and not spec.arch else "",
        power_mode=power_mode,
        precision=spec.precision,
        settings=built.settings,
        seconds=built.seconds,
        layers=layers,
        nodes=node_names(proto),
        notes=(*precision_notes(proto, spec, layers), *built.notes),
    )
    record = save_engine(engine, built.plan, record)
    facts = record.to_json()
    return {"engine": str(engine), "record": str(record_path(engine)), "total_s": time.perf_counter() - begun, **facts}


def compare_engines(left: Path, right: Path) -> dict[str, Any]:
    """Layers of two engines side by side, matched by the ONNX nodes that they hold.

    Args:
        left, right: engines with their records, or files that `trtexec --exportLayerInfo` wrote.

    Raises:
        StoreError, DataError: a file is missing or is neither.
        ModelError: an engine whose layers are not known.
    """
    sides = [_known_layers(path) for path in (left, right)]
    pairs = paired(sides[0][0], sides[1][0], sides[0][1], sides[1][1])
    changes = [pair.change for pair in pairs if pair.nodes]
    return {
        "left": str(left),
        "right": str(right),
        "layers": [len(sides[0][0]), len(sides[1][0])],
        "size_bytes": [sides[0][2], sides[1][2]],
        "counts": {change: changes.count(change) for change in ("same", "changed", "only left", "only right")},
        "pairs": [pair.to_json() for pair in pairs],
    }


def import_exports(
    times: Path,
    *,
    profile: Path | None = None,
    layers: Path | None = None,
    log: Path | None = None,
    name: str = "",
    metric: Metric = "latency",
    version: str = "",
    device: str = "",
    precision: str = "",
    shape: str = "",
    quantile: float = 0.5,
    budget_ms: float | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """A measurement and a layer table from what trtexec exported, with an interval and a verdict; needs no GPU.

    Args:
        times: what `--exportTimes` wrote.
        profile, layers, log: what `--exportProfile`, `--exportLayerInfo` and standard output gave, where there.
        name, metric, version, device, precision, shape: as in `read_times`.
        quantile: of latency that the budget limits.
        budget_ms: limit to hold it against.
        out: file for the measurement and the layers.

    Raises:
        DataError, StoreError: a file is missing or not what it should be.
    """
    known = read_log(log.read_text(errors="replace")) if log is not None else ToolLog()
    found = read_times(
        times,
        name=name,
        metric=metric,
        log=known,
        version=version_of(version),
        device=device,
        precision=precision,
        shape=shape,
    )
    table = layers_from_inspector(_text(layers)) if layers is not None else ()
    if profile is not None:
        table = timed(table, read_profile(profile).ms)
    interval = stats.quantile_interval(found.samples_ns / 1e6, quantile)
    measured = [layer.ms for layer in table if layer.ms is not None]
    result = {
        "name": found.name,
        "quantile": quantile,
        "latency_ms": interval,
        "steady": found.steady,
        "stop": found.stop,
        "environment": found.environment,
        "layers": [layer.to_json() for layer in table],
        "layers_ms": sum(measured) if measured else None,
    }
    if budget_ms is not None:
        result |= {"budget_ms": budget_ms, "verdict": stats.verdict(interval, budget_ms)}
    if out is not None:
        store.write_json(out, {"format": store.FORMAT, **_plain(found), "layers": result["layers"]})
    return _plain(result)


def time_by_tool(
    model: Path,
    folder: Path,
    *,
    device: str = LOCAL,
    precision: str = "fp32",
    shape: str = "",
    seconds: int = 10,
    quantile: float = 0.5,
    budget_ms: float | None = None,
) -> dict[str, Any]:
    """What `import_exports` gives of a run of trtexec that is made now, on this machine or on a device.

    Args:
        model: ONNX file.
        folder: for logs and exports, and for the engine where it is made here.
        device: `local`, or the name of a device that was added.
        precision: as in `EngineSpec`.
        shape: name and shape of the input where the model leaves it free (`image:1x3x224x224`).
        seconds: length of the measurement.
        quantile: of latency that the budget limits.
        budget_ms: limit to hold it against.

    Raises:
        RuntimeMissing: there is no trtexec.
        UsageError: a shape that is none.
        CpdError: it failed, in its own words.
    """
    name, mark, dims = shape.rpartition(":")
    if shape and not (name and mark and all(n.isdigit() for n in dims.split("x"))):
        raise UsageError(f"shape {shape!r}", hint="for example --shape image:1x3x224x224")
    if seconds < 1:
        raise UsageError(f"{seconds} seconds: at least 1", hint="for example --seconds 10")
    there: dict[str, Any] = {}
    if device != LOCAL:
        there = {"tool": Path(TOOL), "run": tool_on(station(get(device)))}
    given = (name, tuple(int(n) for n in dims.split("x"))) if shape else None
    done = time_with_tool(
        _readable(model, folder), folder, precision=precision, shape=given, device="" if device == LOCAL else device,
        duration_s=seconds, **there,
    )  # fmt: skip
    return import_exports(
        done.exports.times, profile=done.exports.profile, layers=done.exports.layers, log=done.exports.log,
        name=model.stem, version=str(done.measurement.environment["runtime_version"]),
        device=str(done.measurement.environment["device"]), precision=precision, shape=dims, quantile=quantile,
        budget_ms=budget_ms, out=folder / f"{model.stem}.measurement.json",
    )  # fmt: skip


def _readable(model: Path, folder: Path) -> Path:
    """A file in `folder` that every TensorRT reads."""
    made = folder / f"{model.stem}.readable.onnx"
    store.write_bytes(made, readable(read_model(model)[0]).SerializeToString())
    return made


def open_runner(path: Path, *, threads: int = 1, batch: int = 1, **options: Any) -> Runner:
    """A runner for a file: an engine where a record lies beside it, else an ONNX model on ONNX Runtime.

    Args:
        path: the engine or the model.
        threads: of ONNX Runtime.
        batch: images per inference.
        options: any other argument of `EngineRunner` or `OnnxRunner`.
    """
    if record_path(path).is_file():
        return EngineRunner(path, batch=batch, **options)
    return OnnxRunner(path, threads=threads, batch=batch, **options)


def node_names(model: onnx.ModelProto) -> dict[str, str]:
    """What each node is called in every export of one model: its module, operator and place among its like.

    Exporters number nodes, and a cut model is numbered anew; modules keep their names.
    """
    seen: dict[str, int] = {}
    found = {}
    for node in model.graph.node:
        where = scope(node)
        if not where or not node.name:
            continue
        stem = f"{where}/{node.op_type}"
        seen[stem] = seen.get(stem, 0) + 1
        found[node.name] = stem if seen[stem] == 1 else f"{stem}#{seen[stem]}"
    return found


def read_model(model: Path) -> tuple[onnx.ModelProto, str]:
    """An ONNX file with its hash; weights beside it are read as well, and count.

    Raises:
        DataError, ModelError: it is not there, or is no complete ONNX file.
    """
    if not model.is_file():
        raise DataError(f"no model at {model}", hint="give an ONNX file, such as RUN/pruned.onnx")
    damaged = importlib.import_module("google.protobuf.message").DecodeError
    try:
        proto = onnx.load(model)
    except (damaged, onnx.checker.ValidationError, FileNotFoundError) as error:  # the last: of weights beside it
        raise ModelError(f"{model} is no complete ONNX file: {error}", hint="export it again") from error
    if not proto.graph.node:
        raise ModelError(f"{model} is no ONNX file: it holds no nodes", hint="give an ONNX file")
    return proto, sha256(model.read_bytes())


def _target_gpu(trt: Any, spec: EngineSpec) -> Gpu | None:
    """The GPU here, which TensorRT cannot build without; TensorRT-RTX can."""
    if trt.__name__ != RTX:
        return require_gpu("building with TensorRT")
    return None if spec.arch else find_gpu()[0]


def _spec_for(trt: Any, spec: EngineSpec, gpu: Gpu | None) -> EngineSpec:
    """The spec with an arch that is the GPU's own left out, where it goes without saying."""
    if gpu is not None and spec.arch == gpu.arch and trt.__name__ != RTX:
        plain = {k: getattr(spec, k) for k in spec.__dataclass_fields__}
        return EngineSpec(**{**plain, "arch": ""})
    return spec


def _quantised(model: onnx.ModelProto, images: Path, progress: Progress | None) -> onnx.ModelProto:
    tell = _stage(progress, "quantise")
    if tell is not None:
        tell(0.0, "calibrating")
    done = quantise(model, calibrate(model, calibration(images), TENSORRT), TENSORRT)
    if tell is not None:
        tell(1.0, "")
    return done


def precision_notes(model: onnx.ModelProto, spec: EngineSpec, layers: Sequence[EngineLayer]) -> tuple[str, ...]:
    """What the engine really computes in, where that is not simply what was asked for.

    A runtime may take a request for a precision and build another one; its table of layers tells.
    """
    held = [node.name for node in model.graph.node if spec.fp32_layers and matches(node, spec.fp32_layers)]
    notes = [
        f"{name} was to stay in fp32, but the engine has it in {' '.join(found)}"
        for name in held
        if (found := [la.precision for la in layers if name in la.onnx]) and not any("fp32" in p for p in found)
    ]
    wanted = "int8" if spec.precision.startswith("int8") else spec.precision
    weights = {i.name for i in model.graph.initializer}
    heavy = [n for n in model.graph.node if n.op_type in TENSORRT.weighted and (n.name not in held)]
    heavy = [n for n in heavy if wanted == "int8" or not weights.isdisjoint(n.input)]
    homes = {n.name: [la.precision for la in layers if n.name in la.onnx] for n in heavy}
    unknown = [name for name, found in homes.items() if not found]
    missed = [name for name, found in homes.items() if found and not any(wanted in p for p in found)]
    if layers and wanted in ("fp16", "int8"):
        notes += [f"{len(missed)} of {len(heavy)} weighted nodes read no {wanted}: {_some(missed)}"] if missed else []
        notes += [f"of {len(unknown)} weighted nodes the runtime names no layer: {_some(unknown)}"] if unknown else []
    return tuple(notes)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _layers(trt: Any, built: Built, gpu: Gpu | None) -> tuple[EngineLayer, ...]:
    """What was fused: from the inspector where the engine loads here, else from what the builder printed."""
    if gpu is not None:
        runtime = trt.Runtime(listener(trt))
        engine = runtime.deserialize_cuda_engine(built.plan)
        if engine is not None:
            inspector = engine.create_engine_inspector()
            return layers_from_inspector(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    return layers_from_log(built.messages)


def _known_layers(path: Path) -> tuple[tuple[EngineLayer, ...], Mapping[str, str], int | None]:
    """Layers, node names and size of an engine, or of an export of its layers."""
    if record_path(path).is_file():
        record = read_record(path)
        if not record.layers:
            raise ModelError(f"engine {path} was built by a runtime that did not say what it fused")
        return record.layers, record.nodes, record.size_bytes
    if path.suffix == ".json" and path.is_file():
        return layers_from_inspector(_text(path)), {}, None
    raise StoreError(
        f"{path} is no engine with a record, and no export of layers",
        hint="give an engine of `cpd-edge build`, or the file of trtexec --exportLayerInfo",
    )


def _plain(data: object) -> dict[str, Any]:
    found: dict[str, Any] = store.plain(data)
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        raise StoreError(f"{path} does not exist") from None


def _stage(progress: Progress | None, stage: str) -> Callable[[float, str], None] | None:
    if progress is None:
        return None
    tell = progress
    return lambda fraction, text: tell(stage, fraction, text)


__all__ = [
    "build", "compare_engines", "import_exports", "node_names", "open_runner", "precision_notes", "read_model",
    "time_by_tool",
]  # fmt: skip
