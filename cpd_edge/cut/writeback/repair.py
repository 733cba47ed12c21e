"""Which integers of a sliced module follow the cut, found by evidence: the first place that differs is put right first.

Facts from the graph propose; a witness disposes. Where a proposal leaves the module different from its graph, the
module whose own forward went wrong, and what it can see, is searched for the change that puts it right.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import TypeAlias

from torch import nn

from cpd_edge.cut.writeback.attributes import Address, fetch, integers, put
from cpd_edge.cut.writeback.facts import Facts
from cpd_edge.cut.writeback.rescale import Fold
from cpd_edge.cut.writeback.witness import Deviation, Witness

_TRIES = 64
"""Runs that one module is searched with."""
_MOVES = 12
"""Changes of integers that are considered for one module."""

Extents: TypeAlias = "dict[str, Callable[[nn.Module], object]]"

_CONV: Extents = {
    "in_channels": lambda m: m.weight.shape[1] * m.groups,
    "out_channels": lambda m: m.weight.shape[0],
}
_TRANSPOSED: Extents = {
    "in_channels": lambda m: m.weight.shape[0],
    "out_channels": lambda m: m.weight.shape[1] * m.groups,
}
_DECLARED: tuple[tuple[type | tuple[type, ...], Extents], ...] = (
    ((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _TRANSPOSED),
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), _CONV),
    (nn.Linear, {"in_features": lambda m: m.weight.shape[1], "out_features": lambda m: m.weight.shape[0]}),
    (
        nn.Bilinear,
        {
            "in1_features": lambda m: m.weight.shape[1],
            "in2_features": lambda m: m.weight.shape[2],
            "out_features": lambda m: m.weight.shape[0],
        },
    ),
    (nn.Embedding, {"num_embeddings": lambda m: m.weight.shape[0], "embedding_dim": lambda m: m.weight.shape[1]}),
    (nn.PReLU, {"num_parameters": lambda m: m.weight.shape[0]}),
    (nn.GroupNorm, {"num_channels": lambda m: m.weight.shape[0]}),
    ((nn.LayerNorm, nn.RMSNorm), {"normalized_shape": lambda m: tuple(m.weight.shape)}),
    (nn.modules.batchnorm._NormBase, {"num_features": lambda m: (m.weight if m.affine else m.running_mean).shape[0]}),
    (
        nn.MultiheadAttention,
        {
            "embed_dim": lambda m: (m.in_proj_weight if m._qkv_same_embed_dim else m.q_proj_weight).shape[1],
            "kdim": lambda m: (m.in_proj_weight if m._qkv_same_embed_dim else m.k_proj_weight).shape[1],
            "vdim": lambda m: (m.in_proj_weight if m._qkv_same_embed_dim else m.v_proj_weight).shape[1],
            "head_dim": lambda m: m.embed_dim // m.num_heads,
        },
    ),
)
"""Attributes of torch's own modules that its documentation ties to the shapes of their parameters."""
_COUNTED = ("groups", "num_groups", "num_heads")
"""Attributes of torch's own modules that no parameter's shape tells."""


@dataclass
class Changes:
    """What follows the cut beside the tensors that the graph names.

    Attributes:
        attributes: new value by address.
        folds: factors on parameters that make queries.
        absent: what takes the place of modules that went with a branch, by path.
    """

    attributes: dict[Address, object] = field(default_factory=dict)
    folds: list[Fold] = field(default_factory=list)
    absent: Mapping[str, nn.Module] = field(default_factory=dict)


Move: TypeAlias = "tuple[Address, int] | Fold"


