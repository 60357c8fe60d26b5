"""What the phrases files hold, and values drawn for the slots of a pattern: one function for each tool."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from fitcoach_tune.logbook import spoken

COPIED = ("label", "text")
"""Slots whose text is an argument letter for letter."""

_PHRASES = Path(__file__).resolve().parent / "phrases"
_T = TypeVar("_T")


@dataclass(frozen=True)
class Pattern:
    """A line of a phrases file: its text with slots, and the arguments that its words give."""

    text: str
    fixed: dict[str, Any] = field(default_factory=dict)

    @property
    def slots(self) -> list[str]:
        return re.findall(r"\{(\w+)\}", self.text)

    @property
    def is_open(self) -> bool:
        """Whether it ends in the user's own words, so that what comes after could be taken for a part of them."""
        return self.text.endswith(tuple(f"{{{slot}}}" for slot in COPIED))


@dataclass(frozen=True)
class Drawn:
    """What was drawn for a pattern: a text for each slot that it may have, and the call's arguments."""

    texts: dict[str, str]
    arguments: dict[str, Any]


def pick(rng: Random, items: Sequence[_T]) -> _T:
    """Draws one. `Random.random` is the method whose sequence Python promises not to change."""
    return items[int(rng.random() * len(items))]


def lines(name: str) -> list[str]:
    """The lines of a phrases file."""
    return (_PHRASES / f"{name}.txt").read_text(encoding="utf-8").splitlines()


