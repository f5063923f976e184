"""RNN, GRU, LSTM, minGRU and minLSTM against their published equations, a step at a time."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from verim.errors import InputError
from verim.models import BlockConfig, LanguageModel, LanguageModelConfig
from verim.nn import TensorState
from verim.nn.mixers import GRUConfig, LSTMConfig, MinGRUConfig, MinLSTMConfig, RNNConfig, S4DConfig
from verim.nn.mixers.minimal import positive
from verim.ops import force_backend
from verim.train import AdamWConfig

WIDTH, HIDDEN = 10, 7
Step = Callable[[Tensor, Tensor, list[Tensor], int], list[Tensor]]


def rnn_step(mapped: Tensor, turned: Tensor, state: list[Tensor], hidden: int) -> list[Tensor]:
    return [torch.tanh(mapped + turned)]


def relu_step(mapped: Tensor, turned: Tensor, state: list[Tensor], hidden: int) -> list[Tensor]:
    return [torch.relu(mapped + turned)]


def gru_step(mapped: Tensor, turned: Tensor, state: list[Tensor], hidden: int) -> list[Tensor]:
    r, z, n = mapped.split(hidden, dim=-1)
    to_r, to_z, to_n = turned.split(hidden, dim=-1)
    z = torch.sigmoid(z + to_z)
    n = torch.tanh(n + torch.sigmoid(r + to_r) * to_n)
    return [(1 - z) * n + z * state[0]]


def lstm_step(mapped: Tensor, turned: Tensor, state: list[Tensor], hidden: int) -> list[Tensor]:
    i, f, g, o = (mapped + turned).split(hidden, dim=-1)
    cell = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return [torch.sigmoid(o) * torch.tanh(cell), cell]


@pytest.mark.parametrize(
    ("config", "step"),
    [
        (RNNConfig(HIDDEN), rnn_step),
        (RNNConfig(HIDDEN, activation="relu"), relu_step),
        (GRUConfig(HIDDEN), gru_step),
        (LSTMConfig(HIDDEN), lstm_step),
    ],
    ids=lambda part: getattr(part, "__name__", str(part)),
)
def test_recurrent_mixers_equal_their_equations(config: Any, step: Step) -> None:
    torch.manual_seed(0)
    mixer, x = config.build(WIDTH).double(), torch.randn(3, 9, WIDTH, dtype=torch.float64)
    weights = mixer.recurrence
    for bias in (weights.bias_ih_l0, weights.bias_hh_l0):  # they start at zero
        nn.init.normal_(bias)
    state = [torch.zeros(3, HIDDEN, dtype=torch.float64)] * (2 if isinstance(config, LSTMConfig) else 1)
    outputs = []
    for x_t in x.unbind(1):
        mapped = x_t @ weights.weight_ih_l0.T + weights.bias_ih_l0
        turned = state[0] @ weights.weight_hh_l0.T + weights.bias_hh_l0
        state = step(mapped, turned, state, HIDDEN)
        outputs.append(state[0] @ mixer.out.weight.T)
    _, first = mixer(x[:, :4])
    y, final = mixer(x[:, 4:], first)
    torch.testing.assert_close(y, torch.stack(outputs, 1)[:, 4:], rtol=1e-12, atol=1e-12)
    for got, expected in zip(final.tensors(), state, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("config", "gates"), [(RNNConfig(), 1), (GRUConfig(), 3), (LSTMConfig(), 4)], ids=str)
def test_recurrent_matrices_start_orthogonal_in_a_model_too(config: Any, gates: int) -> None:
    torch.manual_seed(0)
    width = 64
    model = LanguageModel(LanguageModelConfig((BlockConfig(config),), width, depth=1))
    recurrence = model.blocks[0].mixer.recurrence
    for gate in recurrence.weight_hh_l0.detach().view(gates, width, width):
        torch.testing.assert_close(gate @ gate.T, torch.eye(width), rtol=0, atol=1e-5)
    assert recurrence.weight_ih_l0.std().item() == pytest.approx(width**-0.5, rel=0.05)
    biases = recurrence.bias_ih_l0.detach() + recurrence.bias_hh_l0.detach()
    expected = torch.zeros(gates, width)
    if isinstance(config, LSTMConfig):
        expected[1] = 1  # torch's gates are i, f, g, o
    torch.testing.assert_close(biases, expected.flatten(), rtol=0, atol=0)


def test_recurrent_matrices_learn_by_their_fan_in_and_decay() -> None:
    model = LanguageModel(LanguageModelConfig((BlockConfig(LSTMConfig(hidden=128)),), 64, depth=1))
    groups = AdamWConfig(learning_rate=1.0, weight_decay=0.1).build(model).param_groups
    told = {id(weight): (group["base_rate"], group["weight_decay"]) for group in groups for weight in group["params"]}
    weights = dict(model.blocks[0].mixer.recurrence.named_parameters())
    assert told[id(weights["weight_ih_l0"])] == (32 / 64, 0.1)
    assert told[id(weights["weight_hh_l0"])] == (32 / 128, 0.1)
    assert told[id(weights["bias_ih_l0"])] == told[id(weights["bias_hh_l0"])] == (0.3, 0.0)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_a_model_of_all_of_them_survives_json_and_decodes_as_it_reads() -> None:
    torch.manual_seed(0)
    mixers = (RNNConfig(), GRUConfig(), LSTMConfig(), MinGRUConfig(kernel=3), MinLSTMConfig(), S4DConfig(state=4))
    config = LanguageModelConfig(tuple(BlockConfig(mixer) for mixer in mixers), 16, depth=len(mixers), tied=True)
    assert LanguageModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    model, tokens = LanguageModel(config), torch.randint(0, 256, (2, 12))
    with torch.no_grad():
        whole, _ = model(tokens)
        logits, state = model(tokens[:, :9])
        steps = [logits]
        for token in tokens[:, 9:].split(1, dim=1):
            logits, state = model(token, state)
            steps.append(logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-4, atol=1e-5)
    assert state.bytes() == model.state_bytes(2, 12)


MINIMAL = [
    config(expand=1.3, candidate=candidate, kernel=kernel)
    for config in (MinGRUConfig, MinLSTMConfig)
    for candidate, kernel in (("positive", 0), ("linear", 3))
]


def minimal_equations(mixer: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What is forgotten, what is taken, and the candidate, as the paper writes them."""
    if mixer.kernel:
        padded = nn.functional.pad(x.transpose(1, 2), (mixer.kernel - 1, 0))
        convolved = nn.functional.conv1d(
            padded, mixer.convolution[:, None], mixer.convolution_bias, groups=mixer.convolution.shape[0]
        )
        x = convolved.transpose(1, 2)
    *logits, candidate = (x @ mixer.into.weight.T + mixer.into.bias).split(mixer.inner, dim=-1)
    if len(logits) == 1:
        z = torch.sigmoid(logits[0])
        forget, take = 1 - z, z
    else:
        f, i = torch.sigmoid(logits[0]), torch.sigmoid(logits[1])
        forget, take = f / (f + i), i / (f + i)
    if mixer.candidate == "positive":
        candidate = torch.where(candidate >= 0, candidate + 0.5, torch.sigmoid(candidate))
    return forget, take, candidate


