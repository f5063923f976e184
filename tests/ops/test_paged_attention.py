"""Attention over pages is attention over the keys that lie in them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verim.errors import InputError
from verim.ops import attention, force_backend, paged_attention


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=4),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    dim=st.sampled_from([16, 48, 64, 6]),
    seed=st.integers(0, 99),
)
def test_pages_in_any_order_are_read_as_one_sequence(
    lengths: list[int], kv_heads: int, group: int, dim: int, seed: int
) -> None:
    torch.manual_seed(seed)
    needed = [-(-length // 16) for length in lengths]
    width, free = max(needed) + 1, torch.randperm(sum(needed) + 3).tolist()
    table = torch.tensor([[free.pop() for _ in range(n)] + [0] * (width - n) for n in needed])
    k, v = torch.full((2, sum(needed) + 3, 16, kv_heads, dim), torch.nan)
    q = torch.randn(len(lengths), 1, kv_heads * group, dim)
    expected = []
    for row, (length, pages) in enumerate(zip(lengths, needed, strict=True)):
        keys, values = torch.randn(2, 1, length, kv_heads, dim)
        for pool, own in ((k, keys), (v, values)):
            for page in range(pages):
                part = own[0, 16 * page : 16 * (page + 1)]
                pool[table[row, page], : len(part)] = part
        with force_backend("reference"):
            expected.append(attention(q[row : row + 1].double(), keys.double(), values.double()))
    y = paged_attention(q, k, v, table, torch.tensor(lengths)) if dim % 16 == 0 else None
    with force_backend("reference"):
        gathered = paged_attention(
            q.double(), k.nan_to_num().double(), v.nan_to_num().double(), table, torch.tensor(lengths)
        )
    torch.testing.assert_close(gathered, torch.cat(expected), rtol=1e-10, atol=1e-12)
    if y is not None:
        torch.testing.assert_close(y.double(), torch.cat(expected), rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_is_named() -> None:
    q, pool = torch.zeros(2, 1, 2, 16), torch.zeros(4, 16, 2, 16)
    table, lengths = torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, dtype=torch.int64)
    with pytest.raises(InputError, match=r"expected one shape \[pages, 16"):
        paged_attention(q, pool[:, :8], pool[:, :8], table, lengths)
    with pytest.raises(InputError, match=r"table is torch\.int32"):
        paged_attention(q, pool, pool, table.int(), lengths)
    with pytest.raises(InputError, match="a table of 1 row"):
        paged_attention(q, pool, pool, table[:1], lengths)
