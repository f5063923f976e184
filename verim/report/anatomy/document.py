"""The frame of the anatomy's pages: one file, without scripts, that loads nothing."""

from collections.abc import Sequence

from verim import __version__
from verim.report.html import Markup, element, joined
from verim.report.page import resource

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def document(title: str, heading: str, lead: str, sections: Sequence[object]) -> Markup:
    """A page without scripts, all in one file."""
    style = resource("style.css") + resource("anatomy/style.css")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"Anatomy of {title}"),
        element("style", Markup(style)),
    )
    mast = element(
        "header",
        element("strong", f"Anatomy of a training step: {title}"),
        element("span", f"verim {__version__}"),
        class_="mast",
    )
    main = element("main", element("h1", heading), element("p", lead, class_="lead"), *sections)
    body = element("body", element("div", mast, main, class_="sheet"))
    return joined(Markup("<!doctype html>\n"), element("html", head, body, lang="en"), "\n")
