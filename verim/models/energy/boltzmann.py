"""The restricted Boltzmann machine: an energy over zeros and ones whose layers are drawn a layer at once.

    E(v, h) = −b·v − c·h − h·Wv      F(v) = −ln Σ_h exp(−E(v, h)) = −b·v − Σ_j softplus(c_j + W_j·v)

The last `labels` of the visible units, if any, are one of them at a time: a class (Larochelle & Bengio 2008, §2).
(Smolensky 1986; Hinton 2002; Hinton 2012, A practical guide to training restricted Boltzmann machines.)
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from verim.errors import InputError


class RestrictedBoltzmannMachine(nn.Module):
    """W [hidden, visible], b [visible], c [hidden]; W begins at 0.01 · normal (Hinton 2012, §8), b and c at 0."""

    def __init__(self, visible: int, hidden: int, labels: int = 0, seed: int = 0) -> None:
        super().__init__()
        if visible < 1 or hidden < 1 or not 0 <= labels < visible:
            raise InputError(
                f"visible, hidden, labels: got {visible}, {hidden} and {labels}, expected at least 1 of each layer, "
                "and labels a part of the visible"
            )
        self.visible, self.hidden, self.labels = visible, hidden, labels
        draw = torch.randn(hidden, visible, generator=torch.Generator().manual_seed(seed))
        self.weights = nn.Parameter(0.01 * draw)
        self.visible_bias = nn.Parameter(torch.zeros(visible))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))

    @property
    def pixels(self) -> int:
        """Visible units that are no label."""
        return self.visible - self.labels

    def energy(self, v: Float[Tensor, "batch visible"], h: Float[Tensor, "batch hidden"]) -> Float[Tensor, "batch"]:
        """E(v, h)."""
        return -(v @ self.visible_bias) - h @ self.hidden_bias - ((h @ self.weights) * v).sum(-1)

    def forward(self, v: Float[Tensor, "batch visible"]) -> Float[Tensor, "batch"]:
        """The free energy F(v): p(v) = exp(−F(v)) / Z."""
        return -(v @ self.visible_bias) - nn.functional.softplus(self.hidden_input(v)).sum(-1)

    def hidden_input(self, v: Float[Tensor, "batch visible"]) -> Float[Tensor, "batch hidden"]:
        """Logits of P(h_j = 1 | v) = σ(c_j + W_j·v)."""
        return nn.functional.linear(v, self.weights, self.hidden_bias)

    def visible_input(self, h: Float[Tensor, "batch hidden"]) -> Float[Tensor, "batch visible"]:
        """Logits of P(v_i = 1 | h) = σ(b_i + h·W_i), and of the softmax over the labels."""
        return h @ self.weights + self.visible_bias

    def draw_visible(
        self, logits: Float[Tensor, "batch visible"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch visible"]:
        """Zeros and ones for these logits; among the labels a single one."""
        pixels = bernoulli(logits[:, : self.pixels].sigmoid(), generator)
        if not self.labels:
            return pixels
        chosen = torch.multinomial(logits[:, self.pixels :].softmax(-1), 1, generator=generator)[:, 0]
        return torch.cat([pixels, nn.functional.one_hot(chosen, self.labels).to(pixels)], -1)

    @torch.no_grad()
    def walk(
        self, v: Float[Tensor, "batch visible"], steps: int = 1, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch visible"]:
        """`steps` rounds of block Gibbs: h given v, then v given h."""
        for _ in range(steps):
            h = bernoulli(self.hidden_input(v).sigmoid(), generator)
            v = self.draw_visible(self.visible_input(h), generator)
        return v

    def begin(self, count: int, generator: torch.Generator | None = None) -> Float[Tensor, "count visible"]:
        """Where chains begin: units drawn by their biases alone."""
        return self.draw_visible(self.visible_bias.detach().expand(count, -1), generator)

    def label_energies(self, pixels: Float[Tensor, "batch pixels"]) -> Float[Tensor, "batch labels"]:
        """F(pixels, label) of every label, exact: hidden units are summed out, no sampling."""
        if not self.labels:
            raise InputError("this machine has no labels: make it with labels=")
        shared = pixels @ self.visible_bias[: self.pixels]
        own = nn.functional.linear(pixels, self.weights[:, : self.pixels], self.hidden_bias)
        hidden = own[:, None] + self.weights[:, self.pixels :].T
        return -shared[:, None] - self.visible_bias[self.pixels :] - nn.functional.softplus(hidden).sum(-1)

    def joined(self, pixels: Float[Tensor, "batch pixels"], y: Int[Tensor, "batch"]) -> Float[Tensor, "batch visible"]:
        """Visible units of pixels and their labels."""
        return torch.cat([pixels, nn.functional.one_hot(y.long(), self.labels).to(pixels)], -1)


def bernoulli(probabilities: Tensor, generator: torch.Generator | None) -> Tensor:
    """Zeros and ones of the probabilities' type."""
    draw = torch.rand(probabilities.shape, dtype=probabilities.dtype, device=probabilities.device, generator=generator)
    return (draw < probabilities).to(probabilities.dtype)
