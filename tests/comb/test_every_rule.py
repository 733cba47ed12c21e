"""Each rule on networks of a few layers: the stated groups, pruned == masked, and a mistake in any rule is caught."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import corpus_layers
import corpus_shapes
import pytest
from corpus import CASES, as_stated, described, traced, wrong

from cpd_edge.canonical import op_name
from cpd_edge.comb import relate
from cpd_edge.comb.groups import settle
from cpd_edge.comb.relate import RULES, Relation, Rule
from cpd_edge.layout import Layout, Leaf, Sum, axes, to_json
from cpd_edge.network import Combed, Network

assert corpus_layers, corpus_shapes

NEVER_TRACED = {
    "_assert_scalar": "a check without a result",
    "_local_scalar_dense": "what depends on data is refused when it is traced",
    "item": "what depends on data is refused when it is traced",
    "frobenius_norm": "torch warns that it is no more than linalg_vector_norm",
    "index_reduce": "torch warns that it is in beta; its rule is index_add's",
    "take_along_dim": "torch.export fixes the batch where it broadcasts; its rule is gather's",
    "lift_fresh": "torch.export leaves it out",
    "norm": "torch.export lowers it to linalg_vector_norm",
    "chunk": "rewritten as split_with_sizes, unless the graph computes the parts",
    "split": "rewritten as split_with_sizes, unless the graph computes the parts",
    "flatten": "rewritten as reshape, unless the graph computes several sizes",
    "view": "rewritten as reshape, unless it is written to",
    "_unsafe_view": "rewritten as reshape, unless the graph computes several sizes",
    "view_as_real_copy": "of complex numbers",
    "t": "of a parameter only: tests/comb/test_shape_traps.py",
}
"""Names of rules that no case exercises, and why."""


@pytest.fixture(autouse=True)
def no_bookkeeping(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cut does not bring recorded shapes up to date, which takes longer than all else and changes no number."""
    monkeypatch.setattr(Network, "refresh", Network.recompile)


@cache
def combed(name: str) -> Combed:
    return settle(relate.relate(traced(name)))


@pytest.mark.parametrize("name", CASES)
def test_the_stated_groups_are_found_and_cut_like_they_are_masked(name: str) -> None:
    """pruned == masked in float64 at two batch sizes, and no group more or less than stated."""
    assert described(combed(name)) == CASES[name].groups
    assert as_stated(CASES[name], combed(name))
    assert wrong(combed(name)) == ""


@cache
def exercised() -> dict[str, list[str]]:
    """The cases that call a rule, by the name under which it is registered; smallest graphs first."""
    found: dict[str, list[str]] = {}
    for case in sorted(CASES, key=lambda case: len(traced(case).graph.nodes)):
        for name in {op_name(node) for node in traced(case).graph.nodes}:
            found.setdefault(name if name in RULES else name.removesuffix("_"), []).append(case)
    return found


def test_every_registered_name_is_exercised() -> None:
    """No rule is without a network that calls it, but for those that say why."""
    assert set(RULES) - set(exercised()) == set(NEVER_TRACED)


class Forgetful(Relation):
    """A relation that keeps the state of another and does not do what it is told."""

    forgets = ""

    def unify(self, a: Layout, b: Layout) -> None:
        if self.forgets != "unify":
            super().unify(a, b)

    def contract(self, node: Any, *operands: Any, **options: Any) -> None:
        if self.forgets != "contract":
            super().contract(node, *operands, **options)

    def shape_argument(self, node: Any, path: tuple[int, ...], layout: Layout) -> None:
        if self.forgets != "shape_argument":
            super().shape_argument(node, path, layout)

    def freeze(self, node: Any, layouts: Any, reason: str) -> None:
        if self.forgets != "freeze":
            super().freeze(node, layouts, reason)


class Optimist:
    """The axes of a relation, to which every statistic is exact."""

    def __init__(self, axes: Any) -> None:
        self._axes = axes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._axes, name)

    def mark_inexact(self, layout: Layout) -> None:
        pass


def forgetting(rule: Rule, what: str) -> Rule:
    """The rule, each call of one kind left out."""

    def mistaken(r: Relation, n: Any) -> Any:
        other = object.__new__(Forgetful)
        other.__dict__.update(r.__dict__, forgets=what)
        if what == "mark_inexact":
            other.axes = Optimist(r.axes)  # type: ignore[assignment]
        return rule(other, n)

    return mistaken


