"""The three shipped sets of the fitness example, their phrases and their card, read as a person would."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

from fitcoach_tune import builtin, fitness
from fitcoach_tune.splits import normalise

DEV, GOLD = "builtin:fitness-dev", "builtin:fitness-gold"
SETS = (builtin.FITNESS, DEV, GOLD)
FOLDER = Path(fitness.__file__).parent
CARD = (FOLDER / "README.md").read_text(encoding="utf-8")
LABELS = {
    "steps": "get_steps",
    "goal": "get_daily_step_goal",
    "progress": "get_step_goal_progress",
    "sleep": "get_sleeping_minutes",
    "active": "get_active_minutes",
    "heart": "get_heart_rate",
    "battery": "get_body_battery_level",
}


def rows_of(source: str) -> list[dict]:
    return [json.loads(line) for line in builtin.rows_path(source).read_text(encoding="utf-8").splitlines()]


def phrase_lines() -> dict[str, list[list[str]]]:
    """File → its lines' columns, read as a person would."""
    files = {file.stem: file.read_text(encoding="utf-8").splitlines() for file in (FOLDER / "phrases").glob("*.txt")}
    return {name: [line.split("\t") for line in lines if line[0] != "#"] for name, lines in files.items()}


def phrases_by_id() -> dict[str, str]:
    """The row's id → the phrase it is made of: ids are numbered in the order of the files."""
    found, files = {}, phrase_lines()
    labelled = [(label, text) for label in LABELS for (text,) in files[label]]
    labelled += [(label, text) for label, text in files["parallel"]]
    labelled += [(f"unserved:{kind}", text) for kind, text in files["unserved"]]
    labelled += [(f"{language}-{label}", text) for language, label, text in files["languages"]]
    numbers: Counter[str] = Counter()
    for label, text in labelled:
        numbers[label] += 1
        found[f"{label}-{numbers[label]:03d}"] = text
    return found


ROWS = {source: rows_of(source) for source in SETS}
TRAIN = ROWS[builtin.FITNESS]
EVERY = [row for rows in ROWS.values() for row in rows]
PHRASES = phrases_by_id()


def text_of(row: dict) -> str:
    return row["messages"][1]["content"]


def calls_of(row: dict) -> list[str]:
    return [call["function"]["name"] for call in row["messages"][2].get("tool_calls", [])]


def split_id(name: str) -> tuple[str, str]:
    """(language, label) of an id."""
    language, label = re.fullmatch(r"(?:([a-z]{2})-)?(.+)-\d+", name).groups()
    return language or "en", label


def words(text: str) -> list[str]:
    """Words without case, punctuation or apostrophes: "What's" and "whats" are the same."""
    return normalise(text).split()


def key(text: str) -> str:
    return normalise(text).replace(" ", "")


def table(header: str) -> list[list[str]]:
    """The cells of the card's table that begins with `header`, without backticks."""
    lines = CARD[CARD.index(f"| {header}") :].split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]
