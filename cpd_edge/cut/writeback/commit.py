"""The cut made in the user's own module, after a rehearsal on a copy has found and verified what follows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from cpd_edge.cut.surgery import cut
from cpd_edge.cut.writeback.absent import replace_modules
from cpd_edge.cut.writeback.attributes import put
from cpd_edge.cut.writeback.places import Place, Values, fill, places_of, write
from cpd_edge.cut.writeback.prints import relative_difference
from cpd_edge.cut.writeback.rehearsal import Rehearsal, Unfit, forget
from cpd_edge.cut.writeback.repair import Changes, declare
from cpd_edge.errors import ModelError
from cpd_edge.layout import Keep
from cpd_edge.network import Combed, Network

_SAME = 1e-3
"""Largest relative difference between two networks with equal weights; a wrong one is off by its whole output."""


def write_back(model: nn.Module, combed: Combed, keep: Keep, student: Network | None = None) -> nn.Module:
    """Makes a cut in the module that was combed, in place, and returns it: it then computes what `cut` gives.

    A parameter that changes its shape is a new object, so make optimizers afterwards. Where attention takes its scale
    from the width that it finds, the weights that make its queries carry the ratio to the scale it had. A module that
    went with a branch gives way to one that passes its input on.

    Args:
        model: the module that `combed` was made from; it is as it was if anything is raised.
        combed: its graph and layouts.
        keep: ascending kept units by group; a group that is absent stays whole.
        student: the same cut of the graph, trained: the module takes its weights over.

    Raises:
        ModelError: the module cannot take the cut; names the submodule, its line and what differs.
        ValueError: `keep` does not fit the groups.
    """
    if isinstance(model, Network):
        raise ModelError("a network is cut as it is", hint="use cpd_edge.cut.cut(combed, keep)")
    places = places_of(model, combed)
    source = {place.source: place.held(model).detach() for place in places}
    small = cut(combed, keep, source)
    if student is not None:
        _take_over(small, student, places)
    changes = _rehearsed(model, combed, keep, places, source)
    _commit(model, places, Values(small, combed, keep, source), changes)
    return model


def _take_over(small: Network, student: Network, places: Sequence[Place]) -> None:
    """Gives a cut network a student's weights; a tied one may have any of its names there.

    Raises:
        ModelError: the student is no training of this cut.
    """
    here = {**dict(small.named_parameters()), **dict(small.named_buffers())}
    there = {**dict(student.named_parameters()), **dict(student.named_buffers())}
    wrong = ""
    for place in places:
        for name in [name for name in (place.source, place.name) if name in there][:1]:
            if place.source in here and here[place.source].shape == there[name].shape:
                write([(here[place.source], there[name])])
            else:
                wrong = f"{name} is {list(there[name].shape)} in it"
    if not wrong:
        inputs = student.example()
        with torch.no_grad():
            gap = relative_difference(small.clone().to(inputs)(inputs), student(inputs))
        wrong = "" if gap <= _SAME else f"its outputs differ by {gap:.1e}"
    if wrong:
        raise ModelError(f"the student is no training of this cut: {wrong}", hint="give the plan that it was cut by")


def _rehearsed(
    model: nn.Module, combed: Combed, keep: Keep, places: Sequence[Place], source: Mapping[str, Tensor]
) -> Changes:
    """The changes, found and verified in float64, or in the module's own precision where it does not run in that."""
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    unfit = None
    for dtype in (torch.float64, own):
        try:
            return Rehearsal(model, combed, keep, places, source, dtype).changes()
        except Unfit as error:
            unfit = error
    raise ModelError(
        f"{type(model).__name__} and its graph do not compute the same: {unfit}",
        hint="comb it again: cpd_edge.comb.comb(model, input_shape)",
    ) from unfit


def _commit(model: nn.Module, places: Sequence[Place], values: Values, changes: Changes) -> None:
    """Makes the cut, all of it or, if it is interrupted, nothing."""
    before = [(module, *(dict(d) for d in _held(module))) for module in model.modules()]
    try:
        replace_modules(model, changes.absent)
        for address, value in changes.attributes.items():
            put(model.get_submodule(address.module), address, value)
        same = fill(model, places, replace(values, folds=tuple(changes.folds)))
        for module in model.modules():
            declare(module)
    except BaseException:
        for module, *kept in before:
            for now, then in zip(_held(module), kept, strict=True):
                now.clear()
                now.update(then)
        raise
    write(same)
    forget(model)


def _held(module: nn.Module) -> tuple[dict[str, object], ...]:
    return module._parameters, module._buffers, module._modules, vars(module)  # type: ignore[return-value]
