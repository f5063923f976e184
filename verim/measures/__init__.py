"""Numbers about numbers: what a loss is worth in bits, how runs scatter."""

from verim.measures.information import bits_per_byte

__all__ = ["bits_per_byte"]
