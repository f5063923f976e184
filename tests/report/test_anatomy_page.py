"""The page of a recorded step: whole in one file, every module on it, its numbers the record's."""

import html
import itertools
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import nn

from verim.anatomy import Ceilings, Record, advise, record
from verim.anatomy.roofline import layer_points
from verim.anatomy.words import count_words, size_words, time_words
from verim.report.anatomy import anatomy_page
from verim.report.anatomy.flame import boxes_of
from verim.report.anatomy.roofline import roofline

CEILINGS = Ceilings("cpu", 1, {"float32": 1e15}, ((2**14, 1e15), (2**26, 1e15)), 1e-6)
"""Nothing is above these, whatever machine runs the tests."""
ODD = '</svg><b onclick="x">&'


class Odd(nn.Module):
    """A layer with a name that is markup, and one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module(ODD, nn.Linear(16, 32))
        self.last = nn.Sequential(nn.GELU(), nn.Linear(32, 4))
        self.silent = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(getattr(self, ODD)(x))


@pytest.fixture(scope="module")
def ledger() -> Record:
    torch.manual_seed(0)
    model = Odd()
    optimiser = torch.optim.AdamW(model.parameters())
    with record(model, ceilings=CEILINGS) as recording:
        for _ in range(5):
            model(torch.ones(8, 16)).square().mean().backward()
            optimiser.step()
            optimiser.zero_grad()
    return recording.result


@pytest.fixture(scope="module")
def page(ledger: Record, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "page.html"
    anatomy_page(ledger, path, f"a model of {ODD}", advise(ledger), tokens=128)
    return path.read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Tags, texts and the cells of tables."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.handlers: list[str] = []
        self.rows: list[list[str]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on") or name in ("src", "href")]
        if tag not in ("meta", "br", "col"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    assert not reader.open  # every tag is closed in its order
    return reader


def test_the_page_is_whole_in_itself(page: str, read: Reader) -> None:
    assert len(page.encode()) < 1e6
    assert not {"script", "link", "img", "iframe"} & set(read.tags)
    assert not read.handlers
    assert set(re.findall(r"https?://[^\s\"'<]*", page)) <= {"http://www.w3.org/2000/svg"}  # a name, nothing is loaded
    assert "url(" not in page and "@import" not in page


def test_odd_names_stay_text(page: str, read: Reader) -> None:
    assert ODD not in page and 'onclick="' not in page
    assert ODD in "".join(read.texts)


def test_every_module_is_there_with_the_numbers_of_the_record(ledger: Record, read: Reader) -> None:
    rows = {row[0]: row[1:] for row in read.rows if row}
    for module in ledger.modules().walk():
        row = rows[f"{module.name or 'the model'} {module.kind}"]
        assert row[0] == f"{module.calls:.4g}"
        assert row[1] == time_words(module.total_seconds)
        assert row[3:5] == [count_words(module.flops), size_words(module.bytes)]
    assert rows["silent"][:1] == ["Linear"]  # among those that are never called
    for part in ledger.parts:
        assert rows[part.name][1] == time_words(part.seconds)
    assert rows["step"][1] == time_words(ledger.step_seconds)
    assert rows["remainder"][1] == time_words(ledger.remainder_seconds)
    text = " ".join(read.texts)
    assert ("the ledger is open" in text) is not ledger.closes
    assert size_words(ledger.memory.allocator_peak_bytes or ledger.memory.peak_bytes) in text


def test_boxes_of_the_flame_lie_beside_each_other_within_the_row_above(ledger: Record) -> None:
    boxes = list(boxes_of(ledger))
    end = max(box.begin + box.seconds for box in boxes)
    assert end == pytest.approx(sum(part.seconds for part in ledger.parts))
    room = 1e-6 * end  # rounding
    for box in boxes:
        if box.row:
            assert any(
                above.begin <= box.begin + room and box.begin + box.seconds <= above.begin + above.seconds + room
                for above in boxes
                if above.row == box.row - 1
            ), box
    for row in {box.row for box in boxes}:
        beside = sorted((box for box in boxes if box.row == row), key=lambda box: (box.begin, box.seconds))
        for left, right in itertools.pairwise(beside):
            assert left.begin + left.seconds <= right.begin + room
    assert {box.name for box in boxes} >= {"forward", "backward", ODD, "last", "mm"}


def test_a_point_above_its_ceiling_is_told(ledger: Record) -> None:
    assert "Faster than this machine can be" not in roofline(ledger)
    slow = Ceilings("cpu", 1, {"float32": 1.0}, ((2**14, 1.0),), 1e-6)
    wrong = replace(ledger, ceilings=slow)
    told = roofline(wrong)
    assert "Faster than this machine can be" in told
    for point in layer_points(wrong):
        assert html.escape(f"{point.name} (") in told


def test_a_record_without_anything_makes_a_page(ledger: Record, tmp_path: Path) -> None:
    bare = replace(ledger, ops=(), spans=())
    anatomy_page(bare, tmp_path / "bare.html", "nothing")
    text = (tmp_path / "bare.html").read_text()
    assert "Nothing in the ledger promises more" in text and "No layer computes anything" in text
