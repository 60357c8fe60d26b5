"""Rows of every form from every kind of source, and one clear error for whatever is not a row."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import threading
import tracemalloc
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fitcoach_tune import functiongemma
from fitcoach_tune.dataset import Example, Source, read_examples, read_tools, validate
from fitcoach_tune.errors import AccessError, DataError
from fitcoach_tune.functiongemma import TRIGGER, Call

STEPS = {
    "type": "function",
    "function": {
        "name": "get_steps",
        "description": "Steps today.",
        "parameters": {"type": "object", "properties": {}},
    },
}
WORKOUT = {
    "type": "function",
    "function": {
        "name": "log_workout",
        "description": "Log a workout.",
        "parameters": {
            "type": "object",
            "properties": {
                "kind": {"type": "string", "description": "Kind", "enum": ["run", "swim"]},
                "minutes": {"type": "integer", "description": "Minutes"},
            },
            "required": ["kind"],
        },
    },
}
TOOLS = [STEPS, WORKOUT]
RUN = {"kind": "run", "minutes": 30}
WIRE = "<start_function_call>call:log_workout{kind:<escape>run<escape>,minutes:30}<end_function_call>"


def called(name, arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def conversation(calls, query="log it"):
    return [
        {"role": "system", "content": "Help."},
        {"role": "user", "content": query},
        {"role": "assistant", "content": None, "tool_calls": calls},
    ]


# Containers: each writes rows and returns the source to read


def as_jsonl(rows, folder):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def as_json(rows, folder):
    path = folder / "rows.json"
    path.write_text(json.dumps(rows, indent=1))
    return str(path)


def as_json_object(rows, folder):
    path = folder / "rows.json"
    path.write_text(json.dumps({"version": 1, "rows": rows}))
    return str(path)


def as_parquet(rows, folder):
    import pyarrow
    from pyarrow import parquet

    path = folder / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


def as_saved(rows, folder):
    import datasets

    datasets.Dataset.from_list(rows).save_to_disk(folder / "saved")
    return str(folder / "saved")


def as_saved_splits(rows, folder):
    import datasets

    other = datasets.Dataset.from_list([{"user": "other", "assistant": "other"}])
    datasets.DatasetDict({"test": other, "train": datasets.Dataset.from_list(rows)}).save_to_disk(folder / "splits")
    return str(folder / "splits")


CONTAINERS = [as_jsonl, as_json, as_json_object, as_parquet, as_saved, as_saved_splits]

# Forms: each a row that asks for the same call, `log_workout(kind="run", minutes=30)`

FORMS = {
    "messages": {"messages": conversation([called("log_workout", RUN)]), "tools": TOOLS},
    "messages, call as text": {"messages": conversation([called("log_workout", json.dumps(RUN))]), "tools": TOOLS},
    "messages, flat call": {"messages": conversation([{"name": "log_workout", "arguments": RUN}]), "tools": TOOLS},
    "messages, cells as text": {
        "messages": json.dumps(conversation([called("log_workout", RUN)])),
        "tools": json.dumps(TOOLS),
    },
    "messages, OpenAI's function_call": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "log "}, {"type": "text", "text": "it"}]},
            {"role": "model", "function_call": {"name": "log_workout", "arguments": json.dumps(RUN)}},
        ],
        "tools": TOOLS,
    },
    "flat, wire": {"system": "Help.", "user": "log it", "assistant": WIRE, "tools": TOOLS},
    "flat, wire with its stop token": {
        "user": "log it",
        "assistant": f"{WIRE}<start_function_response>\n",
        "tools": TOOLS,
    },
    "flat, JSON call": {
        "user": "log it",
        "assistant": json.dumps(called("log_workout", RUN)["function"]),
        "tools": TOOLS,
    },
    "flat, JSON list": {"user": "log it", "assistant": json.dumps([called("log_workout", RUN)]), "tools": TOOLS},
    "flat, JSON tool_calls": {
        "user": "log it",
        "assistant": json.dumps({"tool_calls": [called("log_workout", json.dumps(RUN))]}),
        "tools": json.dumps(TOOLS),
    },
    "flat, call as value": {"user": "log it", "assistant": [called("log_workout", RUN)], "tools": TOOLS},
    "query, JSON": {
        "user_query": "log it",
        "function_call": json.dumps({"name": "log_workout", "arguments": RUN}),
        "tools": TOOLS,
    },
    "query, value": {
        "user_query": "log it",
        "function_call": {"name": "log_workout", "arguments": RUN},
        "tools": TOOLS,
    },
    "query, list": {"user_query": "log it", "function_call": [called("log_workout", RUN)], "tools": TOOLS},
    "query, wire": {"user_query": "log it", "function_call": WIRE, "tools": TOOLS},
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_in_every_container(form, container, tmp_path):
    row = FORMS[form]
    if container is as_parquet:  # which has no empty objects; two properties each keep Arrow from needing one
        row = json.loads(json.dumps(row).replace('"properties": {}', '"properties": {"never": null}'))
    examples, source = read_examples(container([row, row], tmp_path))
    validate(examples)
    assert [example.gold for example in examples] == [[Call("log_workout", RUN)]] * 2
    assert examples[0].query == "log it"
    assert examples[0].tools == TOOLS
    assert examples[0].tools is examples[1].tools
    assert source.rows == 2
    assert len(source.sha256) == 64
    roles = [message["role"] for message in examples[0].messages]
    assert roles[-2:] == ["user", "assistant"]
    assert all(set(message) <= {"role", "content", "tool_calls"} for message in examples[0].messages)


def test_conversations_with_results_parallel_calls_and_text(tmp_path):
    first, second = {"id": "a", **called("log_workout", RUN)}, {"id": "b", **called("get_steps", {})}
    messages = [
        {"role": "developer", "content": "Help.", "name": None},
        {"role": "user", "content": "both"},
        {"role": "assistant", "content": "One moment.", "tool_calls": [first, second]},
        {"role": "tool", "tool_call_id": "b", "content": {"steps": 2400, "unit": None}},
        {"role": "tool", "tool_call_id": "a", "content": "logged"},
        {"role": "assistant", "content": "Done."},
        {"role": "user", "content": "and again"},
        {"role": "assistant", "tool_calls": [called("get_steps", {})]},
        {"role": "tool", "content": [{"type": "text", "text": "2500"}]},
        {"role": "assistant", "content": "2500 steps."},
    ]
    [example], _ = read_examples(as_jsonl([{"messages": messages, "tools": TOOLS}], tmp_path))
    validate([example])
    assert example.gold == []
    assert example.query == "and again"
    assert example.messages == [
        {"role": "developer", "content": "Help."},
        {"role": "user", "content": "both"},
        {
            "role": "assistant",
            "content": "One moment.",
            "tool_calls": [called("log_workout", RUN), called("get_steps", {})],
        },
        {"role": "tool", "name": "get_steps", "content": {"steps": 2400, "unit": None}},
        {"role": "tool", "name": "log_workout", "content": "logged"},
        {"role": "assistant", "content": "Done."},
        {"role": "user", "content": "and again"},
        {"role": "assistant", "content": "", "tool_calls": [called("get_steps", {})]},
        {"role": "tool", "name": "get_steps", "content": "2500"},
        {"role": "assistant", "content": "2500 steps."},
    ]
    parallel = {"messages": [messages[1], {"role": "assistant", "tool_calls": [second, first]}], "tools": TOOLS}
    [example], _ = read_examples(as_jsonl([parallel], tmp_path))
    assert example.gold == [Call("get_steps", {}), Call("log_workout", RUN)]


def test_rows_render_to_the_bytes_of_the_published_template(tmp_path):
    cases = json.loads((Path(__file__).parent / "format_cases.json").read_text())
    cases = [case for case in cases if case["messages"][-1]["role"] == "assistant"]
    assert len(cases) >= 9
    rows = [{"messages": json.dumps(case["messages"]), "tools": json.dumps(case["tools"])} for case in cases]
    for container in (as_jsonl, as_parquet):
        examples, _ = read_examples(container(rows, tmp_path))
        validate(examples)
        texts = [functiongemma.render(example.messages, example.tools) for example in examples]
        assert texts == [case["text"] for case in cases]


@pytest.mark.parametrize(
    "answer",
    ["You walked far.", '{"steps": 5}', "[1, 2]", "{not json", "[]", '[{"name": "Bob"}]', '{"name": "Bob", "age": 3}'],
)
def test_what_cannot_be_told_apart_is_text(answer, tmp_path):
    [example], _ = read_examples(
        as_jsonl([{"system": "", "user": "hi", "assistant": answer, "tools": TOOLS}], tmp_path)
    )
    assert example.messages == [{"role": "user", "content": "hi"}, {"role": "assistant", "content": answer}]
    assert example.gold == []


def test_a_bare_name_is_a_call_without_arguments_after_the_trigger(tmp_path):
    [example], _ = read_examples(
        as_jsonl([{"user_query": "steps?", "function_call": "get_steps"}], tmp_path), tools=TOOLS
    )
    assert example.messages[0] == {"role": "developer", "content": TRIGGER}
    assert example.gold == [Call("get_steps", {})]


def test_tools_in_the_row_win_over_the_given_ones(tmp_path):
    rows = [{"user": "a", "assistant": "b", "tools": [STEPS]}, {"user": "a", "assistant": "b", "tools": None}]
    examples, _ = read_examples(as_jsonl(rows, tmp_path), tools=[WORKOUT["function"]])
    assert [example.tools for example in examples] == [[STEPS], [WORKOUT]]
    with pytest.raises(DataError, match=r"rows\.jsonl:2: tools: .*--tools"):
        read_examples(as_jsonl(rows, tmp_path))


def test_the_built_in_set(tmp_path):
    examples, source = read_examples("builtin:fitness")
    validate(examples)
    assert len(examples) > 100
    assert source.name == "builtin:fitness"
    assert source.rows == len(examples)
    assert examples[0].origin == "builtin:fitness:1"
    assert examples[0].tools == read_tools("builtin:fitness")
    assert {call.name for example in examples for call in example.gold} <= {
        tool["function"]["name"] for tool in examples[0].tools
    }


def test_origin_hash_and_revision(tmp_path):
    rows = [{"user": "a", "assistant": "b", "tools": TOOLS}] * 2
    path = as_jsonl(rows, tmp_path)
    examples, source = read_examples(path)
    assert [example.origin for example in examples] == ["rows.jsonl:1", "rows.jsonl:2"]
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert source == Source(name=path, revision=None, sha256=digest, rows=2, notes=[])
    for container, origin in ((as_json, "rows.json[1]"), (as_saved, "saved[1]"), (as_saved_splits, "splits[train][1]")):
        assert read_examples(container(rows, tmp_path))[0][1].origin == origin
    parquet = as_parquet([{"user": "a", "assistant": "b", "tools": json.dumps(TOOLS)}] * 2, tmp_path)
    examples, source = read_examples(parquet)
    assert examples[1].origin == "rows.parquet[1]"
    assert source.sha256 == hashlib.sha256(Path(parquet).read_bytes()).hexdigest()


# Columnar artefacts


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


# The text of files


def write(folder, data, name="rows.jsonl"):
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return str(path)


GOOD = json.dumps({"user": "a", "assistant": "b", "tools": TOOLS})


def test_byte_order_mark_crlf_and_blank_lines(tmp_path):
    data = b"\xef\xbb\xbf\r\n" + GOOD.encode() + b"\r\n  \r\n" + GOOD.encode()
    examples, source = read_examples(write(tmp_path, data))
    assert [example.origin for example in examples] == ["rows.jsonl:2", "rows.jsonl:4"]
    assert source.notes == ["blank lines skipped: 2"]
    examples, _ = read_examples(write(tmp_path, b"\xef\xbb\xbf[" + GOOD.encode() + b"]\r\n", "rows.json"))
    assert len(examples) == 1


NOT_JSON = [
    (b'{"user": "a",', "not valid JSON at column 14"),
    (b'{"user": "\xff"}', "byte 11 is not UTF-8"),
    ("{}".encode("utf-16"), "byte 1 is not UTF-8"),
    (b'{"user":' * 50_000, "nested more than 100 levels deep"),
]
NOT_ROWS = [
    (b'{"user": "a", "user": "b"}', "the key 'user' stands twice"),
    (b'{"messages": [{"role": "user", "role": "tool"}]}', "messages[0]: the key 'role' stands twice"),
    (b'{"user": NaN}', "user: nan is not a number"),
    (b'{"user": -Infinity}', "user: -inf is not a number"),
    (b'{"user": 1e999}', "user: inf is not a number"),
    (b'{"user": ' + b"7" * 5000 + b"}", "user: a number of 5000 digits"),
    (b'{"user": "\\ud800"}', "user: half of a surrogate pair"),
    (b'{"user": ' + b"[" * 200 + b"]" * 200 + b"}", "nested more than 100 levels deep"),
    (b"[]", "a row must be an object, not a list"),
    (b"null", "a row must be an object, not null"),
    (b"{}", "a row needs 'messages', or 'user' and 'assistant'"),
    (b'{"prompt": "a", "completion": "b"}', "it has 'prompt', 'completion'"),
]


@pytest.mark.parametrize(("line", "part"), NOT_JSON + NOT_ROWS)
def test_what_a_line_cannot_say(line, part, tmp_path):
    with pytest.raises(DataError) as caught:
        read_examples(write(tmp_path, b"\n".join([GOOD.encode(), line, GOOD.encode()])))
    [problem] = caught.value.details
    assert problem.startswith("rows.jsonl:2: ")
    assert part in problem
    assert len(problem) < 400
    assert caught.value.what == "1 problem in 3 rows"


@pytest.mark.parametrize(("row", "part"), NOT_ROWS)
def test_what_a_row_of_a_json_file_cannot_say(row, part, tmp_path):
    with pytest.raises(DataError) as caught:
        read_examples(write(tmp_path, b"[" + GOOD.encode() + b",\n" + row + b"]", "rows.json"))
    [problem] = caught.value.details
    assert problem.startswith("rows.json[1]: ")
    assert part in problem


@pytest.mark.parametrize(
    ("data", "where", "part"),
    [
        (b'[\n{"a": 1},\n{]', "rows.json:3", "not valid JSON at column 2"),
        (b"{}\n{}\n", "rows.json:2", "extra data"),
        (b'{"messages": []}', "rows.json", "top level must be a list of rows, not an object"),
        (b'{"rows": 3}', "rows.json", "not a number"),
        (b"3", "rows.json", "not a number"),
        (b'["\xff"]', "rows.json", "byte 3 is not UTF-8"),
        (b"[" * 50_000, "rows.json", "nested more than 100 levels deep"),
    ],
)
def test_what_a_json_file_cannot_be(data, where, part, tmp_path):
    with pytest.raises(DataError) as caught:
        read_examples(write(tmp_path, data, "rows.json"))
    assert caught.value.where == where
    assert part in caught.value.what
    assert caught.value.hint


def test_rows_under_data(tmp_path):
    examples, _ = read_examples(write(tmp_path, f'{{"data": [{GOOD}]}}', "rows.json"))
    assert len(examples) == 1


@pytest.mark.parametrize(
    ("name", "data"), [("a.jsonl", b""), ("a.jsonl", b"\n \n"), ("a.json", b""), ("a.json", b"[]")]
)
def test_a_source_without_rows(name, data, tmp_path):
    path = write(tmp_path, data, name)
    with pytest.raises(DataError, match="no rows in it") as caught:
        read_examples(path)
    assert caught.value.where == path


def test_one_very_long_line(tmp_path):
    text = "x" * 10_000_000
    path = write(tmp_path, json.dumps({"user": "a", "assistant": text, "tools": TOOLS}) + "\n" + GOOD)
    examples, _ = read_examples(path)
    validate(examples)
    assert examples[0].messages[-1]["content"] == text


def test_lines_are_streamed(tmp_path):
    """Padding that no example keeps never piles up: the peak follows the longest line, not the file."""
    row = json.loads(GOOD) | {"padding": "x" * 1_000_000}
    path = write(tmp_path, (json.dumps(row) + "\n") * 40)
    read_examples(path)  # imports and caches are not what is measured
    tracemalloc.start()
    examples, _ = read_examples(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(examples) == 40
    assert peak < 12_000_000


# Sources that are not there, or not what they seem


@pytest.mark.parametrize(
    "name", ["gone.jsonl", "./gone", "../gone", "~/gone-folder", "folder/gone.parquet", "gone.JSON"]
)
def test_a_path_that_does_not_exist(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no such file or folder") as caught:
        read_examples(name)
    assert caught.value.where == name


def test_sources_that_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "a,b", "rows.csv")
    write(tmp_path, "PAR1 but no Parquet", "bad.parquet")
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    write(tmp_path / "damaged", "{", "state.json")
    for source, part in [
        ("rows.csv", "rows cannot be read from a .csv file"),
        ("bad.parquet", "cannot be read"),
        ("empty", "does not hold a saved dataset"),
        ("damaged", "the saved dataset cannot be loaded"),
        ("just words", "cannot tell what rows 'just words' means"),
        ("x" * 5000, "cannot tell what rows"),
        ("null\0character", "cannot tell what rows"),
        ("~no-such-user-here/rows", "no such file or folder"),
        ("a/b/c", "cannot tell"),
    ]:
        with pytest.raises(DataError) as caught:
            read_examples(source)
        assert part in str(caught.value), source
        assert caught.value.hint


def test_damaged_and_foreign_parquet(tmp_path):
    path = Path(as_parquet([{"user": "a", "assistant": "b" * 50_000, "tools": json.dumps(TOOLS)}] * 50, tmp_path))
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 3 + 20] = bytes(20)
    path.write_bytes(bytes(data[: len(data) // 2]))
    with pytest.raises(DataError, match="cannot be read"):
        read_examples(str(path))
    with pytest.raises(DataError, match=r"no column is known \(found: 'prompt', 'answer'\)"):
        read_examples(as_parquet([{"prompt": "a", "answer": "b"}], tmp_path))
    with pytest.raises(DataError, match=r"rows\.parquet\[0\]: user: a bytes is not a JSON value"):
        read_examples(as_parquet([{"user": b"a", "assistant": "b", "tools": json.dumps(TOOLS)}], tmp_path))


def test_splits(tmp_path):
    import datasets

    def saved(**splits):
        path = tmp_path / "-".join(splits)
        made = {name: datasets.Dataset.from_list([{"user": user, "assistant": "b"}]) for name, user in splits.items()}
        datasets.DatasetDict(made).save_to_disk(path)
        return str(path)

    assert read_examples(saved(train="t", test="u"), tools=TOOLS)[0][0].query == "t"
    assert read_examples(saved(validation="v"), tools=TOOLS)[0][0].query == "v"
    chosen = read_examples(saved(train="t", test="u"), tools=TOOLS, split="test")[0][0]
    assert (chosen.query, chosen.origin) == ("u", "train-test[test][0]")
    with pytest.raises(DataError, match="choose a split: dev, test"):
        read_examples(saved(dev="d", test="u"), tools=TOOLS)
    with pytest.raises(DataError, match=r"no split 'dev'(.|\n)*choose a split: train, test"):
        read_examples(saved(train="t", test="u"), tools=TOOLS, split="dev")
    path = write(tmp_path, GOOD)
    with pytest.raises(DataError, match="no split to choose"):
        read_examples(path, split="train")
    with pytest.raises(DataError, match="no revision to choose"):
        read_examples(path, revision="main")


def test_a_saved_selection_is_read_as_selected(tmp_path):
    import datasets

    rows = [{"user": str(n), "assistant": "b", "when": n} for n in range(700)]
    order = random.Random(0).sample(range(700), 600)
    datasets.Dataset.from_list(rows).select(order).save_to_disk(tmp_path / "some")
    examples, source = read_examples(str(tmp_path / "some"), tools=TOOLS)
    assert [example.query for example in examples] == [str(n) for n in order]
    assert examples[599].origin == "some[599]"
    assert source.rows == 600


# What rows may not say


def user(text="hi"):
    return {"role": "user", "content": text}


def assistant(*calls, text=None):
    return {"role": "assistant", "content": text, "tool_calls": list(calls)}


STEPS_CALL = called("get_steps", {})


@pytest.mark.parametrize(
    ("messages", "field", "part"),
    [
        ([], "messages", "is empty"),
        ("hello", "messages", "not valid JSON"),
        ({"role": "user"}, "messages", "list of messages, not an object"),
        (["hi"], "messages[0]", "a message must be an object, not text"),
        ([{"role": "bot", "content": "x"}], "messages[0].role", "'bot' is not a role"),
        ([{"content": "x"}], "messages[0].role", "null is not a role"),
        ([user()], "messages[0]", "last message must be the assistant's"),
        ([assistant(text="x")], "messages[0]", "must follow a user message"),
        ([{"role": "system", "content": "x"}, assistant(text="x")], "messages[1]", "must follow a user message"),
        ([user(), {"role": "system", "content": "x"}], "messages[1]", "can only be the first"),
        ([user(), user()], "messages[1]", "join the two"),
        ([user(), assistant(text="x"), assistant(text="y")], "messages[2]", "must follow a user message"),
        ([user(" \n"), assistant(text="x")], "messages[0].content", "is empty"),
        ([user(None), assistant(text="x")], "messages[0].content", "must be text, not null"),
        ([user(5), assistant(text="x")], "messages[0].content", "must be text, not a number"),
        ([user([{"type": "image"}]), assistant(text="x")], "messages[0].content", "the model reads nothing else"),
        ([user(), assistant(text=" ")], "messages[1].content", "is empty"),
        ([user(), assistant()], "messages[1].content", "is empty"),
        ([user(), {"role": "tool", "content": "x"}], "messages[1]", "answers no call"),
        ([user(), assistant(STEPS_CALL), user()], "messages[2]", "call to 'get_steps' has no result"),
        ([user(), assistant(STEPS_CALL, STEPS_CALL), {"role": "tool", "content": "1"}, assistant(text="x")],
         "messages[3]", "has no result"),
        ([user(), assistant(STEPS_CALL), {"role": "tool", "content": "1"}, user()], "messages[3]", "let the assistant"),
        ([user(), assistant(STEPS_CALL), {"role": "tool", "content": "1"}, {"role": "tool", "content": "1"}],
         "messages[3]", "answers no call"),
        ([user(), assistant(STEPS_CALL), {"role": "tool", "name": "x", "content": "1"}], "messages[2].name", "'x' was"),
        ([user(), assistant(STEPS_CALL), {"role": "tool", "content": 5}], "messages[2].content", "text or an object"),
        ([{**user(), "tool_calls": [STEPS_CALL]}], "messages[0].tool_calls", "only the assistant calls"),
        ([user(), {"role": "assistant", "tool_calls": 5}], "messages[1].tool_calls", "must be a list of calls"),
        ([user(), assistant("get_steps")], "messages[1].tool_calls[0]", "a call must be"),
        ([user(), assistant({"arguments": {}})], "messages[1].tool_calls[0].name", "needs the name"),
        ([user(), assistant(called("get_steps", None))], "messages[1].tool_calls[0].arguments", "not null"),
        ([user(), assistant(called("get_steps", "[]"))], "messages[1].tool_calls[0].arguments", "not a list"),
        ([user(), assistant(called("get_steps", "{"))], "messages[1].tool_calls[0].arguments", "not valid JSON"),
        ([user(), assistant(called("get_steps", '{"a":1,"a":2}'))], "messages[1].tool_calls[0].arguments", "twice"),
        ([user(), assistant({"name": "get_steps", "args": {}})], "messages[1].tool_calls[0].args", "rename it"),
    ],
)  # fmt: skip
def test_conversations_that_make_no_sense(messages, field, part, tmp_path):
    with pytest.raises(DataError) as caught:
        read_examples(as_jsonl([{"messages": messages, "tools": TOOLS}], tmp_path))
    [problem] = caught.value.details
    assert problem.startswith(f"rows.jsonl:1: {field}: ")
    assert part in problem


@pytest.mark.parametrize(
    ("row", "field", "part"),
    [
        ({"user": "", "assistant": "x"}, "user", "is empty"),
        ({"user": 3, "assistant": "x"}, "user", "must be text, not a number"),
        ({"user": "a", "assistant": "  "}, "assistant", "is empty"),
        ({"user": "a", "assistant": 3}, "assistant", "a call or a list of calls"),
        ({"user": "a", "assistant": []}, "assistant", "not an empty list"),
        ({"user": "a", "assistant": {"tool_calls": []}}, "assistant.tool_calls", "not an empty list"),
        ({"user": "a", "assistant": '{"name": "f", "arguments": {"x": 1, "x": 2}}'}, "assistant", "stands twice"),
        ({"user": "a", "assistant": "<start_function_call>call:f{"}, "assistant", "not in the wire format"),
        ({"user": "a", "assistant": WIRE + "<end_of_turn>more"}, "assistant", "text after <end_of_turn>"),
        ({"user": "a", "assistant": "<start_of_turn>model\n" + WIRE}, "assistant", "<start_of_turn> outside its place"),
        ({"system": 3, "user": "a", "assistant": "x"}, "system", "must be text"),
        ({"user_query": "a", "function_call": "get_steps()"}, "function_call", "is not a call that can be read"),
        ({"user_query": "a", "function_call": "{get_steps}"}, "function_call", "not valid JSON"),
        ({"user_query": "a", "function_call": "[]"}, "function_call", "not an empty list"),
        ({"user_query": " ", "function_call": "get_steps"}, "user_query", "is empty"),
        ({"user": "a", "assistant": "x", "tools": "nope"}, "tools", "not valid JSON"),
        ({"user": "a", "assistant": "x", "tools": [{}]}, "tools[0].name", "needs a name"),
    ],
)
def test_flat_rows_that_make_no_sense(row, field, part, tmp_path):
    with pytest.raises(DataError) as caught:
        read_examples(as_jsonl([row], tmp_path), tools=TOOLS)
    [problem] = caught.value.details
    assert problem.startswith(f"rows.jsonl:1: {field}: ")
    assert part in problem


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


# Any JSON value as a row


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
words = st.sampled_from(["", "get_steps", "{}", "[]", '{"name":', WIRE, "<escape>", "\ud800", "hi", "user", "tool"])
cells = words | json_values | st.deferred(lambda: st.lists(messages | calls, max_size=3))
calls = st.fixed_dictionaries(
    {}, optional={"name": cells, "function": cells, "arguments": cells, "type": cells, "id": words}
)
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "system", "x", None])},
    optional={"content": cells, "tool_calls": cells, "function_call": cells, "name": cells, "tool_call_id": cells},
)
COLUMNS = ["messages", "tools", "system", "user", "assistant", "user_query", "function_call"]
rows_like = st.dictionaries(st.sampled_from(COLUMNS), cells, max_size=4)


@st.composite
def nearly_rows(draw):
    """A sound row in which one value, anywhere, is replaced or removed."""
    row = json.loads(json.dumps(draw(st.sampled_from([*FORMS.values(), LONG_ROW]))))
    place, key = row, draw(st.sampled_from(sorted(row)))
    while isinstance(place[key], (dict, list)) and place[key] and draw(st.integers(0, 3)):
        place = place[key]
        key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
    if draw(st.booleans()):
        place[key] = draw(cells)
    else:
        del place[key]
    return row


LONG_ROW = {
    "messages": [
        *conversation([called("log_workout", RUN), called("get_steps", {})]),
        {"role": "tool", "name": "get_steps", "content": {"steps": [1, {"a": "b"}]}},
        {"role": "tool", "name": "log_workout", "content": "done"},
        {"role": "assistant", "content": [{"type": "text", "text": "Done."}]},
    ],
    "tools": TOOLS,
}


@settings(
    max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
@given(row=json_values | rows_like | nearly_rows(), given_tools=st.booleans(), whole=st.booleans())
def test_any_json_value_is_a_row_or_a_data_error(row, given_tools, whole, tmp_path):
    path = as_json([row], tmp_path) if whole else as_jsonl([row], tmp_path)
    refused = None
    try:
        examples, source = read_examples(path, tools=TOOLS if given_tools else None)
        validate(examples)
    except DataError as error:
        refused = error
    if refused:
        assert "rows.json" in str(refused)
        return
    assert source.rows == 1
    text = functiongemma.render(examples[0].messages, examples[0].tools)
    assert text.endswith(("<end_of_turn>\n", "<start_function_response>"))
    for call in examples[0].gold:
        assert functiongemma.render_call(call) in text


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.binary(max_size=200), name=st.sampled_from(["a.jsonl", "a.json", "a.parquet"]))
def test_any_bytes_are_a_data_error(data, name, tmp_path):
    with pytest.raises(DataError):
        read_examples(write(tmp_path, data, name), tools=TOOLS)


# The Hub


COMMIT = "0123456789abcdef0123456789abcdef01234567"
JSON_TYPE = {"Content-Type": "application/json"}


class Hub(ThreadingHTTPServer):
    """The few addresses of the Hub that reading a dataset asks for: `user/open` has a file, the others refuse."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.files = {"train.jsonl": (GOOD + "\n").encode() * 3, "test.jsonl": (GOOD + "\n").encode()}
        self.asked: list[str] = []


class HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def reply(self, status, body=b"", headers=None):
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        path = self.path.split("?")[0]
        self.server.asked.append(path)
        refusals = {
            "login": (401, {"X-Error-Code": "GatedRepo"}),
            "terms": (403, {"X-Error-Code": "GatedRepo"}),
            "gone": (404, {"X-Error-Code": "RepoNotFound"}),
            "unknown": (401, {}),
            "broken": (500, {}),
        }
        name = next((name for name in refusals if f"datasets/user/{name}" in path), None)
        info_is_public = name == "terms" and "auth-check" not in path  # as for real gated datasets
        if name and not info_is_public:
            status, headers = refusals[name]
            return self.reply(status, headers=headers)
        if path.endswith("/revision/absent"):
            return self.reply(404, headers={"X-Error-Code": "RevisionNotFound"})
        if "/resolve/" in path:
            return self.file(path.rsplit("/", 1)[1])
        listing = [
            {"type": "file", "path": name, "size": len(data), "oid": COMMIT} for name, data in self.server.files.items()
        ]
        siblings = [{"rfilename": name} for name in self.server.files]
        information = {"id": "user/open", "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
        return self.reply(200, json.dumps(listing if "/tree/" in path else information).encode(), JSON_TYPE)

    do_HEAD = do_GET

    def file(self, name):
        data = self.server.files.get(name)
        if data is None:
            return self.reply(404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        etag = f'"{hashlib.sha1(data).hexdigest()}"'
        return self.reply(200, data, {"ETag": etag, "X-Repo-Commit": COMMIT})


@pytest.fixture(scope="module")
def hub():
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


READ = """
import json, sys
from fitcoach_tune.dataset import read_examples
from fitcoach_tune.errors import FitcoachTuneError
for asked in json.loads(sys.argv[1]):
    try:
        examples, source = read_examples(asked["source"], split=asked.get("split"), revision=asked.get("revision"))
        answer = {"rows": source.rows, "name": source.name, "revision": source.revision, "origin": examples[-1].origin}
    except FitcoachTuneError as error:
        answer = {"error": type(error).__name__, "text": str(error)}
    print("ANSWER", json.dumps(answer))
assert "torch" not in sys.modules, "reading rows must not need torch"
"""


def read_in_a_process(endpoint, home, asked):
    """Reads each of `asked` in one fresh process whose only Hub is `endpoint`, without a login."""
    keep = {key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()}
    ours = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", READ, json.dumps(asked)], env=keep | ours, capture_output=True, text=True, timeout=80
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line.removeprefix("ANSWER ")) for line in done.stdout.splitlines() if line.startswith("ANSWER ")]


