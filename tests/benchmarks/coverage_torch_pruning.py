"""What Torch-Pruning does with a network at half of every group, used as its own examples use it.

The recipe is that of its published examples for torchvision, timm and Hugging Face networks, found on modules
automatically and never by a network's name: the layers that make the classes are ignored; heads are declared for
attention modules that say how many they have; after pruning the numbers that a forward reads from its module
(`num_heads`, `head_dim`, `attn_dim`, `all_head_size`, torchvision's `hidden_dim`) are brought up to date.

Torch-Pruning has no masked network to compare with. `same` is our own check, made from its own record of what it
removed: the dense network whose convolutions and linear layers ignore those inputs must give the same outputs.
"""

from __future__ import annotations

import copy
import os
import time
import warnings
from typing import Any

os.environ["TIMM_FUSED_ATTN"] = "0"  # as its timm example does; timm reads it when it is imported

import torch
import torch_pruning as tp
from coverage_models import Subject, build
from coverage_numbers import calibrated, first_line, first_tensor, macs, onnx_error, parameters
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

RATIO = 0.5
STATISTICS = {
    "_softmax", "bmm", "baddbmm", "_scaled_dot_product_flash_attention_for_cpu", "native_layer_norm",
    "native_group_norm", "linalg_vector_norm", "var_mean", "std_mean", "_weight_norm_interface",
}  # fmt: skip
"""Calls that take a statistic over channels, or multiply features with features: removing is not masking there."""

Layer = nn.Conv2d | nn.Linear


def attempt(name: str, seed: int = 0) -> dict[str, Any]:
    """Every stage that was reached, what it gave, and the first line of what stopped it."""
    subject = build(name, seed)
    model = calibrated(subject.model, subject.input_shape)
    x = torch.randn(1, *subject.input_shape)
    row: dict[str, Any] = {"stages": [], "params_before": parameters(model), "macs_before": macs(model, x)}
    started = time.process_time()
    try:
        _through(row, Subject(model, subject.input_shape), x)
    except Exception as error:  # whatever a library raises is the result
        row["cause"] = first_line(error)
    row["seconds"] = time.process_time() - started
    return row


def _through(row: dict[str, Any], subject: Subject, x: Tensor) -> None:
    model = subject.model
    dense, wanted = copy.deepcopy(model), first_tensor(model(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = tp.pruner.MetaPruner(
            model,
            x,
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            global_pruning=False,
            pruning_ratio=RATIO,
            ignored_layers=class_layers(model, wanted.shape[1]),
            num_heads=declared_heads(model),
            out_channel_groups={m: m.num_heads for m in model.modules() if isinstance(m, nn.MultiheadAttention)},
            output_transform=first_tensor,
        )
        row["stages"].append("graph")
        alive = _prune(pruner, model)
    _up_to_date(model, pruner)
    row["params_after"] = parameters(model)
    if row["params_after"] >= row["params_before"]:
        raise RuntimeError("nothing was removed")
    row["stages"].append("prune")
    with torch.no_grad():
        got = first_tensor(model(x))
    if got.shape != wanted.shape or not got.isfinite().all():
        raise RuntimeError(f"outputs {list(got.shape)} instead of {list(wanted.shape)}, or not finite")
    row["stages"].append("forward")
    row["macs_after"] = macs(model, x)
    row["same_error"] = _masked_error(dense, model, alive, x)
    row["onnx_error"], row["onnx_exporter"] = onnx_error(model, x)
    row["stages"].append("onnx")


def class_layers(model: nn.Module, classes: int) -> list[nn.Module]:
    """Layers that give as many features as there are classes; its examples ignore them."""
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == classes]
    return linear + [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.out_channels == classes]


def declared_heads(model: nn.Module) -> dict[nn.Module, int]:
    """Number of heads by the layer that makes queries, keys and values, for every module that says how many it has."""
    heads: dict[nn.Module, int] = {}
    for module in model.modules():
        count = getattr(module, "num_heads", None) or getattr(module, "num_attention_heads", None)
        if not isinstance(count, int):
            continue
        for part in ("qkv", "qkv_proj", "query", "key", "value", "q_proj", "k_proj", "v_proj"):
            layer = getattr(module, part, None)
            if isinstance(layer, nn.Linear):
                heads[layer] = count
    return heads


def _prune(pruner: Any, model: nn.Module) -> dict[nn.Module, list[int]]:
    """Prunes, and returns which inputs of each convolution and linear layer are left, in original coordinates."""
    alive = {m: list(range(_inputs(m))) for m in model.modules() if isinstance(m, Layer)}
    for group in pruner.step(interactive=True):
        for dep, indices in group:
            layer = dep.target.module
            if layer in alive and pruner.DG.is_in_channel_pruning_fn(dep.handler) and not _depthwise(layer):
                gone = set(indices)
                alive[layer] = [unit for at, unit in enumerate(alive[layer]) if at not in gone]
        group.prune()
    return alive


def _inputs(layer: Layer) -> int:
    return layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features


def _depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.out_channels and layer.groups > 1


def _up_to_date(model: nn.Module, pruner: Any) -> None:
    """The numbers that a forward reads from its module follow the layers, as its examples do it."""
    for module in model.modules():
        packed = next((m for p in ("qkv", "qkv_proj") if isinstance(m := getattr(module, p, None), nn.Linear)), None)
        if packed is not None and packed in pruner.num_heads:
            module.num_heads = pruner.num_heads[packed]
            module.head_dim = packed.out_features // (3 * module.num_heads)
            if hasattr(module, "attn_dim"):
                module.attn_dim = module.num_heads * module.head_dim
        apart = next((m for p in ("query", "q_proj") if isinstance(m := getattr(module, p, None), nn.Linear)), None)
        if apart is not None and apart in pruner.num_heads:
            width = apart.out_features // pruner.num_heads[apart]
            told = {"head_dim": width, "attention_head_size": width, "all_head_size": apart.out_features}
            for name in told.keys() & vars(module).keys():
                setattr(module, name, told[name])
        if hasattr(module, "hidden_dim") and isinstance(stem := getattr(module, "conv_proj", None), nn.Conv2d):
            module.hidden_dim = stem.out_channels


@torch.no_grad()
def _masked_error(dense: nn.Module, small: nn.Module, alive: dict[nn.Module, list[int]], x: Tensor) -> float | None:
    """Largest relative difference to the dense network that ignores the same inputs; None where that proves nothing."""
    seen = _Calls()
    with seen:
        dense(x)
    if seen.names & STATISTICS:
        return None
    names = {layer: name for name, layer in small.named_modules()}
    for layer, units in alive.items():
        weight = dense.get_submodule(names[layer]).weight
        read = torch.zeros(_inputs(dense.get_submodule(names[layer])), dtype=torch.bool)  # type: ignore[arg-type]
        read[units] = True
        groups = getattr(dense.get_submodule(names[layer]), "groups", 1)
        rows = read.view(groups, -1).repeat_interleave(weight.shape[0] // groups, 0)
        weight.mul_(rows.view(*rows.shape, *[1] * (weight.dim() - 2)))
    wanted = first_tensor(dense.double()(x.double()))
    got = first_tensor(copy.deepcopy(small).double()(x.double()))
    return float((got - wanted).abs().max() / wanted.abs().max())


class _Calls(TorchDispatchMode):
    """Names of the ATen calls that were made."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func._schema.name.split("::")[-1])
        return func(*args, **(kwargs or {}))
