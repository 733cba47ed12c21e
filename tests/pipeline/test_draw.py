"""From a combed network to its picture: every slot finds its row, followers share one, and a bad path is told first."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from comb.drawn import INPUT, Drawn
from torch import Tensor, nn

from cpd_edge.comb import comb
from cpd_edge.errors import UsageError
from cpd_edge.network import Combed
from cpd_edge.pipeline.draw import check_place, picture, write_drawing
from cpd_edge.report.drawing import Picture
from cpd_edge.report.drawing.rails import ports


class Block(nn.Module):
    """A residual network: stem, a branch of two convolutions, a depthwise one, pooling, head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.narrow, self.bn1 = nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6)
        self.wide, self.bn2 = nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.bn2(self.wide(F.relu(self.bn1(self.narrow(x)))))
        return self.head(self.depthwise(F.relu(x)).mean((2, 3)))


class Attention(nn.Module):
    """Patches, a position table, one pre-norm attention with packed projections and a tied one behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 12, 4, stride=4)
        self.position = nn.Parameter(torch.zeros(1, 4, 12))
        self.ln, self.attention = nn.LayerNorm(12), nn.MultiheadAttention(12, 3, batch_first=True)
        self.again = self.twice = nn.Linear(12, 12)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.position
        y = self.ln(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return self.head(F.gelu(self.twice(F.gelu(self.again(x)))).mean(1))


class Tied(nn.Module):
    """Two layers of one weight, each with its own bias."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b(F.relu(self.a(x)))))


class Idle(nn.Module):
    """A layer that the forward pass leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.training_only = nn.Linear(6, 5), nn.Linear(6, 70)
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.body(x)))


def drawn(model: nn.Module, *shape: int) -> tuple[Combed, Picture]:
    """A module combed, and its picture."""
    combed = comb(model, shape)
    return combed, picture(combed, "it", 1.0)


@pytest.mark.parametrize("model", [Block(), Attention(), *map(Drawn, range(4))], ids=lambda m: type(m).__name__)
def test_every_slot_has_a_row_that_does_what_the_slot_does(model: nn.Module) -> None:
    """Reading slots are read in their row; and nothing but a slot puts a group into a row."""
    combed, found = drawn(model, *INPUT)
    at = {tensor: i for i, row in enumerate(found.rows) for tensor in row.tensors}
    roles = {name: dict(where) for name, where in ports(found.rows).items()}
    for group in combed.groups.groups:
        if group.slots:
            reading = {at[slot.tensor] for slot in group.slots if slot.reads}
            held = {at[slot.tensor] for slot in group.slots}

            assert reading == {row for row, role in roles[group.name].items() if role in ("reads", "both")}
            assert held <= roles[group.name].keys()


@pytest.mark.parametrize("model", [Block(), Attention()], ids=lambda m: type(m).__name__)
def test_every_parameter_is_counted_once(model: nn.Module) -> None:
    """Also one that is tied: its rows share its elements."""
    _, found = drawn(model, *INPUT)

    assert sum(p.numel() for p in model.parameters()) == found.params == sum(row.params for row in found.rows)


def test_a_norm_shares_the_row_of_its_convolution() -> None:
    _, found = drawn(Block(), *INPUT)

    assert [
        ("stem", (), ("norm",)),
        ("narrow", (), ("bn1",)),
        ("wide", (), ("bn2",)),
        ("depthwise", (), ()),
        ("head", (), ()),
    ] == [(row.name, row.before, row.after) for row in found.rows]


def test_a_norm_ahead_shares_the_row_of_what_reads_it() -> None:
    _, found = drawn(Attention(), *INPUT)
    rows = {row.name: row for row in found.rows}

    assert ("ln",) == rows["attention.in_proj"].before
    assert "position" in rows


def test_rows_stand_in_graph_order_whatever_the_order_of_definition() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.body = nn.Linear(5, 4), nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.body(x)))

    _, found = drawn(Backwards(), 6)

    assert ["body", "head"] == [row.name for row in found.rows]


def test_depthwise_weights_carry_and_others_make() -> None:
    _, found = drawn(Block(), *INPUT)
    roles = dict(ports(found.rows)["stem"])

    assert {0: "makes", 1: "reads", 2: "makes", 3: "carries", 4: "reads"} == roles


def test_what_is_frozen_is_read_at_the_input_and_made_at_the_output() -> None:
    """Slots do not tell it: the image's channels are summed over, the classes come out."""
    combed, found = drawn(Block(), *INPUT)
    reasons = {frozen.axis: frozen.reason for frozen in combed.groups.frozen}
    roles = ports(found.rows)
    (image,) = [axis for axis, reason in reasons.items() if reason == "network input"]
    (classes,) = [axis for axis, reason in reasons.items() if reason == "network output"]

    assert ((0, "reads"),) == roles[image]
    assert ((4, "makes"),) == roles[classes]


def test_a_branch_holds_the_rows_that_go_with_it() -> None:
    combed, found = drawn(Block(), *INPUT)
    held = [{found.rows[i].name for i in branch.rows} for branch in found.branches]

    assert {"narrow", "wide"} in held
    assert {group.name for group in combed.groups.groups if group.depth} == {branch.name for branch in found.branches}


def test_layers_outside_of_the_forward_pass_have_no_row(tmp_path: Path) -> None:
    combed, found = drawn(Idle(), 6)
    write_drawing(combed, "it", 1.0, tmp_path / "new" / "idle.svg")

    assert ["body", "head"] == [row.name for row in found.rows]
    assert "in no traced layer" not in (tmp_path / "new" / "idle.svg").read_text(encoding="utf-8")


def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"is a folder\n  give the path of a file, for example --draw groups\.svg"):
        check_place(tmp_path)
    with pytest.raises(UsageError, match="file is no folder"):
        check_place(tmp_path / "file" / "below" / "out.svg")
    check_place(tmp_path / "new" / "out.svg")
    check_place(tmp_path / "file")
    assert [tmp_path / "file"] == list(tmp_path.iterdir())
