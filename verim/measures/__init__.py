"""Numbers about numbers: what a loss is worth in bits, how distributions differ, how well scores rank."""

from verim.measures.information import (
    Distribution,
    Logits,
    bits_per_byte,
    cross_entropy,
    entropy,
    kl_divergence,
    log_probabilities,
    mutual_information,
    perplexity,
    surprise,
)
from verim.measures.ranking import auroc

__all__ = [
    "Distribution",
    "Logits",
    "auroc",
    "bits_per_byte",
    "cross_entropy",
    "entropy",
    "kl_divergence",
    "log_probabilities",
    "mutual_information",
    "perplexity",
    "surprise",
]
