"""The page: self-contained, valid, escaped, and made of whatever is known."""

import base64
import copy
import hashlib
import itertools
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_study import SURFACES, synthetic_study

from verim.report import figures, parts, study_page
from verim.report.page import document

VOID = {"meta", "br", "col", "path"}
SCRIPT = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
STUDY = synthetic_study()


class Page(HTMLParser):
    """The page as a browser sees it: tags, scripts, text; fails where a tag is not closed in its place."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(source)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]
        if tag == "script":
            self.scripts.append("")
        if tag not in VOID - {"path"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif not self.open or self.open[-1] != "style":
            self.text += data

    def has(self, text: str) -> bool:
        return " ".join(text.split()) in " ".join(self.text.replace("\u202f", " ").split())

    def ids(self) -> list[str | None]:
        return [value for _, name, value in self.attributes if name == "id"]


def page_of(study: dict[str, Any]) -> Page:
    return Page(document(study, "/* plotly */"))


def changed(**values: Any) -> dict[str, Any]:
    return copy.deepcopy(STUDY) | values


def test_the_page_says_what_the_study_found() -> None:
    page = page_of(STUDY)
    for text in (
        "Mamba is ahead by 0.13 bits per byte",
        "predicted 2.326 (2.291 to 2.367), achieved 2.305 bits per byte.",
        "0.9 % better than predicted, inside the interval",
        "Hoffmann et al. 2022 (Approach 3)",
        "Kaplan et al. 2020",
        "All 36 runs of the ladder",
        "return <b>value</b>",
        "Training the ladder",
        "Synthetic Processor 9000",
        "N is non_embedding",
        "It was given 5 min in all, 2 min of them for the proof.",
        "The rules that every run follows",
        "depthone block for every 24 channels (a synthetic rule)",
        "Passes over the text0.43",
    ):
        assert page.has(text), text
    assert {"envelope", "isoflop-0", "isoflop-1", "learning-curve"} <= set(page.ids())


def test_headings_have_one_first_level_and_skip_none() -> None:
    levels = [int(tag[1]) for tag in page_of(STUDY).tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_every_figure_has_words_for_who_cannot_see_it() -> None:
    page = page_of(STUDY)
    told = [value for tag, name, value in page.attributes if tag == "div" and name == "aria-label"]
    plots = [value for tag, name, value in page.attributes if name == "class" and value == "plot"]
    assert len(plots) == 4
    assert all(told)
    assert any("Minima: at" in (text or "") for text in told)
    assert len(page.ids()) == len(set(page.ids()))


def test_the_written_page_loads_nothing_and_only_its_own_scripts_run(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    study_page(changed(), path)
    source = path.read_text(encoding="utf-8")
    page = Page(source)
    assert [name for tag, name, _ in page.attributes if name in ("src", "href", "srcset", "action", "data")] == []
    assert [tag for tag in page.tags if tag in ("link", "img", "iframe", "object", "embed", "base", "form")] == []
    data, library, ours = page.scripts
    assert "Plotly" in library and "Plotly.react" in ours and data.startswith("{")
    rest = source.replace(library, "")
    assert "http://" not in rest and "https://" not in rest and "url(" not in rest and "@import" not in rest
    policy = next(
        value or "" for _, name, value in page.attributes if name == "content" and "default-src" in (value or "")
    )
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    for script in (library, ours):
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
    assert "unsafe-eval" not in policy and "unsafe-inline" not in policy.split("style-src")[0]
    assert [item.name for item in tmp_path.iterdir()] == ["report.html"]


def test_the_page_is_made_in_less_than_two_seconds(tmp_path: Path) -> None:
    start = time.process_time()  # of this process: other work on the machine does not count
    study_page(synthetic_study(tuple(SURFACES)), tmp_path / "report.html")
    assert time.process_time() - start < 2


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, item in inside for found in ((*path, key), *places(item, (*path, key)))]


def put(study: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    study = copy.deepcopy(study)
    parent: Any = study
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    return study


def leaves(kind: type) -> list[tuple[Any, ...]]:
    found = []
    for path in places(STUDY):
        value: Any = STUDY
        for key in path:
            value = value[key]
        if isinstance(value, kind):
            found.append(path)
    return found


# One of each kind: what holds for the first run holds for its neighbours.
def is_first(path: tuple[Any, ...]) -> bool:
    return not any(isinstance(key, int) and key > 0 for key in path)


def test_anything_may_be_unknown() -> None:
    paths = [path for path in places(STUDY) if is_first(path)]
    assert len(paths) > 200
    for path in paths:
        assert not re.search(r"\bNone\b|\bnan\b", document(put(STUDY, path, None), "")), path


ORDINARY = page_of(STUDY)


@settings(max_examples=60, deadline=None)
@given(
    path=st.sampled_from([path for path in leaves(str) if path not in (("created",),)]),
    text=st.one_of(
        st.text(st.characters(codec=None, categories=None), min_size=1),
        st.builds("".join, st.tuples(st.text(max_size=5), st.just(SCRIPT), st.text(max_size=5))),
    ),
)
def test_no_text_of_a_study_becomes_markup(path: tuple[Any, ...], text: str) -> None:
    ordinary, page = ORDINARY, page_of(put(STUDY, path, text))
    assert "img" not in page.tags
    assert page.tags.count("script") == ordinary.tags.count("script")
    assert {name for _, name, _ in page.attributes} == {name for _, name, _ in ordinary.attributes}
    assert page.scripts[1:] == ordinary.scripts[1:]
    assert "<" not in page.scripts[0]


@pytest.mark.parametrize(
    "path",
    [
        ("corpus", "name"),
        ("corpus", "paths", 0),
        ("target", "sample", "text"),
        ("target", "sample", "prompt"),
        ("machine", "processor"),
        ("verdicts", 0, "text"),
    ],
    ids=str,
)
def test_a_script_shows_as_text(path: tuple[Any, ...]) -> None:
    assert page_of(put(STUDY, path, SCRIPT)).has(SCRIPT)


def test_an_architecture_named_like_a_script_shows_as_text() -> None:
    study = changed()
    study["architectures"] = {
        SCRIPT: study["architectures"]["mamba"],
        "transformer": study["architectures"]["transformer"],
    }
    study["warnings"] = [f"{SCRIPT} diverged"]
    page = page_of(study)
    assert page.has(f"{SCRIPT} diverged")
    assert page.has(SCRIPT)
    # Plotly reads tags in labels: there, the name is escaped a second time.
    assert "\\u003cscript" not in page.scripts[0]
    assert "\\u0026lt;script\\u0026gt;" in page.scripts[0]


def test_one_architecture_is_not_compared() -> None:
    study = synthetic_study(("mamba",)) | {"verdicts": []}
    page = page_of(study)
    assert page.has("Mamba reached 2.305 bits per byte")
    assert not page.has("is ahead")
    assert not page.has("envelope, the best of all")


def test_six_architectures_have_six_markers() -> None:
    page = page_of(synthetic_study(tuple(SURFACES)))
    assert {f"isoflop-{index}" for index in range(6)} <= set(page.ids())
    heads = [parts.key(index) for index in range(6)]
    assert len({re.sub(r"var\(.*?\)", "", head) for head in heads}) == 6
    assert len({figures.colour(index) for index in range(6)}) == 6
    assert len({(figures.colour(index), figures.symbol(index)) for index in range(12)}) == 12


def test_minima_on_the_edge_and_their_warnings_are_told() -> None:
    study = changed(warnings=["no minimum of mamba lies inside the ladder"])
    for low in study["architectures"]["mamba"]["minima"]:
        low |= {"interior": False, "warning": "the minimum lies at the largest size", "curve": None}
    page = page_of(study)
    assert page.has("To be careful about")
    assert page.has("no minimum of mamba lies inside the ladder")
    assert page.has("the minimum lies at the largest size")


def test_what_the_data_cannot_carry_has_no_digits() -> None:
    study = changed()
    law = study["architectures"]["mamba"]["law"]
    law["identified"]["E"], law["E"], law["notes"] = False, 987.654, ["E and A trade against one another"]
    study["architectures"]["transformer"]["law"] = None
    study["architectures"]["transformer"]["exponents"]["N"] = {"value": None, "interval": None}
    page = page_of(study)
    assert page.has("not identified")
    assert page.has("Mamba: E and A trade against one another")
    assert page.has("The runs cannot carry a law.")
    assert not page.has("988") and not page.has("987")


def test_an_exponent_that_the_runs_do_not_fix_has_no_digits_and_no_marker() -> None:
    study = changed()
    exponents = study["architectures"]["mamba"]["exponents"]
    exponents |= {"N": {"value": 0.987, "interval": [0.955, 0.999]}, "D": {"value": 0.013, "interval": [0.011, 0.045]}}

    def strips(page: Page) -> list[str | None]:
        scales = " on a scale from "
        return [value for _, name, value in page.attributes if name == "aria-label" and scales in (value or "")]

    assert len(strips(page_of(study))) == 4 and page_of(study).has("0.990.95 to 1.00")
    exponents["identified"] = False
    page = page_of(study)
    assert len(strips(page)) == 3
    assert all("from 0.4 to 0.8" in (told or "") for told in strips(page))  # the scale is of what is shown
    assert page.text.count("not identified") == 2
    assert not any(page.has(digits) for digits in ("0.99", "0.95 to", "to 1.00", "0.01 to", "0.010.01"))


def test_where_the_exponents_come_from_is_told_once() -> None:
    told = "The exponents measured here come from the fitted law: a = β / (α + β), b = α / (α + β)."
    page = page_of(STUDY)
    assert page.has(told) and page.text.count("the fitted law:") == 1
    assert "from from" not in page.text and "from the from" not in page.text


def test_a_study_from_before_rules_and_passes_were_recorded_has_a_page() -> None:
    study = changed()
    del study["rules"], study["epochs"]
    for found in study["architectures"].values():
        del found["exponents"]["identified"]
    page = page_of(study)
    assert not page.has("Passes over the text") and not page.has("The rules that every run follows")
    assert not page.has("not identified")


def test_the_time_given_is_of_the_whole_study() -> None:
    assert page_of(changed(options={"minutes": 5.0, "target_minutes": None})).has("It was given 5 min in all.")
    assert not page_of(changed(options={"minutes": None, "target_minutes": 2.0})).has("It was given")


def test_no_one_ahead_is_said_so() -> None:
    study = changed()
    for verdict in study["verdicts"]:
        verdict |= {"ahead": None, "text": "within the noise"}
    page = page_of(study)
    assert page.has("No architecture is ahead: what lies between them is noise")
    assert page.has("no one")


def test_a_lead_that_changes_is_said_to_be_at_the_largest_budget() -> None:
    study = changed()
    study["verdicts"][0]["ahead"] = "transformer"
    assert page_of(study).has("Mamba is ahead at the largest budget by 0.13 bits per byte")


def test_a_study_without_proof_has_a_page() -> None:
    study = changed(target=None, achieved_bits_per_byte=None, relative_error=None)
    page = page_of(study)
    assert page.has("the proof has not been run")
    assert page.has("The recommended model has not been trained")
    assert "learning-curve" not in page.ids()
    assert not page.has("achieved 2.")
    assert "<li></li>" not in document(study, "")


def test_a_study_that_has_only_begun_has_a_page() -> None:
    study = changed(verdicts=[], recommended=None, predicted_bits_per_byte=None, interval=None, target=None)
    study |= {"achieved_bits_per_byte": None, "relative_error": None, "noise": None, "budgets": []}
    study["architectures"] = {
        name: {"runs": [], "minima": [], "law": None, "exponents": None, "prediction": None}
        for name in ("mamba", "gru")
    }
    page = page_of(study)
    assert page.has("No model is recommended")
    assert page.has("No run of this architecture has finished.")
    assert page_of(study | {"architectures": {}}).has("Nothing has been measured yet")


def test_a_file_name_that_is_not_text_and_a_very_long_one_are_shown(tmp_path: Path) -> None:
    study = changed()
    study["corpus"]["paths"] = [
        "/home/\udce9t\udce9/" + "very_long_name" * 60,
        *(f"/{i}" for i in range(200)),
    ]
    path = tmp_path / "report.html"
    study_page(study, path)
    assert "/home/\ufffdt\ufffd/very_long_name" in path.read_text(encoding="utf-8")
