"""What a language model is made of, as one value that survives JSON."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from verim.errors import InputError
from verim.nn import FEED_FORWARDS, LayerConfig, NormConfig
from verim.nn.mixers import MIXERS
from verim.nn.recursion import ROUTINGS, RecursionConfig
from verim.runtime.configurations import built, filled, named


@dataclass(frozen=True)
class BlockConfig:
    """A block: x + mixer(norm(x)), then x + feed_forward(norm(x)) where there is one."""

    mixer: LayerConfig
    feed_forward: LayerConfig | None = None


RMS = NormConfig()


@dataclass(frozen=True)
class LanguageModelConfig:
    """`depth` blocks of `width` channels, or with `recursion` fewer that are applied `depth` times in all.

    - `pattern`: the blocks, repeated down the depth: block i is pattern[i mod its length]. One element makes a uniform
      model, several a hybrid.
    - `vocab`: tokens that it knows.
    - `norm`: before every layer and before the head.
    - `tied`: the head is the embedding.
    - `embedding_norm`: a norm follows the embedding.
    - `context`: the length of the sequences that it was trained on, 0 where it is not known: who goes beyond is warned.
    - `recursion`: how blocks are shared, and which tokens pass them again; None: every block is applied once.
    """

    pattern: tuple[BlockConfig, ...]
    width: int
    depth: int
    vocab: int = 256
    norm: NormConfig = RMS
    tied: bool = False
    embedding_norm: bool = False
    context: int = 0
    recursion: RecursionConfig | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "pattern", tuple(self.pattern))
        for name, least in (("width", 1), ("depth", 1), ("vocab", 2), ("context", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name}: got {getattr(self, name)}, expected at least {least}")
        blocks = self.blocks
        if not 0 < len(self.pattern) <= blocks:
            raise InputError(
                f"pattern: got {len(self.pattern)} blocks for depth {self.depth}; expected 1 to {blocks}: it is "
                "repeated down the depth"
            )

    @property
    def blocks(self) -> int:
        """How many blocks have weights of their own."""
        return self.depth if self.recursion is None else self.recursion.unique(self.depth)

    @property
    def order(self) -> tuple[int, ...]:
        """The block of each of the `depth` applications."""
        return tuple(range(self.depth)) if self.recursion is None else self.recursion.order(self.depth)

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
            "recursion": None
            if self.recursion is None
            else asdict(self.recursion) | {"routing": named(self.recursion.routing, ROUTINGS)},
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
        if value.get("recursion") is not None:
            recursion = dict(value["recursion"])
            if recursion.get("routing") is not None:
                recursion["routing"] = built(ROUTINGS, recursion["routing"], "recursion.routing")
            value["recursion"] = filled(RecursionConfig, recursion, "recursion")
        return filled(cls, value, "model")
