"""Laws of training: interrupted equals uninterrupted, teachers teach, statistics belong to the weights."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cpd_edge import network
from cpd_edge.distil.judge import evaluate, recalibrate
from cpd_edge.distil.train import _decayed, distil, learning_rate, train
from cpd_edge.errors import StoreError, UsageError
from cpd_edge.intake.datasets import Data, Look, arrays
from cpd_edge.intake.sets import user_loaders
from cpd_edge.intake.tasks import Task, load_task
from cpd_edge.intake.zoo import resnet8


def tiny_net(classes: int = 3) -> nn.Sequential:
    torch.manual_seed(1)
    conv = nn.Conv2d(1, 8, 3, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(8 * 36, classes))


@pytest.fixture
def task() -> Task:
    """Three classes of 8x8 images, told apart by where they are bright."""
    rng = torch.Generator().manual_seed(0)
    targets = torch.arange(60) % 3
    images = torch.randint(0, 120, (60, 1, 8, 8), generator=rng, dtype=torch.uint8)
    for i, target in enumerate(targets.tolist()):
        images[i, :, 2 * target : 2 * target + 3] += 100
    side = arrays(images, targets, Look((0.4,), (0.2,), shift=1))
    return Task(Data("bars", "classification", (1, 8, 8), ("a", "b", "c"), side, side))


@pytest.fixture
def users_task() -> Task:
    """The same kind of task through a DataLoader whose augmentation draws from the global generator."""

    def noisy(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        images = torch.stack([x for x, _ in items])
        return images + 0.1 * torch.randn_like(images), torch.stack([y for _, y in items])

    dataset = torch.utils.data.TensorDataset(torch.randn(24, 1, 8, 8), torch.arange(24) % 3)
    loaders = [torch.utils.data.DataLoader(dataset, 8, shuffle=s, collate_fn=noisy) for s in (True, False)]
    return Task(user_loaders("mine.py:make_data", loaders))


def stop_at(step: int) -> object:
    calls: list[float] = []

    def progress(fraction: float, message: str) -> None:
        calls.append(fraction)
        if len(calls) == step:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("which", ["task", "users_task"])
@pytest.mark.parametrize("step", [2, 3, 5])
def test_interrupted_and_resumed_equals_uninterrupted(
    which: str, step: int, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after any step and started again, weights, statistics and history are equal to the last bit."""
    monkeypatch.setattr("cpd_edge.distil.train.ROWS", 2)
    data = request.getfixturevalue(which)
    settings = {"epochs": 2.5, "batch": 20, "save_every_s": 0.0, "device": "cpu"}
    whole, part, teacher = tiny_net(), tiny_net(), tiny_net()
    history = distil(whole, teacher, data, **settings)
    file = tmp_path / "student.pt"
    with pytest.raises(KeyboardInterrupt):
        distil(part, teacher, data, **settings, checkpoint=file, progress=stop_at(step))
    torch.manual_seed(99)
    fresh = tiny_net()
    assert distil(fresh, teacher, data, **settings, checkpoint=file) == history
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), fresh.state_dict().values(), strict=True))


def test_a_finished_checkpoint_gives_the_result_at_once(task: Task, tmp_path: Path) -> None:
    """Started again when all is done, not a step is taken."""
    first, again = tiny_net(), tiny_net()
    train(first, task, epochs=1, batch=20, checkpoint=tmp_path / "c.pt", device="cpu")
    train(again, task, epochs=1, batch=20, checkpoint=tmp_path / "c.pt", device="cpu", progress=stop_at(1))
    assert torch.equal(first[5].weight, again[5].weight)


def test_a_checkpoint_of_another_run_is_refused(task: Task, tmp_path: Path) -> None:
    """Other settings, or a damaged file, are an error that names the difference and the way out."""
    file = tmp_path / "c.pt"
    train(tiny_net(), task, epochs=1, batch=20, checkpoint=file, device="cpu")
    with pytest.raises(StoreError, match="seed 0 there, 1 asked"):
        train(tiny_net(), task, epochs=1, batch=20, seed=1, checkpoint=file, device="cpu")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(StoreError, match=f"rm {file}"):
        train(tiny_net(), task, epochs=1, batch=20, checkpoint=file, device="cpu")


def test_training_learns_and_leaves_the_generators_alone(task: Task) -> None:
    """The bars are learnt from nothing; the caller's random numbers go on as if nothing had been trained."""
    torch.manual_seed(7)
    expected = torch.rand(3)
    model = tiny_net()
    torch.manual_seed(7)
    history = train(model, task, epochs=20, batch=20, device="cpu")
    assert torch.equal(torch.rand(3), expected)
    assert evaluate(model, task, device="cpu").compute() > 0.95 and not model.training
    assert [row["step"] for row in history] == list(range(1, 61)) and history[-1]["epoch"] == 20
    assert history[-1]["loss"] < history[0]["loss"]


