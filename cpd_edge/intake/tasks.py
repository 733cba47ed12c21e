"""The *task*: data, loss and metric as one noun, and `load_task`, which finds it by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cpd_edge.errors import DataError
from cpd_edge.intake import sets, userfile
from cpd_edge.intake.datasets import IGNORE, Data, Loader
from cpd_edge.intake.metrics import Accuracy, MeanIoU, Metric

HEAD = "give --num-classes {0} where the model takes it, change the head of a model of your own, or give other data"
FORMS = "digits, fashion-mnist, imagefolder:DIR, segfolder:DIR or FILE.py:FACTORY"


@dataclass(frozen=True)
class Task:
    """What a network is trained and judged on. Outputs may be a tensor, or a dict or tuple that holds one."""

    data: Data

    @property
    def name(self) -> str:
        """How the user named it."""
        return self.data.name

    @property
    def num_classes(self) -> int:
        """How many classes there are, the ignored one not among them."""
        return len(self.data.labels)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, in order of their index."""
        return self.data.labels

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """`(c, h, w)` of one image as the model gets it."""
        return self.data.input_shape

    @property
    def metric_name(self) -> str:
        """`accuracy` or `mIoU`."""
        return Accuracy.name if self.data.kind == "classification" else MeanIoU.name

    def metric(self) -> Metric:
        """A fresh accumulator."""
        classification = self.data.kind == "classification"
        return Accuracy(self.num_classes) if classification else MeanIoU(self.num_classes, IGNORE)

    def train_loader(self, batch: int, seed: int, skip: int = 0) -> Loader:
        """One epoch of augmented batches, the same for the same seed, from batch `skip` on."""
        return self.data.train.batches(batch, seed, skip)

    def val_loader(self, batch: int) -> Loader:
        """The validation images in order, not augmented."""
        return self.data.val.batches(batch, None, 0)

    def logits(self, outputs: object, size: torch.Size | None = None) -> Tensor:
        """The main output `[b, classes, ...]`; for segmentation scaled bilinearly to `size` where it differs."""
        out = main_output(outputs)
        if self.data.kind == "segmentation" and size is not None and out.shape[-2:] != size:
            out = F.interpolate(out, size=tuple(size), mode="bilinear", align_corners=False)
        return out

    def loss(self, outputs: object, targets: Tensor) -> Tensor:
        """Cross-entropy with the hard labels, a mean over images or pixels [nats]."""
        targets = targets.long()
        return F.cross_entropy(self.logits(outputs, targets.shape[1:]), targets, ignore_index=self._ignored)

    def distil_loss(
        self, student_out: object, teacher_out: object, targets: Tensor, temperature: float, alpha: float
    ) -> Tensor:
        """`(1 - alpha) * cross-entropy + alpha * T^2 * KL(teacher || student)` at temperature T (Hinton et al., 2015).

        The divergence is a mean over images, or over the pixels that are not ignored.
        """
        hard = self.loss(student_out, targets)
        soft = self.divergence(student_out, teacher_out, targets, temperature)
        return (1 - alpha) * hard + alpha * temperature**2 * soft

    def own_loss(self, outputs: object, targets: Tensor, temperature: float) -> Tensor:
        """Cross-entropy with labels drawn from the network's own softened prediction, ignored pixels aside [nats].

        Squared gradients of it estimate the Fisher information, which is the curvature of the divergence from the
        network as it is (Martens, 2020). It does not vanish where the training loss has, as that of true labels does.
        """
        logits = self.logits(outputs, targets.shape[1:]) / temperature
        with torch.no_grad():
            chances = logits.softmax(1).movedim(1, -1)
            drawn = torch.multinomial(chances.reshape(-1, chances.shape[-1]), 1).view(targets.shape)
            drawn = torch.where(targets == self._ignored, targets, drawn)
        return F.cross_entropy(logits, drawn, ignore_index=self._ignored)

    def divergence(self, outputs: object, reference: object, targets: Tensor, temperature: float) -> Tensor:
        """`KL(reference || outputs)` of softened predictions, a mean over images or pixels not ignored [nats]."""
        size = targets.shape[1:]
        theirs = F.log_softmax(self.logits(outputs, size) / temperature, 1)
        own = F.log_softmax(self.logits(reference, size) / temperature, 1)
        apart = F.kl_div(theirs, own, reduction="none", log_target=True).sum(1)
        return apart[targets != self._ignored].mean()

    def update(self, metric: Metric, outputs: object, targets: Tensor) -> None:
        """Adds a batch of the network's outputs to the metric."""
        metric.update(self.logits(outputs, targets.shape[1:]), targets.long())

    @property
    def _ignored(self) -> int:
        return IGNORE if self.data.kind == "segmentation" else -100


