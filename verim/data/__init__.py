"""Text to tokens to batches: in memory, where the bytes of the text are the tokens, or as a data set on the disk."""

from verim.data.build import BuildConfig, build
from verim.data.corpus import SEPARATOR, VOCABULARY, Corpus, load_corpus
from verim.data.dataset import Dataset, Evaluation, Part
from verim.data.loader import Batch, Loader, document_numbers, evaluation_batches
from verim.data.manifest import Manifest
from verim.data.stream import TokenStream

__all__ = [
    "SEPARATOR",
    "VOCABULARY",
    "Batch",
    "BuildConfig",
    "Corpus",
    "Dataset",
    "Evaluation",
    "Loader",
    "Manifest",
    "Part",
    "TokenStream",
    "build",
    "document_numbers",
    "evaluation_batches",
    "load_corpus",
]
