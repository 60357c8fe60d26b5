"""Comparing what the model said with what it should have said, argument by argument."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fitcoach_tune.functiongemma import Call, ParseError, parse
from fitcoach_tune.gold import Answer, Gold, GoldCall, Strings, same_value

# What may be wrong with an answer, in the terms of the Berkeley Function-Calling Leaderboard (Patil et al. 2025, ICML)
# as far as it has them, and in the order in which they are looked for.
ERRORS = {
    "decoder_failed": "the answer cannot be parsed",
    "no_answer": "neither a call nor a word, where words are wanted",
    "invented_func_name": "calls a function that was not declared",
    "no_call": "calls nothing, where a call is wanted",
    "unexpected_call": "calls something, where no call is wanted",
    "wrong_count": "more or fewer calls than wanted",
    "wrong_func_name": "calls another function",
    "missing_required": "leaves out a required argument",
    "unexpected_param": "gives an argument that is not wanted",
    "type_error": "an argument of another type",
    "value_error": "another value of an argument",
    "missing_optional": "leaves out an optional argument that is wanted",
}


@dataclass(frozen=True)
class Pair:
    """A call beside the gold call that it answers best; either may be missing.

    Attributes:
        wanted, got: the two functions' names.
        error: what is wrong with the call, or None.
        detail: the argument that is wrong, in words; empty where there is none.
        right, given, due: arguments that are right, that the call gives, and that the gold call asks for.
    """

    wanted: str | None
    got: str | None
    error: str | None = None
    detail: str = ""
    right: int = 0
    given: int = 0
    due: int = 0


@dataclass(frozen=True)
class Verdict:
    """How one answer compares with the gold.

    Attributes:
        error: None if the answer is right, else a key of `ERRORS`.
        detail: what exactly is wrong, in words; may be empty.
        calls: the parsed calls; empty if the answer could not be parsed.
        text: what the answer says besides calls.
        pairs: its calls beside those of the gold answer that it comes closest to.
    """

    error: str | None
    detail: str
    calls: tuple[Call, ...]
    text: str
    pairs: tuple[Pair, ...]

    @property
    def right(self) -> bool:
        return self.error is None


def judge(raw: str, gold: Gold, tools: Sequence[dict], strings: Strings = "exact") -> Verdict:
    """Compare a raw answer with the gold; an answer in words is right exactly where no call is wanted.

    Calls may come in any order. Of several gold answers the one that the answer comes closest to counts.

    Args:
        raw: the model's output, special tokens included.
        gold: what is wanted.
        tools: what was declared, in the common form.
        strings: how strings are compared, unless the gold says otherwise.
    """
    try:
        said = parse(raw)
    except ParseError as error:
        return Verdict("decoder_failed", str(error), (), raw, tuple(_pairs((), gold.answers[0], {}, "exact")))
    required = {t["function"]["name"]: t["function"].get("parameters", {}).get("required", ()) for t in tools}
    rule = strings if gold.strings == "exact" else gold.strings
    verdicts = []
    for answer in gold.answers:
        pairs = tuple(_pairs(said.calls, answer, required, rule))
        error, detail = _error(said.calls, bool(said.text), answer, pairs, required)
        verdicts.append(Verdict(error, detail, said.calls, said.text, pairs))
        if error is None:
            return verdicts[-1]
    order = list(ERRORS)
    return max(verdicts, key=lambda v: order.index(v.error))


def _error(
    calls: Sequence[Call], says: bool, answer: Answer, pairs: Sequence[Pair], declared: dict[str, Any]
) -> tuple[str | None, str]:
    if not answer and not calls:
        return (None, "") if says else ("no_answer", "")
    if invented := [call.name for call in calls if call.name not in declared]:
        return "invented_func_name", invented[0]
    if not calls:
        return "no_call", ""
    if not answer:
        return "unexpected_call", calls[0].name
    if len(calls) != len(answer):
        return "wrong_count", f"{len(calls)} calls, {len(answer)} wanted"
    if other := next((p for p in pairs if p.wanted != p.got), None):
        return "wrong_func_name", f"{other.got}, {other.wanted} wanted"
    found = [(pair.error, pair.detail) for pair in pairs if pair.error]
    order = list(ERRORS)
    return min(found, key=lambda one: order.index(one[0]), default=(None, ""))


def _pairs(calls: Sequence[Call], answer: Answer, required: dict[str, Any], strings: Strings) -> list[Pair]:
    """Pair calls with gold calls so that as many as possible are right, then have the right name, then arguments."""
    table = [[compare(call, gold, required.get(gold.name, ()), strings) for gold in answer] for call in calls]
    rows, columns = _assign(table) if calls and answer else ((), ())
    pairs = [table[i][j] for i, j in zip(rows, columns, strict=True)]
    left = [gold for j, gold in enumerate(answer) if j not in columns]
    over = [call for i, call in enumerate(calls) if i not in rows]
    pairs += [Pair(gold.name, None, due=len(gold.arguments.keys() - gold.optional)) for gold in left]
    return pairs + [Pair(None, call.name, given=len(call.arguments)) for call in over]


def _assign(table: list[list[Pair]]) -> tuple[list[int], list[int]]:
    if len(table) == len(table[0]) == 1:
        return [0], [0]
    from scipy.optimize import linear_sum_assignment

    more = len(table) + len(table[0])  # than all shares together

    def worth(pair: Pair) -> float:
        share = pair.right / max(1, pair.given, pair.due)
        return more * (more * (pair.error is None) + (pair.wanted == pair.got)) + share

    rows, columns = linear_sum_assignment([[worth(pair) for pair in row] for row in table], maximize=True)
    return rows.tolist(), columns.tolist()


def compare(call: Call, gold: GoldCall, required: Sequence[str] = (), strings: Strings = "exact") -> Pair:
    """One call beside one gold call.

    Args:
        required: the arguments that the gold call's function requires.
    """
    given, due = len(call.arguments), len(gold.arguments.keys() - gold.optional)
    if call.name != gold.name:
        return Pair(gold.name, call.name, "wrong_func_name", "", 0, given, due)
    missing = [name for name in gold.arguments if name not in call.arguments and name not in gold.optional]
    wrong, right = [], 0
    for name, value in call.arguments.items():
        accepted = gold.arguments.get(name, ())
        if any(same_value(value, other, strings) for other in accepted):
            right += 1
            due += name in gold.optional
        elif not accepted:
            wrong.append(("unexpected_param", name))
        else:
            same_kind = _kind(value) in map(_kind, accepted)
            told = f"{name}: {value!r}, {' or '.join(map(repr, accepted))} wanted"
            wrong.append(("value_error" if same_kind else "type_error", told))
    wrong += [("missing_required" if name in required else "missing_optional", name) for name in missing]
    order = list(ERRORS)
    error, detail = min(wrong, key=lambda item: order.index(item[0]), default=(None, ""))
    return Pair(gold.name, call.name, error, detail, right, given, due)


def _kind(value: Any) -> type:
    return float if isinstance(value, int) and not isinstance(value, bool) else type(value)
