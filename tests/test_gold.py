"""What a row accepts, when two values are the same, and that both survive being written down."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitcoach_tune.functiongemma import Call
from fitcoach_tune.gold import Gold, GoldCall, declared, gold_of, same_value


def alarm_tools(**loud) -> list[dict]:
    """One tool, `alarm(at, loud)`, of which `at` is required."""
    properties = {"at": {"type": "string"}, "loud": {"type": "boolean", **loud}}
    parameters = {"type": "object", "properties": properties, "required": ["at"]}
    return [{"type": "function", "function": {"name": "alarm", "parameters": parameters}}]


# ------------------------------------------------------------------------------------------------ what a row accepts


def test_without_defaults_a_row_accepts_itself() -> None:
    call = Call("alarm", {"at": "7:00", "loud": True})
    gold = gold_of([call], alarm_tools())
    assert gold == Gold(((GoldCall("alarm", {"at": ("7:00",), "loud": (True,)}),),))
    assert gold.calls == (call,)
    assert gold.wants_call


@pytest.mark.parametrize(
    ("arguments", "accepted", "optional", "unsaid"),
    [
        ({"at": "7:00"}, {"at": ("7:00",), "loud": (True,)}, {"loud"}, {"loud"}),
        ({"at": "7:00", "loud": True}, {"at": ("7:00",), "loud": (True,)}, {"loud"}, set()),
        ({"at": "7:00", "loud": False}, {"at": ("7:00",), "loud": (False,)}, set(), set()),
        ({"at": "7:00", "loud": 1}, {"at": ("7:00",), "loud": (1,)}, set(), set()),  # 1 is not true
    ],
)
def test_a_default_may_be_left_out_where_it_is_wanted(arguments, accepted, optional, unsaid) -> None:
    gold = gold_of([Call("alarm", arguments)], alarm_tools(default=True))
    assert gold.answers == ((GoldCall("alarm", accepted, frozenset(optional), frozenset(unsaid)),),)
    assert gold.calls == (Call("alarm", arguments),)


def test_a_default_of_a_required_argument_does_not_count() -> None:
    tools = alarm_tools(default=True)
    tools[0]["function"]["parameters"]["required"].append("loud")
    call = Call("alarm", {"at": "7:00", "loud": True})
    assert gold_of([call], tools).answers[0][0].optional == frozenset()


def test_a_default_of_null_and_a_whole_number() -> None:
    tools = alarm_tools(default=None)
    assert gold_of([Call("alarm", {"at": "7:00"})], tools).answers[0][0].arguments["loud"] == (None,)
    tools = alarm_tools(default=5)
    assert gold_of([Call("alarm", {"at": "7:00", "loud": 5.0})], tools).answers[0][0].optional == {"loud"}


def test_further_answers_and_words() -> None:
    gold = gold_of([], alarm_tools(default=True), [[Call("alarm", {"at": "7:00"})], [Call("other", {})]], "bfcl")
    assert not gold.wants_call
    assert gold.calls == ()
    assert [[call.call for call in answer] for answer in gold.answers] == [
        [],
        [Call("alarm", {"at": "7:00"})],
        [Call("other", {})],
    ]
    assert gold.answers[1][0].optional == {"loud"}
    assert gold.strings == "bfcl"


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"properties": {"a": {"type": "string"}}, "required": ["a"]}, ({"a": {"type": "string"}}, ["a"])),
        ({}, ({}, ())),
        ({"properties": ["a"], "required": "a"}, ({}, ())),
        ({"properties": None, "required": None}, ({}, ())),
    ],
)
def test_tools_that_were_not_checked(parameters, expected) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    assert declared(tools) == {"f": expected}
    assert gold_of([Call("f", {"a": 1})], tools).calls == (Call("f", {"a": 1}),)


def test_the_first_of_two_tools_of_one_name_counts() -> None:
    tools = [*alarm_tools(default=True), {"type": "function", "function": {"name": "alarm"}}]
    assert gold_of([Call("alarm", {})], tools).answers[0][0].optional == {"loud"}


# ------------------------------------------------------------------------------------------------ values


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


@pytest.mark.parametrize(
    ("one", "other", "rules"),
    [
        ("Berlin", "Berlin", {"exact", "normalised", "bfcl"}),
        ("Berlin", "BERLIN", {"normalised", "bfcl"}),
        ("Straße", "STRASSE", {"normalised"}),
        ("New  York", " new york\n", {"normalised"}),
        ("New York", "newyork", {"bfcl"}),
        ("April 1, 2024", "april 1 2024", {"bfcl"}),
        ("a.b/c-d_e*f^g", "abcdefg", {"bfcl"}),
        ("it's", 'it"s', {"bfcl"}),
        ("it's", "its", set()),
        ("a!", "a", set()),
        ("a;b", "ab", set()),
        ("", " ", {"normalised", "bfcl"}),
        ("", "-", {"bfcl"}),
        ("5", 5, set()),
        ([{"at": "Berlin"}], [{"at": "berlin"}], {"normalised", "bfcl"}),
        ({"At": 1}, {"at": 1}, set()),  # keys are names, not text
    ],
)
def test_how_strings_may_differ(one, other, rules) -> None:
    for rule in ("exact", "normalised", "bfcl"):
        assert same_value(one, other, rule) is (rule in rules)
        assert same_value(other, one, rule) is (rule in rules)


# ------------------------------------------------------------------------------------------------ written down

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(), v, max_size=3), max_leaves=6
)


@st.composite
def gold_calls(draw) -> GoldCall:
    arguments = draw(st.dictionaries(st.text(max_size=4), st.lists(values, min_size=1, max_size=3).map(tuple)))
    optional = draw(st.sets(st.sampled_from(sorted(arguments)))) if arguments else set()
    unsaid = draw(st.sets(st.sampled_from(sorted(optional)))) if optional else set()
    return GoldCall(draw(st.text(min_size=1)), arguments, frozenset(optional), frozenset(unsaid))


golds = st.builds(
    Gold,
    st.lists(st.lists(gold_calls(), max_size=3).map(tuple), min_size=1, max_size=3).map(tuple),
    st.sampled_from(["exact", "normalised", "bfcl"]),
)


@settings(max_examples=100, deadline=None)
@given(gold=golds)
def test_written_and_read_back(gold) -> None:
    again = Gold.from_json(json.loads(json.dumps(gold.as_json())))
    assert again == gold
    assert again.calls == gold.calls
    assert repr(again.calls) == repr(gold.calls)  # types included, which equality lets pass: 1 and true


@settings(max_examples=100, deadline=None)
@given(value=values, rule=st.sampled_from(["exact", "normalised", "bfcl"]))
def test_a_value_is_the_same_as_itself(value, rule) -> None:
    assert same_value(value, json.loads(json.dumps(value)), rule)
