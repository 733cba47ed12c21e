"""What comb found is put to the proof: good cuts pass, and a wrong rule is found and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cpd_edge.cli.verify_text import verify_text
from cpd_edge.comb import comb, relate
from cpd_edge.cut import surgery
from cpd_edge.errors import UsageError
from cpd_edge.intake.models import RandomWeightsWarning
from cpd_edge.intake.zoo import resnet8
from cpd_edge.layout import Sum
from cpd_edge.network import trace
from cpd_edge.pipeline.enliven import enliven, in_double
from cpd_edge.pipeline.lockstep import Entangled, Lockstep, difference
from cpd_edge.pipeline.proof import Proof, apart, regions
from cpd_edge.pipeline.verbs import comb as comb_by_name
from cpd_edge.pipeline.verbs import proving
from cpd_edge.pipeline.verify import Verification, prunable_fraction, verify

SHAPE = (3, 16, 16)
KEYS = {
    "model", "seconds", "groups", "units", "exact_groups", "frozen_axes", "prunable_params_fraction", "max_error",
    "onnx_max_error", "verified", "rows",
}  # fmt: skip


class Attention(nn.Module):
    """Packed queries, keys and values, two heads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, width = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 2, width // 2).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1))


class TinyViT(nn.Module):
    """Patches, a class token, two blocks, a head that starts at zero, and branches that start at almost nothing."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 8, 8)
        self.token, self.place = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(torch.zeros(1, 5, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.attention = nn.ModuleList(Attention(width) for _ in range(2))
        self.mlp = nn.ModuleList(nn.Sequential(nn.Linear(width, 20), nn.GELU(), nn.Linear(20, width)) for _ in range(2))
        self.scale = nn.Parameter(torch.full((2, width), 1e-6))
        self.head = nn.Linear(width, 5)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        for i in range(2):
            x = x + self.attention[i](self.norms[2 * i](x))
            x = x + self.scale[i] * self.mlp[i](self.norms[2 * i + 1](x))
        return self.head(x[:, 0])


class Chain(nn.Module):
    """Convolutions and batch norms, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3), nn.Conv2d(8, 4, 3)
        self.n = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.n(self.b(F.relu(self.a(x))))))


@pytest.fixture(scope="module")
def proven() -> dict[str, Verification]:
    torch.manual_seed(0)
    return {"resnet8": verify(resnet8(), SHAPE), "vit": verify(TinyViT(), SHAPE)}


@pytest.mark.parametrize("name", ["resnet8", "vit"])
def test_a_good_network_is_verified(proven: dict[str, Verification], name: str) -> None:
    """Every group, every plan and the ONNX file agree; every removal is felt."""
    found = proven[name]
    assert found.verified, verify_text(found.to_json(name))
    assert found.max_error < 1e-12
    assert found.onnx_max_error is not None and 0 < found.onnx_max_error < 1e-5
    assert min(row.effect for row in found.rows) > 1e-3
    assert {row.group for row in found.rows} == set(found.groups.widths)


def test_what_a_statistic_runs_over_is_run_and_not_judged(proven: dict[str, Verification]) -> None:
    """The embedding of a transformer is cut and runs; how far it is from the mask is said, and does not count."""
    (embedding,) = (row for row in proven["vit"].rows if not row.exact)
    assert embedding.outcome == "runs"
    assert embedding.error > 1e-3 > proven["vit"].max_error
    assert [plan.outcome for plan in proven["vit"].plans if not plan.judged] == ["runs", "runs"]


@pytest.mark.parametrize("name", ["resnet8", "vit"])
def test_the_json_object_is_whole_and_consistent(proven: dict[str, Verification], name: str) -> None:
    """All promised keys are there, the counts are those of the rows, and it is JSON."""
    found = json.loads(json.dumps(proven[name].to_json(name), allow_nan=False))
    assert set() == KEYS - set(found)
    assert found["groups"] == len(found["rows"])
    assert found["units"] == sum(row["units"] for row in found["rows"])
    assert found["exact_groups"] == sum(row["exact"] for row in found["rows"])
    assert {"trace", "comb", "verify"} <= set(found["seconds"])
    assert 0.9 < found["prunable_params_fraction"] < 1
    assert found["params_half"] < 0.5 * found["params"]
    assert found["verified"] is True


def test_the_text_says_what_was_proven(proven: dict[str, Verification]) -> None:
    """The verdict, how many groups are equal, and each plan stand in the text."""
    text = verify_text(proven["vit"].to_json("tiny"))
    assert text.startswith("tiny: verified\n")
    exact = sum(row.exact for row in proven["vit"].rows)
    assert f"{exact} of {exact} groups, cut in half, equal the mask" in text
    assert all(plan.plan in text for plan in proven["vit"].plans)


