"""The networks that coverage is counted on: the 62 named ones, all of torchvision's, and small Hugging Face ones."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

NAMED = Path(__file__).with_name("coverage_models.txt")
LARGEST = 150e6
"""Parameters above which a torchvision network is left out."""


@dataclass(frozen=True)
class Subject:
    """A network with random weights and the shape of one input."""

    model: nn.Module
    input_shape: tuple[int, ...]


class Logits(nn.Module):
    """A Hugging Face network that gives its logits instead of a record."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).logits


def lists() -> dict[str, list[str]]:
    """Names by list: `named`, `torchvision` (all others of it below the limit) and `hf`, where installed."""
    named = NAMED.read_text().split()
    found = {"named": named, "torchvision": [n for n in torchvision_names() if n not in named]}
    try:
        import transformers  # noqa: F401
    except ImportError:
        return found
    return {**found, "hf": [f"hf:{name}" for name in _HF]}


def torchvision_names() -> list[str]:
    """Every torchvision classifier and segmenter below the limit, as `torchvision:NAME`."""
    from torchvision import models

    names = models.list_models(module=models) + models.list_models(module=models.segmentation)
    size = {name: models.get_model_weights(name).DEFAULT.meta["num_params"] for name in names}  # type: ignore[attr-defined]
    return [f"torchvision:{name}" for name in names if size[name] < LARGEST]


def build(name: str, seed: int = 0) -> Subject:
    """The network with seeded random weights, in eval mode, without heads that only train."""
    torch.manual_seed(seed)
    origin, _, short = name.partition(":")
    made = {"torchvision": _torchvision, "timm": _timm, "hf": _hf}[origin](short)
    made.model.eval()
    return made


def _torchvision(name: str) -> Subject:
    from torchvision import models

    options: dict[str, Any] = {"weights": None}
    known = inspect.signature(models.get_model_builder(name)).parameters
    if "weights_backbone" in known:
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": False}
    return Subject(models.get_model(name, **options), (3, 299, 299) if name == "inception_v3" else (3, 224, 224))


def _timm(name: str) -> Subject:
    import timm

    model = timm.create_model(name, pretrained=False)
    return Subject(model, tuple(model.default_cfg["input_size"]))


_VIT = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3, "num_labels": 100}

_HF: Mapping[str, tuple[str, str, Mapping[str, Any], int]] = {
    "segformer": ("SegformerConfig", "SegformerForSemanticSegmentation", {"num_labels": 21}, 128),
    "vit": ("ViTConfig", "ViTForImageClassification", {**_VIT, "intermediate_size": 384, "image_size": 64}, 64),
    "dinov2": ("Dinov2Config", "Dinov2ForImageClassification", {**_VIT, "image_size": 56, "patch_size": 14}, 56),
    "swin": (
        "SwinConfig",
        "SwinForImageClassification",
        {"embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "image_size": 64, "num_labels": 100},
        64,
    ),
    "convnext": (
        "ConvNextConfig",
        "ConvNextForImageClassification",
        {"hidden_sizes": [24, 48, 96, 192], "depths": [1, 1, 2, 1], "num_labels": 100},
        64,
    ),
}
"""Configuration class, network class, options and image size of small Hugging Face networks; nothing is downloaded."""


def _hf(name: str) -> Subject:
    import transformers

    config_class, model_class, options, size = _HF[name]
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**options))
    return Subject(Logits(model), (3, size, size))
