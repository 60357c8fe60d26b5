"""Whether tools are sound, and whether calls fit them: the wire format's limits and JSON Schema."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from itertools import islice

from fitcoach_tune import functiongemma
from fitcoach_tune.strict_json import quote, shorten
from fitcoach_tune.tool_schemas import TooMuch, errors_of, make_validator, path_of

_ERRORS_PER_CALL = 10
_COMBINATORS = ("allOf", "anyOf", "oneOf", "not", "if", "$ref", "$dynamicRef", "patternProperties")


class CallChecker:
    """Checks tools and calls; each distinct tool is compiled, and its problems are reported, once."""

    def __init__(self) -> None:
        # By a tool's JSON: the validator of its arguments, None where the tool itself has problems.
        self._validators: dict[str, object | None] = {}
        # By a list's id: the validators by the tools' names. The list is kept, so that its id is not given away.
        self._lists: dict[int, tuple[list[dict], dict[str, object | None]]] = {}
        # Ids of the validators that were seen to take no arguments at all.
        self._take_none: set[int] = set()

    def tool_problems(self, tools: list[dict]) -> Iterator[tuple[str, str]]:
        """Yields (field, what) for each problem of these tools that was not reported before."""
        if id(tools) in self._lists:
            return
        by_name: dict[str, object | None] = {}
        self._lists[id(tools)] = (tools, by_name)
        for index, tool in enumerate(tools):
            name, key = tool["function"]["name"], json.dumps(tool)
            if name in by_name:
                yield f"tools[{index}].name", f"two tools are named {quote(name)}; rename or remove one"
            if key not in self._validators:
                self._validators[key], problems = _compile(tool)
                yield from ((f"tools[{index}].{path}", f"{what} (tool {quote(name)})") for path, what in problems)
            by_name.setdefault(name, self._validators[key])

    def call_problems(self, name: str, arguments: dict, tools: list[dict]) -> Iterator[tuple[str, str]]:
        """Yields (path inside the call, what) for each way in which a call does not fit the row's tools."""
        for _ in self.tool_problems(tools):
            pass
        by_name = self._lists[id(tools)][1]
        if name not in by_name:
            near = difflib.get_close_matches(name[:200], by_name, n=1)
            declared = shorten(", ".join(by_name) or "none", 200)
            hint = f"did you mean {quote(near[0])}?" if near else f"declared: {declared}"
            yield "name", f"{quote(name)} is not one of the row's tools; {hint}"
            return
        validator = by_name[name]
        if not arguments and id(validator) in self._take_none:
            return
        problems = [*map(_split, functiongemma.call_problems(functiongemma.Call(name, arguments)))]
        if validator is not None:
            problems += _schema_problems(validator, arguments)
            if not problems and not arguments:
                self._take_none.add(id(validator))
        yield from problems


def _split(problem: str) -> tuple[str, str]:
    path, _, what = problem.partition(": ")
    return path, what


def _compile(tool: dict) -> tuple[object | None, list[tuple[str, str]]]:
    """The validator of a tool's arguments, or None, and the tool's problems as (path, what)."""
    problems = [_split(problem) for problem in functiongemma.tool_problems(tool)]
    validator, more = make_validator(closed(tool["function"].get("parameters", {}), is_top=True))
    problems += [(f"parameters{path}", what) for path, what in more]
    return None if problems else validator, problems


def closed(schema: dict, *, is_top: bool = False) -> dict:
    """A copy of `schema` with lower-case types, OpenAPI's `nullable` spelt as a type, and closed objects.

    What is not declared is not rendered, so the model could not know of it: an object that declares properties, and
    the arguments as a whole, take no others unless they say so. Combined schemas stay open: each part of an `allOf`
    sees the properties of the others as additional.
    """
    copy = dict(schema)
    for key, value in schema.items():
        if key == "type" and isinstance(value, (str, list)):
            copy[key] = value.lower() if isinstance(value, str) else [str(name).lower() for name in value]
        elif key == "properties" and isinstance(value, dict):
            copy[key] = {name: closed(inner) if isinstance(inner, dict) else inner for name, inner in value.items()}
        elif key == "items" and isinstance(value, dict):
            copy[key] = closed(value)
    if (is_top or copy.get("properties")) and not any(key in copy for key in _COMBINATORS):
        copy.setdefault("additionalProperties", False)
    if copy.pop("nullable", None) is True:
        if isinstance(copy.get("type"), str):
            copy["type"] = [copy["type"], "null"]
        if isinstance(copy.get("enum"), list) and None not in copy["enum"]:
            copy["enum"] = [*copy["enum"], None]
    return copy


def _schema_problems(validator: object, arguments: dict) -> Iterator[tuple[str, str]]:
    try:
        errors = list(islice(errors_of(validator, arguments), _ERRORS_PER_CALL))
    except TooMuch as error:
        yield "arguments", f"cannot be checked against the tool's schema: {shorten(str(error), 200)}"
        return
    except Exception as error:  # the schema is data: a reference that leads nowhere, or round in a circle
        what = f"cannot be checked against the tool's schema: {type(error).__name__}: {shorten(str(error), 200)}"
        yield "arguments", what
        return
    for error in errors:
        what = shorten(error.message, 200)
        if error.validator == "additionalProperties" and error.validator_value is False:
            declared = list(error.schema.get("properties", {}))
            patterns = error.schema.get("patternProperties", {})
            unknown = next(
                key for key in error.instance if key not in declared and not any(re.search(p, key) for p in patterns)
            )
            what = f"unknown argument {quote(unknown)}; declared: {', '.join(declared) or 'none'}"
        yield f"arguments{path_of(error.absolute_path)}", what