def test_a_student_learns_from_the_teacher_alone(task: Task) -> None:
    """With alpha 1 the labels are not used: the student takes on its teacher's rotated classes."""
    teacher = tiny_net()
    train(teacher, task, epochs=20, batch=20, device="cpu")
    teacher[5].weight.data = teacher[5].weight.data.roll(1, 0)
    teacher[5].bias.data = teacher[5].bias.data.roll(1, 0)
    before = copy.deepcopy(teacher.state_dict())
    student = tiny_net()
    distil(student, teacher, task, epochs=20, batch=20, lr=5e-3, alpha=1.0, device="cpu")
    images = torch.cat([x for x, _ in task.val_loader(60)])
    assert (student(images).argmax(1) == teacher(images).argmax(1)).float().mean() > 0.95
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())


def test_an_exported_network_trains_like_the_module(task: Task) -> None:
    """The traced graph, without its class, reaches the module's weights but for rounding."""
    model = resnet8(in_channels=1, width=4, num_classes=3)
    traced = network.trace(model, (1, 8, 8))
    for student in (model, traced):
        train(student, task, epochs=1, batch=20, device="cpu")
    weights = dict(traced.named_parameters())
    assert all(torch.allclose(p, weights[n], atol=1e-3) for n, p in model.named_parameters())


class Viewing(nn.Module):
    """A network whose `view` needs contiguous features."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.fc = nn.Linear(4 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).view(len(x), 144))


def test_a_network_that_views_its_features_trains(task: Task) -> None:
    """Channels-last memory is not forced on a network that cannot take it, and is not left in one that can."""
    assert len(train(Viewing(), task, epochs=1, batch=20, device="cpu")) == 3
    model = tiny_net()
    strides = [p.stride() for p in model.parameters()]
    train(model, task, epochs=1, batch=20, device="cpu")
    assert [p.stride() for p in model.parameters()] == strides


def test_learning_rate_rises_then_falls_to_nothing() -> None:
    """Linear warm-up to the highest rate, half a cosine after it."""
    rates = [learning_rate(1.0, step, 100) for step in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0]) and max(rates) == 1.0
    assert rates[5:] == sorted(rates[5:], reverse=True) and rates[-1] < 1e-3


def test_norms_and_biases_do_not_decay() -> None:
    """Weight decay is on kernels and matrices only."""
    decayed, free = _decayed(tiny_net(), 0.1)
    assert ([p.dim() for p in decayed["params"]], free["weight_decay"]) == ([4, 2], 0.0)
    assert [p.dim() for p in free["params"]] == [1, 1, 1]


@pytest.mark.parametrize(
    "settings", [{"epochs": 0}, {"epochs": 1, "batch": 0}, {"epochs": 1, "alpha": 2.0}, {"epochs": 1, "temperature": 0}]
)
def test_settings_out_of_range_are_refused(task: Task, settings: dict[str, float]) -> None:
    """Nonsense is refused before any work."""
    with pytest.raises(UsageError, match="above 0"):
        distil(tiny_net(), tiny_net(), task, device="cpu", **settings)


def test_a_loss_that_is_no_number_stops_the_run(task: Task) -> None:
    """Divergence is an error that names the setting, not a history of NaN."""
    model = tiny_net()
    model[5].bias.data.fill_(float("nan"))
    with pytest.raises(UsageError, match="give a lower --lr"):
        train(model, task, epochs=1, batch=20, device="cpu")


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("momentum", [0.1, 0.01])
def test_recalibrated_statistics_are_those_of_the_data(task: Task, traced: bool, momentum: float) -> None:
    """Mean and variance equal those of all given images, whatever they were and whatever the momentum."""
    model: nn.Module = tiny_net()
    model[1].momentum = momentum
    batches = [(x * (1 + k) + k, y) for k, (x, y) in enumerate(task.val_loader(20))]
    features = model[0](torch.cat([x for x, _ in batches]))
    model = network.trace(model, (1, 8, 8)) if traced else model
    buffers = dict(model.named_buffers())
    buffers["1.running_mean"].fill_(9)
    buffers["1.running_var"].fill_(5)
    recalibrate(model, batches, 3, "cpu")
    assert torch.allclose(buffers["1.running_mean"], features.mean((0, 2, 3)), atol=1e-4)
    assert torch.allclose(buffers["1.running_var"], features.var((0, 2, 3)), rtol=5e-3)


def test_recalibration_changes_nothing_else(task: Task) -> None:
    """Weights, the count of batches, the mode and the generators are as before."""
    model = tiny_net().eval()
    before = {k: v.clone() for k, v in model.state_dict().items() if not k.startswith("1.running")}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    recalibrate(model, task.val_loader(20), 2, "cpu")
    assert torch.equal(torch.rand(2), expected) and not model.training
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())


def test_evaluate_keeps_the_mode_and_counts_every_image(task: Task) -> None:
    """All validation images in order, the network in eval mode meanwhile."""
    model = tiny_net().train()
    found = evaluate(model, task, batch=7, device="cpu")
    assert found.per_sample()[:, 0].tolist() == [i % 3 for i in range(60)] and model.training


@pytest.mark.slow
def test_resnet8_learns_digits_from_nothing() -> None:
    """zoo:resnet8 passes 97 % of scikit-learn's digits in eight epochs."""
    data, model = load_task("digits"), resnet8(in_channels=1)
    train(model, data, epochs=8, device="cpu")
    assert evaluate(model, data, device="cpu").compute() > 0.97
