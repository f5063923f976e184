"""Figures of a course on deep learning: descent, recurrent gradients, attention weights, noise of mini-batches."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from verim import ops
from verim.claims.claim import Measurement, claim
from verim.claims.expected import AtMost, Exactly, Goldens
from verim.claims.timing import growth
from verim.nn.mixers import RNNConfig
from verim.train import optimisers

_DESCENT = {0.01: 5.5492, 0.1: 3.0001, 0.5: 3.0, 1.0: 10.0, 1.01: 21.8411}


class _Weight(nn.Module):
    """A model of one weight."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(start, dtype=torch.float64))


@claim(
    id="course-gradient-descent",
    area="course",
    text="50 steps of descent on (w − 3)² from 10 end at 5.5492, 3.0001, 3, 10 or 21.8411, as the rate is",
    source="course, gradient descent and learning rates",
    expected=Goldens({f"η = {rate}": end for rate, end in _DESCENT.items()}, tolerance=5.1e-5),
    cost=0.5,
    kind="measured",
    remark="w − 3 is multiplied by 1 − 2η a step: a rate of 1 swings for ever, any above diverges",
)
def gradient_descent(steps: int = 50) -> Measurement:
    ends = {}
    for rate in _DESCENT:
        model = _Weight(10.0)
        optimiser = optimisers.SGDConfig(rate, rates="plain").build(model)
        for _ in range(steps):
            optimiser.zero_grad()
            ((model.w - 3) ** 2).backward()
            optimiser.step()
        ends[f"η = {rate}"] = model.w.item()
    return Measurement(ends, f"w after {steps} steps of our SGD, float64")


@claim(
    id="course-recurrent-gradient",
    area="course",
    text="Over 10 steps a recurrent gradient shrinks to 0.5^10 or grows to 1.5^10",
    source="course, recurrent networks; Bengio et al. 1994",
    expected=Goldens({"a = 0.5": 0.0009765625, "a = 1.5": 57.6650390625}, relative=1e-6),
    cost=0.5,
    kind="measured",
)
def recurrent_gradient(steps: int = 10) -> Measurement:
    found = {}
    for a in (0.5, 1.5):
        initial = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
        b = torch.zeros(1, steps, 1, dtype=torch.float64)
        h = ops.linear_recurrence(torch.tensor([a], dtype=torch.float64), b, initial)
        (gradient,) = torch.autograd.grad(h[0, -1, 0], initial)
        found[f"a = {a}"] = gradient.item()
    return Measurement(found, f"dh/dh₀ of h ← a h after {steps} steps, by our linear recurrence's backward pass")


@claim(
    id="course-spectral-radius",
    area="course",
    text="Gradients of a recurrent network vanish below a spectral radius of 1 and explode above",
    source="Pascanu et al. 2013, arXiv 1211.5063, section 2.1",
    expected=Goldens({"radius 0.8": 0.8, "radius 1": 1.0, "radius 1.2": 1.2}, tolerance=0.01),
    cost=0.5,
    kind="measured",
    remark="that much smaller or larger a step; near a state of 0, where tanh has the slope 1",
)
def spectral_radius(width: int = 32, steps: tuple[int, int] = (20, 60)) -> Measurement:
    random = torch.rand(width, width, dtype=torch.float64)  # positive: its largest eigenvalue is real and alone
    within = random / torch.linalg.eigvals(random).abs().max()
    found = {}
    for radius in (0.8, 1.0, 1.2):
        layer = RNNConfig().build(width).double()
        with torch.no_grad():
            for name, weight in layer.recurrence.named_parameters():
                if name.startswith("bias"):
                    weight.zero_()
                elif name == "weight_hh_l0":
                    weight.copy_(radius * within)
        few, many = (_gradient_norm(layer, width, length) for length in steps)
        found[f"radius {radius:g}"] = (many / few) ** (1 / (steps[1] - steps[0]))
    return Measurement(
        found, f"growth a step of the gradient's norm between {steps[0]} and {steps[1]} steps, RNN of {width} channels"
    )


def _gradient_norm(layer: nn.Module, width: int, length: int) -> float:
    """Of the last output with respect to the first input, all others 0."""
    x = torch.zeros(1, length, width, dtype=torch.float64, requires_grad=True)
    layer(x)[0][0, -1].sum().backward()
    assert x.grad is not None, "the last output depends on the first input"
    return float(x.grad[0, 0].norm())


@claim(
    id="course-attention-rows",
    area="course",
    text="The rows of the attention weights sum to 1",
    source="Vaswani et al. 2017, arXiv 1706.03762, equation 1",
    expected=AtMost(1e-6),
    cost=2,
    kind="measured",
)
def attention_rows(length: int = 129, scale: float = 30.0) -> list[Measurement]:
    q, k = (scale * torch.randn(2, length, 4, 16) for _ in range(2))
    ones = torch.ones_like(q)
    found = []
    for implementation in ("kernel", "tiled", "torch"):
        sums = ops.attention(q, k, ones, implementation=implementation)
        found.append(
            Measurement(
                float((sums - 1).abs().max()),
                f"largest distance from 1 of attention to values of 1, {implementation!r}, causal, {length} positions, "
                f"queries and keys of deviation {scale:g}, float32",
            )
        )
    return found


@claim(
    id="course-batch-variance",
    area="course",
    text="The variance of a mini-batch's gradient falls as one over its size",
    source="course, stochastic gradient descent; Bottou et al. 2018, arXiv 1606.04838, section 4.1",
    expected=Exactly(-1.0, tolerance=0.1),
    cost=2,
    kind="measured",
    remark="of examples drawn with replacement",
)
def batch_variance(sizes: Sequence[int] = (1, 4, 16, 64), draws: int = 400) -> Measurement:
    x, targets = torch.randn(1024, 16), torch.randint(0, 8, (1024,))
    weight = torch.randn(8, 16, requires_grad=True)
    variances = []
    for size in sizes:
        gradients = []
        for _ in range(draws):
            chosen = torch.randint(0, len(x), (size,))
            gradients.append(_gradient(weight, x[chosen], targets[chosen]))
        variances.append(float(torch.stack(gradients).var(0).sum()))
    found = growth(sizes, variances)
    conditions = f"exponent of the summed variance in the batch, {sizes[0]} to {sizes[-1]} of 1024, {draws} draws each"
    return Measurement(found.exponent, f"{conditions}, softmax regression", found.interval)


def _gradient(weight: Tensor, x: Tensor, targets: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(ops.cross_entropy(ops.linear(x, weight), targets), weight)
    return gradient
