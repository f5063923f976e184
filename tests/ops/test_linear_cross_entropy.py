"""The linear cross entropy: its definition, and the CPU version against it, by rows and by tiles."""

import math

import pytest
import torch
from agreement import Allocations, assert_agrees, poisoned_memory
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from verim.errors import InputError
from verim.ops import force_backend, linear_cross_entropy, workers
from verim.ops.linear_cross_entropy import cpu

WAYS = {"by rows": (1 << 24, 1), "a few rows at a time": (5000, 1), "by tiles": (0, 1)}


def inputs(rows: int, width: int, vocab: int, ignored: float = 0.0) -> tuple[list[Tensor], Tensor]:
    """hidden, weight, bias; targets."""
    draw = torch.Generator().manual_seed(rows + 10 * width + vocab)
    tensors = [torch.randn(shape, generator=draw) for shape in ((rows, width), (vocab, width), (vocab,))]
    tensors[1] *= 2 / math.sqrt(width)
    targets = torch.randint(vocab, (rows,), generator=draw)
    return tensors, targets.where(torch.rand(rows, generator=draw) >= ignored, -100)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    go(monkeypatch, request.param)


def go(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    buffer, least = WAYS[way]
    monkeypatch.setattr(cpu, "_BUFFER", buffer)
    monkeypatch.setattr(cpu, "_LEAST_ROWS", least)
    monkeypatch.setattr(cpu, "_TILE_ROWS", 64)
    monkeypatch.setattr(cpu, "_TILE_COLUMNS", 96)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_reference_is_torchs_loss_of_a_linear_layer(reduction: str, smoothing: float) -> None:
    (hidden, weight, bias), targets = inputs(30, 7, 11, 0.3)
    hidden, weight, bias = hidden.double(), weight.double(), bias.double()
    options = {"reduction": reduction, "label_smoothing": smoothing}
    expected = functional.cross_entropy(functional.linear(hidden, weight, bias), targets, **options)
    with force_backend("reference"):
        got = linear_cross_entropy(hidden, weight, targets, bias=bias, **options)
    torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-13)


def test_the_soft_cap_and_the_penalty_as_written() -> None:
    (hidden, weight, bias), targets = inputs(6, 4, 9)
    logits = 3 * torch.tanh((hidden @ weight.t() + bias).double() / 3)
    normaliser = logits.exp().sum(1).log()
    expected = (normaliser - logits[torch.arange(6), targets] + 0.1 * normaliser**2).mean()
    got = linear_cross_entropy(hidden, weight, targets, bias=bias, softcap=3.0, z_loss=0.1)
    torch.testing.assert_close(got, expected.float())


def test_the_reference_has_the_derivatives_of_its_formula() -> None:
    tensors, targets = inputs(4, 3, 5, 0.3)
    leaves = [tensor.double().requires_grad_() for tensor in tensors]

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        options = {"label_smoothing": 0.1, "softcap": 2.0, "z_loss": 0.1}
        return linear_cross_entropy(hidden, weight, targets, bias=bias, **options)

    with force_backend("reference"):
        assert torch.autograd.gradcheck(loss, leaves)
        assert torch.autograd.gradgradcheck(loss, leaves)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    way=st.sampled_from(list(WAYS)),
    rows=st.sampled_from([0, 1, 2, 63, 64, 65, 131]),
    width=st.sampled_from([1, 5, 16, 33]),
    vocab=st.sampled_from([1, 2, 15, 16, 31, 96, 97, 193, 1025, 2100]),
    ignored=st.sampled_from([0.0, 0.5]),
    reduction=st.sampled_from(["sum", "none"]),
    smoothing=st.sampled_from([0.0, 0.1]),
    softcap=st.sampled_from([None, 2.0]),
    z_loss=st.sampled_from([0.0, 1e-2]),
    biased=st.booleans(),
)
def test_agrees_with_the_reference(
    way, rows, width, vocab, ignored, reduction, smoothing, softcap, z_loss, biased
) -> None:
    tensors, targets = inputs(rows, width, vocab, ignored)
    options = {"reduction": reduction, "label_smoothing": smoothing, "softcap": softcap, "z_loss": z_loss}

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        # 1 + loss: near 0 the loss is a rounded logarithm of 1 + something small
        return 1 + linear_cross_entropy(hidden, weight, targets, bias=bias, **options)

    with pytest.MonkeyPatch.context() as patch:
        go(patch, way)
        assert_agrees(loss, tensors[: 2 + biased], 3e-6, terms=1.0)


