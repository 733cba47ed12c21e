"""Laws of weights: a run's report says where they come from, and a run goes on with those that it began with."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from cli.shell import Shell
from cli.worlds import PRUNE, QUICK

from cpd_edge.intake.models import load_model
from cpd_edge.pipeline.outcome import CHANCE_LIMIT, _better_than_chance, limits_of
from cpd_edge.pipeline.request import Request
from cpd_edge.pipeline.weights import origin
from cpd_edge.store import Run, read_json, write_json
from cpd_edge.types import Budget

HALF = Budget(speedup=2)


@pytest.mark.parametrize(
    ("model", "asked", "source", "chance"),
    [
        ("torchvision:resnet18", {}, "none given: random", True),
        ("zoo:resnet8", {"train": True}, "none given: trained from scratch by this run", False),
        ("timm:vit_tiny_patch16_224", {"weights": "pretrained"}, "published by timm", False),
        ("nets/mine.py:make_net", {}, "from nets/mine.py", False),
        ("zoo:resnet8", {"weights": "w.pt"}, "w.pt", False),
        ("net.pt2", {}, "net.pt2", False),
    ],
)
def test_where_weights_come_from(model: str, asked: dict[str, str | bool], source: str, chance: bool) -> None:
    """In words; and where they are nobody's, the limits say that the metric means nothing."""
    request = Request(model, "digits", HALF, **asked)  # type: ignore[arg-type]
    assert origin(request) == {"source": source}
    assert (CHANCE_LIMIT in limits_of(request)) == chance


@pytest.mark.parametrize(("low", "passed"), [(0.24, False), (0.25, False), (0.26, True)])
def test_a_dense_network_that_guesses_fails_a_check(low: float, passed: bool) -> None:
    """Its accuracy's interval must lie above that of guessing; a mean IoU is held to nothing."""
    record = {"metric": "accuracy", "metric_intervals": {"dense": {"estimate": 0.3, "low": low, "high": 0.4, "n": 9}}}
    (check,) = _better_than_chance(record, 4)
    assert check["passed"] == passed and "chance 25.0%" in check["detail"]
    assert _better_than_chance({**record, "metric": "mIoU"}, 4) == []


@pytest.fixture(scope="module")
def weighted(shell: Shell) -> tuple[Run, Path, tuple[str, ...]]:
    """A run whose weights were read from a file, the file, and what was typed."""
    file = shell.folder / "w.pt"
    torch.save(load_model(f"{shell.folder / 'mine.py'}:make_net").state_dict(), file)
    words = (*PRUNE, "--weights", "w.pt", "--budget-ms", "1000", *QUICK, "--out", "weighted")
    done = shell(*words)
    assert done.code == 0, done.err
    return Run(shell.folder / "weighted"), file, words


def test_a_report_names_the_file_of_weights_and_its_hash(weighted: tuple[Run, Path, tuple[str, ...]]) -> None:
    """The beginning of the hash at the top, all of it among the hashes."""
    run, file, _ = weighted
    digest, twin = hashlib.sha256(file.read_bytes()).hexdigest(), (run / "report.md").read_text()
    assert f"- Weights: w.pt, SHA-256 {digest[:12]}\n" in twin
    assert f"| weights given | {digest} |" in twin
    assert [c["name"] for c in run.record["checks"]] == ["better than chance"]


def test_a_run_does_not_go_on_with_other_weights(weighted: tuple[Run, Path, tuple[str, ...]], shell: Shell) -> None:
    """The file holds something else now: refused, with both ways out; gone, or never hashed: it is not read again."""
    run, file, words = weighted
    began, record = file.read_bytes(), read_json(run / "run.json")
    assert shell(*words, "--resume").code == 0
    torch.save({k: v + 1 for k, v in torch.load(file, weights_only=True).items()}, file)
    done = shell(*words, "--resume")
    assert done.code == 2 and "w.pt is not the file of weights that the run to resume began with" in done.err
    assert "put the old w.pt back, or start a new --out" in done.err
    write_json(run / "run.json", {k: v for k, v in record.items() if k != "weights"})
    assert shell(*words, "--resume").code == 0
    write_json(run / "run.json", record)
    file.unlink()
    assert shell(*words, "--resume").code == 0
    file.write_bytes(began)
