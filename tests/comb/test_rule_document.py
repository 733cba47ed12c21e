"""The example of docs/rules.md is run, as it stands there."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from corpus import described, lively, wrong

from cpd_edge.comb import comb, relate

DOCUMENT = (Path(__file__).parents[2] / "docs" / "rules.md").read_text()


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The document's code as the user's file; the rule is forgotten afterwards."""
    (code,) = re.findall(r"^```python\n(.*?)^```", DOCUMENT, re.M | re.S)
    path = tmp_path_factory.mktemp("rules") / "blocks.py"
    path.write_text(code)
    spec = importlib.util.spec_from_file_location("blocks", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del relate.RULES["block_linear"]


def test_the_example_has_the_groups_that_the_document_says(example: ModuleType) -> None:
    """Blocks, features out and features in; cut like they are masked, the written number of blocks with them."""
    combed = comb(lively(example.Blocks()), (3, 8, 8))
    assert wrong(combed) == ""
    assert described(combed) == "weight:4 weight:2:5 stem:3"
    assert "4 blocks, 5\nfeatures out and 3 features in" in DOCUMENT


def test_without_the_rule_the_example_is_frozen(example: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the document says of an operator without a rule."""
    monkeypatch.delitem(relate.RULES, "block_linear")
    combed = comb(example.Blocks(), (3, 8, 8))
    assert combed.groups.groups == ()
    assert {f.reason for f in combed.groups.frozen if f.axis == "stem"} == {"block_linear: it has no rule"}
    assert all("blocks.py" in f.source for f in combed.groups.frozen if f.axis == "stem")


@pytest.mark.parametrize("verb", ["unify", "contract", "shape_argument"])
def test_each_line_of_the_example_is_needed(example: ModuleType, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left out, the comparison fails, as the document says."""

    def forgotten(*args: Any, **kwargs: Any) -> None:
        pass

    def mistaken(r: Any, n: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(type(r), verb, forgotten)
            return example.relate_block_linear(r, n)

    monkeypatch.setitem(relate.RULES, "block_linear", mistaken)
    assert fails(lambda: wrong(comb(lively(example.Blocks()), (3, 8, 8))))


def fails(comparison: Callable[[], str]) -> bool:
    try:
        return comparison() != ""
    except RuntimeError:
        return True


def test_the_table_names_what_a_relation_has() -> None:
    """Every `r.verb` of the table exists."""
    relation, axes = relate.Relation, relate.Axes
    for name in re.findall(r"^\| `r\.(\w+)\(", DOCUMENT, re.M):
        assert hasattr(relation, name), name
    for name in re.findall(r"^\| `r\.axes\.(\w+)\(", DOCUMENT, re.M):
        assert hasattr(axes, name), name
