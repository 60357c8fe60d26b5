"""Regular expressions for numbers, patterns and texts without certain words: the same as Python and jsonschema say."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from fitcoach_tune.evaluate import regexes
from fitcoach_tune.evaluate.schemas import Inexpressible
from fitcoach_tune.functiongemma import CONTROL_TOKENS, find_control_token

thorough = settings(deadline=None, database=None, max_examples=200)


class Bytes:
    """A tokenizer whose tokens are the bytes."""

    eos_token_id, bos_token_id, special_token_ids = 256, None, (256,)
    tokens = (*(bytes([i]) for i in range(256)), b"<eos>")

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


TOKENIZER = LLTokenizer(TokenizerWrapper(Bytes()), slices=[])


def matches(terminal: str):
    start = LLMatcher(TOKENIZER, f"start: T\nT: {terminal}", log_level=0)
    assert not start.is_error(), start.get_error()[:300]

    def match(text: str) -> bool:
        matcher = start.deep_copy()
        tokens = list(text.encode())
        return (
            matcher.validate_tokens(tokens) == len(tokens) and matcher.consume_tokens(tokens) and matcher.is_accepting()
        )

    return match


# ------------------------------------------------------------------------------------------------ numbers

plain = st.one_of(
    st.integers(-30, 30),
    st.integers(-(10**23), 10**23),
    st.floats(-50, 50).map(lambda x: round(x, 2)),
    st.floats(-1e15, 1e15),
    st.sampled_from([0.0, -0.0, 1e-5, 0.1, 1e15, 1e17, 2**53 + 1, 5e-324, 1e300, 10**400, -(10**30)]),
)
keywords = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")


def near(bound: float) -> list[int | float]:
    if abs(bound) > 1e300:
        return [bound]
    value = float(bound)
    return [bound, value, math.nextafter(value, math.inf), math.nextafter(value, -math.inf), math.floor(bound) + 1]


def is_written_out(value: float) -> bool:
    """Not with an exponent, nor too long: what can be said of every range."""
    return "e" not in str(value) and (isinstance(value, float) or len(str(abs(value))) <= regexes.MAX_DIGITS)


@pytest.mark.parametrize("kind", ["integer", "number"])
@thorough
@given(st.dictionaries(st.sampled_from(keywords), plain, max_size=3), st.lists(plain, max_size=20))
def test_numbers_are_those_in_the_range(kind, bounds, values):
    valid = Draft202012Validator({"type": kind, **bounds}).is_valid
    values = values + [value for bound in bounds.values() for value in near(bound)]
    if kind == "integer":
        values = [value for value in values if isinstance(value, int)]
    make = regexes.numbers if kind == "number" else regexes.integers
    try:
        match = matches(make(*map(bounds.get, keywords)))
    except Inexpressible:
        assert not any(valid(value) and is_written_out(value) and abs(value) >= 1e-4 for value in values)
        return
    for value in values:
        if match(str(value)):
            assert valid(value)
        else:
            assert not (valid(value) and is_written_out(value)), value


@thorough
@given(st.floats(-9.9e307, 9.9e307) | st.integers(-(10**24) + 1, 10**24 - 1))
def test_any_number_has_its_spelling(value):
    assert matches(regexes.numbers(None, None, None, None))(str(value))
    assert matches(regexes.numbers(-1e308, 1e308, None, None))(str(value))


@given(st.from_regex(r"-?[0-9]{1,3}(\.[0-9]{1,3})?(e[+-]?[0-9]{1,3})?", fullmatch=True))
def test_only_the_spelling_of_python(text):
    match = matches(regexes.numbers(None, None, None, None))
    if match(text) and "e" not in text:
        assert text == str(float(text) if "." in text else int(text))
    if match(text):
        assert math.isfinite(float(text))


NO_RANGE = [(5, 4, None, None), (None, None, 1, 1)]


@pytest.mark.parametrize("bounds", [*NO_RANGE, (10**30, None, None, None), (0.5, 0.6, None, None)])
def test_no_integer(bounds):
    with pytest.raises(Inexpressible, match="no integer fits"):
        regexes.integers(*bounds)


@pytest.mark.parametrize("bounds", [*NO_RANGE, (1e-30, 1e-29, None, None), (1e40, 1e41, None, None)])
def test_no_number(bounds):
    with pytest.raises(Inexpressible, match="no number fits"):
        regexes.numbers(*bounds)


# ------------------------------------------------------------------------------------------------ patterns

CHARACTERS = "abAZ019 -_./@#\n\t\r\x1c\xa0éⅷ中[]{}+*^$|\\'\""
pieces = st.sampled_from([
    "a", "b", "Z", "é", r"\d", r"\w", r"\s", r"\D", r"\W", r"\S", ".", "[ab]", r"[^a\d]", "[a-c_]", "(a|b)",
    r"(?:\d|-)", r"\.", r"[\w.-]", "[]a]", "[^]a]", r"[\-z]", r"\x41", r"\u00e9", r"\/", r"[\S\s]", "}", "]",
])  # fmt: skip
repeats = st.sampled_from(["", "", "", "*", "+", "?", "{2}", "{1,2}", "{,2}", "{1,}", "+?"])
patterns = st.builds(
    lambda start, body, end, rest: start + "".join(p + r for p, r in body) + end + rest,
    st.sampled_from(["", "^"]),
    st.lists(st.tuples(pieces, repeats), min_size=1, max_size=3),
    st.sampled_from(["", "$"]),
    st.sampled_from(["", "", "|^x$", "|b"]),
)


@thorough
@given(patterns, st.lists(st.text(CHARACTERS, max_size=5), max_size=15))
def test_patterns_find_what_python_finds(pattern, texts):
    match = matches(f"/{regexes.matching(pattern)}/")
    for text in texts:
        # Python's $ also matches before a line break at the end; what we match ends there.
        assert match(text) == bool(re.search(pattern.replace("$", r"\Z"), text)), text


@pytest.mark.parametrize("pattern", [
    "(?i)a", "(?=a)b", r"\bword", r"(a)\1", "a*+", "a++", "^(^a)", "a$b", "(a$)", r"\Aab\Z", "a{b}", r"[a-\d]",
    "a{1,2}{3}", "(?P<x>a)", "a^",
])  # fmt: skip
def test_other_patterns_are_refused(pattern):
    with pytest.raises(Inexpressible, match="the pattern"):
        regexes.matching(pattern)


# ------------------------------------------------------------------------------------------------ words

WITHOUT = matches(f"/{regexes.without(CONTROL_TOKENS)}/")
parts = st.sampled_from(
    [*CONTROL_TOKENS, "<", ">", "<b>", "end", "_of_turn", "<start_of", "<end_", "function", " ", "é", "\n"]
)
cuts = st.builds(lambda token, n: token[:n], st.sampled_from(sorted(CONTROL_TOKENS)), st.integers(1, 30))


@thorough
@given(st.lists(parts | cuts | st.text(max_size=3), max_size=6).map("".join))
def test_texts_without_control_tokens(text):
    assert WITHOUT(text) == (find_control_token(text) is None)


@pytest.mark.parametrize("token", CONTROL_TOKENS)
def test_each_control_token(token):
    assert not WITHOUT(token)
    assert not WITHOUT(f"a {token} b")
    assert not WITHOUT(f"<{token}>")
    assert WITHOUT(token[:-1])
    assert WITHOUT(token[1:])
    assert WITHOUT(token[:-1] + "<")
