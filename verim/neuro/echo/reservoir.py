"""Reservoirs: fixed random recurrences, leaky and deep, and a linear one that is a scan."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from verim.errors import InputError
from verim.neuro.echo.step import walk_reference, walk_sparse
from verim.ops import linear_recurrence

_DENSE = 0.2  # with this share of connections, or more, torch's matrix products are faster


@dataclass(frozen=True)
class ReservoirConfig:
    """A leaky echo state reservoir (Jaeger 2001, GMD report 148; Jaeger et al. 2007, Neural Networks 20, eq. 2).

        x_t = (1 - `leak`) x_{t-1} + `leak` tanh(W x_{t-1} + W_in u_t + bias)

    W has `connections` normal weights a unit, scaled to `spectral_radius`; W_in is uniform in ± `input_scale`, the
    bias in ± `bias_scale`. With several `layers` each reads the states of the one before in the place of u
    (Gallicchio, Micheli & Pedrelli 2017, Neurocomputing 268), its weights scaled by 1/√units.
    """

    inputs: int = 1
    units: int = 100
    layers: int = 1
    spectral_radius: float = 0.9
    input_scale: float = 1.0
    bias_scale: float = 0.0
    leak: float = 1.0
    connections: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("inputs", "units", "layers", "connections"):
            if getattr(self, name) < 1:
                raise InputError(f"ReservoirConfig: {name} is {getattr(self, name)}, expected at least 1")
        for name in ("spectral_radius", "input_scale", "bias_scale"):
            if not (getattr(self, name) >= 0 and math.isfinite(getattr(self, name))):
                raise InputError(f"ReservoirConfig: {name} is {getattr(self, name)}, expected 0 or more, finite")
        if not 0 < self.leak <= 1:
            raise InputError(f"ReservoirConfig: leak is {self.leak}, expected more than 0 and at most 1")


def checked_sequences(name: str, u: Tensor, channels: int) -> Float[Tensor, "batch length channels"]:
    """`u` in float64 if it is finite [batch, length, channels]."""
    if u.dim() != 3 or u.shape[2] != channels or not u.is_floating_point():
        raise InputError(f"{name} have shape {tuple(u.shape)}, expected floats [batch, length, {channels}]")
    if not bool(u.isfinite().all()):
        raise InputError(f"{name} hold NaN or infinity, expected finite numbers")
    return u.double()


class Reservoir:
    """The reservoir that a configuration draws, in float64. Nothing in it learns."""

    def __init__(self, config: ReservoirConfig) -> None:
        self.config = config
        generator = torch.Generator().manual_seed(config.seed)
        size, degree = config.units, min(config.connections, config.units)

        def uniform(*shape: int) -> Tensor:
            return 2 * torch.rand(*shape, generator=generator, dtype=torch.float64) - 1

        self.weights, self.input_weights, self.biases = [], [], []
        for layer in range(config.layers):
            sources = torch.rand(size, size, generator=generator).argsort(1)[:, :degree]
            drawn = torch.randn(size, degree, generator=generator, dtype=torch.float64)
            weights = drawn.new_zeros(size, size).scatter_(1, sources, drawn)
            radius = float(torch.linalg.eigvals(weights).abs().max())
            self.weights.append(weights * (config.spectral_radius / radius if radius else 1.0))
            above = config.inputs if layer == 0 else size
            self.input_weights.append(uniform(size, above) * (config.input_scale / (size**0.5 if layer else 1)))
            self.biases.append(uniform(size) * config.bias_scale)
        self._rows = [_compressed(weights) for weights in self.weights]

    @property
    def features(self) -> int:
        """Units of all layers."""
        return self.config.units * self.config.layers

    def states(
        self, u: Float[Tensor, "batch length inputs"], first: Float[Tensor, "batch features"] | None = None
    ) -> Float[Tensor, "batch length features"]:
        """The states of all layers side by side, from `first` or zero, after each input.

        On the CPU all steps of a sparse reservoir are one compiled call, sequences eight by eight.
        """
        u = checked_sequences("Reservoir: inputs", u, self.config.inputs)
        firsts = u.new_zeros(len(u), self.features) if first is None else first
        found = []
        parts = zip(self.weights, self.input_weights, self.biases, self._rows, strict=True)
        for (weights, entering, bias, rows), state in zip(parts, firsts.split(self.config.units, 1), strict=True):
            drive = u @ entering.to(u).T + bias.to(u)
            if rows is None or u.device.type != "cpu":
                u = walk_reference(drive, weights.to(u), self.config.leak, state)
            else:
                u = walk_sparse(drive, *rows, self.config.leak, state)
            found.append(u)
        return torch.cat(found, 2)


def _compressed(weights: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Pointers, sources and weights by row, or None for weights that are better multiplied densely."""
    targets, sources = weights.nonzero(as_tuple=True)
    if len(sources) > _DENSE * weights.numel():
        return None
    pointers = torch.zeros(len(weights) + 1, dtype=torch.int64)
    pointers[1:] = torch.bincount(targets, minlength=len(weights)).cumsum(0)
    return pointers, sources, weights[targets, sources]


class LinearReservoir:
    """A linear reservoir in the basis where it is diagonal: `verim.ops.linear_recurrence` runs it, parallel in time.

        z_t = λ z_{t-1} + W_in u_t,    features Re z and Im z

    λ are pairs of conjugates spread evenly over the disc of `spectral_radius`, as the eigenvalues of a random matrix
    are (Ginibre 1965); of each pair one number is kept, so `units` features are units / 2 complex ones. Raises
    `InputError` where the state diverges.
    """

    def __init__(self, inputs: int = 1, units: int = 100, spectral_radius: float = 0.9, seed: int = 0) -> None:
        if inputs < 1 or units < 2 or units % 2 or not spectral_radius >= 0:
            raise InputError(
                f"LinearReservoir: inputs, units, spectral_radius are {inputs}, {units}, {spectral_radius}, expected "
                "at least 1, an even number, 0 or more"
            )
        self.inputs, self.units, self.spectral_radius = inputs, units, spectral_radius
        generator = torch.Generator().manual_seed(seed)
        size = torch.rand(units // 2, generator=generator, dtype=torch.float64).sqrt()
        angle = math.pi * torch.rand(units // 2, generator=generator, dtype=torch.float64)
        self.eigenvalues = torch.polar(spectral_radius * size / size.max(), angle)
        self.input_weights = torch.randn(units // 2, inputs, generator=generator, dtype=torch.complex128)

    @property
    def features(self) -> int:
        """Real numbers of a state."""
        return self.units

    def states(self, u: Float[Tensor, "batch length inputs"]) -> Float[Tensor, "batch length features"]:
        """The states after each input, from zero."""
        u = checked_sequences("LinearReservoir: inputs", u, self.inputs)
        z = linear_recurrence(self.eigenvalues, u.to(torch.complex128) @ self.input_weights.T)
        states = torch.cat([z.real, z.imag], 2)
        if not float(states.abs().max()) < 1e12 * (1 + float(u.abs().max())):
            raise InputError(
                f"LinearReservoir: the state diverges with spectral radius {self.spectral_radius}, expected below 1"
            )
        return states
