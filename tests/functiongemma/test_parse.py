"""Model output as calls: what parses, what does not and where, in linear time, and round trips."""

from __future__ import annotations

import json
import pickle
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitcoach_tune.errors import DataError
from fitcoach_tune.functiongemma import (
    CONTROL_TOKENS,
    MAX_DEPTH,
    STOP_TOKENS,
    Call,
    ModelOutput,
    ParseError,
    call_problems,
    parse,
    render_call,
)

from .strategies import carried_calls, carried_texts, json_values, names, texts, thorough

END = "<end_function_call>"


def wrapped(arguments):
    return f"<start_function_call>call:f{arguments}{END}"


@pytest.mark.parametrize(
    ("text", "calls", "rest"),
    [
        ("", [], ""),
        ("Hello.<end_of_turn>\n", [], "Hello."),
        ("Hello.<eos><start_function_call>call:f{}", [], "Hello."),
        (wrapped("{}") + "<start_function_response>response:f{", [{}], ""),
        (" Sure. " + wrapped("{}") + "and" + wrapped("{a:1}") + " done. ", [{}, {"a": 1}], "Sure. and done."),
        ("<bos>Hi<pad><pad>", [], "Hi"),
        (wrapped("{a:<escape>}{,:[\n<escape>}"), [{"a": "}{,:[\n"}], ""),
        (wrapped("{a:<escape><escape>,b:[],c:{},d:[[{}]]}"), [{"a": "", "b": [], "c": {}, "d": [[{}]]}], ""),
        (wrapped("{a b:None,C:true,c:false}"), [{"a b": None, "C": True, "c": False}], ""),
        (wrapped("{a:-1,b:1e-07,c:-0.5E+2}"), [{"a": -1, "b": 1e-07, "c": -50.0}], ""),
    ],
)
def test_parse(text, calls, rest):
    assert parse(text) == ModelOutput(tuple(Call("f", arguments) for arguments in calls), rest)


MALFORMED = {
    "unterminated call": ("<start_function_call>call:f{}", 29, "<end_function_call> was expected"),
    "stopped inside": ("<start_function_call>call:f{a:<end_of_turn>", 30, "value was expected"),
    "no call word": ("<start_function_call>f{}" + END, 21, "'call:'"),
    "no name": ("<start_function_call>call:{}" + END, 26, "function name"),
    "bad name": ("<start_function_call>call:f g{}" + END, 27, "'{'"),
    "no arguments": ("<start_function_call>call:f" + END, 27, "'{'"),
    "stray end": ("hi " + END, 3, "ends no call"),
    "junk after arguments": (wrapped("{} "), 29, "<end_function_call> was expected"),
    "bare word": (wrapped("{a:tea}"), 30, "value was expected"),
    "json null": (wrapped("{a:null}"), 30, "value was expected"),
    "python bool": (wrapped("{a:True}"), 30, "value was expected"),
    "word with a tail": (wrapped("{a:trueish}"), 34, "',' or '}'"),
    "json string": (wrapped('{a:"x"}'), 30, "value was expected"),
    "leading zero": (wrapped("{a:01}"), 31, "',' or '}'"),
    "infinity": (wrapped("{a:inf}"), 30, "value was expected"),
    "float overflow": (wrapped("{a:1e999}"), 30, "too large"),
    "half a number": (wrapped("{a:5.}"), 31, "',' or '}'"),
    "minus alone": (wrapped("{a:-}"), 30, "value was expected"),
    "no value": (wrapped("{a:}"), 30, "value was expected"),
    "no colon": (wrapped("{a}"), 29, "':' was expected"),
    "no key": (wrapped("{:1}"), 28, "key was expected"),
    "trailing comma": (wrapped("{a:1,}"), 32, "key was expected"),
    "trailing comma in list": (wrapped("{a:[1,]}"), 33, "value was expected"),
    "space before a key": (wrapped("{a:1, b:2}"), 32, "white space"),
    "quoted key": (wrapped("{<escape>a<escape>:1}"), 28, "control token"),
    "duplicate key": (wrapped("{a:1,a:2}"), 32, "twice"),
    "duplicate nested key": (wrapped("{b:{a:1,a:2}}"), 35, "twice"),
    "wrong bracket": (wrapped("{a:[1}}"), 32, "',' or ']'"),
    "open string": (wrapped("{a:<escape>x}"), 30, "not closed"),
    "string over two calls": (wrapped("{a:<escape>x}") + wrapped("{a:<escape>y<escape>}"), 30, "not closed"),
    "second call broken": (wrapped("{}") + wrapped("{a:tea}"), 78, "value was expected"),
}


