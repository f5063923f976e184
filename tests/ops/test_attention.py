"""Attention: its definition, and every algorithm against it."""

import itertools
import math

import pytest
import torch
from agreement import Allocations, assert_agrees, output_and_gradients, poisoned_memory
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from verim.errors import InputError
from verim.ops import attention, force_backend, rotary_attention, workers
from verim.ops.attention import tiled
from verim.ops.attention.dropout import kept, row_words
from verim.ops.attention.reference import attention_reference
from verim.ops.attention.visible import pairs, visible

ALGORITHMS = ("kernel", "tiled")
NONE = None, True, 0, 0.0, None  # bias, causal, window, dropout, seed
each_algorithm = pytest.mark.parametrize("implementation", ALGORITHMS)


def heads_of(batch: int, length: int, heads: int, dim: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(1000 * length + dim + seed)
    return torch.randn(batch, length, heads, dim, generator=draw)


def inputs(batch: int, length: int, keys: int, heads: int, kv_heads: int, dim: int) -> list[Tensor]:
    """q, k, v."""
    k, v = (heads_of(batch, keys, kv_heads, dim, seed) for seed in (1, 2))
    return [heads_of(batch, length, heads, dim), k, v]


def packed(batch: int, length: int, heads: int, dim: int) -> Tensor:
    return heads_of(batch, length, 3 * heads, dim).unflatten(2, (3, heads))


def tables(length: int, dim: int) -> tuple[Tensor, Tensor]:
    angles = torch.arange(length)[:, None] * 10_000 ** (-torch.arange(0, dim, 2) / dim)
    return angles.cos(), angles.sin()


def rotary(qkv: Tensor, causal: bool = True) -> Tensor:
    return rotary_attention(qkv, *(table.to(qkv) for table in tables(qkv.shape[1], qkv.shape[4])), causal=causal)


def compare(implementation: str, tensors: list[Tensor], dropout: float = 0.0, **options: object) -> None:
    """An algorithm against the reference, which draws the same dropout mask; the bias is the fourth tensor."""

    def op(q: Tensor, k: Tensor, v: Tensor, *bias: Tensor) -> Tensor:
        torch.manual_seed(5)
        chosen = {"bias": bias[0] if bias else None, "dropout": dropout, "implementation": implementation}
        return attention(q, k, v, **chosen, **options)

    # where a query sees one key alone its gradients are differences of equal numbers
    assert_agrees(op, tensors, tolerance=5e-6, terms=3 + tensors[0].shape[3] / 8)


SHAPES = st.sampled_from(
    [(1, 1, 1), (2, 5, 5), (1, 7, 90), (1, 63, 64), (2, 65, 65), (1, 97, 193), (0, 9, 9), (1, 70, 33), (1, 200, 200)]
)
WINDOWS = st.sampled_from([None, 1, 3, 17, 64, 100])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    implementation=st.sampled_from(ALGORITHMS),
    shape=SHAPES,
    heads=st.sampled_from([(1, 1), (2, 2), (4, 2), (3, 1)]),
    dim=st.sampled_from([1, 3, 8, 16, 17, 31, 40, 64, 70, 128, 256]),
    causal=st.booleans(),
    window=WINDOWS,
    dropout=st.sampled_from([0.0, 0.0, 0.4]),
)
def test_agrees_with_the_reference(
    implementation: str,
    shape: tuple[int, int, int],
    heads: tuple[int, int],
    dim: int,
    causal: bool,
    window: int | None,
    dropout: float,
) -> None:
    compare(implementation, inputs(*shape, *heads, dim), dropout, causal=causal, window=window)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    implementation=st.sampled_from(ALGORITHMS),
    shape=st.sampled_from([(1, 5, 5), (2, 33, 70), (2, 67, 67), (0, 3, 3), (1, 130, 150)]),
    repeated=st.sets(st.integers(0, 3)),
    causal=st.booleans(),
    window=WINDOWS,
    dropout=st.sampled_from([0.0, 0.3]),
)
def test_biases_of_any_shape_agree_with_the_reference(
    implementation: str,
    shape: tuple[int, int, int],
    repeated: set[int],
    causal: bool,
    window: int | None,
    dropout: float,
) -> None:
    batch, length, keys = shape
    sizes = [1 if axis in repeated else size for axis, size in enumerate((batch, 4, length, keys))]
    bias = torch.randn(sizes, generator=torch.Generator().manual_seed(3))
    bias[torch.rand(sizes, generator=torch.Generator().manual_seed(4)) < 0.2] = -math.inf
    tensors = [*inputs(*shape, 4, 2, 20), bias]
    compare(implementation, tensors, dropout, causal=causal, window=window)


