"""What the harder sets add to a user's rows, read from `hard.json`, and what of it has nothing to do with their tools.

All tools, queries and names there were written for this. Whether two things have to do with each other is judged by
their words, and doubts count against it: topics list English words that give them away, so tools that are described in
another language are recognised by the words they share with a query alone.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

# The topic of tools that might serve any query, and that of queries which even these do not serve.
_ANYTHING, _SMALLTALK = "anything", "smalltalk"


@dataclass(frozen=True)
class PoolTool:
    """A tool that can be added to others, in the common form. `words` are what its name is about."""

    topic: str
    tool: dict
    words: frozenset[str]


@dataclass(frozen=True)
class PoolQuery:
    """A query that most sets of tools do not serve. `words` are what it is about; `language` is a code of ISO 639-1."""

    topic: str
    language: str
    text: str
    words: frozenset[str]


@cache
def pool_tools() -> tuple[PoolTool, ...]:
    """All tools. They are shared: copy before changing."""
    return tuple(
        PoolTool(
            entry["topic"],
            {"type": "function", "function": entry["function"]},
            content_words(entry["function"]["name"]),
        )
        for entry in _data()["tools"]
    )


@cache
def pool_queries() -> tuple[PoolQuery, ...]:
    return tuple(PoolQuery(**entry, words=content_words(entry["text"])) for entry in _data()["queries"])


@cache
def pool_names() -> tuple[str, ...]:
    """Words that mean nothing, for functions."""
    return tuple(_data()["names"])


def unrelated_tools(tools: list[dict]) -> list[PoolTool]:
    """Tools of the pool on topics that nothing in these tools touches on, and without a word of their names."""
    touched = topics(*strings(tools))
    words = content_words(*(tool["function"]["name"] for tool in tools))
    return [entry for entry in pool_tools() if entry.topic not in touched and not entry.words & words]


def unserved_queries(tools: list[dict]) -> frozenset[int]:
    """Indices of the queries that share no word with these tools' names and descriptions and are on other topics.

    Only small talk is left where a tool might serve any query: it searches the web, runs code, answers questions.
    Nothing is left where there are no tools.
    """
    touched = topics(*strings(tools))
    functions = [tool["function"] for tool in tools]
    words = content_words(*(function.get(key, "") for function in functions for key in ("name", "description")))
    for_anything = _ANYTHING in touched or any(_words(f["name"]) <= set(_data()["open_names"]) for f in functions)
    return frozenset(
        i
        for i, query in enumerate(pool_queries() if tools else ())
        if query.topic not in touched and not query.words & words and (query.topic == _SMALLTALK or not for_anything)
    )


def topics(*texts: str) -> set[str]:
    """Topics that some word belongs to; in the data file `forecast*` stands for all words that begin so."""
    found = set()
    for word in _words(*texts):
        for stem in (word, *(f"{word[:end]}*" for end in range(1, len(word) + 1))):
            found |= _topics_by_stem().get(stem, set())
    return found


def content_words(*texts: str) -> frozenset[str]:
    """Words that say what something is about, without endings: sleeping and sleeps are one."""
    words = _words(*texts).difference(_data()["stop_words"])
    return frozenset(re.sub(r"(?<=\w{3})(?:ies|ing|ions?|ed|es|e|s|y)$", "", word) for word in words if len(word) > 2)


def strings(value: Any) -> Iterator[str]:
    """Every text in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from strings(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from strings(inner)


def _words(*texts: str) -> set[str]:
    """Words in lower case; getHTTPData and get_http_data have the same."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", "\n".join(texts))
    return set(re.findall(r"[^\W_]+", unicodedata.normalize("NFC", apart).lower()))


@cache
def _data() -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("hard.json").read_text(encoding="utf-8"))


@cache
def _topics_by_stem() -> dict[str, set[str]]:
    by_stem: dict[str, set[str]] = {}
    for topic, stems in _data()["topics"].items():
        for stem in stems:
            by_stem.setdefault(stem, set()).add(topic)
    return by_stem
