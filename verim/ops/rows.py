"""What the Triton kernels of the scans share: a program's place, and rows of time loaded together."""

import triton
import triton.language as tl


@triton.jit
def place(channels, spans, CHANNELS: tl.constexpr):
    """Batch row, span of time and block of channels of this program. Blocks run fastest: neighbours share rows."""
    program, blocks = tl.program_id(0), tl.cdiv(channels, CHANNELS)
    return (program // blocks // spans).to(tl.int64), program // blocks % spans, program % blocks


@triton.jit
def within(index, count, k, left):
    """Which of `index` are below `count` in row k, if it is one of those `left`: none otherwise."""
    return index < tl.where(k < left, count, 0)


@triton.jit
def load_rows(start, stride, index, count, left, STEPS: tl.constexpr):
    """`STEPS` rows as float32, `stride` apart from `start`; zeros beyond the `left` that there are.

    All of them before the first is used: one wait for memory serves them together.
    """
    rows = ()
    for k in tl.static_range(STEPS):
        row = tl.load(start + k * stride + index, within(index, count, k, left), other=0)
        rows = rows + (row.to(tl.float32),)
    return rows