@each_algorithm
def test_any_layout_of_a_bias(implementation: str) -> None:
    tensors = inputs(2, 20, 30, 4, 4, 16)
    bias = heads_of(2, 4, 20, 30)
    expected = attention(*tensors, bias=bias, causal=False, implementation=implementation)
    for layout in (bias.mT.contiguous().mT, bias.repeat_interleave(2, 3)[..., ::2]):
        assert torch.equal(attention(*tensors, bias=layout, causal=False, implementation=implementation), expected)
    assert torch.equal(
        attention(*tensors, bias=bias[:1, :1].expand_as(bias), causal=False, implementation=implementation),
        attention(*tensors, bias=bias[0, 0], causal=False, implementation=implementation),
    )


@each_algorithm
def test_a_mask_of_booleans_says_what_may_be_seen(implementation: str) -> None:
    q, k, v = inputs(2, 9, 9, 2, 2, 8)
    mask = torch.rand(2, 1, 9, 9, generator=torch.Generator().manual_seed(0)) < 0.6
    mask[..., 0] = True
    theirs = torch.nn.functional.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), attn_mask=mask)
    ours = attention(q, k, v, causal=False, bias=mask, implementation=implementation)
    torch.testing.assert_close(ours.transpose(1, 2), theirs)


@each_algorithm
@pytest.mark.parametrize("hidden", ["bias", "future", "keys"])
def test_queries_that_see_nothing_give_zeros_and_no_gradient(implementation: str, hidden: str) -> None:
    keys = {"bias": 40, "future": 30, "keys": 0}[hidden]
    tensors = inputs(1, 40, keys, 2, 1, 16)
    if hidden == "bias":
        tensors.append(torch.zeros(40, 40).index_fill_(0, torch.arange(3, 20), -math.inf))
    leaves = [tensor.requires_grad_() for tensor in tensors]
    bias = leaves[3] if hidden == "bias" else None
    out = attention(*leaves[:3], bias=bias, implementation=implementation)
    blind = {"bias": slice(3, 20), "future": slice(0, 10), "keys": slice(0, 40)}[hidden]
    gradients = torch.autograd.grad(out, leaves, torch.full_like(out, math.pi))
    assert out[:, blind].eq(0).all() and gradients[0][:, blind].eq(0).all()
    assert all(tensor.isfinite().all() for tensor in (out, *gradients))
    assert hidden == "keys" or out[:, 25:].ne(0).all()
    with force_backend("reference"):
        assert torch.equal(attention(*leaves[:3], bias=bias)[:, blind], out[:, blind])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("implementation", [*ALGORITHMS, "torch"])
def test_halves_are_rounded_once(implementation: str, dtype: torch.dtype) -> None:
    given_halves = [tensor.to(dtype).requires_grad_() for tensor in inputs(2, 70, 70, 4, 4, 24)]
    wide = [tensor.detach().float().requires_grad_() for tensor in given_halves]
    weight = heads_of(2, 70, 4, 24).to(dtype)
    out = attention(*given_halves, implementation=implementation)
    expected = attention(*wide, implementation="tiled")
    gradients = torch.autograd.grad(out, given_halves, weight)
    wanted = torch.autograd.grad(expected, wide, weight.float())
    assert out.dtype is dtype and all(gradient.dtype is dtype for gradient in gradients)
    step = torch.finfo(dtype).eps
    for got, full in zip((out, *gradients), (expected, *wanted), strict=True):
        assert (got.float() - full).norm() < step * full.norm()


@each_algorithm
def test_the_bias_may_be_float32_beside_halves(implementation: str) -> None:
    q, k, v = (tensor.bfloat16() for tensor in inputs(1, 20, 20, 2, 2, 8))
    bias = heads_of(1, 2, 20, 20).requires_grad_()
    attention(q, k, v, bias=bias, implementation=implementation).sum().backward()
    assert bias.grad is not None and bias.grad.dtype is torch.float32


