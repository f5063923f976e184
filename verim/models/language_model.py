"""The language model: an embedding, blocks of any mixer and feed-forward layer, a tied or free head."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from verim.models.config import BlockConfig, LanguageModelConfig
from verim.nn import Layer, Matrix, StackState
from verim.nn.linear import Linear


@dataclass(frozen=True)
class Parameters:
    """How many weights a model has, said in the ways in which the field counts."""

    total: int
    active: int  # used by a token: all but the experts that it does not go to
    non_embedding: int  # all but the input embedding: the head counts


class Block(nn.Module):
    """x + mixer(norm(x)), then, where there is a feed-forward layer, x + feed_forward(norm(x))."""

    def __init__(self, config: LanguageModelConfig, index: int) -> None:
        super().__init__()
        kinds: BlockConfig = config.block(index)
        self.mixer_norm = config.norm.build(config.width)
        self.mixer = kinds.mixer.build(config.width, index, config.depth)
        self.feed_forward_norm, self.feed_forward = None, None
        if kinds.feed_forward is not None:
            self.feed_forward_norm = config.norm.build(config.width)
            self.feed_forward = kinds.feed_forward.build(config.width, index, config.depth)

    def forward(
        self, x: Float[Tensor, "batch length width"], state: Any = None
    ) -> tuple[Float[Tensor, "batch length width"], StackState]:
        of_mixer, of_feed_forward = (None, None) if state is None else state.layers
        mixed, of_mixer = self.mixer(self.mixer_norm(x), of_mixer)
        x = x + mixed
        if self.feed_forward is not None and self.feed_forward_norm is not None:
            fed, of_feed_forward = self.feed_forward(self.feed_forward_norm(x), of_feed_forward)
            x = x + fed
        return x, StackState((of_mixer, of_feed_forward))

    def layers(self) -> list[Layer]:
        return [self.mixer] if self.feed_forward is None else [self.mixer, self.feed_forward]


class LanguageModel(nn.Module):
    """Logits of the next token at every position.

    Initialised by the rules of maximal update parametrisation (Yang et al. 2022, arXiv 2203.03466, table 8): hidden
    matrices N(0, 1 / fan_in), so that activations keep their size at any width. What writes into the residual
    stream is smaller by sqrt(2 · depth) (Radford et al. 2019, section 2.3): zero there starts slower and makes
    the loss of small runs scatter four times as much over seeds (docs/LOG.md). A free head starts at zero, so the
    loss starts at log(vocab); a tied one is N(0, 1 / width).
    """

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab, config.width)
        self.embedding_norm = config.norm.build(config.width) if config.embedding_norm else None
        self.blocks = nn.ModuleList(Block(config, index) for index in range(config.depth))
        self.norm = config.norm.build(config.width)
        self.head = Linear(config.width, config.vocab, bias=False)
        self._initialise()
        if config.tied:
            self.head.weight = self.embedding.weight

    def forward(
        self, tokens: Int[Tensor, "batch length"], state: StackState | None = None, last: int | None = None
    ) -> tuple[Float[Tensor, "batch length vocab"], StackState]:
        """Logits and the state to go on from; `state=None` starts a sequence.

        `last`: the logits of that many last positions alone, where the others are not needed (a prompt).
        """
        x, state = self.features(tokens, state)
        return self.head(x if last is None else x[:, x.shape[1] - last :]), state

    def features(
        self, tokens: Int[Tensor, "batch length"], state: StackState | None = None
    ) -> tuple[Float[Tensor, "batch length width"], StackState]:
        """What the head reads, and the state to go on from."""
        x = self.embedding(tokens)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        states = [None] * len(self.blocks) if state is None else state.layers
        after = []
        for block, before in zip(self.blocks, states, strict=True):
            x, new = block(x, before)
            after.append(new)
        return self.norm(x), StackState(after)

    def layers(self) -> Iterator[Layer]:
        """Mixers and feed-forward layers, from the embedding to the head."""
        for block in self.blocks:
            assert isinstance(block, Block), "blocks holds blocks alone"
            yield from block.layers()

    def parameter_count(self) -> Parameters:
        total = sum(weight.numel() for weight in self.parameters())
        active = total - sum(layer.idle_weights() for layer in self.layers())
        return Parameters(total, active, total if self.config.tied else total - self.embedding.weight.numel())

    def flops(self, length: int) -> float:
        """Training FLOPs a token (forward and backward), the mean over a sequence of `length`.

        A multiply-add is 2 FLOPs; matrix products, attention's lower triangle, scans and convolutions count;
        norms, activations and the optimiser do not.
        """
        return sum(sum(layer.flops(length)) for layer in self.layers()) + 3 * 2 * self.head.weight.numel()

    def state_bytes(self, batch: int, length: int) -> int:
        """Bytes of the state of `batch` sequences after `length` tokens."""
        return sum(layer.state_bytes(batch, length) for layer in self.layers())

    def _initialise(self) -> None:
        nn.init.normal_(self.embedding.weight, std=self.config.width**-0.5 if self.config.tied else 1.0)
        for module in self.blocks.modules():
            if isinstance(module, Matrix):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        for layer in self.layers():
            for out in layer.writers():
                nn.init.normal_(out.weight, std=(2 * self.config.depth * out.in_features) ** -0.5)
        nn.init.zeros_(self.head.weight)
