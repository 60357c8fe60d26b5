"""The forms of rows, each turned into messages: conversations, the flat form, queries with their calls, and rows of the
Berkeley leaderboard; and the further answers that a row of any form may accept.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from fitcoach_tune import functiongemma
from fitcoach_tune.dataset import bfcl
from fitcoach_tune.dataset.columnar import clean, is_phantom
from fitcoach_tune.dataset.messages import filled, read_call, read_messages, read_text
from fitcoach_tune.dataset.toolsets import ToolCache
from fitcoach_tune.functiongemma import Call
from fitcoach_tune.gold import Gold, gold_of
from fitcoach_tune.strict_json import Flaw, kind, parse_cell, parse_json, quote, shorten

ACCEPTABLE = "acceptable_answers"
_PLAIN_COLUMNS = ("messages", "tools", "system", "user", "assistant", "user_query", "function_call")
COLUMNS = (*_PLAIN_COLUMNS, ACCEPTABLE, *bfcl.COLUMNS)
FORMS_TEXT = "'messages', or 'user' and 'assistant', or 'user_query' and 'function_call', or 'question' and 'function'"

_NAME = re.compile(r"[A-Za-z_][\w.-]*")
_STOP = re.compile("|".join(map(re.escape, functiongemma.STOP_TOKENS)))
_WIRE_TOKENS = (functiongemma.START_FUNCTION_CALL, functiongemma.END_FUNCTION_CALL, functiongemma.ESCAPE)


@dataclass(frozen=True)
class Row:
    """What a row says.

    Attributes:
        messages, tools, acceptable: as in `Example`.
        is_published: it is a benchmark's, which its user cannot correct.
    """

    messages: list[dict]
    tools: list[dict]
    acceptable: Gold | None = None
    is_published: bool = False


def read_row(row: object, shared: list[dict] | None, cache: ToolCache, *, columnar: bool, counts: Counter[str]) -> Row:
    """What one row says.

    Args:
        row: of any form, each cell a value or its JSON text; or the whole as JSON.
        shared: the tools of a row that has none.
        cache: of tools.
        columnar: the row comes from a columnar format, so nulls in its values may be nobody's.
        counts: of what was repaired; added to.

    Raises:
        Flaw: it cannot be read, or `row` is a flaw already.
    """
    if isinstance(row, Flaw):
        raise row
    if isinstance(row, bytes):
        row = parse_json(row)
    if not isinstance(row, dict):
        raise Flaw("", f"a row must be an object, not {kind(row)}")
    form = _form_of(row, columnar)
    if form is None:
        found = shorten(", ".join(map(quote, row)), 200) or "nothing"
        raise Flaw("", f"a row needs {FORMS_TEXT}; it has {found}")
    if form == bfcl.FORM:
        return _published(row, cache, columnar=columnar, counts=counts)
    tools = shared if _is_absent(row.get("tools"), columnar) else cache.get(row["tools"], columnar=columnar)
    if tools is None:
        raise Flaw("tools", "the row has none, and none were given with --tools")
    row = _cleaned(row, tools, counts) if columnar else row
    messages, others = _FORMS[form](row), _acceptable(row)
    if not others:
        return Row(messages, tools)
    own = [Call(**call["function"]) for call in messages[-1].get("tool_calls", [])]
    return Row(messages, tools, gold_of(own, tools, others))


def _published(row: dict, cache: ToolCache, *, columnar: bool, counts: Counter[str]) -> Row:
    functions = row.get("function")
    if columnar:
        functions, row = clean(functions, counts), _cleaned(row, (), counts)
    messages, tools, gold = bfcl.read(row, functions, cache)
    more = gold_of((), tools, _acceptable(row)).answers[1:]
    return Row(messages, tools, replace(gold, answers=(*gold.answers, *more)), is_published=True)


def _cleaned(row: dict, tools: Iterable[dict], counts: Counter[str]) -> dict:
    schemas = {tool["function"]["name"]: tool["function"].get("parameters") for tool in tools}
    return clean({key: row.get(key) for key in COLUMNS if key != "tools"}, counts, schemas)


def _form_of(row: dict, columnar: bool) -> tuple[str, ...] | None:
    """The columns of the first form that the row has all of."""
    for form in (*_FORMS, bfcl.FORM):
        if all(not _is_absent(row.get(key), columnar) for key in form):
            return form
    return None


def _is_absent(cell: object, columnar: bool) -> bool:
    return is_phantom(cell) if columnar else cell is None


def _from_messages(row: dict) -> list[dict]:
    return read_messages(row["messages"])


def _from_flat(row: dict) -> list[dict]:
    system = "" if row.get("system") is None else read_text(row["system"], "system")
    opening = [{"role": "developer", "content": system}] if system.strip() else []
    user = {"role": "user", "content": filled(read_text(row["user"], "user"), "user")}
    cell = row["assistant"]
    if isinstance(cell, str) and not _says_calls(cell):
        return [*opening, user, {"role": "assistant", "content": filled(cell, "assistant")}]
    return [*opening, user, _answer(cell, "assistant")]


def _from_query(row: dict) -> list[dict]:
    return [
        {"role": "developer", "content": functiongemma.TRIGGER},
        {"role": "user", "content": filled(read_text(row["user_query"], "user_query"), "user_query")},
        _answer(row["function_call"], "function_call"),
    ]


_FORMS = {
    ("messages",): _from_messages,
    ("user", "assistant"): _from_flat,
    ("user_query", "function_call"): _from_query,
}


# Answers that are calls -----------------------------------------------------------------------------------------------


def _says_calls(text: str) -> bool:
    """Whether an answer is plainly calls, in the wire format or in JSON, rather than text."""
    if functiongemma.START_FUNCTION_CALL in text:
        return True
    try:
        return text.lstrip().startswith(("{", "[")) and _is_call(parse_json(text))
    except Flaw as flaw:
        return flaw.line is None  # JSON, but flawed: reading it as calls says where


def _is_call(value: object) -> bool:
    """Whether a JSON value that might also be an answer in text can only be a call, or several."""
    if isinstance(value, list):
        return bool(value) and all(map(_is_call, value))
    if not isinstance(value, dict):
        return False
    if isinstance(value.get("tool_calls"), list):
        return _is_call(value["tool_calls"])
    function = value.get("function", value)
    return isinstance(function, dict) and "name" in function and ("arguments" in function or function is not value)


def _answer(cell: object, spot: str) -> dict:
    """Calls as a value, as JSON, in the wire format, or as the bare name of a function without arguments."""
    if isinstance(cell, str):
        if functiongemma.START_FUNCTION_CALL in cell:
            return _wire_answer(cell, spot)
        if cell.lstrip().startswith(("{", "[")):
            cell = parse_cell(cell, spot)
        elif _NAME.fullmatch(cell.strip()):
            cell = {"name": cell.strip()}
        else:
            hint = '{"name": …, "arguments": {…}}, the name alone, or the wire format'
            raise Flaw(spot, f"{quote(cell)} is not a call that can be read; write {hint}")
    text = ""
    if isinstance(cell, dict) and "tool_calls" in cell:
        text = "" if cell.get("content") is None else read_text(cell["content"], f"{spot}.content")
        cell, spot = cell["tool_calls"], f"{spot}.tool_calls"
    if isinstance(cell, dict):
        calls = [read_call(cell, spot)]
    elif isinstance(cell, list) and cell:
        calls = [read_call(call, f"{spot}[{index}]") for index, call in enumerate(cell)]
    else:
        raise Flaw(spot, "must be a call or a list of calls" + (", not an empty list" if cell == [] else ""))
    return {"role": "assistant", "content": text, "tool_calls": calls}


def _wire_answer(text: str, spot: str) -> dict:
    """An answer as the model writes it. What `parse` drops from model output is an error in data."""
    body, *rest = _STOP.split(text)
    if "".join(rest).strip():
        stop = _STOP.search(text).group()
        raise Flaw(spot, f"there is text after {stop}, where the model stops; remove it")
    for token in functiongemma.CONTROL_TOKENS:
        if token in body and token not in _WIRE_TOKENS:
            raise Flaw(spot, f"contains the control token {token} outside its place; remove it")
    try:
        output = functiongemma.parse(body)
    except functiongemma.ParseError as error:
        raise Flaw(spot, f"is not in the wire format: {error}") from None
    calls = [read_call({"name": call.name, "arguments": call.arguments}, spot) for call in output.calls]
    return {"role": "assistant", "content": output.text, "tool_calls": calls}


# Further answers ------------------------------------------------------------------------------------------------------


def _acceptable(row: dict) -> list[list[Call]]:
    """The calls of each further answer of a row; none of one in words."""
    cell = parse_cell(row.get(ACCEPTABLE), ACCEPTABLE)
    if cell is not None and not isinstance(cell, list):
        raise Flaw(ACCEPTABLE, f"must be a list of answers, not {kind(cell)}")
    return [_acceptable_calls(answer, f"{ACCEPTABLE}[{index}]") for index, answer in enumerate(cell or ())]


def _acceptable_calls(cell: object, spot: str) -> list[Call]:
    """What words say does not matter, so a text that might be calls is read as calls: a slip in them is noticed."""
    if isinstance(cell, str):
        text = filled(cell, spot).strip()
        looks_like_calls = text.startswith(("{", "[")) or functiongemma.START_FUNCTION_CALL in text
        if not looks_like_calls and not _NAME.fullmatch(text):
            return []
    return [Call(**call["function"]) for call in _answer(cell, spot)["tool_calls"]]
