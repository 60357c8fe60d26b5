"""How sure a rate is, and how sure the difference between two models."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitcoach_tune.evaluate.statistics import Comparison, Rate

Z2 = 3.841458820694124  # the square of the normal distribution's 97.5% quantile


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [
        (48, 64, 0.631837, 0.839851),  # centre .735844, half-width .104007, worked out by hand
        (0, 10, 0.0, Z2 / (10 + Z2)),
        (10, 10, 10 / (10 + Z2), 1.0),
        (0, 64, 0.0, Z2 / (64 + Z2)),
        (1, 2, 0.5 - 0.5 * math.sqrt(Z2 / (2 + Z2)), 0.5 + 0.5 * math.sqrt(Z2 / (2 + Z2))),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson_interval(right, n, low, high) -> None:
    rate = Rate(right, n)
    assert rate.interval == pytest.approx((low, high), abs=1e-6)
    assert rate.as_dict() == {
        "right": right,
        "n": n,
        "value": right / n if n else None,
        "low": rate.interval[0],
        "high": rate.interval[1],
    }


def test_rates_in_words() -> None:
    assert str(Rate(48, 64)) == "75.0% (48 of 64; 95% interval 63.2% to 84.0%)"
    assert str(Rate(0, 0)) == "no rows"
    assert math.isnan(Rate(0, 0).value)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 300), data=st.data())
def test_an_interval_holds_its_rate(n, data) -> None:
    rate = Rate(data.draw(st.integers(0, n)), n)
    low, high = rate.interval
    assert 0 <= low <= rate.value + 1e-12
    assert rate.value - 1e-12 <= high <= 1


# ------------------------------------------------------------------------------------------------ two models


def test_counting() -> None:
    first, second = [True, True, False, False, True], [True, False, True, False, True]
    found = Comparison.of(first, second)
    assert found == Comparison(both=2, only_first=1, only_second=1, neither=1)
    assert found.n == 5
    with pytest.raises(ValueError, match="zip"):
        Comparison.of([True], [])


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [
        (0, 0, 1.0),
        (1, 1, 1.0),
        (0, 1, 1.0),
        (0, 5, 2 / 2**5),
        (0, 10, 2 / 2**10),
        (1, 5, 2 * (1 + 6) / 2**6),  # none or one of six
        (5, 1, 2 * (1 + 6) / 2**6),
        (2, 12, 2 * (1 + 14 + 91) / 2**14),
    ],
)
def test_mcnemar(only_first, only_second, p) -> None:
    """The rows on which the models agree do not matter."""
    for agreeing in (0, 7, 1000):
        assert Comparison(agreeing, only_first, only_second, agreeing).p_value == pytest.approx(p)


@pytest.mark.parametrize(
    ("counts", "value", "low", "high"),
    [
        # Newcombe 1998 prints method 10's limits for this table: 0.0569 and 0.3404.
        ((36, 2, 12, 0), 0.2, 0.0569, 0.3404),
        # Nothing agrees: 1 minus the length of (1 - low, high - 0) of the Wilson intervals of 10/10 and 0/10.
        ((0, 0, 10, 0), 1.0, 1 - math.sqrt(2) * Z2 / (10 + Z2), 1.0),
        ((0, 0, 0, 0), None, -1.0, 1.0),
    ],
)
def test_newcombe(counts, value, low, high) -> None:
    both, only_first, only_second, neither = counts
    found = Comparison(both, only_first, only_second, neither).as_dict()
    assert found["difference"]["value"] == (None if value is None else pytest.approx(value))
    assert (found["difference"]["low"], found["difference"]["high"]) == pytest.approx((low, high), abs=5e-5)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=4, max_size=4).filter(any))
def test_the_interval_holds_the_difference_and_turns_round(counts) -> None:
    both, first, second, neither = counts
    found, turned = Comparison(both, first, second, neither), Comparison(both, second, first, neither)
    low, high = found.interval
    assert -1 <= low <= found.difference + 1e-12
    assert found.difference - 1e-12 <= high <= 1
    assert turned.interval == pytest.approx((-high, -low))
    assert turned.p_value == pytest.approx(found.p_value)


def test_more_agreement_makes_the_difference_surer() -> None:
    """The same two rates: as if of other rows, and as if of the same."""
    loose, tight = Comparison(25, 25, 35, 15), Comparison(50, 0, 10, 40)
    assert loose.difference == tight.difference
    assert tight.interval[0] > loose.interval[0]
    assert tight.interval[1] < loose.interval[1]
