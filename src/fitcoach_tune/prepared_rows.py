"""Rows on their way into a prepared set: read and checked, then rendered, tokenized and made to fit, chunk by chunk."""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from fitcoach_tune import dataset, processes, rendering, splits
from fitcoach_tune.config import Config
from fitcoach_tune.dataset import Example
from fitcoach_tune.errors import DataError
from fitcoach_tune.prepared_set import PreparedRow
from fitcoach_tune.prepared_set_writer import Spool, as_batch, as_text, conversations, tokens, with_toolsets
from fitcoach_tune.training.batches import TokenizedRow, common_length

if TYPE_CHECKING:
    from pyarrow import RecordBatch

    from fitcoach_tune.console import Update
    from fitcoach_tune.tokenizer import AnyTokenizer

_LISTED = 10
_TOLD = 100  # rows from one word of progress to the next


# Reading --------------------------------------------------------------------------------------------------------------


def save_examples(reading: dataset.Reading, spool: Spool) -> list[list[dict]]:
    """Put what is read into a file, and return the lists of tools by the numbers that they have there.

    Raises:
        DataError: see `Reading`; when all was read.
    """
    toolsets: list[list[dict]] = []
    numbers: dict[int, int] = {}  # by a list's id: rows whose tools are equal share the list

    def task(chunk: list[tuple[str, object]]) -> tuple[RecordBatch, list[list[dict]]] | None:
        return _packed(reading.plain_examples(chunk))

    with closing(processes.in_order(task, reading.chunks(rendering.ROWS_AT_ONCE))) as results:
        for chunk, found in results:
            if found is None:
                batch, used = _packed(reading.checked_examples(chunk))
            else:
                batch, used = found
                used = reading.pass_over(batch.num_rows, used)
            for tools in used:
                if numbers.setdefault(id(tools), len(toolsets)) == len(toolsets):
                    toolsets.append(tools)
            final = np.array([numbers[id(tools)] for tools in used], dtype=np.int32)
            spool.add(with_toolsets(batch, final))
    reading.end()
    return toolsets


def _packed(examples: list[Example] | None) -> tuple[RecordBatch, list[list[dict]]] | None:
    """Examples as columns, and the lists of tools by the numbers that they have in these."""
    if examples is None:
        return None
    used = {id(example.tools): example.tools for example in examples}
    places = {key: number for number, key in enumerate(used)}
    columns = conversations(examples, [places[id(example.tools)] for example in examples])
    return as_batch(columns), list(used.values())


def examples_in(columns: dict[str, list], toolsets: list[list[dict]]) -> list[Example]:
    """Examples as `save_examples` got them, but for what is acceptable."""
    given = zip(columns["messages"], columns["toolset"], columns["origin"], strict=True)
    return [Example(json.loads(messages), toolsets[number], origin) for messages, number, origin in given]


# Making rows ----------------------------------------------------------------------------------------------------------


def fit_length(row: PreparedRow, max_length: int, excess: str) -> PreparedRow | None:
    """A row if it is kept, and what is kept of it.

    Of a row that is longer than `max_length` tokens `truncate` keeps the turns from the start that fit whole: a call is
    never cut, and a row of which no answer fits is dropped. `error` keeps it, to be told of with all others.
    """
    if len(row.input_ids) <= max_length or excess == "error":
        return row
    if excess == "truncate" and (spans := tuple(s for s in row.spans if s[1] <= max_length)):
        return PreparedRow(row.input_ids[: spans[-1][1]], spans, row.example)
    return None


def cut(example: Example, answers: int) -> Example:
    """A conversation up to its `answers`-th assistant message; what is acceptable concerns the last one alone."""
    ends = [i for i, message in enumerate(example.messages) if message["role"] == "assistant"]
    if answers == len(ends):
        return example
    return replace(example, messages=example.messages[: ends[answers - 1] + 1], acceptable=None)


def common_prefix(rows: Sequence[TokenizedRow]) -> int:
    """Length of the longest common token prefix that leaves every row a prompt token before its first supervised
    one.
    """
    return common_length((row.input_ids for row in rows), min(row.spans[0][0] for row in rows) - 1)


def developer_text(example: Example) -> str:
    """A row's developer message; empty if it has none."""
    first = example.messages[0]
    return str(first["content"]) if first["role"] == "developer" else ""


@dataclass
class _Chunk:
    """Rows that are kept, of some that were read.

    Attributes:
        batch: all their columns; None if there are none.
        facts: for the split.
        lengths: in tokens.
        supervised: tokens, of all.
        prefix: int32, the tokens that all start with, as `common_prefix` has it.
        developers: developer texts.
        longer: `where: how long` of those that are too long where that is an error.
    """

    batch: RecordBatch | None = None
    facts: splits.Facts = field(default_factory=splits.Facts)
    lengths: array = field(default_factory=lambda: array("i"))
    supervised: int = 0
    prefix: np.ndarray | None = None
    developers: set[str] = field(default_factory=set)
    longer: list[str] = field(default_factory=list)


