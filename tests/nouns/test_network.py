"""A traced network is still an ordinary module: it computes, trains, saves and loads like the original."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cpd_edge.errors import ModelError, StoreError
from cpd_edge.network import load, save, trace

SHAPE = (3, 8, 8)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        return self.head(F.dropout(x.mean((2, 3)), 0.5, self.training))


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


class Sum(nn.Module):
    def forward(self, *xs: Tensor) -> Tensor:
        return torch.stack([x.sum() for x in xs]).sum()


def test_a_trace_computes_the_same_for_any_batch() -> None:
    """The batch size stays free, and parameters keep their names."""
    model = Small().eval()
    network = trace(model, SHAPE)
    for batch in (1, 2, 5):
        x = torch.randn(batch, *SHAPE)
        torch.testing.assert_close(network(x), model(x))
    assert dict(network.named_parameters()).keys() == dict(model.named_parameters()).keys()
    assert network.state_dict().keys() == model.state_dict().keys()


def test_what_a_network_makes_itself_follows_it_to_another_device() -> None:
    """A call that makes a tensor of its own names the device that it was traced on."""

    class Numbered(Small):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + torch.arange(x.shape[-1], device=x.device, dtype=x.dtype))

    network = trace(Numbered(), SHAPE).to("meta")
    assert network(torch.empty(2, *SHAPE, device="meta")).shape == (2, 4)


def test_a_training_step_is_the_originals() -> None:
    """In training mode batch statistics are used and running ones updated, as in the module."""
    model = Small()
    network = trace(model, SHAPE)
    original = Small()
    original.load_state_dict(model.state_dict())
    x = torch.randn(8, *SHAPE)
    losses = []
    for net in (network, original):
        net.train()
        torch.manual_seed(0)
        loss = net(x).square().mean()
        loss.backward()
        losses.append(loss)
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(network.get_parameter("conv.weight").grad, original.conv.weight.grad)
    torch.testing.assert_close(network.state_dict()["norm.running_mean"], original.norm.running_mean)


def test_eval_after_train_is_eval() -> None:
    """Dropout and batch statistics are off again."""
    network = trace(Small(), SHAPE)
    x = torch.randn(4, *SHAPE)
    before = network(x)
    assert not torch.equal(network.train()(x), network.train()(x))
    network.load_state_dict(trace(Small(), SHAPE).state_dict())
    assert torch.equal(network.eval()(x), network.eval()(x))
    assert before.shape == (4, 4)


def test_a_saved_network_loads_without_the_class(tmp_path: Path) -> None:
    """load(save(x)) == x, also with plain torch in a process that knows neither the class nor this package."""
    network = trace(Small(), SHAPE)
    save(network, tmp_path / "net.pt2")
    x = torch.randn(3, *SHAPE)
    assert torch.equal(load(tmp_path / "net.pt2")(x), network(x))
    torch.save({"x": x, "y": network(x)}, tmp_path / "io.pt")
    code = (
        "import sys, torch; sys.modules['cpd_edge'] = None; io = torch.load(sys.argv[2], weights_only=True); "
        "assert torch.equal(torch.export.load(sys.argv[1]).module()(io['x']), io['y'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "net.pt2", tmp_path / "io.pt"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_full_disk_is_an_error_that_loses_nothing(tmp_path: Path) -> None:
    """What was there is whole, nothing half written is left, and the process lives."""
    network = trace(Small(), SHAPE)
    save(network, tmp_path / "net.pt2")
    before, limits = (tmp_path / "net.pt2").read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(StoreError, match=r"net\.pt2 cannot be written: File too large\n  make room there"):
            save(network, tmp_path / "net.pt2")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "net.pt2").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt2"]


def test_what_cannot_be_traced_names_the_users_line() -> None:
    """The message carries file, line and source of the forward that torch.export stumbled over."""
    with pytest.raises(ModelError, match=r"test_network\.py:\d+: if x\.sum\(\) > 0"):
        trace(Branching(), SHAPE)


def test_a_file_that_is_no_program_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Not a traceback, nor a log of one: a sentence, and what to do."""
    (tmp_path / "x.pt2").write_bytes(b"nonsense")
    with pytest.raises(ModelError, match=r"is not an exported program.*\n  it is damaged"):
        load(tmp_path / "x.pt2")
    assert not caplog.records


def test_a_clone_shares_nothing() -> None:
    """Changing a copy leaves the original."""
    network = trace(Small(), SHAPE)
    other = network.clone()
    with torch.no_grad():
        other.get_parameter("conv.weight").zero_()
    other.train()
    assert network.get_parameter("conv.weight").any()
    assert not network.training


def test_norms_without_running_statistics_take_the_batchs_own_in_either_mode() -> None:
    """What keeps no statistics has none to fall back on, in eval mode either."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False))
    network, x = trace(model, SHAPE), torch.randn(3, *SHAPE)
    torch.testing.assert_close(network.eval()(x), model.eval()(x))
    torch.testing.assert_close(network.train()(x), model.train()(x))


def test_tracing_leaves_every_modules_mode() -> None:
    """A layer that its owner keeps in eval mode while the rest trains is so afterwards, too."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    model[1].eval()
    trace(model, SHAPE)
    assert [module.training for module in model.modules()] == [True, True, False]


def test_a_saved_network_keeps_its_mode(tmp_path: Path) -> None:
    """Saving in the middle of a training does not end it."""
    network = trace(Small(), SHAPE).train()
    save(network, tmp_path / "net.pt2")
    assert network.training
    assert "True" in network.code


@pytest.mark.parametrize("inputs", [(torch.zeros(1, 3, 8, 8),), (torch.zeros(2, 3), torch.zeros(2, 3))])
def test_a_program_that_takes_something_else_is_refused(inputs: tuple[Tensor, ...], tmp_path: Path) -> None:
    """A fixed batch, or several inputs: the message shows what the file takes and how to export it."""
    program = torch.export.export(Sum(), inputs)
    torch.export.save(program, tmp_path / "other.pt2")
    with pytest.raises(ModelError, match=r"wanted one tensor with a free batch size\n  export it with"):
        load(tmp_path / "other.pt2")
