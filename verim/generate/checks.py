"""What cannot be generated, and what should not."""

import warnings
from collections.abc import Sequence

from verim.errors import InputError
from verim.models import LanguageModel, LanguageModelConfig


def check_prompt(prompt: Sequence[int], vocab: int, name: str = "prompt") -> None:
    """Raises `InputError` for an empty prompt or a token that the model does not know."""
    if not len(prompt):
        raise InputError(f"{name}: got no token, expected at least one to continue from")
    for place, token in enumerate(prompt):
        if not 0 <= token < vocab:
            raise InputError(
                f"{name}: got token {token} at position {place}, expected 0 to {vocab - 1}: the model knows {vocab} "
                "tokens; use the tokenizer that it was trained with"
            )


def warn_of_context(config: LanguageModelConfig, prompt: int, tokens: int) -> bool:
    """Warns where `prompt` tokens and `tokens` more go beyond what the model was trained on; whether it did."""
    if not config.context or prompt + tokens <= config.context:
        return False
    warnings.warn(
        f"a prompt of {prompt} tokens and up to {tokens} more exceed the {config.context} that the model was trained "
        "on: what it writes beyond them may be worse",
        stacklevel=4,
    )
    return True


def warn_of_windows(config: LanguageModelConfig) -> None:
    """Warns of an attention window that training never filled."""
    for index, block in enumerate(config.pattern):
        window = getattr(block.mixer, "window", 0)
        if config.context and window > config.context:
            warnings.warn(
                f"the window of block {index}, {window} positions, is larger than the {config.context} that the model "
                "was trained on: it never saw it full",
                stacklevel=4,
            )
            return


def fitting(model: LanguageModel, limit: int) -> str:
    """What would fit into `limit` bytes of state, as advice."""
    if model.state_bytes(1, 1) > limit:
        return f"one token alone needs {model.state_bytes(1, 1)}; raise the limit, or use a smaller model"
    fits, beyond = 1, 2
    while model.state_bytes(1, beyond) <= limit:
        fits, beyond = beyond, 2 * beyond
    while beyond - fits > 1:
        middle = (fits + beyond) // 2
        fits, beyond = (middle, beyond) if model.state_bytes(1, middle) <= limit else (fits, middle)
    return f"prompt and tokens together may be {fits + 1}; shorten them, or raise the limit"
