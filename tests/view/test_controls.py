from __future__ import annotations

import pytest

from mm3dad.view.controls import round_up


@pytest.mark.parametrize(
    ("value", "end"), [(3.41201, 3.42), (3.42, 3.42), (0.0012341, 0.00124), (99.96, 100.0), (1e-6, 1e-6), (12345.0, 12400.0)]
)
def test_the_end_of_a_slider_has_three_digits_and_is_not_below_the_value(value, end):
    assert round_up(value) == pytest.approx(end, rel=1e-12) and round_up(value) >= value * (1 - 1e-12)
