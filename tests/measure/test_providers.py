"""Laws of ONNX Runtime's providers: what did not run where it was asked to is an error that names the nodes.

The real thing is at hand without a GPU: ONNX Runtime's CPU build lists `AzureExecutionProvider`, which takes no node of
a local model, so a session that asks for it falls back to the CPU in silence.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cpd_edge.errors import EnvironmentMismatch, RuntimeMissing, UsageError
from cpd_edge.measure import OnnxRunner
from cpd_edge.measure.doctor import tiny_model
from cpd_edge.measure.providers import (
    fallen_back,
    load_cuda,
    provider_chain,
    provider_name,
    provider_options,
    require_first,
    require_no_fallback,
)

ort = pytest.importorskip("onnxruntime")
CUDA, TENSORRT, CPU = "CUDAExecutionProvider", "TensorrtExecutionProvider", "CPUExecutionProvider"
IDLE = "AzureExecutionProvider"


def event(name: str, provider: str, kind: str = "float") -> dict[str, Any]:
    """One kernel in a profile, of the fields that are read."""
    arguments = {"provider": provider, "op_name": "Conv", "output_type_shape": [{kind: [1, 8]}]}
    return {"cat": "Node", "name": f"{name}_kernel_time", "args": arguments}


@pytest.mark.skipif(IDLE not in ort.get_available_providers(), reason=f"this ONNX Runtime has no {IDLE}")
def test_a_real_silent_fallback_is_an_error_that_names_the_nodes() -> None:
    """ONNX Runtime says nothing; the profile does."""
    with pytest.raises(EnvironmentMismatch, match=rf"nodes ran on the CPU, {IDLE} was asked for: .*head \(MatMul\)"):
        OnnxRunner(tiny_model(), provider=IDLE)


@pytest.mark.skipif(CUDA in ort.get_available_providers(), reason="this ONNX Runtime has CUDA")
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_build_without_the_provider_is_refused(provider: str) -> None:
    """Before a session is opened, with what to install."""
    with pytest.raises(RuntimeMissing, match=r"this ONNX Runtime has no \w+: it has .*CPU"):
        OnnxRunner(tiny_model(), provider=provider)


def test_the_cpu_is_nobody_s_fallback() -> None:
    """Asked for, it runs everything."""
    runner = OnnxRunner(tiny_model(), provider="cpu")
    assert CPU == runner.environment["providers"]
    runner.close()


def test_a_provider_that_did_not_start_is_refused() -> None:
    """The session's own list is the evidence."""
    require_first([CUDA, CPU], CUDA)
    with pytest.raises(EnvironmentMismatch, match="did not start: the session runs on CPU"):
        require_first([CPU], CUDA)


def test_what_tensorrt_leaves_goes_to_cuda_and_shapes_to_the_cpu() -> None:
    """In that order."""
    assert [TENSORRT, CUDA, CPU] == provider_chain(TENSORRT, [CPU, CUDA, TENSORRT])
    assert [CPU] == provider_chain(CPU, [CPU, CUDA])


def test_shapes_on_the_cpu_are_no_fallback() -> None:
    """The runtime computes integers there on purpose; floating point it does not."""
    events = [event("conv", CUDA), event("shape", CPU, "int64"), event("odd", CPU), event("odd", CPU)]
    assert ("odd (Conv)",) == fallen_back(events, CUDA)
    require_no_fallback(events[:2], CUDA)


def test_long_lists_are_cut() -> None:
    """Ten names tell enough."""
    with pytest.raises(EnvironmentMismatch, match=r"25 nodes .* and 15 more"):
        require_no_fallback([event(f"n{i}", CPU) for i in range(25)], CUDA)


def test_fp32_on_cuda_is_not_tf32() -> None:
    """CUDA's provider rounds products unless it is told not to; others have no such option."""
    assert provider_options([TENSORRT, CUDA, CPU]) == [{}, {"use_tf32": "0"}, {}]


def test_what_is_printed_while_cuda_is_loaded_stays_out_of_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    """ONNX Runtime prints what it does not find; an old one cannot load CUDA at all, and is left alone."""
    load_cuda(SimpleNamespace(preload_dlls=lambda: print("no cuBLAS")))
    load_cuda(SimpleNamespace())
    said = capsys.readouterr()
    assert said.out == "" and "no cuBLAS" in said.err


def test_an_unknown_provider_is_refused() -> None:
    """With those there are."""
    assert provider_name("cuda") == CUDA
    with pytest.raises(UsageError, match="one of cpu, cuda, tensorrt"):
        provider_name("gpu")
