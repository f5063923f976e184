"""FLOPs of every family: what is recorded is what the layers say of themselves, and what torch counts."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from verim.anatomy import Ceilings, Workload, adamw, record
from verim.anatomy.workload import model_config
from verim.models import LanguageModel
from verim.nn.mixers import MIXERS

CEILINGS = Ceilings("cpu", 1, {"float32": 1e15}, ((2**14, 1e15), (2**26, 1e15)), 1e-6)
LIGHT = ("rms_norm", "swiglu", "cross_entropy")
"""Kernels whose work `LanguageModel.flops` leaves out, as it says: norms, activations, the loss."""
LENGTH, BATCH = 32, 2


@pytest.mark.parametrize("mixer", [name for name in MIXERS if name not in ("rnn", "gru")])
def test_recorded_flops_are_those_of_the_layers_and_of_torch(mixer: str) -> None:
    torch.manual_seed(0)
    workload = Workload(BATCH, LENGTH, clip=0)
    model = LanguageModel(model_config(mixer, 64))
    optimiser = adamw(model)
    with record(model, ceilings=CEILINGS) as recording:
        for _ in range(5):
            workload.step(model, optimiser, workload.draw(model))
    ledger = recording.result
    heavy = sum(op.flops for op in ledger.ops if not any(name in op.name for name in LIGHT))
    said = model.flops(LENGTH) * BATCH * LENGTH
    assert heavy == pytest.approx(said, rel=0.05)
    with FlopCounterMode(display=False) as counter:
        workload.step(model, optimiser, workload.draw(model))
    unknown = sum(op.flops for op in ledger.ops if "mkldnn_rnn" in op.name)  # torch has no formula for oneDNN's layer
    assert ledger.flops == pytest.approx(counter.get_total_flops() + unknown, rel=1e-6)
