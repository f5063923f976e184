"""RWKV beside its published equations, written out position by position, and RWKV-4 beside transformers."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from verim.errors import InputError
from verim.models import BlockConfig, LanguageModel, LanguageModelConfig
from verim.nn import NormConfig, RWKV4ChannelMixConfig, RWKV7ChannelMixConfig
from verim.nn.mixers import RWKV4Config, RWKV7Config
from verim.ops import force_backend

WIDTH, LENGTH = 12, 9


def built(config: Any, index: int = 0, depth: int = 1) -> Any:
    """A layer in float64 whose vectors are drawn too, so that no two of them are alike."""
    torch.manual_seed(0)
    layer = config.build(WIDTH, index, depth).double()
    for weight in layer.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return layer


def rwkv4_time_mix(layer: Any, x: Tensor) -> Tensor:
    """Equations 11 to 13, 16 and 17 of arXiv 2305.13048 for one sequence [length, width]."""
    mu_r, mu_k, mu_v = layer.shift.mix
    w, u = layer.log_decay.exp(), layer.bonus
    previous, keys, values, outputs = torch.zeros_like(x[0]), [], [], []
    for t in range(len(x)):
        r = layer.receptance.weight @ (mu_r * x[t] + (1 - mu_r) * previous)
        keys.append(layer.key.weight @ (mu_k * x[t] + (1 - mu_k) * previous))
        values.append(layer.value.weight @ (mu_v * x[t] + (1 - mu_v) * previous))
        weights = [torch.exp(-(t - 1 - i) * w + keys[i]) for i in range(t)] + [torch.exp(u + keys[t])]
        average = sum(a * v for a, v in zip(weights, values, strict=True)) / sum(weights)
        outputs.append(layer.out.weight @ (torch.sigmoid(r) * average))
        previous = x[t]
    return torch.stack(outputs)


def rwkv4_channel_mix(layer: Any, x: Tensor) -> Tensor:
    """Equations 14, 15 and 18 of arXiv 2305.13048."""
    mu_r, mu_k = layer.shift.mix
    before = torch.cat([torch.zeros_like(x[:1]), x[:-1]])
    r = (mu_r * x + (1 - mu_r) * before) @ layer.receptance.weight.T
    k = (mu_k * x + (1 - mu_k) * before) @ layer.key.weight.T
    return torch.sigmoid(r) * (k.clamp(min=0) ** 2 @ layer.value.weight.T)


def rwkv7_time_mix(layer: Any, x: Tensor) -> Tensor:
    """Section 4.1 of arXiv 2503.14456, with the paper's S [values, keys], for one sequence [length, width]."""
    mu_r, mu_w, mu_k, mu_v, mu_a, mu_g = 1 - layer.shift.mix
    heads, size = layer.bonus.shape
    previous, outputs = torch.zeros_like(x[0]), []
    S = x.new_zeros(heads, size, size)
    for now in x:
        x_r, x_w, x_k, x_v, x_a, x_g = (now + (previous - now) * mu for mu in (mu_r, mu_w, mu_k, mu_v, mu_a, mu_g))
        r, k, v = layer.receptance.weight @ x_r, layer.key.weight @ x_k, layer.value.weight @ x_v
        d = layer.decay.up.weight @ torch.tanh(layer.decay.down.weight @ x_w) + layer.decay.up.bias
        w = torch.exp(-math.exp(-0.5) * torch.sigmoid(d))
        a = torch.sigmoid(layer.rate.up.weight @ (layer.rate.down.weight @ x_a) + layer.rate.up.bias)
        g = layer.gate.up.weight @ torch.sigmoid(layer.gate.down.weight @ x_g)
        removed, k = k * layer.removal_scale, k * (1 + (a - 1) * layer.rate_scale)
        parts = []
        for h in range(heads):
            at = slice(h * size, (h + 1) * size)
            unit = removed[at] / removed[at].norm()
            S[h] = S[h] @ (w[at].diag() - torch.outer(unit, a[at] * unit)) + torch.outer(v[at], k[at])
            y = S[h] @ r[at]
            y = (y - y.mean()) / torch.sqrt(y.var(correction=0) + size * 1e-5)
            bonus = (r[at] * layer.bonus[h] * k[at]).sum() * v[at]
            parts.append(y * layer.norm.weight[at] + layer.norm.bias[at] + bonus)
        outputs.append(layer.out.weight @ (torch.cat(parts) * g))
        previous = now
    return torch.stack(outputs)


