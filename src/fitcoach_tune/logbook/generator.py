"""Makes the rows of the logbook example: sentence patterns filled with values, and the calls that they ask for.

Patterns and values were written by hand and lie in `phrases/`, one a line; a pattern's `{slots}` are filled here, and
what follows its ` -> ` is an argument that its own words give. How values are written is in the data's card.

    python -m fitcoach_tune.logbook.generator > queries.jsonl
"""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from collections.abc import Callable
from random import Random
from typing import Any

from fitcoach_tune import logbook
from fitcoach_tune.functiongemma import TRIGGER
from fitcoach_tune.logbook.surface import Piece, written
from fitcoach_tune.logbook.values import COPIED, DRAW, Pattern, lines, patterns, pick, read_pattern

REFUSAL = "I have no function for that."
"""What the assistant says where no tool serves."""

ROWS_PER_TOOL = 600
TWO_CALLS = 300
NO_CALL = 400

_TRIES = 200
_TWICE = ("log_workout", "set_alarm", "log_meal", "set_reminder")  # what one may want done twice in one breath

Utterance = tuple[list[Piece], list[dict[str, Any]]]
"""What is said, in pieces, and the calls that it asks for."""


def rows(seed: int = 0) -> list[dict[str, Any]]:
    """Make the dataset; equal seeds give equal rows.

    Returns:
        `{"id", "messages": [developer, user, assistant]}` rows, the kinds of answer in turn. No two queries are
        the same but for case, punctuation and space.
    """
    rng, seen = Random(seed), set()
    kinds = {tool: _single(tool, rng, seen) for tool in DRAW}
    kinds["two_calls"] = _pairs(rng, seen)
    kinds["no_call"] = _refused(rng, seen)
    # Spread evenly, so that the first rows are as balanced as the whole.
    order = sorted(
        ((number + 0.5) / len(made), place, kind, number)
        for place, (kind, made) in enumerate(kinds.items())
        for number in range(len(made))
    )
    return [{"id": f"{kind}-{number + 1:04d}", "messages": kinds[kind][number]} for _, _, kind, number in order]


def _single(tool: str, rng: Random, seen: set[str]) -> list[list[dict]]:
    """One call each; every pattern of the tool about equally often."""
    known = patterns(tool)
    turns = [pattern for _ in range(ROWS_PER_TOOL // len(known) + 1) for pattern in _shuffled(rng, known)]
    return [_new(rng, seen, lambda chosen=pattern: _filled(rng, tool, chosen)) for pattern in turns[:ROWS_PER_TOOL]]


def _pairs(rng: Random, seen: set[str]) -> list[list[dict]]:
    """Two calls each, in the order in which they are asked for."""
    clauses = [(tool, read_pattern(text)) for tool, text in (line.split(": ", 1) for line in lines("clauses"))]
    closed = [(tool, pattern) for tool, pattern in clauses if not pattern.is_open]
    frames = lines("joined")

    def draw() -> Utterance:
        tool, pattern = pick(rng, closed)
        others = [clause for clause in clauses if clause[0] != tool or tool in _TWICE]
        return _joined(pick(rng, frames), _filled(rng, tool, pattern), _filled(rng, *pick(rng, others)))

    return [_new(rng, seen, draw) for _ in range(TWO_CALLS)]


def _refused(rng: Random, seen: set[str]) -> list[list[dict]]:
    """Queries that no tool serves."""
    queries = _shuffled(rng, lines("unserved"))[:NO_CALL]
    return [_new(rng, seen, lambda text=query: ([Piece(text, "words")], [])) for query in queries]


def _new(rng: Random, seen: set[str], draw: Callable[[], Utterance]) -> list[dict]:
    """The messages of the first utterance drawn that was not seen; adds it."""
    for _ in range(_TRIES):
        pieces, calls = draw()
        query = written(rng, pieces)
        if (key := plain(query)) not in seen:
            seen.add(key)
            answer = {"tool_calls": calls} if calls else {"content": REFUSAL}
            return [
                {"role": "developer", "content": TRIGGER},
                {"role": "user", "content": query},
                {"role": "assistant", **answer},
            ]
    raise RuntimeError(f"no new way to say {''.join(piece.text for piece in pieces)!r}; add phrases")


def _filled(rng: Random, tool: str, pattern: Pattern) -> Utterance:
    """A pattern with its slots filled, and its call."""
    drawn = DRAW[tool](rng, pattern)
    literal = "telling" if pattern.fixed else "words"
    pieces = [
        Piece(drawn.texts[part], "copied" if part in COPIED else "value") if place % 2 else Piece(part, literal)
        for place, part in enumerate(re.split(r"\{(\w+)\}", pattern.text))
        if part
    ]
    given = drawn.arguments | pattern.fixed
    ordered = {name: given[name] for name in _ARGUMENTS[tool] if name in given}
    return pieces, [{"type": "function", "function": {"name": tool, "arguments": ordered}}]


def _joined(frame: str, first: Utterance, second: Utterance) -> Utterance:
    before, between, after = re.split(r"\{first\}|\{second\}", frame)
    pieces = [Piece(before, "words"), *first[0], Piece(between, "words"), *second[0], Piece(after, "words")]
    return [piece for piece in pieces if piece.text], [*first[1], *second[1]]


_ARGUMENTS = {tool["function"]["name"]: list(tool["function"]["parameters"]["properties"]) for tool in logbook.tools()}


def _shuffled(rng: Random, items: list) -> list:
    return [item for _, _, item in sorted((rng.random(), place, item) for place, item in enumerate(items))]


def plain(query: str) -> str:
    """A query without case, punctuation and space."""
    return "".join(char for char in unicodedata.normalize("NFKC", query).casefold() if char.isalnum())


def main() -> None:
    """Write the rows to standard output as compact JSON Lines."""
    for row in rows():
        sys.stdout.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
