"""The examples that the package brings along, by the names that a source may have."""

from __future__ import annotations

import importlib
from pathlib import Path

_ROWS = {
    "builtin:fitness": ("fitness", "queries.jsonl"),
    "builtin:fitness-dev": ("fitness", "dev.jsonl"),
    "builtin:fitness-gold": ("fitness", "gold.jsonl"),
    "builtin:logbook": ("logbook", "queries.jsonl"),
}

NAMES = tuple(_ROWS)
FITNESS = "builtin:fitness"


def tools(name: str) -> list[dict]:
    """The tools of one of `NAMES`, as `transformers.utils.get_json_schema` would make them."""
    return importlib.import_module(f"fitcoach_tune.{_ROWS[name][0]}").tools()


def rows_path(name: str) -> Path:
    """The rows of one of `NAMES`: UTF-8 JSON Lines, one `{"id", "messages"}` object a line, for its `tools`."""
    package, file = _ROWS[name]
    return Path(__file__).resolve().parent / package / file
