"""Training against inference: the model that is cheapest over its life, and why models shrink.

A model of N parameters trained on D tokens and then asked for T tokens costs k·N·D + p·j·N·T, in FLOPs of training.
Training alone has its optimum at Chinchilla's balance; with T counted, a smaller model that reads longer reaches the
same loss for less in all (Sardana et al. 2401.00448, equation 3, where k = 6, j = 2 and p = 1).

>>> from verim.scaling.laws import Law
>>> law = Law(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)
>>> for tokens in (0, 1e12, 1e13):
...     life = cheapest_for_loss(law, law.optimum(1e23).L, tokens)
...     print(f"{life.N / 1e9:.1f} B parameters, {life.tokens_per_parameter:.0f} tokens a parameter")
29.4 B parameters, 19 tokens a parameter
19.7 B parameters, 46 tokens a parameter
11.4 B parameters, 214 tokens a parameter
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from scipy.optimize import minimize_scalar

from verim.errors import InputError
from verim.scaling.laws import Surface

# Sizes searched: from this share above the smallest possible one to this factor of it, both as e^u
_NEAREST, _WIDEST = -18.0, 12.0
_SMALLEST = 40.0  # e-folds below the largest size that a life's FLOPs pay for


@dataclass(frozen=True)
class Costs:
    """FLOPs a parameter and token of `training` and `inference`, and the `price` of a FLOP of inference in training's.

    2 and not 6, since inference has no backward pass. `price` is above 1 where decoding uses the hardware worse:
    the ratio of the two utilisations, for one kind of device.
    """

    training: float = 6.0
    inference: float = 2.0
    price: float = 1.0

    def __post_init__(self) -> None:
        for name in ("training", "inference", "price"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name}: got {value}, expected a finite number above 0")


class LifeCycle(NamedTuple):
    """A model over its life: size, training tokens, loss, and FLOPs, those of inference at their price."""

    N: float
    D: float
    L: float
    training_flops: float
    inference_flops: float

    @property
    def total_flops(self) -> float:
        """What the whole life costs, in FLOPs of training."""
        return self.training_flops + self.inference_flops

    @property
    def tokens_per_parameter(self) -> float:
        """D / N: 20 where nobody uses the model, hundreds and more where many do."""
        return self.D / self.N


def cheapest_for_loss(law: Surface, loss: float, inference_tokens: float, costs: Costs | None = None) -> LifeCycle:
    """The N and D with L(N, D) = `loss` whose training and `inference_tokens` of use cost least.

    Raises `InputError` for a loss that the law never reaches, or that it reaches with no parameters at all.
    """
    costs, used = costs or Costs(), _checked_tokens(inference_tokens)
    least = law.least_parameters(loss)
    if not (math.isfinite(least) and least > 0):
        raise InputError(f"loss is {loss:.6g}: this law reaches it with any number of parameters, so none is best")

    def total(u: float) -> float:
        N = least * (1 + math.exp(u))
        return math.log(costs.training * N * law.tokens_for(N, loss) + costs.price * costs.inference * N * used)

    u = minimize_scalar(total, bounds=(_NEAREST, _WIDEST), method="bounded", options={"xatol": 1e-9}).x
    N = least * (1 + math.exp(u))
    return _life(law, N, law.tokens_for(N, loss), used, costs)


def best_within(law: Surface, total_flops: float, inference_tokens: float, costs: Costs | None = None) -> LifeCycle:
    """The N and D of least loss among the models whose training and use together cost `total_flops`."""
    costs, used = costs or Costs(), _checked_tokens(inference_tokens)
    if not (math.isfinite(total_flops) and total_flops > 0):
        raise InputError(f"total_flops is {total_flops}: give a finite number above 0")
    largest = total_flops / (costs.training + costs.price * costs.inference * used)  # it reads one token

    def tokens(N: float) -> float:
        return total_flops / (costs.training * N) - costs.price * costs.inference * used / costs.training

    def reached(log_share: float) -> float:
        N = largest * math.exp(log_share)
        return law.loss(N, tokens(N))

    log_share = minimize_scalar(reached, bounds=(-_SMALLEST, 0.0), method="bounded", options={"xatol": 1e-10}).x
    N = largest * math.exp(log_share)
    return _life(law, N, tokens(N), used, costs)


def _checked_tokens(inference_tokens: float) -> float:
    if not (math.isfinite(inference_tokens) and inference_tokens >= 0):
        raise InputError(f"inference_tokens is {inference_tokens}: give a finite number of at least 0")
    return inference_tokens


def _life(law: Surface, N: float, D: float, used: float, costs: Costs) -> LifeCycle:
    return LifeCycle(N, D, law.loss(N, D), costs.training * N * D, costs.price * costs.inference * N * used)
