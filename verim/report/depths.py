"""A page on which every piece of a text has the colour of the recursions that were taken to predict it."""

from collections.abc import Iterable, Sequence

from verim.report.html import Markup, element, joined

SHADES = ("#e8f1fb", "#b9d6f2", "#7fb2e5", "#f2c14e", "#f08a4b", "#d1495b")
"""From few recursions to many; beyond the last the last."""

_STYLE = (
    "body{font:16px/1.6 Georgia,serif;max-width:46rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b;background:#fff}"
    "pre{white-space:pre-wrap;font:15px/1.7 ui-monospace,monospace}span{border-radius:3px}"
)


def depths_page(texts: Iterable[tuple[str, Sequence[tuple[str, int]]]], recursions: int) -> str:
    """The page of texts: each a prompt and the pieces that follow it, with their depths. It loads nothing."""
    key = [element("span", f" {depth} ", style=_colour(depth, recursions)) for depth in range(1, recursions + 1)]
    parts = []
    for prompt, pieces in texts:
        mean = sum(depth for _, depth in pieces) / max(1, len(pieces))
        coloured = [element("span", text, style=_colour(depth, recursions), title=depth) for text, depth in pieces]
        parts += [element("pre", element("b", prompt), *coloured), element("p", f"Mean depth {mean:.2f}.")]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content="default-src 'none'; style-src 'unsafe-inline'"),
        element("title", "Depths"),
        element("style", Markup(_STYLE)),
    )
    body = element("body", element("h1", "Which words took thought"), element("p", "Recursions: ", *key), *parts)
    return joined(Markup("<!doctype html>\n"), element("html", head, body, lang="en"), "\n")


def _colour(depth: int, recursions: int) -> str:
    step = (depth - 1) * (len(SHADES) - 1) // max(1, recursions - 1)
    return f"background:{SHADES[min(step, len(SHADES) - 1)]}"
