"""The trainer on several ranks: the losses of one, stopped and gone on with, also on another number of ranks."""

import json
from pathlib import Path

import pytest
from spawned import Results, require, run_on_ranks
from trainer_ranks import FOUR, TWO, train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    return train(tmp_path_factory.mktemp("alone"), None)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Path, Results]]:
    script = Path(__file__).parent / "trainer_ranks.py"
    held = {}
    for world in (2, 4):
        folder = tmp_path_factory.mktemp(f"ranks{world}")
        held[world] = folder, run_on_ranks(script, world, folder)
    return held


@pytest.mark.parametrize(("world", "name"), [(2, name) for name in TWO] + [(4, name) for name in FOUR])
def test_ranks_end_where_one_ends(
    world: int, name: str, ranks: dict[int, tuple[Path, Results]], alone: dict[str, float]
) -> None:
    folder, results = ranks[world]
    require(name, results)
    for rank in range(world):
        figures = json.loads((folder / f"{name.replace(' ', '-')}.{rank}.json").read_text())
        assert figures["bits_per_byte"] == pytest.approx(alone["bits_per_byte"], rel=2e-5)
        assert figures["tokens"] == alone["tokens"]


@pytest.mark.parametrize("name", ["zero-3", "tensor"])
def test_a_run_of_two_ranks_goes_on_on_one(
    name: str, ranks: dict[int, tuple[Path, Results]], alone: dict[str, float]
) -> None:
    folder, _ = ranks[2]
    assert train(folder / f"{name}-moved", None)["bits_per_byte"] == pytest.approx(alone["bits_per_byte"], rel=2e-5)
