"""Comparing what the model called with what it should have called, and how sure a rate is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fitcoach_tune.functiongemma import Call, ParseError, parse


@dataclass(frozen=True)
class Verdict:
    """How one answer compares with the gold calls.

    Attributes:
        error: None if the answer is right, else the kind of mistake, in the terms of the Berkeley Function-Calling
            Leaderboard (Patil et al. 2025): decoder_failed, invented_func_name, wrong_func_name, wrong_count,
            value_error; and no_call, unexpected_call, no_answer where it called nothing, should not have called, or
            said nothing at all.
        calls: the parsed calls; empty if the answer could not be parsed.
        text: what the answer says besides calls.
    """

    error: str | None
    calls: tuple[Call, ...]
    text: str

    @property
    def right(self) -> bool:
        return self.error is None


@dataclass(frozen=True)
class Rate:
    """A proportion with its Wilson 95% interval (Wilson 1927, JASA 22:209)."""

    right: int
    n: int

    @property
    def value(self) -> float:
        return self.right / self.n if self.n else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """(low, high); (0, 1) without any observation."""
        if not self.n:
            return 0.0, 1.0
        from scipy.stats import binomtest

        found = binomtest(self.right, self.n).proportion_ci(0.95, method="wilson")
        return float(found.low), float(found.high)

    def __str__(self) -> str:
        if not self.n:
            return "no rows"
        low, high = self.interval
        return f"{self.value:.1%} ({self.right} of {self.n}; 95% interval {low:.1%} to {high:.1%})"

    def as_dict(self) -> dict[str, Any]:
        low, high = self.interval
        return {"right": self.right, "n": self.n, "value": self.value if self.n else None, "low": low, "high": high}


def judge(raw: str, gold: Sequence[Call], declared: Sequence[str]) -> Verdict:
    """Compare a raw answer with the gold calls; an answer in words is right exactly where no call is wanted.

    Args:
        raw: the model's output, special tokens included.
        gold: the calls that it should have made, in any order.
        declared: the names of the tools it was given.
    """
    try:
        answer = parse(raw)
    except ParseError:
        return Verdict("decoder_failed", (), raw)
    if not gold and not answer.calls and not answer.text:
        return Verdict("no_answer", (), "")
    return Verdict(_error(answer.calls, gold, declared), answer.calls, answer.text)


def _error(calls: Sequence[Call], gold: Sequence[Call], declared: Sequence[str]) -> str | None:
    if any(call.name not in declared for call in calls):
        return "invented_func_name"
    if not calls and gold:
        return "no_call"
    if calls and not gold:
        return "unexpected_call"
    if len(calls) != len(gold):
        return "wrong_count"
    if sorted(call.name for call in calls) != sorted(call.name for call in gold):
        return "wrong_func_name"
    return None if _same_calls(calls, gold) else "value_error"


def _same_calls(calls: Sequence[Call], gold: Sequence[Call]) -> bool:
    """Equal as multisets: each gold call is used up by one that equals it."""
    left = list(gold)
    for call in calls:
        equal = (i for i, g in enumerate(left) if g.name == call.name and same_value(g.arguments, call.arguments))
        if (match := next(equal, None)) is None:
            return False
        del left[match]  # by place: list.remove would take the first that Python calls equal, and True == 1 there
    return not left


def same_value(a: Any, b: Any) -> bool:
    """Equality of JSON values: 1 equals 1.0, but true does not equal 1; lists keep their order."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same_value(v, b[k]) for k, v in a.items())
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(same_value(x, y) for x, y in zip(a, b, strict=True))
    return a == b
