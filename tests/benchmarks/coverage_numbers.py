"""What is counted alike for every tool: parameters, multiply-accumulates, ONNX parity; and random statistics."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

PARITY = 1e-4
"""Largest difference of ONNX Runtime and torch, relative to the largest output, that counts as the same."""

NOTHING = 1e-3
"""A parameter whose elements differ by less is not trained: it is zero, one or a layer scale's start."""


def parameters(model: nn.Module) -> int:
    """Parameter elements, tied ones once."""
    return sum(p.numel() for p in model.parameters())


@torch.no_grad()
def macs(model: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates of one input, by torch's own counter. Fused attention, unknown to it, is taken apart."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(x)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops()) // 2


def first_tensor(outputs: Any) -> Tensor:
    """The tensor that a network is judged by: the only one, the one called `out` or `logits`, or the first."""
    while not isinstance(outputs, Tensor):
        if isinstance(outputs, dict):
            outputs = outputs.get("out", outputs.get("logits", next(iter(outputs.values()))))
        else:
            outputs = outputs[0]
    return outputs


def first_line(error: BaseException) -> str:
    """What an exception says, on one line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200] if text else ''}"


@torch.no_grad()
def calibrated(model: nn.Module, input_shape: tuple[int, ...]) -> nn.Module:
    """A copy in which nothing is zero or all alike, and batch norms hold the statistics of seeded noise."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.numel() and float(parameter.max() - parameter.min()) < NOTHING:
            noise = torch.rand(parameter.shape, generator=generator)
            parameter.copy_(0.2 * noise - 0.1 if float(parameter.abs().max()) < NOTHING else parameter * (0.5 + noise))
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum, norm.training = 1.0, True
    model(torch.randn(4, *input_shape, generator=generator))
    for norm in norms:
        norm.momentum, norm.training = 0.1, False
    return model.eval()


def onnx_error(model: nn.Module, x: Tensor) -> tuple[float, str]:
    """Largest relative difference of ONNX Runtime to torch, and which of torch's exporters made the file.

    Raises:
        RuntimeError: neither exporter gave a file that agrees; says what each said.
    """
    said = []
    for dynamo in (True, False):
        exporter = "dynamo" if dynamo else "legacy"
        try:
            error = _exported_error(model, x, dynamo)
        except Exception as problem:  # exporters and runtime raise what they like; the other one is tried
            said.append(f"{exporter}: {first_line(problem)}")
            continue
        if error < PARITY:
            return error, exporter
        said.append(f"{exporter}: differs by {error:.1e}")
    raise RuntimeError(f"ONNX: {'; '.join(said)}")


def _exported_error(model: nn.Module, x: Tensor, dynamo: bool) -> float:
    import onnxruntime

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    held = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = first_tensor(model(x)).numpy()
        if dynamo:
            program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
            assert program is not None
            held.write(program.model_proto.SerializeToString())
        else:
            torch.onnx.export(model, (x,), held, dynamo=False, opset_version=17)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(held.getvalue(), options, providers=["CPUExecutionProvider"])
    given = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    got = next((g for g in given if g.shape == wanted.shape), given[0])
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())