def test_the_mean_counts_what_is_not_ignored(way: None) -> None:
    tensors, targets = inputs(131, 16, 200, 0.5)
    assert_agrees(lambda *t: linear_cross_entropy(t[0], t[1], targets, bias=t[2]), tensors, 3e-6, terms=0.1)


def test_all_ways_give_one_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    (hidden, weight, bias), targets = inputs(70, 16, 500, 0.2)
    losses = []
    for name in WAYS:
        go(monkeypatch, name)
        leaf = hidden.clone().requires_grad_()
        each = linear_cross_entropy(leaf, weight, targets, bias=bias, reduction="none")
        losses += [
            each.detach().sum(),
            linear_cross_entropy(leaf, weight, targets, bias=bias, reduction="sum").detach(),
        ]
        with torch.no_grad():
            losses.append(linear_cross_entropy(hidden, weight, targets, bias=bias, reduction="sum"))
    torch.testing.assert_close(torch.stack(losses), losses[0].expand(len(losses)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("parameters", ["halves", "float32"])
def test_halves_are_computed_in_float32(kind: torch.dtype, parameters: str) -> None:
    tensors, targets = inputs(20, 16, 300, 0.2)
    mixed = [tensor.to(kind) for tensor in tensors]
    if parameters == "float32":
        mixed[1:] = [tensor.float() for tensor in mixed[1:]]
    for reduction in ("sum", "none"):
        halves = [tensor.detach().requires_grad_() for tensor in mixed]
        wide = [tensor.detach().float().requires_grad_() for tensor in mixed]
        got, expected = (
            linear_cross_entropy(t[0], t[1], targets, bias=t[2], reduction=reduction) for t in (halves, wide)
        )
        assert got.dtype is torch.float32
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
        for one, other, like in zip(
            torch.autograd.grad(got.sum(), halves), torch.autograd.grad(expected.sum(), wide), halves, strict=True
        ):
            assert one.dtype is like.dtype
            torch.testing.assert_close(one.float(), other, rtol=8e-3 if one.dtype is kind else 1e-5, atol=1e-5)


def test_autocast_changes_nothing_on_the_cpu() -> None:
    (hidden, weight, bias), targets = inputs(5, 8, 40)
    expected = linear_cross_entropy(hidden.bfloat16(), weight, targets, bias=bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(linear_cross_entropy(hidden.bfloat16(), weight, targets, bias=bias), expected)
        with force_backend("reference"):
            got = linear_cross_entropy(hidden.bfloat16(), weight, targets, bias=bias)
    torch.testing.assert_close(got, expected)


def test_leading_dimensions_and_strides_do_not_matter(way: None) -> None:
    (hidden, weight, bias), targets = inputs(24, 20, 200, 0.2)
    leaves = [tensor.requires_grad_() for tensor in (hidden, weight, bias)]
    loss = linear_cross_entropy(hidden, weight, targets, bias=bias)
    others = [
        hidden.detach().t().contiguous().t().view(4, 6, 20),
        weight.detach().t().contiguous().t(),
        bias.detach().repeat_interleave(2)[::2],
    ]
    others = [tensor.requires_grad_() for tensor in others]
    laid_out = targets.view(4, 6).t().contiguous().t()
    again = linear_cross_entropy(others[0], others[1], laid_out, bias=others[2])
    torch.testing.assert_close(again, loss)
    for one, other in zip(torch.autograd.grad(again, others), torch.autograd.grad(loss, leaves), strict=True):
        torch.testing.assert_close(one.reshape(other.shape), other)
    spread = torch.ones(1, 1).expand(3, 20).requires_grad_()
    linear_cross_entropy(spread, torch.ones(1, 20).expand(7, 20), torch.zeros(3, dtype=torch.int64)).backward()


def test_huge_logits_do_not_overflow(way: None) -> None:
    hidden, weight = torch.tensor([[1e4], [-1e4], [1e15]]), torch.tensor([[1.0], [0.5], [-1.0], [1e15]])
    leaf = hidden.requires_grad_()
    for reduction in ("sum", "none"):
        loss = linear_cross_entropy(leaf, weight, torch.tensor([3, 2, 1]), reduction=reduction).sum()
        with force_backend("reference"):
            expected = linear_cross_entropy(leaf, weight, torch.tensor([3, 2, 1]), reduction=reduction).sum()
        torch.testing.assert_close(loss, expected)
        assert torch.autograd.grad(loss, leaf)[0].isfinite().all()


def test_a_bias_of_minus_infinity_removes_a_class(way: None) -> None:
    (hidden, weight, bias), targets = inputs(9, 16, 400)
    bias[:300], targets[:] = -torch.inf, 350
    leaves = [tensor.requires_grad_() for tensor in (hidden, weight, bias)]
    for reduction in ("sum", "none"):
        loss = linear_cross_entropy(hidden, weight, targets, bias=bias, reduction=reduction).sum()
        short = linear_cross_entropy(hidden, weight[300:], targets - 300, bias=bias[300:], reduction=reduction).sum()
        torch.testing.assert_close(loss, short)
        for gradient in torch.autograd.grad(loss, leaves):
            assert gradient.isfinite().all() and (len(gradient) == 9 or (gradient[:300] == 0).all())


@pytest.mark.parametrize("place", [0, 17, 250])
def test_a_nan_in_the_weight_reaches_every_loss_and_one_in_a_row_its_own(place: int, way: None) -> None:
    (hidden, weight, _), targets = inputs(5, 8, 251)
    hidden[2, 3] = math.nan
    each = linear_cross_entropy(hidden.requires_grad_(), weight, targets, reduction="none")
    assert each.isnan().tolist() == [False, False, True, False, False]
    (gradient,) = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets), hidden)
    assert gradient.isnan().any(1).tolist() == [False, False, True, False, False]
    weight[place, 0] = math.nan
    with torch.no_grad():
        assert linear_cross_entropy(hidden, weight, targets, reduction="none").isnan().all()


def test_an_ignored_row_may_hold_anything(way: None) -> None:
    (hidden, weight, _), targets = inputs(5, 8, 30)
    hidden[1], targets[1] = math.nan, -7
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    for backend in ("auto", "reference"):
        for reduction in ("mean", "none"):
            with poisoned_memory(), force_backend(backend):
                loss = linear_cross_entropy(hidden, weight, targets, -7, reduction=reduction).sum()
                gradients = torch.autograd.grad(loss, leaves)
            assert loss.isfinite() and (gradients[0][1] == 0).all()
            assert all(gradient.isfinite().all() for gradient in gradients)


def test_no_position_that_counts(way: None) -> None:
    (hidden, weight, bias), targets = inputs(3, 4, 9)
    leaves, targets = [tensor.requires_grad_() for tensor in (hidden, weight, bias)], torch.full_like(targets, -100)
    assert linear_cross_entropy(hidden, weight, targets, bias=bias).isnan()
    with poisoned_memory():
        total = linear_cross_entropy(hidden, weight, targets, bias=bias, reduction="sum")
        gradients = torch.autograd.grad(total, leaves)
    assert total == 0 and all((gradient == 0).all() for gradient in gradients)
    none = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    assert linear_cross_entropy(none[0], weight.detach(), none[1]).isnan()


def test_only_the_gradients_asked_for_come_back(way: None) -> None:
    for reduction in ("sum", "none"):
        for which in range(3):
            tensors, targets = inputs(5, 8, 130)
            tensors[which].requires_grad_()
            linear_cross_entropy(*tensors[:2], targets, bias=tensors[2], reduction=reduction).sum().backward()
            assert [tensor.grad is not None for tensor in tensors] == [i == which for i in range(3)]


def test_the_gradient_is_scaled_and_may_be_asked_for_twice() -> None:
    tensors, targets = inputs(5, 8, 130)
    leaves = [tensor.requires_grad_() for tensor in tensors]
    loss = linear_cross_entropy(*leaves[:2], targets, bias=leaves[2])
    once = torch.autograd.grad(loss, leaves, retain_graph=True)
    thrice = torch.autograd.grad(3 * loss, leaves, retain_graph=True)
    again = torch.autograd.grad(loss, leaves)
    for one, three, other in zip(once, thrice, again, strict=True):
        assert torch.equal(3 * one, three) and torch.equal(one, other)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_memory_does_not_grow_with_the_vocabulary(reduction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_BUFFER", 1 << 15)
    monkeypatch.setattr(cpu, "_LEAST_ROWS", 8)
    monkeypatch.setattr(cpu, "_TILE_ROWS", 32)
    monkeypatch.setattr(cpu, "_TILE_COLUMNS", 250)
    rows, width, extra = 64, 4, []
    for vocab in (500, 1000, 4000, 16_000):  # by rows, several at a time; then by tiles
        (hidden, weight, _), targets = inputs(rows, width, vocab)
        leaves = [hidden.requires_grad_(), weight.requires_grad_()]
        with Allocations() as made:
            linear_cross_entropy(*leaves, targets, reduction=reduction).sum().backward()
        gradients, pieces = vocab * width, vocab * (width + 1)  # pieces of the weight's gradient come and go
        extra.append(sum(made.sizes) - gradients - (pieces if vocab == 16_000 or reduction == "none" else 0))
    assert max(extra) <= (1 << 15) + 2 * 32 * 250 + 40 * rows * width
    with Allocations() as made, torch.no_grad():
        linear_cross_entropy(hidden, weight, targets)
    assert sum(made.sizes) <= 32 * 250 + 40 * rows * width


def test_the_bits_do_not_depend_on_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_WORTH_A_THREAD", 1.0)  # nanosecond: every call is worth all threads
    tensors, targets = inputs(131, 16, 700, 0.2)
    leaves, before = [tensor.requires_grad_() for tensor in tensors], torch.get_num_threads()
    try:
        for reduction in ("sum", "none"):
            runs = []
            torch.set_num_threads(2)
            for _ in range(2):
                loss = linear_cross_entropy(*leaves[:2], targets, bias=leaves[2], reduction=reduction)
                runs.append([loss.detach(), *torch.autograd.grad(loss.sum(), leaves)])
            assert all(torch.equal(left, right) for left, right in zip(*runs, strict=True))
    finally:
        torch.set_num_threads(before)


def test_a_second_derivative_is_refused() -> None:
    (hidden, weight, _), targets = inputs(3, 4, 9)
    for reduction in ("mean", "none"):
        loss = linear_cross_entropy(hidden.requires_grad_(), weight, targets, reduction=reduction).sum()
        with pytest.raises(InputError, match=r"linear_cross_entropy.*second derivative.*force_backend"):
            torch.autograd.grad(loss, hidden, create_graph=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, w, t, b: (h.long(), w, t), "argument hidden is torch.int64"),
        (lambda h, w, t, b: (h[:, :0], w, t), r"argument hidden is torch.float32 of shape \(6, 0\)"),
        (lambda h, w, t, b: (h, w[0], t), r"argument weight has shape \(4,\), expected \[vocab, width\]"),
        (lambda h, w, t, b: (h, w[:0], t), r"argument weight has shape \(0, 4\), expected .* at least 1"),
        (lambda h, w, t, b: (h, w[:, :3], t), r"argument weight has shape \(9, 3\), expected .*width = 4"),
        (lambda h, w, t, b: (h, w.double(), t), "argument weight is torch.float64, expected torch.float32"),
        (lambda h, w, t, b: (h, w, t.int()), r"argument targets is torch.int32.*targets.long\(\)"),
        (lambda h, w, t, b: (h, w, t[:5]), r"argument targets has shape \(5,\), expected \(6,\)"),
        (lambda h, w, t, b: (h, w, t.to("meta")), "argument targets is on meta, expected cpu"),
        (lambda h, w, t, b: (h, w, t + 9), r"argument targets holds \d+, expected 0 to 8 .*ignore_index = -100"),
        (lambda h, w, t, b: (h, w, t - 9), "argument targets holds -9, expected 0 to 8"),
    ],
)
def test_wrong_input_is_named(change, message: str) -> None:
    (hidden, weight, bias), targets = inputs(6, 4, 9)
    targets[0] = 0
    with pytest.raises(InputError, match="linear_cross_entropy: " + message):
        linear_cross_entropy(*change(hidden, weight, targets, bias))
    with pytest.raises(InputError, match="linear_cross_entropy: " + message):
        linear_cross_entropy(*change(hidden.requires_grad_(), weight, targets, bias))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction": "avg"}, "argument reduction is 'avg', expected 'mean', 'sum' or 'none'"),
        ({"label_smoothing": 1.5}, "argument label_smoothing is 1.5"),
        ({"softcap": 0.0}, "argument softcap is 0.0, expected a positive number, or None"),
        ({"z_loss": math.nan}, "argument z_loss is nan"),
        ({"bias": torch.zeros(8)}, r"argument bias has shape \(8,\), expected \[vocab of weight\] = \(9,\)"),
    ],
)
def test_wrong_options_are_named(options, message: str) -> None:
    (hidden, weight, _), targets = inputs(6, 4, 9)
    with pytest.raises(InputError, match="linear_cross_entropy: " + message):
        linear_cross_entropy(hidden, weight, targets, **options)