def _tokenized(
    columns: dict[str, list], toolsets: list[list[dict]], rows_of: rendering.RowTokenizer, config: Config
) -> _Chunk:
    """Render and tokenize what `save_examples` put there, and keep what `excess_length` lets."""
    most, excess = config.max_length, config.excess_length
    examples, chunk = examples_in(columns, toolsets), _Chunk()
    rows = [kept for row in rows_of.rows(examples) if (kept := fit_length(row, most, excess))]
    if not rows:
        return chunk
    columns = {name: [column[row.example] for row in rows] for name, column in columns.items()}
    for place, row in enumerate(rows):
        example = cut(examples[row.example], len(row.spans))
        if example is not examples[row.example]:
            columns["messages"][place], columns["acceptable"][place] = as_text(example.messages), None
        if len(row.input_ids) > most:
            chunk.longer.append(f"{example.origin}: {len(row.input_ids)} tokens")
        chunk.developers.add(developer_text(example))
        chunk.facts.add(example, columns["toolset"][place])
    chunk.batch = as_batch(tokens(rows) | columns)
    chunk.lengths.extend(len(row.input_ids) for row in rows)
    chunk.supervised = sum(end - start for row in rows for start, end in row.spans)
    chunk.prefix = rows[0].input_ids[: common_prefix(rows)]
    return chunk


class Kept:
    """All rows that are kept: in a file, and the rest as in `_Chunk`; of many developer texts and long rows, some."""

    def __init__(self, spool: Spool, most: int):
        self._spool, self._most = spool, most
        self.facts, self.lengths, self.supervised = splits.Facts(), array("i"), 0
        self.prefix: np.ndarray | None = None
        self.developers: set[str] = set()
        self._longer, self._too_long = 0, list[str]()

    def add(self, chunk: _Chunk) -> None:
        if chunk.batch is None:
            return
        self._spool.add(chunk.batch)
        self.facts.extend(chunk.facts)
        self.lengths += chunk.lengths
        self.supervised += chunk.supervised
        before = chunk.prefix if self.prefix is None else self.prefix
        self.prefix = before[: common_length((before, chunk.prefix), min(len(before), len(chunk.prefix)))]
        if len(self.developers) < 2:
            self.developers |= chunk.developers
        self._longer += len(chunk.longer)
        self._too_long += chunk.longer[: _LISTED - len(self._too_long)]

    def check_length(self) -> None:
        """Raises `DataError`: rows are too long, or none is left."""
        if not self.lengths:
            raise DataError("no row is left", where="--max-length", hint="allow longer rows")
        if self._longer:
            lengths = np.array(self.lengths)
            p50, p95 = np.percentile(lengths, [50, 95])
            raise DataError(
                f"{self._longer} of {len(lengths)} rows are longer than {self._most} tokens "
                f"(p50 {p50:.0f}, p95 {p95:.0f}, max {lengths.max()})",
                where="--max-length",
                details=self._too_long,
                hint=f"--max-length {lengths.max()} keeps all; --excess-length drop or truncate shortens the set",
            )

    def token_counts(self) -> dict[str, int]:
        """How many tokens there are."""
        lengths = np.array(self.lengths)
        p50, p95 = (int(v) for v in np.percentile(lengths, [50, 95]))
        counts = {"total": int(lengths.sum()), "supervised": self.supervised}
        return counts | {"p50": p50, "p95": p95, "max": int(lengths.max())}


def make_rows(
    read: Spool, made: Spool, toolsets: list[list[dict]], tokenizer: AnyTokenizer, config: Config, update: Update
) -> Kept:
    """Render and tokenize what `save_examples` put into `read`, and put what is kept of it into `made`.

    Args:
        update: is told the number of rows that are done.

    Raises:
        DataError: a row cannot be rendered or tokenized, rows are too long, or none is left.
    """
    rows_of, kept, done = rendering.RowTokenizer(tokenizer), Kept(made, config.max_length), 0

    def task(number: int) -> _Chunk:
        return _tokenized(read[number].to_pydict(), toolsets, rows_of, config)

    with closing(processes.in_order(task, range(len(read)))) as results:
        for number, chunk in results:
            kept.add(chunk)
            before, done = done, done + read.rows(number)
            for told in [*range(before + _TOLD, done, _TOLD), done]:
                update(told)
    kept.check_length()
    return kept
