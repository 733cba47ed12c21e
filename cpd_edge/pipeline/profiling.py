"""The latency tables of a subject: measured all over the ranges, and where a solver's plans for it lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cpd_edge import store
from cpd_edge.errors import InfeasibleError, ModelError, UndecidedError
from cpd_edge.layout import Widths
from cpd_edge.measure.runtimes import TENSORRT
from cpd_edge.network import Combed
from cpd_edge.pipeline.mixture import INT8, Mixing, mixing
from cpd_edge.pipeline.plans import posed
from cpd_edge.pipeline.request import Request
from cpd_edge.pipeline.rig import Stage
from cpd_edge.pipeline.subject import Subject
from cpd_edge.profile.draws import Looks
from cpd_edge.profile.sample import profile
from cpd_edge.profile.table import LatencyTable, table_folder
from cpd_edge.score.importance import magnitude
from cpd_edge.solve.milp import solve
from cpd_edge.solve.ways import PLAIN, Ways
from cpd_edge.types import Constraints

INT8_TABLE, MIXING = "table-int8.json", "mixing.json"
"""Files of a run in mixed precision: the second table, and what beside the tables a mixture costs."""
ISOLATED_S = 5.0
"""Time spent on the isolated baseline of a table, where an engine for one operation is made in no time."""
SHARES, LOOK_S, ROUGHLY = (0.7, 0.5, 0.3), 2.0, 0.02
"""Budgets of the plans that are looked at, as shares of the dense latency; longest search of each [s], and its gap."""


def measured_table(
    subject: Subject,
    key: Mapping[str, Any],
    folder: Path,
    *,
    samples: int,
    seed: int,
    fresh: bool = False,
    progress: Callable[[float, str], None],
    starting: Callable[[], object] = lambda: None,
) -> LatencyTable:
    """The latency table, measured now or reused from `folder`, with the isolated baseline beside it.

    `starting` is called before anything is measured.

    Raises:
        ModelError: nothing of the network can be cut.
    """
    require_groups(subject.combed)
    return profile(
        subject.build,
        subject.regions,
        subject.widths,
        subject.runner,
        key,
        model=subject.dense_onnx,
        samples=samples,
        seed=seed,
        folder=folder,
        isolated_seconds=0.0 if subject.runtime == TENSORRT or subject.quantiser is not None else ISOLATED_S,
        fresh=fresh,
        looks=looks_of(subject),
        progress=progress,
        starting=starting,
    )


def require_groups(combed: Combed) -> None:
    """Refuses a network that every plan leaves as it is.

    Raises:
        ModelError: it has no groups.
    """
    if not combed.groups.groups:
        raise ModelError(
            "nothing of this network can be cut: it has no group of channels or heads, and no branch",
            hint="cpd-edge comb MODEL says what is frozen and why",
        )


def looks_of(subject: Subject) -> Looks:
    """Plans for some budgets on a table, by the magnitude of weights: it needs no data, and lies as plans lie."""
    importance = magnitude(subject.network.state_dict(), subject.combed.groups)

    def looks(table: LatencyTable) -> Sequence[Widths]:
        where = posed(table, importance, 1.0, subject.combed.groups, Constraints()).problem
        dense_ms, found = table.predict(subject.widths), list[Widths]()
        for share in SHARES:
            try:
                plan = solve(where.limited(share * dense_ms), gap=ROUGHLY, time_limit_s=LOOK_S)
            except (InfeasibleError, UndecidedError):
                break
            found.append({**subject.widths, **plan.widths})
        return found

    return looks


class Tables:
    """The latency tables of a run: one, or in mixed precision two and what mixing them costs.

    Args:
        request: the settings.
        run: the folder that keeps them.
        stage: times measuring.
    """

    def __init__(self, request: Request, run: store.Run, stage: Stage) -> None:
        self.request, self.run, self.stage = request, run, stage
        self._ways: Ways | None = None

    def table(self, subject: Subject) -> LatencyTable:
        """The latency table, measured now or reused, from the run's folder or this device's."""
        return self.table_of(subject.all_in("fp32") if self.request.mixed else subject, self.run / "table.json")

    def table_of(self, subject: Subject, file: Path) -> LatencyTable:
        """The latency table of the network in one precision, see `table`."""
        key = subject.key()
        if file.exists():
            known = LatencyTable.load(file)
            if known.key == key:
                return known
        folder = table_folder(Path(self.request.profiles), key)
        with self.stage("profile") as tell:
            table = measured_table(
                subject, key, folder, samples=self.request.samples, seed=self.request.seed, progress=tell
            )
            table.save(file)
        return table

    def ways(self, subject: Subject, table: LatencyTable) -> Ways:
        """How regions may run: one way, or in mixed precision two, of which the other was measured as well."""
        if not self.request.mixed:
            return PLAIN
        if self._ways is None:
            integers, file = self.table_of(subject.all_in(INT8), self.run / INT8_TABLE), self.run / MIXING
            found = Mixing(**store.read_json(file)) if file.exists() else None
            if found is None or list(found.between) != store.plain([table.key, integers.key]):
                with self.stage("profile both") as tell:
                    found = mixing(subject, table, integers, self.request.seed, tell)
                store.write_json(file, found)
            self._ways = found.ways(subject, integers)
        return self._ways


__all__ = ["INT8_TABLE", "MIXING", "Tables", "looks_of", "measured_table", "require_groups"]
