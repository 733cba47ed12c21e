"""Trains a ResNet-20 of width 32 on Fashion-MNIST from nothing and saves its weights.

cpd-edge prune zoo:resnet20:width=32 --weights fashion-resnet20.pt --data fashion-mnist --speedup 2

The data comes from the Debian package dataset-fashion-mnist, or is downloaded where torchvision is installed. One epoch
is 60,000 images: seconds on a GPU, some minutes on one CPU core. An interrupted training goes on where it was.
"""

import argparse
from pathlib import Path

import torch

from cpd_edge.distil.judge import evaluate
from cpd_edge.distil.train import train
from cpd_edge.intake.metrics import interval
from cpd_edge.intake.tasks import load_task
from cpd_edge.intake.zoo import resnet20


def main() -> None:
    """Trains, says the test accuracy with its 95 % interval, and saves the state dict."""
    parser = argparse.ArgumentParser(description="Train ResNet-20, width 32, on Fashion-MNIST.")
    parser.add_argument("--epochs", type=float, default=8)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--data-root", type=Path, default=None, help="folder with the four idx files")
    parser.add_argument("--out", type=Path, default=Path("fashion-resnet20.pt"))
    args = parser.parse_args()

    task = load_task("fashion-mnist", data_root=args.data_root)
    torch.manual_seed(0)
    model = resnet20(in_channels=1, num_classes=10, width=args.width)
    checkpoint = args.out.with_suffix(".checkpoint")
    train(
        model,
        task,
        epochs=args.epochs,
        batch=args.batch,
        checkpoint=checkpoint,
        progress=lambda fraction, message: print(f"\r{100 * fraction:5.1f} %  {message}", end="", flush=True),
    )
    found = interval(evaluate(model, task))
    print(f"\ntest accuracy {found.estimate:.4f}  [{found.low:.4f}, {found.high:.4f}]  n={found.n}")
    torch.save(model.state_dict(), args.out)
    checkpoint.unlink()


if __name__ == "__main__":
    main()
