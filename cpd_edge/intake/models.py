"""`load_model`: one spec, one `nn.Module`, whatever the network's origin.

Specs: torchvision:NAME, timm:NAME, zoo:NAME[:option=value,...], FILE.py:FACTORY, FILE.pt2
"""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn

from cpd_edge import network
from cpd_edge.errors import ModelError, RuntimeMissing
from cpd_edge.intake import userfile
from cpd_edge.intake.zoo import ZOO

FORMS = "torchvision:NAME, timm:NAME, zoo:NAME, FILE.py:FACTORY or FILE.pt2"

PRETRAINED = Path("pretrained")
"""Given as weights, asks torchvision or timm for its own published weights, by download where need be."""


class RandomWeightsWarning(UserWarning):
    """The network has random weights, so that latency means something and accuracy does not."""


def load_model(
    spec: str, weights: Path | None = None, num_classes: int | None = None, in_channels: int | None = None
) -> nn.Module:
    """The network that `spec` names, in eval mode on the CPU. Nothing is downloaded unless weights is `pretrained`.

    Args:
        spec: `torchvision:NAME`, `timm:NAME`, `zoo:NAME[:width=32]`, `FILE.py:FACTORY`, or a saved `FILE.pt2`.
        weights: a state dict (`.pt`, `.pth`, `.safetensors`), or the word `pretrained`.
        num_classes: outputs of the head, where the origin lets it be chosen.
        in_channels: channels of the input, where the origin lets it be chosen.

    Raises:
        ModelError: unknown name, a factory that fails, or weights that do not fit.
        RuntimeMissing: torchvision or timm is not installed.
    """
    pretrained = weights == PRETRAINED
    origin, _, name = spec.partition(":")
    if spec.endswith(".pt2"):
        model = _saved(Path(spec))
    elif origin == "torchvision" and name:
        model = _torchvision(name, pretrained, num_classes, in_channels)
    elif origin == "timm" and name:
        model = _timm(name, pretrained, num_classes, in_channels)
    elif origin == "zoo" and name:
        model = _zoo(name, num_classes, in_channels)
    elif userfile.split(spec):
        model = userfile.load(spec, ModelError, num_classes=num_classes, in_channels=in_channels)
        if not isinstance(model, nn.Module):
            raise ModelError(f"{spec} gives {type(model).__name__}, not a torch.nn.Module", hint="return the network")
    else:
        raise ModelError(f"unknown model {spec!r}", hint=f"give {FORMS}")
    if pretrained and origin not in ("torchvision", "timm"):
        raise ModelError(f"{spec} has no published weights", hint="give --weights FILE")
    if weights is not None and not pretrained:
        apply_weights(model, weights)
    elif is_random(spec, weights):
        warnings.warn(
            f"{spec} has RANDOM weights: latency will be true, accuracy will be chance. Give --weights FILE",
            RandomWeightsWarning,
            stacklevel=2,
        )
    return model.eval()


def is_random(spec: str, weights: Path | None) -> bool:
    """Whether the network that a spec names has weights that nobody trained."""
    return weights is None and spec.partition(":")[0] in ("torchvision", "timm", "zoo")


