"""Answers that are kept: found again by what they depend on, whatever happened to the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fitcoach_tune.errors import OutputError
from fitcoach_tune.evaluate.answers import Answer, Journal, key_of, read_answers
from tests.conftest import STEPS

ONE = Answer("<start_function_call>call:get_steps{}<end_function_call>", 7, True, 0.5, 0.25)
LINE = {"key": "k1", **ONE.as_dict()}


def test_a_key_depends_on_everything_that_an_answer_does() -> None:
    given = ("model", [2, 105, 7], [STEPS], 128, False, 64)
    other = [("other", *given[1:]), ("model", [2, 105, 8], *given[2:]), (*given[:3], 64, *given[4:])]
    other += [(*given[:5], 1), (*given[:4], True, 64)]
    keys = [key_of(*arguments) for arguments in (given, *other)]
    assert len(set(keys)) == len(keys)
    assert key_of("model", [2, 105, 7], [STEPS], 128, False, 64) == keys[0]
    # What the prompt does not show of a tool matters to a constrained answer alone.
    assert key_of("model", [2, 105, 7], [], 128, False, 64) == keys[0]
    assert key_of("model", [2, 105, 7], [], 128, True, 64) != keys[-1]


def test_what_was_written_is_read(tmp_path) -> None:
    path = tmp_path / "new/folder/samples.jsonl"
    with Journal(path, "") as journal:
        journal.write(LINE | {"query": "Schritte?"})
        assert read_answers(path) == {"k1": ONE}  # at once, and not when the file is closed
    with Journal(path, "") as journal:
        journal.write(LINE | {"key": "k2", "raw": "später \u2028 🙂"})
    assert read_answers(path) == {"k1": ONE, "k2": Answer("später \u2028 🙂", 7, True, 0.5, 0.25)}


def test_no_file(tmp_path) -> None:
    assert read_answers(tmp_path / "samples.jsonl") == {}


@pytest.mark.parametrize("size", range(1, 40, 7))
def test_half_a_line_is_passed_over_and_not_joined_with_the_next(tmp_path, size) -> None:
    path = tmp_path / "samples.jsonl"
    whole = json.dumps(LINE) + "\n"
    path.write_text(whole + whole.replace("k1", "k2")[:size])
    assert read_answers(path) == {"k1": ONE}
    with Journal(path, "") as journal:
        journal.write(LINE | {"key": "k3"})
    assert set(read_answers(path)) == {"k1", "k3"}


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "null",
        "{}",
        '{"key": 1}',
        json.dumps({**LINE, "raw": None}),
        json.dumps({name: value for name, value in LINE.items() if name != "busy"}),
        json.dumps({**LINE, "seconds": "soon"}),
        "[" * 100_000,
        "\udc80".encode("utf-8", "surrogateescape").decode("latin-1"),
    ],
)
def test_lines_that_are_no_answers(tmp_path, line) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text(line + "\n" + json.dumps(LINE) + "\n")
    assert read_answers(path) == {"k1": ONE}


def test_bytes_that_are_no_text(tmp_path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_bytes(b"\xff\xfe\x00\n" + json.dumps(LINE).encode() + b"\n")
    assert read_answers(path) == {"k1": ONE}


def test_a_full_disk() -> None:
    with (
        pytest.raises(OutputError, match="/dev/full: cannot write: No space left") as error,
        Journal(Path("/dev/full"), "choose another --report") as journal,
    ):
        journal.write(LINE)
    assert "--report" in str(error.value)


def test_a_place_that_cannot_be_written(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"), Journal(tmp_path / "file/samples.jsonl", ""):
        pass
