"""Answers of an earlier evaluation that cannot be: passed over, so that the question is asked anew."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitcoach_tune.evaluate.answers import read_answers
from fitcoach_tune.evaluate.score import judge
from fitcoach_tune.functiongemma import Call
from fitcoach_tune.gold import gold_of
from tests.hostile.folders import TOOLS
from tests.hostile.material import NASTY, altered, fuzz, nearly

SOUND = {"key": "k", "raw": "words", "tokens": 3, "stopped": True, "seconds": 0.5, "busy": 0.25}
GOLD = gold_of([Call("get_steps", {})], TOOLS)


def kept(line: bytes) -> int:
    """How many answers there are between two sound ones; what is kept can be judged, added up and written."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "samples.jsonl")
        first, last = (json.dumps(SOUND | {"key": key}).encode() for key in ("first", "last"))
        path.write_bytes(first + b"\n" + line + b"\n" + last + b"\n")
        found = read_answers(path)
    assert {"first", "last"} <= found.keys()
    for answer in found.values():
        judge(answer.raw, GOLD, TOOLS)
        assert answer.tokens / (answer.busy or 1) + answer.seconds < 1e20
        json.dumps(answer.as_dict(), allow_nan=False, ensure_ascii=False).encode()
    return len(found) - 2


def test_a_sound_one_is_kept():
    assert kept(json.dumps(SOUND).encode()) == 1


@pytest.mark.parametrize("values", [
    {"key": None}, {"key": ["k"]}, {"key": "\ud800"}, {"raw": 5}, {"raw": "\udfff"}, {"tokens": True}, {"tokens": -1},
    {"tokens": 3.5}, {"tokens": 10**400}, {"stopped": 1}, {"seconds": float("nan")}, {"seconds": float("inf")},
    {"seconds": -0.5}, {"seconds": "0"}, {"busy": 1e308}, {"busy": 5e-324}, {"busy": None}, {"busy": False},
])  # fmt: skip
def test_values_that_cannot_be(values):
    assert kept(json.dumps(SOUND | values).encode()) == 0


@pytest.mark.parametrize("what", NASTY)
def test_nasty_lines(what):
    assert kept(NASTY[what]) == 0


@fuzz
@given(data=st.data())
def test_any_line(data):
    line = json.dumps(data.draw(nearly(SOUND))).encode()
    assert kept(data.draw(altered(line) | st.just(line)).replace(b"\n", b" ")) <= 1


@pytest.mark.parametrize("kind", ["pipe", "endless device", "folder", "nothing"])
def test_what_is_no_file(tmp_path, kind):
    path = tmp_path / "samples.jsonl"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "endless device":
        path.symlink_to("/dev/zero")
    assert read_answers(path) == {}