class Repair:
    """Finds the changes that make a sliced module compute what its cut graph does.

    Args:
        model: the sliced module; its attributes are changed on the way.
        facts: what each module's forward sees, by path.
        read: whether an attribute of a module is read while it runs.
        witness: what every submodule has to take and give.
        folds: factors that a module's attention may need, by path.
        refill: writes the parameters that some folds name again, with the folds that are chosen.
    """

    def __init__(
        self,
        model: nn.Module,
        facts: Mapping[str, Facts],
        read: Callable[[Address], bool],
        witness: Witness,
        folds: Callable[[str], list[Fold]],
        refill: Callable[[list[Fold], list[Fold]], None],
    ) -> None:
        self._model, self._facts, self._read, self._witness = model, facts, read, witness
        self._folds, self._refill = folds, refill
        self._modules = dict(model.named_modules())
        self._before: dict[Address, object] = {}
        self._folded: list[Fold] = []
        self._learned: dict[type, list[tuple[str | int, ...]]] = {}
        self.changes = Changes()

    def run(self) -> Deviation | None:
        """Proposes, then repairs module by module; the deviation that nothing puts right, or None."""
        self._show(Changes(dict(self._proposed())))
        found = self._witness.deviation(self._model)
        while found is not None:
            better = self._search(found)
            if better is None:
                return found
            found = better.deviation
        return None

    def _proposed(self) -> Iterator[tuple[Address, object]]:
        for path, module in self._modules.items():
            facts = self._facts[path]
            if _is_declared(module):
                told = {*_COUNTED, *declare(module)}
                for address, value in integers(path, module, members=False):
                    if address.steps[0] in told:
                        yield address, facts.settled(value, True)
                continue
            for address, value in integers(path, module, members=False):
                read = self._read(address)
                plain = len(address.steps) == 1 and str(address.steps[0]) in vars(module)
                if (read or plain) and facts.settled(value, read) != value:
                    yield address, facts.settled(value, read)

    def _show(self, changes: Changes) -> None:
        """Puts the module into the state that some changes describe."""
        for address in [a for a in self.changes.attributes if a not in changes.attributes]:
            put(self._modules[address.module], address, self._before[address])
        for address, value in changes.attributes.items():
            module = self._modules[address.module]
            self._before.setdefault(address, fetch(module, address))
            put(module, address, value)
        for module in self._modules.values():
            declare(module)
        if changes.folds != self._folded:
            self._refill([*self._folded, *changes.folds], changes.folds)
            self._folded = list(changes.folds)
        self.changes = changes

    def _search(self, wrong: Deviation) -> _Found | None:
        """Best first: the changes that get furthest are extended, until the module that was wrong is passed."""
        moves = list(self._moves(wrong))
        base, order, tried = self.changes, count(), set[frozenset[int]]()
        entry = self._witness.entry(self._model, wrong) if moves else None
        queue: list[tuple[int, int, int, tuple[int, ...]]] = [(-wrong.reached, 0, next(order), ())]
        while queue and len(tried) < _TRIES:
            *_, chosen = heapq.heappop(queue)
            for state in (frozenset((*chosen, i)) for i in range(len(moves)) if i not in chosen):
                if state in tried or _clash(moves, state):
                    continue
                tried.add(state)
                self._show(_with(base, [moves[i] for i in state]))
                found = self._witness.deviation(self._model, entry)
                if found is None:
                    found = self._witness.deviation(self._model)
                    if found is None or found.reached > wrong.reached:
                        self._learn(wrong.module, [moves[i] for i in state])
                        return _Found(self._generalised(wrong.module, found))
                heapq.heappush(queue, (-found.reached, len(state), next(order), tuple(state)))
        self._show(base)
        return None

    def _generalised(self, path: str, found: Deviation | None) -> Deviation | None:
        """Where a factor put a module right, gives all of its class theirs at once, if that gets further."""
        here = self.changes
        alike = [p for p, m in self._modules.items() if type(m) is type(self._modules[path])]
        more = [fold for p in alike for fold in self._folds(p) if fold not in here.folds]
        if found is None or not more or not any(fold in here.folds for fold in self._folds(path)):
            return found
        self._show(_with(here, list(more)))
        further = self._witness.deviation(self._model)
        if further is None or further.reached > found.reached:
            return further
        self._show(here)
        return found

    def _moves(self, wrong: Deviation) -> Iterator[Move]:
        """What may be changed for a module, the likeliest first: its own integers, then those it can reach."""
        folds = [fold for fold in self._folds(wrong.module) if fold not in self.changes.folds]
        if wrong.shape_fits:
            yield from folds
        known = self._learned.get(type(self._modules[wrong.module]), [])
        found: list[tuple[bool, int, Address, int]] = []
        for path in self._reachable(wrong.module):
            for address, now in integers(path, self._modules[path], members=True):
                value = self._before.get(address, now)
                if self._read(address) and isinstance(value, int):
                    news = [*self._facts[wrong.module].candidates(value), value]
                    moves = [(address, new) for new in news if new != now]
                    found += [(address.steps not in known, i, *move) for i, move in enumerate(moves)]
        for _, _, address, new in sorted(found, key=lambda move: move[:2])[:_MOVES]:
            yield address, new
        if not wrong.shape_fits:
            yield from folds

    def _reachable(self, path: str) -> Iterator[str]:
        yield path
        steps = path.split(".") if path else []
        yield from (".".join(steps[:n]) for n in range(len(steps) - 1, -1, -1))
        yield from (name for name in self._modules if name and name.rpartition(".")[0] == path)

    def _learn(self, path: str, moves: list[Move]) -> None:
        known = self._learned.setdefault(type(self._modules[path]), [])
        known += [move[0].steps for move in moves if not isinstance(move, Fold)]


@dataclass(frozen=True)
class _Found:
    """A search that got past the module that was wrong, and what is wrong next, if anything."""

    deviation: Deviation | None


def declare(module: nn.Module) -> list[str]:
    """Brings the attributes of torch's own modules in line with the shapes of their parameters.

    Returns:
        Those that it could not, for a norm may have no parameters.
    """
    left = []
    for name, extent in next((extents for kind, extents in _DECLARED if isinstance(module, kind)), {}).items():
        try:
            value = extent(module)
        except AttributeError:  # there is no weight
            left.append(name)
            continue
        if getattr(module, name, value) != value:
            vars(module)[name] = value
    return left


def _is_declared(module: nn.Module) -> bool:
    return any(isinstance(module, kind) for kind, _ in _DECLARED)


def _clash(moves: list[Move], chosen: frozenset[int]) -> bool:
    """Whether two of the moves set one attribute."""
    addresses = [moves[i][0] for i in chosen if not isinstance(moves[i], Fold)]  # type: ignore[index]
    return len(set(addresses)) < len(addresses)


def _with(base: Changes, moves: list[Move]) -> Changes:
    attributes, folds = dict(base.attributes), list(base.folds)
    for move in moves:
        if isinstance(move, Fold):
            folds.append(move)
        else:
            attributes[move[0]] = move[1]
    return Changes(attributes, folds)
