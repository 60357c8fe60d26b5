"""Rows of the Berkeley Function-Calling Leaderboard (Patil et al. 2025, ICML), as `bfcl-eval` publishes them.

A row has `question` (one conversation in a list), `function` (what is declared), and `ground_truth` or
`possible_answer`: for each wanted call the values that each argument may have, where "" means that it may be left out.
The published files keep the answers by id in `possible_answer/` beside them. Read are the categories that are scored by
comparing calls: simple, multiple, parallel, irrelevance, and their live counterparts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

from fitcoach_tune import functiongemma
from fitcoach_tune.dataset.messages import read_messages
from fitcoach_tune.dataset.toolsets import ToolCache
from fitcoach_tune.gold import Gold, GoldCall, declared
from fitcoach_tune.strict_json import Flaw, kind, parse_cell, parse_json, quote
from fitcoach_tune.tools import normalise_tools

FORM = ("question",)
COLUMNS = ("id", "question", "function", "ground_truth", "possible_answer")
ANSWERS_FOLDER = "possible_answer"
NO_CALL = "None of the functions can do that."
"""What the assistant says where no call is wanted, as the benchmark gives no words for it."""

_IRRELEVANCE = "irrelevance"
_TYPES = {"dict": "object", "float": "number", "tuple": "array"}
_MOST_VALUES = 500
_QUESTION = f'"{FORM[0]}"'.encode()


class LeftOut(Flaw):
    """A row of the benchmark that cannot be used as it is, which the user of a published file cannot correct."""


# Answers that stand in a file of their own ----------------------------------------------------------------------------


def with_answers(
    items: Iterator[tuple[str, object]], name: str, answers: Iterator[tuple[str, object]] | None
) -> Iterator[tuple[str, object]]:
    """Adds `ground_truth` to those rows of the benchmark that have no answer themselves.

    Args:
        items: (origin, row) of a file of any form, as `containers.Items`; other rows pass as they are.
        name: of the file; one with "irrelevance" in it wants no calls.
        answers: (origin, `{"id": …, "ground_truth": …}`) of the file with the answers, if there is one; read on need.
    """
    by_id: dict[str, object] = {}
    for origin, row in items:
        if isinstance(row, bytes) and (_QUESTION in row or b"\\u" in row):
            row = _parsed(row)
        if isinstance(row, dict) and FORM[0] in row and _given(row) is None:
            for place, answer in answers or ():
                answer = _parsed(answer)
                if isinstance(answer, dict) and isinstance(answer.get("id"), str):
                    by_id[answer["id"]] = _given(answer)
                else:
                    yield place, answer if isinstance(answer, Flaw) else Flaw("id", "the answer does not say whose")
            answers = None
            found = by_id.get(row["id"]) if isinstance(row.get("id"), str) else None
            row = {**row, "ground_truth": [] if found is None and _IRRELEVANCE in name.lower() else found}
        yield origin, row


def _parsed(row: object) -> object:
    try:
        return parse_json(row) if isinstance(row, bytes) else row
    except Flaw as flaw:
        return flaw


def _given(row: dict) -> object:
    return row["ground_truth"] if row.get("ground_truth") is not None else row.get("possible_answer")


# Rows -----------------------------------------------------------------------------------------------------------------


def read(row: dict, functions: object, cache: ToolCache) -> tuple[list[dict], list[dict], Gold]:
    """The messages, the tools and the gold of a row; the assistant gives the first of the accepted values.

    Args:
        row: with the other columns, each a value or its JSON text.
        functions: its `function`.
        cache: of tools.

    Raises:
        Flaw: it is not such a row, it has no answer, or its category cannot be scored by comparing calls.
        LeftOut: its functions, conversation or answer are broken.
    """
    question = _question(row)
    if functions is None:
        raise Flaw("function", "is missing; categories whose functions stand elsewhere are not read")
    answers = _answers(row)
    try:
        tools = _tools(functions, cache)
        gold = Gold((tuple(_gold_call(answer, tools) for answer in answers),), "bfcl")
        messages = read_messages([*_opened(question), _answer_of(gold)])
    except Flaw as flaw:
        raise LeftOut(flaw.field, flaw.what) from None
    return messages, tools, gold


def _question(row: dict) -> list:
    turns = parse_cell(row["question"], "question")
    if not isinstance(turns, list) or not all(isinstance(turn, list) and turn for turn in turns):
        raise Flaw("question", 'must be a list with one conversation, [[{"role": …, "content": …}]]')
    if len(turns) != 1:
        raise Flaw("question", f"has {len(turns)} turns; rows with several turns of questions are not read")
    return turns[0]


def _answers(row: dict) -> list[tuple[str, dict]]:
    """(function, accepted values by argument) of each wanted call."""
    name = row["id"] if isinstance(row.get("id"), str) else ""
    if "relevance" in name and _IRRELEVANCE not in name:
        raise Flaw("id", f"{quote(name)} wants some call, whichever: there is nothing to compare calls with")
    if name.removeprefix("simple_").startswith("java"):
        raise Flaw("id", f"{quote(name)} wants arguments in Java or JavaScript source, which are not read")
    field = "possible_answer" if row.get("ground_truth") is None else "ground_truth"
    given = parse_cell(_given(row), field)
    if given is None and _IRRELEVANCE in name:
        return []
    if given is None:
        hint = f"give it here, or in {ANSWERS_FOLDER}/ beside the file, in a file of the same name"
        raise Flaw("ground_truth", f"there is no answer for {quote(name) if name else 'the row'}; {hint}")
    if not isinstance(given, list):
        raise Flaw(field, f"must be a list of calls, not {kind(given)}")
    return [_wanted(call, f"{field}[{index}]") for index, call in enumerate(given)]


def _wanted(call: object, spot: str) -> tuple[str, dict]:
    if not isinstance(call, dict) or len(call) != 1 or not isinstance(next(iter(call.values())), dict):
        raise Flaw(spot, 'must be {"function": {"argument": [accepted values]}}')
    [(name, arguments)] = call.items()
    for argument, values in arguments.items():
        if not isinstance(values, list):
            raise Flaw(f"{spot}.{name}.{argument}", f"must be a list of accepted values, not {kind(values)}")
    return name, arguments


def _opened(question: list) -> list:
    """The conversation with the trigger before the declarations: after the system text, if there is one."""
    first, rest = question[0], question[1:]
    if isinstance(first, dict) and first.get("role") == "system" and isinstance(first.get("content"), str):
        return [{"role": "developer", "content": f"{first['content'].rstrip()}\n{functiongemma.TRIGGER}"}, *rest]
    return [{"role": "developer", "content": functiongemma.TRIGGER}, *question]


def _answer_of(gold: Gold) -> dict:
    if not gold.wants_call:
        return {"role": "assistant", "content": NO_CALL}
    return {"role": "assistant", "tool_calls": [{"name": c.name, "arguments": c.arguments} for c in gold.calls]}


# Functions ------------------------------------------------------------------------------------------------------------


def _tools(cell: object, cache: ToolCache) -> list[dict]:
    tools = normalise_tools(parse_cell(cell, "function"))
    for tool in tools:
        if "parameters" in tool["function"]:
            tool["function"]["parameters"] = _json_schema(tool["function"]["parameters"])
    return cache.get(tools)


def _json_schema(schema: object) -> object:
    """A copy of a schema with JSON Schema's names for types; `any` is what has no type there."""
    if not isinstance(schema, dict):
        return schema
    copy = dict(schema)
    if isinstance(properties := parse_cell(schema.get("properties"), "properties"), dict):
        copy["properties"] = {name: _json_schema(part) for name, part in properties.items()}
    if "items" in copy:
        copy["items"] = _json_schema(copy["items"])
    if isinstance(named := copy.get("type"), str):
        copy["type"] = _TYPES.get(named, named)
        if named == "any":
            del copy["type"]
    return copy