def test_under_autocast_it_takes_halves() -> None:
    leaves = [tensor.requires_grad_() for tensor in inputs(1, 20, 20, 2, 2, 8)]
    with torch.autocast("cpu", torch.bfloat16):
        out = attention(*leaves)
        turned = rotary(torch.stack(leaves, 2))
    assert out.dtype is turned.dtype is torch.bfloat16
    assert all(gradient.dtype is torch.float32 for gradient in torch.autograd.grad(out.float().sum(), leaves))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    batch=st.integers(0, 2),
    length=st.sampled_from([1, 2, 16, 33, 64, 67, 128, 160]),
    heads=st.integers(1, 3),
    dim=st.sampled_from([2, 6, 8, 16, 18, 32, 48, 64, 130]),
    causal=st.booleans(),
)
def test_rotation_inside_agrees_with_the_reference(batch: int, length: int, heads: int, dim: int, causal: bool) -> None:
    assert_agrees(lambda qkv: rotary(qkv, causal), [packed(batch, length, heads, dim)], tolerance=5e-6, terms=0.5)


@pytest.mark.parametrize("implementation", [*ALGORITHMS, "torch"])
def test_few_heads_and_many_queries(implementation: str) -> None:
    tensors = inputs(1, 1100, 1100, 2, 1, 8)  # several tasks for a head
    assert_agrees(lambda *t: attention(*t, implementation=implementation), tensors, tolerance=5e-6, terms=1.0)
    if implementation == "kernel":
        assert_agrees(rotary, [packed(1, 1100, 1, 8)], tolerance=5e-6, terms=1.0)


@pytest.mark.parametrize("causal", [True, False])
def test_the_reference_has_the_derivatives_of_its_formula_and_is_torchs(causal: bool) -> None:
    q, k, v = (tensor.double() for tensor in inputs(1, 3, 5, 2, 1, 2))
    bias = heads_of(1, 2, 3, 5).double()
    leaves = [tensor.clone().requires_grad_() for tensor in (q, k, v, bias)]
    seed = torch.tensor(7)

    def op(*t: Tensor) -> Tensor:
        return attention_reference(*t, causal, 4, 0.2, seed, 0.3)

    assert torch.autograd.gradcheck(op, leaves)
    assert torch.autograd.gradgradcheck(op, leaves)
    if causal:
        k, v, bias = k[:, :3], v[:, :3], None
    theirs = torch.nn.functional.scaled_dot_product_attention(
        *(tensor.transpose(1, 2) for tensor in (q, k, v)),
        attn_mask=bias,
        is_causal=causal,
        scale=0.3,
        enable_gqa=True,
    )
    ours = attention_reference(q, k, v, bias, causal, 0, 0.0, None, 0.3)
    torch.testing.assert_close(ours, theirs.transpose(1, 2), rtol=1e-12, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    keys=st.integers(1, 70),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    vectors=st.integers(1, 5),
    window=st.none() | st.integers(1, 80),
    padded=st.booleans(),
)
def test_one_query_and_padding_agree_with_the_reference(
    batch: int, keys: int, kv_heads: int, group: int, vectors: int, window: int | None, padded: bool
) -> None:
    dim = 16 * vectors
    q = torch.randn(batch, 1, kv_heads * group, dim)
    room = torch.randn(2, batch, keys + 5, kv_heads, dim)
    k, v = room[:, :, 3 : keys + 3]  # views of a larger buffer
    padding = torch.randint(0, keys + 2, (batch,)) if padded else None
    mask = None if padding is None else torch.arange(keys) >= padding[:, None, None, None]
    with force_backend("reference"):
        expected = attention(q.double(), k.double(), v.double(), window=window, bias=mask)
    torch.testing.assert_close(
        attention(q, k, v, window=window, padding=padding).double(), expected, rtol=1e-5, atol=1e-6
    )
    through_mask = attention(q, k, v, window=window, padding=padding, implementation="kernel")
    torch.testing.assert_close(through_mask.double(), expected, rtol=1e-5, atol=1e-6)


def test_one_query_keeps_what_is_not_a_number_and_picks_huge_scores() -> None:
    q, k, v = torch.randn(2, 1, 2, 16), torch.randn(2, 20, 2, 16), torch.randn(2, 20, 2, 16)
    k[0, 3, 1, 5] = torch.nan
    found = attention(q, k, v).isnan()
    assert found[0, 0, 1].all() and not found[0, 0, 0].any() and not found[1].any()
    k = torch.zeros(1, 20, 1, 16)
    k[0, 7] = 1e4
    torch.testing.assert_close(attention(torch.ones(1, 1, 1, 16), k, v[:1, :, :1])[0, 0, 0], v[0, 7, 0])


