"""Harder sets made from a user's own rows: each changes one thing about the tools or about how they are asked for.

Every choice is drawn from the seed, the set's name and the tools or the text that it concerns, so that a row is
changed alike whatever other rows there are; only `casing` and `unserved` hand out their changes over all rows.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from fitcoach_tune.evaluate import hard_data
from fitcoach_tune.evaluate.hard_text import mistyped, still_says, without_marks
from fitcoach_tune.evaluate.turns import Turn
from fitcoach_tune.functiongemma import find_control_token
from fitcoach_tune.gold import Gold

_T = TypeVar("_T")
MUST_NOT_CALL = Gold(((),))
DISTRACTORS = 10
"""Tools that are added to a list; fewer where fewer have nothing to do with it."""
_LOOKS_LIKE_A_NAME = re.compile(r"[_.\d-]|[a-z][A-Z]")


@dataclass(frozen=True)
class HardSet:
    """Turns that differ from the user's own in one respect.

    Attributes:
        name: for flags and files; title: for headings; description: what was changed, in a sentence.
        turns: in the order of the own ones. Equal tools are the same list object.
        left_out: own turns without a counterpart here: the change does not apply to them, or, in `unserved`, there
            are no more queries.
    """

    name: str
    title: str
    description: str
    turns: list[Turn]
    left_out: int


def hard_sets(turns: Sequence[Turn], seed: int) -> list[HardSet]:
    """Every set in which at least one of the turns has a counterpart. A pure function; nothing given is changed."""
    found = []
    for name, (title, description, derive) in _SETS.items():
        derived = _with_shared_tools([turn for turn in derive(turns, seed) if turn is not None])
        if derived:
            found.append(HardSet(name, title, description, derived, len(turns) - len(derived)))
    return found


def _with_shared_tools(turns: Sequence[Turn]) -> list[Turn]:
    """The turns, with the first of several equal lists of tools in place of the others."""
    by_id: dict[int, list[dict]] = {}
    by_content: dict[str, list[dict]] = {}
    for turn in turns:
        if id(turn.tools) not in by_id:
            by_id[id(turn.tools)] = by_content.setdefault(_canonical(turn.tools), turn.tools)
    return [replace(turn, tools=by_id[id(turn.tools)]) for turn in turns]


def per_list(turns: Sequence[Turn], make: Callable[[list[dict]], _T]) -> dict[int, _T]:
    """By the list's id, what `make` gives for each list of tools."""
    return {key: make(tools) for key, tools in {id(turn.tools): turn.tools for turn in turns}.items()}


