"""The error tree. Every error says what, where, got against wanted, and what to type next.

CpdError
├── UsageError            the request cannot be met as typed            exit code 2
│   ├── ModelError        unknown model, weights that do not fit, not exportable
│   ├── DataError         data missing, unreadable, or with the wrong classes
│   ├── BudgetError       budget that is no budget
│   ├── RuntimeMissing    a runtime that is not installed
│   ├── StoreError        a run folder that cannot be read or resumed
│   └── TableError        a latency table lacks, or contradicts, what is asked
├── InfeasibleError       no plan meets the budget; names the floor     exit code 1
├── UndecidedError        the time for a search ran out before a proof  exit code 3
├── ParityError           engine and torch disagree                     exit code 1
└── EnvironmentMismatch   numbers from different environments           exit code 4
"""

from __future__ import annotations


class CpdError(Exception):
    """Root of everything this package raises on purpose.

    Args:
        what: one sentence that says what is wrong, where, got against wanted.
        hint: the next thing to type or to change; printed on its own line.
    """

    exit_code = 1

    def __init__(self, what: str, *, hint: str = "") -> None:
        super().__init__(what if not hint else f"{what}\n  {hint}")
        self.what = what
        self.hint = hint


class UsageError(CpdError):
    """The request cannot be met as typed."""

    exit_code = 2


class ModelError(UsageError):
    """The model is unknown, cannot be exported, or its weights do not fit."""


class DataError(UsageError):
    """The data is missing, unreadable, or does not belong to the model."""


class BudgetError(UsageError):
    """The budget is not a positive number of milliseconds, ratio or quantile."""


class RuntimeMissing(UsageError):
    """A runtime or optional package is not installed."""


class StoreError(UsageError):
    """A run folder cannot be read, or does not belong to this request."""


class TableError(UsageError):
    """A latency table lacks an entry, or was measured for something else."""


class InfeasibleError(CpdError):
    """No plan meets the budget.

    Args:
        floor_ms: the lowest latency any plan reaches, as predicted [ms]; where another resource binds, the latency
            of the plan that takes least of it.
        binding: names of the groups or regions that hold the floor up, worst first.
        resource: whose limit cannot be met.
        floor: the least of it that any plan takes, in its own unit; `floor_ms` if not given.
        beside: resources without whose limits it could be met.
    """

    def __init__(
        self,
        what: str,
        *,
        floor_ms: float,
        binding: tuple[str, ...],
        hint: str = "",
        resource: str = "latency",
        floor: float | None = None,
        beside: tuple[str, ...] = (),
    ) -> None:
        super().__init__(what, hint=hint)
        self.floor_ms = floor_ms
        self.binding = binding
        self.resource = resource
        self.floor = floor_ms if floor is None else floor
        self.beside = beside


class UndecidedError(CpdError):
    """Whether any plan meets the limits was not decided in the time for it: neither a plan nor a proof was found."""

    exit_code = 3

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"whether any plan meets the limits was not decided in {seconds:g} s",
            hint="fewer widths are decided sooner: give --multiple-of 8, or a wider limit",
        )


class ParityError(CpdError):
    """The engine and the torch module give different outputs."""


class EnvironmentMismatch(CpdError):
    """Two numbers come from environments that may not be compared."""

    exit_code = 4
