"""Laws of tasks: seeded batches, losses, and errors before any work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from cpd_edge.errors import DataError
from cpd_edge.intake import sets
from cpd_edge.intake.datasets import IGNORE, Look, shifted
from cpd_edge.intake.tasks import Task, check_model, load_task, main_output


def picture(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def noise(*shape: int, seed: int = 0, high: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, shape, dtype=np.uint8)


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    for side, count in (("train", 6), ("val", 3)):
        for label in ("cat", "dog"):
            for i in range(count):
                picture(tmp_path / side / label / f"{i}.png", noise(10, 12, 3, seed=i))
    return tmp_path


@pytest.fixture
def patches(tmp_path: Path) -> Path:
    for side, count in (("train", 5), ("val", 3)):
        for i in range(count):
            mask = noise(8, 8, seed=i, high=3)
            mask[0, 0] = IGNORE
            picture(tmp_path / side / "images" / f"{i}.png", noise(8, 8, 3, seed=i))
            picture(tmp_path / side / "masks" / f"{i}.png", mask)
    return tmp_path


@pytest.fixture(scope="module")
def digits() -> Task:
    return load_task("digits")


class Constant(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"out": x.new_zeros(len(x), *self.shape), "aux": x}


def test_digits_are_split_once_and_by_class(digits: Task) -> None:
    """Every class gives a fifth of its images to val, and no image is on both sides."""
    targets = torch.cat([t for _, t in digits.val_loader(100)])
    assert (digits.input_shape, digits.num_classes, digits.metric_name) == ((1, 32, 32), 10, "accuracy")
    assert torch.bincount(targets).tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]
    assert len(digits.data.train) + len(digits.data.val) == 1797


def test_equal_seeds_give_equal_epochs(digits: Task) -> None:
    """Order and augmentation depend on the seed, and on nothing else."""
    (a, ta), (b, tb), (c, _) = (next(iter(digits.train_loader(32, seed))) for seed in (5, 5, 6))
    assert torch.equal(a, b) and torch.equal(ta, tb) and not torch.equal(a, c)


def test_skipping_gives_the_rest_of_the_same_epoch(digits: Task) -> None:
    """A loader that skips k batches gives what the whole one gives after k."""
    whole = list(digits.train_loader(400, 1))
    rest = list(digits.train_loader(400, 1, skip=2))
    assert len(digits.train_loader(400, 1, skip=2)) == len(rest) == len(whole) - 2
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(whole[2:], rest, strict=True))


def test_workers_change_nothing(classes: Path) -> None:
    """Decoding in another process gives the same batches."""
    alone, helped = (load_task(f"imagefolder:{classes}", workers=w).train_loader(4, 3) for w in (0, 1))
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(alone, helped, strict=True))


def test_a_shift_moves_pixels_and_invents_none() -> None:
    """An image with a single bright pixel still has just that one, at most `most` away."""
    images = torch.zeros(50, 1, 9, 9, dtype=torch.uint8)
    images[:, :, 4, 4] = 7
    where = shifted(images, 2, torch.Generator().manual_seed(0)).nonzero()
    assert len(where) == 50 and ((where[:, 2:] - 4).abs() <= 2).all() and len(where[:, 2:].unique(dim=0)) > 10


def test_batches_are_contiguous(digits: Task) -> None:
    """An augmented batch has the strides of a fresh tensor, so that a network may `view` it and its features."""
    images, _ = next(iter(digits.train_loader(8, 0)))
    assert images.stride() == torch.empty(8, 1, 32, 32).stride()


def test_masks_turn_with_their_images() -> None:
    """Where image and mask hold equal values, they do so after augmentation."""
    mask = torch.arange(16).reshape(1, 4, 4).repeat(20, 1, 1)
    look = Look((0.0,), (1.0,), flip_x=True, flip_y=True)
    images, masks = look.augmented(mask[:, None].to(torch.uint8), mask, torch.Generator().manual_seed(0))
    assert torch.equal(images[:, 0].long(), masks) and len(masks.unique(dim=0)) == 4


def test_image_folder_reads_what_lies_there(classes: Path) -> None:
    """Labels are the folders, the size is the first image's, pixels are ImageNet-normalised."""
    task = load_task(f"imagefolder:{classes}")
    images, targets = next(iter(task.val_loader(6)))
    raw = torch.from_numpy(noise(10, 12, 3, seed=0)).permute(2, 0, 1).float() / 255
    wanted = (raw - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
        :, None, None
    ]
    assert (task.labels, task.input_shape, targets.tolist()) == (("cat", "dog"), (3, 10, 12), [0, 0, 0, 1, 1, 1])
    assert torch.allclose(images[0], wanted, atol=1e-6)


def test_image_size_scales_and_crops(classes: Path) -> None:
    """`image_size` gives squares of that size, whatever the files hold."""
    assert next(iter(load_task(f"imagefolder:{classes}", image_size=7).val_loader(2)))[0].shape == (2, 3, 7, 7)


