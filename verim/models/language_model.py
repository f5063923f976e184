"""The language model: an embedding, blocks of any mixer and feed-forward layer, a tied or free head."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from verim.errors import InputError
from verim.models.config import BlockConfig, LanguageModelConfig
from verim.nn import Layer, Matrix, StackState
from verim.nn.linear import Linear
from verim.nn.mixers import Attention, Mixer
from verim.nn.recursion import RoutedStack


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
        return self._fed(x + mixed, of_mixer, of_feed_forward)

    def routed(
        self, x: Float[Tensor, "rows length width"], state: StackState | None, positions: Int[Tensor, "rows length"]
    ) -> tuple[Float[Tensor, "rows length width"], StackState]:
        """The same for those tokens of a sequence that stood at `positions`."""
        of_mixer, of_feed_forward = (None, None) if state is None else state.layers
        assert isinstance(self.mixer, Mixer), "what cannot be routed past is refused when the model is built"
        mixed, of_mixer = self.mixer.routed(self.mixer_norm(x), of_mixer, positions)
        return self._fed(x + mixed, of_mixer, of_feed_forward)

    def reading(
        self, x: Float[Tensor, "rows length width"], held: StackState, positions: Int[Tensor, "rows length"]
    ) -> Float[Tensor, "rows length width"]:
        """The same, attending to the keys and values that `held` has of all positions up to these."""
        assert isinstance(self.mixer, Attention), "what is shared are keys and values"
        x = x + self.mixer.reading(self.mixer_norm(x), held.layers[0], positions)
        return self._fed(x, None, None)[0]

    def _fed(self, x: Tensor, of_mixer: Any, of_feed_forward: Any) -> tuple[Tensor, StackState]:
        if self.feed_forward is not None and self.feed_forward_norm is not None:
            fed, of_feed_forward = self.feed_forward(self.feed_forward_norm(x), of_feed_forward)
            x = x + fed
        return x, StackState((of_mixer, of_feed_forward))

    def flops(self, length: int) -> float:
        """Forward and backward FLOPs a token."""
        return sum(sum(layer.flops(length)) for layer in self.layers())

    def reading_flops(self, length: int) -> float:
        """The same of `reading`."""
        assert isinstance(self.mixer, Attention), "what is shared are keys and values"
        return self.flops(length) - sum(self.mixer.flops(length)) + sum(self.mixer.reading_flops(length))

    def state_bytes(self, batch: int, length: int) -> int:
        """Bytes of the states of its layers."""
        return sum(layer.state_bytes(batch, length) for layer in self.layers())

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
        self.blocks = nn.ModuleList(Block(config, index) for index in range(config.blocks))
        self.routed: RoutedStack | None = None
        if config.recursion is not None and config.recursion.routing is not None:
            _require_routable(config)
            self.routed = RoutedStack(config.recursion, config.width)
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
        x = self.embed(tokens)
        if self.routed is not None:
            if state is not None and (self.training or state.layers[0] is None):
                raise InputError(
                    "state: got one for or from a call in training mode, where routing looks at whole sequences and "
                    "keeps no state; expected evaluation mode: call eval() before the first"
                )
            x, whole = self.routed(self._blocks(), x, None if state is None else state.layers[0])
            return self.norm(x), StackState([whole])
        states = [None] * self.config.depth if state is None else state.layers
        blocks, after = self._blocks(), []
        for index, before in zip(self.config.order, states, strict=True):
            x, new = blocks[index](x, before)
            after.append(new)
        return self.norm(x), StackState(after)

    def embed(self, tokens: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length width"]:
        """What the first block reads."""
        x: Tensor = self.embedding(tokens)
        return x if self.embedding_norm is None else self.embedding_norm(x)

    def routed_blocks(self) -> tuple[list[Block], list[Block], list[Block]]:
        """The blocks in front of those that are shared, these, and those behind."""
        assert self.routed is not None, "without routing all blocks are alike"
        blocks, outer = self._blocks(), self.routed.config.outer
        return blocks[:outer], blocks[outer : len(blocks) - outer], blocks[len(blocks) - outer :]

    def layers(self) -> Iterator[Layer]:
        """Mixers and feed-forward layers, from the embedding to the head."""
        for block in self._blocks():
            yield from block.layers()

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def parameter_count(self) -> Parameters:
        total = sum(weight.numel() for weight in self.parameters())
        active = total - sum(layer.idle_weights() for layer in self.layers())
        return Parameters(total, active, total if self.config.tied else total - self.embedding.weight.numel())

    def flops(self, length: int) -> float:
        """Training FLOPs a token (forward and backward), the mean over a sequence of `length`.

        A multiply-add is 2 FLOPs; matrix products, attention's lower triangle, scans and convolutions count;
        norms, activations, routers and the optimiser do not. Where a token's depth is its own, the mean over tokens at
        the shares that the routing is trained to keep.
        """
        head = 3 * 2 * self.head.weight.numel()
        blocks = self._blocks()
        if self.routed is not None:
            return self.routed.flops(blocks, length) + head
        return sum(blocks[index].flops(length) for index in self.config.order) + head

    def state_bytes(self, batch: int, length: int) -> int:
        """Bytes of the state of `batch` sequences after `length` tokens; where depths differ, the most it can be."""
        blocks = self._blocks()
        if self.routed is not None:
            return self.routed.state_bytes(blocks, batch, length)
        return sum(blocks[index].state_bytes(batch, length) for index in self.config.order)

    def _initialise(self) -> None:
        nn.init.normal_(self.embedding.weight, std=self.config.width**-0.5 if self.config.tied else 1.0)
        for module in self.blocks.modules():
            if isinstance(module, Matrix):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        for layer in self.layers():
            for out in layer.writers():
                nn.init.normal_(out.weight, std=(2 * self.config.depth * out.in_features) ** -0.5)
        nn.init.zeros_(self.head.weight)


def _require_routable(config: LanguageModelConfig) -> None:
    """Raises `InputError` for layers whose state has no rule for tokens that leave at different recursions."""
    assert config.recursion is not None
    for index, kinds in enumerate(config.pattern):
        mixer = kinds.mixer.build(config.width, 0, config.depth)
        place = f"pattern[{index}].mixer"
        obstacle = mixer.routing_obstacle() if isinstance(mixer, Mixer) else "kind: it is no mixer"
        if obstacle:
            raise InputError(f"{place}.{obstacle}: with routing in recursion")
        keeps = kinds.feed_forward is not None and kinds.feed_forward.build(config.width).state_bytes(1, 1) > 0
        if config.recursion.cache == "shared" and (keeps or not isinstance(mixer, Attention)):
            raise InputError(
                f"recursion.cache: got 'shared' with {place} {type(kinds.mixer).__name__}"
                f"{' and a feed-forward layer that keeps a state' if keeps else ''}, expected 'recursion': only keys "
                "and values can be read by other recursions, a recurrent state is changed by every token"
            )