def test_a_hub_dataset_at_its_resolved_commit(hub, tmp_path):
    asked = [
        {"source": "user/open"},
        {"source": "user/open@main", "split": "test"},
        {"source": "user/open", "revision": "main", "split": "dev"},
        {"source": "user/open@main", "revision": "v2"},
    ]
    train, test, no_split, two = read_in_a_process(f"http://127.0.0.1:{hub.server_port}", tmp_path, asked)
    assert train == {"rows": 3, "name": "user/open", "revision": COMMIT, "origin": "user/open[train][2]"}
    assert test == {"rows": 1, "name": "user/open", "revision": COMMIT, "origin": "user/open[test][0]"}
    assert no_split["error"] == "DataError"
    assert "choose a split: " in no_split["text"]
    assert "two revisions" in two["text"]
    assert any(path.endswith(f"/resolve/{COMMIT}/train.jsonl") for path in hub.asked)


def test_what_the_hub_refuses(hub, tmp_path):
    names = ["login", "terms", "gone", "unknown", "broken", "open@absent"]
    asked = [{"source": f"user/{name}"} for name in names]
    answers = read_in_a_process(f"http://127.0.0.1:{hub.server_port}", tmp_path, asked)
    assert {answer["error"] for answer in answers} == {AccessError.__name__}
    texts = dict(zip(names, [answer["text"] for answer in answers], strict=True))
    assert "gated and you are not logged in" in texts["login"]
    assert "hf auth login" in texts["login"]
    assert "https://huggingface.co/datasets/user/login" in texts["login"]
    assert "your account has not been let in" in texts["terms"]
    assert "accept the terms at https://huggingface.co/datasets/user/terms" in texts["terms"]
    for name in ("gone", "unknown"):
        assert "no such dataset on the Hub, or it is private" in texts[name]
        assert "hf auth login" in texts[name]
    assert "the Hub refused" in texts["broken"]
    assert "no revision 'absent'" in texts["open@absent"]


def test_no_network(tmp_path):
    with ThreadingHTTPServer(("127.0.0.1", 0), HubHandler) as server:
        port = server.server_port  # closed again below, so that nothing listens there
    [answer] = read_in_a_process(f"http://127.0.0.1:{port}", tmp_path, [{"source": "user/open"}])
    assert answer["error"] == AccessError.__name__
    assert "could not be reached" in answer["text"]
    assert "--dataset builtin:fitness needs no network" in answer["text"]


def test_example_is_what_it_says():
    example = Example([user("a"), {"role": "assistant", "content": "", "tool_calls": [STEPS_CALL]}], TOOLS, "here:1")
    assert example.gold == [Call("get_steps", {})]
    assert example.query == "a"
    validate([example])
    validate([])
