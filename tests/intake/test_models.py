"""Laws of `load_model`: the network that was named, with the weights that were given, or an error that helps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cpd_edge import network
from cpd_edge.errors import ModelError
from cpd_edge.intake.models import RandomWeightsWarning, apply_weights, load_model, read_state
from cpd_edge.intake.zoo import ZOO

USER_FILE = """
import torch
from torch import nn
from shapes import WIDTH

class Net(nn.Module):
    def __init__(self, num_classes=4):
        super().__init__()
        self.conv = nn.Conv2d(3, WIDTH, 3)
        self.fc = nn.Linear(WIDTH, num_classes)

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)))

def make_net(num_classes=4):
    return Net(num_classes)

def broken():
    return nn.Conv2d(3, "many", 3)

def number():
    return 3

def fixed():
    num_classes = 2
    return Net(num_classes)
"""


@pytest.fixture
def user_file(tmp_path: Path) -> Path:
    (tmp_path / "shapes.py").write_text("WIDTH = 5\n")
    (tmp_path / "nets.py").write_text(USER_FILE)
    return tmp_path / "nets.py"


@pytest.mark.parametrize(("name", "params"), [("resnet8", 78042), ("resnet20", 272474), ("unet", 488018)])
def test_zoo_networks_have_their_published_size(name: str, params: int) -> None:
    """The zoo's networks have the parameter counts of their standard form, for 3 channels."""
    assert sum(p.numel() for p in ZOO[name]().parameters()) == params


def test_zoo_unet_keeps_height_and_width() -> None:
    """A U-Net gives one logit per class and pixel."""
    assert ZOO["unet"](num_classes=3, width=4)(torch.zeros(2, 3, 16, 24)).shape == (2, 3, 16, 24)


def test_zoo_options_stand_in_the_spec() -> None:
    """`zoo:resnet8:width=8` has 8 channels in its first convolution."""
    with pytest.warns(RandomWeightsWarning, match="RANDOM"):
        model = load_model("zoo:resnet8:width=8", num_classes=7, in_channels=1)
    assert (model.conv.weight.shape[:2], model.fc.out_features, model.training) == ((8, 1), 7, False)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_weights_come_back_as_they_were_saved(tmp_path: Path, suffix: str) -> None:
    """load(save(state)) == state, for both file formats, and nothing warns."""
    state = ZOO["resnet8"]().state_dict()
    path = tmp_path / f"weights.{suffix}"
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    loaded = load_model("zoo:resnet8", path).state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in state.items())


def test_wrapped_weights_are_unwrapped(tmp_path: Path) -> None:
    """A training script's `{"state_dict": {"module.x": ...}}` reads as `{"x": ...}`."""
    torch.save({"state_dict": {"module.x": torch.ones(2)}, "epoch": 3}, tmp_path / "w.pth")
    assert list(read_state(tmp_path / "w.pth")) == ["x"]


