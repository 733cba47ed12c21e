"""A template: your own network and data.

cpd-edge prune examples/my_models.py:make_net --data examples/my_models.py:make_data --weights my_weights.pt --speedup 2

`make_net` returns a `torch.nn.Module` that takes one tensor `[batch, channels, height, width]`. `make_data` returns two
loaders of `(images, integer targets)`; images come normalised, as the network was trained.
"""

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    """Replace this by your network."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
        )
        self.head = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images `[batch, 3, h, w]` to logits `[batch, classes]`; for segmentation `[batch, classes, h, w]`."""
        return self.head(self.features(x).mean((2, 3)))


def make_net(num_classes: int = 4) -> nn.Module:
    """The trained network. Load your weights here, or give them with --weights."""
    return Net(num_classes)


def make_data() -> tuple[DataLoader, DataLoader]:
    """Training and validation loader. Here: squares whose colour and size tell the class."""
    loaders = [
        DataLoader(squares(count, seed), batch_size=32, shuffle=seed == 0) for count, seed in ((512, 0), (128, 1))
    ]
    return loaders[0], loaders[1]


def squares(count: int, seed: int) -> TensorDataset:
    """`count` images `[3, 32, 32]` of four classes."""
    rng = torch.Generator().manual_seed(seed)
    images, targets = 0.3 * torch.randn(count, 3, 32, 32, generator=rng), torch.arange(count) % 4
    for image, target in zip(images, targets.tolist(), strict=True):
        size = 8 + 8 * (target // 2)
        top, left = torch.randint(32 - size, (2,), generator=rng).tolist()
        image[target % 2, top : top + size, left : left + size] += 2
    return TensorDataset(images, targets)
