"""Bad input is answered before any work: what is wrong, what to type next, exit 2, and no run folder."""

from __future__ import annotations

import pytest
from cli.shell import Shell
from cli.worlds import MINE, PRUNE


def line_of(part: str) -> int:
    """Number of the line of `mine.py` that holds some text."""
    return next(i for i, line in enumerate(MINE.splitlines(), 1) if part in line)


NET, DATA, TWICE = "mine.py:make_net", ("--data", "mine.py:make_data"), ("--speedup", "2")

PRUNES = {
    "unknown zoo network": (("zoo:resnet9", "--data", "digits", *TWICE), "closest: zoo:resnet8"),
    "unknown torchvision network": (("torchvision:resnet19", "--data", "digits", *TWICE), "torchvision:resnet18"),
    "unknown origin": (("resnet18", *DATA, *TWICE), "torchvision:NAME"),
    "missing file": (("nowhere.py:make_net", *DATA, *TWICE), "nowhere.py does not exist"),
    "missing factory": (("mine.py:make", *DATA, *TWICE), "it defines: make_net"),
    "file without a factory": (("mine.py", *DATA, *TWICE), "give mine.py:NAME"),
    "factory that fails": (("mine.py:make_broken", *DATA, *TWICE), f"mine.py:{line_of('four')}: "),
    "weights that are not there": ((NET, *DATA, *TWICE, "--weights", "my.pt"), "weights my.pt do not exist"),
    "weights that are no weights": ((NET, *DATA, *TWICE, "--weights", "mine.py"), "torch.save(model.state_dict()"),
    "budget of 0": ((NET, *DATA, "--budget-ms", "0"), "--budget-ms 12"),
    "budget below 0": ((NET, *DATA, "--budget-ms", "-3"), "--budget-ms 12"),
    "budget that is no number": ((NET, *DATA, "--budget-ms", "nan"), "--budget-ms 12"),
    "budget without end": ((NET, *DATA, "--budget-ms", "inf"), "it must be finite and above 0"),
    "speed-up below 1": ((NET, *DATA, "--speedup", "0.5"), "it must be finite and at least 1"),
    "no budget": ((NET, *DATA), "--budget-ms MS or --speedup X"),
    "two budgets": ((NET, *DATA, *TWICE, "--budget-ms", "1"), "--budget-ms MS or --speedup X"),
    "speed-up of 0": ((NET, *DATA, "--speedup", "0"), "--speedup 2"),
    "quantile of 0": ((NET, *DATA, *TWICE, "--quantile", "0"), "--quantile 0.99"),
    "quantile of 1": ((NET, *DATA, *TWICE, "--quantile", "1"), "--quantile 0.99"),
    "unknown data": ((NET, "--data", "cifar", *TWICE), "digits, fashion-mnist"),
    "missing folder": ((NET, "--data", "imagefolder:nowhere", *TWICE), "nowhere is not a folder"),
    "folder without classes": ((NET, "--data", "imagefolder:empty", *TWICE), "DIR/train/CLASS"),
    "folder without masks": ((NET, "--data", "segfolder:empty", *TWICE), "DIR/{train,val}/{images,masks}"),
    "too few classes": ((NET, "--data", "digits", *TWICE), "model gives 4 classes, data has 10"),
    "too many classes": (("mine.py:make_wide", "--data", "digits", *TWICE), "--num-classes 10"),
    "other channels": (("mine.py:make_coloured", *DATA, *TWICE), "channels"),
    "not exportable": (("mine.py:make_branching", *DATA, *TWICE), f"mine.py:{line_of('item()')}: if x.sum().item() "),
    "unknown device": ((NET, *DATA, *TWICE, "--device", "orin"), "--device local"),
    "unknown runtime": ((NET, *DATA, *TWICE, "--runtime", "tflite"), "--runtime onnxruntime"),
    "unknown score": ((NET, *DATA, *TWICE, "--score", "luck"), "--score fisher"),
    "epochs below 0": ((NET, *DATA, *TWICE, "--epochs", "-1"), "--epochs 3"),
    "epochs that are no number": ((NET, *DATA, *TWICE, "--epochs", "nan"), "--epochs 3"),
    "learning rate of 0": ((NET, *DATA, *TWICE, "--lr", "0"), "--lr 0.0"),
    "alpha above 1": ((NET, *DATA, *TWICE, "--alpha", "2"), "--alpha 0.7"),
    "temperature of 0": ((NET, *DATA, *TWICE, "--temperature", "0"), "--temperature "),
    "no steps": ((NET, *DATA, *TWICE, "--steps", "0"), "--steps 1"),
    "no time to bench": ((NET, *DATA, *TWICE, "--limit-s", "0"), "--limit-s 45"),
    "no interval to stop at": ((NET, *DATA, *TWICE, "--target", "nan"), "--target 0.01"),
    "no threads": ((NET, *DATA, *TWICE, "--threads", "0"), "--threads 1"),
    "seed below 0": ((NET, *DATA, *TWICE, "--seed", "-1"), "--seed 0"),
}  # fmt: skip

