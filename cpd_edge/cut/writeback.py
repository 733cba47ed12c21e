"""Write-back: the cut that the graph took, made in the user's own module, which keeps its class, names and hooks.

Parameters and buffers are sliced as the graph's are. What the forward reads beside them (`num_heads`, `hidden_dim`,
split sizes) is found by evidence. A module is changed only after a copy of it computed what the cut graph does, in two
batch sizes, with and without gradients, and traced anew, and after the copy trained; otherwise it is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from cpd_edge.cut.attributes import put
from cpd_edge.cut.places import Place, fill, places_of, write
from cpd_edge.cut.rehearsal import Rehearsal, Unfit, folded, forget
from cpd_edge.cut.repair import Changes, declare
from cpd_edge.cut.surgery import cut
from cpd_edge.errors import ModelError
from cpd_edge.layout import Keep
from cpd_edge.network import Combed, Network


def write_back(model: nn.Module, combed: Combed, keep: Keep, state: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Makes a cut in the module that was combed, in place, and returns it: it then computes what `cut` gives.

    A parameter that changes its shape is a new object, so make optimizers afterwards. Where attention takes its scale
    from the width that it finds, the weights that make its queries carry the ratio to the scale it had.

    Args:
        model: the module that `combed` was made from; it is as it was if anything is raised.
        combed: its graph and layouts.
        keep: ascending kept units by group; a group that is absent stays whole.
        state: parameters and buffers in original coordinates, if not the module's own.

    Raises:
        ModelError: the module cannot take the cut; names the submodule, its line and what differs.
        ValueError: `keep` does not fit the groups.
    """
    if isinstance(model, Network):
        raise ModelError("a network is cut as it is", hint="use cpd_edge.cut.cut(combed, keep)")
    places = places_of(model, combed)
    own = {place.source: place.held(model).detach() for place in places}
    source = {name: (state or {}).get(name, tensor).to(tensor) for name, tensor in own.items()}
    small = cut(combed, keep, source)
    _commit(model, places, small, _rehearsed(model, combed, keep, places, source))
    return model


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


def _commit(model: nn.Module, places: Sequence[Place], small: Network, changes: Changes) -> None:
    """Makes the cut; should a module refuse an attribute, all of them are put back."""
    before = [(module, *(dict(d) for d in _held(module))) for module in model.modules()]
    try:
        for address, value in changes.attributes.items():
            put(model.get_submodule(address.module), address, value)
        same = fill(model, places, folded(small, changes.folds))
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
    return module._parameters, module._buffers, vars(module)  # type: ignore[return-value]
