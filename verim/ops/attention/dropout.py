"""The dropout mask of attention: a function of (seed, batch and head, query, key), so it is never kept.

A generator that counts (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): every entry of the mask
is computed where it is needed, in the forward pass and again in the backward pass, in any order and by any number of
threads. In two steps:

1. Each row (one query of one head) gets 64 bits, the words first and second of `row_words`: SplitMix64's output
   function (Steele et al. 2014) at state seed + 0x9E3779B97F4A7C15 · (1 + query + 2^32 · (batch · heads + head)).
2. Each key of the row mixes its index into them, all in unsigned arithmetic modulo 2^32:

        x = first + key · 0x9E3779B9
        x = (x ^ (x >> 16)) · 0x21F0AAAD + second
        x = (x ^ (x >> 15)) · 0x735A2D97
        x =  x ^ (x >> 15)

   (the multipliers of Wellons' hash-prospector). The entry is kept where x >= `threshold(dropout)`, and divided by
   1 - dropout.

The reference, the tiled algorithm and the kernels of all devices use this definition: they give the same mask.
"""

from typing import Any

import torch
from jaxtyping import Bool, Int
from llvmlite import ir
from numba.core import types
from torch import Tensor

from verim.ops.vectors import BYTES, LANES, intrinsic, vector

KEY_STEP, FIRST_MULTIPLIER, SECOND_MULTIPLIER = 0x9E3779B9, 0x21F0AAAD, 0x735A2D97
_ROW_STEP = 0x9E3779B97F4A7C15
_LOW = 0xFFFFFFFF


def draw_seed() -> Int[Tensor, ""]:
    """63 random bits from torch's default generator, as a number on the CPU: `torch.manual_seed` reproduces them."""
    return torch.randint(2**63 - 1, (), dtype=torch.int64, device="cpu")


def threshold(dropout: float) -> int:
    """What a key's 32 bits must reach for it to be kept: dropout · 2^32, rounded down."""
    return int(dropout * 2.0**32)


def row_words(
    seed: Int[Tensor, ""], batch: int, heads: int, length: int, device: torch.device
) -> Int[Tensor, "2 batch heads length"]:
    """The words first and second of every row, as int32 (the same bits as the unsigned numbers)."""
    rows = torch.arange(batch * heads, device=device).view(batch, heads, 1) << 32
    state = seed.to(device) + _signed(_ROW_STEP) * (rows + torch.arange(1, length + 1, device=device))
    state = (state ^ _shifted(state, 30)) * _signed(0xBF58476D1CE4E5B9)
    state = (state ^ _shifted(state, 27)) * _signed(0x94D049BB133111EB)
    state = state ^ _shifted(state, 31)
    return torch.stack([_as_int32(state >> 32), _as_int32(state)])


def kept(words: Int[Tensor, "2 *rows"], first_key: int, keys: int, dropout: float) -> Bool[Tensor, "*rows keys"]:
    """Which of `keys` keys from `first_key` on are kept, for rows with the given words."""
    first, second = (words.long() & _LOW)[..., None]
    x = (first + KEY_STEP * torch.arange(first_key, first_key + keys, device=words.device)) & _LOW
    x = ((x ^ (x >> 16)) * FIRST_MULTIPLIER + second) & _LOW
    x = ((x ^ (x >> 15)) * SECOND_MULTIPLIER) & _LOW
    return (x ^ (x >> 15)) >= threshold(dropout)


@intrinsic
def drop_lanes(typing: Any, value: Any, first: Any, second: Any, key: Any, limit: Any) -> Any:
    """`value`, with zeros in the lanes that drop a key: the rows' words lie at addresses `first` and `second`, `limit`
    is `threshold(dropout)`. For kernels."""
    number, words = ir.IntType(32), ir.VectorType(ir.IntType(32), LANES)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value, first, second, key, limit = args

        def everywhere(scalar: Any) -> Any:
            low = builder.insert_element(ir.Constant(words, ir.Undefined), builder.trunc(scalar, number), number(0))
            return builder.shuffle_vector(low, low, ir.Constant(words, None))

        def load_words(address: Any) -> Any:
            loaded = builder.load(builder.inttoptr(address, words.as_pointer()))
            loaded.align = BYTES
            return loaded

        def constant(n: int) -> Any:
            return ir.Constant(words, [n] * LANES)

        x = builder.add(load_words(first), everywhere(builder.mul(key, ir.IntType(64)(KEY_STEP))))
        x = builder.mul(builder.xor(x, builder.lshr(x, constant(16))), constant(FIRST_MULTIPLIER))
        x = builder.add(x, load_words(second))
        x = builder.mul(builder.xor(x, builder.lshr(x, constant(15))), constant(SECOND_MULTIPLIER))
        x = builder.xor(x, builder.lshr(x, constant(15)))
        kept = builder.icmp_unsigned(">=", x, everywhere(limit))
        return builder.select(kept, value, ir.Constant(value.type, None))

    return vector(vector, *[types.int64] * 4), generate


def _signed(number: int) -> int:
    """64 unsigned bits as the signed number that has them."""
    return number - 2**64 if number >= 2**63 else number


def _shifted(number: Tensor, bits: int) -> Tensor:
    """64 bits shifted to the right, zeros from the left."""
    return (number >> bits) & (2 ** (64 - bits) - 1)


def _as_int32(number: Tensor) -> Tensor:
    """The low 32 bits."""
    return ((number + 2**31 & _LOW) - 2**31).int()
