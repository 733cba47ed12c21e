"""What an engine really computes in: told by its kernels, never by what was asked for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

NAMES = {
    "float": "fp32", "f32": "fp32", "float16": "fp16", "f16": "fp16", "bfloat16": "bf16", "bf16": "bf16",
    "int8": "int8", "i8": "int8", "uint8": "int8", "u8": "int8",
}  # fmt: skip
"""Precision by what runtimes call the type that a kernel reads."""

_HEAVY = re.compile("conv|gemm|matmul|fullyconnected|attention|lstm|gru", re.IGNORECASE)
_LOWEST_FIRST = ("int8", "fp16", "bf16", "fp32")


def computed_in(kernels: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The precision of an engine, and how many of its weighted layers compute in which.

    Convolutions and matrix products decide; where there are none, all kernels do. An engine is of the lowest precision
    that any of them computes in, and `layers` says how many follow (`int8 20, fp32 1`).

    Args:
        kernels: operator of each kernel, and the precision that the runtime says it computes in, '' where it does not.

    Returns:
        `precision` and `layers`; nothing where no kernel tells.
    """
    told = [(operator, precision) for operator, precision in kernels if precision]
    heavy = [precision for operator, precision in told if _HEAVY.search(operator)]
    count = Counter(heavy or [precision for _, precision in told])
    if not count:
        return {}
    order = sorted(count, key=_LOWEST_FIRST.index)
    return {"precision": order[0], "layers": ", ".join(f"{name} {count[name]}" for name in order)}


__all__ = ["NAMES", "computed_in"]
