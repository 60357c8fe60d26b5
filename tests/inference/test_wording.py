"""Results in words, and whether a model's words are true to them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitcoach_tune.functiongemma import Call
from fitcoach_tune.inference.execute import Result
from fitcoach_tune.inference.wording import describe_call, plain_sentence, undeclared, untrue

STEPS = Call("get_steps", {})
LIGHT = Call("set_light", {"room": "kitchen", "on": True})


def test_a_call_as_people_write_it():
    call = Call("log", {"what": "żółw 🐢", "laps": [1, 2.5], "done": True, "goal": None})
    assert describe_call(call) == 'log(what="żółw 🐢", laps=[1, 2.5], done=true, goal=null)'


@pytest.mark.parametrize(("value", "expected"), [
    (8421, "get_steps: 8,421"), (999, "get_steps: 999"), (-1234.5, "get_steps: -1,234.5"), (0, "get_steps: 0"),
    (True, "get_steps: yes"), (False, "get_steps: no"), (None, "get_steps: done"),
    ("", "get_steps: nothing"), ([], "get_steps: nothing"), ({}, "get_steps: nothing"),
    ("many 🐾", "get_steps: many 🐾"), ([54, 132], "get_steps: 54, 132"),
    ({"year": 2024, "city": "Łódź", "open": False}, "get_steps: year 2024, city Łódź, open no"),
    ({"days": [1, 2]}, 'get_steps: {"days": [1, 2]}'), ([{"a": 1}], 'get_steps: [{"a": 1}]'),
    ("x" * 2001, "get_steps: " + "x" * 2000 + "…"),
])  # fmt: skip
def test_plain_sentences(value, expected):
    assert plain_sentence(Result(STEPS, value), {}) == expected


def test_a_sentence_tells_calls_of_one_function_apart():
    assert plain_sentence(Result(LIGHT), {}) == 'set_light(room="kitchen", on=true): done'
    assert plain_sentence(Result(LIGHT, error="KeyError: x"), {"set_light": str}) == (
        'set_light(room="kitchen", on=true) failed: KeyError: x'
    )


def test_a_function_s_own_sentence():
    assert plain_sentence(Result(STEPS, 8421), {"get_steps": lambda n: f"{n:,} steps so far."}) == "8,421 steps so far."


def test_what_is_not_declared():
    declared = ["get_steps", "get_sleeping_minutes"]
    assert undeclared("get_sleep_minutes", declared) == (
        "there is no function 'get_sleep_minutes'; did you mean get_sleeping_minutes?"
    )
    assert undeclared("fly", declared) == "there is no function 'fly'"


@pytest.mark.parametrize(("text", "value"), [
    ("You walked 8,421 steps.", 8421), ("You walked 8.421 steps.", 8421), ("You walked 8421 steps.", 8421),
    ("8\u202f421!", 8421), ("8’421", 8421), ("It is -3 degrees.", -3), ("It is 21.5 degrees.", 21.4600001),
    ("It is 21 degrees.", 21.46), ("About 0,5 l.", 0.5), ("Sunny, 21 degrees", {"sky": "sunny", "degrees": 21}),
    ("It is sunny.", "sunny with clouds"), ("The light is off.", "off"), ("今日は晴れです", "晴れ"),
    ("Between 54 and 132.", [54, 132]), ("Zero... 0 that is.", 0), ("You slept well: GOOD.", {"verdict": "good"}),
])  # fmt: skip
def test_true_to_the_result(text, value):
    results = [Result(STEPS, value)]
    assert untrue(text, "how many?", results, results) is None


@pytest.mark.parametrize(("text", "value"), [
    ("You walked 8,422 steps.", 8421), ("You walked a lot.", 8421), ("8,421 steps, 84% of your goal.", 8421),
    ("You walked 84210 steps.", 8421), ("You walked 842 steps.", 8421), ("It is 22 degrees.", 21.4),
    ("A coffee?", "off"), ("It was fun.", "sun"), ("Yes.", True), ("It is on.", False), ("Done.", None),
    ("You walked 9000 steps.", "an error"), ("", 3), ("I do not know.", {"a": [1, {"b": 2}]}),
])  # fmt: skip
def test_untrue_to_the_result(text, value):
    results = [Result(STEPS, value)]
    assert untrue(text, "how many?", results, results)


def test_numbers_of_the_question_and_of_arguments_may_be_said():
    results = [Result(Call("get_sleep", {"days": 3}), 412)]
    assert untrue("In 3 days 412 minutes, not 500.", "more than 500 in 3 days?", results, results) is None
    assert "number that no result has" in untrue("In 3 days 412 minutes, not 501.", "more than 500?", results, results)


@pytest.mark.parametrize("value", [None, True, "ok", {"status": "success"}, {}, []])
def test_where_a_function_has_nothing_to_say_the_answer_is_about_what_was_done(value):
    results = [Result(LIGHT, value)]
    assert untrue("The kitchen light is on.", "lights on", results, results) is None
    assert "nothing of what set_light gave" in untrue("As you wish.", "lights on", results, results)


def test_each_of_the_last_results_must_be_told_of():
    heart, user = Result(Call("get_heart_rate", {}), [54, 132]), Result(Call("get_user", {}), 77)
    steps = Result(STEPS, 8421)
    assert untrue("8421 steps; pulse 54.", "", [steps, heart], [steps, heart]) is None
    assert "get_heart_rate" in untrue("8421 steps.", "", [steps, heart], [steps, heart])
    assert untrue("8421 steps.", "", [user, steps], [steps]) is None  # the user's number only led to them


def test_a_failure_must_be_told_as_one():
    results = [Result(STEPS, error="OSError: the band is offline")]
    assert untrue("The band is not there.", "steps?", results, results) is None
    assert untrue("You are doing great.", "steps?", results, results)


@given(
    st.text(),
    st.text(),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=6,
    ),
)
def test_any_words_and_any_result_are_judged(text, query, value):
    result = Result(STEPS, value)
    untrue(text, query, [result], [result])
    assert plain_sentence(result, {}).startswith("get_steps: ")


@given(st.integers(0, 10**12))
def test_a_result_s_own_sentence_is_always_true_to_it(number):
    result = Result(STEPS, number)
    assert untrue(plain_sentence(result, {}), "", [result], [result]) is None
    other = Result(STEPS, number + 1)
    assert untrue(plain_sentence(result, {}), "", [other], [other])
