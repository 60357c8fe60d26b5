"""What the format cannot carry, or would make say something else: found in calls, tools and conversations beforehand.

Each problem is one line, `field: what is wrong; what to do`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from fitcoach_tune.functiongemma.declarations import KEYWORDS, function_of
from fitcoach_tune.functiongemma.tokens import (
    BARE_KEY,
    FUNCTION_NAME,
    MAX_DEPTH,
    MAX_NUMBER_CHARS,
    Call,
    find_control_token,
)

_SURROGATE = re.compile("[\ud800-\udfff]")
_TOO_LARGE_INT = 10 ** (MAX_NUMBER_CHARS - 1)  # leaves room for a minus sign
_TOO_DEEP = f"is nested deeper than {MAX_DEPTH} levels; flatten it"
_JSON_TYPES = (type(None), bool, str, int, float, dict, list)
_UNIONS = ("anyOf", "oneOf", "allOf", "$ref")


def _text_problem(text: str) -> str | None:
    if token := find_control_token(text):
        return f"contains the control token {token}, which would change the structure; take it out"
    if _SURROGATE.search(text):
        return "contains half of a surrogate pair, which is not valid Unicode; repair the text"
    return None


def _key_problem(key: Any) -> str | None:
    if not isinstance(key, str) or not key:
        return "keys must be strings that are not empty; rename it"
    if key != key.strip() or not BARE_KEY.fullmatch(key):
        return "keys are written bare, so they cannot have any of : , { } [ ] or white space at an edge; rename it"
    return None


def _name_problems(name: Any) -> Iterator[str]:
    if not isinstance(name, str) or not FUNCTION_NAME.fullmatch(name):
        yield f"name: {name!r} is not a function name; use letters, digits, _ . and -, starting with a letter or _"


def _scalar_problem(value: Any) -> str | None:
    if isinstance(value, str):
        return _text_problem(value)
    if isinstance(value, int) and abs(value) >= _TOO_LARGE_INT:
        return f"has {MAX_NUMBER_CHARS} digits or more; send it as a string"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is not a JSON number; use a finite number or null"
    return None


def _value_problems(value: Any, path: str, depth: int = 1) -> Iterator[str]:
    """Everything in a call's value that would not come back as it is."""
    if type(value) not in _JSON_TYPES:
        kind = type(value).__name__
        yield f"{path}: a Python {kind} is not a JSON value; use str, int, float, bool, None, list or dict"
    elif isinstance(value, (dict, list)) and depth > MAX_DEPTH:
        yield f"{path}: {_TOO_DEEP}"
    elif isinstance(value, dict):
        for key, inner in value.items():
            if problem := _key_problem(key) or _text_problem(key):
                yield f"{path}.{key}: {problem}"
            yield from _value_problems(inner, f"{path}.{key}", depth + 1)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _value_problems(inner, f"{path}[{index}]", depth + 1)
    elif problem := _scalar_problem(value):
        yield f"{path}: {problem}"


def call_problems(call: Call) -> list[str]:
    """Return everything about `call` that would not survive `parse(render_call(call))`.

    An empty list is a promise: the call comes back equal, types included.
    """
    problems = list(_name_problems(call.name))
    if type(call.arguments) is not dict:
        return [*problems, "arguments: must be a dict; use {} for none"]
    return [*problems, *_value_problems(call.arguments, "arguments")]


def _text_problems(value: Any, path: str, depth: int = 1) -> Iterator[str]:
    """Text in a schema, keys included, that cannot be written; and schemas too deep to write at all."""
    if isinstance(value, str):
        if problem := _text_problem(value):
            yield f"{path}: {problem}"
    elif isinstance(value, (Mapping, list, tuple)) and depth > MAX_DEPTH:
        yield f"{path}: {_TOO_DEEP}"
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if isinstance(key, str) and (problem := _text_problem(key)):
                yield f"{path}.{key}: {problem}"
            yield from _text_problems(inner, f"{path}.{key}", depth + 1)
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from _text_problems(inner, f"{path}[{index}]", depth + 1)


def _type_problems(schema: Mapping[str, Any], path: str) -> Iterator[str]:
    kind = schema.get("type")
    if kind is None or kind == "":
        unions = [key for key in _UNIONS if schema.get(key) is not None]
        why = f"is missing, and {', '.join(unions)} cannot stand in for it" if unions else "is missing"
        yield f"{path}.type: {why}; write one plain type such as string"
    elif isinstance(kind, (list, tuple)):
        yield f"{path}.type: is a list, which is printed as one; keep a single type"
    elif not isinstance(kind, str):
        yield f"{path}.type: must be a string such as string or integer"


