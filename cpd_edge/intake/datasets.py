"""Data from disk as seeded batches: arrays in memory, folders of PNGs, or loaders that the user made.

A batch is a function of (seed, number of the batch), so a run that was interrupted goes on with the
very batch it would have had. Images are bytes until the whole batch is augmented and normalised at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader

from cpd_edge.errors import DataError

Kind = Literal["classification", "segmentation"]
Pair = tuple[Tensor, Tensor]

IGNORE = 255
"""Mask value of a pixel that counts nowhere."""


class Loader(Protocol):
    """Yields `(images [b, c, h, w], targets)`; its length is the number of batches in an epoch."""

    def __iter__(self) -> Iterator[Pair]: ...

    def __len__(self) -> int: ...


class Source(Protocol):
    """One side (train or val) of a data set."""

    def __len__(self) -> int:
        """How many images it holds."""

    def batches(self, batch: int, seed: int | None, skip: int) -> Loader:
        """One epoch from batch `skip` on: shuffled and augmented under `seed`, or in order when it is None."""


@dataclass(frozen=True)
class Data:
    """Two sources and what is known of them.

    Attributes:
        name: how the user named it.
        kind: classification has one target per image, segmentation one per pixel.
        input_shape: `(c, h, w)` of one image as the model gets it.
        labels: names of the classes, in order of their index.
        train, val: the two sides.
        closed: the number of classes is known, not only a lower bound from the targets seen.
    """

    name: str
    kind: Kind
    input_shape: tuple[int, int, int]
    labels: tuple[str, ...]
    train: Source
    val: Source
    closed: bool = True

    def contract(self) -> dict[str, Any]:
        """What whoever feeds the engine must know: shape, normalisation where it is ours, and the classes in order."""
        look = getattr(self.val, "look", None)
        known = {} if look is None else {"scale": "0 to 1", "mean": list(look.mean), "std": list(look.std)}
        return {"shape": list(self.input_shape), "layout": "NCHW", **known, "labels": list(self.labels)}


@dataclass(frozen=True)
class Look:
    """How a batch of bytes becomes the model's input: shifts and flips in training, then `(x/255 - mean) / std`."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    shift: int = 0
    flip_x: bool = False
    flip_y: bool = False

    def normalised(self, images: Tensor) -> Tensor:
        """Bytes `[b, c, h, w]` to floats."""
        mean = torch.tensor(self.mean)[:, None, None]
        std = torch.tensor(self.std)[:, None, None]
        return (images.float() / 255 - mean) / std

    def augmented(self, images: Tensor, targets: Tensor, rng: torch.Generator) -> Pair:
        """Bytes `[b, c, h, w]` shifted and flipped, masks `[b, h, w]` along with them."""
        masks = targets.dim() == 3
        for dim, wanted in ((-1, self.flip_x), (-2, self.flip_y)):
            if wanted:
                turn = torch.rand(len(images), generator=rng) < 0.5
                images = torch.where(turn[:, None, None, None], images.flip(dim), images)
                targets = torch.where(turn[:, None, None], targets.flip(dim), targets) if masks else targets
        return (shifted(images, self.shift, rng) if self.shift else images), targets


def shifted(images: Tensor, most: int, rng: torch.Generator) -> Tensor:
    """Each image `[b, c, h, w]` moved by its own random offset of up to `most` pixels, zeros moving in."""
    b, _, h, w = images.shape
    padded = F.pad(images, (most, most, most, most))
    rows = torch.randint(2 * most + 1, (b, 1), generator=rng) + torch.arange(h)
    columns = torch.randint(2 * most + 1, (b, 1), generator=rng) + torch.arange(w)
    picked = padded[torch.arange(b)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format)


@dataclass(frozen=True)
class Images:
    """A source of `count` images, read by `read(indices, rng)` as bytes `[b, c, h, w]` and targets."""

    count: int
    read: Callable[[list[int], torch.Generator | None], Pair]
    look: Look
    workers: int = 0

    def __len__(self) -> int:
        return self.count

    def batches(self, batch: int, seed: int | None, skip: int = 0) -> Loader:
        """One epoch from batch `skip` on; in training the last, smaller batch is left out."""
        loader = Batches(self, batch, seed, skip)
        if not self.workers:
            return loader
        own = torch.Generator().manual_seed(seed or 0)  # the workers' seed must not come from the global generator
        return DataLoader(loader, batch_size=None, shuffle=False, num_workers=self.workers, generator=own)