def test_a_plain_folder_is_split_under_the_seed(classes: Path) -> None:
    """DIR/CLASS without sides is split four to one, the same for the same seed."""
    task = load_task(f"imagefolder:{classes / 'train'}", seed=1)
    assert (len(task.data.train), len(task.data.val)) == (10, 2)


def test_seg_folder_normalises_by_its_own_training_images(patches: Path) -> None:
    """Training images have mean 0 and standard deviation 1, to the 4 digits kept."""
    task = load_task(f"segfolder:{patches}")
    images = torch.cat([x for x, _ in task.train_loader(5, 0)])
    assert (task.num_classes, task.metric_name, task.input_shape) == (3, "mIoU", (3, 8, 8))
    assert images.mean((0, 2, 3)).abs().max() < 1e-3 and (images.std((0, 2, 3)) - 1).abs().max() < 5e-3


def test_ignored_pixels_change_no_loss(patches: Path) -> None:
    """The logits at an ignored pixel have no gradient, neither from the labels nor from the teacher."""
    task = load_task(f"segfolder:{patches}")
    _, targets = next(iter(task.val_loader(2)))
    student = torch.randn(2, 3, 8, 8, requires_grad=True)
    task.distil_loss(student, torch.randn(2, 3, 8, 8), targets, 2.0, 0.5).backward()
    assert (student.grad[:, :, 0, 0] == 0).all() and (student.grad != 0).any()


def test_distil_loss_has_its_two_ends(digits: Task) -> None:
    """alpha 0 is cross-entropy; alpha 1 is zero where student and teacher agree, and ignores the labels."""
    logits, targets = torch.randn(5, 10), torch.arange(5)
    assert torch.isclose(digits.distil_loss(logits, logits + 1, targets, 3.0, 0.0), F.cross_entropy(logits, targets))
    assert digits.distil_loss(logits, logits + 1, targets, 3.0, 1.0).abs() < 1e-6
    assert digits.distil_loss(logits, -logits, targets, 3.0, 1.0) > 0.1


def test_main_output_finds_the_logits() -> None:
    """A tensor, a torchvision dict, a tuple and an object with logits all give the same tensor."""
    x = torch.zeros(2)
    holder = type("Output", (), {"logits": x})()
    assert all(main_output(o) is x for o in (x, {"aux": 1, "out": x}, (x, 1), holder))


@pytest.mark.parametrize(
    ("shape", "says"),
    [((1000,), "model gives 1000 classes, data has 10"), ((4,), "num-classes 10"), ((10, 2), "per class")],
)
def test_a_model_for_other_data_is_refused(digits: Task, shape: tuple[int, ...], says: str) -> None:
    """One batch shows whether the outputs belong to the data."""
    with pytest.raises(DataError, match=says):
        check_model(digits, Constant(*shape))


def test_a_model_for_other_channels_is_refused_with_both_numbers(digits: Task) -> None:
    """A colour network on grey images is told what it reads and what there is; one that fits keeps its own mode."""
    with pytest.raises(DataError, match="reads 3 channels, the images have 1"):
        check_model(digits, nn.Conv2d(3, 8, 3))
    model = Constant(10).train()
    check_model(digits, model)
    assert model.training


def loaders_file(folder: Path, dataset: str) -> str:
    (folder / "data.py").write_text(
        "import torch\nfrom torch.utils.data import DataLoader, TensorDataset\n"
        f"def make_data():\n    d = {dataset}\n    return DataLoader(d, 4, shuffle=True), DataLoader(d, 4)\n"
    )
    return f"{folder / 'data.py'}:make_data"


def test_user_loaders_become_a_task(tmp_path: Path) -> None:
    """Two loaders are enough: size, kind and a lower bound of the classes are read off, epochs follow the seed."""
    task = load_task(loaders_file(tmp_path, "TensorDataset(torch.rand(10, 2, 5, 5), torch.arange(10) % 3)"))
    (a, _), (b, _), (c, _) = (next(iter(task.train_loader(99, seed))) for seed in (1, 1, 2))
    assert (task.input_shape, task.num_classes, task.data.kind) == ((2, 5, 5), 3, "classification")
    assert torch.equal(a, b) and not torch.equal(a, c) and len(a) == 4
    check_model(task, Constant(5))


def test_user_loaders_of_another_shape_are_refused(tmp_path: Path) -> None:
    """A batch that is no (images, integer targets) is shown as it came."""
    with pytest.raises(DataError, match=r"float32 \(4,\)"):
        load_task(loaders_file(tmp_path, "TensorDataset(torch.rand(10, 2, 5, 5), torch.rand(10))"))


