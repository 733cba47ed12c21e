"""Laws of the other verbs: the parts of the main job on their own, as text and as one object."""

from __future__ import annotations

import json
import shlex
import signal
from importlib import import_module
from importlib.metadata import requires
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from cli.shell import Done, Shell
from cli.worlds import PRUNE, QUICK
from packaging.requirements import Requirement

from cpd_edge.cli.text import bench_text, comb_text, doctor_text, portion
from cpd_edge.pipeline import verbs
from cpd_edge.report import format as write
from cpd_edge.store import Run, measurement_from

COMB = ("comb", "mine.py:make_net", "--input", "1,48,48")
PROFILE = ("profile", "mine.py:make_net", "--input", "1,48,48", "--samples", "8")
SHORT = ("--limit-s", "0.4", "--target", "0.5")
SPAN = {"estimate": 1.0, "low": 0.9, "high": 1.1, "n": 9}


def test_comb_shows_groups_and_frozen_axes(shell: Shell) -> None:
    """`comb` names each group with its units, each frozen axis with the reason, and how much can be cut."""
    found = shell(*COMB, "--json").json
    assert found.keys() >= {"groups", "frozen", "prunable_params_fraction"}
    assert {(g["name"], g["units"], g["exact"]) for g in found["groups"]} == {("stem", 24, True), ("body", 32, True)}
    assert [(f["units"], f["reason"]) for f in found["frozen"]] == [(4, "network output")]
    assert 0.9 < found["prunable_params_fraction"] <= 1
    text = shell(*COMB).out
    assert all(
        word in text
        for word in ("24 units  exact", "stem", "body", "network output", "mine.py:", "2 groups and 0 branches")
    )


def combed(share: float, *names: str) -> str:
    """What `comb` prints of groups with these names."""
    groups = [{"name": name, "units": 8, "exact": True, "depth": False} for name in names]
    return comb_text({"groups": groups, "frozen": [], "prunable_params_fraction": share})


@pytest.mark.parametrize(
    ("share", "said"), [(1.0, "100.0%"), (0.99999, "99.9%"), (0.9994, "99.9%"), (0.5004, "50.0%"), (0.0, "0.0%")]
)
def test_all_can_be_cut_only_where_all_can(share: float, said: str) -> None:
    """No rounding makes all of nearly all, in the text, in the proof's and in the drawing; one side is enough."""
    assert f"branches that can go whole; {said} of the parameters can be cut, along at least one" in combed(share, "a")
    assert said == portion(share)
    assert write.portion(share) == {"100.0%": "100 %", "0.0%": "0 %"}.get(said, said.replace("%", " %"))


def test_comb_says_what_its_words_mean() -> None:
    """`exact` always; a number behind a name where there is one, which a branch's is not."""
    assert combed(0.5, "a", "b:depth").count("exact: cutting units is the same as ignoring them") == 1
    assert "NAME:2" not in combed(0.5, "a", "b:depth") and "NAME:2 and on" in combed(0.5, "a", "a:4")


@pytest.mark.parametrize(
    ("more", "said", "unsaid"),
    [
        ({}, "the interval may not hold at another time", "verdict"),
        ({"verdict": "PASS", "budget_ms": 2.0}, "the interval and the verdict may not hold", "ratio"),
        ({"speedup": SPAN, "outcome": "faster", "macs_ratio": None}, "their ratio does", "verdict"),
        ({"speedup": SPAN, "outcome": "faster", "macs_ratio": None, "paired": False}, "interval may not", "does, for"),
    ],
)
def test_an_unsteady_measurement_says_what_still_holds(more: dict[str, Any], said: str, unsaid: str) -> None:
    """What a trend does to the interval, the verdict and a paired ratio, and what to do about it."""
    found = {"quantile": 0.5, "latency_ms": SPAN, "stop": "x", **more}
    (line,) = [line for line in bench_text({**found, "steady": False}).splitlines() if "not steady" in line]
    assert said in line and unsaid not in line
    assert "speed-up" not in line, "that word stands beside the MACs' ratio only"
    assert "measure again, longer (--limit-s)" in bench_text({**found, "steady": False})
    assert "not steady" not in bench_text({**found, "steady": True})