def _rng(seed: int, name: str, content: Any) -> np.random.Generator:
    digest = hashlib.sha256(_canonical([seed, name, content]).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


# ------------------------------------------------------------------------------------------------ other tools


def _tool_order(turns: Sequence[Turn], seed: int) -> Iterator[Turn | None]:
    orders = per_list(turns, lambda tools: _reordered(tools, _rng(seed, "tool-order", tools)))
    for turn in turns:
        yield replace(turn, tools=orders[id(turn.tools)]) if len(turn.tools) > 1 else None


def _reordered(tools: list[dict], rng: np.random.Generator) -> list[dict]:
    order = list(range(len(tools)))
    while len(tools) > 1 and order == sorted(order):
        order = rng.permutation(len(tools)).tolist()
    return [copy.deepcopy(tools[i]) for i in order]


def _distractors(turns: Sequence[Turn], seed: int) -> Iterator[Turn | None]:
    """Left out where an added tool might serve: the user touches on its topic, or no own tool is wanted."""
    lists = per_list(turns, lambda tools: _with_distractors(tools, _rng(seed, "distractors", tools)))
    for turn in turns:
        tools, topics = lists[id(turn.tools)]
        said = (message["content"] for message in turn.messages if message["role"] == "user")
        fits = topics and turn.gold.wants_call and not topics & hard_data.topics(*said)
        yield replace(turn, tools=tools) if fits else None


def _with_distractors(tools: list[dict], rng: np.random.Generator) -> tuple[list[dict], set[str]]:
    """The tools in their order with others among them, and the topics of the others."""
    fitting = hard_data.unrelated_tools(tools)
    chosen = [fitting[i] for i in rng.permutation(len(fitting))[:DISTRACTORS]]
    total = len(tools) + len(chosen)
    places = set(rng.choice(total, size=len(chosen), replace=False).tolist())
    own, others = iter(tools), iter(chosen)
    mixed = [copy.deepcopy(next(others).tool if place in places else next(own)) for place in range(total)]
    return mixed, {entry.topic for entry in chosen}


def _gold_removed(turns: Sequence[Turn], seed: int) -> Iterator[Turn | None]:
    lists: dict[tuple[int, frozenset[str]], list[dict]] = {}
    for turn in turns:
        wanted = frozenset(call.name for answer in turn.gold.answers for call in answer)
        earlier = {call["function"]["name"] for message in turn.messages for call in message.get("tool_calls", ())}
        key = id(turn.tools), wanted
        if key not in lists:
            lists[key] = [copy.deepcopy(tool) for tool in turn.tools if tool["function"]["name"] not in wanted]
        applies = turn.gold.wants_call and lists[key] and not wanted & earlier
        yield replace(turn, tools=lists[key], gold=MUST_NOT_CALL) if applies else None


# ------------------------------------------------------------------------------------------------ other names


def _renamed(turns: Sequence[Turn], seed: int) -> Iterator[Turn | None]:
    names = per_list(turns, lambda tools: _new_names(tools, _rng(seed, "renamed", tools)))
    lists = per_list(turns, lambda tools: [_tool_as(tool, names[id(tools)]) for tool in tools])
    for turn in turns:
        new = names[id(turn.tools)]
        answers = tuple(
            tuple(replace(call, name=new.get(call.name, call.name)) for call in answer) for answer in turn.gold.answers
        )
        messages = [_message_as(message, new) for message in turn.messages]
        renamed = replace(
            turn, messages=messages, tools=lists[id(turn.tools)], gold=replace(turn.gold, answers=answers)
        )
        yield renamed if turn.tools else None


def _new_names(tools: list[dict], rng: np.random.Generator) -> dict[str, str]:
    """By a tool's name, one that says nothing about it and that none of the tools mentions."""
    said = "\n".join(hard_data.strings(tools)).lower()
    names = rng.permutation(hard_data.pool_names()).tolist()
    names = [name for name in names if name not in said] or names
    numbered = (name if k == 1 else f"{name}_{k}" for k in itertools.count(1) for name in names)
    fresh = (name for name in numbered if name not in said)
    return {tool["function"]["name"]: next(fresh) for tool in tools}


def _tool_as(tool: dict, names: dict[str, str]) -> dict:
    function = _described_as(tool["function"], names)
    return {**tool, "function": {**function, "name": names[function["name"]]}}


def _described_as(schema: Any, names: dict[str, str]) -> Any:
    """A copy in which descriptions call the tools by their new names."""
    if isinstance(schema, list):
        return [_described_as(part, names) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: _text_as(part, names) if key == "description" and isinstance(part, str) else _described_as(part, names)
        for key, part in schema.items()
    }


def _text_as(text: str, names: dict[str, str]) -> str:
    """A text that calls the tools by their new names; an old name that might be a plain word is left alone."""
    for name in sorted(filter(_LOOKS_LIKE_A_NAME.search, names), key=len, reverse=True):
        text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", names[name], text)
    return text


def _message_as(message: dict, names: dict[str, str]) -> dict:
    message = copy.deepcopy(message)
    for call in message.get("tool_calls", ()):
        call["function"]["name"] = names.get(call["function"]["name"], call["function"]["name"])
    content = message.get("content")
    if message["role"] == "developer":
        message["content"] = _text_as(content, names)
    if message["role"] == "tool":
        message["name"] = names.get(message["name"], message["name"])
        # The format prints a result of this form under the name that it gives itself.
        if isinstance(content, dict) and "response" in content and isinstance(content.get("name"), str):
            content["name"] = names.get(content["name"], content["name"])
    return message


# ------------------------------------------------------------------------------------------------ other texts


def _typos(turns: Sequence[Turn], seed: int) -> Iterator[Turn | None]:
    for turn in turns:
        yield _asked(turn, mistyped(turn.query, _gold_texts(turn.gold), _rng(seed, "typos", turn.query)))


def _casing(turns: Sequence[Turn], seed: int) -> Iterator[Turn | None]:
    styles = [(str.lower, str.upper, without_marks)[i] for i in _rng(seed, "casing", None).permutation(3)]
    used = [0, 0, 0]
    for turn in turns:
        values = _gold_texts(turn.gold)
        for i in sorted(range(3), key=used.__getitem__):
            text = styles[i](turn.query)
            changed = _asked(turn, text) if text != turn.query and still_says(turn.query, text, values) else None
            if changed:
                used[i] += 1
                break
        yield changed


def _asked(turn: Turn, text: str | None) -> Turn | None:
    """The turn with another last user message; None without one, or where it has come to spell a control token."""
    if text is None or find_control_token(text):
        return None
    last = max(i for i, message in enumerate(turn.messages) if message["role"] == "user")
    changed = {**turn.messages[last], "content": text}
    return replace(turn, messages=[*turn.messages[:last], changed, *turn.messages[last + 1 :]])


def _gold_texts(gold: Gold) -> list[str]:
    """Every text among the argument values that are accepted."""
    values = [list(call.arguments.values()) for answer in gold.answers for call in answer]
    return [text for text in hard_data.strings(values) if text]


def _unserved(turns: Sequence[Turn], seed: int) -> Iterator[Turn]:
    queries = hard_data.pool_queries()
    allowed = per_list(turns, hard_data.unserved_queries)
    left = _rng(seed, "unserved", "queries").permutation(len(queries)).tolist()
    given: dict[int, int] = {}
    for place in _rng(seed, "unserved", "turns").permutation(len(turns)).tolist():
        query = next((i for i in left if i in allowed[id(turns[place].tools)]), None)
        if query is not None:
            left.remove(query)
            given[place] = query
    for place, query in sorted(given.items()):
        turn = turns[place]
        messages = [message for message in turn.messages[:1] if message["role"] == "developer"]
        messages.append({"role": "user", "content": queries[query].text})
        yield Turn(messages, turn.tools, MUST_NOT_CALL, f"hard.json[queries][{query}]")


_SETS: dict[str, tuple[str, str, Callable[[Sequence[Turn], int], Iterator[Turn | None]]]] = {
    "tool-order": ("Another order of the tools", "The tools are declared in another order.", _tool_order),
    "distractors": (
        "Other tools among them",
        f"Up to {DISTRACTORS} tools that have nothing to do with the own ones stand among these.",
        _distractors,
    ),
    "gold-removed": (
        "Without the wanted tool",
        "The tools that the row calls are taken away; the model should answer in words.",
        _gold_removed,
    ),
    "renamed": ("Invented tool names", "The tools' names mean nothing; their descriptions are kept.", _renamed),
    "typos": ("Typing errors", "The last user message has about one typing error in twelve letters.", _typos),
    "casing": (
        "Case and punctuation",
        "The last user message is all lower case, all upper case, or without punctuation, in turn.",
        _casing,
    ),
    "unserved": (
        "Queries that no tool serves",
        "General queries in several languages; the model should answer in words.",
        _unserved,
    ),
}