def main_output(outputs: object) -> Tensor:
    """The tensor that is judged: the output itself, `out` or `logits` of a mapping or object, or the first of a tuple.

    Raises:
        DataError: no tensor there.
    """
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, Mapping):
        named = [outputs[k] for k in ("out", "logits") if k in outputs]
        return main_output((named or list(outputs.values()))[0])
    if isinstance(outputs, (tuple, list)) and outputs:
        return main_output(outputs[0])
    if hasattr(outputs, "logits"):
        return main_output(outputs.logits)
    raise DataError(f"the model gives {type(outputs).__name__}, wanted a tensor", hint="return the logits from forward")


def load_task(
    spec: str,
    *,
    seed: int = 0,
    workers: int = 0,
    data_root: Path | None = None,
    image_size: int | None = None,
) -> Task:
    """The task that `spec` names, checked as far as is possible without a model.

    Args:
        spec: `digits`, `fashion-mnist`, `imagefolder:DIR`, `segfolder:DIR`, or `FILE.py:FACTORY`, which returns
            `(train_loader, val_loader)` or a `Task`.
        seed: of a split that the data does not bring itself.
        workers: processes that decode images.
        data_root: where downloaded sets lie.
        image_size: height and width that folders of images are scaled to.

    Raises:
        DataError: unknown spec, missing or unfit data.
    """
    origin, _, folder = spec.partition(":")
    if spec == "digits":
        return Task(sets.digits())
    if spec == "fashion-mnist":
        return Task(sets.fashion_mnist(data_root))
    if origin == "imagefolder" and folder:
        return Task(sets.image_folder(Path(folder), seed=seed, workers=workers, image_size=image_size))
    if origin == "segfolder" and folder:
        return Task(sets.seg_folder(Path(folder), workers=workers, image_size=image_size))
    if userfile.split(spec):
        made = userfile.load(spec, DataError, seed=seed, workers=workers, image_size=image_size)
        return made if isinstance(made, Task) else Task(sets.user_loaders(spec, made))
    raise DataError(f"unknown data {spec!r}", hint=f"give {FORMS}")


def check_model(task: Task, model: nn.Module) -> None:
    """Runs one validation batch, so that a model that does not fit the data is refused before any work.

    Raises:
        DataError: the forward fails, or its output has another rank or number of classes than the data.
    """
    images, targets = next(iter(task.val_loader(2)))
    mode = model.training
    model.eval()
    try:
        with torch.no_grad():
            out = main_output(model(images))
    except DataError:
        raise
    except Exception as error:  # the user's forward may raise anything; it is kept as the cause
        message = str(error).splitlines()[0] if str(error) else ""
        raise DataError(
            f"the model does not run on {task.name}, images {tuple(images.shape)}: {type(error).__name__}: {message}",
            hint=_shape_hint(model, images),
        ) from error
    finally:
        model.train(mode)
    c = task.num_classes
    if out.dim() != targets.dim() + 1 or len(out) != len(images):
        raise DataError(
            f"model gives {tuple(out.shape)}, {task.name} needs {(len(images), c, *targets.shape[1:])}",
            hint=f"{task.data.kind} wants one logit per class for each {'image' if targets.dim() == 1 else 'pixel'}",
        )
    if out.shape[1] < c or (out.shape[1] > c and task.data.closed):
        raise DataError(f"model gives {out.shape[1]} classes, data has {c}", hint=HEAD.format(c))


def _shape_hint(model: nn.Module, images: Tensor) -> str:
    """Points at the channels where the first convolution wants others."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            if module.in_channels != images.shape[1]:
                return f"its first convolution reads {module.in_channels} channels, the images have {images.shape[1]}"
            break
    return "try another --image-size"
