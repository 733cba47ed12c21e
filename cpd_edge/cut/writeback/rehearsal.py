"""The cut of a module, tried on a copy: what has to change is found, and everything that was promised is verified."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from cpd_edge.cut.surgery import cut
from cpd_edge.cut.writeback.absent import absences, passed_on, replace_modules
from cpd_edge.cut.writeback.attributes import OWN, Address, put, reads, tensors
from cpd_edge.cut.writeback.facts import Facts, facts_of
from cpd_edge.cut.writeback.places import Place, Values, fill, write
from cpd_edge.cut.writeback.prints import Print, prints, relative_difference, tensors_in
from cpd_edge.cut.writeback.repair import Changes, Repair
from cpd_edge.cut.writeback.rescale import Fold, compensated, folds
from cpd_edge.cut.writeback.witness import Deviation, Witness
from cpd_edge.errors import ModelError
from cpd_edge.layout import Keep
from cpd_edge.network import Combed, trace

_TOLERANCE = {torch.float64: 1e-9}
"""Largest relative difference between two ways to compute one network, by precision."""
_NATIVE = 1e-3
"""The same in another precision, where a module does not run in float64."""


class Unfit(Exception):
    """The module and its dense graph do not compute the same in this precision."""


class Rehearsal:
    """A copy of a module beside its dense and its cut graph, all with the same lively parameters.

    Parameters that are all alike (zeros, ones) get other values, so that a branch that counts nothing as the
    weights are now is verified too.

    Args:
        model: the module; it is not changed.
        combed: its graph and layouts.
        keep: ascending kept units by group.
        places: where the module holds the graph's tensors.
        state: their values, by the graph's names, in original coordinates.
        dtype: precision to compute in.

    Raises:
        Unfit: the copy and the dense graph differ in this precision.
        ModelError: the module cannot be copied.
    """

    def __init__(
        self,
        model: nn.Module,
        combed: Combed,
        keep: Keep,
        places: Sequence[Place],
        state: Mapping[str, Tensor],
        dtype: torch.dtype,
    ) -> None:
        self._places, self._shape = places, combed.network.input_shape
        self._tolerance = _TOLERANCE.get(dtype, _NATIVE)
        self._facts = facts_of(model, combed, {name: len(units) for name, units in keep.items()})
        self._wanted: dict[tuple[Fold, ...], Mapping[str, Print]] = {}
        self._original, self.copy = model, _copied(model, dtype)
        try:
            self._dense = combed.network.clone().to(device=next(iter(state.values())).device, dtype=dtype)
            lively = {name: _lively(tensor, seed) for seed, (name, tensor) in enumerate(state.items())}
            write((self._dense.fetch(name), tensor) for name, tensor in lively.items())
            write((place.held(self.copy), lively[place.source]) for place in places)
            own = replace(combed, network=self._dense)
            self._small = cut(own, keep)
            self._values = Values(self._small, own, keep, lively)
            self._inputs = self._dense.example(2, seed=1)
            self._read: set[tuple[int, str]] = set()
            with _remembered(self.copy), reads(self.copy) as self._read:
                self._witness = Witness(
                    self.copy, self._dense, self._small, self._inputs, self._tolerance, passed_on(own, keep)
                )
                with torch.no_grad():
                    gap = relative_difference(self.copy(self._inputs), self._dense(self._inputs))
                self._absent = absences(self.copy, own, self._small, lambda model: model(self._inputs))
        except Exception as error:  # whatever a forward raises that was not made for this precision
            raise Unfit(f"{type(error).__name__}: {error}") from error
        if not gap <= self._tolerance:
            raise Unfit(f"their outputs differ by {gap:.1e} of the largest")

    def changes(self) -> Changes:
        """What beside its tensors has to change in the module.

        Raises:
            ModelError: nothing that was tried makes it compute what the cut graph does.
        """
        replace_modules(self.copy, self._absent)
        write(fill(self.copy, self._places, self._values))
        forget(self.copy)
        known: dict[str, list[Fold]] = {}

        def folds_at(path: str) -> list[Fold]:
            if path not in known:
                known[path] = list(folds(self._dense, self._small, self._facts[path].calls, self._inputs))
            return known[path]

        def is_read(address: Address) -> bool:
            return (id(self.copy.get_submodule(address.module)), str(address.steps[0])) in self._read

        repair = Repair(self.copy, self._facts, is_read, self._witness, folds_at, self._refill)
        wrong = repair.run()
        if wrong is not None:
            raise refusal(self._original, wrong, self._facts)
        changes = replace(repair.changes, absent=self._absent)
        for path, found in known.items():
            for fold in (f for f in found if f in changes.folds):
                for address in (Address(path, (name,)) for name in _scales(self.copy.get_submodule(path), fold)):
                    if not is_read(address):
                        changes.attributes[address] = fold.widths[1] ** -0.5
                        put(self.copy.get_submodule(path), address, fold.widths[1] ** -0.5)
        self._verify()
        return changes

    def _refill(self, touched: list[Fold], chosen: list[Fold]) -> None:
        """Writes again what some folds concern, with those that are chosen, and expects the same of the graph."""
        names = {name for fold in touched for name in fold.tensors}
        concerned = [place for place in self._places if place.source in names]
        write(fill(self.copy, concerned, replace(self._values, folds=tuple(chosen))))
        if tuple(chosen) not in self._wanted:
            self._wanted[tuple(chosen)] = prints(compensated(self._small, chosen), self._inputs)
        self._witness.expect(self._wanted[tuple(chosen)])

    def _verify(self) -> None:
        """Another batch size, without hooks, with gradients, traced anew, and in training."""
        inputs = self._dense.example(3, seed=2)
        with torch.no_grad():
            wanted, got = self._small(inputs), self.copy(inputs)
        for what, outputs in (("without gradients", got), ("with gradients", self.copy(inputs))):
            gap = relative_difference(outputs, wanted)
            if not gap <= self._tolerance:
                raise _refused(self._original, f"its outputs {what} differ from the graph's by {gap:.1e}", ())
        with torch.no_grad():
            gap = relative_difference(trace(self.copy, self._shape)(inputs), wanted)
        if not gap <= self._tolerance:
            raise _refused(self._original, f"traced anew, its outputs differ from the graph's by {gap:.1e}", ())
        self._train(inputs)

    def _train(self, inputs: Tensor) -> None:
        """Holds the copy to what the module could do before: a forward and a backward pass in training mode."""
        failed = _training_failure(self.copy, inputs)
        if failed and not _training_failure(_copied(self._original, inputs.dtype), inputs):
            raise _refused(
                self._original,
                f"in training mode it raises {failed}; what only training uses is not in the graph, and not cut",
                (),
            )


def forget(model: nn.Module) -> None:
    """Puts a module into training mode and back: what it computed ahead for evaluation goes, as after an epoch."""
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    model.train(modes[0][1])
    for module, mode in modes:
        module.training = mode


@contextlib.contextmanager
def _remembered(model: nn.Module) -> Iterator[None]:
    """Attributes that a run sets, such as tables for an input size, are as before at the end."""

    def kept(value: object) -> object:
        return copy.copy(value) if isinstance(value, (dict, list)) else value

    before = [(module, {k: kept(v) for k, v in vars(module).items() if k not in OWN}) for module in model.modules()]
    yield
    for module, then in before:
        for name in [k for k in vars(module) if k not in OWN and k not in then]:
            del vars(module)[name]
        vars(module).update(then)


def refusal(model: nn.Module, wrong: Deviation, facts: Mapping[str, Facts]) -> ModelError:
    """The error that names the submodule, its line, what differs, and which groups it holds."""
    module = model.get_submodule(wrong.module)
    name = f"{wrong.module or 'the model'} ({type(module).__name__})"
    at = f"\n  at {wrong.source}" if wrong.source else ""
    return _refused(model, f"{name}: {wrong.what}{at}", tuple(facts[wrong.module].groups))


def _refused(model: nn.Module, what: str, groups: tuple[str, ...]) -> ModelError:
    names = ", ".join(groups[:6]) + (" ..." if len(groups) > 6 else "")
    whole = f", or leave whole (`protect`) the groups {names}" if groups else ""
    return ModelError(
        f"{type(model).__name__} cannot take the cut as it is written: {what}",
        hint=f"use the pruned graph itself (`run.module`, `pruned.pt2`){whole}",
    )


def _copied(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """An independent copy in eval mode, its plain tensors converted as well."""
    try:
        made = copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise ModelError(
            f"{type(model).__name__} cannot be copied: {error}",
            hint="it is tried on a copy; drop what copy.deepcopy(model) cannot copy",
        ) from error
    made.to(dtype).eval()
    for path, module in made.named_modules():
        for address, tensor in list(tensors(path, module)):
            if tensor.is_floating_point():
                put(module, address, tensor.to(dtype))
    return made


def _lively(tensor: Tensor, seed: int) -> Tensor:
    """The tensor, or others about it where all its elements are alike."""
    if not tensor.is_floating_point() or tensor.numel() < 2 or (tensor != tensor.flatten()[0]).any():
        return tensor
    drawn = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(seed)).to(tensor)
    return tensor * (0.75 + 0.5 * drawn) if tensor.abs().max() > 0.01 else 0.2 * drawn - 0.1


def _scales(module: nn.Module, fold: Fold) -> list[str]:
    """Attributes that hold an attention's old scale."""
    wanted = fold.widths[0] ** -0.5
    return [k for k, v in vars(module).items() if type(v) is float and math.isclose(v, wanted, rel_tol=1e-6)]


def _training_failure(model: nn.Module, inputs: Tensor) -> str:
    """What a forward and a backward pass in training mode raise, or ''."""
    model.train()
    try:
        with torch.random.fork_rng():
            outputs = tensors_in(model(inputs))
        loss = sum(t.sum() for t in outputs if t.requires_grad)
        if isinstance(loss, Tensor):
            loss.backward()
    except Exception as error:  # whatever the user's forward raises
        said = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        return f"{said}, in {_raised_in(model, error)}"
    return ""


def _raised_in(model: nn.Module, error: BaseException) -> str:
    """The innermost submodule whose forward was running when something was raised."""
    paths = {id(module): path for path, module in model.named_modules()}
    found, step = "", error.__traceback__
    while step is not None:
        found, step = paths.get(id(step.tb_frame.f_locals.get("self")), found), step.tb_next
    return f"{found or 'the model'} ({type(model.get_submodule(found)).__name__})"
