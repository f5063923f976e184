"""What a language model is made of, as one value that survives JSON."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from verim.errors import InputError
from verim.nn import FEED_FORWARDS, LayerConfig, NormConfig
from verim.nn.mixers import MIXERS


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
            {"mixer": _named(block.mixer, MIXERS), "feed_forward": _named(block.feed_forward, FEED_FORWARDS)}
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
                _built(MIXERS, block.get("mixer"), f"pattern[{index}].mixer"),
                None
                if block.get("feed_forward") is None
                else _built(FEED_FORWARDS, block["feed_forward"], f"pattern[{index}].feed_forward"),
            )
            for index, block in enumerate(value["pattern"])
        )
        if "norm" in value:
            value["norm"] = _filled(NormConfig, value["norm"], "norm")
        return _filled(cls, value, "model")


def _named(layer: Any, kinds: dict[str, type]) -> dict[str, Any] | None:
    if layer is None:
        return None
    name = next(name for name, kind in kinds.items() if kind is type(layer))
    return {"kind": name, **asdict(layer)}


def _built(kinds: dict[str, type], value: Any, place: str) -> Any:
    if not isinstance(value, dict) or value.get("kind") not in kinds:
        got = value.get("kind") if isinstance(value, dict) else value
        raise InputError(f"{place}.kind: got {got!r}, expected one of {', '.join(kinds)}")
    return _filled(kinds[value["kind"]], {name: given for name, given in value.items() if name != "kind"}, place)


def _filled(kind: type, value: dict[str, Any], place: str) -> Any:
    """An object of the dataclass `kind`; fields that it does not know, or lacks, are named."""
    known = {field.name for field in fields(kind)}
    unknown = [name for name in value if name not in known]
    if unknown:
        raise InputError(f"{place}.{unknown[0]}: unknown; expected some of {', '.join(sorted(known))}")
    try:
        return kind(**value)
    except TypeError as error:
        raise InputError(f"{place}: {error}") from None
