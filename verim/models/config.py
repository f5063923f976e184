"""What a language model is made of, as one value that survives JSON."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from verim.errors import InputError
from verim.nn import FEED_FORWARDS, LayerConfig, NormConfig
from verim.nn.mixers import MIXERS
from verim.runtime.configurations import built, filled, named


@dataclass(frozen=True)
class BlockConfig:
    """A block: x + mixer(norm(x)), then x + feed_forward(norm(x)) where there is one."""

    mixer: LayerConfig
    feed_forward: LayerConfig | None = None


RMS = NormConfig()


@dataclass(frozen=True)
class LanguageModelConfig:
    """`depth` blocks of `width` channels.

    - `pattern`: the blocks, repeated down the depth: block i is pattern[i mod its length]. One element makes a uniform
      model, several a hybrid.
    - `vocab`: tokens that it knows.
    - `norm`: before every layer and before the head.
    - `tied`: the head is the embedding.
    - `embedding_norm`: a norm follows the embedding.
    - `context`: the length of the sequences that it was trained on, 0 where it is not known: who goes beyond is warned.
    """

    pattern: tuple[BlockConfig, ...]
    width: int
    depth: int
    vocab: int = 256
    norm: NormConfig = RMS
    tied: bool = False
    embedding_norm: bool = False
    context: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "pattern", tuple(self.pattern))
        for name, least in (("width", 1), ("depth", 1), ("vocab", 2), ("context", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name}: got {getattr(self, name)}, expected at least {least}")
        if not 0 < len(self.pattern) <= self.depth:
            raise InputError(
                f"pattern: got {len(self.pattern)} blocks for depth {self.depth}; expected 1 to {self.depth}: it is "
                "repeated down the depth"
            )

    def block(self, index: int) -> BlockConfig:
        """The configuration of block `index`."""
        return self.pattern[index % len(self.pattern)]

    def to_json(self) -> dict[str, Any]:
        """The configuration as JSON; `from_json` reads it back."""
        blocks = [
            {"mixer": named(block.mixer, MIXERS), "feed_forward": named(block.feed_forward, FEED_FORWARDS)}
            for block in self.pattern
        ]
        return {field.name: getattr(self, field.name) for field in fields(self)} | {
            "pattern": blocks,
            "norm": asdict(self.norm),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "LanguageModelConfig":
        """Raises `InputError` for a kind or a field that does not exist, or one that is missing."""
        value = dict(value)
        if not isinstance(value.get("pattern"), list):
            raise InputError("pattern: expected a list of blocks in the configuration of a model")
        value["pattern"] = tuple(
            BlockConfig(
                built(MIXERS, block.get("mixer"), f"pattern[{index}].mixer"),
                None
                if block.get("feed_forward") is None
                else built(FEED_FORWARDS, block["feed_forward"], f"pattern[{index}].feed_forward"),
            )
            for index, block in enumerate(value["pattern"])
        )
        if "norm" in value:
            value["norm"] = filled(NormConfig, value["norm"], "norm")
        return filled(cls, value, "model")
