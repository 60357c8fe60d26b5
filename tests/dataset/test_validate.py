"""Validation names the row and the field, and counts what it does not list."""

from __future__ import annotations

import json

import pytest

from fitcoach_tune.dataset import read_examples, validate
from fitcoach_tune.errors import DataError

from .rows import (
    GOOD,
    STEPS,
    STEPS_CALL,
    TOOLS,
    as_jsonl,
    assistant,
    called,
    user,
)


@pytest.mark.parametrize(
    ("row", "field", "part"),
    [
        (
            {"user": "a <escape> b", "assistant": "x"},
            "messages[0].content",
            "the user text contains the control token <escape>",
        ),
        ({"system": "<bos>", "user": "a", "assistant": "x"}, "messages[0].content", "<bos>"),
        ({"user": "a", "assistant": "x <end_of_turn>"}, "messages[1].content", "<end_of_turn>"),
        (
            {"user": "a", "assistant": [called("log_workout", {"kind": "<start_of_turn>"})]},
            "messages[1].tool_calls[0].arguments.kind",
            "<start_of_turn>",
        ),
        (
            {"user": "a", "assistant": [called("get_stepz", {})]},
            "messages[1].tool_calls[0].name",
            "did you mean 'get_steps'?",
        ),
        ({"user": "a", "assistant": [called("get_steps", {"x": 1})]}, "messages[1].tool_calls[0].arguments", "unknown"),
        ({"user": "a", "assistant": [called("log_workout", {})]}, "messages[1].tool_calls[0].arguments", "required"),
        (
            {
                "messages": [
                    user(),
                    assistant(STEPS_CALL),
                    {"role": "tool", "content": {"a": ["<eos>"]}},
                    assistant(text="x"),
                ]
            },
            "messages[2].content",
            "a[0]: contains the control token <eos>",
        ),
        (
            {"messages": [user(), assistant(STEPS_CALL), {"role": "tool", "content": "<pad>"}, assistant(text="x")]},
            "messages[2].content",
            "<pad>",
        ),
        ({"user": "a", "assistant": "x", "tools": [STEPS, STEPS]}, "tools[1].name", "two tools are named 'get_steps'"),
        (
            {"user": "a", "assistant": "x", "tools": [{"name": "f", "description": "<escape>"}]},
            "tools[0].description",
            "<escape>",
        ),
    ],
)
def test_validate_names_the_field(row, field, part, tmp_path):
    examples, _ = read_examples(as_jsonl([json.loads(GOOD), row], tmp_path), tools=TOOLS)
    with pytest.raises(DataError) as caught:
        validate(examples)
    assert any(line.startswith(f"rows.jsonl:2: {field}: ") and part in line for line in caught.value.details), str(
        caught.value
    )


def test_validate_names_the_further_answer(tmp_path):
    answers = [
        called("log_workout", {"kind": "run"}),
        called("log_workout", {"kind": 5}),
        [STEPS_CALL, called("get_stepz", {})],
        "log_workout",
        called("log_workout", {"kind": "<start_of_turn>"}),
        "See <escape> above.",
    ]
    row = {"user": "a", "assistant": "x", "acceptable_answers": answers}
    examples, _ = read_examples(as_jsonl([row], tmp_path), tools=TOOLS)
    with pytest.raises(DataError) as caught:
        validate(examples)
    assert [line.split(": ")[:2] for line in caught.value.details] == [
        ["rows.jsonl:1", "acceptable_answers[1].arguments.kind"],
        ["rows.jsonl:1", "acceptable_answers[1].arguments.kind"],
        ["rows.jsonl:1", "acceptable_answers[2][1].name"],
        ["rows.jsonl:1", "acceptable_answers[3].arguments"],
        ["rows.jsonl:1", "acceptable_answers[4].arguments.kind"],
        ["rows.jsonl:1", "acceptable_answers[4].arguments.kind"],
    ]
    assert "did you mean 'get_steps'?" in caught.value.details[2]


def test_a_broken_tool_is_one_problem_however_many_rows_have_it(tmp_path):
    broken = [
        {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {"x": {"type": "intt"}}}}
    ]
    rows = [{"user": "a", "assistant": "b", "tools": broken}] * 30
    examples, _ = read_examples(as_jsonl(rows, tmp_path))
    with pytest.raises(DataError, match="1 problem in 30 rows") as caught:
        validate(examples)
    assert caught.value.details[0].startswith("rows.jsonl:1: tools[0].parameters.properties.x.type: ")
    with pytest.raises(DataError, match="1 problem in 30 rows"):
        read_examples(as_jsonl([{**row, "tools": '[{"nam": "f"}]'} for row in rows], tmp_path))


def test_the_first_ten_problems_are_listed_in_row_order_and_the_rest_counted(tmp_path):
    bad, off = {"user": "", "assistant": "x"}, {"user": "a", "assistant": [called("nope", {})]}
    rows = [json.loads(GOOD), off, bad] * 9
    path = as_jsonl(rows, tmp_path)
    with pytest.raises(DataError) as caught:
        read_examples(path, tools=TOOLS)
    assert caught.value.what == "18 problems in 27 rows"
    assert caught.value.where == path
    lines = [int(line.split(":")[1]) for line in caught.value.details[:10]]
    assert lines == [2, 3, 5, 6, 8, 9, 11, 12, 14, 15]
    assert caught.value.details[10:] == ["… and 8 more"]
    examples, _ = read_examples(as_jsonl([json.loads(GOOD), off] * 12, tmp_path), tools=TOOLS)
    with pytest.raises(DataError) as caught:
        validate(examples)
    assert caught.value.what == "12 problems in 24 rows"
    assert len(caught.value.details) == 11
