"""The budgets of the course and of ZeRO, to the digit."""

import pytest

from verim.anatomy import activations_budget, length_of_activations, sharded_state_bytes, state_budget
from verim.errors import InputError


def test_a_billion_parameters() -> None:
    budget = state_budget(1e9)
    assert (budget.weights, budget.gradients, budget.optimiser) == (2e9, 2e9, 8e9)
    assert budget.total == 12e9


def test_the_missing_length_of_sixteen_gigabytes() -> None:
    """The course gives no length: this is the one at which its 16 GB come out, for the shape of Llama-3.2-1B."""
    length = length_of_activations(16e9, batch=8, width=2048, layers=16, kept=4, element_bytes=2)
    assert activations_budget(8, 1, 2048, 16, 4) * length == pytest.approx(16e9)
    assert round(length) == 7629


def test_llama_2_7b_at_4k_batch_4() -> None:
    budget = state_budget(7e9)
    activations = activations_budget(batch=4, length=4096, width=4096, layers=32, kept=4)
    gigabytes = [round(value / 1e9, 2) for value in (budget.weights, budget.gradients, budget.optimiser, activations)]
    assert gigabytes == [14, 14, 56, 17.18]
    assert round((budget.total + activations) / 1e9, 2) == 101.18


@pytest.mark.parametrize("ranks", [1, 4, 64])
def test_zero(ranks: int) -> None:
    stages = [sharded_state_bytes(stage, ranks) for stage in range(4)]
    assert stages == [16, 4 + 12 / ranks, 2 + 14 / ranks, 16 / ranks]


def test_zero_has_three_stages() -> None:
    with pytest.raises(InputError, match="expected 0, 1, 2 or 3"):
        sharded_state_bytes(4, 8)
    with pytest.raises(InputError, match="ranks"):
        sharded_state_bytes(1, 0)
