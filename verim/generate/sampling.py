"""Sampling from a language model."""

import torch
from jaxtyping import Int
from torch import Tensor

from verim.errors import InputError
from verim.models import LanguageModel


@torch.no_grad()
def sample(
    model: LanguageModel,
    prompt: Int[Tensor, "batch length"],
    tokens: int,
    temperature: float = 1.0,
    seed: int = 0,
) -> Int[Tensor, "batch tokens"]:
    """`tokens` tokens after `prompt`, each drawn from softmax(logits / temperature); temperature 0 takes the largest.

    The prompt goes through the model once, then every token alone with the state of those before. Raises
    `InputError` for an empty prompt, a token outside the vocabulary or a negative temperature.
    """
    vocab = model.config.vocab
    if prompt.shape[1] == 0:
        raise InputError("prompt: got no token, expected at least one to continue from")
    if int(prompt.min()) < 0 or int(prompt.max()) >= vocab:
        raise InputError(f"prompt: got tokens {int(prompt.min())} to {int(prompt.max())}, expected 0 to {vocab - 1}")
    if temperature < 0:
        raise InputError(f"temperature: got {temperature}, expected 0 (the likeliest token) or more")
    generator = torch.Generator(prompt.device).manual_seed(seed)
    model.eval()
    drawn = []
    logits, states = model(prompt, last=1)
    for _ in range(tokens):
        last = logits[:, -1]
        if temperature == 0:
            token = last.argmax(-1, keepdim=True)
        else:
            token = torch.multinomial((last.double() / temperature).softmax(-1), 1, generator=generator)
        drawn.append(token)
        logits, states = model(token, states)
    return torch.cat(drawn, dim=1) if drawn else prompt[:, :0]
