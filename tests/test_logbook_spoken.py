"""The logbook example's ways of saying a value, of which each text means one thing, and of writing a sentence."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import combinations
from random import Random

import pytest

from fitcoach_tune.logbook import spoken
from fitcoach_tune.logbook.surface import Piece, written

# Ways of saying a value -----------------------------------------------------------------------------------------------


def meanings(said: Iterable[tuple[object, list[str]]]) -> dict[str, set[object]]:
    """By text: all values that are said so."""
    found: dict[str, set[object]] = defaultdict(set)
    for value, texts in said:
        for text in texts:
            found[text.lower()].add(value)
    return found


DAY_SETS = [days for size in range(1, 8) for days in combinations(spoken.DAYS, size)]
MEANINGS = {
    "time": meanings((f"{h:02d}:{m:02d}", spoken.clock(h, m)) for h in range(24) for m in range(60)),
    "duration": meanings((m, spoken.duration(m)) for m in range(2, 301)),
    "duration before": meanings((m, spoken.duration_before(m)) for m in range(2, 301)),
    "distance": meanings((m / 1000, spoken.kilometres(m)) for m in range(50, 100_001, 50)),
    "distance before": meanings((m / 1000, spoken.kilometres_before(m)) for m in range(50, 100_001, 50)),
    "span": meanings((d, spoken.span(d)) for d in range(2, 121)),
    "span before": meanings((d, spoken.span_before(d)) for d in range(2, 121)),
    "past": meanings((d, spoken.past(d)) for d in range(1, 121)),
    "weight": meanings((tenths / 10, spoken.kilograms(tenths / 10)) for tenths in range(400, 1500)),
    "thousands": meanings((steps, spoken.thousands(steps)) for steps in range(1000, 50_000, 500)),
    "weekdays": meanings((days, spoken.weekdays(days)) for days in DAY_SETS),
}


@pytest.mark.parametrize("name", MEANINGS)
def test_no_text_means_two_things(name: str) -> None:
    assert {text: values for text, values in MEANINGS[name].items() if len(values) > 1} == {}


@pytest.mark.parametrize(
    ("said", "time"),
    [
        ("half past six", "06:30"),
        ("6:30", "06:30"),
        ("6.30", "06:30"),
        ("0630", "06:30"),
        ("06:30", "06:30"),
        ("six thirty", "06:30"),
        ("six oh five in the morning", "06:05"),
        ("7", "07:00"),
        ("seven o'clock", "07:00"),
        ("7 pm", "19:00"),
        ("7pm", "19:00"),
        ("7:15 a.m.", "07:15"),
        ("7:15 p.m.", "19:15"),
        ("quarter to eight in the evening", "19:45"),
        ("quarter to eight", "07:45"),
        ("twenty-five to six in the afternoon", "17:35"),
        ("ten past eleven at night", "23:10"),
        ("quarter to twelve at night", "23:45"),
        ("quarter to one in the afternoon", "12:45"),
        ("1845", "18:45"),
        ("12:40", "12:40"),
        ("12:15 am", "00:15"),
        ("12:15 pm", "12:15"),
        ("quarter past twelve at night", "00:15"),
        ("noon", "12:00"),
        ("midnight", "00:00"),
        ("12 pm", "12:00"),
        ("four in the morning", "04:00"),
    ],
)
def test_times(said: str, time: str) -> None:
    assert MEANINGS["time"][said] == {time}


def test_times_that_are_left_out() -> None:
    assert not {"half six", "half past three", "3:30", "quarter to twelve", "twelve", "12"} & MEANINGS["time"].keys()


@pytest.mark.parametrize(
    ("hour", "minute", "said"),
    [(18, 30, "half past six"), (21, 0, "nine"), (13, 45, "quarter to two"), (22, 5, "ten oh five"), (20, 3, "8:03")],
)
def test_times_where_the_half_of_the_day_is_known(hour: int, minute: int, said: str) -> None:
    assert said in spoken.half_day(hour, minute)


@pytest.mark.parametrize(
    ("said", "minutes"),
    [
        ("45 min", 45),
        ("three quarters of an hour", 45),
        ("half an hour", 30),
        ("an hour", 60),
        ("an hour and a quarter", 75),
        ("an hour and a half", 90),
        ("1.5 h", 90),
        ("1h 20m", 80),
        ("an hour twenty", 80),
        ("an hour and five minutes", 65),
        ("two and a half hours", 150),
        ("2 hrs", 120),
        ("two hours and ten minutes", 130),
        ("forty-five minutes", 45),
    ],
)
def test_durations(said: str, minutes: int) -> None:
    assert MEANINGS["duration"][said] == {minutes}


@pytest.mark.parametrize(
    ("said", "minutes"), [("45-minute", 45), ("half-hour", 30), ("hour-long", 60), ("2-hour", 120)]
)
def test_durations_before_a_noun(said: str, minutes: int) -> None:
    assert MEANINGS["duration before"][said] == {minutes}


@pytest.mark.parametrize(
    ("said", "kilometres"),
    [
        ("5k", 5),
        ("5 km", 5),
        ("3.2 km", 3.2),
        ("half a dozen km", 6),
        ("a dozen kilometres", 12),
        ("three and a half kilometres", 3.5),
        ("three point two km", 3.2),
        ("800 metres", 0.8),
        ("1500 m", 1.5),
        ("a kilometre", 1),
        ("ten kilometres", 10),
    ],
)
def test_distances(said: str, kilometres: float) -> None:
    assert MEANINGS["distance"][said] == {kilometres}


@pytest.mark.parametrize(
    ("said", "days"),
    [("past week", 7), ("last fortnight", 14), ("last 30 days", 30), ("previous two weeks", 14), ("past 24 hours", 1)],
)
def test_past_days(said: str, days: int) -> None:
    assert MEANINGS["past"][said] == {days}
    assert "last week" not in MEANINGS["past"]


@pytest.mark.parametrize(("said", "days"), [("a week", 7), ("a fortnight", 14), ("six weeks", 42), ("ten days", 10)])
def test_spans(said: str, days: int) -> None:
    assert MEANINGS["span"][said] == {days}


@pytest.mark.parametrize(
    ("said", "kilograms"),
    [
        ("81.4 kg", 81.4),
        ("81kg", 81),
        ("eighty-one and a half kilos", 81.5),
        ("one hundred and two point three kg", 102.3),
    ],
)
def test_weights(said: str, kilograms: float) -> None:
    assert MEANINGS["weight"][said] == {kilograms}


@pytest.mark.parametrize(
    ("said", "steps"),
    [
        ("10k", 10_000),
        ("10,000", 10_000),
        ("7.5k", 7500),
        ("seven and a half thousand", 7500),
        ("ten thousand", 10_000),
    ],
)
def test_thousands(said: str, steps: int) -> None:
    assert MEANINGS["thousands"][said] == {steps}


@pytest.mark.parametrize(
    ("said", "days"),
    [
        ("daily", "mon tue wed thu fri sat sun"),
        ("every weekday", "mon tue wed thu fri"),
        ("at weekends", "sat sun"),
        ("on mondays", "mon"),
        ("every tuesday and thursday", "tue thu"),
        ("every mon, wed and fri", "mon wed fri"),
        ("monday to thursday", "mon tue wed thu"),
    ],
)
def test_weekdays(said: str, days: str) -> None:
    assert MEANINGS["weekdays"][said] == {tuple(days.split())}


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (21, "twenty-one"),
        (105, "one hundred and five"),
        (8500, "eight thousand five hundred"),
    ],
)
def test_number_words(number: int, said: str) -> None:
    assert spoken.words(number) == said


# The surface ----------------------------------------------------------------------------------------------------------


def test_copied_words_survive_every_way_of_writing() -> None:
    pieces = [Piece("Set an alarm called ", "words"), Piece("Mum's Flight", "copied"), Piece(" for ", "words")]
    pieces += [Piece("7 a.m.", "value"), Piece(".", "words")]
    texts = {written(Random(seed), pieces) for seed in range(400)}
    assert len(texts) > 50
    assert all("Mum's Flight" in text and "7 a.m." in text and ".." not in text for text in texts)


@pytest.mark.parametrize(
    ("following", "article"),
    [("easy run", "an"), ("run", "a"), ("80-minute run", "an"), ("18k", "an"), ("180 min", "a"), ("hour-long", "an")],
)
def test_articles(following: str, article: str) -> None:
    pieces = [Piece("it was a(n) ", "words"), Piece(following, "value")]
    assert any(written(Random(seed), pieces) == f"it was {article} {following}" for seed in range(20))