def test_profile_measures_once_and_finds_it_again(shell: Shell) -> None:
    """`profile` says how well its table predicts; asked again it measures nothing and says the same."""
    words = (*PROFILE, "--profiles", "tables")
    found = shell(*words, "--json").json
    errors = ("holdout_median_error", "holdout_p90_error", "isolated_median_error")
    assert found.keys() >= {"samples", "regions", "seconds", *errors}
    assert found["samples"] >= 8 and found["regions"] >= 3 and all(found[k] >= 0 for k in errors)
    assert (shell.folder / found["table"] / "table.json").is_file()
    log = Path(shell.folder / found["table"] / "samples.jsonl").read_bytes()
    again = shell(*words, "--json").json  # its seconds hold what came before the table, which takes its time each time
    assert found["reused"] is False and again == {**found, "reused": True, "seconds": again["seconds"]}
    assert Path(shell.folder / found["table"] / "samples.jsonl").read_bytes() == log
    told = shell(*words).out
    assert f"{found['regions']} regions, {found['samples']} networks" in told and "measured before" in told
    fresh = shell(*words, "--fresh", "--json").json
    assert fresh["reused"] is False and fresh["table"] == found["table"]
    assert Path(shell.folder / found["table"] / "samples.jsonl").read_bytes() != log


def test_an_interrupted_profile_says_that_it_is_kept_and_what_goes_on(shell: Shell) -> None:
    """That very command measures the rest, what was measured is not measured again."""
    call = shell.start(*PROFILE, "--fresh", "--profiles", "cut-short")
    logs = shell.folder / "cut-short"
    call.wait_until(lambda: any(log.read_text().count("\n") > 2 for log in logs.glob("**/*.jsonl")))
    call.send(signal.SIGINT)
    done = call.done()
    assert 130 == done.code and "what was measured is kept" in done.err and "Traceback" not in done.err
    (log,) = logs.glob("**/samples.jsonl")
    kept = log.read_bytes()
    command = shlex.split(done.err.strip().splitlines()[-1])
    assert ["cpd-edge", *PROFILE, "--profiles", "cut-short"] == command
    assert 0 == shell(*command[1:]).code
    assert log.read_bytes().startswith(kept[: kept.rindex(b"\n")])


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_tables_are_handed_on(ending: str, shell: Shell) -> None:
    """`tables export` and `import` carry every table to another store; what is there already is not doubled."""
    shell(*PROFILE, "--profiles", "given")
    listed = shell("tables", "list", "--profiles", "given", "--json").json["tables"]
    assert [t["samples"] for t in listed] == [12] and listed[0]["environment"]["runtime"] == "onnxruntime"
    sent = shell("tables", "export", f"given.{ending}", "--profiles", "given", "--json").json
    assert sent == {"file": f"given.{ending}", "tables": 1, "rows": 12 * listed[0]["regions"]}
    for new in (12, 0):
        taken = shell("tables", "import", f"given.{ending}", "--profiles", f"taken-{ending}", "--json").json
        assert taken == {**sent, "new_samples": new}
    [there] = shell("tables", "list", "--profiles", f"taken-{ending}", "--json").json["tables"]
    assert {**there, "folder": ""} == {**listed[0], "folder": ""}
    assert shell(*PROFILE, "--profiles", f"taken-{ending}", "--json").json["reused"] is True


def test_no_table_is_exported_as_such(shell: Shell) -> None:
    """A filter that nothing passes says where it looked, and writes no file."""
    done = shell("tables", "export", "none.csv", "--device", "no such board", "--profiles", "given")
    assert done.code == 2 and "no such table under given" in done.err and "cpd-edge tables list" in done.err
    assert not (shell.folder / "none.csv").exists()


def test_solve_answers_for_other_budgets(classified: tuple[Run, Done], shell: Shell) -> None:
    """`solve RUN` certifies a plan for the run's budget or another: a tighter one keeps less and loses more."""
    loose, tight = (shell("solve", "classified", "--speedup", x, "--json").json for x in ("1.2", "1.6"))
    for plan in (loose, tight):
        assert plan["predicted_ms"] <= plan["limit_ms"] * (1 + 1e-9)
        assert plan["bound"] <= plan["objective"] * (1 + 1e-9) and plan["gap"] <= 1e-3
        assert all(1 <= now <= was for was, now in plan["widths"].values())
    assert tight["limit_ms"] < loose["limit_ms"] and tight["objective"] >= loose["objective"]
    assert tight["macs_ratio"] >= loose["macs_ratio"] >= 1
    own = shell("solve", "classified")
    assert own.code == 0 and "x fewer MACs" in own.out and "stem" in own.out


