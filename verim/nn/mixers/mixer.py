"""What every mixer is: the layer of a block that mixes along the sequence."""

from torch import nn

from verim.nn.layer import Layer


class Mixer(Layer):
    """A layer that mixes along the sequence; what it writes goes through the matrix `out`."""

    out: nn.Linear

    def writers(self) -> list[nn.Linear]:
        return [self.out]
