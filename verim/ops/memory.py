"""Tensors as compiled kernels see them: an address and strides in bytes."""

from torch import Tensor


def rows_of(tensor: Tensor) -> Tensor:
    """`tensor` [batch, length, channels] itself where its channels lie side by side, else a copy."""
    return tensor if tensor.stride(2) == 1 else tensor.contiguous()


def place_of(tensor: Tensor) -> tuple[int, int, int]:
    """The address of `tensor` and the bytes from one batch row and from one step to the next."""
    batch, time, _ = tensor.stride()
    size = tensor.element_size()
    return tensor.data_ptr(), batch * size, time * size


def address_of(tensor: Tensor | None) -> int:
    """The address of `tensor`, 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()