def test_solve_of_a_budget_below_the_floor_names_it(classified: tuple[Run, Done], shell: Shell) -> None:
    """What no plan meets exits 1 and names the floor and the groups."""
    done = shell("solve", "classified", "--speedup", "1000")
    assert done.code == 1 and "the fastest is predicted at" in done.err and "groups" in done.err and "body" in done.err


@pytest.mark.parametrize(
    ("budget", "code", "verdict"),
    [
        (("--budget-ms", "1000"), 0, "PASS"),
        (("--budget-ms", "0.000001"), 1, "FAIL"),
        (("--budget-ms", "1000", "--quantile", "0.999999"), 3, "INCONCLUSIVE"),  # more samples than 0.4 s holds
        ((), 0, None),
    ],
)
def test_bench_exits_with_its_verdict(
    classified: tuple[Run, Done], shell: Shell, budget: tuple[str, ...], code: int, verdict: str | None
) -> None:
    """`bench` exits 0 inside the budget, 1 outside, 3 where the samples do not say; 0 without a budget."""
    done = shell("bench", "classified/pruned.onnx", *SHORT, *budget, "--json")
    assert (done.code, done.json.get("verdict")) == (code, verdict)


def test_bench_compares_and_keeps_raw_samples(classified: tuple[Run, Done], shell: Shell) -> None:
    """`--against` gives the paired ratio with the MACs ratio beside it; `--out` keeps every sample."""
    words = ("bench", "classified/pruned.onnx", "--against", "classified/dense.onnx", *SHORT)
    found = shell(*words, "--out", "raw.json", "--json").json
    assert found["speedup"]["low"] <= found["speedup"]["estimate"] <= found["speedup"]["high"]
    assert found["macs_ratio"] == pytest.approx(classified[0].record["macs_ratio"], rel=1e-3)
    assert found["outcome"] in ("faster", "slower", "equivalent", "inconclusive")
    raw = measurement_from(json.loads((shell.folder / "raw.json").read_text()))
    assert len(raw.samples_ns) == found["latency_ms"]["n"] and raw.environment == found["environment"]
    assert named_beside_macs(shell(*words).out)


def test_a_ratio_without_macs_is_said_to_be_unknown() -> None:
    """An engine without convolutions or matrices has no MACs ratio, and the text says so."""
    span = {"estimate": 1.0, "low": 0.9, "high": 1.1, "n": 9}
    found = {"quantile": 0.5, "latency_ms": span, "stop": "x", "speedup": span, "outcome": "equivalent"}
    assert "MACs unknown" in bench_text({**found, "macs_ratio": None})


@pytest.mark.parametrize("trained", [(), ("--train",)])
def test_a_pattern_that_protects_nothing_is_refused_before_anything_is_timed(
    trained: tuple[str, ...], shell: Shell
) -> None:
    """And before the network is trained."""
    words = (*PRUNE, "--speedup", "1.3", *QUICK, "--protect", "stme", *trained, "--out", f"typo{len(trained)}")
    done = shell(*words)
    assert done.code == 2 and "--protect 'stme' names no group and no tensor" in done.err
    assert not {"train", "deploy", "dense latency", "profile"} & set(Run(shell.folder / words[-1]).record["seconds"])


