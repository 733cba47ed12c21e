"""Where the tensors of a graph stand in the module that it was traced from, and how others are put there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cpd_edge.cut.surgery import _sliced as sliced
from cpd_edge.cut.writeback.attributes import Address, fetch, put, tensors
from cpd_edge.cut.writeback.rescale import Fold
from cpd_edge.errors import ModelError
from cpd_edge.layout import Keep
from cpd_edge.network import Combed, Network


@dataclass(frozen=True)
class Place:
    """A place of a module that holds a tensor of its graph.

    Attributes:
        module: path of the module.
        kind: `_parameters`, `_buffers` or `attribute`.
        at: its key there, or the address of an attribute.
        source: its name in the graph; places of one tensor have one name.
    """

    module: str
    kind: str
    at: str | Address
    source: str

    @property
    def name(self) -> str:
        """Its name in the module: of the names of a tied tensor, the one that is used here."""
        return str(self.at) if isinstance(self.at, Address) else f"{self.module}.{self.at}".lstrip(".")

    def held(self, model: nn.Module) -> Tensor:
        """The tensor that stands there."""
        module = model.get_submodule(self.module)
        found = fetch(module, self.at) if isinstance(self.at, Address) else getattr(module, self.kind)[self.at]
        assert isinstance(found, Tensor)
        return found

    def stands(self, model: nn.Module) -> bool:
        """Whether the module still has it; what a branch took along is gone."""
        try:
            module = model.get_submodule(self.module)
        except AttributeError:
            return False
        return isinstance(self.at, Address) or self.at in getattr(module, self.kind)

    def put(self, model: nn.Module, tensor: Tensor) -> None:
        """Puts another tensor there."""
        module = model.get_submodule(self.module)
        if isinstance(self.at, Address):
            put(module, self.at, tensor)
        else:
            getattr(module, self.kind)[self.at] = tensor


@dataclass(frozen=True)
class Values:
    """The tensors of a cut network by name, also of those that it no longer takes because a branch is left out.

    Attributes:
        small: the cut network.
        combed: the dense network's layouts.
        keep: ascending kept units by group.
        state: tensors in original coordinates.
        folds: factors on some of them.
    """

    small: Network
    combed: Combed
    keep: Keep
    state: Mapping[str, Tensor]
    folds: tuple[Fold, ...] = ()

    def __call__(self, name: str) -> Tensor:
        """The tensor that the module gets in the place of the one that the graph calls so."""
        try:
            tensor: Tensor = self.small.fetch(name).detach()
        except AttributeError:
            tensor = sliced(self.state[name], self.combed.parameters[name], self.keep)
        for fold in self.folds:
            tensor = fold.applied(name, tensor)
        return tensor


def places_of(model: nn.Module, combed: Combed) -> tuple[Place, ...]:
    """Every place of the module that holds a tensor of the graph.

    Raises:
        ModelError: the graph has parameters that the module lacks, or in other shapes.
    """
    wanted = {name: held for name in combed.parameters if isinstance(held := combed.network.fetch(name), Tensor)}
    named: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    named |= dict(model.named_buffers(remove_duplicate=False))
    _require_same(named, wanted)
    source: dict[int, str] = {}
    for name, tensor in named.items():
        if name in wanted:
            source.setdefault(id(tensor), name)
    constants = {name: tensor for name, tensor in wanted.items() if name not in named}
    found = []
    for path, module in model.named_modules():
        for kind in ("_parameters", "_buffers"):
            for key, tensor in getattr(module, kind).items():
                if id(tensor) in source:
                    found.append(Place(path, kind, key, source[id(tensor)]))
        for address, tensor in tensors(path, module):
            known = source.get(id(tensor)) or _constant(address, tensor, constants)
            if known:
                found.append(Place(path, "attribute", address, known))
    return tuple(found)


def fill(model: nn.Module, places: Iterable[Place], value: Callable[[str], Tensor]) -> Sequence[tuple[Tensor, Tensor]]:
    """Puts tensors of other shapes in place.

    Args:
        model: the module.
        places: which of its tensors.
        value: the new tensor by its name in the graph.

    Returns:
        What remains to be done, `(tensor, its new values)`, where the shape is the old one.
    """
    made: dict[str, Tensor] = {}
    same = []
    for place in (place for place in places if place.stands(model)):
        old = place.held(model)
        if place.source not in made:
            new = value(place.source).detach()
            if old.shape == new.shape:
                made[place.source] = old
                same.append((old, new))
            else:
                made[place.source] = _alike(old, new)
        if made[place.source] is not old:
            place.put(model, made[place.source])
    return same


def write(same: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Writes new values into tensors that keep their shape, where they differ."""
    with torch.no_grad():
        for old, new in same:
            if not torch.equal(old, new.to(old)):
                old.copy_(new)


def _require_same(named: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    for name, held in wanted.items():
        if name not in named and isinstance(held, nn.Parameter):
            raise ModelError(f"the model has no parameter {name}", hint="give the model that was combed")
        if name in named and named[name].shape != held.shape:
            raise ModelError(
                f"{name} is {list(named[name].shape)} in the model, {list(held.shape)} in its graph",
                hint="give the dense model; one that is cut already cannot take the cut again",
            )


def _constant(address: Address, tensor: Tensor, constants: Mapping[str, Tensor]) -> str:
    """The name under which the graph has a tensor that is a plain attribute: its own, or that of an equal one."""
    alike = {n: held for n, held in constants.items() if held.shape == tensor.shape and held.dtype == tensor.dtype}
    same = [n for n, held in alike.items() if held.data_ptr() == tensor.data_ptr() or n == str(address)]
    equal = (n for n, held in alike.items() if torch.equal(held.to(tensor.device), tensor))
    return same[0] if same else next(equal, "")


def _alike(old: Tensor, new: Tensor) -> Tensor:
    """A new tensor of an old one's kind, type, device and memory format."""
    new = new.to(device=old.device, dtype=old.dtype, copy=True)
    if old.dim() == 4 and old.is_contiguous(memory_format=torch.channels_last) and not old.is_contiguous():
        new = new.contiguous(memory_format=torch.channels_last)
    if isinstance(old, nn.Parameter):
        parameter = nn.Parameter(new, requires_grad=old.requires_grad)
        parameter.__dict__.update(old.__dict__)
        return parameter
    return new.requires_grad_(old.requires_grad)
