"""Decoding: one token at a time, from the state that the prompt left."""

from verim.generate.complete import collect, complete, generate
from verim.generate.engine import Engine, Limits
from verim.generate.request import Completion, Event
from verim.generate.sampling import Sampling
from verim.generate.speculative import Speculation
from verim.generate.text import ByteTokenizer, TextStream, Tokenizer

__all__ = [
    "ByteTokenizer",
    "Completion",
    "Engine",
    "Event",
    "Limits",
    "Sampling",
    "Speculation",
    "TextStream",
    "Tokenizer",
    "collect",
    "complete",
    "generate",
]