def apply_weights(model: nn.Module, path: Path) -> None:
    """Loads a state dict into the model, all keys or none.

    Raises:
        ModelError: the file is unreadable, or its keys or shapes are not the model's.
    """
    state, own = read_state(path), model.state_dict()
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in own]
    shapes = [
        f"{k} {tuple(state[k].shape)}, model {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    found = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    faults = [f"{len(keys)} {word} ({_few(keys)})" for word, keys in found if keys]
    if faults:
        raise ModelError(f"{path} does not fit the model: {'; '.join(faults)}", hint=_misfit_hint(shapes, missing, own))
    model.load_state_dict(state, strict=False)


def read_state(path: Path) -> dict[str, Tensor]:
    """A state dict from `.pt`, `.pth` or `.safetensors`; the wrappers `state_dict` and `module.` are taken off.

    Raises:
        ModelError: not there, not readable without running code, or no state dict.
    """
    if not path.is_file():
        raise ModelError(f"weights {path} do not exist", hint=f"the working folder is {Path.cwd()}")
    if path.suffix == ".safetensors":
        state: Any = _safetensors(path)
    else:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # the unpickler raises whatever the bytes make it; kept as the cause
            why = (str(error).splitlines() or [""])[0]
            told = f"{type(error).__name__}: {why}"
            if why.startswith("Weights only load failed"):  # what follows is how to load it all the same
                told = "it holds objects that only code could make, such as a whole module"
            raise ModelError(
                f"{path} is no plain state dict: {told}",
                hint="save it with: torch.save(model.state_dict(), 'weights.pt')",
            ) from error
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise ModelError(f"{path} holds {type(state).__name__}, not tensors by name", hint="save model.state_dict()")
    if all(k.startswith("module.") for k in state):
        state = {k.removeprefix("module."): v for k, v in state.items()}
    return dict(state)


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise ModelError(f"{path} is not a safetensors file: {error}") from error


def _few(keys: list[str], limit: int = 4) -> str:
    return ", ".join(keys[:limit]) + (", ..." if len(keys) > limit else "")


def _misfit_hint(shapes: list[str], missing: list[str], own: Mapping[str, Tensor]) -> str:
    if shapes and not missing and len(shapes) <= 2:
        return "a head of another size: give --num-classes"
    return "are the weights those of this architecture?" if len(missing) < len(own) else "the key names share nothing"


def _closest(name: str, known: Iterable[str], origin: str) -> ModelError:
    names = list(known)
    near = difflib.get_close_matches(name, names, n=5, cutoff=0.4) or names[:5]
    return ModelError(f"{origin} has no model {name!r}", hint=f"closest: {', '.join(f'{origin}:{n}' for n in near)}")


def _torchvision(name: str, pretrained: bool, num_classes: int | None, in_channels: int | None) -> nn.Module:
    try:
        from torchvision import models
    except ImportError:
        raise RuntimeMissing("torchvision is not installed", hint="pip install 'cpd-edge[zoo]'") from None
    if name not in models.list_models():
        raise _closest(name, models.list_models(), "torchvision")
    options: dict[str, Any] = {"weights": "DEFAULT" if pretrained else None}
    if "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
        options["weights_backbone"] = None  # left out, torchvision would download it
    if num_classes is not None:
        options["num_classes"] = num_classes
    try:
        model: nn.Module = models.get_model(name, **options)
    except (ValueError, URLError) as error:
        raise ModelError(f"torchvision:{name}: {error}", hint="give --weights FILE that fits --num-classes") from error
    return model if in_channels is None else _with_channels(model, in_channels, pretrained)


def _with_channels(model: nn.Module, in_channels: int, pretrained: bool) -> nn.Module:
    """Replaces the first convolution by one for another number of input channels, where they differ.

    Raises:
        ModelError: there is none, or its published weights would be lost.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            if module.in_channels != in_channels and pretrained:
                raise ModelError(
                    f"published weights read {module.in_channels} channels, the data has {in_channels}",
                    hint="convert the images, or give --weights FILE",
                )
            if module.in_channels != in_channels:
                settings = ("out_channels", "kernel_size", "stride", "padding", "dilation", "padding_mode")
                fresh = nn.Conv2d(
                    in_channels, bias=module.bias is not None, **{k: getattr(module, k) for k in settings}
                )
                model.set_submodule(name, fresh)
            return model
    raise ModelError(
        "the model has no convolution whose input channels could be changed",
        hint="choose data whose images have the channels it reads",
    )


def _timm(name: str, pretrained: bool, num_classes: int | None, in_channels: int | None) -> nn.Module:
    try:
        import timm
    except ImportError:
        raise RuntimeMissing("timm is not installed", hint="pip install 'cpd-edge[zoo]'") from None
    if not timm.is_model(name.partition(".")[0]):
        raise _closest(name, timm.list_models(), "timm")
    options = {k: v for k, v in (("num_classes", num_classes), ("in_chans", in_channels)) if v is not None}
    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except (RuntimeError, OSError, TypeError) as error:
        raise ModelError(f"timm:{name}: {error}", hint="give --weights FILE") from error


def _zoo(text: str, num_classes: int | None, in_channels: int | None) -> nn.Module:
    name, _, tail = text.partition(":")
    if name not in ZOO:
        raise _closest(name, ZOO, "zoo")
    pairs = [item.partition("=") for item in tail.split(",") if item]
    if not all(value.isdigit() and int(value) > 0 for _, _, value in pairs):
        raise ModelError(f"zoo:{text}: options are name=number", hint=f"for example zoo:{name}:width=32")
    options = {key: int(value) for key, _, value in pairs}
    given = {k: v for k, v in (("num_classes", num_classes), ("in_channels", in_channels)) if v is not None}
    try:
        return ZOO[name](**options, **given)
    except TypeError as error:
        raise ModelError(f"zoo:{text}: {error}", hint=(ZOO[name].__doc__ or "").strip()) from error


def _saved(path: Path) -> nn.Module:
    """An exported program as a network that trains."""
    if not path.is_file():
        raise ModelError(f"{path} does not exist", hint=f"the working folder is {Path.cwd()}")
    return network.load(path)
