"""HTML as nested calls: every string is escaped unless it is already `Markup`.

Escaping is the default, so that a corpus, a file name or a model's output cannot become a tag by being
forgotten. Only `element`, `joined` and the files of this package make `Markup`.
"""

import html
import json
from typing import Any

from verim.report.words import visible

_VOID = {"meta", "br", "col"}


class Markup(str):
    """A string that is HTML already and is inserted as it stands."""

    __slots__ = ()


def escaped(value: object) -> Markup:
    """`value` as text: `<`, `>`, `&`, quotes as entities, invisible characters made visible; `None` is empty.

    >>> escaped("</script><b>")
    '&lt;/script&gt;&lt;b&gt;'
    """
    if isinstance(value, Markup):
        return value
    return Markup("" if value is None else html.escape(visible(str(value)), quote=True))


def joined(*children: object, between: str = "") -> Markup:
    """The children one after the other, escaped where they are not `Markup`; `None` is left out."""
    return Markup(between.join(escaped(child) for child in children if child is not None))


def element(name: str, /, *children: object, **attributes: object) -> Markup:
    """`<name attributes>children</name>`; children and attribute values are escaped.

    `class_` is written for `class`, an underscore for a hyphen (`aria_label`); an attribute that is `None` or
    `False` is left out and one that is `True` has no value.

    >>> element("p", "1 < 2", class_="note")
    '<p class="note">1 &lt; 2</p>'
    """
    written = []
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            written.append(f" {key}")
        elif value is not None and value is not False:
            written.append(f' {key}="{escaped(value)}"')
    opening = f"<{name}{''.join(written)}>"
    if name in _VOID:
        return Markup(opening)
    return Markup(f"{opening}{joined(*children)}</{name}>")


def data_block(identifier: str, value: Any) -> Markup:
    """A `<script type="application/json">` that holds `value` and that no text within can end.

    Inside a script element the parser knows no entities and ends at the first `</script`; so `<`, `>` and `&`
    are written as JSON's own escapes, and everything beyond ASCII too. NaN and infinity are refused.

    >>> data_block("names", ["</script>"])
    '<script type="application/json" id="names">["\\\\u003c/script\\\\u003e"]</script>'
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(f'<script type="application/json" id="{escaped(identifier)}">{text}</script>')