def test_one_query_is_the_same_with_any_number_of_threads() -> None:
    q, k, v = torch.randn(3, 1, 8, 64), torch.randn(3, 500, 4, 64), torch.randn(3, 500, 4, 64)
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2):
        torch.set_num_threads(count)
        results.append(attention(q, k, v))
    torch.set_num_threads(threads)
    assert torch.equal(*results)


@pytest.mark.parametrize("implementation", [*ALGORITHMS, "torch"])
@settings(max_examples=10, deadline=None, derandomize=True)
@given(length=st.integers(2, 150), at=st.integers(0, 148))
def test_the_future_changes_nothing(implementation: str, length: int, at: int) -> None:
    at = min(at, length - 2)
    tensors, changed = inputs(1, length, length, 2, 2, 16), inputs(1, length, length, 2, 2, 16)
    for tensor in changed:
        tensor[:, at + 1 :] += 1
    before, after = (attention(*t, implementation=implementation) for t in (tensors, changed))
    assert torch.equal(before[:, : at + 1], after[:, : at + 1])


@each_algorithm
@settings(max_examples=10, deadline=None, derandomize=True)
@given(window=st.integers(1, 80), at=st.integers(0, 120))
def test_what_lies_before_the_window_changes_nothing(implementation: str, window: int, at: int) -> None:
    q, k, v = inputs(1, 130, 130, 2, 2, 16)
    before = attention(q, k, v, window=window, implementation=implementation)
    for tensor in (k, v):
        tensor[:, : at + 1] += 1
    after = attention(q, k, v, window=window, implementation=implementation)
    assert torch.equal(before[:, at + window :], after[:, at + window :])
    assert at + window >= 130 or not torch.equal(before[:, at + window - 1], after[:, at + window - 1])


@each_algorithm
def test_heads_may_be_permuted(implementation: str) -> None:
    tensors, order = inputs(2, 40, 40, 4, 4, 16), torch.tensor([2, 0, 3, 1])
    expected = attention(*tensors, implementation=implementation)[:, :, order]
    got = attention(*(tensor[:, :, order] for tensor in tensors), implementation=implementation)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)


def test_pieces_of_a_sequence_give_the_whole() -> None:
    q, k, v = inputs(2, 150, 150, 4, 2, 16)
    for window in (None, 20):
        whole = attention(q, k, v, window=window)
        cuts = (0, 70, 149, 150)
        pieces = [attention(q[:, a:b], k[:, :b], v[:, :b], window=window) for a, b in itertools.pairwise(cuts)]
        torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("implementation", [*ALGORITHMS, "torch"])
def test_any_strides(implementation: str) -> None:
    qkv = packed(2, 40, 2, 16)
    plain = output_and_gradients(
        lambda *t: attention(*t, implementation=implementation),
        [t.contiguous().requires_grad_() for t in qkv.unbind(2)],
    )
    backwards = qkv.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0)
    heads_first = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in qkv.unbind(2)]
    for layout in (qkv.unbind(2), backwards.unbind(2), heads_first):
        leaves = [tensor.detach().requires_grad_() for tensor in layout]
        got = output_and_gradients(lambda *t: attention(*t, implementation=implementation), leaves)
        for one, other in zip(got, plain, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    leaves = [tensor.requires_grad_() for tensor in inputs(1, 20, 20, 2, 2, 16)]
    out = attention(*leaves, implementation=implementation)
    (expected,) = torch.autograd.grad(out, leaves[0], torch.ones(1, 20, 2, 16), retain_graph=True)
    (got,) = torch.autograd.grad(out.sum(), leaves[0])  # the gradient of a sum is an expanded number
    torch.testing.assert_close(got, expected)


def test_rotation_of_any_layout() -> None:
    qkv = packed(2, 20, 2, 16)
    backwards = qkv.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0).requires_grad_()
    plain = output_and_gradients(rotary, [qkv.requires_grad_()])
    for got, expected in zip(output_and_gradients(rotary, [backwards]), plain, strict=True):
        assert torch.equal(got, expected)


def test_rotated_scores_depend_on_the_distance_alone() -> None:
    row = packed(1, 1, 1, 16)
    shifted = torch.cat([row] * 5, dim=1)
    cosines, sines = tables(25, 16)
    near = rotary_attention(shifted, cosines[:5], sines[:5], scale=3.0)
    far = rotary_attention(shifted, cosines[20:], sines[20:], scale=3.0)
    assert torch.allclose(near, far, atol=1e-6)


