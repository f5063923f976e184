"""The kernel that measures bank conflicts: its addresses in Numba's simulator, its times where there is a GPU."""

import json
import os
import subprocess
import sys

import pytest

from verim.errors import InputError
from verim.ops.scan import banks_gpu
from verim.ops.scan.banks import Banks, strided

HAS_GPU = banks_gpu.cuda is not None and banks_gpu.cuda.is_available()
CASES = [(1, False), (7, True), (31, True), (32, False), (32, True)]
SIMULATED = """
import importlib.util, json, sys
specification = importlib.util.spec_from_file_location("banks_gpu", sys.argv[1])
banks_gpu = importlib.util.module_from_spec(specification)  # without the rest of verim.ops: a second instead of many
sys.modules["banks_gpu"] = banks_gpu
specification.loader.exec_module(banks_gpu)
print(json.dumps([banks_gpu.addresses_read(*case, 40, 2).tolist() for case in json.loads(sys.argv[2])]))
try:
    banks_gpu.measure_strides([1])
except banks_gpu.InputError as error:
    print(error)
"""


def test_the_kernel_reads_where_the_model_says() -> None:
    if banks_gpu.cuda is None:
        pytest.skip(f"Numba has no CUDA target here, simulated or not: {banks_gpu._MISSING}")
    command = [sys.executable, "-c", SIMULATED, banks_gpu.__file__, json.dumps(CASES)]
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    addresses, message = done.stdout.splitlines()
    places = [(Banks().padded if padded else int, stride) for stride, padded in CASES]
    assert json.loads(addresses) == [
        [place(stride * (thread % 32)) for thread in range(40)] for place, stride in places
    ]
    assert "Numba simulates the GPU (NUMBA_ENABLE_CUDASIM is set), which takes no time" in message


def test_times_are_told_in_times_of_stride_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def modelled(stride: int, padded: bool, rounds: int, runs: int) -> float:
        return 0.25 * rounds * strided(stride, padded=padded).worst

    monkeypatch.setattr(banks_gpu, "_seconds", modelled)
    monkeypatch.setattr(banks_gpu, "_check_device", lambda function: None)
    measured = banks_gpu.measure_strides(rounds=8)
    assert [(m.stride, m.padded) for m in measured] == [(s, p) for s in range(1, 33) for p in (False, True)]
    assert all(m.turns == strided(m.stride, padded=m.padded).worst and m.seconds == 2 * m.turns for m in measured)


@pytest.mark.skipif(not HAS_GPU, reason="needs a GPU that Numba can program (pip install 'numba-cuda[cu13]')")
def test_a_gpu_serves_its_banks_as_modelled() -> None:
    turns = {(m.stride, m.padded): m.turns for m in banks_gpu.measure_strides([1, 2, 8, 16, 32])}
    for (stride, padded), measured in turns.items():
        predicted = strided(stride, Banks(), padded).worst
        assert 0.5 * predicted < measured < 1.5 * predicted, (stride, padded, measured)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for stride in (0, 33):
        with pytest.raises(InputError, match=f"stride {stride} cannot be measured, expected 1 to 32"):
            banks_gpu.measure_strides([stride])
    if not HAS_GPU:
        with pytest.raises(InputError, match=r"finds no NVIDIA GPU .* pip install 'numba-cuda\[cu12\]'"):
            banks_gpu.measure_strides()
    monkeypatch.setattr(banks_gpu, "cuda", None)
    monkeypatch.setattr(banks_gpu, "_MISSING", "no bindings")
    with pytest.raises(InputError, match=r"cannot program GPUs here \(no bindings\): install numba-cuda"):
        banks_gpu.addresses_read(1, False)
