"""Numbers and findings in words: what the page and the terminal both say.

Every function takes `None` for "not known" and answers with a dash, because a study that was stopped, or that
could not fit its law, has a page too.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

Study = Mapping[str, Any]

UNKNOWN = "–"
NBSP = "\u202f"  # narrow, no break: between a number and its unit
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_ACRONYMS = {"rnn", "lstm", "gru", "rwkv"}

# What would be invisible, move the cursor or turn the direction of the text after it, shown as a symbol.
_VISIBLE = (
    {code: 0x2400 + code for code in range(32) if code not in (0x09, 0x0A)}
    | {0x7F: 0x2421}
    | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
    | dict.fromkeys((*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xFFFE, 0xFFFF), 0xFFFD)
    | dict.fromkeys(range(0xD800, 0xE000), 0xFFFD)
)


def visible(text: str) -> str:
    """`text` with control characters as their symbols (␛), and with what no file can hold (lone surrogates of
    undecodable file names) or what reorders the text around it as U+FFFD; tabs and line ends stay.

    >>> visible("a" + chr(27) + "[31m")
    'a␛[31m'
    """
    return text.replace("\r\n", "\n").translate(_VISIBLE)


def at(value: Any, *keys: str) -> Any:
    """`value[key][key]…`, or None as soon as something on the way is unknown."""
    for key in keys:
        if value is None:
            return None
        value = value.get(key)
    return value


def entries(value: Any) -> list[Any]:
    """The known items of a list that may itself be unknown."""
    return [item for item in value or [] if item is not None]


def pair(value: Any) -> tuple[float, float] | None:
    """Both ends of an interval, or None where either is unknown."""
    ends = entries(value)
    return (ends[0], ends[1]) if len(ends) == 2 else None


def architectures(study: Study) -> dict[str, dict[str, Any]]:
    """The architectures of the study, in its order; one without results is an empty dictionary."""
    return {name: found or {} for name, found in (study["architectures"] or {}).items()}


def rules(study: Study) -> list[tuple[str, str]]:
    """The rules that the ladder's runs follow, by name; none in a study from before they were recorded."""
    return [(name, str(rule)) for name, rule in (study.get("rules") or {}).items() if rule is not None]


def exponent(exponents: Any, name: str) -> tuple[Any, tuple[float, float] | None]:
    """The exponent of N or D over compute and its interval; nothing of it where the runs do not fix it."""
    if at(exponents, "identified") is False:
        return None, None
    return at(exponents, name, "value"), pair(at(exponents, name, "interval"))


def title(name: Any) -> str:
    """An architecture's name as it stands in a sentence.

    >>> title("mamba"), title("rwkv")
    ('Mamba', 'RWKV')
    """
    if not name:
        return UNKNOWN
    return name.upper() if name in _ACRONYMS else name[:1].upper() + name[1:]


def shown(value: Any) -> str:
    """A value as it is, for what has no unit and no digits to spare: a width, a seed, a version."""
    return UNKNOWN if value is None else str(value)


def number(value: Any, digits: int = 3) -> str:
    """A number with so many digits after the point: the form of losses in bits per byte."""
    return UNKNOWN if value is None else f"{value:.{digits}f}"


def significant(value: Any, digits: int = 3) -> str:
    """A number with so many significant digits, without an exponent where it is readable without."""
    if value is None:
        return UNKNOWN
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        return scientific(value, digits)
    if value == 0:
        return "0"
    exponent = int(f"{value:.{digits - 1}e}".split("e")[1])  # of the rounded value: 0.9999 is 1.00
    decimals = max(0, digits - 1 - exponent)
    return f"{value:,.{decimals}f}".replace(",", NBSP)


def scientific(value: Any, digits: int = 2) -> str:
    """A number as a power of ten.

    >>> [scientific(value).replace(NBSP, " ") for value in (3e12, 1.24e13, 1e13)]
    ['3 × 10¹²', '1.2 × 10¹³', '10¹³']
    """
    if value is None:
        return UNKNOWN
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    mantissa = mantissa.removesuffix("." + "0" * (digits - 1))
    power = "10" + str(int(exponent)).translate(_SUPERSCRIPT)
    return power if float(mantissa) == 1 else f"{mantissa}{NBSP}×{NBSP}{power}"


def exact(value: Any) -> str:
    """A whole number with all its digits, in groups of three.

    >>> exact(18240).replace(NBSP, " ")
    '18 240'
    """
    return UNKNOWN if value is None else f"{round(value):,}".replace(",", NBSP)


def quantity(value: Any, unit: str = "") -> str:
    """A number of things with a decimal prefix and its unit, three significant digits.

    >>> quantity(1_234_567).replace(NBSP, " "), quantity(812).replace(NBSP, " ")
    ('1.23 M', '812')
    """
    if value is None:
        return UNKNOWN
    for size, prefix in PREFIXES:
        if abs(value) >= size * 0.9995:
            return f"{significant(value / size)}{NBSP}{prefix}{unit}"
    text = exact(value) if isinstance(value, int) else significant(value)
    return f"{text}{NBSP}{unit}" if unit else text