@dataclass(frozen=True)
class Batches:
    """One epoch of a source; item k depends on nothing but `(seed, skip + k)`."""

    source: Images
    batch: int
    seed: int | None
    skip: int

    def __len__(self) -> int:
        n, whole = self.source.count, self.seed is not None and self.source.count >= self.batch
        return (n // self.batch if whole else -(-n // self.batch)) - self.skip

    def __iter__(self) -> Iterator[Pair]:
        return (self[k] for k in range(len(self)))

    def __getitem__(self, k: int) -> Pair:
        n, source, start = self.source.count, self.source, (self.skip + k) * self.batch
        if self.seed is None:
            images, targets = source.read(list(range(start, min(start + self.batch, n))), None)
            return source.look.normalised(images), targets
        order = torch.randperm(n, generator=torch.Generator().manual_seed(self.seed))
        rng = torch.Generator().manual_seed(self.seed * 1_000_003 + self.skip + k)
        images, targets = source.read(order[start : start + self.batch].tolist(), rng)
        images, targets = source.look.augmented(images, targets, rng)
        return source.look.normalised(images), targets


def arrays(images: Tensor, targets: Tensor, look: Look) -> Images:
    """A source in memory: bytes `[n, c, h, w]` and targets `[n, ...]`."""
    return Images(len(images), lambda index, rng: (images[index], targets[index]), look)


@dataclass(frozen=True)
class Given:
    """A loader that the user made, batch size and augmentation included; the seed is set globally before each epoch."""

    loader: Any

    def __len__(self) -> int:
        return len(self.loader.dataset) if hasattr(self.loader, "dataset") else len(self.loader)

    def batches(self, batch: int, seed: int | None, skip: int = 0) -> Loader:
        """One epoch of the user's loader; `batch` is the user's own."""
        return _Rest(self.loader, seed, skip)


@dataclass(frozen=True)
class _Rest:
    loader: Any
    seed: int | None
    skip: int

    def __len__(self) -> int:
        return len(self.loader) - self.skip

    def __iter__(self) -> Iterator[Pair]:
        if self.seed is not None:
            torch.manual_seed(self.seed)
        batches = iter(self.loader)
        for _ in islice(batches, self.skip):
            pass
        return batches


def read_images(paths: Sequence[Path], size: tuple[int, int], rng: torch.Generator | None) -> Tensor:
    """RGB bytes `[b, 3, h, w]`; an image of another size is scaled to cover h/0.875 and cropped.

    The crop is in the centre, or anywhere under `rng`. An image that has the size already stays as it is.

    Raises:
        DataError: a file is no image.
    """
    out = np.empty((len(paths), 3, *size), np.uint8)
    for row, path in enumerate(paths):
        place = (0.5, 0.5) if rng is None else tuple(torch.rand(2, generator=rng).tolist())
        with opened(path) as image:
            out[row] = np.asarray(_cropped(image.convert("RGB"), size, place)).transpose(2, 0, 1)
    return torch.from_numpy(out)


def _cropped(image: Image.Image, size: tuple[int, int], place: Sequence[float]) -> Image.Image:
    h, w = size
    if (image.height, image.width) == size:
        return image
    scale = max(h / image.height, w / image.width) / 0.875
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    left, top = round((image.width - w) * place[1]), round((image.height - h) * place[0])
    return image.crop((left, top, left + w, top + h))


def read_pairs(images: Sequence[Path], masks: Sequence[Path], size: tuple[int, int]) -> Pair:
    """RGB bytes `[b, 3, h, w]` and class indices `[b, h, w]`, both scaled to the size where they differ from it.

    Raises:
        DataError: a file is no image.
    """
    h, w = size
    x, y = np.empty((len(images), 3, h, w), np.uint8), np.empty((len(images), h, w), np.int64)
    for row, (image_path, mask_path) in enumerate(zip(images, masks, strict=True)):
        with opened(image_path) as image, opened(mask_path) as mask:
            x[row] = np.asarray(image.convert("RGB").resize((w, h), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
            y[row] = np.asarray(mask.resize((w, h), Image.Resampling.NEAREST))
    return torch.from_numpy(x), torch.from_numpy(y)


def opened(path: Path) -> Image.Image:
    """An image file, opened and decoded.

    Raises:
        DataError: the file is no image, or is cut off.
    """
    try:
        image = Image.open(path)
        image.load()
        return image
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{path} cannot be read as an image: {error}", hint="remove or replace the file") from error


def pictures(folder: Path) -> list[Path]:
    """The image files of a folder, by name."""
    known = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in known and not p.name.startswith("."))


def statistics(batches: Iterable[Tensor]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation by channel of bytes `[b, c, h, w]`, of values in 0 to 1, rounded to 4 digits."""
    total = square = 0.0
    count = 0
    for images in batches:
        x = images.double() / 255
        total, square, count = total + x.sum((0, 2, 3)), square + (x * x).sum((0, 2, 3)), count + x[:, 0].numel()
    mean = torch.as_tensor(total) / count
    std = (torch.as_tensor(square) / count - mean**2).clamp_min(0).sqrt().clamp_min(1e-3)
    return tuple(round(v, 4) for v in mean.tolist()), tuple(round(v, 4) for v in std.tolist())
