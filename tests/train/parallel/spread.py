"""What the checks of models that are spread over ranks share: models, data, and one rank to compare with."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed, nn

from verim.models import BlockConfig, LanguageModel, LanguageModelConfig
from verim.nn import (
    GELUConfig,
    MixtureOfExpertsConfig,
    RWKV4ChannelMixConfig,
    RWKV7ChannelMixConfig,
    SwiGLUConfig,
    auxiliary_losses,
)
from verim.nn.mixers import (
    AttentionConfig,
    GRUConfig,
    LSTMConfig,
    Mamba2Config,
    MambaConfig,
    MinGRUConfig,
    MinLSTMConfig,
    RNNConfig,
    RWKV4Config,
    RWKV7Config,
    S4DConfig,
)
from verim.ops import cross_entropy

WORLD, WIDTH, VOCAB, ROWS, LENGTH = 4, 16, 32, 4, 24
EXPERTS = MixtureOfExpertsConfig(experts=4, hidden=8, shared=1, capacity_factor=1.0)
BLOCKS = {
    "attention": BlockConfig(AttentionConfig(heads=4), EXPERTS),
    "attention with a window": BlockConfig(AttentionConfig(heads=4, kv_heads=2, window=9), SwiGLUConfig(hidden=24)),
    "mamba": BlockConfig(MambaConfig(state=4), GELUConfig(hidden=24)),
    "mamba2": BlockConfig(Mamba2Config(state=4, head_dim=8), None),
    "rwkv4": BlockConfig(RWKV4Config(), RWKV4ChannelMixConfig()),
    "rwkv7": BlockConfig(RWKV7Config(head_dim=8), RWKV7ChannelMixConfig()),
    "minGRU": BlockConfig(MinGRUConfig(kernel=3), None),
    "minLSTM": BlockConfig(MinLSTMConfig(), None),
    "s4d": BlockConfig(S4DConfig(state=4), None),
    "rnn": BlockConfig(RNNConfig(), None),
    "gru": BlockConfig(GRUConfig(), None),
    "lstm": BlockConfig(LSTMConfig(), None),
}
"""Every kind of mixer and of feed-forward layer."""

Check = Callable[[], None]


def model_of(*pattern: BlockConfig, dtype: torch.dtype = torch.float32, **fields: Any) -> LanguageModel:
    torch.manual_seed(0)
    fields = {"width": WIDTH, "depth": len(pattern), "vocab": VOCAB} | fields
    model = LanguageModel(LanguageModelConfig(pattern, **fields))
    if not model.config.tied:
        nn.init.normal_(model.head.weight, std=WIDTH**-0.5)  # one of zeros hides what happens behind it
    return model.to(dtype)


def batch_of(step: int, rows: int = ROWS, length: int = LENGTH) -> tuple[Tensor, Tensor]:
    """Tokens, and targets that follow from them."""
    tokens = torch.randint(VOCAB, (rows, length + 1), generator=torch.Generator().manual_seed(step))
    return tokens[:, :-1], tokens[:, 1:] // 2 + tokens[:, :-1] // 2


def loss_of(model: nn.Module, tokens: Tensor, targets: Tensor) -> Tensor:
    with auxiliary_losses() as others:
        loss = cross_entropy(model(tokens)[0], targets)
    return sum(others, loss)


def optimiser_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01, eps=1e-4)  # a small eps: signs of gradients near zero


def from_rank_0(compute: Callable[[], Any]) -> Any:
    """What `compute` gives on rank 0, on all."""
    found = [compute() if distributed.get_rank() == 0 else None]
    distributed.broadcast_object_list(found)
    return found[0]


def alone(model: LanguageModel, steps: int, parts: int = 1) -> list[float]:
    """The losses of one rank, which takes a batch in `parts`."""
    optimiser, losses = optimiser_of(model), []
    for step in range(steps):
        loss = 0.0
        for part in zip(*(tensor.chunk(parts) for tensor in batch_of(step)), strict=True):
            one = loss_of(model, *part) / parts
            one.backward()
            loss += one.item()
        losses.append(loss)
        optimiser.step()
        optimiser.zero_grad()
    return losses


def average(tensor: Tensor, group: Any = None) -> None:
    """The mean over the ranks, in place."""
    distributed.all_reduce(tensor, group=group)
    tensor /= distributed.get_world_size(group)


def average_gradients(model: nn.Module, group: Any = None) -> None:
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
        average(weight.grad, group)


def near(got: Any, expected: Any, tolerance: float, what: str) -> None:
    got, expected = torch.as_tensor(got), torch.as_tensor(expected)
    assert got.shape == expected.shape, f"{what}: {tuple(got.shape)}, expected {tuple(expected.shape)}"
    error = (got.double() - expected.double()).norm()
    size = expected.double().norm()
    assert error <= tolerance * (size + 1e-3), f"{what}: error {error:.3g} of {size:.3g}"


def gradients(model: nn.Module, tokens: Tensor, targets: Tensor) -> tuple[float, dict[str, Tensor]]:
    """The loss and the gradient of every weight."""
    loss = loss_of(model, tokens, targets)
    loss.backward()
    return loss.item(), {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
