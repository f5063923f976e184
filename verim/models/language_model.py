"""The language model: an embedding, blocks of any mixer, a tied or free head."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from verim.errors import InputError
from verim.nn import RMSNorm, SwiGLU
from verim.nn.mixers import AttentionConfig, MambaConfig, MixerConfig


@dataclass(frozen=True)
class LanguageModelConfig:
    """`depth` blocks of `width` channels around `mixer`; `hidden` channels of SwiGLU in each (0: none)."""

    mixer: MixerConfig
    width: int
    depth: int
    hidden: int = 0
    vocab: int = 256

    def __post_init__(self) -> None:
        for name, least in (("width", 1), ("depth", 1), ("hidden", 0), ("vocab", 2)):
            if getattr(self, name) < least:
                raise InputError(f"{name}: got {getattr(self, name)}, expected at least {least}")

    def to_json(self) -> dict[str, Any]:
        """The configuration as JSON; `from_json` reads it back."""
        return asdict(self) | {"mixer": {"kind": _KINDS[type(self.mixer)], **asdict(self.mixer)}}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "LanguageModelConfig":
        mixer = dict(value["mixer"])
        kind = mixer.pop("kind")
        by_name = {name: mixer_class for mixer_class, name in _KINDS.items()}
        if kind not in by_name:
            raise InputError(f"mixer.kind: got {kind!r}, expected one of {', '.join(by_name)}")
        return cls(**(value | {"mixer": by_name[kind](**mixer)}))


_KINDS: dict[type, str] = {AttentionConfig: "attention", MambaConfig: "mamba"}


@dataclass(frozen=True)
class Parameters:
    """How many weights a model has, said in the ways in which the field counts."""

    total: int
    non_embedding: int  # all but the input embedding: the head counts


class Block(nn.Module):
    """x + mixer(norm(x)), then, where `hidden` > 0, x + swiglu(norm(x))."""

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        self.mixer_norm = RMSNorm(config.width)
        self.mixer = config.mixer.build(config.width)
        self.feed_forward_norm = RMSNorm(config.width) if config.hidden else None
        self.feed_forward = SwiGLU(config.width, config.hidden) if config.hidden else None

    def forward(
        self, x: Float[Tensor, "batch length width"], state: Any = None
    ) -> tuple[Float[Tensor, "batch length width"], Any]:
        mixed, state = self.mixer(self.mixer_norm(x), state)
        x = x + mixed
        if self.feed_forward is not None and self.feed_forward_norm is not None:
            x = x + self.feed_forward(self.feed_forward_norm(x))
        return x, state

    def flops(self, length: int) -> tuple[float, float]:
        """Forward and backward FLOPs a token."""
        forward, backward = self.mixer.flops(length)
        feed_forward = self.feed_forward.flops() if self.feed_forward is not None else 0
        return forward + feed_forward, backward + 2 * feed_forward

    def writers(self) -> list[nn.Linear]:
        """The layers whose output is added to the residual stream."""
        return [self.mixer.out] + ([self.feed_forward.out] if self.feed_forward is not None else [])


class LanguageModel(nn.Module):
    """Logits of the next token at every position.

    Initialised by the rules of maximal update parametrisation (Yang et al. 2022, arXiv 2203.03466, table 8): hidden
    matrices N(0, 1 / fan_in), so that activations keep their size at any width. What writes into the residual
    stream is smaller by sqrt(2 · depth) (Radford et al. 2019, section 2.3): zero there starts slower and makes
    the loss of small runs scatter four times as much over seeds (docs/LOG.md). The head starts at zero, so the
    loss starts at log(vocab).
    """

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = RMSNorm(config.width)
        self.head = nn.Linear(config.width, config.vocab, bias=False)
        self._initialise()

    def forward(
        self, tokens: Int[Tensor, "batch length"], states: list[Any] | None = None
    ) -> tuple[Float[Tensor, "batch length vocab"], list[Any]]:
        """Logits and the blocks' states to go on from; `states=None` starts a sequence."""
        x = self.embedding(tokens)
        after = []
        for block, state in zip(self.layers(), states or [None] * len(self.blocks), strict=True):
            x, state = block(x, state)
            after.append(state)
        return self.head(self.norm(x)), after

    def layers(self) -> Iterator[Block]:
        """The blocks, from the embedding to the head."""
        for block in self.blocks:
            assert isinstance(block, Block), "blocks holds blocks alone"
            yield block

    def parameter_count(self) -> Parameters:
        total = sum(weight.numel() for weight in self.parameters())
        return Parameters(total, total - self.embedding.weight.numel())

    def flops(self, length: int) -> float:
        """Training FLOPs a token (forward and backward), the mean over a sequence of `length`.

        A multiply-add is 2 FLOPs; matrix products, attention's lower triangle, scans and convolutions count;
        norms, activations and the optimiser do not.
        """
        blocks = sum(sum(block.flops(length)) for block in self.layers())
        return blocks + 3 * 2 * self.head.weight.numel()

    def state_bytes(self, batch: int, length: int) -> int:
        """Bytes of the state of `batch` sequences after `length` tokens."""
        return sum(block.mixer.state_bytes(batch, length) for block in self.layers())

    def _initialise(self) -> None:
        nn.init.normal_(self.embedding.weight)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        for block in self.layers():
            for out in block.writers():
                nn.init.normal_(out.weight, std=(2 * self.config.depth * out.in_features) ** -0.5)
        nn.init.zeros_(self.head.weight)
