"""Every figure of an evaluation, counted by hand."""

from __future__ import annotations

import pytest

from fitcoach_tune.evaluate.metrics import INVENTED, NO_CALL, UNPARSABLE, Metrics, Scored, measure
from fitcoach_tune.evaluate.score import judge
from fitcoach_tune.evaluate.statistics import Rate
from fitcoach_tune.functiongemma import Call, render_call
from fitcoach_tune.gold import gold_of
from tests.conftest import tool

TOOLS = [
    tool("steps"),
    tool("sleep", days={"type": "integer"}),
    tool("alarm", at={"type": "string"}, loud={"type": "boolean"}),
]
NAMES = ("steps", "sleep", "alarm")
STOP = "<start_function_response>"


def call(name: str, **arguments) -> Call:
    return Call(name, arguments)


def row(raw: str | list[Call], *gold: Call, seconds: float = 1.0, tokens: int = 10, stopped: bool = True) -> Scored:
    if not isinstance(raw, str):
        raw = "".join(map(render_call, raw)) + STOP
    wanted = gold_of(gold, TOOLS)
    return Scored(wanted, judge(raw, wanted, TOOLS), NAMES, seconds, tokens, stopped)


STEPS, SLEEP, ALARM = call("steps"), call("sleep", days=7), call("alarm", at="7:00", loud=True)


@pytest.fixture(scope="module")
def found() -> Metrics:
    rows = [
        row([STEPS], STEPS, seconds=1.0),  # right
        row([SLEEP], SLEEP, seconds=2.0),  # right; 1 argument
        row([call("alarm", at="7:00", loud=False)], ALARM, seconds=3.0),  # 1 of 2 arguments
        row([call("alarm", at="7:00", loud=True, snooze=5)], ALARM, seconds=4.0),  # 2 right of 3 given, 2 due
        row([call("sleep")], SLEEP, seconds=5.0),  # none given, 1 due
        row([STEPS], SLEEP, seconds=6.0),  # another function; 1 due
        row([SLEEP, STEPS], STEPS, SLEEP, seconds=7.0),  # right, in another order; 1 argument
        row([STEPS], STEPS, SLEEP, seconds=8.0),  # one call too few; 1 due
        row([call("get_sleep", days=7)], SLEEP, seconds=9.0),  # invented; 1 given, 1 due
        row("Hm.<end_of_turn>", STEPS, seconds=10.0),  # no call
        row("<start_function_call>call:steps{", STEPS, seconds=11.0, tokens=128, stopped=False),  # unparsable
        row("Good morning!<end_of_turn>", seconds=12.0),  # right: words
        row([SLEEP], seconds=13.0),  # unexpected; 1 given
        row("<end_of_turn>", seconds=14.0),  # says nothing
        row("<start_function_call>", seconds=15.0),  # unparsable, where words are wanted
    ]
    return measure(rows, busy_seconds=4.0)


def test_shares_of_rows(found) -> None:
    assert found.n == 15
    assert found.exact == Rate(4, 15)
    assert found.valid_format == Rate(13, 15)
    assert found.invented == Rate(1, 15)
    assert found.unstopped == Rate(1, 15)
    # Too few, no call, unexpected; what cannot be parsed has no count.
    assert found.wrong_count == Rate(3, 15)


def test_shares_of_rows_that_want_calls(found) -> None:
    # Wrong: another function, too few, invented, no call, unparsable.
    assert found.names == Rate(6, 11)
    assert found.called == Rate(9, 11)


def test_shares_of_rows_that_want_none(found) -> None:
    assert found.silent == Rate(2, 4)


def test_arguments(found) -> None:
    # Right: 1 (sleep) + 1 + 2 (alarms) + 1 (parallel). Given: 1 + 2 + 3 + 1 + 1 (invented) + 1 (unexpected).
    assert found.argument_precision == Rate(5, 9)
    # Due: 1 + 2 + 2 + 1 + 1 + 1 (parallel) + 1 (too few) + 1 (invented).
    assert found.argument_recall == Rate(5, 10)


