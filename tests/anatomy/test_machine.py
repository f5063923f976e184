"""The machine's card: plain values, and what torch and the system say."""

import json
import os

import torch

from verim.anatomy import machine_card
from verim.anatomy.machine import usable_cores, version_of


def test_the_card_is_json_and_names_what_matters() -> None:
    card = machine_card()
    assert json.loads(json.dumps(card)) == card
    assert card["processor"]
    assert 1 <= card["cores"] <= (os.cpu_count() or 1)
    assert card["threads"] == torch.get_num_threads()
    assert card["torch"] == torch.__version__
    assert card["blas"]
    assert card["memory_bytes"] is None or card["memory_bytes"] > 100e6
    assert len(card["cuda"]) == torch.cuda.device_count()


def test_cores_are_those_of_this_process() -> None:
    if not hasattr(os, "sched_setaffinity"):
        assert usable_cores() == os.cpu_count()
        return
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_versions_of_what_is_and_what_is_not_installed() -> None:
    assert version_of("numba")
    assert version_of("a-package-that-nobody-has") is None
