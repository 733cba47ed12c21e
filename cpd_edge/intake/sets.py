"""The data sets a spec can name: `digits`, `fashion-mnist`, `imagefolder:DIR`, `segfolder:DIR`, `FILE.py:FACTORY`."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from cpd_edge.errors import DataError
from cpd_edge.intake.datasets import (
    IGNORE,
    Data,
    Given,
    Images,
    Kind,
    Look,
    arrays,
    opened,
    pictures,
    read_images,
    read_pairs,
    statistics,
)

IMAGENET = Look((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
FOLDERS = "DIR/train/CLASS/*.png and DIR/val/CLASS/*.png, or DIR/CLASS/*.png, a fifth of each class being val"
PAIRS = "DIR/{train,val}/{images,masks}"
FASHION = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
FASHION_PLACES = (Path("/usr/share/datasets/fashion-mnist"), Path("~/.cache/cpd_edge/FashionMNIST/raw"))


def digits() -> Data:
    """scikit-learn's 1797 handwritten digits, 8x8 scaled to 32x32, one channel; a fixed fifth of each class is val."""
    from sklearn.datasets import load_digits

    found = load_digits()
    small = torch.from_numpy(found.images).float()[:, None] * (255 / 16)
    images = F.interpolate(small, size=(32, 32), mode="bilinear", align_corners=False).round().to(torch.uint8)
    targets = torch.from_numpy(found.target).long()
    train, val = split(found.target, 0.2, seed=0)
    (mean,), (std,) = statistics([images[train]])
    look = Look((mean,), (std,), shift=2)
    sides = [arrays(images[part], targets[part], look) for part in (train, val)]
    return Data("digits", "classification", (1, 32, 32), tuple("0123456789"), *sides)


