"""JSON values and tool declarations as the published model's own chat template writes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fitcoach_tune.errors import DataError
from fitcoach_tune.functiongemma.tokens import END_FUNCTION_DECLARATION, ESCAPE, MAX_DEPTH, START_FUNCTION_DECLARATION

KEYWORDS = ("description", "type", "properties", "required", "nullable")
"""Keys that the published template skips in every `properties`, taking them for schema keywords."""


def _quoted(value: Any) -> str:
    return f"{ESCAPE}{value}{ESCAPE}"


def _sorted_items(mapping: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Items by key without regard to case, ties in their own order: what Jinja's `dictsort` gives."""
    for key in mapping:
        if not isinstance(key, str):
            raise DataError(f"The key {key!r} is not a string.", hint="use strings for every key of an object")
    return sorted(mapping.items(), key=lambda item: item[0].lower())


def _check_depth(depth: int) -> None:
    if depth > MAX_DEPTH:
        raise DataError(f"Objects and lists are nested deeper than {MAX_DEPTH} levels.", hint="flatten the value")


def value_text(value: Any, *, quote_keys: bool = False, depth: int = 1) -> str:
    """One JSON value. `quote_keys` is how objects appear inside a declaration's `items`.

    Raises:
        DataError: it is nested deeper than `MAX_DEPTH`, has a key that is not a string, or an int too long to write.
    """
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        _check_depth(depth)
        items = [
            f"{_quoted(key) if quote_keys else key}:{value_text(inner, quote_keys=quote_keys, depth=depth + 1)}"
            for key, inner in _sorted_items(value)
        ]
        return "{" + ",".join(items) + "}"
    if isinstance(value, (list, tuple)):
        _check_depth(depth)
        return "[" + ",".join(value_text(inner, quote_keys=quote_keys, depth=depth + 1) for inner in value) + "]"
    try:
        return str(value)
    except ValueError as error:  # an int with more digits than Python converts
        raise DataError(f"A number cannot be written: {error}.", hint="send it as a string") from error


def lookup(schema: Any, key: str) -> Any:
    """Look up a key as a template does: whatever is missing, or is no object at all, prints as nothing."""
    return schema.get(key, "") if isinstance(schema, Mapping) else ""


def _names(names: Any) -> str:
    if not isinstance(names, (list, tuple)):
        raise DataError(f"{names!r} stands in a tool where a list belongs.", hint="write it as a list of strings")
    return "[" + ",".join(_quoted(name) for name in names) + "]"


def _items_schema(items: Mapping[str, Any], depth: int) -> str:
    parts = []
    for key, value in _sorted_items(items):
        if value is None:
            continue
        if key == "properties":
            text = "{" + (_properties(value, depth + 1) if isinstance(value, Mapping) else "") + "}"
        elif key == "required":
            text = _names(value)
        elif key == "type" and isinstance(value, str):
            text = _quoted(value.upper())
        elif key == "type" and isinstance(value, (list, tuple)):
            text = _names([str(one).upper() for one in value])
        else:
            text = value_text(value, quote_keys=True)
        parts.append(f"{key}:{text}")
    return "{" + ",".join(parts) + "}"


def _parameter(schema: Any, depth: int) -> str:
    kind = str(lookup(schema, "type")).upper()
    parts = [f"description:{_quoted(lookup(schema, 'description'))}"]
    if kind == "STRING" and lookup(schema, "enum"):
        parts.append(f"enum:{value_text(schema['enum'], quote_keys=True)}")
    elif kind == "OBJECT":
        # An object without `properties` is searched for them itself, so that its other keywords turn into parameters.
        inner = schema["properties"] if isinstance(lookup(schema, "properties"), Mapping) else schema
        parts.append("properties:{" + _properties(inner, depth + 1) + "}")
        if lookup(schema, "required"):
            parts.append(f"required:{_names(schema['required'])}")
    elif kind == "ARRAY" and isinstance(lookup(schema, "items"), Mapping) and schema["items"]:
        parts.append(f"items:{_items_schema(schema['items'], depth)}")
    parts.append(f"type:{_quoted(kind)}")
    return "{" + ",".join(parts) + "}"


def _properties(properties: Mapping[str, Any], depth: int = 1) -> str:
    _check_depth(depth)
    shown = [(key, schema) for key, schema in _sorted_items(properties) if key not in KEYWORDS]
    return ",".join(f"{key}:{_parameter(schema, depth)}" for key, schema in shown)


def function_of(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """The function of a tool or a tool call, which may be wrapped in a `function` key."""
    inner = lookup(tool, "function")
    return inner if isinstance(inner, Mapping) else tool


def render_declaration(tool: Mapping[str, Any]) -> str:
    """Return one tool as the model reads it.

    Args:
        tool: `{"type": "function", "function": {...}}`, or the inner function alone.

    Raises:
        DataError: the tool has no name, or its schema is too deep or not made of objects. Call `tool_problems` first
            to find schemas that render, but not as their author meant.
    """
    function = function_of(tool)
    name = lookup(function, "name")
    if not isinstance(name, str) or not name:
        raise DataError("A tool has no name.", where="tools", hint="give every tool a `name` that is a string")
    text = f"declaration:{name}{{description:{_quoted(lookup(function, 'description'))}"
    parameters = lookup(function, "parameters")
    if parameters:
        text += ",parameters:{"
        if lookup(parameters, "properties"):
            if not isinstance(parameters["properties"], Mapping):
                raise DataError("`parameters.properties` is not an object.", where=f"tool {name}")
            text += "properties:{" + _properties(parameters["properties"]) + "},"
        if lookup(parameters, "required"):
            text += f"required:{_names(parameters['required'])},"
        # The closing brace hangs on the type, as in the published template: hence a problem in `tool_problems`.
        if lookup(parameters, "type"):
            text += f"type:{_quoted(str(parameters['type']).upper())}}}"
    return f"{START_FUNCTION_DECLARATION}{text}}}{END_FUNCTION_DECLARATION}"