@pytest.mark.parametrize("config", MINIMAL, ids=str)
@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_minimal_mixers_equal_their_equations(config: Any, kind: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    mixer, x = config.build(WIDTH).to(kind), torch.randn(3, 33, WIDTH, dtype=kind)
    nn.init.normal_(mixer.into.bias)
    with torch.no_grad(), force_backend("reference" if kind is torch.float64 else "auto"):
        forget, take, candidate = minimal_equations(mixer, x)
        h = torch.zeros(3, mixer.inner, dtype=kind)
        outputs = []
        for t in range(33):
            h = forget[:, t] * h + take[:, t] * candidate[:, t]
            outputs.append(h @ mixer.out.weight.T)
        y, final = mixer(x)
    torch.testing.assert_close(y, torch.stack(outputs, 1), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(final.hidden, h, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("config", [MinGRUConfig(), MinLSTMConfig()], ids=str)
def test_positive_candidates_give_what_the_paper_scans_in_logarithms(config: Any) -> None:
    """exp(a* + logcumsumexp(log(take · candidate) - a*)), a* = cumsum(log forget): appendix B."""
    torch.manual_seed(0)
    mixer, x = config.build(WIDTH).double(), torch.randn(2, 50, WIDTH, dtype=torch.float64)
    with torch.no_grad(), force_backend("reference"):
        forget, take, candidate = minimal_equations(mixer, x)
        decay = forget.log().cumsum(1)
        h = (decay + torch.logcumsumexp((take * candidate).log() - decay, 1)).exp()
        torch.testing.assert_close(mixer(x)[0], h @ mixer.out.weight.T, rtol=1e-10, atol=1e-12)


def test_gates_of_minimal_mixers_sum_to_one_however_large_their_logits() -> None:
    gru, lstm = MinGRUConfig().build(2), MinLSTMConfig().build(2)
    for large in (0.0, 30.0, 1e4):
        logits = torch.tensor([[[large, -large]]])
        keep, take = gru.gates(logits)
        torch.testing.assert_close(keep + take, torch.ones(1, 1, 2))
        assert take[0, 0, 0] >= 0.5 and keep[0, 0, 0] == take[0, 0, 1]
        for forget in (logits, -logits, -logits.abs()):
            keep, take = lstm.gates(torch.cat([forget, -logits.abs()], -1))
            torch.testing.assert_close(keep + take, torch.ones(1, 1, 2))
    keep, _ = lstm.gates(torch.full((1, 1, 4), -1e4))  # both closed: neither wins
    torch.testing.assert_close(keep, torch.full((1, 1, 2), 0.5))


def test_positive_has_gradients_everywhere() -> None:
    x = torch.tensor([-1e4, -1.0, 0.0, 1.0, 1e4], requires_grad=True)
    y = positive(x)
    torch.testing.assert_close(y, torch.tensor([0.0, 0.26894143, 0.5, 1.5, 1e4 + 0.5]))
    y.sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


@pytest.mark.parametrize(
    "config",
    [RNNConfig(), GRUConfig(), LSTMConfig(), MinGRUConfig(kernel=4), MinLSTMConfig(kernel=4), S4DConfig()],
    ids=str,
)
def test_states_keep_nothing_but_themselves_alive(config: Any) -> None:
    with torch.no_grad():
        _, state = config.build(WIDTH)(torch.randn(3, 100, WIDTH))
    assert isinstance(state, TensorState)
    for tensor in state.tensors():
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


@pytest.mark.parametrize(
    "config", [RNNConfig(), GRUConfig(), LSTMConfig(), MinGRUConfig(kernel=4), MinLSTMConfig(kernel=4)], ids=str
)
@pytest.mark.parametrize("autocast", [False, True])
def test_halves_go_on_from_their_state(config: Any, autocast: bool) -> None:
    torch.manual_seed(0)
    mixer, x = config.build(WIDTH), torch.randn(2, 12, WIDTH)
    with torch.no_grad():
        expected, _ = mixer(x)
        if not autocast:
            mixer, x = mixer.bfloat16(), x.bfloat16()
        state, outputs = None, []
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            for chunk in x.split([8, 1, 3], dim=1):
                y, state = mixer(chunk, state)
                outputs.append(y.float())
    torch.testing.assert_close(torch.cat(outputs, 1), expected, rtol=0.05, atol=0.03)


@pytest.mark.parametrize(
    ("config", "forward", "backward"),
    [
        (RNNConfig(7), 2 * (10 * 7 + 7 * 7 + 7 * 10), 4 * (10 * 7 + 7 * 7 + 7 * 10)),
        (GRUConfig(7), 2 * (3 * (10 * 7 + 7 * 7) + 7 * 10), 4 * (3 * (10 * 7 + 7 * 7) + 7 * 10)),
        (LSTMConfig(7), 2 * (4 * (10 * 7 + 7 * 7) + 7 * 10), 4 * (4 * (10 * 7 + 7 * 7) + 7 * 10)),
        # the recurrence: 2 forward and 3 backward a channel; the convolution: 2 · 4 and 4 · 4 + 1
        (MinGRUConfig(expand=1.5), 2 * (3 * 10 * 15) + 2 * 15, 4 * (3 * 10 * 15) + 3 * 15),
        (MinLSTMConfig(kernel=4), 2 * (4 * 10 * 10) + 2 * 10 + 8 * 10, 4 * (4 * 10 * 10) + 3 * 10 + 17 * 10),
    ],
    ids=str,
)
def test_flops_of_recurrent_mixers_by_hand(config: Any, forward: int, backward: int) -> None:
    assert config.build(10).flops(64) == (forward, backward)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (RNNConfig, "hidden", -1),
        (RNNConfig, "activation", "sigmoid"),
        (GRUConfig, "hidden", -1),
        (LSTMConfig, "hidden", -1),
        (LSTMConfig, "forget_bias", float("nan")),
        (MinGRUConfig, "expand", 0.0),
        (MinGRUConfig, "candidate", "tanh"),
        (MinLSTMConfig, "kernel", -1),
        (MinLSTMConfig, "forget_bias", float("inf")),
    ],
)
def test_impossible_recurrent_mixers_name_the_field(kind: type, field: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^{field}: got .*expected"):
        kind(**{field: value})
