"""The update of AdamW, and the norm of a gradient, over all weights of a model at once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from verim.errors import InputError
from verim.ops.adamw import cpu, eight_bit
from verim.ops.adamw.codes import BLOCK
from verim.ops.adamw.reference import adamw_8bit_reference, adamw_reference, gradient_norm_reference
from verim.ops.adamw.tensors import AdamWRule, AdamWTensors, EightBitTensors
from verim.ops.backend import takes_fast_path
from verim.ops.kernel import is_traced

_NAME = "adamw"
_PLAIN = (Tensor, torch.nn.Parameter)


def adamw(tensors: Sequence[AdamWTensors], rules: Sequence[AdamWRule], gradient_scale: float = 1.0) -> None:
    """Updates each weight and its moments in place, by the rule in the same place of `rules`:

        g ← gradient_scale g
        m ← β₁ m + (1 - β₁) g        v ← β₂ v + (1 - β₂) g²
        w ← w - η λ w - η m / (1 - β₁ᵗ) / (√(v / (1 - β₂ᵗ)) + ε)

    with η the learning rate, λ the weight decay, t the step (Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2,
    where λ is not multiplied by η; torch and everyone else does so). The gradient itself is left as it is:
    `gradient_scale` is what clipping and loss scaling would multiply it by, without a pass of its own.

    The fast version (CPU, float32, tensors without gaps) is one pass over all weights on all threads: it reads w, g,
    m, v once and writes w, m, v once. The same input gives the same bits, whatever the number of threads.

    Raises `InputError` (a ValueError) where the tensors of a weight differ in shape or data type.

    >>> w, g, m, v = torch.tensor([1.0]), torch.tensor([0.5]), torch.zeros(1), torch.zeros(1)
    >>> adamw([AdamWTensors(w, g, m, v)], [AdamWRule(0.1, 0.9, 0.99, 0.0, 0.0, step=1)])
    >>> w
    tensor([0.9000])
    """
    _check_rules(tensors, rules)
    for held in tensors:
        for name in ("gradient", "average", "square"):
            _check(name, getattr(held, name), held.weight.shape, held.weight.dtype)
    if has_fast_update([tensor for held in tensors for tensor in held.all()]):
        cpu.adamw(tensors, rules, gradient_scale)
    else:
        adamw_reference(tensors, rules, gradient_scale)


def adamw_8bit(tensors: Sequence[EightBitTensors], rules: Sequence[AdamWRule], gradient_scale: float = 1.0) -> None:
    """`adamw` with a byte for each moment of a weight, in place (Dettmers et al. 2022, arXiv 2110.02861).

    The moments are decoded, updated in float32 and encoded again: each block of 256 weights has its largest magnitude
    as scale, and a byte is an entry of the dynamic code (`verim.ops.adamw.codes`) times it. Against the paper: blocks
    are of 256 and not 2048, as in its authors' software today; and the second moment is kept as its root, so that both
    moments reach over the same seven decades, and never as zero where it is not: the update divides by it.

    The fast version (CPU, float32) is one pass that reads and writes 16 bytes a weight in place of 28. The same input
    gives the same bits, whatever the number of threads.

    Raises `InputError` (a ValueError) where shapes or data types are not those of `EightBitTensors`.
    """
    _check_rules(tensors, rules)
    for held in tensors:
        blocks = -(-held.weight.numel() // BLOCK)
        expected = [
            ("gradient", held.weight.shape, held.weight.dtype),
            *((name, held.weight.shape, torch.uint8) for name in ("average", "root")),
            *((name, (blocks,), torch.float32) for name in ("average_scales", "root_scales")),
        ]
        for name, shape, dtype in expected:
            _check(name, getattr(held, name), shape, dtype)
    if all(_has_fast_8bit_update(held) for held in tensors):
        eight_bit.adamw_8bit(tensors, rules, gradient_scale)
    else:
        adamw_8bit_reference(tensors, rules, gradient_scale)


def _has_fast_8bit_update(held: EightBitTensors) -> bool:
    bytes_ = held.average, held.root, held.average_scales, held.root_scales
    return has_fast_update((held.weight, held.gradient)) and all(tensor.is_contiguous() for tensor in bytes_)


def _check_rules(tensors: Sequence[object], rules: Sequence[AdamWRule]) -> None:
    if len(tensors) != len(rules):
        raise InputError(f"{_NAME}: got {len(tensors)} weights and {len(rules)} rules, expected one for each weight")


def _check(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tensor.shape != shape or tensor.dtype is not dtype:
        raise InputError(
            f"{_NAME}: {name} is {tensor.dtype} of shape {tuple(tensor.shape)}, expected {dtype} of shape "
            f"{tuple(shape)} for its weight"
        )


def has_fast_update(tensors: Sequence[Tensor]) -> bool:
    """Whether the fast version takes these tensors, weights and what goes with them."""
    for tensor in tensors:
        if tensor.dtype is not torch.float32 or type(tensor) not in _PLAIN:
            return False
        if not (tensor.is_cpu and tensor.is_contiguous()):
            return False
    return not tensors or (takes_fast_path(_NAME, tensors[0]) and not is_traced())


def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    """√(Σ g²) over all entries of all `gradients`, a scalar tensor; 0 of none.

    On the CPU float32 tensors are read once, by all threads; sums of 16 384 squares in float32, the rest in float64.
    """
    if has_fast_update(gradients):
        return cpu.gradient_norm(gradients)
    return gradient_norm_reference(gradients)


__all__ = [
    "BLOCK",
    "AdamWRule",
    "AdamWTensors",
    "EightBitTensors",
    "adamw",
    "adamw_8bit",
    "gradient_norm",
    "has_fast_update",
]