def unrelated(rule: Rule) -> Rule:
    """The rule, its result made of units that have nothing to do with what went in."""

    def mistaken(r: Relation, n: Any) -> Any:
        found = rule(r, n)
        fresh = [tuple(r.axes.new(d.extent) for d in dims) for dims in (found if isinstance(found, list) else [found])]
        return fresh if isinstance(found, list) else fresh[0]

    return mistaken


def turned(rule: Rule) -> Rule:
    """The rule, the concatenations in its result laid in the wrong order, and the last of equal dims first."""

    def mistaken(r: Relation, n: Any) -> Any:
        found = rule(r, n)
        if isinstance(found, list):
            return [*found[1:], found[0]] if len({tuple(d.extent for d in dims) for dims in found}) == 1 else found
        found = tuple(Sum(d.parts[::-1]) if isinstance(d, Sum) else d for d in found)
        return found[::-1] if [d.extent for d in found] == [d.extent for d in found][::-1] else found

    return mistaken


MISTAKES = {
    **{f"forgets {what}": lambda rule, what=what: forgetting(rule, what)
       for what in ("unify", "contract", "shape_argument", "freeze", "mark_inexact")},
    "unrelated": unrelated,
    "turned": turned,
}  # fmt: skip


def plain(layout: Layout, groups: dict[str, int]) -> str:
    """A layout in which axes of no group have no name."""

    def bare(part: Layout) -> Layout:
        if isinstance(part, Leaf):
            return part if part.axis in groups else Leaf("", part.extent)
        return type(part)(tuple(bare(p) for p in part.parts))

    return str(to_json(bare(layout)))


def consequences(found: Combed) -> tuple[object, ...]:
    """All that a cut or a mask reads of a combed network."""
    groups = found.groups.widths
    return (
        described(found),
        {name: [plain(d, groups) for d in dims] for name, dims in found.parameters.items()},
        {
            (a.node, a.path, plain(a.layout, groups))
            for a in found.shape_arguments
            if not groups.keys().isdisjoint(axes(a.layout))
        },
        {(c.node, c.path, c.dim, plain(c.layout, groups), plain(c.passing, groups)) for c in found.contractions},
        [(b.name, b.first, b.last) for b in found.branches],
    )


def caught(case: str, mutant: Combed) -> bool:
    """Whether the case shows that its network was combed wrongly."""
    if not as_stated(CASES[case], mutant):
        return True
    try:
        return wrong(mutant, (2,)) != ""
    except (RuntimeError, ValueError, IndexError):
        return True


def functions() -> Iterator[tuple[str, Rule, list[str]]]:
    """Every rule with all names it is registered under."""
    for rule in dict.fromkeys(RULES.values()):
        names = [name for name, registered in RULES.items() if registered is rule]
        yield rule.__name__, rule, names


@pytest.mark.parametrize(("rule", "names"), [pytest.param(r, names, id=name) for name, r, names in functions()])
def test_a_mistake_in_any_rule_is_caught(rule: Rule, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a rule forgets or confuses, some network has other groups, a cut that is not its mask, or does not run.

    A mistake without consequences for any network, such as to forget what the rule never says, does not count.
    """
    cases = list(dict.fromkeys(case for name in names for case in exercised().get(name, ())))[:8]
    for case in cases:
        combed(case)  # is kept, so it must not be combed by a mistaken rule first
    survived, killed = [], []
    for mistake, make in MISTAKES.items():
        for name in names:
            monkeypatch.setitem(RULES, name, make(rule))
        outcomes = outcome(cases)
        (killed if True in outcomes else survived if False in outcomes else []).append(mistake)
    assert survived == []
    assert killed or "sym_size" in names  # what gives no tensor relates nothing


def outcome(cases: list[str]) -> list[bool | None]:
    """Whether each case catches what is registered now, up to the first that does; None where nothing is different."""
    found: list[bool | None] = []
    for case in cases:
        mutant = settle(relate.relate(traced(case)))
        different = consequences(mutant) != consequences(combed(case))
        found.append(caught(case, mutant) if different else None)
        if found[-1]:
            break
    return found