def _description_problems(schema: Mapping[str, Any], path: str) -> Iterator[str]:
    if not isinstance(schema.get("description", ""), str):
        yield f"{path}: is {schema['description']!r}, which is printed as that word; write a text or leave the key out"


def _required_problems(schema: Mapping[str, Any], path: str) -> Iterator[str]:
    required = schema.get("required")
    if required is not None and not (
        isinstance(required, (list, tuple)) and all(isinstance(name, str) for name in required)
    ):
        yield f"{path}.required: must be a list of parameter names"


def _null_problems(value: Any, path: str) -> Iterator[str]:
    """Nulls in the parts of `items` that are printed as they are."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if inner is None:
                yield f"{path}.{key}: is null and would be printed; remove it"
            yield from _null_problems(inner, f"{path}.{key}")


def _items_problems(items: Any, path: str) -> Iterator[str]:
    if not isinstance(items, Mapping) or not items:
        return  # not printed at all
    yield from _type_problems(items, path)
    yield from _required_problems(items, path)
    if items.get("properties") is not None:
        yield from _properties_problems(items["properties"], f"{path}.properties")
    for key, value in items.items():
        if key not in ("properties", "required", "type"):
            yield from _null_problems(value, f"{path}.{key}")


def _object_problems(schema: Mapping[str, Any], path: str) -> Iterator[str]:
    yield from _required_problems(schema, path)
    if isinstance(schema.get("properties"), Mapping):
        yield from _properties_problems(schema["properties"], f"{path}.properties")
        return
    if schema.get("properties") is not None:
        yield f"{path}.properties: must be an object"
    if phantoms := sorted(str(key) for key in schema if key not in KEYWORDS):
        yield (
            f"{path}.properties: is missing, so {', '.join(phantoms)} would be printed as parameters; "
            'list the properties, or write "properties": {}'
        )


def _parameter_problems(schema: Any, path: str) -> Iterator[str]:
    if schema is None:
        yield f"{path}: is null and would be printed as a parameter that does not exist; remove it"
        return
    if not isinstance(schema, Mapping):
        yield f"{path}: must be a schema object with a type and a description"
        return
    yield from _type_problems(schema, path)
    yield from _description_problems(schema, f"{path}.description")
    kind = str(schema.get("type")).upper()
    if kind == "STRING" and schema.get("enum") and not isinstance(schema["enum"], (list, tuple)):
        yield f"{path}.enum: must be a list of strings"
    elif kind == "OBJECT":
        yield from _object_problems(schema, path)
    elif kind == "ARRAY":
        yield from _items_problems(schema.get("items"), f"{path}.items")


def _properties_problems(properties: Any, path: str) -> Iterator[str]:
    if not isinstance(properties, Mapping):
        yield f"{path}: must be an object that maps parameter names to schemas"
        return
    for key, schema in properties.items():
        if problem := _key_problem(key):
            yield f"{path}.{key}: {problem}"
        if key in KEYWORDS:
            yield f"{path}.{key}: the model's template leaves out a parameter of this name; rename it"
        yield from _parameter_problems(schema, f"{path}.{key}")


def _parameters_problems(parameters: Any) -> Iterator[str]:
    if not isinstance(parameters, Mapping):
        yield "parameters: must be a schema object of type object"
        return
    problems = list(_text_problems(parameters, "parameters"))
    yield from problems
    if any(problem.endswith(_TOO_DEEP) for problem in problems):
        return
    yield from _type_problems(parameters, "parameters")
    kind = parameters.get("type")
    if isinstance(kind, str) and kind and kind.upper() != "OBJECT":
        yield f"parameters.type: is {kind!r}; parameters are always of type object"
    yield from _required_problems(parameters, "parameters")
    if parameters.get("properties"):
        yield from _properties_problems(parameters["properties"], "parameters.properties")


def tool_problems(tool: Mapping[str, Any]) -> list[str]:
    """Return every way in which the declaration of `tool` would not say what its author meant.

    Fields are named as in the schema (`parameters.properties.kind.type`). What the format leaves out on purpose
    (`default`, `minimum`, an `enum` of numbers, `return`) is no problem.
    """
    if not isinstance(tool, Mapping):
        return ["tool: must be an object with a name, a description and parameters"]
    function = function_of(tool)
    problems = [
        *_name_problems(function.get("name")),
        *_description_problems(function, "description"),
        *_text_problems(function.get("description"), "description"),
    ]
    if function.get("parameters"):
        problems += _parameters_problems(function["parameters"])
    return problems