def _table(name: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")] for line in lines(name)]


def read_pattern(line: str) -> Pattern:
    """`text with {slots}`, or `text with {slots} -> argument=value`."""
    text, _, fixed = line.partition(" -> ")
    key, _, value = fixed.partition("=")
    return Pattern(text, {key: {"true": True, "false": False}.get(value, value)} if key else {})


def patterns(tool: str) -> list[Pattern]:
    """The patterns of one tool, in the order of its file."""
    return [read_pattern(line) for line in lines(tool)]


# Values of each tool --------------------------------------------------------------------------------------------------

_KINDS, _METRICS, _GOALS, _MEALS = _table("kinds"), _table("metrics"), _table("goals"), _table("meals")
_LABELS, _REMINDERS, _QUIET, _LOUD = lines("labels"), lines("reminders"), lines("quiet"), lines("loud")
_FOODS = lines("foods")

_SHORT, _LONG = [*range(10, 65, 5)] * 2 + [12, 18, 22, 28, 33, 37, 41, 47, 52, 58], [70, 75, 80, 90, 105, 120, 150, 180]
_DELAYS = [2, 3, 5, 8, 10, 12, 15, 20, 25, 30, 35, 40, 45, 50, 60, 70, 75, 80, 90, 100, 105, 120, 150, 180, 240]
_HOURS = [*range(4, 12)] * 4 + [5, 6, 7, 8] * 4 + [0, *range(12, 24)]
_MINUTES = [0, 30] * 4 + [15, 45] * 3 + [5, 10, 20, 25, 35, 40, 50, 55] * 2 + [3, 12, 18, 42, 48, 52]
_SPANS = [2, 3, 4, 5, 6, 7, 7, 7, 8, 9, 10, 12, 14, 14, 14, 15, 18, 20, 21, 25, 28, 30, 30, 35, 42, 45, 56, 60, 90, 100]
_DAY_SETS = [
    *[spoken.DAYS, spoken.DAYS[:5], spoken.DAYS[5:]] * 4,
    *[(day,) for day in spoken.DAYS],
    *[("tue", "thu"), ("mon", "wed", "fri"), ("mon", "thu"), ("wed", "sun"), ("fri", "sat"), ("tue", "wed", "sat")],
    *[spoken.DAYS[:4], spoken.DAYS[1:4], spoken.DAYS[:3], spoken.DAYS[:6], spoken.DAYS[3:6]],
]


def _other(rng: Random, items: Sequence[_T], value: _T) -> _T:
    return pick(rng, [item for item in items if item != value])


def _workout(rng: Random, pattern: Pattern) -> Drawn:
    goes_far = {"km", "km_long"} & set(pattern.slots)
    kinds = [form for form in _KINDS if form[4] or not goes_far]
    kind = pick(rng, list(dict.fromkeys(form[0] for form in kinds)))
    _, noun, doing, did, pace = pick(rng, [form for form in kinds if form[0] == kind])
    minutes = pick(rng, {"hiking": [45, 50, 55, 60, *_LONG], "cycling": [*_SHORT, *_LONG]}.get(kind, _SHORT))
    texts = {"noun": noun, "doing": doing, "did": did}
    texts["minutes"] = pick(rng, spoken.duration(minutes))
    texts["long"] = pick(rng, spoken.duration_before(minutes))
    texts["old_minutes"] = pick(rng, spoken.duration(_other(rng, _SHORT, minutes)))
    arguments: dict[str, Any] = {"kind": kind, "minutes": minutes}
    if goes_far:
        fastest, slowest = map(int, pace.split("-"))
        step = 50 if kind == "swimming" else pick(rng, [100, 500, 1000])
        metres = max(step, round(minutes * 1000 / (fastest + rng.random() * (slowest - fastest)) / step) * step)
        texts["km"] = pick(rng, spoken.kilometres(metres))
        texts["km_long"] = pick(rng, spoken.kilometres_before(metres))
        arguments["distance_km"] = _plain(metres / 1000)
    return Drawn(texts, arguments)


def _plain(value: float) -> float:
    """Whole numbers without a point: the wire format writes 5 and 5.0 differently."""
    return int(value) if value == int(value) else value


def _alarm(rng: Random, pattern: Pattern) -> Drawn:
    slots = pattern.slots
    contexts = {"morning": range(5, 11), "afternoon": range(13, 18), "evening": range(18, 23)}
    context = next((slot for slot in contexts if slot in slots), None)
    hour, minute = pick(rng, list(contexts[context]) if context else _HOURS), pick(rng, _MINUTES)
    days, label = pick(rng, _DAY_SETS), pick(rng, _LABELS)
    texts = {"label": label, "repeat": pick(rng, spoken.weekdays(days))}
    texts["clear"] = pick(rng, spoken.clear_clock(hour, minute))
    texts[context or "time"] = pick(rng, (spoken.half_day if context else spoken.clock)(hour, minute))
    texts["old_time"] = pick(rng, spoken.clock(_other(rng, _HOURS, hour), pick(rng, _MINUTES)))
    arguments: dict[str, Any] = {"time": f"{hour:02d}:{minute:02d}"}
    arguments |= {"label": label} if "label" in slots else {}
    return Drawn(texts, arguments | ({"repeat": list(days)} if "repeat" in slots else {}))


def _history(rng: Random, pattern: Pattern) -> Drawn:
    metric = pick(rng, list(dict.fromkeys(row[0] for row in _METRICS)))
    days = 1 if set(pattern.slots) <= {"metric", "past"} and rng.random() < 0.03 else pick(rng, _SPANS)
    texts = {
        "metric": pick(rng, [said for name, said in _METRICS if name == metric]),
        "past": pick(rng, spoken.past(days)),
        "old_past": pick(rng, spoken.past(_other(rng, _SPANS, days))),
    }
    if days > 1:
        texts |= {"span": pick(rng, spoken.span(days)), "day_long": pick(rng, spoken.span_before(days))}
    return Drawn(texts, {"metric": metric, "days": days})


_GOAL_VALUES: dict[str, list[float]] = {
    "steps": [*range(4000, 20001, 500)],
    "sleep_hours": [6, 6.5, 7, 7.5, 8, 8.5, 9, 9.5],
    "active_minutes": [15, 20, 25, 30, 35, 40, 45, 50, 60, 75, 90, 120],
    "weight_kg": [*range(52, 101), 58.5, 61.5, 63.5, 66.5, 72.5, 77.5, 82.5],
    "water_litres": [1.5, 2, 2.5, 3, 3.5, 1.8, 2.2, 2.8],
    "distance_km": [3, 4, 5, 6, 7, 8, 10, 12, 15, 20, 4.5, 6.5, 7.5],
}


def _amounts(metric: str, value: float) -> tuple[list[str], list[str]]:
    """How an amount is said after the goal's name, and on its own, where the unit must tell the goal."""
    if metric == "steps":
        said = spoken.thousands(int(value))
        return [*said, *(f"{text} steps" for text in said)], [f"{text} steps" for text in said]
    if metric == "sleep_hours":
        said = spoken.measure(value, "hours", "h")
        return said, [f"{text} of sleep" for text in said]
    if metric == "active_minutes":
        said = spoken.duration(int(value))
        counted = [f"{text} active minutes" for text in spoken.number(value)]
        return said, [*counted, *(f"{text} of {what}" for text in said for what in ("activity", "exercise"))]
    if metric == "weight_kg":
        said = spoken.kilograms(value)
        return said, [*said, *(f"a weight of {text}" for text in said)]
    if metric == "water_litres":
        said = spoken.measure(value, "litres", "l", "liters")
        return said, [f"{text} of water" for text in said]
    # "A goal of 8k" could be 8,000 steps.
    said = [text for text in spoken.kilometres(int(value * 1000)) if text[-1] not in "kK"]
    return said, said


def _goal(rng: Random, pattern: Pattern) -> Drawn:
    metrics = [metric for metric in _GOAL_VALUES if metric != "weight_kg" or "daily" not in pattern.slots]
    metric = pattern.fixed.get("metric") or pick(rng, metrics)
    value = pick(rng, _GOAL_VALUES[metric])
    after_name, alone = _amounts(metric, value)
    figures = spoken.thousands(int(value)) if metric == "steps" else spoken.number(value)
    texts = {
        "named": pick(rng, [said for name, said in _GOALS if name == metric]),
        "amount": pick(rng, after_name),
        "goal": pick(rng, alone),
        "figure": pick(rng, figures),
        "old_amount": pick(rng, _amounts(metric, _other(rng, _GOAL_VALUES[metric], value))[0]),
    }
    return Drawn(texts | {"daily": texts["goal"]}, {"metric": metric, "value": value})


def _food(rng: Random, line: str) -> tuple[str, str]:
    """(as it is said, as it is labelled): amounts are said and not labelled."""
    if "/" in line:
        one, many = line.split("/")
        if rng.random() < 0.4:
            return f"{'an' if one[0] in 'aeiou' else 'a'} {one}", one
        count = pick(rng, ["two ", "three ", "some ", "a few ", "a couple of ", "2 ", "3 ", "", "", ""])
        return count + many, many
    name, measures = line.split(" < ")
    return (name if rng.random() < 0.5 else f"{pick(rng, measures.split(', '))} {name}"), name


def _meal(rng: Random, pattern: Pattern) -> Drawn:
    meal = pick(rng, list(dict.fromkeys(row[0] for row in _MEALS)))
    _, noun, for_meal = pick(rng, [row for row in _MEALS if row[0] == meal])
    rest, said, foods = list(_FOODS), [], []
    for _ in range(pick(rng, [1, 1, 1, 2, 2, 2, 2, 3, 3, 4])):
        line = pick(rng, rest)
        rest.remove(line)
        text, food = _food(rng, line)
        said, foods = [*said, text], [*foods, food]
    if len(said) == 2:
        joined = pick(rng, [" and ", " and ", " and ", " with ", " plus ", " + ", " & ", ", "]).join(said)
    else:
        last = pick(rng, [" and ", " and ", ", ", " plus ", ", then "])
        joined = last.join(filter(None, (", ".join(said[:-1]), said[-1])))
    return Drawn({"foods": joined, "meal": noun, "for_meal": for_meal}, {"foods": foods, "meal": meal})


def _reminder(rng: Random, pattern: Pattern) -> Drawn:
    text, minutes = pick(rng, _REMINDERS), pick(rng, _DELAYS)
    texts = {
        "text": text,
        "minutes": pick(rng, spoken.duration(minutes)),
        "old_minutes": pick(rng, spoken.duration(_other(rng, _DELAYS, minutes))),
        "quiet": pick(rng, _QUIET),
        "loud": pick(rng, _LOUD),
    }
    return Drawn(texts, {"text": text, "in_minutes": minutes})


def _weight(rng: Random, pattern: Pattern) -> Drawn:
    tenths, shape = 480 + int(rng.random() * 640), rng.random()
    tenths -= tenths % 10 if shape < 0.2 else tenths % 5 if shape < 0.4 else 0
    value = _plain(tenths / 10)
    old = _plain(round(value + pick(rng, [-4, -2.5, -1.2, 0.9, 1.5, 3, 6.3]), 1))
    texts = {"kg": spoken.kilograms(value), "figure": spoken.number(value), "old_kg": spoken.kilograms(old)}
    return Drawn({slot: pick(rng, said) for slot, said in texts.items()}, {"kilograms": value})


DRAW: dict[str, Callable[[Random, Pattern], Drawn]] = {
    "log_workout": _workout,
    "set_alarm": _alarm,
    "get_history": _history,
    "set_goal": _goal,
    "log_meal": _meal,
    "set_reminder": _reminder,
    "log_weight": _weight,
}