def duration(seconds: Any) -> str:
    """A time as a person says it.

    >>> [duration(s).replace(NBSP, " ") for s in (0.0000032, 2.5, 125, 4000)]
    ['3.2 µs', '2.5 s', '2 min 5 s', '1 h 7 min']
    """
    if seconds is None:
        return UNKNOWN
    if 0 < seconds < 0.1:
        unit, scale = ("ms", 1e3) if seconds >= 1e-3 else ("µs", 1e6)
        return f"{seconds * scale:.2g}{NBSP}{unit}"
    if seconds < 9.95:
        return f"{seconds:.1f}{NBSP}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{NBSP}s"
    if whole < 3600:
        (large, small), units = divmod(whole, 60), ("min", "s")
    else:
        (large, small), units = divmod(round(seconds / 60), 60), ("h", "min")
    return f"{large}{NBSP}{units[0]}" + (f" {small}{NBSP}{units[1]}" if small else "")


def percent(fraction: Any) -> str:
    """A fraction in percent, two significant digits and never more than one after the point."""
    if fraction is None:
        return UNKNOWN
    return f"{100 * fraction:.{0 if abs(fraction) >= 0.0995 else 1}f}{NBSP}%"


def interval(value: Any, digits: int = 3) -> str:
    """Both ends of an interval: `2.251 to 2.363`."""
    ends = pair(value)
    return UNKNOWN if ends is None else f"{ends[0]:.{digits}f} to {ends[1]:.{digits}f}"


def moment(created: Any) -> str:
    """An ISO date and time as a person writes it; what does not parse stays as it is."""
    try:
        when = datetime.fromisoformat(created)
    except (TypeError, ValueError):
        return UNKNOWN if created is None else str(created)
    zone = when.strftime(" %Z") if when.tzinfo else ""
    return f"{when.day} {when:%B %Y, %H:%M}{zone}"


def headline(study: Study) -> str:
    """The finding in one line: who is ahead at the largest budget and by how much, beyond noise."""
    measured = architectures(study)
    verdicts = entries(study["verdicts"])
    if len(measured) > 1 and verdicts:
        last = verdicts[-1]
        if last["ahead"] is None:
            return "No architecture is ahead: what lies between them is noise"
        where = "" if {verdict["ahead"] for verdict in verdicts} == {last["ahead"]} else " at the largest budget"
        by = "" if last["margin_bits_per_byte"] is None else f" by {last['margin_bits_per_byte']:.2g} bits per byte"
        return f"{title(last['ahead'])} is ahead{where}{by}"
    name = at(study["recommended"], "architecture") or next(iter(measured), None)
    if name is None:
        return "Nothing has been measured yet"
    if study["achieved_bits_per_byte"] is not None:
        return f"{title(name)} reached {number(study['achieved_bits_per_byte'])} bits per byte"
    if study["predicted_bits_per_byte"] is not None:
        return f"{title(name)} should reach {number(study['predicted_bits_per_byte'])} bits per byte"
    return f"{title(name)}: measured, without a prediction"


def plan_sentence(study: Study) -> str:
    """What to train, what it was predicted to reach and what it reached, in one sentence."""
    plan = study["recommended"]
    if plan is None:
        return "No model is recommended: the ladder's runs do not carry a prediction."
    # In format 1 a token is a byte.
    parts = (
        f"{title(plan['architecture'])} with {quantity(plan['non_embedding'])} non-embedding parameters, "
        f"trained on {quantity(plan['tokens'])} bytes for {duration(plan['seconds'])}"
    )
    if study["predicted_bits_per_byte"] is None:
        return f"{parts}: no prediction."
    predicted = f"predicted {number(study['predicted_bits_per_byte'])}"
    if pair(study["interval"]) is not None:
        predicted += f" ({interval(study['interval'])})"
    if study["achieved_bits_per_byte"] is None:
        return f"{parts}: {predicted} bits per byte; the proof has not been run."
    return f"{parts}: {predicted}, achieved {number(study['achieved_bits_per_byte'])} bits per byte."


def proof_sentence(study: Study) -> str | None:
    """How far achieved lies from predicted and whether inside the interval; None before the proof."""
    predicted, achieved = study["predicted_bits_per_byte"], study["achieved_bits_per_byte"]
    if predicted is None or achieved is None:
        return None
    gap = achieved / predicted - 1 if study["relative_error"] is None else study["relative_error"]
    side = "better than predicted" if achieved < predicted else "worse than predicted"
    ends = pair(study["interval"])
    if ends is None:
        return f"{percent(abs(gap))} {side}"
    inside = "inside" if ends[0] <= achieved <= ends[1] else "outside"
    return f"{percent(abs(gap))} {side}, {inside} the interval"
