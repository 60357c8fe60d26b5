"""What counts as right, what kind of mistake the rest is, and which call is held against which."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitcoach_tune.evaluate.score import ERRORS, Pair, compare, judge
from fitcoach_tune.functiongemma import CONTROL_TOKENS, Call, render_call
from fitcoach_tune.gold import Gold, GoldCall, gold_of
from tests.conftest import tool


def schema(name: str, required: tuple[str, ...] = (), **properties: dict) -> dict:
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    return {"type": "function", "function": {"name": name, "description": "", "parameters": parameters}}


TOOLS = [
    schema("steps"),
    schema("sleep", days={"type": "integer"}),
    schema("goal", ("of", "value"), of={"type": "string"}, value={"type": "integer"}, note={"type": "string"}),
    schema("alarm", ("at",), at={"type": "string"}, loud={"type": "boolean", "default": True}),
]


def call(name: str, **arguments) -> Call:
    return Call(name, arguments)


def said(*calls: Call) -> str:
    return "".join(render_call(c) for c in calls) + "<start_function_response>"


def wanted(*calls: Call, others: tuple[list[Call], ...] = ()) -> Gold:
    return gold_of(calls, TOOLS, others)


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
        (said(call("sleep")), [SLEEP], "missing_optional"),
        (said(call("sleep", days=7, more=1)), [SLEEP], "unexpected_param"),
        (said(call("sleep", days="7")), [SLEEP], "type_error"),
        (said(call("sleep", days=True)), [call("sleep", days=1)], "type_error"),
        (said(call("sleep", days=7.5)), [SLEEP], "value_error"),
        (said(call("sleep", days=7.0)), [SLEEP], None),
        (said(call("sleep", nights=7)), [SLEEP], "unexpected_param"),
        (said(call("goal", of="steps")), [GOAL], "missing_required"),
        (said(call("goal", value=1, note="x")), [GOAL], "missing_required"),
        (said(call("goal", of="steps", value="9000", note="x")), [GOAL], "unexpected_param"),
        (said(call("goal", of="sleep", value="9000")), [GOAL], "type_error"),
        (said(call("goal", of="Steps", value=9000)), [GOAL], "value_error"),
    ],
)
def test_kinds_of_mistake(raw, gold, error) -> None:
    verdict = judge(raw, wanted(*gold), TOOLS)
    assert verdict.error == error
    assert verdict.right is (error is None)
    assert error is None or error in ERRORS


@pytest.mark.parametrize(
    ("raw", "gold", "detail"),
    [
        (said(STEPS), [STEPS], ""),
        ("", [STEPS], ""),
        (said(STEPS, call("invented")), [STEPS], "invented"),
        (said(SLEEP), [STEPS], "sleep, steps wanted"),
        (said(STEPS), [], "steps"),
        (said(STEPS, SLEEP), [STEPS], "2 calls, 1 wanted"),
        (said(call("goal", of="steps")), [GOAL], "value"),
        (said(call("sleep")), [SLEEP], "days"),
        (said(call("sleep", days=7, more=1)), [SLEEP], "more"),
        (said(call("sleep", days="7")), [SLEEP], "days: '7', 7 wanted"),
        (said(call("sleep", days=8)), [SLEEP], "days: 8, 7 wanted"),
        (said(STEPS, call("sleep", days=8)), [SLEEP, STEPS], "days: 8, 7 wanted"),
    ],
)
def test_the_detail_says_what_is_wrong(raw, gold, detail) -> None:
    assert judge(raw, wanted(*gold), TOOLS).detail == detail


def test_the_kind_of_a_mistake_does_not_depend_on_the_order_of_calls() -> None:
    """A required argument of one call is missing, an optional one of the other."""
    wrong = [call("sleep"), call("alarm", time="7:00")]
    gold = [call("sleep", days=7), call("alarm", time="7:00", label="up")]
    tools = [
        tool("sleep", days={"type": "integer", "description": "d"}),
        tool("alarm", time={"type": "string", "description": "d"}, label={"type": "string", "description": "d"}),
    ]
    tools[1]["function"]["parameters"]["required"] = ["time"]
    kinds = {judge(said(*calls), wanted(*gold), tools).error for calls in (wrong, wrong[::-1])}
    assert kinds == {"missing_required"}


def test_the_detail_lists_what_is_accepted_and_where_parsing_stopped() -> None:
    gold = Gold(((GoldCall("sleep", {"days": (7, "a week")}),),))
    assert judge(said(call("sleep", days=8)), gold, TOOLS).detail == "days: 8, 7 or 'a week' wanted"
    failed = judge("<start_function_call>call:steps{", wanted(STEPS), TOOLS)
    assert failed.detail.startswith("a key was expected at character 32, near ")


def test_a_verdict_keeps_what_was_said() -> None:
    verdict = judge("Let me see. " + said(STEPS, SLEEP), wanted(STEPS), TOOLS)
    assert verdict.calls == (STEPS, SLEEP)
    assert verdict.text == "Let me see."
    failed = judge("<start_function_call>oops", wanted(STEPS), TOOLS)
    assert (failed.calls, failed.text) == ((), "<start_function_call>oops")


# ------------------------------------------------------------------------------------------------ what is accepted


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (said(STEPS), None),
        (said(SLEEP), None),
        (said(SLEEP, STEPS), None),
        ("Which day?", None),
        ("", "no_call"),  # words would do as well, but there are none
        (said(GOAL), "wrong_func_name"),
        (said(STEPS, STEPS), "wrong_func_name"),  # nearest to the answer with two calls
        (said(STEPS, call("sleep", days=8)), "value_error"),
        (said(STEPS, SLEEP, GOAL), "wrong_count"),
        (said(call("invented")), "invented_func_name"),
    ],
)
def test_the_nearest_of_several_answers_counts(raw, error) -> None:
    gold = wanted(STEPS, others=([SLEEP], [STEPS, SLEEP], []))
    assert judge(raw, gold, TOOLS).error == error


def test_the_pairs_are_those_of_the_nearest_answer() -> None:
    gold = wanted(STEPS, others=([GOAL],))
    verdict = judge(said(call("goal", of="steps", value=1)), gold, TOOLS)
    told = "value: 1, 9000 wanted"
    assert (verdict.error, verdict.detail) == ("value_error", told)
    assert verdict.pairs == (Pair("goal", "goal", "value_error", told, right=1, given=2, due=2),)


@pytest.mark.parametrize(
    ("row", "said_instead", "error"),
    [
        (call("alarm", at="7:00"), call("alarm", at="7:00", loud=True), None),
        (call("alarm", at="7:00", loud=True), call("alarm", at="7:00"), None),
        (call("alarm", at="7:00"), call("alarm", at="7:00", loud=False), "value_error"),
        (call("alarm", at="7:00"), call("alarm", at="7:00", loud=1), "type_error"),
        (call("alarm", at="7:00", loud=False), call("alarm", at="7:00"), "missing_optional"),
        (call("alarm", at="7:00", loud=False), call("alarm", at="7:00", loud=True), "value_error"),
        (call("alarm", at="7:00"), call("alarm", loud=True), "missing_required"),
    ],
)
def test_a_default_may_be_given_or_left_out(row, said_instead, error) -> None:
    assert judge(said(row), wanted(row), TOOLS).right
    assert judge(said(said_instead), wanted(row), TOOLS).error == error


def test_optional_arguments_and_several_values() -> None:
    gold = Gold(((GoldCall("goal", {"of": ("steps", "walk"), "value": (9,), "note": ("x",)}, frozenset({"note"})),),))
    assert judge(said(call("goal", of="walk", value=9)), gold, TOOLS).pairs == (
        Pair("goal", "goal", right=2, given=2, due=2),
    )
    assert judge(said(call("goal", of="walk", value=9, note="x")), gold, TOOLS).pairs == (
        Pair("goal", "goal", right=3, given=3, due=3),
    )
    told = "note: 'y', 'x' wanted"
    assert judge(said(call("goal", of="walk", value=9, note="y")), gold, TOOLS).pairs == (
        Pair("goal", "goal", "value_error", told, right=2, given=3, due=2),
    )


@pytest.mark.parametrize(
    ("text", "exact", "normalised", "bfcl"),
    [
        ("7:00 AM", True, True, True),
        ("7:00 am", False, True, True),
        (" 7:00\n AM ", False, True, False),  # the checker disregards spaces, not other white space
        ("7:00AM", False, False, True),
        ("7:00-A.M.", False, False, True),
        ("7.00 AM", False, False, False),
    ],
)
def test_strings_are_compared_as_asked_unless_the_data_says_otherwise(text, exact, normalised, bfcl) -> None:
    row, raw = call("alarm", at="7:00 AM"), said(call("alarm", at=text))
    assert judge(raw, wanted(row), TOOLS).right is exact
    assert judge(raw, wanted(row), TOOLS, "normalised").right is normalised
    assert judge(raw, wanted(row), TOOLS, "bfcl").right is bfcl
    of_the_data = gold_of([row], TOOLS, strings="bfcl")
    assert [judge(raw, of_the_data, TOOLS, rule).right for rule in ("exact", "normalised")] == [bfcl, bfcl]


# ------------------------------------------------------------------------------------------------ parallel calls


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
        assert judge(said(*order), wanted(*gold), TOOLS).right


@pytest.mark.parametrize(
    ("calls", "gold", "error"),
    [
        ([SLEEP, SLEEP, call("sleep")], [SLEEP, call("sleep"), call("sleep")], "unexpected_param"),
        ([SLEEP, SLEEP], [SLEEP, call("sleep", days=8)], "value_error"),
        ([SLEEP, call("sleep", days=8)], [SLEEP, SLEEP], "value_error"),
    ],
)
def test_duplicates_are_counted(calls, gold, error) -> None:
    assert judge(said(*calls), wanted(*gold), TOOLS).error == error


def test_a_call_is_left_to_the_gold_call_that_nothing_else_answers() -> None:
    """The first gold call takes either output, the second only one: first come, first served would fail."""
    either, one = GoldCall("sleep", {"days": (7, 8)}), GoldCall("sleep", {"days": (7,)})
    for order in permutations([SLEEP, call("sleep", days=8)]):
        for answer in permutations([either, one]):
            assert judge(said(*order), Gold((answer,)), TOOLS).right


def test_pairs_are_as_many_right_ones_then_names_then_arguments_as_can_be() -> None:
    near, far = call("goal", of="sleep", value=8), call("goal", of="steps", value=9000, note="x")
    gold = wanted(call("goal", of="sleep", value=9), GOAL, STEPS)
    verdict = judge(said(far, STEPS, near), gold, TOOLS)
    told = "value: 8, 9 wanted"
    assert sorted(verdict.pairs, key=lambda pair: (pair.wanted, pair.detail)) == [
        Pair("goal", "goal", "unexpected_param", "note", right=2, given=3, due=2),
        Pair("goal", "goal", "value_error", told, right=1, given=2, due=2),
        Pair("steps", "steps"),
    ]
    assert verdict.error == "unexpected_param"


def test_a_right_pair_is_worth_more_than_two_that_are_nearly_right() -> None:
    first = GoldCall("f", {"p": (1,), "q": (1, 2), "r": (1, 2)})
    second = GoldCall("f", {"p": (2,), "q": (1,), "r": (1,)})
    calls = call("f", p=1, q=1, r=1), call("f", p=3, q=2, r=2)  # crosswise, two of three arguments are right in both
    verdict = judge(said(*calls), Gold(((first, second),)), [schema("f")])
    assert [(pair.error, pair.right) for pair in verdict.pairs] == [(None, 3), ("value_error", 0)]


def test_calls_that_are_left_over_on_either_side() -> None:
    verdict = judge(said(SLEEP), wanted(GOAL, SLEEP), TOOLS)
    assert verdict.pairs == (Pair("sleep", "sleep", right=1, given=1, due=1), Pair("goal", None, due=2))
    verdict = judge(said(GOAL, SLEEP), wanted(SLEEP), TOOLS)
    assert verdict.pairs == (Pair("sleep", "sleep", right=1, given=1, due=1), Pair(None, "goal", given=2))
    assert judge("I cannot.", wanted(GOAL), TOOLS).pairs == (Pair("goal", None, due=2),)
    assert judge("<start_function_call>", wanted(GOAL, STEPS), TOOLS).pairs == (
        Pair("goal", None, due=2),
        Pair("steps", None),
    )
    assert judge(said(GOAL), wanted(), TOOLS).pairs == (Pair(None, "goal", given=2),)
    assert judge("No.", wanted(), TOOLS).pairs == ()


def test_another_function_has_no_argument_right() -> None:
    gold = GoldCall("goal", {"of": ("steps",), "value": (9,)})
    assert compare(call("sleep", of="steps"), gold) == Pair("goal", "sleep", "wrong_func_name", "", 0, 1, 2)


def test_required_arguments_are_the_schema_s() -> None:
    gold = GoldCall("goal", {"of": ("steps",)})
    assert compare(call("goal"), gold, ["of"]).error == "missing_required"
    assert compare(call("goal"), gold).error == "missing_optional"


def test_an_answer_of_ten_thousand_calls() -> None:
    """Far more than the token limit allows; pairing looks at each call beside each gold call, and no more."""
    raw = said(*[call("sleep", days=n) for n in range(9998)], GOAL, STEPS)
    verdict = judge(raw, wanted(GOAL, STEPS, SLEEP), TOOLS)
    assert (verdict.error, verdict.detail) == ("wrong_count", "10000 calls, 3 wanted")
    assert len(verdict.pairs) == 10_000
    assert [pair for pair in verdict.pairs if pair.wanted and pair.error] == []


# ------------------------------------------------------------------------------------------------ any answer at all

scalars = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "a", "True", "1"])
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=2) | st.dictionaries(st.sampled_from("ab"), v, max_size=2), max_leaves=4
)
calls = st.builds(
    Call, st.sampled_from(["steps", "sleep", "goal"]), st.dictionaries(st.sampled_from("xy"), values, max_size=2)
)


@settings(max_examples=80, deadline=None)
@given(
    gold=st.lists(calls, min_size=1, max_size=4), data=st.data(), rule=st.sampled_from(["exact", "normalised", "bfcl"])
)
def test_the_gold_itself_is_right_in_every_order(gold, data, rule) -> None:
    raw = said(*data.draw(st.permutations(gold)))
    verdict = judge(raw, wanted(*gold), TOOLS, rule)
    assert verdict.right
    assert all(pair.right == pair.given == pair.due for pair in verdict.pairs)
    assert judge(raw, wanted(STEPS, STEPS, STEPS, STEPS, STEPS, others=(gold,)), TOOLS, rule).right


pieces = st.sampled_from(
    [*CONTROL_TOKENS, "call:", "steps", "{", "}", "[", ",", ":", "days", "7", "-", "1e999", "None"]
)


@settings(max_examples=200, deadline=None)
@given(
    raw=st.text(max_size=30) | st.lists(pieces | st.text(max_size=3), max_size=15).map("".join),
    gold=st.lists(st.lists(calls, max_size=3), min_size=1, max_size=3),
)
def test_any_text_gets_a_verdict(raw, gold) -> None:
    verdict = judge(raw, wanted(*gold[0], others=tuple(gold[1:])), TOOLS)
    assert verdict.error is None or verdict.error in ERRORS
    assert sum(pair.got is not None for pair in verdict.pairs) == len(verdict.calls)
    assert sum(pair.wanted is not None for pair in verdict.pairs) in map(len, gold)
