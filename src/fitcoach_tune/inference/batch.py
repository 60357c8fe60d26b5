"""Many questions as JSON lines in, an answer as a JSON line out for each, in order, as soon as it is there."""

from __future__ import annotations

import codecs
import json
import os
import select
from collections.abc import Callable, Iterator, Sequence
from io import UnsupportedOperation
from typing import Any, BinaryIO, TextIO

from fitcoach_tune.errors import ConfigError, DataError
from fitcoach_tune.inference.caller import check_query
from fitcoach_tune.inference.dialogue import Reply
from fitcoach_tune.strict_json import Flaw, kind, parse_json

AT_ONCE = 32
"""Most questions that are asked together."""
_CHUNK = 1 << 16
_LONGEST_LINE = 1 << 22
_SHOWN = 10

Ask = Callable[[Sequence[str]], list[Reply | ConfigError]]


def answer_lines(source: BinaryIO, name: str, ask: Ask, out: TextIO) -> None:
    """Answer each line of `source`, which is a JSON object with a `query`, or a JSON string.

    A line that cannot be asked gets `{"line": number, "error": why}` in its answer's place; an empty one gets nothing.

    Args:
        name: of the source, for messages.
        ask: answers several questions together. Not called if there are none.
        out: is flushed after each batch.

    Raises:
        DataError: some lines could not be asked; the others are answered.
    """
    shown: list[str] = []
    number = count = bad = 0
    for batch in batches(source):
        if number == 0:
            batch[0] = batch[0].removeprefix(codecs.BOM_UTF8)
        read = [(i, _read(line)) for i, line in enumerate(batch, start=number + 1) if line.strip()]
        number += len(batch)
        count += len(read)
        queries = [query for _, query in read if isinstance(query, str)]
        replies = iter(ask(queries) if queries else ())
        for line, query in read:
            reply = next(replies) if isinstance(query, str) else query
            if not isinstance(reply, Reply):
                bad += 1
                shown += [f"line {line}: {_why(reply)}"] if bad <= _SHOWN else []
                answer: dict[str, Any] = {"line": line, "error": _why(reply)}
            else:
                answer = reply.as_dict()
            out.write(json.dumps(answer, ensure_ascii=False) + "\n")
        out.flush()
    if bad:
        shown += [f"and {bad - _SHOWN} more"] if bad > _SHOWN else []
        what = f"{bad} of {count} lines could not be asked; the others are answered"
        raise DataError(what, where=name, details=shown, hint='a line is {"query": "…"}')


def _why(error: Flaw | ConfigError) -> str:
    return error.what if isinstance(error, ConfigError) else str(error)


def _read(line: bytes) -> str | Flaw | ConfigError:
    """The query of a line, or what is wrong with it."""
    try:
        if len(line) > _LONGEST_LINE:
            raise Flaw("", f"a line has at most {_LONGEST_LINE:,} bytes")
        value = parse_json(line.strip())
        query = value.get("query") if isinstance(value, dict) else value
        if isinstance(value, dict) and "query" not in value:
            raise Flaw("", 'the object has no "query"')
        if not isinstance(query, str):
            field, wanted = ("query", "text") if isinstance(value, dict) else ("", "an object with a query, or text")
            raise Flaw(field, f"must be {wanted}, not {kind(query)}")
        check_query(query)
        return query
    except (Flaw, ConfigError) as error:
        return error


def batches(source: BinaryIO) -> Iterator[list[bytes]]:
    """The lines of a source, up to `AT_ONCE` together: as many as are there, so that who sends a line and waits for
    its answer gets it. Of a line that is too long there is little more than may be in it.
    """
    lines: list[bytes] = []
    begun: list[bytes] = []  # of a line that is not there as a whole
    size = 0  # of it
    read, is_ready = _reader(source)
    while chunk := read():
        end, *others = chunk.split(b"\n")
        if size <= _LONGEST_LINE:
            begun.append(end)
            size += len(end)
        if others:
            lines += [b"".join(begun), *others[:-1]]
            begun, size = [others[-1]], len(others[-1])
        while len(lines) >= AT_ONCE or (lines and not is_ready()):
            yield lines[:AT_ONCE]
            lines = lines[AT_ONCE:]
    lines += [last] if (last := b"".join(begun)) else []
    if lines:
        yield lines


def _reader(source: BinaryIO) -> tuple[Callable[[], bytes], Callable[[], bool]]:
    """How to read what is there, waiting until something is; and whether there is more (or an end) without waiting."""
    try:
        number = source.fileno()
    except (AttributeError, UnsupportedOperation):
        return lambda: source.read(_CHUNK), lambda: True
    return lambda: os.read(number, _CHUNK), lambda: bool(select.select([number], [], [], 0)[0])
