import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verim.errors import InputError
from verim.measures import auroc

scores = st.lists(st.integers(-3, 3), min_size=1, max_size=20)


@settings(max_examples=60, deadline=None)
@given(scores, scores)
def test_auroc_is_the_share_of_pairs_in_order(positives: list[int], negatives: list[int]) -> None:
    expected = sum((p > n) + 0.5 * (p == n) for p in positives for n in negatives) / len(positives) / len(negatives)
    ups, downs = torch.tensor(positives).float(), torch.tensor(negatives).float()
    assert auroc(ups, downs) == pytest.approx(expected)
    assert auroc(ups, downs) + auroc(downs, ups) == pytest.approx(1)
    assert auroc(ups.exp(), downs.exp()) == pytest.approx(expected)


@pytest.mark.parametrize("bad", [torch.zeros(0), torch.zeros(2, 2), torch.tensor([float("nan")])])
def test_auroc_refuses_what_has_no_order(bad: torch.Tensor) -> None:
    with pytest.raises(InputError, match="positives"):
        auroc(bad, torch.zeros(2))
