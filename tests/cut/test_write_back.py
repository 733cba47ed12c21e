"""Write-back: the user's module takes the cut that its graph took, or is refused and stays as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from cut.networks import Attention, Cnn, Config, Configured, Gated, Helped, Packed, Residual, Tied, Transformer
from torch import Tensor, nn

from cpd_edge.comb import comb
from cpd_edge.cut import cut
from cpd_edge.cut.writeback import commit, write_back
from cpd_edge.errors import ModelError
from cpd_edge.layout import Keep
from cpd_edge.network import Combed, Network


def halves(combed: Combed) -> Keep:
    """Half of every group's units, drawn by a seed."""
    rng = np.random.default_rng(0)
    widths = [g for g in combed.groups.groups if not g.depth]
    return {g.name: np.sort(rng.permutation(g.units)[: max(1, g.units // 2)]) for g in widths}


def uneven(combed: Combed) -> Keep:
    """Two of four heads, three of four of each head's width: one integer, two meanings."""
    fours = [g for g in combed.groups.groups if g.units == 4]
    assert {"heads", ""} == {g.role for g in fours}
    return {g.name: np.arange(1, 3) if g.role == "heads" else np.arange(3) for g in fours}


def in_proportion(combed: Combed) -> Keep:
    """Half of everything but of the widths of heads: `nn.MultiheadAttention` takes its own from the stream's."""
    return {name: units for name, units in halves(combed).items() if combed.groups[name].units != 6}


CASES: dict[str, tuple[Callable[[], Any], Callable[[Combed], Keep]]] = {
    "cnn": (Cnn, halves),
    "own scale": (Transformer, halves),
    "fused scale": (lambda: Transformer(fused=True), halves),
    "ambiguous": (lambda: Transformer(dim=16), uneven),
    "multihead attention": (Packed, in_proportion),
    "tied": (Tied, halves),
    "configured": (lambda: Configured(Config()), halves),
}
COMBED: dict[str, tuple[nn.Module, Combed]] = {}


def combed_case(name: str) -> tuple[nn.Module, Combed, Keep]:
    """A module in float64, what comb says of it, and what to keep; the module is the caller's own."""
    if name not in COMBED:
        torch.manual_seed(0)
        made = CASES[name][0]().double().eval()
        COMBED[name] = made, comb(made, made.SHAPE)
    model, combed = COMBED[name]
    return copy.deepcopy(model), combed, CASES[name][1](combed)


@dataclass(frozen=True)
class Written:
    """A module that took a cut, and what it was before."""

    model: nn.Module
    combed: Combed
    small: Network
    names: list[str]
    kind: type
    seen: list[tuple[int, ...]]


@pytest.fixture(scope="module", params=CASES)
def written(request: pytest.FixtureRequest) -> Written:
    """Each case, written back once, with a hook on it and its first bias not to be trained."""
    model, combed, keep = combed_case(request.param)
    names, seen = list(model.state_dict()), list[tuple[int, ...]]()
    model.register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape)))
    next(p for n, p in model.named_parameters() if n.endswith("bias")).requires_grad_(False)
    assert write_back(model, combed, keep) is model
    seen.clear()
    return Written(model, combed, cut(combed, keep), names, CASES[request.param][0]().__class__, seen)


def far(a: Tensor, b: Tensor) -> float:
    """Largest difference, of the largest element."""
    return float((a - b).detach().abs().max() / b.detach().abs().max())


def as_before(model: nn.Module) -> dict[str, Any]:
    """Everything that a module holds, to be compared."""
    plain = {n: {k: v for k, v in vars(m).items() if type(v) in (int, tuple, str)} for n, m in model.named_modules()}
    return {
        "plain": plain,
        "ids": {n: id(p) for n, p in model.named_parameters()},
        "kinds": [*map(type, model.modules())],
    }


def test_it_computes_what_the_cut_graph_does(written: Written) -> None:
    """In float64, at three batch sizes; it is smaller, and its parameters have the graph's shapes."""
    for batch in (1, 2, 5):
        x = written.small.example(batch, seed=batch)
        assert far(written.model(x), written.small(x)) < 1e-9
    shapes = {
        name: written.model.state_dict()[name].shape for name in written.combed.parameters if name in written.names
    }
    assert shapes == {name: written.small.state_dict()[name].shape for name in shapes}
    assert shapes != {name: written.combed.network.state_dict()[name].shape for name in shapes}


def test_names_class_mode_and_what_is_trained_stay(written: Written) -> None:
    """`state_dict` has the same keys in the same order; a frozen parameter stays frozen."""
    assert written.names == list(written.model.state_dict())
    assert written.kind is type(written.model)
    assert not any(module.training for module in written.model.modules())
    assert [False] == [p.requires_grad for n, p in written.model.named_parameters() if n.endswith("bias")][:1]
    assert all(p.requires_grad for n, p in written.model.named_parameters() if n.endswith("weight"))


def test_hooks_still_fire(written: Written) -> None:
    """A hook that was registered on the module before sees its outputs after."""
    before = len(written.seen)
    outputs = written.model(written.small.example(3))
    assert written.seen[before:] == [tuple(outputs.shape)]


def test_it_trains(written: Written) -> None:
    """A step of an optimizer made anew reaches every parameter and lowers the loss."""
    model = copy.deepcopy(written.model).train()
    x = written.small.example(8, seed=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(2):
        loss = (model(x) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_torchs_own_attributes_follow() -> None:
    """Channels, features and groups are those of the parameters that the modules hold."""
    model, combed, keep = combed_case("cnn")
    write_back(model, combed, keep)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            assert (module.out_channels, module.in_channels // module.groups) == tuple(module.weight.shape[:2])
        if isinstance(module, nn.ConvTranspose2d):
            assert (module.in_channels, module.out_channels) == tuple(module.weight.shape[:2])
        if isinstance(module, nn.Linear):
            assert (module.out_features, module.in_features) == tuple(module.weight.shape)
        if isinstance(module, nn.BatchNorm2d):
            assert (module.num_features,) == tuple(module.weight.shape)
    assert isinstance(model, Cnn)
    assert (model.depthwise.groups, model.grouped.groups, model.shuffle.groups) == (2, 2, 2)
    assert model.plain.num_features == model.norm.num_channels == model.up.out_channels


@pytest.mark.parametrize(("name", "scale"), [("own scale", 6**-0.5), ("fused scale", 3**-0.5)])
def test_users_attributes_follow_and_attention_keeps_its_scale(name: str, scale: float) -> None:
    """An own scale stays; where it is taken from the width, queries are made to fit, and the attribute agrees."""
    model, combed, keep = combed_case(name)
    block = model.get_submodule("blocks.1")
    assert isinstance(block, Attention)
    write_back(model, combed, keep)
    assert (block.num_heads, block.head_dim, block.inner) == (2, 3, 6)
    assert model.hidden_dim == 12
    assert block.scale == pytest.approx(scale)


def test_tied_parameters_stay_tied() -> None:
    """Two names of one parameter are one parameter."""
    model, combed, keep = combed_case("tied")
    write_back(model, combed, keep)
    assert isinstance(model, Tied) and model.one.weight is model.two.weight


def test_what_other_modules_share_is_not_changed() -> None:
    """The module gets a configuration of its own; its old one, which a teacher may hold, stays."""
    model, combed, keep = combed_case("configured")
    assert isinstance(model, Configured)
    shared = model.config
    write_back(model, combed, keep)
    assert shared == Config()
    assert model.config == Config(4, (2, 6))
    assert model.table.shape == (4,)


def test_a_students_weights_arrive() -> None:
    """What the cut graph learnt is what the module computes with."""
    model, combed, keep = combed_case("cnn")
    student = cut(combed, keep)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter))
    write_back(model, combed, keep, student)
    x = student.example(4)
    assert far(model(x), student(x)) < 1e-9
    assert torch.equal(model.state_dict()["stem.0.weight"], student.state_dict()["stem.0.weight"])


def test_the_student_of_another_cut_is_refused() -> None:
    """Weights of other units do not slip in."""
    model, combed, keep = combed_case("cnn")
    with pytest.raises(ModelError, match="no training of this cut"):
        write_back(model, combed, {**keep, "up": np.arange(3)}, cut(combed, {**keep, "up": np.arange(1)}))


@pytest.mark.parametrize(
    ("make", "keep", "said"),
    [
        (Gated, {"body": np.arange(1)}, ("gate (Halved)", "networks.py", "body", "run.module")),
        (Helped, {"stem": np.arange(3)}, ("in training mode", "helper (Conv2d)")),
        (Packed, {"attention:2": np.arange(3)}, ("attention (MultiheadAttention)", "attention:2")),
    ],
)
def test_a_module_that_cannot_take_the_cut_is_refused_by_name(
    make: Callable[[], Any], keep: dict[str, Any], said: tuple[str, ...]
) -> None:
    """The error names the submodule, its line and the groups; the module is as it was, bit for bit."""
    model = make()
    combed = comb(model, model.SHAPE)
    state, held = copy.deepcopy(model.state_dict()), as_before(model)
    with pytest.raises(ModelError) as caught:
        write_back(model, combed, keep)
    assert [] == [word for word in said if word not in str(caught.value)]
    assert held == as_before(model)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_an_interrupted_cut_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the middle of its changes, the module is what it was, branches included."""

    def stop(module: nn.Module) -> None:
        raise KeyboardInterrupt

    model = Residual()
    combed = comb(model, Residual.SHAPE)
    keep = {**halves(combed), **{g.name: np.arange(0) for g in combed.groups.groups if g.depth}}
    state, held = copy.deepcopy(model.state_dict()), as_before(model)
    monkeypatch.setattr(commit, "declare", stop)
    with pytest.raises(KeyboardInterrupt):
        write_back(model, combed, keep)
    assert held == as_before(model)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_a_module_that_is_cut_already_is_refused() -> None:
    """A second cut from original coordinates would take other units than it says."""
    model, combed, keep = combed_case("tied")
    write_back(model, combed, keep)
    with pytest.raises(ModelError, match="give the dense model"):
        write_back(model, combed, keep)


def test_a_branch_goes_whole() -> None:
    """Modules of a branch give way to stand-ins: one added from outside gives zeros, a block passes its input on."""
    torch.manual_seed(0)
    model = Residual().double()
    combed = comb(model, Residual.SHAPE)
    keep = {**halves(combed), **{g.name: np.arange(0) for g in combed.groups.groups if g.depth}}
    assert 2 == sum(len(units) == 0 for units in keep.values())
    write_back(model, combed, keep)
    small = cut(combed, keep)
    assert far(model(small.example(3)), small(small.example(3))) < 1e-9
    assert set(model.state_dict()) == {"stem.weight", "stem.bias", "head.weight", "head.bias"}