def test_user_images_of_another_size_than_the_validation_images_are_refused(tmp_path: Path) -> None:
    """The network is traced at one shape, so training at another would fail in its middle."""
    spec = loaders_file(tmp_path, "TensorDataset(torch.rand(8, 2, 5, 5), torch.arange(8) % 3)")
    file = tmp_path / "data.py"
    larger = "TensorDataset(torch.rand(8, 2, 6, 6), torch.arange(8) % 3)"
    file.write_text(file.read_text().replace("DataLoader(d, 4, shuffle=True)", f"DataLoader({larger}, 4)"))
    with pytest.raises(DataError, match=r"training images are \(2, 6, 6\), others \(2, 5, 5\)"):
        load_task(spec)


@pytest.mark.parametrize("empty", ["training", "validation"])
def test_a_user_loader_without_a_batch_is_refused(empty: str, tmp_path: Path) -> None:
    """Whichever of the two it is, it is named."""
    spec = loaders_file(tmp_path, "TensorDataset(torch.rand(3, 2, 5, 5), torch.arange(3))")
    file = tmp_path / "data.py"
    whole = {"training": "4, shuffle=True", "validation": "DataLoader(d, 4)"}[empty]
    file.write_text(file.read_text().replace(whole, whole.replace("4", "4, drop_last=True")))
    with pytest.raises(DataError, match=f"the {empty} loader is empty"):
        load_task(spec)


def test_fashion_mnist_is_read_from_idx_files(tmp_path: Path) -> None:
    """Four idx files under the data root are the data set; a truncated one is refused by name."""
    for side, n in (("train", 5), ("t10k", 3)):
        head = bytes((0, 0, 8, 3)) + b"".join(v.to_bytes(4, "big") for v in (n, 28, 28))
        (tmp_path / f"{side}-images-idx3-ubyte").write_bytes(head + noise(n, 28, 28).tobytes())
        (tmp_path / f"{side}-labels-idx1-ubyte").write_bytes(
            bytes((0, 0, 8, 1)) + n.to_bytes(4, "big") + bytes(range(n))
        )
    task = load_task("fashion-mnist", data_root=tmp_path)
    images, targets = next(iter(task.val_loader(3)))
    assert targets.tolist() == [0, 1, 2] and task.input_shape == (1, 28, 28)
    assert torch.allclose(images[0, 0], (torch.from_numpy(noise(3, 28, 28))[0] / 255 - 0.2860) / 0.3530)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(head[:20])
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte is no idx file"):
        load_task("fashion-mnist", data_root=tmp_path)


def test_missing_fashion_mnist_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nowhere on disk and no network: the error says where it looked and what to install."""
    datasets = pytest.importorskip("torchvision.datasets")

    def offline(root: Path, download: bool) -> None:
        raise RuntimeError("no network")

    monkeypatch.setattr(datasets, "FashionMNIST", offline)
    monkeypatch.setattr(sets, "FASHION_PLACES", (tmp_path / "a", tmp_path / "b" / "FashionMNIST" / "raw"))
    with pytest.raises(DataError, match="dataset-fashion-mnist"):
        load_task("fashion-mnist")


def test_bad_folders_are_refused_before_any_work(classes: Path, tmp_path: Path) -> None:
    """Each fault of an image folder has its own sentence."""
    for spec, says in (("imagefolder:/nowhere", "or DIR/CLASS/"), ("mnist", "digits, fashion-mnist")):
        with pytest.raises(DataError, match=says):
            load_task(spec)
    (classes / "train" / "eel").mkdir()
    with pytest.raises(DataError, match="different classes: eel"):
        load_task(f"imagefolder:{classes}")
    (classes / "val" / "eel").mkdir()
    with pytest.raises(DataError, match=r"train/eel holds no images\n  wanted: .* or DIR/CLASS/\*.png"):
        load_task(f"imagefolder:{classes}")
    (classes / "train" / "eel").rmdir()
    (classes / "val" / "eel").rmdir()
    (classes / "train" / "cat" / "0.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"0\.png cannot be read"):
        load_task(f"imagefolder:{classes}")


def test_bad_masks_are_refused_before_any_work(patches: Path) -> None:
    """Each fault of a mask has its own sentence."""
    mask = patches / "val" / "masks" / "1.png"
    (patches / "classes.txt").write_text("sea\nland\n")
    with pytest.raises(DataError, match="a mask holds class 2"):
        load_task(f"segfolder:{patches}")
    picture(mask, noise(4, 4))
    with pytest.raises(DataError, match=r"1\.png is \(4, 4\), its image is \(8, 8\)"):
        load_task(f"segfolder:{patches}")
    picture(mask, noise(8, 8, 3))
    with pytest.raises(DataError, match="wanted one channel"):
        load_task(f"segfolder:{patches}")
    mask.unlink()
    with pytest.raises(DataError, match=r"1 images have no mask: 1\.png"):
        load_task(f"segfolder:{patches}")
