"""Rotary positions on the CPU: a position's heads lie side by side and share its angles."""

import numpy as np
from torch import Tensor

from verim.ops.compiled import compiled
from verim.ops.vectors import BYTES, LANES, full, load_lanes, multiply, multiply_add, store_lanes, subtract
from verim.ops.workers import run_tasks

_BLOCK = 64  # positions of a task
_NANOSECONDS = 0.5  # of one number, measured


def rotate(x: Tensor, cosines: Tensor, sines: Tensor, turn: int) -> Tensor:
    """`x` [batch, length, ..., head_dim] rotated forwards (`turn` 1) or back (-1). Float32, unchecked."""
    x = x if x[:1, :1].is_contiguous() else x.contiguous()  # what belongs to a position lies side by side
    cosines, sines = cosines.contiguous(), sines.contiguous()
    y = x.new_empty(x.shape)
    batch, length, dim = x.shape[0], x.shape[1], x.shape[-1]
    heads = y.numel() // max(batch * length * dim, 1)
    positions = batch * length
    strides = x.stride(0) * BYTES, x.stride(1) * BYTES
    places = (x.data_ptr(), *strides, cosines.data_ptr(), sines.data_ptr(), y.data_ptr())
    arguments = (*places, positions, length, heads, dim // 2, turn)
    run_tasks(_rotate, -(-positions // _BLOCK), _NANOSECONDS * y.numel(), 0, arguments)
    return y


@compiled
def _rotate(
    first: int,
    last: int,
    scratch: int,
    x: int,
    x_batch: int,
    x_time: int,
    cosines: int,
    sines: int,
    y: int,
    positions: int,
    length: int,
    heads: int,
    half: int,
    turn: int,
) -> None:
    direction, partner = full(np.float32(turn)), half * BYTES
    for position in range(first * _BLOCK, min(positions, last * _BLOCK)):
        batch, t = position // length, position % length
        source, target = x + batch * x_batch + t * x_time, y + position * heads * 2 * partner
        for d in range(0, half, LANES):
            count, place = half - d, d * BYTES
            c = load_lanes(cosines + t * partner + place, count)
            s = multiply(load_lanes(sines + t * partner + place, count), direction)
            for head in range(heads):
                here = 2 * head * partner + place
                left, right = load_lanes(source + here, count), load_lanes(source + here + partner, count)
                store_lanes(target + here, count, subtract(multiply(left, c), multiply(right, s)))
                store_lanes(target + here + partner, count, multiply_add(left, s, multiply(right, c)))