@each_algorithm
def test_huge_scores_pick_the_largest(implementation: str) -> None:
    q, k, v = (1e4 * tensor for tensor in inputs(1, 40, 40, 1, 1, 16))
    with force_backend("reference"):
        expected = attention(q.double(), k.double(), v.double())
    assert torch.allclose(attention(q, k, v, implementation=implementation).double(), expected, rtol=1e-3)


@each_algorithm
def test_a_nan_is_not_hidden(implementation: str) -> None:
    for part in range(3):
        tensors = inputs(1, 140, 140, 1, 1, 16)
        tensors[part][0, 135, 0, 3] = math.nan
        leaves = [tensor.requires_grad_() for tensor in tensors]
        out = attention(*leaves, implementation=implementation)
        assert out[0, 135].isnan().any()
        assert part == 0 or out[0, 136:].isnan().any(-1).all()
        assert torch.autograd.grad(out.sum(), leaves)[0].isnan().any()


def test_without_gradients_the_output_is_the_same() -> None:
    qkv = packed(2, 33, 2, 16)
    with poisoned_memory(), torch.no_grad():
        plain = rotary(qkv), attention(*qkv.unbind(2))
    qkv.requires_grad_()
    assert torch.equal(plain[0], rotary(qkv)) and torch.equal(plain[1], attention(*qkv.unbind(2)))


@each_algorithm
def test_dropout_follows_torchs_seed_and_keeps_the_mean(implementation: str) -> None:
    q, k, v = inputs(1, 100, 100, 4, 4, 16)
    options = {"dropout": 0.25, "implementation": implementation}

    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return attention(q, k, v, **options)

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))
    torch.manual_seed(1)
    assert not torch.equal(attention(q, k, v, **options), attention(q, k, v, **options))
    mean = torch.stack([drawn(seed) for seed in range(100)]).mean(0)
    plain = attention(q, k, v)
    assert (mean - plain).norm() < 0.15 * (drawn(1) - plain).norm()  # one tenth, if the mean is kept
    assert (drawn(1) - plain).norm() > 0.1 * plain.norm()


def test_the_mask_of_dropout_is_random() -> None:
    words = row_words(torch.tensor(12345), 2, 3, 64, torch.device("cpu"))
    keep = kept(words, 0, 512, 0.25)
    assert keep.shape == (2, 3, 64, 512)
    assert torch.equal(kept(words[..., 5:9], 100, 30, 0.25), keep[..., 5:9, 100:130])
    other = kept(row_words(torch.tensor(12346), 2, 3, 64, torch.device("cpu")), 0, 512, 0.25)
    signs = (keep.double() - 0.75) / (0.75 * 0.25) ** 0.5
    bound = 5 / keep.numel() ** 0.5  # five standard deviations of a mean of independent signs
    assert signs.mean().abs() < bound
    neighbours = [signs.roll(step, axis) for axis in range(4) for step in (1, 2) if signs.shape[axis] > step]
    neighbours.append((other.double() - 0.75) / (0.75 * 0.25) ** 0.5)
    assert all((signs * shifted).mean().abs() < bound for shifted in neighbours)
    for axes in ((0, 1, 2), (0, 1, 3)):  # no column and no row stands out
        assert (signs.mean(axes).abs() * (keep.numel() / signs.mean(axes).numel()) ** 0.5 < 5).all()


def test_the_pairs_of_queries_and_keys_are_counted() -> None:
    for length, keys, causal, window in itertools.product((0, 1, 5, 8), (0, 1, 5, 8, 13), (True, False), (0, 1, 3, 20)):
        seen = visible(range(length), range(keys), keys - length, causal, window, torch.device("cpu"))
        assert pairs(length, keys, causal, window) == seen.sum()


