"""Recurrences whose step is an affine map: maps combine into maps, so their sequence is a scan."""

import torch
from jaxtyping import Num
from torch import Tensor

from verim.errors import InputError
from verim.ops.scan import associative_scan

_Maps = tuple[Tensor, Tensor]


def affine_recurrence(
    A: Num[Tensor, "batch length channels *channels"],
    b: Num[Tensor, "batch length channels"],
    initial: Num[Tensor, "batch channels"] | None = None,
) -> Num[Tensor, "batch length channels"]:
    """x_t = A_t x_{t-1} + b_t for all t, x_0 = `initial` or zero. Result [batch, length, channels].

    - `A` [batch, length, channels]: a factor for each channel; or [batch, length, channels, channels]: a matrix.
    - `b` [batch, length, channels], `initial` [batch, channels].

    The affine map (A, b) followed by (A', b') is (A' A, A' b + b'), which is associative (Blelloch, section 1.4).
    With matrices a combine multiplies two of them, `channels` times the work of a loop: small matrices only. For
    factors alone `verim.ops.linear_recurrence` is the fast way. Differentiable, any numeric type.

    >>> fibonacci = torch.tensor([[1, 1], [1, 0]]).expand(1, 5, 2, 2)
    >>> affine_recurrence(fibonacci, torch.zeros(1, 5, 2, dtype=torch.long), torch.tensor([[1, 0]]))[0, :, 0]
    tensor([1, 2, 3, 5, 8])
    """
    if b.dim() != 3:
        raise InputError(
            f"affine_recurrence: argument b has shape {tuple(b.shape)}, expected [batch, length, channels]"
        )
    batch, _, channels = b.shape
    if A.shape not in (b.shape, (*b.shape, channels)) or A.dtype is not b.dtype:
        raise InputError(
            f"affine_recurrence: argument A is {A.dtype} of shape {tuple(A.shape)}, expected {b.dtype} of the shape of "
            f"b = {tuple(b.shape)} (a factor for each channel) or {(*b.shape, channels)} (a matrix for each step)"
        )
    if initial is not None and (initial.shape != (batch, channels) or initial.dtype is not b.dtype):
        raise InputError(
            f"affine_recurrence: argument initial is {initial.dtype} of shape {tuple(initial.shape)}, expected "
            f"{b.dtype} [batch, channels] = {(batch, channels)}"
        )
    matrices = A.dim() == 4
    powers, x = associative_scan(_matrix_maps if matrices else _factor_maps, (A, b), 1)
    if initial is None:
        return x
    start = initial[:, None, :]
    return x + (_product(powers, start) if matrices else powers * start)


def evaluate_polynomial(coefficients: Num[Tensor, "*batch terms"], x: Num[Tensor, "*batch"]) -> Num[Tensor, "*batch"]:
    """c_1 x^(n-1) + … + c_{n-1} x + c_n, the highest power first, as in numpy.polyval. The batches broadcast.

    Horner's rule p ← p x + c is a recurrence of affine maps, and the polynomial is the last value of its scan.
    No coefficients are the polynomial 0. Data types are promoted as in a product.

    >>> evaluate_polynomial(torch.tensor([2, 0, 1]), torch.tensor([0, 1, 2]))  # 2 x² + 1
    tensor([1, 3, 9])
    """
    if coefficients.dim() < 1:
        raise InputError("evaluate_polynomial: argument coefficients is a scalar, expected [..., terms]")
    try:
        batch = torch.broadcast_shapes(coefficients.shape[:-1], x.shape)
    except RuntimeError as error:
        raise InputError(
            f"evaluate_polynomial: argument x has shape {tuple(x.shape)}, which does not broadcast with the batch "
            f"{tuple(coefficients.shape[:-1])} of the coefficients {tuple(coefficients.shape)}"
        ) from error
    dtype, terms = torch.result_type(coefficients, x), coefficients.shape[-1]
    if not terms:
        return x.new_zeros(batch, dtype=dtype)
    factors = x[..., None].expand(*batch, terms).to(dtype)
    return associative_scan(_factor_maps, (factors, coefficients.expand(*batch, terms).to(dtype)), len(batch))[1][
        ..., -1
    ]


def _factor_maps(first: _Maps, then: _Maps) -> _Maps:
    return then[0] * first[0], then[0] * first[1] + then[1]


def _matrix_maps(first: _Maps, then: _Maps) -> _Maps:
    return then[0] @ first[0], _product(then[0], first[1]) + then[1]


def _product(matrices: Tensor, vectors: Tensor) -> Tensor:
    return (matrices @ vectors[..., None])[..., 0]