def test_errors_most_first(found) -> None:
    assert found.errors == {
        "decoder_failed": 2, "value_error": 1, "unexpected_param": 1, "missing_required": 1, "wrong_func_name": 1,
        "wrong_count": 1, "invented_func_name": 1, "no_call": 1, "unexpected_call": 1, "no_answer": 1,
    }  # fmt: skip
    assert next(iter(found.errors)) == "decoder_failed"
    assert sum(found.errors.values()) == found.n - found.exact.right


def test_tools(found) -> None:
    assert set(found.tools) == {"steps", "sleep", "alarm"}
    steps, sleep, alarm = (found.tools[name] for name in NAMES)
    assert (steps.right, steps.made, steps.wanted) == (3, 4, 5)
    assert steps.precision == Rate(3, 4)
    assert steps.recall == Rate(3, 5)
    assert steps.f1 == pytest.approx(6 / 9)
    assert (sleep.right, sleep.made, sleep.wanted) == (3, 4, 6)
    assert (alarm.right, alarm.made, alarm.wanted) == (2, 2, 2)
    assert alarm.f1 == 1


def test_confusion(found) -> None:
    assert found.confusion == {
        ("steps", "steps"): 3,
        ("sleep", "sleep"): 3,
        ("alarm", "alarm"): 2,
        ("sleep", "steps"): 1,
        ("sleep", NO_CALL): 1,
        ("sleep", INVENTED): 1,
        ("steps", NO_CALL): 1,
        ("steps", UNPARSABLE): 1,
        (NO_CALL, NO_CALL): 2,
        (NO_CALL, "sleep"): 1,
        (NO_CALL, UNPARSABLE): 1,
    }


def test_time(found) -> None:
    assert found.seconds_p50 == 8
    assert found.seconds_p95 == pytest.approx(14.3)  # 0.95 · 14 = 13.3 steps from the first
    assert found.tokens_per_second == (14 * 10 + 128) / 4


def test_as_json(found) -> None:
    value = found.as_dict()
    assert value["exact"] == Rate(4, 15).as_dict()
    assert {"wanted": "sleep", "called": "steps", "count": 1} in value["confusion"]
    assert value["tools"]["steps"]["f1"] == pytest.approx(2 / 3)
    assert value["latency_seconds"] == {"p50": 8, "p95": pytest.approx(14.3)}


def test_no_rows() -> None:
    none = measure([], 0.0)
    value = none.as_dict()
    assert value["n"] == 0
    assert value["exact"] == {"right": 0, "n": 0, "value": None, "low": 0.0, "high": 1.0}
    assert (none.errors, none.tools, none.confusion) == ({}, {}, {})
    assert value["latency_seconds"] == {"p50": None, "p95": None}
    assert value["tokens_per_second"] is None


def test_a_tool_that_never_occurs() -> None:
    metrics = measure([row([STEPS], STEPS)], 1.0)
    alarm = metrics.as_dict()["tools"]["alarm"]
    assert alarm["precision"]["value"] is alarm["recall"]["value"] is alarm["f1"] is None
    assert alarm["precision"]["n"] == 0


def test_everything_wrong() -> None:
    metrics = measure([row([STEPS], SLEEP) for _ in range(5)], 1.0)
    assert metrics.exact == Rate(0, 5)
    assert metrics.tools["steps"].f1 == metrics.tools["sleep"].f1 == 0
    assert metrics.confusion == {("sleep", "steps"): 5}


def test_a_tool_that_is_wanted_twice_and_called_once() -> None:
    metrics = measure([row([STEPS], STEPS, STEPS)], 1.0)
    assert (metrics.tools["steps"].right, metrics.tools["steps"].wanted) == (1, 2)
    assert metrics.confusion == {("steps", "steps"): 1, ("steps", NO_CALL): 1}


def test_a_very_long_answer() -> None:
    """Ten thousand tokens of calls where one is wanted."""
    metrics = measure([row([STEPS] * 2500, STEPS, tokens=10_000, stopped=False)], 1.0)
    assert metrics.errors == {"wrong_count": 1}
    assert metrics.tools["steps"].precision == Rate(1, 2500)
    assert metrics.confusion == {("steps", "steps"): 1, (NO_CALL, "steps"): 2499}
