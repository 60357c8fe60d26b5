"""The fitness coach's seven functions, for `infer --execute`: they read the day's data from a small JSON file.

Each stands behind the declaration of its name in `tools.json`, which is what transformers makes of its docstring.
"""

from __future__ import annotations

import codecs
import difflib
from collections.abc import Callable
from errno import EINVAL
from pathlib import Path
from typing import Any

from fitcoach_tune.errors import DataError
from fitcoach_tune.strict_json import Flaw, parse_json, quote

SAMPLE = Path(__file__).resolve().parent / "day.json"
"""A day that nobody had."""

_LARGEST = 1 << 20
_KEYS = (
    "steps", "daily_step_goal", "sleeping_minutes", "active_minutes", "heart_rate", "body_battery_level",
)  # fmt: skip

SENTENCES: dict[str, Callable[[Any], str]] = {
    "get_steps": lambda steps: f"You have walked {steps:,} steps today.",
    "get_daily_step_goal": lambda goal: f"Your goal for today is {goal:,} steps.",
    "get_step_goal_progress": lambda percent: f"You have reached {percent}% of today's step goal.",
    "get_sleeping_minutes": lambda minutes: f"You have slept {_as_hours(minutes)}.",
    "get_active_minutes": lambda minutes: f"You have been active for {_as_hours(minutes)} today.",
    "get_heart_rate": lambda rates: f"Your heart rate today was between {rates[0]} and {rates[1]} beats a minute.",
    "get_body_battery_level": lambda level: f"Your body battery is at {level}%.",
}
"""How to say what each function returns."""


def _as_hours(minutes: int) -> str:
    hours, rest = divmod(minutes, 60)
    return f"{minutes} minutes" if minutes < 60 else f"{hours} h {rest} min ({minutes} minutes)"


class Provider:
    """The functions, on one file.

    The file is read anew at every call, so that an app may keep it up to date. It is a JSON object with whole
    numbers, of which any may be missing: `steps`, `daily_step_goal`, `sleeping_minutes`, `active_minutes`,
    `body_battery_level`; and `heart_rate`, a list of the lowest and the highest.

    Raises:
        DataError: the file cannot be read, or is no such object.
    """

    def __init__(self, path: Path | None = None):
        self._path = path or SAMPLE
        _read_day(self._path)

    def functions(self) -> dict[str, Callable[[], Any]]:
        """The functions by name."""
        return {name: getattr(self, name) for name in SENTENCES}

    def get_steps(self) -> int:
        """
        Get the number of steps walked today.

        Returns:
            int: The number of steps taken today
        """
        return self._get("steps")

    def get_daily_step_goal(self) -> int:
        """
        Get the daily step goal for today.

        Returns:
            int: The daily step goal
        """
        return self._get("daily_step_goal")

    def get_step_goal_progress(self) -> int:
        """
        Get the step goal progress for today in percentage.

        Returns:
            int: The step goal progress in percentage
        """
        goal = self._get("daily_step_goal")
        # Rounded down: a goal that is missed by a step is not reached.
        return 100 * self._get("steps") // goal if goal else 100

    def get_sleeping_minutes(self) -> int:
        """
        Get the number of minutes that the user has slept.

        Returns:
            int: The number of sleeping minutes
        """
        return self._get("sleeping_minutes")

    def get_active_minutes(self) -> int:
        """
        Get the number of minutes that the user has been active today.

        Returns:
            int: The number of active minutes
        """
        return self._get("active_minutes")

    def get_heart_rate(self) -> tuple[int, int]:
        """
        Get the minimum and maximum heart rate measured today.

        Returns:
            tuple[int, int]: The minimum and maximum heart rate
        """
        lowest, highest = self._get("heart_rate")
        return lowest, highest

    def get_body_battery_level(self) -> int:
        """
        Get the current body battery level.

        Returns:
            int: The body battery level
        """
        return self._get("body_battery_level")

    def _get(self, key: str) -> Any:
        day = _read_day(self._path)
        if key not in day:
            raise LookupError(f"the day's data has no {key}")
        return day[key]


def _read_day(path: Path) -> dict[str, Any]:
    hint = f"give an object with {', '.join(_KEYS)}"
    try:
        if path.exists() and not path.is_file():  # a device or a pipe may have no end
            raise OSError(EINVAL, "it is no regular file")
        with path.open("rb") as file:
            text = file.read(_LARGEST + 1)
        if len(text) > _LARGEST:
            raise Flaw("", f"a day has at most {_LARGEST:,} bytes")
        day = parse_json(text.removeprefix(codecs.BOM_UTF8))
    except OSError as error:
        what = f"cannot be read: {error.strerror or error}"
        raise DataError(what, where=str(path), hint="check the path of --fitness-data") from None
    except Flaw as flaw:
        raise DataError(str(flaw), where=f"{path}:{flaw.line}" if flaw.line else str(path), hint=hint) from None
    if not isinstance(day, dict):
        raise DataError("the day's data must be an object", where=str(path), hint=hint)
    for key, value in day.items():
        if key not in _KEYS:
            near = difflib.get_close_matches(key[:80], _KEYS, n=1)
            what, guess = f"unknown key {quote(key)}", f"did you mean {near[0]}?" if near else hint
            raise DataError(what, where=str(path), hint=guess)
        if not (_is_range(value) if key == "heart_rate" else _is_count(value)):
            wanted = (
                "a list of two whole numbers, the lower first" if key == "heart_rate" else "a whole number from 0 on"
            )
            raise DataError(f"{key} must be {wanted}", where=str(path))
    return day


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_range(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_count, value)) and value[0] <= value[1]
