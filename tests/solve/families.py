"""Drawn problems of four families of cost, and problems as large as ResNet-50's."""

from __future__ import annotations

import numpy as np

from cpd_edge.solve.infeasible import floor
from cpd_edge.solve.pose import candidate_widths, losses
from cpd_edge.solve.problem import Load, Problem, RegionCost, Resource, latency

FAMILIES = ("equal", "launch", "staircase", "noisy")


def drawn(family: str, seed: int, *, groups: int = 4, concat: bool = True) -> Problem:
    """A chain of groups with a skip region, and a region that reads two groups and writes a third."""
    rng = np.random.default_rng(seed)
    names = [f"g{i}" for i in range(groups)]
    units = {g: int(rng.integers(6, 65)) for g in names}
    candidates = {g: candidate_widths(1, n, int(rng.integers(3, 6))) for g, n in units.items()}
    loss = {g: losses(rng.lognormal(0, 1, n), candidates[g]) for g, n in units.items()}
    pairs = [(names[i], names[i + 1]) for i in range(groups - 1)] + [(names[0], names[-1])]

    def cost(name: str, *over: str) -> RegionCost:
        axes_ = np.ix_(*(candidates[g].astype(float) for g in over))
        if family == "staircase":
            axes_ = tuple(16 * np.ceil(a / 16) for a in axes_)
        read = sum(axes_[:-1], np.zeros(1)) if len(over) > 1 else 1.0
        ms = 0.001 * read * axes_[-1] * (1.0 if family == "equal" else rng.uniform(0.3, 3))
        if family != "equal":
            ms = ms + rng.uniform(0.1, 1)
        if family == "noisy":
            ms = ms * rng.uniform(0.8, 1.2, ms.shape)
        return RegionCost(name, over, np.broadcast_to(ms, [len(candidates[g]) for g in over]).copy())

    costs = [cost(f"r{i}", a, b) for i, (a, b) in enumerate(pairs)] + [cost("stem", names[0])]
    if concat:
        costs.append(cost("cat", names[0], names[1], names[2]))
    problem = Problem(candidates, loss, (latency(tuple(costs), 0.3, 1.0),))
    dense, least = problem.latency_ms(problem.dense), floor(problem).latency_ms
    return problem.limited(least + float(rng.uniform(0.05, 0.8)) * (dense - least))


def resnet50_sized(seed: int, share: float, macs_share: float = np.inf) -> Problem:
    """37 groups of 16 widths, 54 regions: 5 stream groups, 32 inside blocks.

    Args:
        seed: of losses and costs.
        share: of the dense latency that is allowed.
        macs_share: of the dense network's products that is allowed.
    """
    rng = np.random.default_rng(seed)
    blocks = (3, 4, 6, 3)
    units = {"stem": 64}
    edges: list[tuple[str, str, float]] = []
    stream = "stem"
    for stage, count in enumerate(blocks):
        base = 64 * 2**stage
        units[f"s{stage}"] = base * 4
        for block in range(count):
            a, b = f"s{stage}.{block}.a", f"s{stage}.{block}.b"
            units |= {a: base, b: base}
            edges += [(stream, a, 1.0), (a, b, 9.0), (b, f"s{stage}", 1.0)]
            if block == 0:
                edges.append((stream, f"s{stage}", 1.0))
            stream = f"s{stage}"
    candidates = {g: np.unique(np.linspace(n / 16, n, 16).round().astype(int)) for g, n in units.items()}
    loss = {g: losses(rng.lognormal(0, 1, n), candidates[g]) for g, n in units.items()}
    costs, products = [], []
    for i, (a, b, kernel) in enumerate(edges):
        ca, cb = (16 * np.ceil(candidates[g] / 16) / 64 for g in (a, b))
        stage = int(b[1])
        grid = 0.02 + 0.004 * kernel * ca[:, None] * cb[None, :] / 4**stage + 0.002 * ca[:, None] + 0.002 * cb[None, :]
        products.append(RegionCost(f"r{i}", (a, b), kernel * np.outer(candidates[a], candidates[b]) / 4**stage))
        costs.append(RegionCost(f"r{i}", (a, b), grid * rng.uniform(0.97, 1.03, grid.shape)))
    costs.append(RegionCost("stem", ("stem",), 0.1 + 0.01 * candidates["stem"]))
    costs.append(RegionCost("head", ("s3",), 0.05 + 0.0001 * candidates["s3"]))
    macs = Resource("MACs", "", np.inf, (Load(tuple(products)),))
    problem = Problem(candidates, loss, (latency(tuple(costs), 0.1, np.inf), macs))
    dense = problem.used(problem.dense)
    return problem.limited(share * dense["latency"], macs_share * dense["MACs"])