def test_a_larger_engine_has_more_macs() -> None:
    """Beside a smaller one it is said to have more of them, and not a part fewer."""
    span = {"estimate": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    found = {"quantile": 0.5, "latency_ms": span, "stop": "x", "speedup": span, "outcome": "slower"}
    assert "4.00 x more MACs" in bench_text({**found, "macs_ratio": 0.25})
    assert "4.00 x fewer MACs" in bench_text({**found, "macs_ratio": 4.0})


def test_a_bench_says_what_ran_the_engine(classified: tuple[Run, Done], shell: Shell) -> None:
    """Device, runtime, precision and threads: a run's engine may have been made for another runtime."""
    text = shell("bench", "classified/pruned.onnx", *SHORT).out
    assert "onnxruntime" in text and "fp32, threads 1" in text


def test_no_speedup_is_printed_without_its_macs_ratio(classified: tuple[Run, Done], shell: Shell) -> None:
    """Every line that names a speed-up names the MACs ratio too."""
    text = shell(*PRUNE, "--speedup", "1.3", *QUICK, "--out", "classified", "--resume").out
    assert f"{classified[0].record['macs_ratio']:.2f} x fewer MACs" in text
    assert named_beside_macs(text)


def named_beside_macs(text: str) -> bool:
    """Whether there are lines with a speed-up, and each has the MACs too."""
    lines = [line for line in text.splitlines() if "speed-up" in line]
    return bool(lines) and all("MACs" in line for line in lines)


def test_report_is_written_again_from_files(classified: tuple[Run, Done], shell: Shell) -> None:
    """`report RUN` writes the same page from the run's files alone."""
    path = classified[0] / "report.html"
    before = path.read_text()
    path.unlink()
    assert shell("report", "classified").out.strip() == "classified/report.html"
    assert path.read_text() == before
    assert shell("report", "classified", "--json").json == {"report": "classified/report.html"}


def test_doctor_is_readable(shell: Shell) -> None:
    """The doctor says what is installed, what is not and how to get it, and what differences the machine can show."""
    found = shell("doctor", "--json").json
    lines = doctor_text(found).splitlines()
    assert not any(mark in line for line in lines for mark in "{}")
    assert max(map(len, lines)) <= 120
    heads = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert heads == ["python", "device", "state", "runtimes", "packages", "noise", "warnings"]
    assert any("onnxruntime" in line and found["runtimes"]["onnxruntime"]["version"] in line for line in lines)
    assert any("against itself is" in line for line in lines)
    assert any("outliers (over 3 interquartile ranges off; they count)" in line for line in lines)


def test_doctor_says_what_a_missing_package_would_be_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """What only some things need, with them and the line that installs it; nothing that the package never asks for."""
    doctor: Any = import_module("cpd_edge.measure.doctor")  # the package has a function of that name
    there = doctor.installed
    gone = ("timm", "pyarrow", "scipy")
    monkeypatch.setattr(doctor, "installed", lambda name: None if name in gone else there(name))
    monkeypatch.setattr(doctor, "_against_itself", lambda *_: (None, []))
    found = doctor.doctor()
    assert found["missing"].keys() == {*gone, *(n for n in doctor.PACKAGES if there(n) is None)}
    text = doctor_text(found)
    for said in (
        "timm             not installed: only for models timm:NAME: pip install 'cpd-edge[zoo]'",
        "pyarrow          not installed: only for tables as Parquet files: pip install 'cpd-edge[parquet]'",
        "scipy            not installed: cpd-edge needs it: pip install scipy",
    ):
        assert said in text
    asked_for = {Requirement(line).name for line in requires("cpd-edge") or ()}
    assert set(doctor.PACKAGES) <= asked_for


def test_doctor_without_a_runtime_gives_the_pip_line(shell: Shell) -> None:
    """Where ONNX Runtime is missing the doctor still answers, with the line that installs it."""
    done = shell("doctor", missing=("onnxruntime", "openvino"))
    assert done.code == 0 and "pip install 'cpd-edge[cpu]'" in done.out and "not measured" in done.out


@pytest.mark.parametrize(
    "words", [("profile", "whole.py:net", "--input", "1,16,16"), ("prune", "whole.py:net", "--train")]
)
def test_a_network_that_has_nothing_to_cut_is_refused_before_any_work(shell: Shell, words: tuple[str, ...]) -> None:
    """A convolution between the image and the output alone has no group; nothing is timed and nothing is trained."""
    net = "nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())"
    (shell.folder / "whole.py").write_text(f"from torch import nn\n\ndef net():\n    return {net}\n")
    data = ("--data", "mine.py:make_data", "--speedup", "2", "--out", "run") if words[0] == "prune" else ()
    done = shell(*words, *data)
    assert done.code == 2 and "nothing of this network can be cut" in done.err and "cpd-edge comb" in done.err
    assert "train" not in done.err.replace("--train", "")


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("measures", [False, True])
def test_a_table_that_another_process_made_meanwhile_is_reused(
    there: bool, measures: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Who found none, then waited for who measured it, has measured nothing, as who found it at once."""
    table = Mock(samples=(), known_regions=0, seconds=0.0, regions=(), key={}, report=dict)

    def measured_table(*_: object, starting: Any, **__: object) -> Any:
        starting() if measures else None
        return table

    monkeypatch.setattr(verbs, "_model", Mock())
    monkeypatch.setattr(verbs, "Subject", Mock())
    monkeypatch.setattr(verbs, "table_folder", Mock(return_value=tmp_path))
    monkeypatch.setattr(verbs, "reusable", Mock(return_value=table if there else None))
    monkeypatch.setattr(verbs, "measured_table", measured_table)
    here = {"device": "local", "threads": 1, "samples": 8, "seed": 0, "profiles": None, "progress": Mock()}
    assert verbs.profile("net", (1, 8, 8), None, None, **here)["reused"] is (there or not measures)  # type: ignore[arg-type]
