"""The second shipped example: a logbook with seven tools that take arguments, and a dataset of what people say to it.

The data's own card is `README.md` beside this file: how the queries were written, how each value is labelled, and what
is missing. The rows are made by `generator`, and are always the same.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DATASET_VERSION = "1.1.0"
"""Version of `tools.json` and `queries.jsonl` together. Any change to a row, a label or a tool raises it."""

_HERE = Path(__file__).resolve().parent


def tools() -> list[dict[str, Any]]:
    """Return the logbook's seven tools in declaration order.

    Each is a `{"type": "function", "function": {"name", "description", "parameters", "return"}}` dict. Their arguments
    are strings, numbers, integers, booleans and lists, some of an enum, some optional. The list is read anew on every
    call, so a caller may change it freely.
    """
    return json.loads((_HERE / "tools.json").read_text(encoding="utf-8"))


def rows_path() -> Path:
    """Return the path of the packaged dataset: UTF-8 JSON Lines, one `{"id", "messages"}` object a line.

    The rows carry no tools of their own; every row belongs to the list that `tools` returns.
    """
    return _HERE / "queries.jsonl"
