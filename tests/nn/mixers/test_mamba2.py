"""The Mamba-2 mixer against transformers', weight by weight, and what it refuses."""

from typing import Any

import pytest
import torch

from verim.errors import InputError
from verim.nn.mixers import Mamba2, Mamba2Config


def theirs_and_ours(width: int, config: Mamba2Config) -> tuple[Any, Mamba2]:
    """transformers' mixer with random weights, and ours with the same."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    limits = config.delta_least, config.delta_most or float("inf")
    settings = transformers.Mamba2Config(
        num_heads=config.expand * width // config.head_dim,
        head_dim=config.head_dim,
        hidden_size=width,
        state_size=config.state,
        num_hidden_layers=1,
        layer_norm_epsilon=config.eps,
        expand=config.expand,
        conv_kernel=config.kernel,
        n_groups=config.groups,
        use_bias=config.bias,
        use_conv_bias=config.convolution_bias,
        time_step_limit=limits,
        chunk_size=8,
    )
    torch.manual_seed(0)
    theirs, ours = Mamba2Mixer(settings, 0).eval(), config.build(width)
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.add_(0.3 * torch.randn(weight.shape))
        names = {
            "into": theirs.in_proj,
            "out": theirs.out_proj,
        }
        for name, layer in names.items():
            getattr(ours, name).load_state_dict(layer.state_dict())
        ours.convolution.copy_(theirs.conv1d.weight[:, 0])
        if ours.convolution_bias is not None:
            ours.convolution_bias.copy_(theirs.conv1d.bias)
        pairs = (("delta_bias", "dt_bias"), ("log_decay", "A_log"), ("skip", "D"))
        for own, other in pairs:
            getattr(ours, own).copy_(getattr(theirs, other))
        ours.gain.copy_(theirs.norm.weight)
    assert sum(w.numel() for w in ours.parameters()) == sum(w.numel() for w in theirs.parameters())
    return theirs, ours


@pytest.mark.parametrize(
    ("width", "config"),
    [
        (20, Mamba2Config(state=7, head_dim=5, eps=1e-3)),
        (18, Mamba2Config(state=9, head_dim=6, groups=3, bias=True, convolution_bias=False, kernel=3)),
        (21, Mamba2Config(state=16, head_dim=3, groups=7, expand=1, delta_least=0.3, delta_most=0.9)),
    ],
)
def test_it_computes_what_transformers_does(width: int, config: Mamba2Config) -> None:
    theirs, ours = theirs_and_ours(width, config)
    x = torch.randn(2, 29, width, requires_grad=True)
    expected, (got, _) = theirs(x), ours(x)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    weight = torch.randn_like(got)
    (of_theirs,) = torch.autograd.grad((expected * weight).sum(), x)
    (of_ours,) = torch.autograd.grad((got * weight).sum(), x)
    torch.testing.assert_close(of_ours, of_theirs, rtol=1e-4, atol=1e-4)


def test_the_norm_may_come_before_the_gate() -> None:
    torch.manual_seed(0)
    mixer, x = Mamba2Config(state=4, head_dim=4, gate_first=False).build(8), torch.randn(1, 5, 8)
    with torch.no_grad():
        whole, _ = mixer(x)
        mixer.into.weight[:16] = 0  # the gate's rows: silu(0) = 0 closes it
        closed, _ = mixer(x)
    assert whole.abs().sum() > 0 and torch.equal(closed, torch.zeros_like(closed))


def test_the_state_holds_no_view_of_the_sequence() -> None:
    mixer = Mamba2Config(state=4, head_dim=4).build(8)
    with torch.no_grad():
        _, state = mixer(torch.randn(2, 50, 8))
    for tensor in state.tensors():
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"state": 0}, "state: got 0, expected at least 1"),
        ({"head_dim": 0}, "head_dim: got 0"),
        ({"groups": -1}, "groups: got -1"),
        ({"delta_min": 0.2}, "delta_min, delta_max: got 0.2, 0.1; expected"),
        ({"delta_least": 0.2, "delta_most": 0.1}, "delta_least, delta_most: got 0.2, 0.1; expected"),
        ({"delta_least": -0.1}, "delta_least, delta_most: got -0.1, 0.0; expected"),
        ({"eps": 0.0}, "eps: got 0.0, expected more than 0"),
        ({"head_dim": 5}, r"head_dim: got 5 for 16 channels \(expand 2 · width 8\), expected a divisor"),
        ({"head_dim": 4, "groups": 3}, "groups: got 3, expected a divisor of the 4 heads"),
    ],
)
def test_what_cannot_be_built_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Mamba2Config(**fields).build(8)
