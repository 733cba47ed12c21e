"""The examples are true: they run as they stand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from cpd_edge.intake.models import load_model
from cpd_edge.intake.tasks import check_model, load_task

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_template_fits_together() -> None:
    """The template's network runs on the template's data."""
    task = load_task(f"{EXAMPLES / 'my_models.py'}:make_data")
    model = load_model(f"{EXAMPLES / 'my_models.py'}:make_net", num_classes=task.num_classes)
    check_model(task, model)
    assert (task.input_shape, task.num_classes) == ((3, 32, 32), 4)


def test_the_training_script_saves_weights_that_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The script trains on idx files and leaves a state dict that fits `zoo:resnet20`, and no checkpoint."""
    for side, n in (("train", 16), ("t10k", 8)):
        images, labels = torch.randint(0, 256, (n, 28, 28), dtype=torch.uint8), torch.arange(n) % 10
        head = bytes((0, 0, 8, 3)) + b"".join(v.to_bytes(4, "big") for v in (n, 28, 28))
        (tmp_path / f"{side}-images-idx3-ubyte").write_bytes(head + images.numpy().tobytes())
        head = bytes((0, 0, 8, 1)) + n.to_bytes(4, "big")
        (tmp_path / f"{side}-labels-idx1-ubyte").write_bytes(head + bytes(labels.tolist()))
    out = tmp_path / "out" / "weights.pt"
    out.parent.mkdir()
    options = ["--epochs", "1", "--batch", "8", "--width", "4", "--data-root", str(tmp_path), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["train_fashion_resnet20.py", *options])
    monkeypatch.syspath_prepend(str(EXAMPLES))
    __import__("train_fashion_resnet20").main()
    assert "n=8" in capsys.readouterr().out and [p.name for p in out.parent.iterdir()] == ["weights.pt"]
    load_model("zoo:resnet20:width=4", out, num_classes=10, in_channels=1)
