"""Echo state networks: a fixed random recurrence whose states a linear readout learns from."""

from verim.neuro.echo.capacity import memory_profile
from verim.neuro.echo.network import EchoStateNetwork
from verim.neuro.echo.readout import RecursiveLeastSquares, TunedRidge
from verim.neuro.echo.reservoir import LinearReservoir, Reservoir, ReservoirConfig
from verim.neuro.echo.signals import lorenz, mackey_glass, narma10

__all__ = [
    "EchoStateNetwork",
    "LinearReservoir",
    "RecursiveLeastSquares",
    "Reservoir",
    "ReservoirConfig",
    "TunedRidge",
    "lorenz",
    "mackey_glass",
    "memory_profile",
    "narma10",
]
