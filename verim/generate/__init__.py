"""Decoding: one token at a time, from the state that the prompt left."""

from verim.generate.sampling import sample

__all__ = ["sample"]
