"""A diagonal linear system that is the same at every position, for many channels at once."""

from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from verim.ops import linear_recurrence
from verim.ops.precision import widen, without_autocast

BLOCK = 32
Modes = Float[Tensor, "channels modes"] | Complex[Tensor, "channels modes"]
ModesState = Float[Tensor, "batch channels modes"] | Complex[Tensor, "batch channels modes"]


def time_invariant_scan(
    u: Float[Tensor, "batch length channels"],
    log_transition: Modes,
    weight: Modes,
    skip: Float[Tensor, "channels"],
    initial: ModesState | None = None,
    block: int = BLOCK,
) -> tuple[Float[Tensor, "batch length channels"], ModesState]:
    """y and the state after the last position of

        h_t = exp(log_transition) h_{t-1} + u_t,    y_t = Re Σ_n weight_n h_{t,n} + skip u_t

    from h = `initial`, or zero: a convolution with K_k = Re Σ_n weight_n exp(k log_transition_n).

    In a block of positions it is done as a convolution, by a matrix for each channel; from block to block as a
    recurrence. So of the states batch · length · channels · modes there is only every `block`-th, and nothing is
    divided by a transition: modes may decay as fast as they like. A convolution by Fourier transform takes 1.4 to 3.3
    times as long to train at 256 to 2048 positions, and leaves the state to be found (docs/LOG.md).

    Halves are computed in float32.
    """
    kind = u.dtype
    with without_autocast(u):
        u, skip = widen(u, skip)
        if u.shape[1] == 1:
            y, state = _one_step(u[:, 0], log_transition, weight, skip, initial)
        else:
            y, state = _in_blocks(u, log_transition, weight, skip, initial, block)
    return y.to(kind), state


def _one_step(
    u: Float[Tensor, "batch channels"],
    log_transition: Modes,
    weight: Modes,
    skip: Float[Tensor, "channels"],
    initial: ModesState | None,
) -> tuple[Float[Tensor, "batch 1 channels"], ModesState]:
    """The formula itself: what a block makes ready for its positions is not worth it for one."""
    if initial is None:
        initial = weight.new_zeros(u.shape[0], *weight.shape)
    h = _exponential(log_transition) * initial + u[..., None]
    y = (weight * h).real.sum(-1) + skip * u
    return y[:, None], h


def _in_blocks(
    u: Float[Tensor, "batch length channels"],
    log_transition: Modes,
    weight: Modes,
    skip: Float[Tensor, "channels"],
    initial: ModesState | None,
    block: int,
) -> tuple[Float[Tensor, "batch length channels"], ModesState]:
    batch, length, channels = u.shape
    block = min(block, length)
    powers = _exponential(log_transition[..., None] * torch.arange(block + 1, device=u.device))
    response = weight[..., None] * powers
    kernel = response[..., :block].real.sum(1)
    kernel = torch.cat([torch.zeros_like(kernel[:, 1:]), kernel[:, :1] + skip[:, None], kernel[:, 1:]], 1)
    convolve = kernel.unfold(1, block, 1).flip(1)  # [channels, from, to]: kernel[to - from], 0 where to < from
    write = _by_position(powers[..., :block].flip(2))
    read = _by_position(response[..., 1:].conj()).transpose(1, 2)
    inputs = _Transpose.apply(u.reshape(batch * length, channels)).reshape(channels, batch, length)
    outputs, state = [], initial
    whole = length - length % block
    for piece, size in ((inputs[..., :whole], block), (inputs[..., whole:], length % block)):
        if size:
            matrices = convolve[:, :size, :size], write[:, block - size :], read[:, :, :size]
            y, state = _through_blocks(piece, size, *matrices, powers[..., size], state)
            outputs.append(y)
    assert state is not None, "a sequence has at least one position"
    y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)
    return _Transpose.apply(y.reshape(channels, batch * length)).reshape(u.shape), state


def _through_blocks(
    inputs: Float[Tensor, "channels batch length"],
    size: int,
    convolve: Float[Tensor, "channels size size"],
    write: Float[Tensor, "channels size parts"],
    read: Float[Tensor, "channels parts size"],
    transition: Modes,
    initial: ModesState | None,
) -> tuple[Float[Tensor, "channels batch length"], ModesState]:
    """Blocks of `size` positions: what each makes of its inputs, what it leaves to the next, and takes from there."""
    channels, batch, length = inputs.shape
    blocks = length // size
    rows = inputs.reshape(channels, batch * blocks, size)
    left = _from_parts(torch.bmm(rows, write).transpose(0, 1), transition).reshape(batch, blocks, -1)
    start = torch.zeros_like(left[:, 0]) if initial is None else initial.flatten(1)
    after, final = linear_recurrence(transition.flatten(), left, start, return_state=True)
    before = torch.cat([start[:, None], after[:, :-1]], 1).reshape(batch * blocks, channels, -1)
    y = torch.bmm(rows, convolve) + torch.bmm(_parts(before).transpose(0, 1), read)
    return y.reshape(channels, batch, length), final.reshape(batch, *transition.shape)


def _exponential(logarithm: Tensor) -> Tensor:
    if not logarithm.is_complex():
        return logarithm.exp()
    return torch.polar(logarithm.real.exp(), logarithm.imag)  # torch's complex exponential takes several times as long


class _Transpose(torch.autograd.Function):
    """A transposed copy, whose gradient is one too: batched products go matrix by matrix where entries lie apart."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        return matrix.t().contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Transpose.apply(gradients[0])


def _parts(numbers: Tensor) -> Tensor:
    """Complex numbers [..., n] as real ones [..., 2 n]; real ones as they are."""
    return torch.view_as_real(numbers).flatten(-2) if numbers.is_complex() else numbers


def _from_parts(parts: Tensor, like: Tensor) -> Tensor:
    return torch.view_as_complex(parts.unflatten(-1, (-1, 2)).contiguous()) if like.is_complex() else parts


def _by_position(numbers: Tensor) -> Tensor:
    """[channels, modes, positions] as [channels, positions, parts]."""
    return _parts(numbers.transpose(1, 2).resolve_conj().contiguous())
