"""Which documents are held out, and where a document that is too large is cut."""

from collections.abc import Iterator, Sequence

_OVERSHOOT = 1.25
"""The held-out part may exceed its share by this factor; what would exceed it stays in training."""

_SHORTFALL = 0.6
"""A held-out part below this much of its share is too small: then large documents are cut."""

_LARGE = 0.25
"""A document above this much of the share would dominate it: held out only where nothing else will do."""

_SMALLEST_PIECE = 512


def choose_held_out(sizes: Sequence[int], share: float) -> list[int] | None:
    """The indices of the documents to hold out, filled from the front; None where they cannot be near `share` bytes.

    `sizes` are the documents' bytes in the order of their SHA-256, so that the choice depends on content alone.
    """
    for largest in (share * _LARGE, share * _OVERSHOOT):
        chosen: list[int] = []
        taken = 0
        for index, size in enumerate(sizes):
            if taken >= share:
                break
            if size <= largest and taken + size <= share * _OVERSHOOT:
                chosen.append(index)
                taken += size
        if taken >= share * _SHORTFALL:
            return chosen
    return None


def largest_piece(share: float) -> int:
    """The bytes above which documents are cut where whole ones allow no held-out part of `share` bytes."""
    return max(_SMALLEST_PIECE, int(share / 8))


def cut_note(whole: int, documents: int, largest: int, fraction: float) -> str:
    """The sentence that tells of such a cut."""
    return (
        f"{whole:,} whole documents allow no held-out part near {fraction:.0%} of the bytes, so those over {largest:,} "
        f"bytes were cut at paragraphs into documents: {documents:,} in all."
    )


def pieces(text: bytes, largest: int) -> Iterator[bytes]:
    """Cuts `text` into pieces of at most `largest` bytes, each at `cut`."""
    begin = 0
    while len(text) - begin > largest:
        end = cut(text, begin, largest)
        yield text[begin:end]
        begin = end
    if begin < len(text):
        yield text[begin:]


def cut(text: bytes | bytearray, begin: int, largest: int) -> int:
    """Where the piece of at most `largest` (at least 8) bytes from `begin` on ends, if there are more behind it.

    After an empty line where there is one in the second half of the piece, else after a line, else between two
    characters.
    """
    middle, end = begin + largest // 2, begin + largest
    for mark in (b"\n\n", b"\n"):
        found = text.rfind(mark, middle, end)
        if found >= 0:
            return found + len(mark)
    for back in range(4):  # no character of UTF-8 is longer
        if text[end - back] & 0b1100_0000 != 0b1000_0000:
            return end - back
    return end