def rwkv7_channel_mix(layer: Any, x: Tensor) -> Tensor:
    mu = 1 - layer.shift.mix[0]  # RWKV-7's is the share of the past
    before = torch.cat([torch.zeros_like(x[:1]), x[:-1]])
    k = (x + (before - x) * mu) @ layer.key.weight.T
    return k.clamp(min=0) ** 2 @ layer.value.weight.T


@pytest.mark.parametrize(
    ("config", "equations"),
    [
        (RWKV4Config(), rwkv4_time_mix),
        (RWKV4Config(inner=17), rwkv4_time_mix),
        (RWKV4ChannelMixConfig(hidden=20), rwkv4_channel_mix),
        (RWKV7Config(head_dim=4, decay_rank=3, rate_rank=2, gate_rank=5), rwkv7_time_mix),
        (RWKV7ChannelMixConfig(hidden=20), rwkv7_channel_mix),
    ],
    ids=lambda part: getattr(part, "__name__", str(part)),
)
def test_a_layer_is_its_published_equations(config: Any, equations: Any) -> None:
    layer, x = built(config), torch.randn(2, LENGTH, WIDTH, dtype=torch.float64)
    with torch.no_grad(), force_backend("reference"):
        got = layer(x)[0]
        expected = torch.stack([equations(layer, row) for row in x])
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("index", "depth"), [(0, 1), (0, 4), (2, 4), (3, 4)])
def test_rwkv4_starts_as_the_published_code(index: int, depth: int) -> None:
    """`RWKV_TimeMix.__init__` and `RWKV_ChannelMix.__init__` of RWKV-v4/src/model.py."""
    rise, fall = index / max(depth - 1, 1), 1 - index / depth
    mixer = RWKV4Config(inner=6).build(WIDTH, index, depth)
    for channel in range(6):
        decay = -5 + 8 * (channel / 5) ** (0.7 + 1.3 * rise)
        assert mixer.log_decay[channel].item() == pytest.approx(decay, abs=1e-6)
        assert mixer.bonus[channel].item() == pytest.approx(math.log(0.3) + ((channel + 1) % 3 - 1) * 0.5)
    channel_mix = RWKV4ChannelMixConfig().build(WIDTH, index, depth)
    for channel in range(WIDTH):
        share = channel / WIDTH
        expected = [share ** (0.5 * fall), share**fall, share**fall + 0.3 * rise]
        assert mixer.shift.mix[:, channel].tolist() == pytest.approx(expected, abs=1e-6)
        assert channel_mix.shift.mix[:, channel].tolist() == pytest.approx([share**fall] * 2, abs=1e-6)


@pytest.mark.parametrize(("index", "depth"), [(0, 1), (0, 4), (2, 4), (3, 4)])
def test_rwkv7_starts_as_the_published_code(index: int, depth: int) -> None:
    """The vectors of `RWKV_Tmix_x070.__init__` and `RWKV_CMix_x070.__init__` of RWKV-v7/train_temp/src/model.py."""
    rise, fall, size = index / max(depth - 1, 1), 1 - index / depth, 4
    mixer = RWKV7Config(head_dim=size).build(WIDTH, index, depth)
    channel_mix = RWKV7ChannelMixConfig().build(WIDTH, index, depth)
    for channel in range(WIDTH):
        share, linear = channel / WIDTH, channel / (WIDTH - 1) - 0.5
        zigzag = (channel % size - (size - 1) / 2) / ((size - 1) / 2)
        zigzag *= abs(zigzag)
        decay = -6 + 6 * (channel / (WIDTH - 1)) ** (1 + rise**0.3) + 0.5 + zigzag * 2.5
        assert mixer.decay.up.bias[channel].item() == pytest.approx(decay, abs=1e-5)
        assert mixer.rate.up.bias[channel].item() == pytest.approx(-0.19 + zigzag * 0.3 + linear * 0.4, abs=1e-5)
        assert mixer.removal_scale[channel].item() == pytest.approx(0.71 - linear * 0.1, abs=1e-5)
        past = [1 - share ** (power * fall) for power in (0.2, 0.9, 0.7, 0.7, 0.9, 0.2)]
        assert (1 - mixer.shift.mix[:, channel]).tolist() == pytest.approx(past, abs=1e-5)
        assert 1 - channel_mix.shift.mix[0, channel].item() == pytest.approx(1 - share ** (fall**4), abs=1e-5)
    assert mixer.decay.down.out_features == 32 and mixer.norm.eps == pytest.approx(size * 1e-5)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(InputError, match="head_dim: got 5 for width 12; expected a divisor"):
        RWKV7Config(head_dim=5).build(WIDTH)