@pytest.mark.parametrize(("text", "position", "reason"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_output_is_one_error_that_says_where(text, position, reason):
    with pytest.raises(ParseError) as caught:
        parse(text)
    error = caught.value
    assert reason in error.reason
    assert error.position == position
    assert f"character {position}" in str(error)
    assert len(str(error)) < 200
    assert isinstance(error, ValueError)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


START = "<start_function_call>call:f{"
HOSTILE = {
    "braces": lambda n: START + "a:{" * n,
    "brackets": lambda n: START + "a:" + "[" * n,
    "unterminated string": lambda n: START + "a:<escape>" + "x" * (10 * n),  # 1 MB
    "escapes": lambda n: START + "<escape>" * n,
    "call starts": lambda n: "<start_function_call>" * n,
    "half tokens in a string": lambda n: START + "a:<escape>" + "<escape" * n,
    "long key": lambda n: START + "k" * n,
    "key with half tokens": lambda n: START + "<start_function_" * n + ":",
    "digits": lambda n: START + "a:" + "9" * n + "}" + END,
    "fraction digits": lambda n: START + "a:0." + "9" * n + "}" + END,
    "many keys": lambda n: START + ",".join(f"k{i}:1" for i in range(n)),
    "calls, the last one open": lambda n: (START + "}" + END) * n + START,
}


@pytest.mark.parametrize("build", HOSTILE.values(), ids=HOSTILE)
def test_hostile_output_is_a_parse_error_in_linear_time(build):
    def seconds(text):
        best = float("inf")
        for _ in range(3):
            start = time.process_time()
            with pytest.raises(ParseError) as caught:
                parse(text)
            best = min(best, time.process_time() - start)
        assert len(str(caught.value)) < 200
        return best

    small, large = seconds(build(6_250)), seconds(build(100_000))
    # 16 times the text: a quadratic parser would need 256 times as long. The millisecond absorbs the clock's grain.
    assert large < 64 * max(small, 1e-3)


def carried(value):
    """A form in which two JSON values are equal only with the same types and the same sign of zero."""
    return json.dumps(value, sort_keys=True)


@thorough
@given(st.lists(carried_calls, max_size=3), st.sampled_from(["", *STOP_TOKENS]), carried_texts)
def test_calls_round_trip(calls, stop, after):
    for call in calls:
        assert call_problems(call) == []
    text = "".join(map(render_call, calls)) + (stop + after if stop else "")
    output = parse(text)
    assert output == ModelOutput(tuple(calls), "")
    assert [carried(call.arguments) for call in output.calls] == [carried(call.arguments) for call in calls]


@thorough
@given(names | texts, st.dictionaries(st.text(max_size=4), json_values | st.text(alphabet="<escap>", max_size=9)))
def test_no_problems_means_a_round_trip(name, arguments):
    call = Call(name, arguments)
    if not call_problems(call):
        assert carried(parse(render_call(call)).calls[0].arguments) == carried(arguments)


@thorough
@given(st.lists(st.sampled_from([*CONTROL_TOKENS, "call:", "f", "{", "}", "a", ":", ",", "[", "]", "1", "-", "None"])))
def test_any_output_parses_or_says_where(parts):
    text = "".join(parts)
    try:
        output, error = parse(text), None
    except ParseError as caught:
        output, error = ModelOutput((), ""), caught
    assert error is None or 0 <= error.position <= len(text)
    for call in output.calls:
        assert call_problems(call) == []
        assert parse(render_call(call)) == ModelOutput((call,), "")


@pytest.mark.parametrize("levels", [0, MAX_DEPTH - 1, MAX_DEPTH])
def test_the_depth_limit_is_the_same_everywhere(levels):
    value: object = 1
    for _ in range(levels):
        value = [value]
    call = Call("f", {"a": value})
    assert bool(call_problems(call)) == (levels == MAX_DEPTH)
    text = wrapped("{a:" + "[" * levels + "1" + "]" * levels + "}")
    if levels < MAX_DEPTH:
        assert render_call(call) == text
        assert parse(text).calls == (call,)
        return
    with pytest.raises(DataError, match="nested deeper"):
        render_call(call)
    with pytest.raises(ParseError, match="nested deeper"):
        parse(text)


def test_the_longest_ints_that_are_carried():
    for sign in (1, -1):
        call = Call("f", {"a": sign * (10**4299 - 1)})
        assert call_problems(call) == []
        assert parse(render_call(call)).calls == (call,)
        assert "digits" in call_problems(Call("f", {"a": sign * 10**4299}))[0]
