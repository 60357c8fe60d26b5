"""Many questions in, a line for each out: which line is answered how, when, and together with which others."""

from __future__ import annotations

import io
import json
import os
import threading
from pathlib import Path

import pytest

from fitcoach_tune.errors import ConfigError, DataError
from fitcoach_tune.inference import batch
from fitcoach_tune.inference.caller import Answer
from fitcoach_tune.inference.dialogue import Reply


class Echo:
    """Answers with the question in capitals, and remembers which questions came together."""

    def __init__(self):
        self.asked: list[list[str]] = []

    def __call__(self, queries):
        self.asked.append(list(queries))
        return [self.reply(query) for query in queries]

    def reply(self, query: str) -> Reply | ConfigError:
        if query == "too long":
            return ConfigError("the prompt has 9 tokens, and 5 fit", where="the query")
        return Reply(query, Answer((), query.upper(), query.upper()), None, None, None, [])


def answered(data: bytes, echo: Echo | None = None) -> tuple[list[dict], str]:
    """The lines that come out, and the error at the end."""
    out, error = io.StringIO(), ""
    try:
        batch.answer_lines(io.BytesIO(data), "some.jsonl", echo or Echo(), out)
    except DataError as bad:
        error = str(bad)
    assert out.getvalue().endswith("\n") or not out.getvalue()
    return [json.loads(line) for line in out.getvalue().removesuffix("\n").split("\n") if line], error


def test_a_line_for_each_line_in_their_order():
    lines, error = answered('{"query": "żółw 🐢", "id": 7}\n"a\\u2028b"\r\n{"query": "  c  "}'.encode())
    assert [(line["query"], line["text"]) for line in lines] == [
        ("żółw 🐢", "ŻÓŁW 🐢"), ("a\u2028b", "A\u2028B"), ("  c  ", "  C  "),
    ]  # fmt: skip
    assert lines[0].keys() == {"query", "calls", "text", "raw", "constrained"}
    assert error == ""


@pytest.mark.parametrize("data", [b"", b"\n", b" \n\t\n\n", b"\xef\xbb\xbf"])
def test_nothing_in_nothing_out(data):
    echo = Echo()
    assert answered(data, echo) == ([], "")
    assert echo.asked == []


BAD = [
    (b"nope", "not valid JSON at column 1: expecting value"),
    (b"{", "not valid JSON"),
    (b'{"q": 1}', 'the object has no "query"'),
    (b'{"query": 1}', "query: must be text, not a number"),
    (b'{"query": null}', "query: must be text, not null"),
    (b"[]", "must be an object with a query, or text, not a list"),
    (b"3", "not a number"),
    (b'""', "there is nothing to ask"),
    (b'{"query": " "}', "there is nothing to ask"),
    (b'"caf\xe9"', "byte 5 is not UTF-8"),
    (b'"\\ud800"', "half of a surrogate pair"),
    (b'{"query": "a", "query": "b"}', "stands twice"),
    (b'"too long"', "the prompt has 9 tokens, and 5 fit"),
    (b"[" * 100_000, "nested more than"),
]


@pytest.mark.parametrize(("line", "why"), BAD)
def test_a_bad_line_has_its_number_and_the_rest_is_answered(line, why):
    lines, error = answered(b'"first"\n\n' + line + b'\n"last"\n')
    assert [out.get("query") for out in lines] == ["first", None, "last"]
    assert lines[1].keys() == {"line", "error"}
    assert lines[1]["line"] == 3
    assert why in lines[1]["error"]
    assert "some.jsonl: 1 of 3 lines could not be asked; the others are answered" in error
    assert "line 3: " in error


def test_many_bad_lines_are_counted():
    lines, error = answered(b"x\n" * 12)
    assert len(lines) == 12
    assert "12 of 12 lines" in error
    assert "line 10: " in error
    assert "line 11: " not in error
    assert "and 2 more" in error


def test_a_byte_order_mark_belongs_to_the_file():
    lines, error = answered(b'\xef\xbb\xbf"a"\n\xef\xbb\xbf"b"\n')
    assert lines[0]["query"] == "a"
    assert "line 2" in error


def test_a_file_is_asked_in_full_batches(tmp_path):
    echo = Echo()
    path: Path = tmp_path / "many.jsonl"
    path.write_text("".join(f'"{i}"\n' for i in range(70)))
    with path.open("rb") as file:
        batch.answer_lines(file, "many.jsonl", echo, io.StringIO())
    assert [len(asked) for asked in echo.asked] == [32, 32, 6]
    assert [query for asked in echo.asked for query in asked] == [str(i) for i in range(70)]


def test_a_very_long_line(tmp_path):
    lines, error = answered(json.dumps({"query": "x" * 1_000_000}).encode() + b'\n"y"\n')
    assert ([len(line["query"]) for line in lines], error) == ([1_000_000, 1], "")


def test_who_waits_for_an_answer_gets_it():
    """A program that sends a line, and the next one only when it has read the answer."""
    questions, answers = os.pipe(), os.pipe()

    def serve():
        with open(questions[0], "rb") as source, open(answers[1], "w") as out:
            batch.answer_lines(source, "stdin", Echo(), out)

    server = threading.Thread(target=serve)
    server.start()
    with open(questions[1], "wb", buffering=0) as ask, open(answers[0]) as read:
        for sent in ([b'"one"\n'], [b'"tw', b'o"\n'], [b'"three"\n"four"\n']):
            for piece in sent:
                ask.write(piece)
            for text in b"".join(sent).decode().split():
                assert json.loads(read.readline())["query"] == json.loads(text)
        ask.write(b'"last"')
        ask.close()
        assert json.loads(read.readline())["query"] == "last"
        assert read.readline() == ""
    server.join()


def test_an_interrupt_keeps_what_was_answered():
    """Each batch is written before the next one is asked."""
    out = io.StringIO()
    asked = iter([Echo(), None])

    def ask(queries):
        echo = next(asked)
        if echo is None:
            raise KeyboardInterrupt
        return echo(queries)

    with pytest.raises(KeyboardInterrupt):
        batch.answer_lines(io.BytesIO(b'"a"\n' * 40), "x", ask, out)
    assert len(out.getvalue().splitlines()) == 32
