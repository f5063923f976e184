"""A neural energy: any network that gives a number a class, read as minus the energies of (x, class).

    E(x, y) = −f(x)[y]      E(x) = −ln Σ_y exp(f(x)[y])

So p(y | x) = softmax(f(x)) needs no partition function, and the class of lowest energy is the class predicted; the
same f gives a density over x (Grathwohl et al. 2020, eq. 5 to 8, "your classifier is secretly an energy-based model").
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from verim.errors import InputError
from verim.models.energy.inference import langevin


@dataclass(frozen=True)
class WalkConfig:
    """How x is drawn from a neural energy, by Langevin steps inside `bounds`.

    `rate` is of the order of the squared width of the narrowest valley: the noise of a step is √(2 · rate).
    """

    rate: float = 0.005
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not self.rate > 0 or not self.bounds[0] < self.bounds[1]:
            raise InputError(f"rate, bounds: got {self.rate} and {self.bounds}, expected more than 0, and low < high")


DEFAULT_WALK = WalkConfig()


class NeuralEnergy(nn.Module):
    """E(x, y) and E(x) of `network`: x [batch, pixels] → [batch, labels]; with one label E(x) = −f(x) alone."""

    def __init__(self, network: nn.Module, pixels: int, walk: WalkConfig = DEFAULT_WALK) -> None:
        super().__init__()
        self.network, self.pixels, self.settings = network, pixels, walk
        with torch.no_grad():
            self.labels = network(next(network.parameters()).new_zeros(1, pixels)).shape[1]

    @property
    def visible(self) -> int:
        """What `forward` sees: the pixels."""
        return self.pixels

    def label_energies(self, x: Float[Tensor, "batch pixels"]) -> Float[Tensor, "batch labels"]:
        """E(x, y) of every label."""
        energies: Tensor = -self.network(x)
        return energies

    def energy(self, x: Float[Tensor, "batch pixels"], y: Int[Tensor, "batch"]) -> Float[Tensor, "batch"]:
        """E(x, y)."""
        return self.label_energies(x).gather(1, y[:, None].long())[:, 0]

    def forward(self, x: Float[Tensor, "batch pixels"]) -> Float[Tensor, "batch"]:
        """E(x), the labels summed out."""
        return -(-self.label_energies(x)).logsumexp(1)

    def joined(self, x: Float[Tensor, "batch pixels"], y: Int[Tensor, "batch"]) -> Float[Tensor, "batch pixels"]:
        """What `forward` sees of x and its label: x, since it sums over labels."""
        return x

    def begin(self, count: int, generator: torch.Generator | None = None) -> Float[Tensor, "count pixels"]:
        """Where chains begin: uniform noise within the bounds."""
        low, high = self.settings.bounds
        like = next(self.network.parameters())
        noise = torch.rand(count, self.pixels, dtype=like.dtype, device=like.device, generator=generator)
        return low + (high - low) * noise

    def walk(
        self, x: Float[Tensor, "batch pixels"], steps: int = 1, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch pixels"]:
        """`steps` of Langevin dynamics at temperature 1."""
        return langevin(self, x, steps, self.settings.rate, generator=generator, bounds=self.settings.bounds)


def dense_network(pixels: int, labels: int, width: int = 256, depth: int = 2) -> nn.Sequential:
    """`depth` hidden layers of `width` units with SiLU: smooth, so that its slope in x is a useful force."""
    widths = [pixels] + [width] * depth
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], labels))


def convolution_network(side: int, labels: int, channels: int = 32) -> nn.Sequential:
    """Square images of `side` pixels, flat: three 3 × 3 convolutions, the last two with stride 2, with SiLU."""
    last = (side + 3) // 4
    return nn.Sequential(
        nn.Unflatten(1, (1, side, side)),
        nn.Conv2d(1, channels, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
        nn.SiLU(),
        nn.Conv2d(2 * channels, 2 * channels, 3, stride=2, padding=1),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(2 * channels * last * last, labels),
    )
