"""Typing errors, case and punctuation: what they change, and what they must not."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitcoach_tune.evaluate.hard_text import NEIGHBOURS, mistyped, still_says, without_marks


def typed(text: str, *values: str, seed: int = 0) -> str | None:
    return mistyped(text, values, np.random.default_rng(seed))


def many(text: str, *values: str) -> set[str | None]:
    return {typed(text, *values, seed=seed) for seed in range(400)}


def test_every_error_of_one_word() -> None:
    doubled = {"waalk", "wallk", "walkk"}
    neighbours = {"wqlk", "wwlk", "wslk", "wzlk", "waok", "wapk", "wakk", "wali", "walo", "walj", "wall", "walm"}
    dropped = {"wlk", "wak", "wal"}
    swapped = {"wlak", "wakl"}
    assert many("walk") == doubled | neighbours | dropped | swapped


def test_short_words_lose_no_letter() -> None:
    assert many("GO") == {"GOO", "GI", "GP", "GK", "GL"}
    assert many("see") == {"seee", "swe", "sre", "sse", "sde", "sew", "ser", "ses", "sed"}


@pytest.mark.parametrize(("text", "wrong"), [("abcd", 1), ("word " * 6, 2), ("word " * 30, 10), ("word " * 300, 100)])
def test_one_error_in_twelve_letters_each_in_a_word_of_its_own(text, wrong) -> None:
    for seed in range(20):
        changed = typed(text.strip(), seed=seed)
        assert sum(a != b for a, b in zip(text.split(), changed.split(), strict=True)) == wrong


def test_long_words_come_first() -> None:
    for text in many("do I walk on it"):
        assert re.fullmatch(r"do I \w+ on it", text), text


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("7:30", ()),
        ("10km 5k 2nd", ()),
        ("a b c", ()),
        ("天気を教えて", ()),
        ("भारत", ()),
        ("", ()),
        ('"keep this"', ()),
        ("“keep this” «and this» „und das“ 「wait」", ()),
        ("me@example.org /etc/hosts some_name #tag <b>", ()),
        ("Rome", ("Rome",)),
        ("rome ROME", ("Rome",)),
        ("romes", ("Rome",)),  # the value is a part of the word
        ("San Francisco", ("San Francisco, CA",)),
        ("Francisco", ("San Francisco",)),
        ("McDonald's s", ("McDonald's",)),
    ],
)
def test_nothing_that_may_be_mistyped(text, values) -> None:
    assert many(text, *values) == {None}


def test_values_stay_and_the_rest_does_not() -> None:
    for text in many("Text Priya the words good luck tomorrow", "Priya", "good luck"):
        assert "Priya" in text
        assert "good luck" in text
        assert text != "Text Priya the words good luck tomorrow"


def test_other_scripts_with_case_are_mistyped_without_neighbours() -> None:
    assert many("хлеб") == {"хллеб", "хлееб", "хлебб", "хеб", "хлб", "хле", "хелб", "хлбе"}


def test_a_neighbour_keeps_the_case() -> None:
    swapped = {"WLAK", "WAKL"}
    neighbours = {"WQLK", "WWLK", "WSLK", "WZLK", "WAOK", "WAPK", "WAKK", "WALI", "WALO", "WALJ", "WALL", "WALM"}
    assert {text for text in many("WALK") if len(text) == 4} == neighbours | swapped


def test_neighbours_are_neighbours_of_each_other() -> None:
    assert set(NEIGHBOURS) == set("abcdefghijklmnopqrstuvwxyz")
    for letter, others in NEIGHBOURS.items():
        assert letter not in others
        assert all(letter in NEIGHBOURS[other] for other in others), letter


words = st.sampled_from(
    ["steps", "Rome", "7:30", "10km", "how", "many", "I", "Łódź", "шаги", "天気", "'no'", '"so it"', "é"]
)
queries = st.lists(words | st.text(max_size=6), min_size=1, max_size=12).map(" ".join)


@settings(deadline=None, max_examples=300)
@given(queries, st.lists(words | st.text(min_size=1, max_size=4), max_size=3), st.integers(0, 2**64))
def test_digits_and_values_survive(text, values, seed) -> None:
    changed = typed(text, *values, seed=seed)
    assert changed == typed(text, *values, seed=seed)
    if changed is None:
        return
    assert changed != text
    assert re.findall(r"\d", changed) == re.findall(r"\d", text)
    assert re.findall(r"[^\w]", changed) == re.findall(r"[^\w]", text)
    for value in values:
        assert changed.count(value) >= text.count(value)
    assert abs(len(changed) - len(text)) <= len(text)
    assert len(changed.split()) == len(text.split())


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("What's 3.5 km, roughly?", "Whats 3.5 km roughly"),
        ("Wake me at 7:30!", "Wake me at 7:30"),
        ("an e-mail - to me@example.org.", "an e-mail to me@example.org"),
        ("is it -4 or .5 (about)?", "is it -4 or .5 about"),
        ("I am 5'10, or 6' tall…", "I am 5'10 or 6' tall"),
        ("on 12/05/2024, 50% off & $3", "on 12/05/2024 50% off & $3"),
        ("¿Qué hora es?", "Qué hora es"),
        ("明日の天気は？", "明日の天気は"),
        ("line one.\nline two.", "line one\nline two"),
        ("no marks at  all", "no marks at  all"),
        ("?!", "?!"),
        ("", ""),
    ],
)
def test_without_marks(text, plain) -> None:
    assert without_marks(text) == plain
    assert without_marks(plain) == plain


@pytest.mark.parametrize(
    ("changed", "values", "still"),
    [
        ("text anna: hello there", [], True),
        ("text anna: hello there", ["Anna"], False),
        ("text anna: hello there", ["Bob"], True),
        ("text anna: hello there", ["anna"], True),  # the value never stood there as it is
        ("text anna: hello there", ["Anna Smith"], False),  # but one word of it did
        ("Text Anna Hello there", ["Hello there"], True),
        ("Text Anna Hello there", ["Anna: Hello"], False),
    ],
)
def test_still_says(changed, values, still) -> None:
    assert still_says("Text Anna: Hello there", changed, values) is still
