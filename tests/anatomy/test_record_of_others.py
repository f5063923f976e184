"""The ledger closes on models that we did not write: Llama, Mamba and BERT of transformers, a ResNet, an LSTM."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from verim.anatomy import Ceilings, record

CEILINGS = Ceilings("cpu", 1, {"float32": 1e15}, ((2**14, 1e15), (2**26, 1e15)), 1e-6)


class Residual(nn.Module):
    """Two 3 × 3 convolutions with batch norms around, and what went in, added in place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(2))
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.norms[0](self.convolutions[0](x)))
        y = self.norms[1](self.convolutions[1](y))
        y += x
        activated: Tensor = self.activation(y)
        return activated


def resnet() -> tuple[nn.Module, tuple[Tensor, ...]]:
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    stem = nn.Sequential(nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(8), nn.MaxPool2d(2))
    return nn.Sequential(stem, Residual(8), Residual(8), head), (torch.rand(4, 3, 32, 32),)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.LSTM(16, 32, num_layers=2, batch_first=True), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.layer(x)[0])
        return y


def lstm() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Recurrent(), (torch.rand(4, 12, 16),)


def llama() -> tuple[nn.Module, tuple[Tensor, ...]]:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    return transformers.LlamaForCausalLM(config), (torch.randint(64, (2, 16)),)


def mamba() -> tuple[nn.Module, tuple[Tensor, ...]]:
    transformers = pytest.importorskip("transformers")
    config = transformers.MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, state_size=4)
    return transformers.MambaForCausalLM(config), (torch.randint(64, (2, 8)),)


def bert() -> tuple[nn.Module, tuple[Tensor, ...]]:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    return transformers.BertForMaskedLM(config), (torch.randint(64, (2, 16)),)


BUILDERS = {builder.__name__: builder for builder in (resnet, lstm, llama, mamba, bert)}


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.filterwarnings("ignore::UserWarning:transformers", "ignore::FutureWarning:transformers")
def test_the_ledger_closes(name: str) -> None:
    torch.manual_seed(0)
    model, inputs = BUILDERS[name]()
    optimiser = torch.optim.AdamW(model.parameters())

    def loss() -> Tensor:
        result = model(*inputs)
        value: Tensor = (result if isinstance(result, Tensor) else result.logits).square().mean()
        return value

    with record(model, ceilings=CEILINGS) as recording:
        for _ in range(8):
            loss().backward()
            optimiser.step()
            optimiser.zero_grad()
    ledger = recording.result
    assert [part.name for part in ledger.parts] == ["forward", "loss", "backward", "optimiser", "rest"]
    by_part = ledger.grouped(lambda op: op.part)
    for part in ledger.parts:  # every part is its ops and what passes between them
        if part.name in by_part:
            assert by_part[part.name].total_seconds == pytest.approx(part.seconds)
    inside = sum(op.flops for op in ledger.ops if op.module)
    assert inside == pytest.approx(ledger.flops, rel=0.02)  # forward and backward ops have their modules
    with FlopCounterMode(display=False) as counter:
        loss().backward()
    torch_flops = counter.get_total_flops()  # which counts no attention on the CPU, and no oneDNN layer
    assert ledger.flops >= torch_flops
    if name in ("resnet", "mamba"):
        assert ledger.flops == pytest.approx(torch_flops, rel=0.01)
    memory = ledger.memory
    assert memory.allocator_peak_bytes is not None
    assert memory.peak_bytes == pytest.approx(memory.allocator_peak_bytes, rel=0.1)
