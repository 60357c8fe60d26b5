"""Rows from anywhere, as `Example`s: the built-in set, JSON and Parquet files, saved datasets, the Hub.

Four row forms are understood (conversations in `messages`; the flat `system, user, assistant, tools`; `user_query,
function_call`; and `question, function, ground_truth` of the Berkeley leaderboard), each cell as a value or as its JSON
text; a row of any form may list further `acceptable_answers`. Every complaint names the file and line, the field, and
what to do; all rows are read before anything is raised.

A row's way: `containers` (sources to rows) → `toolsets`, `columnar` (its tools; Arrow's artefacts) → `forms`, `bfcl`,
`messages` (rows to messages) → `Example`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from fitcoach_tune import builtin, functiongemma
from fitcoach_tune.dataset.bfcl import LeftOut
from fitcoach_tune.dataset.containers import file_hash, open_rows
from fitcoach_tune.dataset.forms import ACCEPTABLE, read_row
from fitcoach_tune.dataset.toolsets import ToolCache
from fitcoach_tune.errors import DataError
from fitcoach_tune.functiongemma import Call
from fitcoach_tune.gold import Gold
from fitcoach_tune.strict_json import Flaw
from fitcoach_tune.tool_checks import CallChecker
from fitcoach_tune.tools import read_tools

__all__ = ["Example", "Reading", "Source", "file_hash", "read_examples", "read_tools", "validate"]

_LISTED = 10
_NAMED = 3
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class Example:
    """One conversation that ends in what the model should say.

    Attributes:
        messages: `{"role": "developer" | "user" | "assistant" | "tool", "content": str}`; an assistant message may have
            `tool_calls`, a list of `{"type": "function", "function": {"name": str, "arguments": dict}}`; a tool
            message has `name`, and its content may be a dict.
        tools: what may be called; the same list object for all rows whose tools are equal.
        origin: where it came from: `rows.jsonl:12` (line), `rows.json[11]` or `user/set[train][11]` (index from 0).
        acceptable: what the last assistant message may say, where the data gives more than that message itself.
    """

    messages: list[dict]
    tools: list[dict]
    origin: str
    acceptable: Gold | None = None

    @property
    def gold(self) -> list[Call]:
        """The calls of the last assistant message; empty where it answers in text."""
        last = next(message for message in reversed(self.messages) if message["role"] == "assistant")
        return [Call(**call["function"]) for call in last.get("tool_calls", [])]

    @property
    def query(self) -> str:
        """The text of the last user message."""
        return next(message["content"] for message in reversed(self.messages) if message["role"] == "user")


@dataclass(frozen=True)
class Source:
    """What was read, for manifests.

    Attributes:
        name: the source as it was given, without its revision.
        revision: the commit of a Hub dataset, else None.
        sha256: hash of a file, see `file_hash`; of a saved or Hub dataset's rows, each as JSON on a line.
        rows: the number of examples.
        notes: what was skipped, repaired or left out, one sentence each.
    """

    name: str
    revision: str | None
    sha256: str
    rows: int
    notes: list[str] = field(default_factory=list)


class Reading:
    """The rows of a source chunk by chunk, so that none of them need stay in memory.

    Args:
        source: a built-in example (`builtin:fitness`); the path of a .jsonl, .json or .parquet file; a folder that
            `datasets.save_to_disk` wrote; or a Hub dataset, `user/name` or `user/name@revision`. Without a network, a
            Hub dataset is read as it was last loaded on this machine, which a note says.
        tools: for rows that have none of their own.
        revision: of a Hub dataset.
        split: of a saved or Hub dataset with several; `train`, or the only one, if not given.

    Raises:
        DataError: the source or the given tools cannot be read.
        AccessError: a Hub dataset is not there, may not be read, or cannot be reached.
        ConfigError: the Hub does not allow such an id.
    """

    def __init__(
        self, source: str, *, tools: list[dict] | None = None, revision: str | None = None, split: str | None = None
    ):
        if tools is None and source in builtin.NAMES:
            tools = read_tools(source)
        self._given = source
        self._counts: Counter[str] = Counter()
        self._rows = open_rows(source, revision, split, self._counts)
        self._cache = ToolCache(self._counts)
        try:
            self._shared = None if tools is None else self._cache.get(tools)
        except Flaw as flaw:
            raise DataError(str(flaw), where="the given tools", hint="correct the tool and run again") from None
        self._left_out: list[str] = []
        self._usable = self._total = 0
        self._unusable: list[tuple[int, str]] = []  # (the row's position, text)
        self._unsound: list[tuple[int, str]] = []
        self._checker = CallChecker()
        # For rows of which nothing is told, so that they can be read in any order and process.
        self._trial = ToolCache(Counter()), CallChecker()

    def chunks(self, rows: int) -> Iterator[list[tuple[str, object]]]:
        """The source's (origin, row), at most so many at a time, and fewer where lines are long; once.

        Raises:
            DataError: the source cannot be read on.
        """
        chunk, size = [], 0
        for origin, given in self._rows.items:
            chunk.append((origin, given))
            size += len(given) if isinstance(given, bytes) else 0
            if len(chunk) == rows or size > _CHUNK_BYTES:
                yield chunk
                chunk, size = [], 0
        if chunk:
            yield chunk

    def examples(self, chunk: Iterable[tuple[str, object]]) -> Iterator[tuple[int, Example]]:
        """The usable rows of the next chunk, with their positions."""
        for position, (origin, given) in enumerate(chunk, start=self._total):
            self._total += 1
            try:
                example = self._example(origin, given, self._cache)
            except LeftOut as flaw:
                self._left_out.append(f"{given.get('id') or origin}: {flaw}")
            except Flaw as flaw:
                if not flaw.repeated:
                    self._unusable.append((position, f"{origin}: {flaw}"))
            else:
                self._usable += 1
                yield position, example

    def _example(self, origin: str, given: object, cache: ToolCache) -> Example:
        row = read_row(given, self._shared, cache, columnar=self._rows.columnar, counts=self._counts)
        example = Example(row.messages, row.tools, origin, row.acceptable)
        if row.is_published:
            _leave_out(example)
        return example

    def checked_examples(self, chunk: Iterable[tuple[str, object]]) -> list[Example]:
        """The usable rows of the next chunk. What is wrong with them, as `validate` would find, is told at the end."""
        found = []
        for position, example in self.examples(chunk):
            self._unsound += _check(position, example, self._checker)
            found.append(example)
        return found

    def plain_examples(self, chunk: Iterable[tuple[str, object]]) -> list[Example] | None:
        """The rows of any chunk if there is nothing to be told of them. It changes nothing: see `pass_over`."""
        if self._rows.columnar:  # what is repaired in it is counted
            return None
        cache, checker = self._trial
        found = []
        for origin, given in chunk:
            try:
                example = self._example(origin, given, cache)
            except Flaw:
                return None
            if [*_problems(example, checker)]:
                return None
            found.append(example)
        return found

    def pass_over(self, rows: int, toolsets: Iterable[list[dict]]) -> list[list[dict]]:
        """Count the next chunk, whose rows `plain_examples` gave; returns the lists that stand for its tools here."""
        self._total += rows
        self._usable += rows
        return [self._cache.get(tools) for tools in toolsets]

    def end(self, *, unchecked: Iterable[tuple[int, Example]] = ()) -> None:
        """To be called when all was read.

        Args:
            unchecked: what `examples` gave; checked only where other rows are unusable anyway.

        Raises:
            DataError: as `read_examples`, and then as `validate`.
        """
        if self._unusable:
            problems = [*self._unusable, *self._unsound, *_check_all(unchecked)]
            _refuse(problems, self._total, where=self._given)
        if not self._usable:
            what = "no row in it can be used" if self._left_out else "there are no rows in it"
            details = _first(self._left_out, _LISTED)
            raise DataError(what, where=self._given, details=details, hint="give at least one row")
        if self._unsound:
            _refuse(self._unsound, self._usable)

    @property
    def source(self) -> Source:
        """What was read, when all was read."""
        rows, left_out = self._rows, self._left_out
        notes = [*rows.notes, *(f"{what}: {count}" for what, count in self._counts.items())]
        notes += _first(list(self._cache.not_shown), _LISTED, "tools of which the format leaves something out")
        if left_out:
            notes.append(f"{len(left_out)} of {self._total} rows left out: {'; '.join(_first(left_out, _NAMED))}")
        return Source(rows.name, rows.revision, rows.digest.hexdigest(), self._usable, notes)


def read_examples(
    source: str, *, tools: list[dict] | None = None, revision: str | None = None, split: str | None = None
) -> tuple[list[Example], Source]:
    """All rows of `source`; the arguments are those of `Reading`, and so are further errors.

    Raises:
        DataError: some rows cannot be used. It then also lists what `validate` finds.
    """
    reading = Reading(source, tools=tools, revision=revision, split=split)
    found = [placed for chunk in reading.chunks(1) for placed in reading.examples(chunk)]
    reading.end(unchecked=found)
    return [example for _, example in found], reading.source


def _leave_out(example: Example) -> None:
    """Raises `LeftOut` for a published row that `validate` would refuse."""
    for place, what in _problems(example, CallChecker()):
        raise LeftOut(place, what)


def _first(lines: list[str], most: int, what: str = "") -> list[str]:
    more = len(lines) - most
    return [*lines[:most], f"… and {more} more {what}".rstrip()] if more > 0 else lines


def validate(examples: list[Example]) -> None:
    """Checks that every example's tools and calls are sound and can be carried by the wire format.

    Raises:
        DataError: lists the first ten problems, each as `file:line: field: what`, and counts the rest.
    """
    if problems := list(_check_all(enumerate(examples))):
        _refuse(problems, len(examples))


def _refuse(problems: list[tuple[int, str]], rows: int, where: str | None = None) -> None:
    """Raises one `DataError` for all problems, given as (the row's position, text)."""
    lines = [line for _, line in sorted(problems, key=lambda problem: problem[0])]
    what = f"{len(lines)} problem{'s' if len(lines) > 1 else ''} in {rows} row{'s' if rows != 1 else ''}"
    raise DataError(what, where=where, details=_first(lines, _LISTED), hint="correct these rows and run again")


def _check_all(examples: Iterable[tuple[int, Example]]) -> Iterator[tuple[int, str]]:
    checker = CallChecker()
    for position, example in examples:
        yield from _check(position, example, checker)


def _check(position: int, example: Example, checker: CallChecker) -> list[tuple[int, str]]:
    return [(position, f"{example.origin}: {place}: {what}") for place, what in _problems(example, checker)]


def _problems(example: Example, checker: CallChecker) -> Iterator[tuple[str, str]]:
    yield from checker.tool_problems(example.tools)
    for place, message in enumerate(example.messages):
        content = message["content"]
        if isinstance(content, dict):
            # The format writes a result as it writes arguments, so the same values are out of its reach.
            for problem in functiongemma.call_problems(Call(message["name"], content)):
                yield f"messages[{place}].content", problem.removeprefix("arguments.")
        elif token := functiongemma.find_control_token(content):
            yield (
                f"messages[{place}].content",
                f"the {message['role']} text contains the control token {token}; remove it",
            )
        for number, call in enumerate(message.get("tool_calls", ())):
            function = call["function"]
            for path, what in checker.call_problems(function["name"], function["arguments"], example.tools):
                yield f"messages[{place}].tool_calls[{number}].{path}", what
    for index, answer in enumerate(example.acceptable.answers[1:] if example.acceptable else ()):
        for number, gold in enumerate(answer):
            spot = f"{ACCEPTABLE}[{index}]" + (f"[{number}]" if len(answer) > 1 else "")
            for path, what in checker.call_problems(gold.name, gold.call.arguments, example.tools):
                yield f"{spot}.{path}", what
