"""Mamba-2's chunked algorithm on the CPU, with products held in registers; `chunked.py` has its formulas.

A task is some of a group's heads in one sequence. It walks the chunks; what a chunk of one head needs lies in the first
two levels of cache, and C Bᵀ of a chunk serves all heads of the task. L is made without exponentials and without
differences of long sums: row t of it is row t - 1 times e^(delta_t A), with a 1 on the diagonal. What has decayed below
2^-100 becomes 0, or the numbers on their way to 0 (denormal, each a hundred cycles) would cost more than the products.

The gradient of delta A sums R[t, i] over i < j ≤ t: going back through the rows, a row of running sums over t, of which
lanes i < j are added up. Gradients of B and C sum over heads; those of a task's heads are summed in its cache, those of
several tasks of one group are added at the end: their number follows from the shape, and with it the bits.

Where few positions come without gradients (decoding), each head walks step by step over its state in memory.
"""

import numpy as np
import torch
from torch import Tensor

from verim.ops.compiled import compiled
from verim.ops.memory import address_of
from verim.ops.state_space_dual.backward import backward
from verim.ops.state_space_dual.matrices import (
    add_product,
    drive,
    mix,
    read_rows,
    read_steps,
    scale_rows,
    score,
    write_rows,
)
from verim.ops.state_space_dual.walk import walk
from verim.ops.tiles import fill, turn, up
from verim.ops.vectors import (
    BYTES,
    LANES,
    ROW,
    broadcast,
    full,
    load,
    load_lanes,
    load_scalar,
    multiply_add,
    store_lanes,
)
from verim.ops.workers import run_tasks

FEW = 8  # positions, below which walking over the states beats making matrices of them
TASKS = 8  # wanted where heads are many
_FORWARD_NANOSECONDS, _BACKWARD_NANOSECONDS = 0.02, 0.05  # for a multiply-add of the forward pass
_WALK_NANOSECONDS = 0.5  # for an entry of the state and one step: what memory takes
_ZERO = np.float32(0)


@compiled
def _forward(
    first: int,
    last: int,
    scratch: int,
    length: int,
    heads: int,
    dim: int,
    groups: int,
    state: int,
    chunk: int,
    bands: int,
    x: int,
    x_batch: int,
    x_time: int,
    x_head: int,
    delta: int,
    delta_batch: int,
    delta_time: int,
    delta_head: int,
    A: int,
    B: int,
    B_batch: int,
    B_time: int,
    B_group: int,
    C: int,
    C_batch: int,
    C_time: int,
    C_group: int,
    D: int,
    initial: int,
    y: int,
    final: int,
    states: int,
) -> None:
    """Compiled. Tensors are addresses (0 for None); `_batch` and so on are strides in bytes."""
    rows, vectors = up(chunk, LANES), up(dim, LANES) // LANES
    line, dim_line, state_line = rows * BYTES, vectors * ROW, up(state, LANES) * BYTES
    state_rows = up(state, LANES)
    B_rows = scratch
    C_rows = B_rows + rows * state_line
    turned = C_rows + rows * state_line
    scores = turned + state_rows * line
    mixing = scores + rows * line
    driven = mixing + rows * line
    weighted = driven + rows * dim_line
    out = weighted + rows * dim_line
    steps = out + rows * dim_line
    row = steps + 4 * line
    held = row + line
    chunks = (length + chunk - 1) // chunk
    whole = state * dim * BYTES
    for task in range(first, last):
        batch, group, band = task // (groups * bands), task // bands % groups, task % bands
        sharing = heads // groups
        head_first = group * sharing + sharing * band // bands
        members = group * sharing + sharing * (band + 1) // bands - head_first
        for member in range(members):
            h = held + member * state_rows * dim_line
            here = (batch * heads + head_first + member) * whole
            if initial != 0:
                read_rows(h, dim_line, initial + here, dim * BYTES, state, dim, state_rows)
            else:
                fill(h, state_rows * vectors * LANES, _ZERO)
        for index in range(chunks):
            start = index * chunk
            count = min(chunk, length - start)
            read_rows(
                B_rows, state_line, B + batch * B_batch + group * B_group + start * B_time, B_time, count, state, rows
            )
            read_rows(
                C_rows, state_line, C + batch * C_batch + group * C_group + start * C_time, C_time, count, state, rows
            )
            turn(turned, line, B_rows, state_line, rows, state_rows)
            score(scores, line, turned, C_rows, state_line, count, state)
            for member in range(members):
                head, h = head_first + member, held + member * state_rows * dim_line
                place = x + batch * x_batch + head * x_head + start * x_time
                step = delta + batch * delta_batch + head * delta_head + start * delta_time
                through = read_steps(steps, line, step, delta_time, count, load_scalar(A + head * BYTES))
                ahead = x_head if member < members - 1 else chunk * x_time - (members - 1) * x_head
                drive(driven, weighted, dim_line, place, x_time, count, dim, steps, line, ahead)
                if states != 0:
                    kept = states + ((batch * chunks + index) * heads + head) * whole
                    write_rows(kept, dim * BYTES, h, dim_line, state, dim)
                fill(out, up(count, 2) * vectors * LANES, _ZERO)
                add_product(out, dim_line, h, dim_line, C_rows, state_line, BYTES, state, count, vectors)
                mix(mixing, line, scores, row, count, steps + line)
                for t in range(count):
                    scale_rows(out + t * dim_line, dim_line, 1, broadcast(steps + 2 * line + t * BYTES))
                for t in range(0, count, 6):
                    until = min(t + 6, count)
                    to, factors = out + t * dim_line, mixing + t * line
                    add_product(to, dim_line, driven, dim_line, factors, line, BYTES, until, until - t, vectors)
                skip = full(_ZERO)
                if D != 0:
                    skip = broadcast(D + head * BYTES)
                to = y + ((batch * length + start) * heads + head) * dim * BYTES
                for t in range(count):
                    for c in range(0, dim, LANES):
                        value, n = load(out + t * dim_line + c * BYTES), min(dim - c, LANES)
                        if D != 0:
                            value = multiply_add(skip, load_lanes(place + t * x_time + c * BYTES, n), value)
                        store_lanes(to + t * heads * dim * BYTES + c * BYTES, n, value)
                scale_rows(h, dim_line, state, full(through))
                add_product(h, dim_line, weighted, dim_line, turned, line, BYTES, count, state, vectors)
        for member in range(members):
            here = (batch * heads + head_first + member) * whole
            write_rows(final + here, dim * BYTES, held + member * state_rows * dim_line, dim_line, state, dim)


