"""Does the engine compute what torch computes? On real inputs, within a stated tolerance, or it is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cpd_edge.errors import ParityError


@dataclass(frozen=True)
class Parity:
    """Largest difference between engine and torch.

    Attributes:
        max_abs: in the output's own units.
        max_rel: relative to the largest output of torch.
        tolerance: largest `max_rel` that is accepted.
        inputs: how many images were compared.
        agreement: share of predictions (pixels, for segmentation) with the same class.
    """

    max_abs: float
    max_rel: float
    tolerance: float
    inputs: int
    agreement: float


def check_parity(
    network: nn.Module,
    engine: Callable[[npt.NDArray[Any]], npt.NDArray[Any]],
    images: Tensor,
    tolerance: float,
    name: str,
) -> Parity:
    """Compares the first output of engine and torch on `images` `[b, c, h, w]`.

    Raises:
        ParityError: shapes differ, values are not finite, or the difference exceeds the tolerance.
    """
    with torch.no_grad():
        wanted = _first(network.eval()(images)).cpu().numpy()
    got = engine(images.numpy())
    if got.shape != wanted.shape:
        raise ParityError(f"engine {name} gives shape {got.shape}, torch gives {wanted.shape}")
    if not np.isfinite(got).all() or not np.isfinite(wanted).all():
        raise ParityError(
            f"engine {name}: outputs are not finite", hint="check the weights and the images for NaN, and for overflow"
        )
    max_abs = float(np.abs(got - wanted).max())
    max_rel = max_abs / (float(np.abs(wanted).max()) or 1.0)
    agreement = float((got.argmax(1) == wanted.argmax(1)).mean())
    if max_rel > tolerance:
        raise ParityError(
            f"engine {name} differs from torch by {max_rel:.2e} of the largest output, tolerance {tolerance:.0e}",
            hint="give --parity a larger tolerance only if you know why they differ",
        )
    return Parity(max_abs, max_rel, tolerance, len(images), agreement)


def _first(outputs: object) -> Tensor:
    while not isinstance(outputs, Tensor):
        outputs = next(iter(outputs.values())) if isinstance(outputs, dict) else outputs[0]  # type: ignore[index]
    return outputs