def test_misfit_names_keys_and_leaves_the_model_alone(tmp_path: Path) -> None:
    """Weights that do not fit raise with missing, unexpected and misshapen keys, and change nothing."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    before = model[0].weight.clone()
    torch.save({"0.weight": torch.zeros(2, 2), "0.bias": torch.zeros(3), "9.bias": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(ModelError) as error:
        apply_weights(model, tmp_path / "w.pt")
    assert "2 missing (1.weight, 1.bias); 1 unexpected (9.bias)" in str(error.value)
    assert "0.bias (3,), model (2,)" in str(error.value)
    assert torch.equal(model[0].weight, before)


def test_a_pickled_module_is_refused_without_running_it(tmp_path: Path) -> None:
    """A whole pickled module could run code, so it is refused with the way to save weights."""
    torch.save(nn.Linear(2, 2), tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"torch\.save\(model\.state_dict") as refused:
        read_state(tmp_path / "w.pt")
    assert "such as a whole module" in str(refused.value) and "\x1b" not in str(refused.value)


def test_user_factory_gets_the_classes_it_asks_for(user_file: Path) -> None:
    """A factory that names `num_classes` is called with it, and may import the files beside it."""
    model = load_model(f"{user_file}:make_net", num_classes=9)
    assert (model.fc.out_features, model.conv.out_channels) == (9, 5)


def test_user_class_is_a_factory_too(user_file: Path) -> None:
    """FILE.py:CLASS makes an instance."""
    assert load_model(f"{user_file}:Net").fc.out_features == 4


def test_user_factory_gets_nothing_it_does_not_ask_for(user_file: Path) -> None:
    """A factory without parameters is called without any, whatever its local names are."""
    assert load_model(f"{user_file}:fixed", num_classes=9).fc.out_features == 2


def test_user_errors_show_the_users_line(user_file: Path) -> None:
    """What goes wrong inside a user's factory is told with the user's file, line and code."""
    with pytest.raises(ModelError, match=r'nets\.py:19: TypeError.*\n.*in: return nn.Conv2d\(3, "many", 3\)'):
        load_model(f"{user_file}:broken")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("zoo:resnet9", "closest: zoo:resnet8"),
        ("zoo:resnet8:width=wide", "zoo:resnet8:width=32"),
        ("zoo:resnet8:colour=3", "Options: `num_classes`"),
        ("torchvision:resnet19", "torchvision:resnet18"),
        ("resnet18", "torchvision:NAME"),
        ("nowhere.py:make_net", "does not exist"),
        ("nowhere.pt2", "does not exist"),
    ],
)
def test_unknown_names_say_what_there_is(spec: str, says: str) -> None:
    """An unknown model names the closest ones, or the forms a spec may have."""
    if spec.startswith("torchvision"):
        pytest.importorskip("torchvision")
    with pytest.raises(ModelError, match=says):
        load_model(spec)


@pytest.mark.parametrize(("name", "says"), [("missing", "it defines: Net, make_net"), ("number", "gives int")])
def test_a_name_that_is_no_network_is_refused(user_file: Path, name: str, says: str) -> None:
    """A missing name lists what the file defines; a wrong type is named."""
    with pytest.raises(ModelError, match=says):
        load_model(f"{user_file}:{name}")


@pytest.mark.parametrize(("spec", "channels"), [("torchvision:squeezenet1_1", 1), ("timm:mobilenetv3_small_050", 1)])
def test_libraries_take_classes_and_channels(spec: str, channels: int) -> None:
    """torchvision and timm networks take any number of classes and input channels, and download nothing."""
    pytest.importorskip(spec.partition(":")[0])
    with pytest.warns(RandomWeightsWarning):
        model = load_model(spec, num_classes=6, in_channels=channels)
    with torch.no_grad():
        assert model(torch.zeros(1, channels, 64, 64)).shape == (1, 6)


def test_torchvision_segmentation_downloads_no_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights are random all through: the backbone is not fetched behind the user's back."""
    pytest.importorskip("torchvision")
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *a, **k: pytest.fail("downloads"))
    with pytest.warns(RandomWeightsWarning):
        load_model("torchvision:lraspp_mobilenet_v3_large", num_classes=3)


def test_a_saved_program_loads_and_trains(tmp_path: Path) -> None:
    """A `.pt2` gives the saved network's outputs, and its batch norms answer to `train()`."""
    model = ZOO["resnet8"](width=4).eval()
    network.save(network.trace(model, (3, 16, 16)), tmp_path / "net.pt2")
    loaded, x = load_model(str(tmp_path / "net.pt2")), torch.randn(4, 3, 16, 16)
    assert torch.allclose(loaded(x), model(x), atol=1e-5)
    assert not torch.allclose(loaded.train()(x), model(x), atol=1e-5)


@pytest.mark.parametrize("content", [b"hello", b"", b"\x80\x02}q\x00.", bytes(range(256))])
def test_a_damaged_weights_file_is_said_to_be_one(content: bytes, tmp_path: Path) -> None:
    """Whatever the bytes are, the answer is a ModelError that names the file."""
    (tmp_path / "junk.pt").write_bytes(content)
    with pytest.raises(ModelError, match=r"junk\.pt"):
        read_state(tmp_path / "junk.pt")
