"""What counts as right, what kind of mistake the rest is, and how sure a rate is."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitcoach_tune.evaluate.score import Rate, judge, same_value
from fitcoach_tune.functiongemma import Call, render_call

DECLARED = ["steps", "sleep", "goal"]


def call(name: str, **arguments) -> Call:
    return Call(name, arguments)


def said(*calls: Call) -> str:
    return "".join(render_call(c) for c in calls) + "<start_function_response>"


STEPS, SLEEP, GOAL = call("steps"), call("sleep", days=7), call("goal", of="steps", value=9000)


@pytest.mark.parametrize(
    ("raw", "gold", "error"),
    [
        (said(STEPS), [STEPS], None),
        (said(GOAL), [GOAL], None),
        ("Nothing to call.<end_of_turn>", [], None),
        ("", [], "no_answer"),
        ("Let me see. " + said(STEPS), [STEPS], None),
        ("<start_function_call>call:steps{", [STEPS], "decoder_failed"),
        ("<start_function_call>call:steps{}", [STEPS], "decoder_failed"),
        ("<start_function_call>steps{}<end_function_call>", [], "decoder_failed"),
        (said(call("get_sleep_metrics")), [SLEEP], "invented_func_name"),
        (said(call("get_sleep_metrics")), [], "invented_func_name"),
        (said(STEPS, call("invented")), [STEPS], "invented_func_name"),
        (said(SLEEP), [STEPS], "wrong_func_name"),
        (said(STEPS, STEPS), [STEPS, SLEEP], "wrong_func_name"),
        (said(STEPS, SLEEP), [STEPS], "wrong_count"),
        (said(STEPS), [STEPS, STEPS], "wrong_count"),
        ("I cannot.<end_of_turn>", [STEPS], "no_call"),
        ("", [STEPS], "no_call"),
        (said(STEPS), [], "unexpected_call"),
        ("\n\n", [], "no_answer"),
        ("<end_of_turn>", [], "no_answer"),
        (said(call("sleep", days=8)), [SLEEP], "value_error"),
        (said(call("sleep")), [SLEEP], "value_error"),
        (said(call("sleep", days=7, more=1)), [SLEEP], "value_error"),
        (said(call("sleep", days="7")), [SLEEP], "value_error"),
        (said(call("sleep", nights=7)), [SLEEP], "value_error"),
    ],
)
def test_kinds_of_mistake(raw, gold, error) -> None:
    verdict = judge(raw, gold, DECLARED)
    assert verdict.error == error
    assert verdict.right is (error is None)


def test_a_verdict_keeps_what_was_said() -> None:
    verdict = judge("Let me see. " + said(STEPS, SLEEP), [STEPS], DECLARED)
    assert verdict.calls == (STEPS, SLEEP)
    assert verdict.text == "Let me see."
    failed = judge("<start_function_call>oops", [STEPS], DECLARED)
    assert (failed.calls, failed.text) == ((), "<start_function_call>oops")


@pytest.mark.parametrize(
    "gold",
    [
        [STEPS, SLEEP, GOAL],
        [STEPS, STEPS, SLEEP],
        [SLEEP, call("sleep", days=8), call("sleep")],
        [call("goal", value=1), call("goal", value=True)],  # equal to Python, not in JSON
        [call("goal", value=0), call("goal", value=False), call("goal", value=0)],
    ],
)
def test_parallel_calls_are_right_in_any_order(gold) -> None:
    for order in permutations(gold):
        assert judge(said(*order), gold, DECLARED).right


@pytest.mark.parametrize(
    ("calls", "gold"),
    [
        ([SLEEP, SLEEP, call("sleep")], [SLEEP, call("sleep"), call("sleep")]),
        ([SLEEP, SLEEP], [SLEEP, call("sleep", days=8)]),
        ([SLEEP, call("sleep", days=8)], [SLEEP, SLEEP]),
    ],
)
def test_duplicates_are_counted(calls, gold) -> None:
    assert judge(said(*calls), gold, DECLARED).error == "value_error"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (1, 1.0, True),
        (0, -0.0, True),
        (1, True, False),
        (0, False, False),
        (1.0, True, False),
        (True, True, True),
        (None, None, True),
        (None, False, False),
        (None, "", False),
        ("1", 1, False),
        ("a", "A", False),
        (2**53, 2**53 + 1, False),
        ([1, 2], [1.0, 2], True),
        ([1, 2], [2, 1], False),
        ([1], [1, 1], False),
        ([True], [1], False),
        ([], {}, False),
        ({"a": 1, "b": [True]}, {"b": [True], "a": 1}, True),
        ({"a": [{"b": 1}]}, {"a": [{"b": True}]}, False),
        ({"a": [{"b": 1}]}, {"a": [{"b": 1.0}]}, True),
        ({"a": None}, {}, False),
    ],
)
def test_same_value(one, other, same) -> None:
    assert same_value(one, other) is same
    assert same_value(other, one) is same


scalars = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "a", "True", "1"])
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=2) | st.dictionaries(st.sampled_from("ab"), v, max_size=2), max_leaves=4
)
calls = st.builds(Call, st.sampled_from(DECLARED), st.dictionaries(st.sampled_from(["x", "y"]), values, max_size=2))


@settings(max_examples=80, deadline=None)
@given(gold=st.lists(calls, min_size=1, max_size=4), data=st.data())
def test_the_gold_itself_is_right_in_every_order(gold, data) -> None:
    assert judge(said(*data.draw(st.permutations(gold))), gold, DECLARED).right


# ------------------------------------------------------------------------------------------------ rates

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