@pytest.mark.parametrize("config", [RWKV4Config, RWKV4ChannelMixConfig, RWKV7ChannelMixConfig])
def test_negative_sizes_are_refused(config: Any) -> None:
    with pytest.raises(InputError, match=r"(inner|hidden): got -1, expected 0"):
        config(-1)


def test_rwkv4_is_that_of_transformers() -> None:
    """Random weights of odd sizes: logits of a prompt, and of what comes after it from the state.

    From a state transformers decodes one sequence alone rightly: it mixes the rows of a batch.
    """
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 37, "hidden_size": 20, "intermediate_size": 50, "num_hidden_layers": 3}
    theirs = transformers.RwkvForCausalLM(transformers.RwkvConfig(**sizes, rescale_every=0)).eval()
    for weight in theirs.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    block = BlockConfig(RWKV4Config(), RWKV4ChannelMixConfig(hidden=50))
    norm = NormConfig("layer", 1e-5)
    ours = LanguageModel(LanguageModelConfig((block,), 20, 3, 37, norm, embedding_norm=True))
    ours.load_state_dict(from_transformers(theirs.state_dict(), depth=3))
    prompts, token = torch.randint(0, 37, (2, 7)), torch.randint(0, 37, (1, 1))
    with torch.no_grad():
        torch.testing.assert_close(ours(prompts)[0], theirs(prompts).logits, rtol=1e-4, atol=1e-5)
        prompt = theirs(prompts[:1], use_cache=True)
        expected = theirs(token, state=prompt.state, use_cache=True).logits
        _, state = ours(prompts[:1])
        torch.testing.assert_close(ours(token, state)[0], expected, rtol=1e-4, atol=1e-5)


def from_transformers(weights: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Weights of `RwkvForCausalLM` under our names."""
    ours = {"embedding.weight": weights["rwkv.embeddings.weight"], "head.weight": weights["head.weight"]}
    for part in ("weight", "bias"):
        ours[f"embedding_norm.{part}"] = weights[f"rwkv.blocks.0.pre_ln.{part}"]
        ours[f"norm.{part}"] = weights[f"rwkv.ln_out.{part}"]
    for index in range(depth):
        there, here = f"rwkv.blocks.{index}.", f"blocks.{index}."
        for norm, name in (("ln1", "mixer_norm"), ("ln2", "feed_forward_norm")):
            for part in ("weight", "bias"):
                ours[f"{here}{name}.{part}"] = weights[f"{there}{norm}.{part}"]
        ours[f"{here}mixer.log_decay"] = weights[f"{there}attention.time_decay"]
        ours[f"{here}mixer.bonus"] = weights[f"{there}attention.time_first"]
        for layer, name, mixes in (
            ("attention", "mixer", ("receptance", "key", "value")),
            ("feed_forward", "feed_forward", ("receptance", "key")),
        ):
            rows = [weights[f"{there}{layer}.time_mix_{mix}"].flatten() for mix in mixes]
            ours[f"{here}{name}.shift.mix"] = torch.stack(rows)
            for matrix in ("receptance", "key", "value"):
                ours[f"{here}{name}.{matrix}.weight"] = weights[f"{there}{layer}.{matrix}.weight"]
        ours[f"{here}mixer.out.weight"] = weights[f"{there}attention.output.weight"]
    return ours
