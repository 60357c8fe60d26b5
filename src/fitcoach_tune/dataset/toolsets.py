"""The tools of rows: equal ones read once and shared, and notes on what the model is not shown of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

from fitcoach_tune.dataset.columnar import clean, type_names
from fitcoach_tune.strict_json import Flaw, parse_cell, quote
from fitcoach_tune.tools import normalise_tools

_SHOWN = {"description", "type", "properties", "required", "nullable"}


class ToolCache:
    """Gives every row whose tools are equal the same list object, and reports a fault of shared tools once."""

    def __init__(self, counts: Counter[str]):
        self._counts = counts
        self._by_text: dict[str, list[dict] | Flaw] = {}
        self._by_content: dict[str, list[dict]] = {}
        self.not_shown: dict[str, None] = {}
        """A note on each tool with keywords that the format leaves out, in the order they were met."""

    def get(self, cell: object, *, columnar: bool = False) -> list[dict]:
        """The tools in `cell`: a list, or its JSON text.

        Args:
            columnar: nulls inside a `cell` that is not text come from Arrow's merging of schemas: drop them.

        Raises:
            Flaw: they are not tools; `repeated` from the second equal cell on.
        """
        key = cell if isinstance(cell, str) else json.dumps(cell)
        if key not in self._by_text:
            try:
                self._by_text[key] = self._read(cell, columnar)
            except Flaw as flaw:
                self._by_text[key] = Flaw(flaw.field, flaw.what, repeated=True)
                raise
        tools = self._by_text[key]
        if isinstance(tools, Flaw):
            raise tools.with_traceback(None)
        return tools

    def _read(self, cell: object, columnar: bool) -> list[dict]:
        if columnar:
            cell = clean(cell, self._counts)
        tools = normalise_tools(parse_cell(cell, "tools"))
        self.not_shown |= dict.fromkeys(filter(None, map(_not_shown, tools)))
        return self._by_content.setdefault(json.dumps(tools), tools)


def _not_shown(tool: dict) -> str | None:
    """A note that names the schema keywords of a tool's parameters that the wire format does not carry, if any."""
    function = tool["function"]
    hidden = list(_hidden(function.get("parameters", {}).get("properties"), ""))
    return f"tool {quote(function['name'])}: the format does not show {', '.join(hidden)}" if hidden else None


def _hidden(properties: object, path: str) -> Iterator[str]:
    for name, schema in properties.items() if isinstance(properties, dict) else ():
        if not isinstance(schema, dict):
            continue
        shown = _SHOWN | {"string": {"enum"}, "array": {"items"}}.get("".join(type_names(schema)), set())
        yield from (f"{path}{name}.{key}" for key in schema if key not in shown)
        yield from _hidden(schema.get("properties"), f"{path}{name}.")
