"""Information: surprise in bits."""

import math


def bits_per_byte(nats: float, bytes: float) -> float:
    """Total cross-entropy in nats over the bytes it encodes, in bits a byte: nats / (bytes · ln 2).

    Comparable between models whatever their tokens are.
    """
    return nats / (bytes * math.log(2))
