"""Where ONNX Runtime really ran a model: a node that fell back to the CPU is an error, and it is named.

A provider that cannot start is replaced by the CPU without a word, and so is one that does not take a node. Neither the
build's device nor the list of available providers tells; the session's own list and its profile do.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from cpd_edge.errors import EnvironmentMismatch, RuntimeMissing, UsageError

CPU = "CPUExecutionProvider"
NAMES: Mapping[str, str] = {"cpu": CPU, "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
"""Short names of the providers that are asked for here."""

ON_GPU = frozenset([NAMES["cuda"], NAMES["tensorrt"]])

STILL = ("session.force_spinning_stop", "1")
"""Setting of sessions by which threads rest when an inference ends, and do not wait for the next one in a loop.

Such threads of one engine take the CPU from another: of two engines in turns, each with both threads of two cores,
inferences of 2.6 ms took 6.6 ms. With it they take 2.65 ms, alone and in turns.
"""
_KERNEL = "_kernel_time"
_SHOWN = 10


def provider_name(text: str) -> str:
    """A provider's full name from `cpu`, `cuda`, `tensorrt`, or from itself.

    Raises:
        UsageError: it is neither.
    """
    if text in NAMES:
        return NAMES[text]
    if text.endswith("ExecutionProvider"):
        return text
    raise UsageError(f"execution provider {text!r}", hint=f"one of {', '.join(NAMES)}")


def runtime_name(provider: str) -> str:
    """What `--runtime` calls ONNX Runtime on a provider; its numbers belong to no other."""
    short = next((name for name, full in NAMES.items() if full == provider), provider)
    return "onnxruntime" if short == "cpu" else f"onnxruntime-{short}"


def provider_chain(wanted: str, available: Sequence[str]) -> list[str]:
    """What to open a session with: the provider asked for, what TensorRT leaves to CUDA, and the CPU for shapes.

    Raises:
        RuntimeMissing: this build of ONNX Runtime has no such provider.
    """
    if wanted not in available:
        raise RuntimeMissing(
            f"this ONNX Runtime has no {wanted}: it has {', '.join(available)}",
            hint="pip uninstall onnxruntime onnxruntime-gpu, then pip install 'cpd-edge[gpu]' (never beside [cpu])",
        )
    between = [NAMES["cuda"]] if wanted == NAMES["tensorrt"] and NAMES["cuda"] in available else []
    return list(dict.fromkeys([wanted, *between, CPU]))


def provider_options(chain: Sequence[str]) -> list[dict[str, str]]:
    """Options of each provider: CUDA's rounds products to TF32 if it is left to itself, and fp32 means fp32 here."""
    return [{"use_tf32": "0"} if name == NAMES["cuda"] else {} for name in chain]


def load_cuda(ort: Any) -> None:
    """Loads the CUDA and cuDNN that pip installed, where ONNX Runtime does not look by itself.

    Args:
        ort: the module; before 1.21 it cannot, and takes the system's. It prints what it does not find.
    """
    with contextlib.redirect_stdout(sys.stderr):
        getattr(ort, "preload_dlls", lambda: None)()


def require_first(used: Sequence[str], wanted: str) -> None:
    """Refuses a session that was opened on another provider than the one asked for.

    Raises:
        EnvironmentMismatch: it did not start.
    """
    if not used or used[0] != wanted:
        raise EnvironmentMismatch(
            f"{wanted} did not start: the session runs on {', '.join(used) or 'nothing'}",
            hint="check the driver, and that CUDA and cuDNN are of the versions this ONNX Runtime was built for",
        )


def fallen_back(events: Sequence[Mapping[str, Any]], wanted: str) -> tuple[str, ...]:
    """Nodes that computed on the CPU in a profile of a session that was to run on `wanted`, in order.

    Integers and booleans are left out: the runtime computes shapes on the CPU on purpose.

    Args:
        events: of the runtime's profile.
        wanted: full name of the provider that was asked for.
    """
    if wanted == CPU:
        return ()
    found = [
        f"{str(event['name']).removesuffix(_KERNEL)} ({event['args'].get('op_name', '?')})"
        for event in events
        if event.get("cat") == "Node"
        and str(event.get("name", "")).endswith(_KERNEL)
        and event["args"].get("provider") == CPU
        and _computes(event["args"])
    ]
    return tuple(dict.fromkeys(found))


def require_no_fallback(events: Sequence[Mapping[str, Any]], wanted: str) -> None:
    """Refuses a run of which a part fell back to the CPU.

    Raises:
        EnvironmentMismatch: names the nodes.
    """
    nodes = fallen_back(events, wanted)
    if nodes:
        more = f" and {len(nodes) - _SHOWN} more" if len(nodes) > _SHOWN else ""
        raise EnvironmentMismatch(
            f"{len(nodes)} nodes ran on the CPU, {wanted} was asked for: {', '.join(nodes[:_SHOWN])}{more}",
            hint="replace these operations in the model, or measure it on the CPU",
        )


def _computes(arguments: Mapping[str, Any]) -> bool:
    """Whether a kernel writes anything but integers and booleans; where the profile does not say, it does."""
    kinds = {str(kind) for shape in arguments.get("output_type_shape", []) for kind in shape}
    return not kinds or any("float" in kind or "double" in kind for kind in kinds)


__all__ = [
    "CPU", "NAMES", "ON_GPU", "fallen_back", "load_cuda", "provider_chain", "provider_name", "provider_options",
    "require_first", "require_no_fallback", "runtime_name",
]  # fmt: skip
