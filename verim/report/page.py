"""The page of a study: one file that opens with no network and that nothing in a corpus can script.

Two walls stand between a study's text and the page's scripts: `html.element` escapes whatever is not markup,
and the page's content security policy runs only the scripts whose hashes it names and loads nothing.
"""

import base64
import hashlib
import importlib.resources
from functools import cache
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from verim.report import facts, findings, words
from verim.report.figures import Figure
from verim.report.html import Markup, data_block, element, joined
from verim.report.words import Study
from verim.runtime.files import write_text


def study_page(study: dict[str, Any], path: Path) -> None:
    """Writes the page of `study` (the content of `study.json`, format 1) to `path`, whole or not at all.

    The page holds its style, its data and plotly, about 5 MB, and needs nothing else. What is not known in
    the study (`None`) is left out or named as unknown. Raises `SpaceError` where the disk is full.
    """
    write_text(path, document(study, plotly_library()))


def document(study: Study, library: str) -> Markup:
    """The page as HTML, with `library` for plotly's script."""
    compute, envelope = findings.compute(study)
    isoflop, curves = findings.isoflop(study)
    proof, learning = findings.proof(study)
    figures: dict[str, Figure] = envelope | curves | learning
    corpus = words.at(study["corpus"], "name")
    scripts = [library, resource("page.js")]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy(scripts)),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{words.headline(study)} · {corpus or 'a study'}"),
        element("style", Markup(resource("style.css"))),
    )
    written = f"verim {study['verim_version'] or ''}, {words.moment(study['created'])}"
    mast = element(
        "header",
        element("span", element("strong", "A study of "), element("strong", corpus or "an unnamed corpus")),
        element("span", written),
        class_="mast",
    )
    main = element(
        "main",
        findings.hero(study),
        element("noscript", element("p", "The figures need JavaScript; all their numbers are in the tables.")),
        compute,
        isoflop,
        findings.laws(study),
        proof,
        findings.sample(study),
        facts.time(study),
        facts.runs(study),
        facts.cards(study),
    )
    foot = element("footer", f"Made by {written}. The same numbers stand in study.json, beside this page.")
    body = element(
        "body",
        element("div", mast, main, foot, class_="sheet"),
        data_block("figures", figures),
        *(element("script", Markup(script)) for script in scripts),
    )
    return joined(Markup("<!doctype html>\n"), element("html", head, body, lang="en"), "\n")


def policy(scripts: list[str]) -> str:
    """Content security: nothing is loaded and only `scripts` run; styles may be inline, as plotly sets them."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes) or "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


@cache
def resource(name: str) -> str:
    """A file of this package, as text."""
    return importlib.resources.files("verim.report").joinpath(name).read_text(encoding="utf-8")


@cache
def plotly_library() -> str:
    """Plotly's script, such that no string within it ends the script element that holds it."""
    return get_plotlyjs().replace("\r\n", "\n").replace("</script", r"<\/script")