def test_prunable_elements_are_counted_by_hand() -> None:
    """All elements but those that only outputs and inputs index: here the last bias."""
    total = sum(p.numel() for p in Chain().parameters())
    assert prunable_fraction(comb(Chain(), SHAPE)) == pytest.approx(1 - 4 / total)


def test_the_model_is_not_changed() -> None:
    """What is drawn and calibrated is a clone."""
    model = resnet8().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    verify(model, SHAPE, plans=0, onnx=False)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_seed_gives_the_same_proof() -> None:
    """Kept units, widths and parameters come from the seed."""
    one, two, other = (verify(Chain(), SHAPE, onnx=False, seed=seed).plans for seed in (1, 1, 2))
    torch.manual_seed(0)
    assert [p.groups for p in one] == [p.groups for p in two]
    assert [p.effect for p in one] != [p.effect for p in other]


def uncoupled(r: Any, n: Any) -> Any:
    """Mistake: batch norm does not say that its parameters follow the channels."""
    return r.dims(n.args[0])


def reversed_concat(r: Any, n: Any) -> Any:
    """Mistake: concat lays its parts in the wrong order."""
    parts = [r.dims(t) for t in n.args[0]]
    return (*parts[0][:1], Sum(tuple(p[1] for p in reversed(parts))), *parts[0][2:])


class Side(nn.Module):
    """Two convolutions beside each other, read by a third; behind them one more that nothing is wrong with."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.join = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 1), nn.Conv2d(12, 7, 3)
        self.tail = nn.Conv2d(7, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(F.relu(self.join(F.relu(torch.cat([self.one(x), self.two(x)], 1)))))


@pytest.mark.parametrize(
    ("model", "operation", "mistake", "guilty", "innocent"),
    [
        (Side, "cat", reversed_concat, {"one", "two"}, {"join"}),
        (Chain, "batch_norm", uncoupled, {"b", "n"}, {"a"}),
    ],
)
def test_a_wrong_rule_is_found_and_the_group_is_named(
    model: type[nn.Module],
    operation: str,
    mistake: Callable[[Any, Any], Any],
    guilty: set[str],
    innocent: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A rule made wrong on purpose: what it concerns differs or fails, what it does not is proven all the same."""
    assert verify(model(), SHAPE, plans=1, onnx=False).verified
    monkeypatch.setitem(relate.RULES, operation, mistake)
    found = verify(model(), SHAPE, plans=1, onnx=False)
    outcome = {row.group: row.outcome for row in found.rows}
    assert not found.verified
    assert {outcome[name] for name in guilty} <= {"differs", "fails"}
    assert {outcome[name] for name in innocent} == {"equal"}
    assert all(row.cause for row in found.rows if row.group in guilty)
    assert guilty & set(found.plans[0].suspects)


def test_a_cut_that_forgets_a_reader_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers, not shapes, find a cut that keeps other units than were asked for."""
    right = surgery._sliced
    monkeypatch.setattr(surgery, "_sliced", lambda t, dims, keep: right(t.flip(1) if t.dim() == 4 else t, dims, keep))
    found = verify(Side(), SHAPE, plans=1, onnx=False)
    assert {row.outcome for row in found.rows} == {"differs"}
    assert found.max_error > 0.01


def test_a_failing_plan_is_searched_for_the_one_to_blame(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no group failed alone, bisection finds the one whose cut makes the whole network differ."""
    made = Proof(in_double(comb(enliven(trace(Chain(), SHAPE)), SHAPE)), 0, lambda fraction, text: None)
    right = surgery._sliced

    def wrong(tensor: Tensor, dims: Any, keep: Any) -> Tensor:
        return right(tensor * (1 + (len(keep.get("b", range(8))) < 8)), dims, keep)

    monkeypatch.setattr(surgery, "_sliced", wrong)
    (plan,) = made.whole_networks(0, ())
    assert (plan.outcome, plan.suspects) == ("differs", ("b",))


def test_a_network_whose_outputs_are_zero_proves_nothing() -> None:
    """Without lively parameters the zero head makes every output zero, and no plan is called good."""
    made = Proof(in_double(comb(trace(TinyViT(), SHAPE), SHAPE)), 0, lambda fraction, text: None)
    assert {(plan.outcome, plan.cause) for plan in made.whole_networks(1, ())} == {
        ("fails", "output: outputs are zero or not finite")
    }


class Deaf(nn.Module):
    """A convolution that is multiplied by nothing, in a way that drawn parameters do not mend."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(0 * self.a(x)) + x[:, :1, 4:, 4:]


def test_a_group_that_nothing_depends_on_is_not_called_proven() -> None:
    """Equal, because masking it changes nothing: unseen, and the network is not verified."""
    found = verify(Deaf(), SHAPE, plans=0, onnx=False)
    assert [(row.group, row.outcome) for row in found.rows] == [("a", "unseen")]
    assert not found.verified


class Writing(nn.Module):
    """Writes into a part of a feature map that a later call reads whole."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y[:, :, :2] += 1.5
        return self.b(y)


