"""What Arrow adds to rows is taken out again, and nothing else."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from fitcoach_tune.dataset import read_examples, validate
from fitcoach_tune.dataset.columnar import clean, clean_arguments
from fitcoach_tune.errors import DataError
from tests.samples import tool

from .rows import (
    RUN,
    TOOLS,
    WORKOUT,
    as_jsonl,
    as_parquet,
    as_saved,
    called,
    conversation,
)


def merged_rows():
    """Rows whose tools and arguments differ, so that a columnar format gives each the keys of the others."""
    pace = {"type": "number", "description": "Pace"}
    other = {
        "type": "function",
        "function": {
            "name": "set_pace",
            "description": "Set the pace.",
            "parameters": {"type": "object", "properties": {"minutes": pace, "note": {"type": "string"}}},
        },
    }
    return [
        {"messages": conversation([called("log_workout", RUN)]), "tools": [WORKOUT]},
        {"messages": conversation([called("set_pace", {"minutes": 4.5, "note": "x"})]), "tools": [other]},
        {"messages": conversation([called("set_pace", {"minutes": 5.0})]), "tools": [other, WORKOUT]},
    ]


@pytest.mark.parametrize("container", [as_parquet, as_saved])
def test_columnar_nulls_are_undone_and_noted(container, tmp_path):
    expected, _ = read_examples(as_jsonl(merged_rows(), tmp_path))
    examples, source = read_examples(container(merged_rows(), tmp_path))
    validate(examples)
    assert [(e.messages, e.tools) for e in examples] == [(e.messages, e.tools) for e in expected]
    minutes = [example.gold[0].arguments["minutes"] for example in examples]
    assert [type(value) for value in minutes] == [int, float, float]
    if container is as_parquet:
        assert "null arguments of merged column schemas dropped: 4" in source.notes
        assert "whole floats turned back into integers: 1" in source.notes
        assert any(note.startswith("null keys of merged column schemas dropped from tools: ") for note in source.notes)


@pytest.mark.parametrize("container", [as_parquet, as_saved])
def test_further_answers_are_cleaned_like_calls(container, tmp_path):
    """Each answer comes back with the arguments of the others, and a row without any with nothing."""
    rows = merged_rows()
    run, pace = ({"name": "log_workout", "arguments": RUN}, {"name": "set_pace", "arguments": {"minutes": 5.5}})
    rows[0]["acceptable_answers"] = [[{"name": "log_workout", "arguments": {"kind": "swim"}}]]
    rows[2]["acceptable_answers"] = [[pace, run], [run]]
    expected, _ = read_examples(as_jsonl(rows, tmp_path))
    examples, _ = read_examples(container(rows, tmp_path))
    validate(examples)
    assert [example.acceptable for example in examples] == [example.acceptable for example in expected]
    assert examples[1].acceptable is None
    minutes = examples[2].acceptable.answers[1][1].arguments["minutes"]
    assert repr(minutes) == "(30,)"


def test_a_null_that_somebody_wrote_is_held_against_the_schema(tmp_path):
    written = conversation([called("log_workout", {"kind": "run", "minutes": None})])
    rows = [{"messages": written, "tools": TOOLS}]
    text = [{"messages": json.dumps(written), "tools": json.dumps(TOOLS)}]
    for source in (as_jsonl(rows, tmp_path), as_parquet(text, tmp_path)):
        examples, _ = read_examples(source)
        with pytest.raises(DataError, match=r"arguments\.minutes: None is not of type 'integer'"):
            validate(examples)
    null_tool = json.loads(json.dumps(WORKOUT).replace('{"type": "integer", "description": "Minutes"}', "null"))
    examples, _ = read_examples(as_jsonl([{"user": "a", "assistant": "b", "tools": [null_tool]}], tmp_path))
    with pytest.raises(DataError, match=r"tools\[0\]\.parameters\.properties\.minutes: .*null"):
        validate(examples)


def test_tools_lose_phantoms_and_keep_what_was_empty():
    columnar = tool(
        properties={
            "kind": {"type": "string", "description": "Kind", "enum": None, "items": {"type": None}},
            "minutes": None,
            "phantom": {"type": None, "properties": {"deep": None}},
        },
        required=[],
    )
    counts = Counter()
    assert clean([columnar, tool(properties={"minutes": None})], counts) == [
        tool(properties={"kind": {"type": "string", "description": "Kind"}}, required=[]),
        tool(),
    ]
    assert counts.total() == 5


def test_arguments_keep_null_only_where_it_is_declared_and_become_integers_again():
    properties = {
        "kind": {"type": "string"},
        "note": {"type": "string", "nullable": True},
        "extra": {"type": ["integer", "null"]},
        "either": {"anyOf": [{"type": "null"}, {"type": "string"}]},
        "minutes": {"type": "INTEGER"},
        "km": {"type": "number"},
        "goal": {"type": "object", "properties": {"reps": {"type": "integer"}}},
        "laps": {"type": "array", "items": {"type": "object", "properties": {"n": {"type": "integer"}}}},
    }
    counts = Counter()
    arguments = {"kind": None, "note": None, "extra": None, "either": None, "undeclared": None, "struct": {"x": None}}
    assert clean_arguments(arguments, {"properties": properties}, counts) == {
        "note": None,
        "extra": None,
        "either": None,
    }
    arguments = {"goal": {"reps": 3.0, "other": None}, "laps": [{"n": 1.0, "m": None}, {"n": 1.5}]}
    assert clean_arguments(arguments, {"properties": properties}, counts) == {
        "goal": {"reps": 3},
        "laps": [{"n": 1}, {"n": 1.5}],
    }
    restored = clean_arguments({"minutes": 30.0, "km": 5.0}, {"properties": properties}, Counter())
    assert [type(value) for value in restored.values()] == [int, float]
    assert counts == {"null arguments of merged column schemas dropped": 5, "whole floats turned back into integers": 2}
