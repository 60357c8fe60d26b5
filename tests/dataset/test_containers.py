"""Rows from every kind of source, and one clear error for what cannot be read."""

from __future__ import annotations

import hashlib
import json
import random
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fitcoach_tune.dataset import Source, read_examples, read_tools, validate
from fitcoach_tune.errors import DataError

from .rows import (
    GOOD,
    TOOLS,
    as_json,
    as_jsonl,
    as_parquet,
    as_saved,
    as_saved_splits,
    write,
)


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


# The text of files


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
        (b"[]\n{}\n", "rows.json:2", "extra data"),
        (b'{\n"a": 1}\n{}\n', "rows.json:3", "extra data"),
        (b'{"rows": []}\n{}\n', "rows.json:2", "extra data"),
        (b'{\n"messages": []}', "rows.json", "top level must be a list of rows, not an object"),
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


def test_lines_in_a_json_file(tmp_path):
    for lines in (f"{GOOD}\n\n{GOOD}\n", f"\ufeff{GOOD}\r\n\r\n{GOOD}"):
        examples, source = read_examples(write(tmp_path, lines, "rows.json"))
        assert [example.origin for example in examples] == ["rows.json:1", "rows.json:3"]
        assert source.notes == ["blank lines skipped: 1"]
    assert [example.origin for example in read_examples(write(tmp_path, GOOD, "rows.json"))[0]] == ["rows.json:1"]
    with pytest.raises(DataError) as caught:
        read_examples(write(tmp_path, f"{GOOD}\n{{broken\n[]", "rows.json"))
    assert [line.partition(": ")[0] for line in caught.value.details] == ["rows.json:2", "rows.json:3"]


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
        ("damaged", "damaged/state.json: a saved dataset is damaged: not valid JSON"),
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
    with pytest.raises(DataError, match=r"no column is known \(found: 'id', 'answer'\)"):
        read_examples(as_parquet([{"id": "a", "answer": "b"}], tmp_path))
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


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.binary(max_size=200), name=st.sampled_from(["a.jsonl", "a.json", "a.parquet"]))
def test_any_bytes_are_a_data_error(data, name, tmp_path):
    with pytest.raises(DataError):
        read_examples(write(tmp_path, data, name), tools=TOOLS)
