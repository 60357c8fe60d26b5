"""Calls and results as people read them, and whether what a model says of a result is true to it."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

from fitcoach_tune.functiongemma import Call
from fitcoach_tune.strict_json import quote, shorten

if TYPE_CHECKING:
    from fitcoach_tune.inference.execute import Result

Sentences = Mapping[str, Callable[[Any], str]]
"""By a function's name: how its result is said."""

_LONGEST = 2000
# Digits with what separates thousands or decimals between them, in any country.
_NUMBER = re.compile("\\d+(?:[.,'’\u00a0\u202f]\\d+)*")
_SEPARATOR = re.compile("[.,'’\u00a0\u202f]")
# What a function says that has nothing to say.
_ACKNOWLEDGED = {"", "ok", "okay", "done", "success", "successful"}
_SHORTEST_WORD = 4
# A number, and to how many places it is given.
Number = tuple[Decimal, int]


def describe_call(call: Call) -> str:
    """A call as people write it: `get_history(metric="steps", days=7)`."""
    arguments = ", ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in call.arguments.items())
    return f"{call.name}({arguments})"


def undeclared(name: str, declared: Iterable[str]) -> str:
    """What to say of a call to a function that nobody declared."""
    near = difflib.get_close_matches(name[:200], list(declared), n=1)
    return f"there is no function {quote(name)}" + (f"; did you mean {near[0]}?" if near else "")


def plain_sentence(result: Result, sentences: Sentences) -> str:
    """A result in words that add nothing to it: `get_steps: 8,421`."""
    name = describe_call(result.call) if result.call.arguments else result.call.name
    if result.error is not None:
        return f"{name} failed: {result.error}"
    if result.call.name in sentences:
        return sentences[result.call.name](result.value)
    return f"{name}: {shorten(_plain(result.value), _LONGEST)}"


def _plain(value: Any) -> str:
    if value in (None, "", [], {}):
        return "done" if value is None else "nothing"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list) and not any(isinstance(inner, list | dict) for inner in value):
        return ", ".join(map(_inner, value))
    if isinstance(value, dict) and not any(isinstance(inner, list | dict) for inner in value.values()):
        return ", ".join(f"{key} {_inner(inner)}" for key, inner in value.items())
    return _inner(value)


def _inner(value: Any) -> str:
    """A value as a part of others, where a number may as well be a year or an id."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def untrue(text: str, query: str, results: Sequence[Result], last: Sequence[Result]) -> str | None:
    """Why a model's sentence cannot stand for the results; None if it can.

    It can if it says something of each of the `last` ones, and has no number that is neither in a result nor in a
    call's arguments nor in the question. A number may be rounded and written as in any country.

    Args:
        results: of all calls that were run for the question.
        last: those of them that the model spoke after.
    """
    said = list(_numbers_in(text))
    known = [number for number, _ in _numbers_in(query)]
    for result in results:
        for leaf in _leaves([result.call.arguments, result.value, result.error]):
            known += [number for number, _ in _numbers_of(leaf)]
    for readings in _by_place(text):
        if not any(_is(number, reading) for number in known for reading in readings):
            return "it has a number that no result has"
    words = _words(text)
    for result in last:
        leaves = list(_leaves(result.value if result.error is None else result.error))
        if all(map(_only_acknowledges, leaves)):
            leaves = list(_leaves(result.call.arguments))  # then the answer can only be about what was done
        if not any(_is_traced(leaf, text, words, said) for leaf in leaves):
            return f"it says nothing of what {result.call.name} gave"
    return None


def _leaves(value: Any) -> Iterator[Any]:
    """The values in containers, without nulls."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _leaves(inner)
    elif value is not None:
        yield value


def _only_acknowledges(leaf: Any) -> bool:
    return leaf is True or (isinstance(leaf, str) and leaf.strip().casefold() in _ACKNOWLEDGED)


def _is_traced(leaf: Any, text: str, words: set[str], said: list[Number]) -> bool:
    if isinstance(leaf, str):
        whole, text = leaf.strip().casefold(), text.casefold()
        # Not every script has spaces between words; where it has, "off" is no part of "coffee".
        found = re.search(rf"\b{re.escape(whole)}\b", text) if whole.isascii() else whole in text
        if whole and found:
            return True
        return any(len(word) >= _SHORTEST_WORD for word in words & _words(leaf))
    return any(_is(number, reading) for number, _ in _numbers_of(leaf) for reading in said)


def _words(text: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]+", text.casefold()))


def _is(number: Decimal, reading: Number) -> bool:
    value, places = reading
    return abs(abs(number) - value) <= Decimal(5).scaleb(-places - 1)


def _numbers_of(leaf: Any) -> Iterator[Number]:
    if isinstance(leaf, str):
        yield from _numbers_in(leaf)
    elif not isinstance(leaf, bool):
        yield Decimal(str(leaf)), 0


def _numbers_in(text: str) -> Iterator[Number]:
    for readings in _by_place(text):
        yield from readings


def _by_place(text: str) -> Iterator[list[Number]]:
    """For each number in a text what it may mean: `8,421` is 8421, or between 8 and 9."""
    for found in _NUMBER.finditer(text):
        parts = _SEPARATOR.split(found.group())
        readings = [("".join(parts), 0)]
        if len(parts) > 1:
            readings.append((f"{''.join(parts[:-1])}.{parts[-1]}", len(parts[-1])))
        try:
            yield [(Decimal(digits), places) for digits, places in readings]
        except InvalidOperation:  # signs that are digits to `\d` alone
            yield []