@each_algorithm
def test_threads_do_not_change_a_bit(implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_WORTH_A_THREAD", 1.0)
    tensors, before, results = inputs(2, 150, 150, 4, 2, 16), torch.get_num_threads(), []
    bias = heads_of(2, 4, 150, 150)

    def op(*t: Tensor) -> Tensor:
        torch.manual_seed(0)
        return attention(*t, dropout=0.2, implementation=implementation)

    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(output_and_gradients(op, [tensor.requires_grad_() for tensor in (*tensors, bias)][:3]))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        for got, expected in zip(result, results[0], strict=True):
            if implementation == "kernel":
                assert torch.equal(got, expected)
            else:  # torch's products may share the work in another way
                torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("implementation", [*ALGORITHMS, "torch"])
def test_memory_grows_with_the_length_and_not_its_square(implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiled, "_TILE_ENTRIES", 8 * 64**2)
    sizes = []
    for length in (512, 1024):
        leaves = [tensor.requires_grad_() for tensor in inputs(1, length, length, 8, 8, 16)]
        with Allocations() as allocations:
            attention(*leaves, implementation=implementation).sum().backward()
        assert max(allocations.sizes, default=0) < length * length
        sizes.append(sum(allocations.sizes))
    assert sizes[1] <= 2 * sizes[0]


def test_a_second_derivative_is_refused_not_wrong() -> None:
    qkv = packed(1, 4, 1, 8).requires_grad_()
    outs = [attention(*qkv.unbind(2), implementation=name) for name in (*ALGORITHMS, "torch")]
    for out in (rotary(qkv), *outs):
        with pytest.raises(InputError, match="second derivative"):
            torch.autograd.grad(out.sum(), qkv, create_graph=True)


def test_only_the_gradients_asked_for_come_back() -> None:
    q, k, v = inputs(1, 6, 6, 2, 2, 8)
    bias = torch.zeros(6, 6).requires_grad_()
    attention(q, k, v, bias=bias).sum().backward()
    assert bias.grad is not None and q.grad is None
    assert not attention(q, k, v).requires_grad


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda q, k, v: attention(q[0], k, v), r"argument q .* shape \(4, 2, 8\)"),
        (lambda q, k, v: attention(q.long(), k, v), "argument q is torch.int64"),
        (lambda q, k, v: attention(q[..., :0], k, v), "argument q .* at least one head and one channel"),
        (lambda q, k, v: attention(q, k[0], v), r"argument k has shape \(4, 2, 8\), expected"),
        (lambda q, k, v: attention(q, k[..., :4], v), r"argument k has shape \(1, 4, 2, 4\), expected"),
        (lambda q, k, v: attention(q, k, v[:, :3]), "argument v has shape"),
        (lambda q, k, v: attention(q[:, :, :1], k, v), "argument k has 2 heads, expected a divisor of the 1 heads"),
        (lambda q, k, v: attention(q, k[:, :, :0], v[:, :, :0]), "argument k has 0 heads"),
        (lambda q, k, v: attention(q, k, v.double()), "argument v is torch.float64, expected torch.float32"),
        (lambda q, k, v: attention(q, k, v, window=0), "argument window is 0, expected a whole number of at least 1"),
        (lambda q, k, v: attention(q, k, v, dropout=1.0), "argument dropout is 1.0, expected a probability"),
        (lambda q, k, v: attention(q, k, v, dropout=-0.1), "argument dropout is -0.1"),
        (lambda q, k, v: attention(q, k, v, padding=torch.zeros(2).long()), "argument padding is torch.int64 of shape"),
        (lambda q, k, v: attention(q, k, v, padding=torch.zeros(1)), "argument padding is torch.float32"),
        (lambda q, k, v: attention(q, k, v, bias=q), r"argument bias has shape .* \(1, 2, 4, 4\)"),
        (lambda q, k, v: attention(q, k, v, bias=torch.zeros(4, 3)), r"argument bias has shape \(4, 3\)"),
        (lambda q, k, v: attention(q, k, v, bias=torch.zeros(4, 4).double()), "argument bias is torch.float64"),
        (lambda q, k, v: attention(q, k, v, bias=torch.zeros(4, 4).long()), "argument bias is torch.int64"),
        (lambda q, k, v: attention(q, k, v, implementation="fast"), "argument implementation is 'fast'"),
        (lambda q, k, v: attention(q, k, v, window=2, implementation="torch"), "'torch'.*does not know a bias, a win"),
        (lambda q, k, v: attention(q[:, :2], k, v, implementation="torch"), "2 causal queries at the end of 4 keys"),
        (lambda q, k, v: attention(*(t.double() for t in (q, k, v)), implementation="kernel"), "q is torch.float64"),
        (lambda q, k, v: rotary_attention(q, *tables(4, 8)), "argument qkv"),
        (lambda q, k, v: rotary_attention(torch.stack([q, k, v], 2), *tables(5, 8)), r"expected .* \(4, 4\)"),
        (lambda q, k, v: rotary_attention(torch.stack([q, k, v], 2)[..., :7], *tables(4, 8)), "even head_dim"),
    ],
)
def test_wrong_input_is_named(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(*packed(1, 4, 2, 8).unbind(2))
