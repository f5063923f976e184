"""An echo state network: a reservoir, a ridge readout, and its own output fed back."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from verim.errors import InputError
from verim.neuro.echo.readout import TunedRidge
from verim.neuro.echo.reservoir import LinearReservoir, Reservoir, checked_sequences


class EchoStateNetwork:
    """Learns to map inputs u to targets y, a readout of states and inputs by `TunedRidge`.

        y_t = W_out [x_t, u_t]          and with `squares` [x_t, x_t², u_t], as a photodetector reads (Vinckier 2015)

    The first `washout` steps, in which the zero state is forgotten, teach nothing. To generate a signal, train on its
    next value: `fit(signal[:, :-1], signal[:, 1:])` is teacher-forced output feedback, and `free_run` then feeds
    outputs back as inputs (Jaeger 2001, section 4).
    """

    def __init__(
        self,
        reservoir: Reservoir | LinearReservoir,
        penalties: Sequence[float] = (1e-9, 1e-7, 1e-5, 1e-3),
        washout: int = 100,
        squares: bool = False,
    ) -> None:
        if washout < 0:
            raise InputError(f"EchoStateNetwork: washout is {washout}, expected 0 or more")
        self.reservoir, self.washout, self.squares = reservoir, washout, squares
        self.readout = TunedRidge(penalties)

    def fit(
        self, u: Float[Tensor, "batch length inputs"], y: Float[Tensor, "batch length outputs"]
    ) -> "EchoStateNetwork":
        """Returns itself."""
        states = self.reservoir.states(u)
        y = checked_sequences("EchoStateNetwork: targets", y, y.shape[-1])
        if y.shape[:2] != u.shape[:2] or u.shape[1] <= self.washout:
            raise InputError(
                f"EchoStateNetwork: inputs and targets have shapes {tuple(u.shape)} and {tuple(y.shape)}, expected "
                f"the same batch and length, more than the washout of {self.washout}"
            )
        x = self._features(states, u.double())[:, self.washout :]
        self.readout.fit(x.flatten(0, 1), y[:, self.washout :].flatten(0, 1))
        return self

    def predict(self, u: Float[Tensor, "batch length inputs"]) -> Float[Tensor, "batch length outputs"]:
        """The outputs from the zero state on; those of the washout are there too."""
        return self.readout.predict(self._features(self.reservoir.states(u), u.double()))

    def score(self, u: Float[Tensor, "batch length inputs"], y: Float[Tensor, "batch length outputs"]) -> float:
        """R² after the washout, 1 - NMSE."""
        error = (self.predict(u) - y)[:, self.washout :].square().mean()
        return 1 - float(error / y[:, self.washout :].double().var(correction=0))

    def free_run(self, u: Float[Tensor, "batch length inputs"], steps: int) -> Float[Tensor, "batch steps inputs"]:
        """`u` is heard, then outputs are fed back as inputs: the `steps` that follow, all sequences at once.

        Raises `InputError` where outputs grow without bound.
        """
        if not isinstance(self.reservoir, Reservoir):
            raise InputError("EchoStateNetwork: free_run needs a Reservoir, got a LinearReservoir")
        state = self.reservoir.states(u)[:, -1]
        return self.go_on(state, u[:, -1].double(), steps)

    def go_on(
        self, state: Float[Tensor, "batch features"], last: Float[Tensor, "batch inputs"], steps: int
    ) -> Float[Tensor, "batch steps inputs"]:
        """A free run from states of the reservoir and the last inputs that led there."""
        assert isinstance(self.reservoir, Reservoir), "checked by free_run"
        outputs = []
        for _ in range(steps):
            last = self.readout.predict(self._features(state, last))
            if last.shape[-1] != self.reservoir.config.inputs:
                raise InputError("EchoStateNetwork: a free run needs as many outputs as inputs")
            if not float(last.abs().max()) < 1e9:
                radius = self.reservoir.config.spectral_radius
                raise InputError(
                    f"EchoStateNetwork: the free run diverges with spectral radius {radius}; expected a smaller "
                    "radius or input scale, or a larger penalty"
                )
            outputs.append(last)
            state = self.reservoir.states(last[:, None], state)[:, -1]
        return torch.stack(outputs, 1)

    def _features(self, states: Tensor, u: Tensor) -> Tensor:
        parts = [states, states.square(), u] if self.squares else [states, u]
        return torch.cat(parts, -1)
