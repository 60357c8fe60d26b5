"""Strict JSON reads what JSON can say, and names the place of what it refuses."""

from __future__ import annotations

import json

import pytest
from hypothesis import given

from fitcoach_tune.strict_json import Flaw, find_flaw, parse_json

from .samples import finite_json


@given(finite_json)
def test_parse_json_reads_every_json_value_back(value):
    assert parse_json(json.dumps(value)) == value


@pytest.mark.parametrize(
    ("text", "path", "part"),
    [
        ('{"a": {"b": 1, "b": 2}}', "a", "'b' stands twice"),
        ('{"a": [1, NaN]}', "a[1]", "nan is not a number"),
        ("[-Infinity]", "[0]", "-inf is not a number"),
        ('{"big": 1e999}', "big", "inf is not a number"),
        ('{"a": "x\\ud800y"}', "a", "surrogate"),
        ('{"\\udfff": 1}', "", "in a key: half of a surrogate"),
        ('{"n": ' + "9" * 5000 + "}", "n", "5000 digits"),
        ("[" * 101 + "]" * 101, "[0]" * 100, "nested more than 100"),
        ("[" * 1_000_000, "", "nested more than 100"),
    ],
)
def test_parse_json_names_the_place_of_what_it_refuses(text, path, part):
    with pytest.raises(Flaw) as caught:
        parse_json(text)
    assert caught.value.field == path
    assert part in caught.value.what
    assert caught.value.line is None


def test_parse_json_accepts_pairs_of_surrogates_and_the_deepest_allowed_nesting():
    assert parse_json('"\\ud83d\\ude00"') == "\U0001f600"
    assert find_flaw(parse_json("[" * 100 + "]" * 100)) is None


def test_syntax_errors_give_line_and_column():
    with pytest.raises(Flaw, match="not valid JSON at column 6") as caught:
        parse_json('{\n "a":, 1}')
    assert caught.value.line == 2


def test_values_that_only_columnar_formats_have_are_flaws():
    assert str(find_flaw({"a": [b"bytes"]})) == "a[0]: a bytes is not a JSON value; store it as text"
