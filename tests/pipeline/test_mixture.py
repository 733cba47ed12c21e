"""Laws of mixed precision: what is chosen is what is quantised, what it costs and loses is measured, a run resumes."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from cli.shell import Shell
from cli.worlds import PRUNE
from torch import nn

from cpd_edge import store
from cpd_edge.cut import cut
from cpd_edge.deploy.onnx import export_onnx, finish
from cpd_edge.deploy.quantize import is_quantised
from cpd_edge.errors import ModelError, UsageError
from cpd_edge.intake.models import RandomWeightsWarning, load_model
from cpd_edge.intake.sets import user_loaders
from cpd_edge.intake.tasks import Task
from cpd_edge.measure.runners import OnnxRunner
from cpd_edge.pipeline import Request, mixture, profiling, rig, run
from cpd_edge.pipeline.mixture import Mixing, conversion, followers, passages, under_pressure
from cpd_edge.pipeline.sensitivity import sensitivities
from cpd_edge.pipeline.solving import solve
from cpd_edge.pipeline.steps import plan_from_json
from cpd_edge.pipeline.subject import Subject
from cpd_edge.profile import turns
from cpd_edge.solve.ways import Ways
from cpd_edge.types import Budget, Plan


def asked(**settings: object) -> Request:
    return Request(**{"model": "m", "data": "d", "budget": Budget(speedup=2), "precision": "mixed", **settings})  # type: ignore[arg-type]


class Pooled(nn.Module):
    """Convolutions, a pool and a concat between them, a skip, and a mean that no integer kernel computes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.c, self.head = nn.Conv2d(16, 12, 1), nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.max_pool2d(self.stem(x).relu(), 2)
        y = (self.b(self.a(x).relu()) + x).relu()
        return self.head(50 * self.c(torch.cat((y, x), 1)).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def pooled() -> Subject:
    torch.manual_seed(0)
    return Subject.of(Pooled().eval(), (1, 16, 16), precision="mixed")


@pytest.fixture(scope="module")
def resnet() -> Subject:
    with pytest.warns(RandomWeightsWarning):
        model = load_model("zoo:resnet8", None, None, in_channels=1)
    return Subject.of(model, (1, 8, 8), precision="mixed")


def names_of(subject: Subject) -> dict[str, str]:
    """Region by layer; of regions without a weight by operator."""
    return {r.fqn.removesuffix(".weight") or r.op: r.name for r in subject.regions}


def test_what_passes_values_on_follows_the_regions_around_it(pooled: Subject) -> None:
    """A pool and a concat do, a mean does not; values between regions are counted in numbers at any width."""
    at = names_of(pooled)
    ways = Ways(follows=followers(pooled, passages(pooled)))
    assert {at["MaxPool"], at["Concat"]} <= set(ways.follows) and at["ReduceMean"] not in ways.follows
    every = {r.name: "int8" for r in pooled.weighted}
    assert [r.fqn for r in pooled.weighted] == [f"{x}.weight" for x in ("stem", "a", "b", "c", "head")]
    assert ways.of(at["MaxPool"], every) == "int8" and ways.of(at["ReduceMean"], every) == "fp32"
    assert ways.of(at["MaxPool"], {**every, at["stem"]: "fp32"}) == "fp32"
    found = {(p.before, p.after): p.elements for p in passages(pooled)}
    assert found[at["stem"], at["MaxPool"]].at({}) == 8 * 14 * 14
    assert found[at["MaxPool"], at["a"]].at({}) == found[at["MaxPool"], at["b"]].at({}) == 8 * 7 * 7
    (group,) = (g for g, n in pooled.widths.items() if n == 12)
    assert found[at["c"], at["ReduceMean"]].at({group: 5}) == 5 * 7 * 7


def test_the_file_agrees_on_who_follows(pooled: Subject) -> None:
    """Where the ways say that a pool runs in integers, the quantised file has it between integers, and else not."""
    at, ways = names_of(pooled), Ways(follows=followers(pooled, passages(pooled)))
    rng, seen = np.random.default_rng(0), set()
    for _ in range(12):
        choice = {r.name: str(rng.choice(["int8", "fp32"], p=[0.75, 0.25])) for r in pooled.weighted}
        model = onnx.load_from_string(pooled.build_plan({}, choice))
        made = {out: n.op_type for n in model.graph.node for out in n.output}
        (pool,) = (n for n in model.graph.node if n.op_type == "MaxPool")
        integers = made[pool.input[0]] == "DequantizeLinear"
        readers = {n.op_type for n in model.graph.node if pool.output[0] in n.input}
        whole = integers and readers == {"QuantizeLinear"}
        assert whole == (ways.of(at["MaxPool"], choice) == "int8"), choice
        seen.add(whole)
    assert seen == {True, False}


@pytest.mark.parametrize("network", ["pooled", "resnet"])
def test_the_runtime_computes_in_integers_what_was_chosen_and_no_more(
    network: str, request: pytest.FixtureRequest
) -> None:
    """Also where a float convolution lies between two integer ones, which ONNX Runtime would not leave so."""
    net: Subject = request.getfixturevalue(network)
    passing, rng, odd = passages(net), np.random.default_rng(0), 0
    ways = Ways(follows=followers(net, passing), pressed=under_pressure(net, passing))
    for _ in range(16):
        choice = {r.name: str(rng.choice(["int8", "fp32"])) for r in net.weighted}
        with contextlib.closing(OnnxRunner(net.build_plan({}, choice))) as runner:
            seen = Counter(k.op for k in runner.kernels(1))
        integers = seen["QLinearConv"] + seen["QGemm"] + seen["QLinearMatMul"]
        wanted, pressed = sum(way == "int8" for way in choice.values()), any(ways.impossible(n, choice) for n in choice)
        assert pressed or integers == wanted, choice
        odd += pressed and integers > wanted
    assert odd or network == "pooled"


def test_all_or_nothing_are_the_pure_builds(pooled: Subject) -> None:
    """With every region in INT8 the file is the INT8 one, with none the fp32 one."""
    half = {name: np.arange(max(1, n // 2)) for name, n in pooled.widths.items()}
    every = {r.name: "int8" for r in pooled.weighted}
    assert pooled.build_plan(half, every) == pooled.all_in("int8").build_plan(half)
    none = dict.fromkeys(every, "fp32")
    assert pooled.build_plan(half, none) == pooled.build_plan(half) == pooled.all_in("fp32").build_plan(half)


def test_regions_are_told_in_every_build_also_where_a_branch_has_gone(resnet: Subject) -> None:
    """By the parameters that their nodes hold, in an export of the cut network, which numbers nodes anew."""
    branch = next(g.name for g in resnet.combed.groups.groups if g.depth)
    keep = {**{g: np.arange(n) for g, n in resnet.widths.items()}, branch: np.zeros(0, np.int64)}
    widths = {name: len(units) for name, units in keep.items()}
    left = [r for r in resnet.weighted if branch not in r.within]
    assert 0 < len(left) < len(resnet.weighted)
    model = finish(export_onnx(cut(resnet.combed, keep)).model)
    reads = {n.name: n.input[1] for n in model.graph.node if len(n.input) > 1}
    for region in left:
        (node,) = resnet.quantised(model, widths, {region.name: "int8"}) or ()
        assert reads[node] == region.fqn
    gone = next(r for r in resnet.weighted if branch in r.within)
    assert not resnet.quantised(model, widths, {gone.name: "int8"})
    with pytest.raises(ModelError, match="10 weighted regions are left, its file has 8"):
        resnet.quantised(model, resnet.widths, {})


def test_what_conversions_cost_is_recovered() -> None:
    """From networks whose tables are a little off; and where mixtures are faster than their regions, it is nothing."""
    rng, rows = np.random.default_rng(0), list[dict[str, float]]()
    for _ in range(30):
        values, elements, tables = int(rng.integers(2, 20)), float(rng.uniform(1e4, 2e5)), float(rng.uniform(1, 2))
        true = tables + 0.02 * values + 2e-6 * elements
        rows.append(
            {"values": values, "elements": elements, "tables_ms": tables, "measured_ms": true * rng.normal(1, 0.003)}
        )
    assert conversion(rows) == pytest.approx((0.02, 2e-6), rel=0.1)
    assert conversion([{**row, "measured_ms": 0.9 * row["tables_ms"]} for row in rows]) == (0.0, 0.0)


class Fragile(nn.Module):
    """Three alike convolutions; one channel that nobody reads spans a range that leaves `b` few steps for the rest."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.a, self.b, self.c = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.head = nn.Linear(8, 4)
        with torch.no_grad():
            self.a.weight[0] *= 300
            self.b.weight[:, 0] = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.c(self.b(self.a(self.stem(x).relu()).relu()).relu()).relu()
        return self.head(20 * x.mean((2, 3)))


def drawn_task(size: int = 12) -> Task:
    drawn = torch.Generator().manual_seed(0)
    images, targets = torch.randn(64, 1, size, size, generator=drawn), torch.arange(64) % 4
    batches = list(zip(images.split(16), targets.split(16), strict=True))
    return Task(user_loaders("drawn", (batches, batches)))


def test_a_fragile_layer_loses_most() -> None:
    """Quantising what reads or makes the odd range loses far more than the layer that does neither."""
    net, task = Subject.of(Fragile().eval(), (1, 12, 12), precision="mixed"), drawn_task()
    at, lost = names_of(net), sensitivities(net, net.network, net.widths, task, asked())["int8"]
    assert set(lost) == {r.name for r in net.weighted} and min(lost.values()) >= 0
    assert min(lost[at["a"]], lost[at["b"]]) > 20 * max(lost[at[x]] for x in ("stem", "c"))


def test_a_loss_is_the_divergence_of_the_file_in_which_one_region_is_quantised(pooled: Subject) -> None:
    """At the temperature of the scores, whose unit it has; under `taylor` it is the rise of the task's own loss."""
    task, region = drawn_task(16), pooled.weighted[1]
    images, targets = (torch.cat(parts) for parts in zip(*task.train_loader(32, 0), strict=True))
    plain, quantiser = pooled.dense_onnx, pooled.quantiser
    assert quantiser is not None
    nodes = pooled.quantised(plain, pooled.widths, {region.name: "int8"})
    file = quantiser.recalibrated(plain, images.numpy()).ship(plain, nodes)
    outputs, reference = (
        torch.from_numpy(OnnxRunner(m.SerializeToString()).outputs(images.numpy())) for m in (file, plain)
    )
    for score, temperature in (("fisher", 2.0), ("fisher", 1.0), ("taylor", 1.0)):
        request = asked(score=score, temperature=temperature)
        got = sensitivities(pooled, pooled.network, pooled.widths, task, request)["int8"][region.name]
        if score == "fisher":
            wanted = float(task.divergence(outputs, reference, targets, temperature))
        else:
            wanted = max(float(task.loss(outputs, targets) - task.loss(reference, targets)), 0.0)
        assert got == pytest.approx(wanted, rel=1e-3, abs=1e-9)
    assert sensitivities(pooled.all_in("int8"), pooled.network, pooled.widths, task, asked()) == {}


@pytest.fixture(scope="module")
def folder(shell: Shell, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run in mixed precision of which all widths are protected, interrupted in its loop and resumed."""
    root = tmp_path_factory.mktemp("mixed")
    mine = shell.folder / "mine.py"
    request = asked(
        model=f"{mine}:make_net", data=f"{mine}:make_data", budget=Budget(speedup=1.1), protect=("*",), steps=1,
        epochs=0.5, samples=8, rounds=2, profiles=str(root / "tables"),
    )  # fmt: skip

    def dying(stage: str, fraction: float, text: str) -> None:
        if stage == "distil":
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        for name in ("QUICK", "FULL"):
            patch.setattr(rig, name, replace(getattr(rig, name), limit_s=2.0))
        patch.setattr(mixture, "BRIEF", replace(mixture.BRIEF, limit_s=0.3, warmup_s=0.05, min_blocks=3))
        patch.setattr(mixture, "DRAWN", 3)
        patch.setattr(profiling, "ISOLATED_S", 0.0)
        patch.setattr(turns, "HELD_OUT_S", turns.TURNS_S)
        with pytest.raises(KeyboardInterrupt):
            run(request, root / "run", progress=dying)
        kept = {name: (root / "run" / name).read_bytes() for name in ("mixing.json", "table-int8.json", "table.json")}
        run(request, root / "run", resume=True)
    assert kept == {name: (root / "run" / name).read_bytes() for name in kept}
    yield root / "run"


def saved_plan(folder: Path) -> Plan:
    return plan_from_json({k: v for k, v in store.read_json(folder / "plan.json").items() if k != "format"})


def test_a_run_ends_in_a_verdict_on_an_engine_of_both_precisions(folder: Path) -> None:
    """The body, which integers make faster, is in INT8, and the stem, which they make slower, is not."""
    record, plan = store.Run(folder).record, saved_plan(folder)
    assert record["verdict"] in ("PASS", "FAIL", "INCONCLUSIVE")
    assert record["mixture"] == {"int8": ["body"], "of": 3}
    assert record["environment"]["layers"] == "int8 1, fp32 2"
    assert {"precisions as chosen": True}.items() <= {c["name"]: c["passed"] for c in record["checks"]}.items()
    assert sorted(plan.variants.values()) == ["fp32", "fp32", "int8"] and plan.variants == record["plan"]["variants"]
    assert [row["precision"] for row in record["layers"] if row["op"] != "ReduceMean"] == ["fp32", "int8", "fp32"]
    assert record["parity"]["tolerance"] == 0.25 and "fp32" not in record
    assert record["speedup"]["estimate"] > 1.05


def test_a_plan_says_how_regions_run_and_reads_back(folder: Path, tmp_path: Path) -> None:
    """`load(save(x)) == x`; a plan of a version that knew no such thing reads as one without a choice."""
    plan = saved_plan(folder)
    store.write_json(tmp_path / "plan.json", plan)
    data = store.read_json(tmp_path / "plan.json")
    assert plan_from_json(data) == plan
    del data["variants"]
    assert plan_from_json(data) == replace(plan, variants={})


def test_the_engine_holds_the_chosen_region_in_integers_and_no_other(folder: Path) -> None:
    """The dense engine is fp32, and so is what the mixed one is made of; it names its precisions itself."""
    for name, quantised in (("dense", False), ("pruned-fp32", False), ("pruned", True)):
        assert is_quantised(onnx.load(folder / f"{name}.onnx")) == quantised
    assert not (folder / "dense-fp32.onnx").exists()
    model = onnx.load(folder / "pruned.onnx")
    floats = {i.name for i in model.graph.initializer if i.data_type == onnx.TensorProto.FLOAT}
    assert {"stem.weight", "head.weight"} <= floats and "body.weight" not in floats
    said = {p.key: p.value for p in model.metadata_props}["cpd_edge.precisions"]
    assert json.loads(said) == saved_plan(folder).variants


def test_each_precision_has_a_table_of_its_own(folder: Path) -> None:
    """Under its own key, in the store and in the run."""
    stored = {json.loads(p.read_text())["key"]["precision"] for p in folder.parent.glob("tables/*/*/*/table.json")}
    own = [store.read_json(folder / name)["key"]["precision"] for name in ("table.json", "table-int8.json")]
    assert (stored, own) == ({"fp32", "int8"}, ["fp32", "int8"])


def test_the_report_names_the_precision_of_regions(folder: Path) -> None:
    """In a line, and beside each operator."""
    for name in ("report.html", "report.md"):
        text = (folder / name).read_text()
        assert "int8 in 1 of 3 regions: body" in text and "Conv, int8" in text and "Conv, fp32" in text


def test_a_mixed_run_is_solved_again(folder: Path) -> None:
    """For a budget that its own one does not need, fewer regions are in INT8; other tables are refused."""
    found = solve(folder, Budget(speedup=1.0))
    assert found["mixture"] == {"int8": [], "of": 3} and found["objective"] == 0
    assert solve(folder, None)["mixture"]["int8"] == ["body"]
    with pytest.raises(UsageError, match="a table is of one precision"):
        solve(folder, None, also=["there=12"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((*PRUNE, "--speedup", "2", "--runtime", "tensorrt"), "TensorRT takes the faster of both by itself"),
        ((*PRUNE, "--speedup", "2", "--runtime", "onnxruntime-cuda"), "--precision mixed is not for ONNX Runtime with"),
        ((*PRUNE, "--speedup", "2", "--score", "magnitude"), "a magnitude is no loss"),
        ((*PRUNE, "--speedup", "2", "--max-size-mb", "1"), "bytes are counted for fp32 only"),
        (("profile", "mine.py:make_net", "--input", "1,48,48"), "a table takes one precision at a time, not mixed"),
        (("compare-strategies", "zoo:resnet8", "--speedup", "2"), "give --score fisher or taylor"),
    ],
)
def test_what_cannot_be_mixed_is_refused_at_the_door(shell: Shell, words: tuple[str, ...], said: str) -> None:
    """Before any work, with what to type."""
    done = shell(*words, "--precision", "mixed", *(["--out", "refused"] if words[0] == "prune" else []))
    assert (2, False) == (done.code, (shell.folder / "refused").exists())
    assert said in done.err and "--" in done.err


@pytest.mark.parametrize("same", [True, False])
def test_what_mixing_costs_is_measured_again_where_a_table_is_another(
    pooled: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    """A run's mixing.json holds for the two tables that it was measured between, and for no others."""
    tables = {precision: SimpleNamespace(key={"precision": precision, "driver": "1"}) for precision in ("fp32", "int8")}
    between = [{"precision": "fp32", "driver": "1"}, {"precision": "int8", "driver": "1" if same else "2"}]
    run, request = store.Run.create(tmp_path, {}), asked()
    store.write_json(run / profiling.MIXING, Mixing(1.0, 0.5, 0.0, (), tuple(between)))
    fresh = Mixing(1.0, 0.25, 0.0, (), tuple(t.key for t in tables.values()))
    monkeypatch.setattr(profiling.Tables, "table_of", lambda self, subject, file: tables[subject.precision])
    monkeypatch.setattr(profiling, "mixing", lambda *_: fresh)
    made = profiling.Tables(request, run, lambda name: contextlib.nullcontext(lambda *_: None))
    found = made.ways(pooled, tables["fp32"])  # type: ignore[arg-type]
    assert found.each_ms == (0.5 if same else 0.25)
    assert store.read_json(run / profiling.MIXING)["each_ms"] == found.each_ms
