"""From verdicts to the figures of an evaluation, each with its n."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fitcoach_tune.evaluate.score import Verdict
from fitcoach_tune.evaluate.statistics import Rate
from fitcoach_tune.gold import Gold

NO_CALL, INVENTED, UNPARSABLE = "no call", "invented", "unparsable"


@dataclass(frozen=True)
class Scored:
    """One answer with what was wanted.

    Attributes:
        gold, verdict: what was wanted, and how the answer compares.
        declared: the names of the tools that were declared.
        seconds: from the start of its batch to its last token.
        tokens: of the answer.
        stopped: it ended by itself, before the token limit.
    """

    gold: Gold
    verdict: Verdict
    declared: tuple[str, ...]
    seconds: float
    tokens: int
    stopped: bool


@dataclass(frozen=True)
class ToolScore:
    """How well calls of one tool go, by its name alone.

    Attributes:
        right: calls of it that were wanted; made: calls of it; wanted: those that the gold asks for.
    """

    right: int
    made: int
    wanted: int

    @property
    def precision(self) -> Rate:
        return Rate(self.right, self.made)

    @property
    def recall(self) -> Rate:
        return Rate(self.right, self.wanted)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; nan for a tool that is neither called nor wanted."""
        return 2 * self.right / (self.made + self.wanted) if self.made + self.wanted else float("nan")

    def as_dict(self) -> dict[str, Any]:
        f1 = self.f1 if self.made + self.wanted else None
        return {"precision": self.precision.as_dict(), "recall": self.recall.as_dict(), "f1": f1}


@dataclass(frozen=True)
class Metrics:
    """What an evaluation says of one model on one set of rows.

    Attributes:
        exact: answers that are right in everything.
        names: among rows that want calls, those with the right functions, whatever their arguments.
        argument_precision: among the arguments given, those that are right; argument_recall: among those asked for.
        valid_format: answers that can be parsed.
        invented: answers that call a function that was not declared.
        called: among rows that want a call, those with one; silent: among rows that want none, those without.
        wrong_count: answers that can be parsed and have another number of calls than wanted.
        unstopped: answers that reached the token limit.
        errors: how many answers have which error, most first.
        tools: by name, every tool that was declared or called for.
        confusion: (wanted, called) pairs and how often; `NO_CALL`, `INVENTED` and `UNPARSABLE` stand for names.
        seconds_p50, seconds_p95: from the start of a row's batch to its last token; None without rows.
        tokens_per_second: new tokens of all rows, by the time of their batches.
    """

    n: int
    exact: Rate
    names: Rate
    argument_precision: Rate
    argument_recall: Rate
    valid_format: Rate
    invented: Rate
    called: Rate
    silent: Rate
    wrong_count: Rate
    unstopped: Rate
    errors: dict[str, int]
    tools: dict[str, ToolScore]
    confusion: dict[tuple[str, str], int]
    seconds_p50: float | None
    seconds_p95: float | None
    tokens_per_second: float | None

    def as_dict(self) -> dict[str, Any]:
        rates = {name: value.as_dict() for name, value in vars(self).items() if isinstance(value, Rate)}
        return {
            "n": self.n,
            **rates,
            "errors": self.errors,
            "tools": {name: tool.as_dict() for name, tool in self.tools.items()},
            "confusion": [
                {"wanted": wanted, "called": called, "count": count}
                for (wanted, called), count in self.confusion.items()
            ],
            "latency_seconds": {"p50": self.seconds_p50, "p95": self.seconds_p95},
            "tokens_per_second": self.tokens_per_second,
        }


def measure(rows: Sequence[Scored], busy_seconds: float) -> Metrics:
    """Count over rows; `busy_seconds` is how long the model was at them."""
    wanting = [row for row in rows if row.gold.wants_call]
    others = [row for row in rows if not row.gold.wants_call]
    pairs = [pair for row in rows for pair in row.verdict.pairs]
    right = sum(pair.right for pair in pairs)
    errors = Counter(row.verdict.error for row in rows if row.verdict.error)
    seconds = [row.seconds for row in rows]
    return Metrics(
        n=len(rows),
        exact=_share(row.verdict.right for row in rows),
        names=_share(_same_names(row) for row in wanting),
        argument_precision=Rate(right, sum(pair.given for pair in pairs)),
        argument_recall=Rate(right, sum(pair.due for pair in pairs)),
        valid_format=_share(map(_parsed, rows)),
        invented=_share(any(c.name not in row.declared for c in row.verdict.calls) for row in rows),
        called=_share(bool(row.verdict.calls) for row in wanting),
        silent=_share(not row.verdict.calls and _parsed(row) for row in others),
        wrong_count=_share(_wrong_count(row) for row in rows),
        unstopped=_share(not row.stopped for row in rows),
        errors=dict(errors.most_common()),
        tools=_tools(rows),
        confusion=dict(Counter(cell for row in rows for cell in _cells(row))),
        seconds_p50=float(np.percentile(seconds, 50)) if seconds else None,
        seconds_p95=float(np.percentile(seconds, 95)) if seconds else None,
        tokens_per_second=sum(row.tokens for row in rows) / busy_seconds if busy_seconds else None,
    )


def _share(found: Iterable[bool]) -> Rate:
    found = list(found)
    return Rate(sum(found), len(found))


def _parsed(row: Scored) -> bool:
    return row.verdict.error != "decoder_failed"


def _same_names(row: Scored) -> bool:
    """Each gold call is paired with one of its name, and no call is left over."""
    return _parsed(row) and all(pair.wanted == pair.got for pair in row.verdict.pairs)


def _wrong_count(row: Scored) -> bool:
    return _parsed(row) and any(None in (pair.wanted, pair.got) for pair in row.verdict.pairs)


def _tools(rows: Sequence[Scored]) -> dict[str, ToolScore]:
    right, made, wanted = Counter(), Counter(), Counter()
    for row in rows:
        for pair in row.verdict.pairs:
            right[pair.wanted] += pair.wanted == pair.got
            wanted[pair.wanted] += 1
            made[pair.got] += 1
    names = {name for row in rows for name in row.declared} | {name for name in wanted if name}
    return {name: ToolScore(right[name], made[name], wanted[name]) for name in sorted(names)}


def _cells(row: Scored) -> Iterator[tuple[str, str]]:
    """Where a row stands in the confusion matrix: once for each pair, or once if it neither wants nor makes a call."""
    nothing = NO_CALL if _parsed(row) else UNPARSABLE
    if not row.verdict.pairs:
        yield NO_CALL, nothing
    for pair in row.verdict.pairs:
        got = pair.got if pair.got is None or pair.got in row.declared else INVENTED
        yield pair.wanted or NO_CALL, got or nothing
