"""The page of the published laws: its figures say what the laws say."""

from pathlib import Path

import pytest
from rich.console import Console

from verim.errors import InputError
from verim.recipes import scaling_laws
from verim.scaling.published import LAWS, published_law


@pytest.mark.parametrize("name", LAWS)
def test_the_page_of_every_law(name: str, tmp_path: Path) -> None:
    page = scaling_laws.run(scaling_laws.Experiment(tmp_path, law=name), Console(quiet=True)).read_text()
    for words in ("Training against inference", "LFM2.5 1.2B", published_law(name).source.split(",")[0]):
        assert words in page
    assert "Content-Security-Policy" in page


def test_the_frontier_lies_below_every_curve_and_touches_it() -> None:
    law = published_law("chinchilla")
    quality, lives = scaling_laws.over_a_life(law, 1e23)
    *curves, frontier = scaling_laws.figures(law, quality, lives)["by-flops"]["data"]
    for curve in curves:
        above = [height / least for height, least in zip(curve["y"], frontier["y"], strict=True)]
        assert min(above) >= 1 - 1e-12
        assert min(above) < 1.001


def test_a_used_model_is_smaller_and_saves_what_is_said() -> None:
    law = published_law("epoch")
    quality, lives = scaling_laws.over_a_life(law, 1e23)
    sizes = [life.N for life in lives]
    assert sizes == sorted(sizes, reverse=True)
    for curve, life in zip(scaling_laws.figures(law, quality, lives)["life"]["data"], lives, strict=True):
        assert min(curve["y"]) == pytest.approx(life.total_flops / lives[0].total_flops, rel=2e-3)
    assert scaling_laws.life_rows(lives)[0][-1].startswith("0.0")


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match="law: got 'gopher'"):
        scaling_laws.Experiment(law="gopher")
    with pytest.raises(InputError, match="flops: got 0"):
        scaling_laws.Experiment(flops=0.0)