def test_what_writes_into_shared_memory_is_proven_by_its_outputs() -> None:
    """Such calls are not run one by one: the whole network is, and the result is the same proof."""
    steps = Lockstep(combed := in_double(comb(Writing(), SHAPE)), combed.network.example(1), 1e-9)
    keep = {"a": np.array([0, 2, 5])}
    with pytest.raises(Entangled):
        steps.compare(surgery.cut(combed, keep), keep)
    found = verify(Writing(), SHAPE, plans=1, onnx=False)
    assert found.verified
    assert [(row.group, row.outcome) for row in found.rows] == [("a", "equal")]


class Narrow(nn.Module):
    """Asks for float32 in the middle, as norms do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).to(torch.float32).exp()
        return self.b(y / torch.ones(6, 1, 1, dtype=torch.float32).add(y.mean((2, 3), keepdim=True)))


def test_double_precision_holds_through_casts() -> None:
    """A call that asks for float32 does not cost the proof its digits."""
    assert verify(Narrow(), SHAPE, plans=1, onnx=False).max_error < 1e-13


def test_groups_of_a_pass_do_not_touch_the_same_call() -> None:
    """Batches are disjoint, hold every group once, and are fewer than the groups."""
    combed = comb(resnet8(), SHAPE)
    where = regions(combed)
    batches = apart(combed.groups.groups, where)
    assert sorted(g.name for batch in batches for g in batch) == sorted(combed.groups.widths)
    assert len(batches) < len(combed.groups.groups)
    for batch in batches:
        assert sum(len(where[g.name]) for g in batch) == len(frozenset().union(*(where[g.name] for g in batch)))


def test_lively_parameters_are_drawn_where_there_are_none() -> None:
    """Zeros and layer scales get values, trained weights stay, and batch norms normalise what they are given."""
    network = trace(TinyViT(), SHAPE)
    lively = enliven(network)
    values = [p.detach() for p in lively.parameters()]
    assert all(float(p.abs().max()) > 1e-3 and float(p.std()) > 0 for p in values)
    assert torch.equal(lively.get_parameter("patch.weight"), network.get_parameter("patch.weight"))
    assert not network.get_parameter("head.weight").any()
    chain = Chain()
    nn.init.constant_(chain.b.bias, 100.0)
    normed = enliven(trace(chain, SHAPE))
    assert normed.get_buffer("n.running_mean").mean() > 50
    assert not normed.training


@pytest.mark.parametrize(
    ("got", "want", "found"),
    [
        (torch.ones(3), torch.ones(3), 0.0),
        (torch.tensor([1.0, 3.0]), torch.tensor([1.0, 4.0]), 0.25),
        (torch.ones(3), torch.ones(4), float("inf")),
        (torch.tensor([float("nan")]), torch.ones(1), float("inf")),
        (torch.ones(2), torch.zeros(2), float("inf")),
        (torch.tensor([True, False]), torch.tensor([True, True]), 1.0),
        (3, 3, 0.0),
        (3, 4, float("inf")),
    ],
)
def test_differences_are_relative_to_the_largest_element_wanted(got: object, want: object, found: float) -> None:
    """0 for equal values, inf for what cannot be compared."""
    assert difference(got, want) == found


def test_progress_is_told() -> None:
    """Each stage begins at 0, ends at 1, and names what is being tried."""
    told: list[tuple[str, float, str]] = []
    verify(Chain(), SHAPE, plans=1, progress=lambda *said: told.append(said))
    for stage in ("trace", "comb", "verify", "onnx"):
        fractions = [fraction for name, fraction, _ in told if name == stage]
        assert (fractions[0], fractions[-1]) == (0.0, 1.0)
        assert fractions == sorted(fractions)
    assert any("whole network" in text for _, _, text in told)


def test_a_proof_may_leave_the_onnx_file_out() -> None:
    """Operators of a user's own need no ONNX translation to be verified."""
    proof = proving((1, 8, 8), plans=0, onnx=False, seed=0, progress=lambda *said: None)
    with pytest.warns(RandomWeightsWarning):
        found = comb_by_name("zoo:resnet8", (1, 8, 8), None, None, proof=proof)
    assert found["verified"] and found["onnx_max_error"] is None and not found["onnx_cause"]


def test_fewer_than_no_plans_are_refused() -> None:
    """Before the model is loaded."""
    with pytest.raises(UsageError, match="plans of -1"):
        proving((1, 8, 8), plans=-1, onnx=False, seed=0, progress=lambda *said: None)