def split(targets: Any, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of a seeded split that takes `share` of every class, at least one image, for the second part."""
    rng = np.random.default_rng(seed)
    second: list[int] = []
    for label in np.unique(targets):
        members = rng.permutation(np.flatnonzero(np.asarray(targets) == label))
        second += members[: max(1, round(share * len(members)))].tolist()
    chosen = set(second)
    return [i for i in range(len(targets)) if i not in chosen], sorted(second)


def fashion_mnist(data_root: Path | None = None) -> Data:
    """Fashion-MNIST, 28x28, one channel, mean 0.2860, std 0.3530, training crops of 2 pixels and flips.

    Raises:
        DataError: the four idx files are nowhere and cannot be downloaded.
    """
    folder = _fashion_folder(data_root)
    look = Look((0.2860,), (0.3530,), shift=2, flip_x=True)
    sides: list[Images] = []
    for side in ("train", "t10k"):
        images = _idx(folder, f"{side}-images-idx3-ubyte", 3)[:, None]
        sides.append(arrays(images, _idx(folder, f"{side}-labels-idx1-ubyte", 1).long(), look))
    return Data("fashion-mnist", "classification", (1, 28, 28), FASHION, *sides)


def _fashion_folder(data_root: Path | None) -> Path:
    asked = [data_root, data_root / "fashion-mnist", data_root / "FashionMNIST" / "raw"] if data_root else []
    for place in (*asked, *FASHION_PLACES):
        if any((place.expanduser() / f"t10k-labels-idx1-ubyte{end}").is_file() for end in ("", ".gz")):
            return place.expanduser()
    root = data_root or FASHION_PLACES[-1].expanduser().parent.parent
    try:
        from torchvision.datasets import FashionMNIST

        FashionMNIST(root, download=True)
    except (ImportError, URLError, OSError, RuntimeError) as error:
        places = ", ".join(str(place) for place in (*asked, *FASHION_PLACES))
        raise DataError(
            f"fashion-mnist is not in {places}, and could not be downloaded: {error}",
            hint="apt-get install dataset-fashion-mnist, or give --data-root DIR with the four idx files",
        ) from error
    return root / "FashionMNIST" / "raw"


def _idx(folder: Path, name: str, dims: int) -> Tensor:
    """An idx file (plain or gz) as bytes.

    Raises:
        DataError: the file is missing, cut off, or not idx.
    """
    path = next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
    if path is None:
        raise DataError(f"{folder / name} does not exist", hint="the four idx files belong in one folder")
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be unpacked: {error}") from error
    head = 4 + 4 * dims
    if len(raw) < head:
        raise DataError(f"{path} is no idx file of {dims} dimensions", hint="is the download complete?")
    shape = tuple(np.frombuffer(raw, ">i4", dims, 4).tolist())
    if raw[:4] != bytes((0, 0, 8, dims)) or len(raw) != head + int(np.prod(shape)):
        raise DataError(f"{path} is no idx file of {dims} dimensions", hint="is the download complete?")
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=head).reshape(shape).copy())


def image_folder(root: Path, *, seed: int = 0, workers: int = 0, image_size: int | None = None) -> Data:
    """`DIR/train/CLASS/*.png` and `DIR/val/CLASS/*.png`; a plain `DIR/CLASS/*.png` is split four to one under the seed.

    The size is that of the first image, or `image_size` squared; normalised as ImageNet is.

    Raises:
        DataError: no folder, no class, a class without images, or other classes in val than in train.
    """
    _need_folder(root, FOLDERS)
    paths: list[list[Path]] = []
    targets: list[list[int]] = []
    if (root / "train").is_dir():
        _need_folder(root / "val", "DIR/val/CLASS/*.png beside DIR/train")
        labels = _classes(root / "train")
        if _classes(root / "val") != labels:
            differ = sorted(set(labels) ^ set(_classes(root / "val")))
            raise DataError(
                f"{root}: train and val have different classes: {', '.join(differ[:5])}",
                hint="the two sides need folders of the same names",
            )
        for side in ("train", "val"):
            found = [(p, i) for i, label in enumerate(labels) for p in _members(root / side / label, FOLDERS)]
            paths.append([p for p, _ in found])
            targets.append([i for _, i in found])
    else:
        labels = _classes(root)
        found = [(p, i) for i, label in enumerate(labels) for p in _members(root / label, FOLDERS)]
        for part in split([i for _, i in found], 0.2, seed):
            paths.append([found[k][0] for k in part])
            targets.append([found[k][1] for k in part])
        if not paths[0]:
            raise DataError(f"{root}: one image a class is too few to split", hint="give DIR/train and DIR/val")
    size = _size(paths[0][0], image_size)
    train = Look(IMAGENET.mean, IMAGENET.std, shift=max(1, min(size) // 16), flip_x=True)
    sides = [_folder_side(p, torch.tensor(t), size, train, workers) for p, t in zip(paths, targets, strict=True)]
    return Data(f"imagefolder:{root}", "classification", (3, *size), tuple(labels), *sides)


def _folder_side(paths: list[Path], targets: Tensor, size: tuple[int, int], look: Look, workers: int) -> Images:
    def read(index: list[int], rng: torch.Generator | None) -> tuple[Tensor, Tensor]:
        return read_images([paths[i] for i in index], size, rng), targets[index]

    return Images(len(paths), read, look, workers)


def _need_folder(folder: Path, wanted: str) -> None:
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder", hint=f"wanted: {wanted}")


def _classes(folder: Path) -> list[str]:
    labels = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(labels) < 2:
        raise DataError(f"{folder} holds {len(labels)} class folders, wanted at least 2", hint=f"wanted: {FOLDERS}")
    return labels


def _members(folder: Path, wanted: str) -> list[Path]:
    found = pictures(folder)
    if not found:
        raise DataError(f"{folder} holds no images", hint=f"wanted: {wanted}; png, jpg, bmp, webp, tif or ppm")
    return found


def _size(first: Path, image_size: int | None) -> tuple[int, int]:
    if image_size is not None:
        return image_size, image_size
    with opened(first) as image:
        return image.height, image.width


def seg_folder(root: Path, *, workers: int = 0, image_size: int | None = None) -> Data:
    """`DIR/{train,val}/{images,masks}`: PNG masks of class indices under the images' names, 255 counting nowhere.

    Mean and standard deviation are those of the training images (at most 2000 of them, evenly spread); training
    flips both ways. The classes are the lines of `DIR/classes.txt`, or as many as the highest index in a mask says.

    Raises:
        DataError: a folder is missing, an image has no mask, a mask is not single-channel or of another size.
    """
    _need_folder(root, "DIR/train/images, DIR/train/masks, DIR/val/images, DIR/val/masks")
    pairs = {side: _pairs(root / side) for side in ("train", "val")}
    size = _size(pairs["train"][0][0], image_size)
    names = root / "classes.txt"
    labels = tuple(names.read_text().split("\n")) if names.is_file() else ()
    labels = tuple(line.strip() for line in labels if line.strip())
    highest = max(_highest(image, mask) for side in pairs.values() for image, mask in side)
    if labels and highest >= len(labels):
        raise DataError(f"{root}: a mask holds class {highest}, {names} names {len(labels)}", hint="add lines")
    labels = labels or tuple(str(i) for i in range(highest + 1))
    if len(labels) < 2:
        raise DataError(f"{root}: the masks hold {len(labels)} class, wanted at least 2", hint="255 means ignore")
    shown = pairs["train"][:: max(1, len(pairs["train"]) // 2000)]
    mean, std = statistics(read_pairs([image], [mask], size)[0] for image, mask in shown)
    look = Look(mean, std, flip_x=True, flip_y=True)
    sides = [_seg_side(pairs[side], size, look, workers) for side in ("train", "val")]
    return Data(f"segfolder:{root}", "segmentation", (3, *size), labels, *sides)


def _seg_side(pairs: list[tuple[Path, Path]], size: tuple[int, int], look: Look, workers: int) -> Images:
    def read(index: list[int], rng: torch.Generator | None) -> tuple[Tensor, Tensor]:
        return read_pairs([pairs[i][0] for i in index], [pairs[i][1] for i in index], size)

    return Images(len(pairs), read, look, workers)


def _pairs(folder: Path) -> list[tuple[Path, Path]]:
    for part in ("images", "masks"):
        _need_folder(folder / part, PAIRS)
    masks = {p.stem: p for p in pictures(folder / "masks")}
    images = _members(folder / "images", PAIRS)
    lost = [p.name for p in images if p.stem not in masks]
    if lost:
        raise DataError(
            f"{folder}: {len(lost)} images have no mask: {', '.join(lost[:4])}",
            hint=f"{folder}/masks needs a PNG of the same name for each image",
        )
    return [(p, masks[p.stem]) for p in images]


def _highest(image_path: Path, mask_path: Path) -> int:
    """The highest class index in a mask, checked against its image."""
    with opened(mask_path) as mask, Image.open(image_path) as image:
        if mask.mode not in ("L", "P", "1", "I", "I;16"):
            raise DataError(f"{mask_path} has mode {mask.mode}, wanted one channel", hint="save the class index")
        if mask.size != image.size:
            raise DataError(f"{mask_path} is {mask.size}, its image is {image.size}", hint="make them equal")
        values = np.asarray(mask)
        return max((int(v) for v in np.unique(values) if v != IGNORE), default=0)


def user_loaders(spec: str, made: Any) -> Data:
    """Two loaders that the user's factory made; kind, size and classes are read from the validation batches.

    Raises:
        DataError: not a pair of loaders with a length, a loader without a batch, images of several shapes, or a batch
            that is not (images, integer targets).
    """
    if not (isinstance(made, (tuple, list)) and len(made) == 2 and all(hasattr(m, "__len__") for m in made)):
        raise DataError(f"{spec} gives {type(made).__name__}", hint="return (train_loader, val_loader) or a Task")
    train, val = made
    shape: tuple[int, ...] = ()
    dims, highest = 0, 0
    for loader, side in ((val, "validation"), (train, "training")):
        empty = True
        for item in loader:
            empty = False
            images, targets = _checked(spec, item)
            shape, dims = shape or tuple(images.shape[1:]), targets.dim()
            if tuple(images.shape[1:]) != shape:
                raise DataError(
                    f"{spec}: {side} images are {tuple(images.shape[1:])}, others {shape}",
                    hint="an engine reads one shape: scale all images to it, in both loaders",
                )
            valid = targets[targets != IGNORE] if dims == 3 else targets
            highest = max(highest, int(valid.max())) if valid.numel() else highest
            if loader is train:
                break
        if empty:
            raise DataError(f"{spec}: the {side} loader is empty", hint="it must give one batch at least")
    names = tuple(getattr(getattr(val, "dataset", None), "classes", ()))
    kind: Kind = "segmentation" if dims == 3 else "classification"
    labels = tuple(map(str, names)) if len(names) > highest else tuple(str(i) for i in range(highest + 1))
    c, h, w = shape
    return Data(spec, kind, (c, h, w), labels, Given(train), Given(val), closed=len(names) > highest)


def _checked(spec: str, item: Any) -> tuple[Tensor, Tensor]:
    """One batch of a user's loader, if it is what a task needs."""
    good = isinstance(item, (tuple, list)) and len(item) == 2 and all(isinstance(t, Tensor) for t in item)
    if not good or item[0].dim() != 4 or item[1].dim() not in (1, 3) or item[1].is_floating_point():
        got = [f"{t.dtype} {tuple(t.shape)}" if isinstance(t, Tensor) else type(t).__name__ for t in item]
        raise DataError(
            f"{spec}: a batch is {', '.join(got)}",
            hint="wanted: float images [b, c, h, w] and integer targets [b], or [b, h, w] for segmentation",
        )
    return item[0], item[1].long()
