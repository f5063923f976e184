"""Text to tokens to batches. Here the bytes of the text are the tokens."""

from verim.data.corpus import SEPARATOR, VOCABULARY, Corpus, load_corpus
from verim.data.loader import Loader, evaluation_batches

__all__ = ["SEPARATOR", "VOCABULARY", "Corpus", "Loader", "evaluation_batches", "load_corpus"]
