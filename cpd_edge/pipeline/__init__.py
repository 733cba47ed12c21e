"""The pipeline: rooms put in order. `prune` is the main job; the other verbs are its parts, on their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from cpd_edge.comb import comb
from cpd_edge.cut.writeback import write_back
from cpd_edge.errors import ModelError, UsageError
from cpd_edge.intake.sets import user_loaders
from cpd_edge.intake.tasks import Task
from cpd_edge.network import Network, load
from cpd_edge.pipeline.request import Request
from cpd_edge.pipeline.stages import run
from cpd_edge.pipeline.sweeps import Swept, budgets
from cpd_edge.pipeline.sweeps import sweep as run_sweep
from cpd_edge.store import Run, measurement_from, read_json, require_folder
from cpd_edge.types import Budget, Measurement


@dataclass(frozen=True)
class Pruned:
    """What `prune` gives back.

    Attributes:
        module: the pruned network, a `torch.nn.Module` with the original parameter names.
        engine: the ONNX file that was measured.
        report: the HTML report.
        folder: the run folder.
        record: the object that `--json` prints: verdict, latencies, speed-up, ratios, metric.
        measurement: raw samples of the engine.
    """

    module: Network
    engine: Path
    report: Path
    folder: Path
    record: dict[str, Any]
    measurement: Measurement

    @property
    def verdict(self) -> str:
        """`PASS`, `FAIL` or `INCONCLUSIVE`."""
        return str(self.record["verdict"])

    def write_back(self, model: nn.Module) -> nn.Module:
        """Makes the same cut in the original module, in place, and gives it the pruned network's weights.

        Its class, its names in `state_dict` and its hooks stay, so a training loop written for it goes on; make the
        optimizer anew. It then computes what `module` does, or it is refused and left as it was.

        Args:
            model: the dense module that was pruned.

        Returns:
            The same module, cut.

        Raises:
            ModelError: it is another model, or it cannot take the cut; says where and why.
        """
        combed = comb(model, self.module.input_shape)
        pruned = {group["name"]: group["units"] for group in self.record["groups"]}
        if combed.groups.widths != pruned:
            odd = sorted(combed.groups.widths.items() ^ pruned.items())
            raise ModelError(
                f"{type(model).__name__} is not the model of {self.folder}: its groups differ in {odd[0][0]}",
                hint="give the dense module that was pruned, before any other cut",
            )
        plan = self.folder / "plan.json"
        kept = read_json(plan)["keep"] if plan.exists() else {}  # the dense engine met the budget
        keep = {name: np.asarray(units, np.int64) for name, units in kept.items()}
        return write_back(model, combed, keep, self.module)


def prune(
    model: nn.Module | str,
    data: Task | str | tuple[Any, Any],
    *,
    budget: Budget,
    device: str = "local",
    out: Path | str | None = None,
    resume: bool = False,
    progress: Callable[[str, float, str], None] | None = None,
    **settings: Any,
) -> Pruned:
    """Prunes a trained network until its engine meets the budget as measured, with the original as teacher.

    Args:
        model: a module, or a spec such as `torchvision:resnet18` or `my_models.py:make_net`.
        data: a task, a spec such as `imagefolder:DIR`, or `(train_loader, val_loader)`.
        budget: `Budget(limit_ms=12)` or `Budget(speedup=2)`, on a quantile.
        device: where the engine runs.
        out: run folder; a new one under `runs/` if it is not given.
        resume: go on with the run in `out`.
        progress: gets stage, fraction and message.
        settings: any other field of `Request` (`weights`, `epochs`, `steps`, `threads`, `seed` ...).

    Raises:
        CpdError: bad input, before any work; or a stage that failed.
        InfeasibleError: no plan meets the budget.
    """
    if not isinstance(budget, Budget):
        raise UsageError(f"budget {budget!r}", hint="give Budget(limit_ms=12) or Budget(speedup=2)")
    request, module, task = _asked(model, data, budget, device, settings)
    folder = Path(out) if out else new_folder(request.model)
    require_folder(folder, "out")
    done, network = run(request, folder, model=module, data=task, resume=resume, progress=progress)
    return Pruned(
        module=network,
        engine=done / "pruned.onnx",
        report=done / "report.html",
        folder=done.folder,
        record=done.record,
        measurement=done.load_measurement("pruned"),
    )


def sweep(
    model: nn.Module | str,
    data: Task | str | tuple[Any, Any],
    *,
    budgets_ms: Sequence[float] = (),
    speedups: Sequence[float] = (),
    quantile: float = 0.5,
    tolerance: float = 0.05,
    device: str = "local",
    out: Path | str | None = None,
    resume: bool = False,
    progress: Callable[[str, float, str], None] | None = None,
    **settings: Any,
) -> Swept:
    """Prunes a network to several budgets, each beginning with the student of the wider one before it.

    Args:
        model, data, device, progress, settings: as for `prune`.
        budgets_ms: limits in milliseconds; or
        speedups: limits as speed-ups over the dense engine.
        quantile, tolerance: of every budget.
        out: folder of the sweep; a new one under `runs/` if it is not given.
        resume: go on with the sweep in `out`; budgets may be added.

    Raises:
        CpdError: as `prune`; a budget that no plan meets is a point that says so.
    """
    over = budgets(budgets_ms, speedups, quantile, tolerance)
    request, module, task = _asked(model, data, over[0], device, settings)
    folder = Path(out) if out else new_folder(f"sweep-{request.model}")
    require_folder(folder, "out")
    return run_sweep(request, over, folder, model=module, data=task, resume=resume, progress=progress)


def _asked(
    model: object, data: object, budget: Budget, device: str, settings: Mapping[str, Any]
) -> tuple[Request, nn.Module | None, Task | None]:
    """What a caller's objects or specs ask for, and the objects."""
    unknown = sorted(set(settings) - set(Request.__dataclass_fields__))
    if unknown:
        raise UsageError(f"unknown settings {unknown}", hint=f"there are {', '.join(Request.__dataclass_fields__)}")
    if isinstance(data, tuple):
        data = Task(user_loaders("loaders", data))
    if not isinstance(model, (str, nn.Module)) or not isinstance(data, (str, Task)):
        raise UsageError(
            f"model {type(model).__name__}, data {type(data).__name__}",
            hint="give a module or a spec, and a task, a spec or (train_loader, val_loader)",
        )
    request = Request(
        model=model if isinstance(model, str) else type(model).__name__,
        data=data if isinstance(data, str) else data.name,
        budget=budget,
        device=device,
        **settings,
    )
    return request, None if isinstance(model, str) else model, None if isinstance(data, str) else data


def new_folder(model: str) -> Path:
    """A run folder under `runs/`, named after the time and the model."""
    stem = "".join(c if c.isalnum() else "-" for c in model.rpartition("/")[2]).strip("-")
    return Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{stem}"


__all__ = [
    "Budget", "Pruned", "Request", "Run", "Swept", "load", "measurement_from", "new_folder", "prune", "read_json",
    "run", "sweep",
]  # fmt: skip
