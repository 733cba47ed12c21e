"""Inputs that engines are timed on: a ring of seeded tensors, the same for every runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cpd_edge.errors import ModelError

RING = 8
"""Inputs that an engine runs in turn, so that no input is always in cache."""


def settled_shape(
    found: Sequence[int | str | None], batch: int, sample_input: npt.NDArray[Any] | None
) -> tuple[int, ...]:
    """The input's shape with every free dim settled: first the batch, the rest by the samples.

    Args:
        found: the model's shape `[batch, ...]`; a free dim is a name or None.
        batch: images per inference.
        sample_input: images `[n, ...]`, or None.

    Raises:
        ModelError: the dims do not agree, or a free one is left.
    """
    given = None if sample_input is None else sample_input.shape[1:]
    rest = [d if isinstance(d, int) or given is None or i >= len(given) else given[i] for i, d in enumerate(found[1:])]
    settled = tuple(d for d in rest if isinstance(d, int))
    if not found or len(settled) != len(rest) or (given is not None and settled != given):
        raise ModelError(
            f"the model's input is {list(found)}, the images are {list(given) if given is not None else 'not given'}",
            hint="give sample_input, images of the shape that the model takes",
        )
    if isinstance(found[0], int) and found[0] != batch:
        raise ModelError(
            f"the model's batch is fixed at {found[0]}, {batch} was asked for", hint="export it with a dynamic batch"
        )
    return (batch, *settled)


def ring_of(
    shape: tuple[int, ...], dtype: npt.DTypeLike, sample_input: npt.NDArray[Any] | None, seed: int
) -> tuple[npt.NDArray[Any], ...]:
    """`RING` seeded inputs of `shape`: standard normal, or batches drawn from the samples.

    Raises:
        ModelError: `dtype` is neither float32 nor float16.
    """
    if dtype not in (np.float32, np.float16):
        raise ModelError("the model's input is not of float32 or float16", hint="export it with a float input")
    random = np.random.default_rng(seed)
    if sample_input is None:
        return tuple(random.standard_normal(shape, np.float32).astype(dtype, copy=False) for _ in range(RING))
    picks = random.integers(0, len(sample_input), (RING, shape[0]))
    return tuple(np.ascontiguousarray(sample_input[rows], dtype) for rows in picks)


def described(ring: Sequence[npt.NDArray[Any]], sample_input: npt.NDArray[Any] | None) -> dict[str, Any]:
    """What the environment says of a ring: where it comes from, and the range of its values."""
    return {
        "inputs": f"ring of {len(ring)}, " + ("standard normal" if sample_input is None else "given samples"),
        "input_low": float(min(values.min() for values in ring)),
        "input_high": float(max(values.max() for values in ring)),
    }


__all__ = ["RING", "described", "ring_of", "settled_shape"]