def dual_forward(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    initial: Tensor | None,
    chunk: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the final state, and with `keep` the states that `dual_backward` asks for. Arguments are unchecked."""
    batch, length, heads, dim = x.shape
    groups, state = B.shape[2:]
    x, B, C, A = rows_of(x), rows_of(B), rows_of(C), A.contiguous()
    D = None if D is None else D.contiguous()
    initial = None if initial is None else initial.contiguous()
    y = torch.empty(batch, length, heads, dim, dtype=torch.float32, device="cpu")
    final = torch.empty(batch, heads, state, dim, dtype=torch.float32, device="cpu")
    kept = states_shape(batch, length, heads, dim, state, chunk) if keep else (0,)
    states = torch.empty(kept, dtype=torch.float32, device="cpu")
    arguments: tuple[int, ...] = (*place_of(x), *place_of(delta), A.data_ptr(), *place_of(B), *place_of(C))
    arguments += (address_of(D), address_of(initial), y.data_ptr(), final.data_ptr())
    if length < FEW and not keep:
        work = _WALK_NANOSECONDS * final.numel() * length
        run_tasks(walk, batch * heads, work, 0, (length, heads, dim, groups, state, *arguments))
        return y, final, states
    bands = _bands(batch, heads, groups)
    sizes = length, heads, dim, groups, state, chunk, bands
    members = -(-heads // (groups * bands))
    rows, columns, entries = (-(-size // LANES) * LANES for size in (chunk, dim, state))
    scratch = 3 * rows * entries + 2 * rows * rows + 3 * rows * columns + 5 * rows + members * entries * columns
    arguments += (states.data_ptr() if keep else 0,)
    work = _FORWARD_NANOSECONDS * x.numel() * (2 * state + chunk)
    run_tasks(_forward, batch * groups * bands, work, scratch, (*sizes, *arguments))
    return y, final, states


def dual_backward(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    states: Tensor,
    dy: Tensor,
    dfinal: Tensor | None,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, delta, A, B, C, D and the initial state."""
    batch, length, heads, dim = x.shape
    groups, state = B.shape[2:]
    x, B, C, dy, A = rows_of(x), rows_of(B), rows_of(C), rows_of(dy), A.contiguous()
    D = None if D is None else D.contiguous()
    dfinal = None if dfinal is None else dfinal.contiguous()
    bands = _bands(batch, heads, groups)

    def new(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device="cpu")

    dx, ddelta, dinitial = new(*x.shape), new(batch, length, heads), new(batch, heads, state, dim)
    dB, dC = new(bands, *B.shape), new(bands, *B.shape)
    dA, dD = new(batch, heads), new(batch, heads)
    arguments: tuple[int, ...] = (length, heads, dim, groups, state, chunk, bands, batch)
    arguments += (*place_of(x), *place_of(delta), A.data_ptr(), *place_of(B), *place_of(C), address_of(D))
    arguments += (states.data_ptr(), *place_of(dy), address_of(dfinal))
    arguments += tuple(tensor.data_ptr() for tensor in (dx, ddelta, dA, dB, dC, dD, dinitial))
    members = -(-heads // (groups * bands))
    rows, columns, entries = (-(-size // LANES) * LANES for size in (chunk, dim, state))
    scratch = 6 * rows * (entries + columns) + 4 * rows * rows + 8 * rows + (2 + members) * entries * columns
    work = _BACKWARD_NANOSECONDS * x.numel() * (2 * state + chunk)
    run_tasks(backward, batch * groups * bands, work, scratch, arguments)
    dB, dC = (part[0] if bands == 1 else part.sum(0) for part in (dB, dC))
    return dx, ddelta, dA.sum(0), dB, dC, dD.sum(0), dinitial


def rows_of(tensor: Tensor) -> Tensor:
    """`tensor` itself where its last axis lies side by side, else a copy."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def place_of(tensor: Tensor) -> tuple[int, int, int, int]:
    """The address of a tensor [batch, length, heads, ...] and the bytes between two entries of the three axes."""
    batch, time, head = tensor.stride()[:3]
    return tensor.data_ptr(), batch * BYTES, time * BYTES, head * BYTES


def states_shape(batch: int, length: int, heads: int, dim: int, state: int, chunk: int) -> tuple[int, ...]:
    """Of what the forward pass keeps: the state at the beginning of every chunk."""
    return batch, -(-length // chunk), heads, state, dim


def _bands(batch: int, heads: int, groups: int) -> int:
    """How many tasks share the heads of a group."""
    return max(1, min(heads // groups, -(-TASKS // max(batch * groups, 1))))
