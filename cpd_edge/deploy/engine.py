"""ONNX to a TensorRT engine: one path for TensorRT 8.5 to 11 and for TensorRT-RTX, whose module is an argument.

What differs between versions is asked of the module, not of its version: weakly typed networks have precision flags,
strongly typed ones take the types from the file, which `typed` then converts. TensorRT-RTX builds without a GPU or a
driver; TensorRT needs both, and they are asked for before it is touched.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import onnx

from cpd_edge.deploy import timing_cache
from cpd_edge.deploy.build_progress import Progress, progress_monitor
from cpd_edge.deploy.quantize import is_quantised
from cpd_edge.deploy.readable import OPSET, misfit
from cpd_edge.deploy.typed import half_precision, matches
from cpd_edge.deploy.unsupported import refusal, unsupported
from cpd_edge.errors import CpdError, ModelError, UsageError

if TYPE_CHECKING:
    import tensorrt

Precision = Literal["fp32", "tf32", "fp16", "int8", "int8+fp16"]
"""What a network computes in. `int8` needs Q/DQ nodes in the file; what they leave out is fp32, or fp16."""

RTX = "tensorrt_rtx"


@dataclass(frozen=True)
class EngineSpec:
    """What engine to build.

    Attributes:
        precision: arithmetic; `tf32` is fp32 with products in TF32 where the GPU has it, `fp32` is without.
        batch: smallest, most frequent and largest batch.
        shape: `(c, h, w)` for models whose image size is free; else the model's own is used.
        arch: compute capability to build for (`sm_86`), where the runtime can build for another GPU than this one.
        workspace_bytes: most scratch memory a kernel may use; the runtime's default if None.
        level: builder optimisation level 0 to 5; the runtime's default if None.
        dla_core: DLA core to build for, with the GPU for what it does not take; the GPU alone if None.
        fp32_layers: patterns of ONNX node or module names that stay in fp32 in an fp16 engine.

    Raises:
        UsageError: a value that is none of these.
    """

    precision: Precision = "fp32"
    batch: tuple[int, int, int] = (1, 1, 1)
    shape: tuple[int, ...] | None = None
    arch: str = ""
    workspace_bytes: int | None = None
    level: int | None = None
    dla_core: int | None = None
    fp32_layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise UsageError(f"precision {self.precision!r}", hint=f"one of {', '.join(get_args(Precision))}")
        if not 1 <= self.batch[0] <= self.batch[1] <= self.batch[2]:
            raise UsageError(f"batch {self.batch}: smallest, usual, largest must ascend from 1", hint="--batch 1,4,8")
        if self.workspace_bytes is not None and self.workspace_bytes < 0:
            raise UsageError(f"workspace of {self.workspace_bytes} bytes", hint="for example --workspace-mib 256")
        if self.level is not None and not 0 <= self.level <= 5:
            raise UsageError(f"optimisation level {self.level}: it is between 0 and 5", hint="for example --level 3")
        if self.dla_core is not None and self.precision in ("fp32", "tf32"):
            raise UsageError(f"a DLA core computes in fp16 and int8, not in {self.precision}", hint="--precision fp16")

    @property
    def half(self) -> bool:
        """Whether fp16 arithmetic is asked for."""
        return self.precision.endswith("fp16")


@dataclass(frozen=True)
class Built:
    """A finished engine.

    Attributes:
        plan: the serialised engine.
        messages: the builder's table of layers, as it printed it; warnings.
        settings: every choice that changes the engine.
        notes: what a reader should know, in words.
        seconds: time of the build proper, parsing and conversion aside.
    """

    plan: bytes = field(repr=False)
    messages: tuple[str, ...]
    settings: Mapping[str, Any]
    notes: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class _Said:
    """What became of the choices, filled in while the engine is being configured."""

    settings: dict[str, Any] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)


def build_engine(
    trt: Any,
    log: Any,
    model: onnx.ModelProto,
    spec: EngineSpec,
    *,
    name: str = "the model",
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Built:
    """Builds an engine.

    Args:
        trt: the runtime's module, `tensorrt` or `tensorrt_rtx`. The caller has seen a driver where it needs one.
        log: the one logger of that module in this process, with lists `errors`, `warnings` and `tables`.
        model: the network, with one input; for TensorRT before 11 as `readable` makes it.
        spec: what to build.
        name: of the model, for messages.
        cache: file of the timing cache; none is kept without it.
        progress: gets a fraction and a message; an exception from it cancels the build.

    Raises:
        ModelError: operators the runtime does not take, each with its node and source line; or a model that does
            not fit the spec.
        UsageError: something this runtime or device does not have.
        CpdError: the build failed, in the runtime's own words.
    """
    said = _Said()
    weakly = hasattr(trt.BuilderFlag, "FP16")
    _require_readable(trt, model, name)
    model = _ready(model, spec, weakly, name, said)
    log.clear()
    builder: tensorrt.Builder = _builder(trt, log)
    network: tensorrt.INetworkDefinition = builder.create_network(_creation_flags(trt))
    parser: tensorrt.OnnxParser = trt.OnnxParser(network, log)
    if not parser.parse(model.SerializeToString()):
        raise refusal(name, unsupported(parser, model), _title(trt))
    config: tensorrt.IBuilderConfig = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    _limits(trt, config, spec, said)
    _target(trt, builder, config, spec, said)
    if weakly:
        _weak_precision(trt, network, config, spec, model, said)
    if spec.precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)
    _shapes(builder, network, config, spec, name, said)
    uses_cache = cache is not None and trt.__name__ != RTX  # TensorRT-RTX compiles for no device, so it times nothing
    said.settings["timing_cache"] = timing_cache.attach(config, cache) if uses_cache and cache else "none"
    monitor = progress_monitor(trt, config, progress)
    begun = time.perf_counter()
    plan: Any = builder.build_serialized_network(network, config)
    seconds = time.perf_counter() - begun
    monitor.finish()
    if plan is None:
        raise _failed(name, log.errors, trt)
    if uses_cache and cache:
        timing_cache.keep(config, cache)
    return Built(bytes(plan), tuple(log.tables), said.settings, (*said.words, *log.warnings), seconds)


def _require_readable(trt: Any, model: onnx.ModelProto, name: str) -> None:
    """Refuses what TensorRT before 10 would take for something else."""
    late = misfit(model)
    if late and trt.__name__ != RTX and int(str(trt.__version__).split(".")[0]) < 10:
        raise ModelError(
            f"{_title(trt)} reads ONNX up to opset {OPSET}, and {name} has no form there: {late}",
            hint=f"export it with opset {OPSET}, or build with TensorRT 10 or newer",
        )


def _ready(model: onnx.ModelProto, spec: EngineSpec, weakly: bool, name: str, said: _Said) -> onnx.ModelProto:
    """The model as the parser shall see it: of the types asked for, where the runtime takes them from the file."""
    if spec.precision.startswith("int8") != is_quantised(model):
        raise _precision_error(spec, name)
    if spec.fp32_layers and not any(matches(node, spec.fp32_layers) for node in model.graph.node):
        raise UsageError(f"no layer is called {' or '.join(spec.fp32_layers)}", hint="patterns as in '*norm*'")
    if weakly or not spec.half:
        return model
    converted = half_precision(model, spec.fp32_layers)
    said.words.extend([f"{node} stays in fp32: {why}" for node, why in converted.kept.items()])
    return converted.model


def _creation_flags(trt: Any) -> int:
    """Flags of a network: 8.x must be told that the batch is a dim of its own; from 11 on there is nothing to tell."""
    if hasattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH"):
        return 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
    return 0


def _limits(trt: Any, config: tensorrt.IBuilderConfig, spec: EngineSpec, said: _Said) -> None:
    """Workspace and optimisation level."""
    if spec.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, spec.workspace_bytes)
    if spec.level is not None:
        if not hasattr(config, "builder_optimization_level"):
            raise UsageError(f"{_title(trt)} has no optimisation levels", hint="leave --level out")
        config.builder_optimization_level = spec.level
    said.settings.update({"workspace_bytes": spec.workspace_bytes, "level": spec.level})


def _target(
    trt: Any, builder: tensorrt.Builder, config: tensorrt.IBuilderConfig, spec: EngineSpec, said: _Said
) -> None:
    """GPU to build for, and DLA."""
    if spec.arch:
        wanted = spec.arch.upper().replace("_", "")
        known = getattr(trt, "ComputeCapability", None)
        if known is None or not hasattr(known, wanted) or not hasattr(config, "set_compute_capability"):
            names = [n for n in dir(known) if n.startswith("SM")] if known is not None else []
            there = ", ".join(n.lower().replace("sm", "sm_") for n in names) or "the GPU it runs on, and no other"
            raise UsageError(f"{_title(trt)} does not build for {spec.arch}: it builds for {there}")
        compiles_for: Any = config
        compiles_for.num_compute_capabilities = 1
        compiles_for.set_compute_capability(getattr(known, wanted), 0)
    if spec.dla_core is not None:
        if builder.num_DLA_cores <= spec.dla_core:
            raise UsageError(
                f"DLA core {spec.dla_core} was asked for, this device has {builder.num_DLA_cores}",
                hint="leave --dla-core out; Xavier and Orin have DLA cores, Nano and Thor have none",
            )
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = spec.dla_core
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    said.settings.update({"arch": spec.arch, "dla_core": spec.dla_core})


def _weak_precision(
    trt: Any,
    network: tensorrt.INetworkDefinition,
    config: tensorrt.IBuilderConfig,
    spec: EngineSpec,
    model: onnx.ModelProto,
    said: _Said,
) -> None:
    """Precision as flags, and layers that must stay in fp32, before TensorRT 11."""
    if spec.half:
        config.set_flag(trt.BuilderFlag.FP16)
    if spec.precision.startswith("int8"):
        config.set_flag(trt.BuilderFlag.INT8)
    if not (spec.half and spec.fp32_layers):
        return
    names = {node.name for node in model.graph.node if matches(node, spec.fp32_layers)}
    held = 0
    for i in range(network.num_layers):
        layer: Any = network.get_layer(i)
        floats = [j for j in range(layer.num_outputs) if layer.get_output(j).dtype in (trt.float32, trt.float16)]
        if layer.name in names and floats:
            held += 1
            layer.precision = trt.float32
            for j in floats:
                layer.set_output_type(j, trt.float32)
    config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    said.words.append(f"{held} layers are held in fp32")


def _shapes(
    builder: tensorrt.Builder,
    network: tensorrt.INetworkDefinition,
    config: tensorrt.IBuilderConfig,
    spec: EngineSpec,
    name: str,
    said: _Said,
) -> None:
    """The optimisation profile: shapes of the one input at the smallest, usual and largest batch."""
    if network.num_inputs != 1:
        raise ModelError(f"{name} has {network.num_inputs} inputs, a vision model has one")
    source = network.get_input(0)
    dims = [int(d) for d in tuple(source.shape)]
    rest = list(spec.shape) if spec.shape is not None else dims[1:]
    fits = len(rest) == len(dims) - 1 and all(a in (-1, b) for a, b in zip(dims[1:], rest, strict=True))
    if not fits or -1 in rest:
        raise ModelError(
            f"{name} takes {dims} (−1 is free), the image shape is {rest}",
            hint="give --input c,h,w as the model takes it",
        )
    if dims[0] != -1 and set(spec.batch) != {dims[0]}:
        raise ModelError(
            f"{name} has its batch fixed at {dims[0]}, {spec.batch} was asked for",
            hint=f"give --batch {dims[0]}, or export it with a free batch",
        )
    shapes = [(size, *rest) for size in spec.batch]
    if -1 in dims:
        profile = builder.create_optimization_profile()
        profile.set_shape(source.name, *shapes)
        config.add_optimization_profile(profile)
    said.settings.update({"input": source.name, "shapes": [list(s) for s in shapes], "precision": spec.precision})
    said.settings["fp32_layers"] = list(spec.fp32_layers)


def _precision_error(spec: EngineSpec, name: str) -> ModelError:
    if spec.precision.startswith("int8"):
        return ModelError(
            f"{name} has no Q/DQ nodes, and INT8 is built from them alone",
            hint="give --calibration IMAGES.npy to quantise it, or a model that is quantised already",
        )
    return ModelError(
        f"{name} holds Q/DQ nodes, precision {spec.precision} was asked for", hint="--precision int8 or int8+fp16"
    )


def _builder(trt: Any, log: Any) -> tensorrt.Builder:
    """The runtime's builder.

    Raises:
        CpdError: there is none, in the runtime's own words; its binding says only that it is a null pointer.
    """
    try:
        return trt.Builder(log)
    except TypeError:
        raise CpdError(
            f"{_title(trt)} does not start: {_told(log.errors)}",
            hint="no model was looked at: are its libraries whole, and of one version?",
        ) from None


def _told(errors: list[str]) -> str:
    return "; ".join(dict.fromkeys(errors)) or "it gives no reason"


def _failed(name: str, errors: list[str], trt: Any) -> CpdError:
    """Why the build gave nothing, in the runtime's words."""
    said = _told(errors)
    hint = ""
    if "workspace" in said.lower():
        hint = "allow more scratch memory: --workspace-mib 1024, or leave it out"
    elif "out of memory" in said.lower():
        hint = "free memory on the device, or lower --batch and --workspace-mib"
    return CpdError(f"{_title(trt)} built no engine from {name}: {said}", hint=hint)


def _title(trt: Any) -> str:
    return f"{'TensorRT-RTX' if trt.__name__ == RTX else 'TensorRT'} {trt.__version__}"


__all__ = ["RTX", "Built", "EngineSpec", "Precision", "build_engine"]
