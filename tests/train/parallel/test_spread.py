"""Models spread over ranks (sequences, stages, experts): four processes, equal to one that has all."""

from pathlib import Path

import pytest
from spawned import Results, require, run_on_ranks
from spread import WORLD
from spread_ranks import CHECKS


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What came out of each check on each rank; the processes start once for all checks."""
    return run_on_ranks(Path(__file__).with_name("spread_ranks.py"), WORLD, tmp_path_factory.mktemp("ranks"))


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_on_every_rank(name: str, results: Results) -> None:
    require(name, results)
