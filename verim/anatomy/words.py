"""Seconds, counts and bytes as the terminal and the pages of the anatomy say them: three digits and a unit."""


def time_words(seconds: float) -> str:
    """
    >>> time_words(0.0125), time_words(2e-5), time_words(3.0)
    ('12.5 ms', '20 µs', '3 s')
    """
    size = abs(seconds)
    unit, name = next(((u, n) for u, n in ((1.0, "s"), (1e-3, "ms")) if size >= u), (1e-6, "µs"))
    return f"{seconds / unit:.3g} {name}"


def count_words(value: float) -> str:
    """
    >>> count_words(2.22e9), count_words(12), count_words(0)
    ('2.22 G', '12', '–')
    """
    prefixes = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
    unit, name = next(((u, n) for u, n in prefixes if value >= 0.9995 * u), (1.0, ""))
    return f"{value / unit:.3g} {name}".rstrip() if value else "–"


def size_words(value: float) -> str:
    """
    >>> size_words(6.39e6), size_words(12)
    ('6.39 MB', '12 B')
    """
    return f"{count_words(value)}B" if value >= 999.5 else f"{value:.0f} B"


def share_words(value: float) -> str:
    """
    >>> share_words(0.614), share_words(0.0042), share_words(0.0)
    ('61 %', '0.4 %', '0 %')
    """
    return f"{100 * value:.0f} %" if abs(value) >= 0.0995 or not value else f"{100 * value:.1f} %"


def listed(names: list[str]) -> str:
    """
    >>> listed(["norms", "the loss", "the optimiser"])
    'norms, the loss and the optimiser'
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