OTHERS = {
    "resume of nothing": ((*PRUNE, *TWICE, "--resume"), "add --out RUN"),
    "input without numbers": (("comb", NET, "--input", "a,b"), "--input 3,224,224"),
    "input below 1": (("comb", NET, "--input", "1,0,16"), "--input 3,224,224"),
    "input of other channels": (("comb", NET, "--input", "3,48,48"), "expected input"),
    "profile without input": (("profile", NET, "--input", ""), "--input 3,224,224"),
    "profile of too few samples": (("profile", NET, "--input", "1,48,48", "--samples", "2"), "--samples 8"),
    "solve of no run": (("solve", "nowhere"), "cpd-edge prune"),
    "solve for no time": (("solve", "empty", "--budget-ms", "0"), "--budget-ms 12"),
    "report of no run": (("report", "nowhere"), "cpd-edge prune"),
    "bench of no file": (("bench", "nowhere.onnx"), "RUN/pruned.onnx"),
    "bench of no engine": (("bench", "text.onnx"), "RUN/pruned.onnx"),
    "bench on no threads": (("bench", "text.onnx", "--threads", "0"), "--threads 1"),
    "bench of no quantile": (("bench", "text.onnx", "--quantile", "1"), "--quantile 0.99"),
    "bench of a frame alone": (("bench", "text.onnx", "--frame", "480,640"), "add --end-to-end"),
    "bench of no frame": (("bench", "text.onnx", "--end-to-end", "--frame", "480"), "--frame 1080,1920"),
    "bench into a folder": (("bench", "text.onnx", "--out", "empty"), "--out empty/NAME"),
    "bench into a file's folder": (("bench", "text.onnx", "--out", "text.onnx/b.json"), "give another --out"),
    "prune into a file": ((*PRUNE, *TWICE, "--out", "mine.py"), "mine.py is a file, wanted a folder"),
    "prune into no place": ((*PRUNE, *TWICE, "--out", "/proc/x"), "nothing can be written in /proc"),
    "sweep into a file": (("sweep", *PRUNE[1:], "--speedups", "2", "--out", "mine.py"), "wanted a folder"),
    "drawing into a folder": (("comb", NET, "--input", "1,48,48", "--draw", "empty"), "--draw empty/NAME"),
    "solve of a file": (("solve", "mine.py"), "wanted a run folder"),
    "report of a file": (("report", "mine.py"), "wanted a run folder"),
    "report of a file's folder": (("report", "mine.py/run"), "cpd-edge prune"),
    "bench of a folder of samples": (("bench", "samples.json"), "cannot be read"),
    "import of no file": (("tables", "import", "nowhere.csv"), "cpd-edge tables export"),
    "bench of no time": (("bench", "text.onnx", "--limit-s", "0"), "time limit above 0"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "said"), PRUNES.values(), ids=PRUNES)
def test_a_bad_prune_is_answered_before_any_work(shell: Shell, arguments: tuple[str, ...], said: str) -> None:
    """`prune` says what is wrong and what to do, exits 2, and leaves no folder and no traceback."""
    done = shell("prune", *arguments, "--out", "bad")
    assert done.code == 2
    assert said in done.err
    assert answered(done.err) and done.out == ""
    assert not (shell.folder / "bad").exists()


@pytest.mark.parametrize(("arguments", "said"), OTHERS.values(), ids=OTHERS)
def test_a_bad_call_of_another_verb_is_answered(shell: Shell, arguments: tuple[str, ...], said: str) -> None:
    """Every verb says what is wrong and what to do, and exits 2."""
    done = shell(*arguments)
    assert done.code == 2
    assert said in done.err
    assert answered(done.err) and done.out == ""


def answered(err: str) -> bool:
    """Whether one error was told: a line that says what, lines below it, nothing of Python's."""
    lines = [line for line in err.splitlines() if line.strip() and not line.startswith("warning:")]
    return (
        "Traceback" not in err and lines[0].startswith("error: ") and all(line.startswith("  ") for line in lines[1:])
    )


def test_weights_of_another_network_are_named_key_by_key(shell: Shell) -> None:
    """Weights that do not fit are refused with the names of the keys, missing and unexpected."""
    import torch

    torch.save({"stem.weight": torch.zeros(24, 1, 3, 3), "tail.weight": torch.zeros(1)}, shell.folder / "other.pt")
    done = shell(*PRUNE, *TWICE, "--weights", "other.pt", "--out", "bad")
    assert (done.code, (shell.folder / "bad").exists()) == (2, False)
    assert "missing (stem.bias, " in done.err and "1 unexpected (tail.weight)" in done.err


@pytest.mark.parametrize("call", [(*PRUNE, *TWICE, "--out", "bad"), ("bench", "text.onnx")], ids=["prune", "bench"])
def test_a_missing_runtime_is_answered_with_the_pip_line(shell: Shell, call: tuple[str, ...]) -> None:
    """Without ONNX Runtime the answer is the line that installs it."""
    done = shell(*call, missing=("onnxruntime",))
    assert (done.code, (shell.folder / "bad").exists()) == (2, False)
    assert "pip install 'cpd-edge[cpu]'" in done.err and answered(done.err)


def test_tables_in_a_file_are_answered_too(shell: Shell) -> None:
    """What is no folder of tables is named before anything is measured."""
    done = shell("profile", NET, "--input", "1,48,48", "--profiles", "mine.py")
    assert done.code == 2 and "cannot be written: Not a directory" in done.err and "Traceback" not in done.err


def test_an_error_is_one_json_object_too(shell: Shell) -> None:
    """With `--json`, an error is an object on stdout: its kind, what is wrong, what to type."""
    done = shell(*PRUNE, "--speedup", "-1", "--json")
    assert done.code == 2
    assert done.json == {
        "error": "BudgetError",
        "message": "speed-up of -1.0: it must be finite and at least 1",
        "hint": "for example --speedup 2",
    }


def test_a_refusal_makes_no_runs_folder(shell: Shell) -> None:
    """Without `--out` too, nothing is left behind."""
    assert shell(*PRUNE, "--speedup", "0").code == 2
    assert not (shell.folder / "runs").exists()
