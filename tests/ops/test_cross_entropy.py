import pytest
import torch
from agreement import assert_agrees, poisoned_memory
from hypothesis import given, settings
from hypothesis import strategies as st

from verim.errors import InputError
from verim.ops import cross_entropy, force_backend
from verim.ops.cross_entropy import cpu
from verim.ops.cross_entropy.reference import cross_entropy_reference


def logits_and_targets(rows, vocab, scale=2.0, ignored=0.0):
    generator = torch.Generator().manual_seed(rows * 1000 + vocab)
    logits = scale * torch.randn(rows, vocab, generator=generator)
    targets = torch.randint(vocab, (rows,), generator=generator)
    targets[torch.rand(rows, generator=generator) < ignored] = -100
    return logits, targets


@settings(max_examples=60, deadline=None)
@given(
    rows=st.sampled_from([1, 2, 3, 63, 64, 65, 130]),
    vocab=st.integers(1, 70) | st.sampled_from([256, 257, 1009]),
    scale=st.sampled_from([0.01, 2.0, 30.0]),
    ignored=st.sampled_from([0.0, 0.3]),
    reduction=st.sampled_from(["mean", "sum"]),
)
def test_the_kernel_agrees_with_the_reference(rows, vocab, scale, ignored, reduction):
    logits, targets = logits_and_targets(rows, vocab, scale, ignored)
    targets[0] = 0  # at least one counts
    # 1 + loss: near 0 the loss is a rounded logarithm of 1 + something small
    assert_agrees(lambda x: 1 + cross_entropy(x, targets, reduction=reduction), [logits])


def test_the_reference_has_the_derivatives_of_its_formula():
    logits, targets = logits_and_targets(4, 5, ignored=0.5)
    logits = logits.double().requires_grad_()
    for reduction in ("mean", "sum"):
        assert torch.autograd.gradcheck(lambda x, r=reduction: cross_entropy_reference(x, targets, -100, r), logits)
        assert torch.autograd.gradgradcheck(lambda x, r=reduction: cross_entropy_reference(x, targets, -100, r), logits)


def test_the_reference_is_torchs_cross_entropy():
    logits, targets = logits_and_targets(30, 11, ignored=0.3)
    with force_backend("reference"):
        ours = cross_entropy(logits.double(), targets)
    assert torch.allclose(ours, torch.nn.functional.cross_entropy(logits.double(), targets), rtol=1e-13)


def test_leading_dimensions_and_strides_do_not_matter():
    logits, targets = logits_and_targets(24, 40)
    wide = torch.stack([logits, logits + 1], dim=-1)[..., 0].requires_grad_()  # every second float
    transposed = targets.view(4, 6).T.contiguous().T  # the same numbers, other strides
    expected = cross_entropy(logits, targets)
    got = cross_entropy(wide.view(4, 6, 40), transposed)
    assert got == expected
    got.backward()
    assert wide.grad is not None and wide.grad.shape == wide.shape


@pytest.mark.parametrize("shift", [1e4, -1e4, 1e30])
def test_huge_logits_do_not_overflow(shift):
    logits = torch.tensor([[0.0, shift, 0.0, 2 * shift]])
    loss = cross_entropy(logits, torch.tensor([3]))
    with force_backend("reference"):
        assert torch.allclose(loss, cross_entropy(logits, torch.tensor([3])))


def test_minus_infinity_removes_a_class():
    logits, targets = torch.zeros(1, 40), torch.tensor([0])
    logits[0, 20:] = -torch.inf
    logits.requires_grad_()
    loss = cross_entropy(logits, targets)
    loss.backward()
    assert torch.allclose(loss, torch.tensor(20.0).log())
    assert (logits.grad[0, 20:] == 0).all()


@pytest.mark.parametrize("place", [0, 17, 39])
def test_a_nan_reaches_the_loss_and_its_own_row_only(place):
    logits, targets = logits_and_targets(3, 40)
    logits[1, place] = torch.nan
    logits.requires_grad_()
    loss = cross_entropy(logits, targets)
    loss.backward()
    assert loss.isnan()
    assert logits.grad.isnan().any(dim=1).tolist() == [False, True, False]


def test_an_ignored_row_may_hold_anything():
    logits, targets = logits_and_targets(3, 21)
    logits[1], targets[1] = torch.nan, -7
    logits.requires_grad_()
    with poisoned_memory():
        loss = cross_entropy(logits, targets, ignore_index=-7)
        loss.backward()
    assert loss.isfinite() and (logits.grad[1] == 0).all() and logits.grad.isfinite().all()


def test_no_position_that_counts():
    logits, targets = torch.zeros(2, 5, requires_grad=True), torch.full((2,), -100)
    assert cross_entropy(logits, targets).isnan()
    total = cross_entropy(logits, targets, reduction="sum")
    total.backward()
    assert total == 0 and (logits.grad == 0).all()
    assert cross_entropy(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64)).isnan()


def test_backward_twice_and_two_uses_of_the_logits():
    logits, targets = logits_and_targets(5, 33)
    leaf = logits.clone().requires_grad_()
    inner = leaf * 1
    loss = cross_entropy(inner, targets) + 3 * cross_entropy(inner, targets) + inner.sum()
    (first,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    (second,) = torch.autograd.grad(loss, leaf)
    assert torch.equal(first, second)
    with force_backend("reference"):
        reference = logits.clone().requires_grad_()
        (4 * cross_entropy(reference, targets) + reference.sum()).backward()
    assert torch.allclose(first, reference.grad, atol=1e-6)


def test_a_second_derivative_is_refused_not_wrong():
    logits, targets = logits_and_targets(2, 4)
    loss = cross_entropy(logits.requires_grad_(), targets)
    with pytest.raises(InputError, match="second derivative"):
        torch.autograd.grad(loss, logits, create_graph=True)


def test_without_gradients_the_loss_is_the_same():
    logits, targets = logits_and_targets(70, 300)
    with torch.no_grad():
        plain = cross_entropy(logits, targets)
    assert plain == cross_entropy(logits.requires_grad_(), targets)


def test_threads_do_not_change_a_bit(monkeypatch):
    monkeypatch.setattr(cpu, "_NANOSECONDS", 1e9)  # worth any number of threads
    logits, targets = logits_and_targets(1000, 50, ignored=0.1)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            leaf = logits.clone().requires_grad_()
            loss = cross_entropy(leaf, targets)
            loss.backward()
            results.append((loss.detach(), leaf.grad))
    finally:
        torch.set_num_threads(before)
    for loss, gradient in results[1:]:
        assert torch.equal(loss, results[0][0]) and torch.equal(gradient, results[0][1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, t: cross_entropy(x.long(), t), "argument logits is torch.int64"),
        (lambda x, t: cross_entropy(x, t.int()), r"argument targets is torch.int32.*targets.long\(\)"),
        (lambda x, t: cross_entropy(x, t[:2]), r"shape \(2,\), expected \(3,\)"),
        (lambda x, t: cross_entropy(x, t, reduction="none"), "reduction is 'none'"),
        (lambda x, t: cross_entropy(x, t + 100), "holds 10[0-4], expected 0 to 4"),
        (lambda x, t: cross_entropy(x, -1 - t), "holds -[1-5]"),
        (lambda x, t: cross_entropy(x.to("meta"), t), "targets is on cpu, expected meta"),
    ],
)
def test_wrong_input_is_named(change, message):
    logits, targets = logits_and_targets(3, 5)
    with pytest.raises(InputError, match=message):
        change(logits, targets)
