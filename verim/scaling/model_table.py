"""Language models over the years: what was trained, on how much. The table behind "why models shrink"."""

from dataclasses import dataclass

from verim.errors import InputError


@dataclass(frozen=True)
class PublishedModel:
    """A model as its makers describe it. `active` parameters a token where they are fewer than `parameters`.

    >>> round(published_model("GPT-3").tokens_per_parameter, 2)
    1.71
    """

    name: str
    year: int
    parameters: float
    tokens: float
    source: str
    active: float | None = None

    def __post_init__(self) -> None:
        if not self.source:
            raise InputError(f"source: {self.name} has none, and a row without a source proves nothing")

    @property
    def tokens_per_parameter(self) -> float:
        """D / N, N all parameters; Hoffmann's optimum is about 20."""
        return self.tokens / self.parameters

    @property
    def training_flops(self) -> float:
        """6 · N · D with the parameters that a token uses."""
        return 6 * (self.active or self.parameters) * self.tokens


PUBLISHED_MODELS = (
    PublishedModel("GPT-3", 2020, 175e9, 300e9, "arXiv 2005.14165, Table 2.1"),
    PublishedModel("Jurassic-1", 2021, 178e9, 300e9, "arXiv 2203.15556, Table 1"),
    PublishedModel("Gopher", 2021, 280e9, 300e9, "arXiv 2112.11446; 2203.15556, Table 1"),
    PublishedModel("MT-NLG", 2022, 530e9, 270e9, "arXiv 2201.11990; 2203.15556, Table 1"),
    PublishedModel("LaMDA", 2022, 137e9, 168e9, "arXiv 2203.15556, Table 1"),
    PublishedModel("Chinchilla", 2022, 70e9, 1.4e12, "arXiv 2203.15556, Table 1"),
    PublishedModel("PaLM", 2022, 540e9, 780e9, "arXiv 2204.02311"),
    PublishedModel("LLaMA 65B", 2023, 65e9, 1.4e12, "arXiv 2302.13971, Table 2"),
    PublishedModel("LLaMA 7B", 2023, 7e9, 1.0e12, "arXiv 2302.13971, Table 2"),
    PublishedModel("Llama 2 70B", 2023, 70e9, 2.0e12, "arXiv 2307.09288, Table 1"),
    PublishedModel("TinyLlama", 2024, 1.1e9, 3.0e12, "arXiv 2401.02385"),
    PublishedModel("Llama 3.1 405B", 2024, 405e9, 15.6e12, "arXiv 2407.21783"),
    PublishedModel("Llama 3 8B", 2024, 8e9, 15e12, "Meta's model card of Llama 3: over 15 T tokens"),
    PublishedModel("DeepSeek-V3", 2024, 671e9, 14.8e12, "arXiv 2412.19437", active=37e9),
    PublishedModel("SmolLM2 1.7B", 2025, 1.7e9, 11e12, "arXiv 2502.02737"),
    PublishedModel("LFM2.5 1.2B", 2026, 1.2e9, 28e12, "Liquid AI's model card of LFM2.5-1.2B: 28 T tokens"),
)


def published_model(name: str) -> PublishedModel:
    """The model of that name. Raises `InputError` that lists the names."""
    for model in PUBLISHED_MODELS:
        if model.name == name:
            return model
    raise InputError(f"name: got {name!r}, expected one of {', '.join(model.name for model in PUBLISHED_MODELS)}")
