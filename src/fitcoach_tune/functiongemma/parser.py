"""Raw model output back to calls, by recursive descent. The grammar of a call, with control tokens in angle brackets:

call   = "<start_function_call>call:" name object "<end_function_call>"
object = "{" [key ":" value {"," key ":" value}] "}"
value  = "<escape>" text "<escape>" | "true" | "false" | "None" | number | object | "[" [value {"," value}] "]"
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from fitcoach_tune.functiongemma.tokens import (
    ANY_CONTROL_TOKEN,
    BARE_KEY,
    END_FUNCTION_CALL,
    ESCAPE,
    FUNCTION_NAME,
    MAX_DEPTH,
    MAX_NUMBER_CHARS,
    START_FUNCTION_CALL,
    STOP_TOKENS,
    Call,
)

_STOP_TOKEN = re.compile("|".join(map(re.escape, STOP_TOKENS)))
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_WORD = re.compile(r"true|false|None")
_WORDS = {"true": True, "false": False, "None": None}


@dataclass(frozen=True)
class ModelOutput:
    """What the model wrote: its calls in order, and the text outside them, without control tokens, stripped."""

    calls: tuple[Call, ...]
    text: str


class ParseError(ValueError):
    """Model output that is not in the format.

    Attributes:
        reason: what is wrong.
        position: the offset of the offending character in the text given to `parse`.
        excerpt: the text around it.
    """

    def __init__(self, reason: str, position: int, excerpt: str):
        super().__init__(reason, position, excerpt)
        self.reason = reason
        self.position = position
        self.excerpt = excerpt

    def __str__(self) -> str:
        return f"{self.reason} at character {self.position}, near {self.excerpt!r}"


def _error(reason: str, text: str, at: int) -> ParseError:
    return ParseError(reason, at, text[max(0, at - 20) : at + 20])


def _skip(token: str, text: str, at: int, reason: str) -> int:
    """Step over `token`, or raise the error for `reason`."""
    if not text.startswith(token, at):
        raise _error(reason, text, at)
    return at + len(token)


def _string(text: str, at: int) -> tuple[str, int]:
    start = at + len(ESCAPE)
    end = ANY_CONTROL_TOKEN.search(text, start)
    if end is None or end.group() != ESCAPE:
        raise _error(f"a string is not closed by {ESCAPE}", text, at)
    return text[start : end.start()], end.end()


def _number(number: re.Match[str], text: str) -> int | float:
    literal = number.group()
    if len(literal) > MAX_NUMBER_CHARS:
        raise _error(f"a number is longer than {MAX_NUMBER_CHARS} characters", text, number.start())
    if number.lastindex is None:  # neither a fraction nor an exponent
        return int(literal)
    value = float(literal)
    if not math.isfinite(value):
        raise _error("a number is too large", text, number.start())
    return value


def _value(text: str, at: int, depth: int) -> tuple[Any, int]:
    if text.startswith(ESCAPE, at):
        return _string(text, at)
    if text.startswith(("{", "["), at):
        if depth > MAX_DEPTH:
            raise _error(f"values are nested deeper than {MAX_DEPTH} levels", text, at)
        return _object(text, at, depth) if text[at] == "{" else _list(text, at, depth)
    if number := _NUMBER.match(text, at):
        return _number(number, text), number.end()
    if word := _WORD.match(text, at):
        return _WORDS[word.group()], word.end()
    raise _error("a value was expected", text, at)


def _key(text: str, at: int) -> tuple[str, int]:
    found = BARE_KEY.match(text, at)
    if found is None:
        raise _error("a key was expected", text, at)
    key = found.group()
    if token := ANY_CONTROL_TOKEN.search(key):
        raise _error("a key has a control token in it", text, at + token.start())
    end = _skip(":", text, found.end(), "':' was expected after a key")
    if key != key.strip():
        raise _error("a key starts or ends with white space", text, at)
    return key, end


def _object(text: str, at: int, depth: int) -> tuple[dict[str, Any], int]:
    result: dict[str, Any] = {}
    at += 1
    while not text.startswith("}", at):
        start = at = _skip(",", text, at, "',' or '}' was expected") if result else at
        key, at = _key(text, at)
        if key in result:
            raise _error(f"the key {key[:40]!r} appears twice", text, start)
        result[key], at = _value(text, at, depth + 1)
    return result, at + 1


def _list(text: str, at: int, depth: int) -> tuple[list[Any], int]:
    result: list[Any] = []
    at += 1
    while not text.startswith("]", at):
        at = _skip(",", text, at, "',' or ']' was expected") if result else at
        value, at = _value(text, at, depth + 1)
        result.append(value)
    return result, at + 1


def _call(text: str, at: int) -> tuple[Call, int]:
    at = _skip("call:", text, at + len(START_FUNCTION_CALL), "'call:' was expected")
    name = FUNCTION_NAME.match(text, at)
    if name is None:
        raise _error("a function name was expected", text, at)
    _skip("{", text, name.end(), "'{' was expected after the function name")
    arguments, at = _object(text, name.end(), 1)
    return Call(name.group(), arguments), _skip(END_FUNCTION_CALL, text, at, f"{END_FUNCTION_CALL} was expected")


def _outside(text: str, start: int, end: int) -> str:
    stray = text.find(END_FUNCTION_CALL, start, end)
    if stray != -1:
        raise _error(f"{END_FUNCTION_CALL} ends no call", text, stray)
    return ANY_CONTROL_TOKEN.sub("", text[start:end])


def parse(text: str) -> ModelOutput:
    """Return the calls and the text of one raw model output, in time linear in its length.

    Args:
        text: everything that the model wrote after the generation prompt, with its control tokens spelt out. What
            follows the first stop token is ignored.

    Raises:
        ParseError: some call is not in the format. No call is returned then, as half an answer is worse than none.
    """
    stop = _STOP_TOKEN.search(text)
    if stop:
        text = text[: stop.start()]
    calls: list[Call] = []
    outside: list[str] = []
    at = 0
    while (start := text.find(START_FUNCTION_CALL, at)) != -1:
        outside.append(_outside(text, at, start))
        call, at = _call(text, start)
        calls.append(call)
    outside.append(_outside(text, at, len(text)))
    return ModelOutput(tuple(calls), "".join(outside).strip())
