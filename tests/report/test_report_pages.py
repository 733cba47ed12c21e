"""The two files: well-formed, self-contained, escaped, equal in what they say, never in need of a key."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import sample_record

from cpd_edge import report, store
from cpd_edge.errors import StoreError
from cpd_edge.report import build

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Balanced(HTMLParser):
    """Records the open tags; fails on an end tag that does not close the innermost one."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.ids: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text.append(data)


def parsed(page: str) -> Balanced:
    parser = Balanced()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def pages(record: Mapping[str, Any], *, raw: bool = True) -> tuple[str, str]:
    """Both twins of a record, HTML first."""
    view = build.view(record, sample_record.measurements() if raw else {})
    return build.html(view), build.markdown(view)


def folder(tmp_path: Path, record: Mapping[str, Any]) -> Path:
    store.write_json(tmp_path / "run.json", record)
    for measurement in sample_record.measurements().values():
        store.Run(tmp_path).save_measurement(measurement)
    return tmp_path


def paths(data: object, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every key of a record, and of the first element of each of its lists."""
    items: Any = data.items() if isinstance(data, dict) else list(enumerate(data))[:1] if isinstance(data, list) else ()
    for key, value in items:
        yield (*prefix, key)
        yield from paths(value, (*prefix, key))


def test_write_leaves_both_twins_and_nothing_else(tmp_path: Path) -> None:
    """`write` returns the page, puts the Markdown beside it, and leaves no temporary file."""
    record = {**sample_record.record(), "run": str(tmp_path)}
    page = report.write(folder(tmp_path, record))
    assert page == tmp_path / "report.html"
    assert {p.name for p in tmp_path.iterdir()} == {"run.json", "samples", "report.html", "report.md"}
    assert (page.read_text(), (tmp_path / "report.md").read_text()) == pages(record)


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    """A report is a function of its run folder: no clock, no random ids."""
    first = report.write(folder(tmp_path, sample_record.record())).read_bytes()
    assert first == report.write(tmp_path).read_bytes()


def test_page_is_well_formed_and_needs_nothing_else() -> None:
    """Tags balance, ids are unique, and there is no script and no address to load from."""
    page, _ = pages(sample_record.record())
    parser = parsed(page)
    assert len(parser.ids) == len(set(parser.ids))
    assert not parser.seen & {"script", "link", "img", "iframe", "object"}
    assert not re.search(r"https?://|url\(|@import|\son\w+=", page)


def test_a_moved_run_names_the_folder_it_is_in(tmp_path: Path) -> None:
    """At the top, and in the command that repeats it."""
    report.write(folder(tmp_path, {**sample_record.record(), "command": "cpd-edge prune net --out old/place"}))
    twin = (tmp_path / "report.md").read_text()
    assert "old/place" not in twin and "runs/resnet50" not in twin
    assert f"cpd-edge prune net --out {tmp_path}\n" in twin


def test_every_drawing_speaks() -> None:
    """Each chart has a title and a description that exist under the ids it names."""
    page, _ = pages(sample_record.record())
    named = re.findall(r'aria-labelledby="(\S+) (\S+)"', page)
    assert len(named) == page.count('role="img"') > 8
    assert {i for pair in named for i in pair} <= set(parsed(page).ids)


HOSTILE = '"><script>alert(1)</script>|[x](http://a.b)<img src=x onerror=y>\n# h'


def test_hostile_names_stay_text() -> None:
    """Markup in any text of the record is shown, not obeyed, in both twins."""

    def poison(value: object, key: str = "") -> object:
        if isinstance(value, dict):
            return {
                HOSTILE if key in ("environment", "hashes", "seconds") else k: poison(v, k) for k, v in value.items()
            }
        if isinstance(value, list):
            return [poison(v) for v in value]
        return HOSTILE if isinstance(value, str) and key != "verdict" else value

    record = poison(sample_record.record())
    assert isinstance(record, dict)
    page, twin = pages(record)
    assert not parsed(page).seen & {"script", "img"}
    assert "<script" not in page and "<img" not in page
    bare = re.sub(r"^ {4}.*$", "", twin, flags=re.M)
    assert not re.search(r"(?<!\\)<|(?<!\\)\]\(|^# h", bare, flags=re.M)


def columns(line: str) -> int:
    return len(re.findall(r"(?<!\\)\|", line))


def test_markdown_tables_are_rectangular() -> None:
    """Every row of a Markdown table has as many bars as its head, also where a name holds a bar."""
    record = sample_record.record()
    record["groups"][0]["name"] = "a|b"
    _, twin = pages(record)
    tables = re.findall(r"(?:^\|.*\n)+", twin, flags=re.M)
    assert len(tables) >= 8
    for table in tables:
        assert len({columns(line) for line in table.splitlines()}) == 1, table


HEADLINE = (
    "p50 12.3 ms [12.2, 12.5] against a budget of 12.8 ms, margin 2.1 %",
    "22.4 ms → 12.3 ms",
    "1.82×",
    "[1.79, 1.84]",
    "2.41×",
    "4.09 G → 1.70 G",
    "93.12 % → 92.41 %",
    "−0.71 pp [−1.02, −0.40]",
    "25.6 M → 12.3 M",
    "102 MB → 49.1 MB",
)


@pytest.mark.parametrize("fact", HEADLINE)
def test_headline_stands_in_both_twins(fact: str) -> None:
    """The verdict's sentence and every headline number are said twice, alike."""
    page, twin = pages(sample_record.record())
    assert fact in unescape(" ".join(parsed(page).text))
    assert fact in twin


def test_twins_state_the_same_numbers() -> None:
    """Whatever number the Markdown states, the page states."""
    page, twin = pages(sample_record.record())
    numbers = set(re.findall(r"\d[\d,.]*\d|\d", twin))
    assert numbers - set(re.findall(r"\d[\d,.]*\d|\d", " ".join(parsed(page).text))) == set()


@pytest.mark.parametrize("drop", ["", "macs", "macs_ratio", "speedup", "both"])
@pytest.mark.parametrize("asked", [None, 1.8])
def test_speedup_is_never_named_alone(drop: str, asked: float | None) -> None:
    """Wherever a speed-up is named, the ratio of MACs stands beside it, or that it is missing."""
    record = sample_record.record()
    record["request"]["speedup"] = asked
    for key in ("macs", "macs_ratio") if drop == "both" else (drop,):
        record.pop(key, None)
    for text in pages(record):
        shown = " ".join(parsed(text).text) if text.startswith("<!") else text
        named = [m.start() for m in re.finditer(r"speed-?up", shown, flags=re.I)]
        assert named
        for at in named:
            assert "MACs ratio" in shown[at : at + 120], shown[at : at + 120]


def test_any_key_may_be_missing_or_null_or_odd() -> None:
    """An unfinished run reads: each key of the record in turn is dropped, null, or of another type."""
    whole = sample_record.record()
    for key in ("layers", "history", "groups"):
        whole[key] = whole[key][:2]
    whole["profile"]["scatter"] = whole["profile"]["scatter"][:2]
    for path in paths(whole):
        for odd in ("drop", None, "text", {}, -1.0):
            record: Any = copy.deepcopy(whole)
            here = record
            for key in path[:-1]:
                here = here[key]
            if odd == "drop":
                del here[path[-1]]
            else:
                here[path[-1]] = odd
            view = build.view(record, {})
            assert len(view.sections) == 12, path
            assert build.markdown(view).startswith("# "), path


@pytest.mark.parametrize("key", list(sample_record.record()))
def test_page_without_a_key_is_still_a_page(key: str) -> None:
    """Both twins lay out a record that lacks any one of its parts."""
    record = sample_record.record()
    del record[key]
    page, twin = pages(record)
    assert parsed(page) and twin


def test_empty_run_says_what_is_missing() -> None:
    """A run that has only begun is called unfinished, and its sections say that nothing was measured."""
    page, twin = pages({"format": 1}, raw=False)
    assert "UNFINISHED" in page and twin.startswith("# UNFINISHED")
    assert twin.count("Not measured in this run.") == page.count("Not measured in this run.") == 12


def unfinished(*keys: str, command: str = "cpd-edge prune m.py:net --speedup 2") -> str:
    """The Markdown of a run that came no further than these keys of the record."""
    whole = {**sample_record.record(), "command": command, "run": "runs/one", "stop": "time limit", "round_log": []}
    return pages({k: whole[k] for k in ("format", "run", "command", "request", *keys)}, raw=False)[1]


def test_an_unfinished_run_says_what_is_missing_and_what_goes_on_with_it() -> None:
    """How far it came, what it lacks in order, and the command that goes on, at the top and at the end."""
    early, late = unfinished("dense_latency_ms"), unfinished("dense_latency_ms", "round_log", "stop")
    assert "p50 of the pruned engine is not measured yet, budget 12.8 ms" in early
    assert "Missing: the plan, the final bench, the metric of both engines, the times of layers." in early
    assert "p50 is sampled, but not judged yet, budget 12.8 ms" in late
    assert "Missing: the metric of both engines, the times of layers." in late
    for twin in (early, late):
        assert twin.count("cpd-edge prune m.py:net --speedup 2 --out runs/one --resume") == 2
        assert "## To go on" in twin and "To repeat" not in twin


@pytest.mark.parametrize(
    ("command", "goes_on"),
    [
        ("cpd-edge prune net --out=there", "cpd-edge prune net --out=runs/one --resume"),
        ("cpd-edge prune net --out there --resume", "cpd-edge prune net --out runs/one --resume"),
        ("cpd-edge sweep net --speedups 2,3 --out there", "cpd-edge sweep net --speedups 2,3 --out runs --resume"),
        ("cpd-edge sweep net --speedups 2,3", "cpd-edge sweep net --speedups 2,3 --out runs --resume"),
    ],
)
def test_the_command_that_goes_on_names_the_folder_once(command: str, goes_on: str) -> None:
    """The one that it is in, whether or not one was typed; a point of a sweep goes on with the sweep."""
    assert f"    {goes_on}\n" in unfinished(command=command)


def test_a_finished_run_says_how_to_repeat_it() -> None:
    """The command as it was typed."""
    _, twin = pages(sample_record.record())
    assert "## To repeat" in twin and "--resume" not in twin


@pytest.mark.parametrize(
    ("verdict", "latency", "said", "tone"),
    [
        ("FAIL", {"estimate": 13.4, "low": 13.2, "high": 13.6, "n": 900}, "over by 3.1 %", "fail"),
        (
            "INCONCLUSIVE",
            {"estimate": 12.7, "low": 12.5, "high": 12.9, "n": 900},
            "the budget lies inside the interval",
            "open",
        ),
        ("INCONCLUSIVE", {"estimate": 12.7, "low": 12.5, "high": None, "n": 3}, "bound not supported by n = 3", "open"),
        ("PASS", {"estimate": 12.3, "low": 12.1, "high": 12.8, "n": 900}, "margin 0 %", "pass"),
    ],
)
def test_verdict_shows(verdict: str, latency: dict[str, Any], said: str, tone: str) -> None:
    """The banner carries the recorded verdict and says how far the deciding bound is from the budget."""
    record = {**sample_record.record(), "verdict": verdict, "latency_ms": latency}
    page, twin = pages(record)
    assert f'class="banner {tone}"' in page and f'<p class="verdict">{verdict}</p>' in page
    assert said in page and said in twin and twin.startswith(f"# {verdict}: ")


@pytest.mark.parametrize(("asked", "said"), [(1.8, 1), (None, 0)])
def test_limits_that_move_from_round_to_round_are_explained(asked: float | None, said: int) -> None:
    """A budget relative to the dense engine has other milliseconds in each window; one in milliseconds has not."""
    record = sample_record.record()
    record["request"]["speedup"] = asked
    sentence = "so the limit in ms and the prediction move with it."
    assert [text.count(sentence) for text in pages(record)] == [said, said]


def test_failed_checks_stand_beside_the_verdict() -> None:
    """How many of how many, by name, in both twins, and the page leads to them; nothing where none failed."""
    record, said = sample_record.record(), "1 of 5 checks failed: governor"
    page, twin = pages(record)
    assert f'<p class="doubt"><a href="#checks">{said}</a></p>' in page and 'id="checks"' in page
    assert f"**{said}**" in twin.partition("\n| ")[0]
    sound = [{**row, "passed": row["passed"] is not None or None} for row in record["checks"]]
    assert all("checks failed" not in text for text in pages({**record, "checks": sound}))


def test_quantile_below_its_floor_is_no_number() -> None:
    """A null quantile reads `not supported by n`."""
    _, twin = pages(sample_record.record())
    assert re.search(r"\| p99 \| 25.1 ms \[24.4, 25.7\] \| 1,200 \| not supported by n \|", twin)


def test_segmentation_metric_reads_in_per_cent_and_loss_does_not() -> None:
    """Fractions are shown in per cent and points; a loss keeps its own unit."""
    record = {**sample_record.record(), "metric": "mIoU", "worst_classes": []}
    assert "93.12 % → 92.41 %" in pages(record)[1]
    assert "0.9312 → 0.9241" in pages({**record, "metric": "loss"})[1]


def test_samples_that_do_not_read_are_named(tmp_path: Path) -> None:
    """A file of samples that holds none is an error that names the file, not an empty figure."""
    store.write_json(tmp_path / "run.json", sample_record.record())
    store.write_json(tmp_path / "samples/pruned.json", {"format": 1})
    with pytest.raises(StoreError, match=r"pruned\.json holds no measurement"):
        report.write(tmp_path)


def test_report_needs_no_torch() -> None:
    """The room imports without torch, so that `cpd-edge report` starts at once."""
    import subprocess
    import sys

    code = "import sys, cpd_edge.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
