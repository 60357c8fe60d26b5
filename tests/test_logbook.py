"""The shipped logbook example: what was said is what was labelled, and the file is what the generator makes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import unicodedata
from collections import Counter
from itertools import chain

import pytest

from fitcoach_tune import functiongemma, logbook
from fitcoach_tune.dataset import read_examples, validate
from fitcoach_tune.functiongemma import TRIGGER, Call
from fitcoach_tune.logbook import generator, spoken
from fitcoach_tune.logbook.values import lines, patterns
from fitcoach_tune.splits import normalise
from fitcoach_tune.tool_checks import CallChecker
from fitcoach_tune.tools import normalise_tools

CARD = logbook.rows_path().with_name("README.md")
TOOLS = {tool["function"]["name"]: tool["function"] for tool in logbook.tools()}


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return [json.loads(line) for line in logbook.rows_path().read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def calls(rows: list[dict]) -> list[tuple[str, str, dict]]:
    """(query, tool, arguments) of every call in the set."""
    return [(query_of(row), call.name, call.arguments) for row in rows for call in calls_of(row)]


def query_of(row: dict) -> str:
    return row["messages"][1]["content"]


def calls_of(row: dict) -> list[Call]:
    return [Call(**call["function"]) for call in row["messages"][2].get("tool_calls", [])]


def enum_of(schema: dict) -> list[str] | None:
    return schema.get("enum") or schema.get("items", {}).get("enum")


# The tools ------------------------------------------------------------------------------------------------------------


def test_every_type_of_argument_occurs() -> None:
    schemas = [schema for tool in TOOLS.values() for schema in tool["parameters"]["properties"].values()]
    assert Counter(schema["type"] for schema in schemas).keys() == {"string", "integer", "number", "boolean", "array"}
    assert {"enum" in schema for schema in schemas if schema["type"] == "string"} == {True, False}
    assert {"enum" in schema["items"] for schema in schemas if schema["type"] == "array"} == {True, False}


def test_the_format_can_carry_the_tools() -> None:
    assert list(TOOLS) == [
        *("log_workout", "set_alarm", "get_history", "set_goal", "log_meal", "set_reminder", "log_weight"),
    ]
    assert list(CallChecker().tool_problems(normalise_tools(logbook.tools()))) == []


def test_tools_gives_a_fresh_list_each_time() -> None:
    logbook.tools().pop()
    assert len(logbook.tools()) == 7


# The file -------------------------------------------------------------------------------------------------------------


def test_the_file_is_what_the_generator_prints() -> None:
    """In a process with another hash seed, so that no order of a set has slipped in."""
    done = subprocess.run(
        [sys.executable, "-m", "fitcoach_tune.logbook.generator"],
        capture_output=True, env={**os.environ, "PYTHONHASHSEED": "12345", "PYTHONIOENCODING": "utf-8"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == logbook.rows_path().read_bytes()


def test_another_seed_gives_other_rows_of_the_same_shape(rows: list[dict]) -> None:
    other = generator.rows(1)
    assert [row["id"] for row in other] == [row["id"] for row in rows]
    assert other == generator.rows(1)
    shared = {query_of(row) for row in rows} & {query_of(row) for row in other}
    assert len(shared) < 0.15 * len(rows)


def test_the_file_can_be_trained_on(rows: list[dict]) -> None:
    examples, source = read_examples(str(logbook.rows_path()), tools=normalise_tools(logbook.tools()))
    validate(examples)
    assert source.rows == len(rows) >= 4500
    assert source.notes == []
    for example in examples[:200]:
        for call in example.gold:
            assert functiongemma.parse(functiongemma.render_call(call)).calls == (call,)


def test_each_row_is_one_query_and_its_answer(rows: list[dict]) -> None:
    for row in rows:
        assert list(row) == ["id", "messages"]
        developer, user, assistant = row["messages"]
        assert developer == {"role": "developer", "content": TRIGGER}
        text = user["content"]
        assert user == {"role": "user", "content": text}
        assert text == " ".join(text.split()), row["id"]
        assert not set("<>{}") & set(text), row["id"]
        assert "(n)" not in text, row["id"]
        if calls_of(row):
            assert list(assistant) == ["role", "tool_calls"]
        else:
            assert assistant == {"role": "assistant", "content": generator.REFUSAL}


def test_ids_and_counts_are_those_of_the_card(rows: list[dict]) -> None:
    card = " ".join(CARD.read_text(encoding="utf-8").split())
    sizes = re.findall(r"\| `(\w+)-\*` \| (\d+) \|", card)
    expected = {f"{kind}-{number:04d}" for kind, count in sizes for number in range(1, int(count) + 1)}
    assert len(rows) == len(expected)
    assert {row["id"] for row in rows} == expected
    assert f"{len(rows)} rows" in card
    assert f"Version {logbook.DATASET_VERSION}." in card
    assert generator.REFUSAL in card
    lengths = [len(query_of(row).split()) for row in rows]
    assert (
        f"A query has {min(lengths)} to {max(lengths)} words, {round(sum(lengths) / len(lengths))} on average." in card
    )
    written_patterns = [len(patterns(tool)) for tool in TOOLS]
    assert (
        f"{sum(written_patterns)} sentence patterns ({min(written_patterns)} to {max(written_patterns)} a tool)" in card
    )


def test_the_id_names_the_answer(rows: list[dict]) -> None:
    for row in rows:
        names = [call.name for call in calls_of(row)]
        kind = row["id"].rpartition("-")[0]
        assert names == [kind] if kind in TOOLS else len(names) == {"two_calls": 2, "no_call": 0}[kind]
    shares = Counter(len(calls_of(row)) for row in rows)
    assert 0.05 < shares[2] / len(rows) < 0.07
    assert 0.07 < shares[0] / len(rows) < 0.09


def test_the_first_rows_are_as_balanced_as_the_whole(rows: list[dict]) -> None:
    first = Counter(row["id"].rpartition("-")[0] for row in rows[:490])
    assert all(59 <= first[tool] <= 61 for tool in TOOLS)
    assert first["two_calls"] in (29, 30, 31)
    assert first["no_call"] in (39, 40, 41)


def test_no_two_queries_are_the_same(rows: list[dict]) -> None:
    assert len({normalise(query_of(row)).replace(" ", "") for row in rows}) == len(rows)


def test_texts_have_no_hidden_characters(rows: list[dict]) -> None:
    for row in rows:
        assert not any(unicodedata.category(char) in ("Cc", "Cf", "Co", "Cn") for char in query_of(row)), row["id"]


# Coverage -------------------------------------------------------------------------------------------------------------


def test_every_value_of_an_enum_occurs(calls: list[tuple[str, str, dict]]) -> None:
    for tool, function in TOOLS.items():
        for name, schema in function["parameters"]["properties"].items():
            said = [arguments[name] for _, called, arguments in calls if called == tool and name in arguments]
            values = list(chain.from_iterable(said)) if schema["type"] == "array" else said
            counts = Counter(values)
            for value in [True, False] if schema["type"] == "boolean" else enum_of(schema) or []:
                assert counts[value] >= 10, (tool, name, value)


def test_optional_arguments_are_said_and_left_out(calls: list[tuple[str, str, dict]]) -> None:
    for tool, function in TOOLS.items():
        of_tool = [arguments for _, called, arguments in calls if called == tool]
        parameters = function["parameters"]
        for name in parameters["properties"].keys() - set(parameters["required"]):
            assert 0.2 < sum(name in arguments for arguments in of_tool) / len(of_tool) < 0.8, (tool, name)


def test_numbers_are_whole_or_not(calls: list[tuple[str, str, dict]]) -> None:
    """5.0 and 5 are written differently in the wire format: only one of them may occur."""
    numbers = [value for _, _, arguments in calls for value in arguments.values() if isinstance(value, float)]
    assert numbers
    assert all(value != int(value) for value in numbers)


def test_patterns_and_values_are_many_and_written_once() -> None:
    for tool in TOOLS:
        found = patterns(tool)
        assert len({normalise(pattern.text) for pattern in found}) == len(found) >= 60
    for name, least in (("foods", 80), ("labels", 40), ("reminders", 100)):
        assert len(set(lines(name))) == len(lines(name)) >= least


def test_the_surface_varies(rows: list[dict]) -> None:
    queries = [query_of(row) for row in rows]
    assert 0.3 < sum(query == query.lower() for query in queries) / len(queries) < 0.6
    assert 0.3 < sum(query[-1] in ".?!" for query in queries) / len(queries) < 0.7
    assert sum(query.isupper() for query in queries) >= 10
    assert any(len(query.split()) <= 3 for query in queries)


# Labels ---------------------------------------------------------------------------------------------------------------


def test_strings_are_copied_from_the_query(calls: list[tuple[str, str, dict]]) -> None:
    def is_said(value: str, text: str) -> bool:
        return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text) is not None

    for query, _, arguments in calls:
        for name in {"label", "text"} & arguments.keys():
            assert is_said(arguments[name], query), query
        foods = arguments.get("foods", [])
        assert all(food == food.lower() and is_said(food, query.lower()) for food in foods), query
        places = [query.lower().index(food) for food in foods]
        assert places == sorted(places), query


@pytest.mark.parametrize(
    ("argument", "word", "value"),
    [
        ("kind", "yoga", "yoga"),
        ("kind", "hike", "hiking"),
        ("kind", "jog", "running"),
        ("kind", "swim", "swimming"),
        ("kind", "erg", "rowing"),
        ("kind", "spinning", "cycling"),
        ("kind", "kettlebells?", "strength"),
        ("kind", "dog", "walking"),
        ("metric", "pulse|bpm|heartbeat", "heart_rate"),
        ("metric", "weigh-ins|scale", "weight"),
        ("metric", "sleep log|slept", "sleep"),
        ("metric", "litres|liters|hydration", "water_litres"),
        ("metric", "kilos|kilograms", "weight_kg"),
        ("metric", "kilometres|km", "distance_km"),
        ("meal", "breakfast|brekkie", "breakfast"),
        ("meal", "lunch", "lunch"),
        ("meal", "dinner|supper", "dinner"),
        ("meal", "snack|snacked", "snack"),
    ],
)
def test_values_of_enums_are_what_was_said(rows: list[dict], argument: str, word: str, value: str) -> None:
    """In rows with one call, a word that names a value goes with that value only."""
    found = [
        (query_of(row), call.arguments[argument])
        for row in rows
        for call in calls_of(row)
        if len(calls_of(row)) == 1 and argument in call.arguments
        if re.search(rf"(?<![\w-])({word})(?![\w-])", query_of(row), re.IGNORECASE)
    ]
    assert found
    assert [query for query, labelled in found if labelled != value] == []


def test_silent_is_what_was_said(rows: list[dict]) -> None:
    loud = re.compile(r"loud|with (a|the) sound(?! off)|with sound|sound on|not (on|a) silent|can hear", re.IGNORECASE)
    quiet = re.compile(r"silent|mute|no sound|without|sound off|no beep|soundless", re.IGNORECASE)
    for row in rows:
        for call in calls_of(row):
            if call.name == "set_reminder" and len(calls_of(row)) == 1:
                query = query_of(row).replace(call.arguments["text"], "")
                without_loud = loud.sub("", query)
                expected = False if loud.search(query) and not quiet.search(without_loud) else None
                expected = True if quiet.search(without_loud) and expected is None else expected
                assert call.arguments.get("silent") is expected, query


def test_days_of_the_week_are_in_order_and_said(calls: list[tuple[str, str, dict]]) -> None:
    for query, tool, arguments in calls:
        if tool == "set_alarm":
            days = arguments.get("repeat", [])
            assert days == [day for day in spoken.DAYS if day in days]
            if 0 < len(days) < 3 and "weekend" not in query.lower():
                assert all(day in query.lower() for day in days), query


def ways(argument: str, value: float | str, metric: str | None) -> list[str]:
    """Every way in which a query may say a number or a time."""
    if argument == "time":
        hour, minute = map(int, value.split(":"))
        return spoken.clock(hour, minute) + spoken.half_day(hour, minute)
    if argument in ("minutes", "in_minutes") or metric == "active_minutes":
        return spoken.duration(value) + spoken.duration_before(value) + spoken.number(value)
    if argument == "days":
        return spoken.past(value) + (spoken.span(value) + spoken.span_before(value) if value > 1 else [])
    if argument == "distance_km" or metric == "distance_km":
        metres = round(value * 1000)
        return spoken.kilometres(metres) + spoken.kilometres_before(metres) + spoken.number(value)
    return spoken.thousands(value) if metric == "steps" else spoken.number(value)


def test_numbers_and_times_are_said_and_not_ruled_out(rows: list[dict]) -> None:
    numeric = {"time", "minutes", "in_minutes", "days", "distance_km", "value", "kilograms"}
    ruled_out = re.compile(r"(\brather than|\bnot in|(^|, )not(?! only| on| a| silent)) [^,]*")
    for row in rows:
        query = query_of(row).lower()
        query = ruled_out.sub(" ", query) if len(calls_of(row)) == 1 else query
        for call in calls_of(row):
            for name in numeric & call.arguments.keys():
                metric = call.arguments.get("metric") if name == "value" else None
                said = [text.lower() for text in ways(name, call.arguments[name], metric)]
                found = [re.search(rf"(?<![\w.]){re.escape(text)}(?!\d|\.\d)", query) for text in said]
                assert any(found), (row["id"], name, query)


def test_times_have_four_digits(calls: list[tuple[str, str, dict]]) -> None:
    times = [arguments["time"] for _, tool, arguments in calls if tool == "set_alarm"]
    assert all(re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", time) for time in times)
