"""How the next token is chosen, and when to stop: what a request asks for."""

import math
from dataclasses import dataclass

from verim.errors import InputError

_LEAST_TEMPERATURE = 1e-4


@dataclass(frozen=True)
class Sampling:
    """The settings of one request. They are applied in the order of this list, which is that of transformers.

    - `repetition_penalty` r: the logit of every token that the prompt or the text so far holds is divided by r
      where it is positive and multiplied by r where it is negative (Keskar et al. 2019, arXiv 1909.05858, section
      4.1, with the sign as transformers has it); 1 changes nothing.
    - `temperature`: p = softmax(logits / temperature); 0 takes the likeliest token, whatever the three below say.
    - `top_k`: the k likeliest tokens alone (Fan et al. 2018, arXiv 1805.04833, section 5); 0 for all.
    - `top_p`: of these the smallest set of likeliest tokens whose probability reaches p (Holtzman et al. 2019,
      arXiv 1904.09751, section 3.1); 1 for all.
    - `min_p`: of these the tokens at least `min_p` times as likely as the likeliest (Nguyen et al. 2024,
      arXiv 2407.01082, section 3); 0 for all.
    - `seed`: the draws follow from it and from nothing else: the n-th token of a request uses the n-th number of its
      seed, alone or in any batch.
    - `max_tokens`: so many tokens at most; `stop_tokens` end the text and belong to it no more, and so do the strings
      `stop`, which may begin and end within tokens.
    """

    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    stop_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        object.__setattr__(self, "stop_tokens", tuple(self.stop_tokens))
        wrong = {
            "repetition_penalty": ("more than 0 (1: none)", 0 < self.repetition_penalty < math.inf),
            "temperature": (
                f"0 (the likeliest token) or at least {_LEAST_TEMPERATURE}",
                self.temperature == 0 or _LEAST_TEMPERATURE <= self.temperature < math.inf,
            ),
            "top_k": ("0 (all tokens) or more", self.top_k >= 0),
            "top_p": ("more than 0, at most 1 (all tokens)", 0 < self.top_p <= 1),
            "min_p": ("0 (all tokens) to 1", 0 <= self.min_p <= 1),
            "seed": ("0 to 2**63 - 1", 0 <= self.seed < 2**63),
            "max_tokens": ("at least 1", self.max_tokens >= 1),
            "stop": ("strings that are not empty", all(self.stop)),
            "stop_tokens": ("token numbers", all(token >= 0 for token in self.stop_tokens)),
        }
        for name, (expected, good) in wrong.items():
            if not good:
                raise InputError(f"{name}: got {getattr(self, name)!r}, expected {expected}")
