import math

import pytest

from verim.measures import bits_per_byte


def test_uniform_bytes_cost_eight_bits() -> None:
    assert bits_per_byte(100 * math.log(256), 100) == pytest.approx(8.0)
