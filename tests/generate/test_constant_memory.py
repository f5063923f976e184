"""Recurrent models and windowed attention generate at any length in the memory that they begin with."""

import json
import subprocess
import sys

import pytest

TOKENS = 20_000
PROGRAM = f"""
import json, sys
from pathlib import Path

import torch

from verim.generate import Engine, Sampling
from verim.models import BlockConfig, LanguageModel, LanguageModelConfig
from verim.nn.mixers import AttentionConfig, MambaConfig, RWKV4Config

torch.set_num_threads(1)
window = AttentionConfig(heads=16, head_dim=4, window=64)
mixer = {{"mamba": MambaConfig(), "rwkv4": RWKV4Config(), "window": window}}[sys.argv[1]]
model = LanguageModel(LanguageModelConfig((BlockConfig(mixer),), width=32, depth=2))
engine = Engine(model)
engine.add([1, 2, 3], Sampling(max_tokens={TOKENS}))
drawn, resident, states = 0, [], []
while engine.busy:
    drawn += len(engine.step())
    if drawn % 1000 == 0 and engine.busy:
        resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
        states.append(engine.state_bytes())
print(json.dumps({{"drawn": drawn, "resident": resident, "states": states}}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
@pytest.mark.parametrize("mixer", ["mamba", "rwkv4", "window"])
def test_twenty_thousand_tokens_take_the_memory_of_the_first_thousand(mixer: str) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, mixer], capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout)
    assert figures["drawn"] == TOKENS and len(figures["resident"]) == TOKENS // 1000 - 1
    assert len(set(figures["states"])) == 1
    # what was drawn is kept as a list, 0.8 MB, and attention has tables of its rotations, 2.5 MB while they are made;
    # the whole cache of two blocks would take 20 MB
    assert max(figures["resident"]) - figures["resident"][1] < 6e6, figures["resident"]
