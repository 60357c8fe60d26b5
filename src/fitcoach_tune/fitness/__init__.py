"""The shipped example: a fitness coach with seven tools and datasets of what people ask it.

The data's own card is `README.md` beside this file: how the queries were written and labelled, and what is missing.
The rows to train on are made by `generator` from hand-written phrases, and are always the same; `builtin` knows where
each set lies.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DATASET_VERSION = "2.1.0"
"""Version of `tools.json` and of all rows together. Any change to a row, a label or a tool raises it."""


def tools() -> list[dict[str, Any]]:
    """Return the coach's seven tools in declaration order.

    Each is a `{"type": "function", "function": {"name", "description", "parameters", "return"}}` dict, as
    `transformers.utils.get_json_schema` would make it. No tool takes an argument. The list is read anew on every call,
    so a caller may change it freely.
    """
    return json.loads(Path(__file__).with_name("tools.json").read_text(encoding="utf-8"))