# Accepted values ------------------------------------------------------------------------------------------------------


def _gold_call(wanted: tuple[str, dict], tools: list[dict]) -> GoldCall:
    """What may be left out may also be given as empty text or an empty list: so does the leaderboard's checker have it.

    A required argument may not be left out, and one that is not declared may not be given, whatever their values say.
    """
    name, accepted = wanted
    properties, required = declared(tools).get(name, ({}, ()))
    arguments, optional, unsaid = {}, set(), set()
    for argument, values in accepted.items():
        schema = properties.get(argument)
        may_go = "" in values and argument not in required
        concrete = [one for value in values if value != "" for one in _concrete(value, argument)]
        if "" in values and isinstance(schema, dict) and schema.get("type") in ("string", "array"):
            concrete.append("" if schema["type"] == "string" else [])
        if may_go and (schema is None or not concrete):
            continue
        if not concrete:
            raise Flaw(f"ground_truth.{argument}", "no value is accepted, and it may not be left out")
        arguments[argument] = tuple(concrete)
        if may_go:
            optional.add(argument)
            if values[0] == "":
                unsaid.add(argument)
    return GoldCall(name, arguments, frozenset(optional), frozenset(unsaid))


def _concrete(value: object, argument: str) -> list:
    """The values that one accepted value stands for: an object in it has a list of values for each key."""
    if isinstance(value, dict):
        return _objects(value, argument)
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        choices = [_objects(item, argument) if isinstance(item, dict) else [item] for item in value]
        return [list(items) for items in _combined(choices, argument)]
    return [value]


def _objects(value: dict, argument: str) -> list[dict]:
    choices = [inner if isinstance(inner, list) else [inner] for inner in value.values()]
    found = (zip(value, inner, strict=True) for inner in _combined(choices, argument))
    return [{key: inner for key, inner in pairs if inner != ""} for pairs in found]


def _combined(choices: list[list], argument: str) -> Iterator[tuple]:
    if math.prod(map(len, choices)) > _MOST_VALUES:
        raise Flaw(f"ground_truth.{argument}", f"stands for more than {_MOST_VALUES} values")
    return product(*choices)
