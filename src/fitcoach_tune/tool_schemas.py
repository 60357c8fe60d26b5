"""JSON Schema from somebody's data, held against values in bounded time.

What jsonschema takes it to mean, but for what can be made to take for ever: a regular expression that backtracks, a
reference that is followed twice from wherever it leads, a long list whose items are compared each with each, and
`unevaluatedProperties`, for which every part is checked twice at each level.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

from fitcoach_tune.strict_json import quote, shorten

_SECONDS = 0.5
_MOST_REFERENCES = 20_000
_MOST_MIXED = 1000
_LONGEST_PATTERN = 2000
_UNEVALUATED = ("unevaluatedProperties", "unevaluatedItems")

_slow: set[str] = set()
_references: ContextVar[Iterator[int]] = ContextVar("references")


class TooMuch(Exception):
    """A value cannot be checked in bounded time."""


def make_validator(schema: dict) -> tuple[Any, list[tuple[str, str]]]:
    """A validator of a schema, and (path, what) for each reason why there can be none.

    Args:
        schema: of a tool's parameters, as `tool_checks.closed` makes it.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError
    from referencing import Registry

    schema = _one_dialect(schema)
    problems = [*_unbounded(schema, "")]
    if not problems:
        try:
            Draft202012Validator.check_schema(schema)
        except SchemaError as error:
            problems.append((path_of(error.absolute_path), f"not valid JSON Schema: {shorten(error.message, 200)}"))
        except RecursionError:
            problems.append(("", "nested too deeply to be checked; flatten it"))
        except Exception as error:  # a pattern can make the compiler raise what no reader of it expects
            problems.append(("", f"not valid JSON Schema: {type(error).__name__}: {shorten(str(error), 200)}"))
    # The empty registry keeps a `$ref` to an address or file in somebody's data from being fetched.
    return None if problems else _validator_class()(schema, registry=Registry()), problems


def errors_of(validator: Any, value: object) -> Iterator[Any]:
    """jsonschema's errors; raises `TooMuch`, or whatever a reference that leads nowhere makes it raise."""
    _references.set(iter(range(_MOST_REFERENCES)))
    yield from validator.iter_errors(value)


def path_of(parts: Any) -> str:
    """A path inside a value in words."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{shorten(str(part))}" for part in parts)


# What a schema must not have ------------------------------------------------------------------------------------------


def _one_dialect(value: Any) -> Any:
    """A copy without `$schema`: under an older one, another validator would take over for a part."""
    if isinstance(value, dict):
        return {k: _one_dialect(v) for k, v in value.items() if k != "$schema" or not isinstance(v, str)}
    return [_one_dialect(inner) for inner in value] if isinstance(value, list) else value


def _unbounded(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, list):
        kinds = {str if isinstance(item, str) else float if isinstance(item, int | float) else None for item in value}
        if len(value) > _MOST_MIXED and (len(kinds) > 1 or None in kinds):
            yield path, f"a list of {len(value):,} things that cannot be ordered is too long to be checked"
        for index, inner in enumerate(value):
            yield from _unbounded(inner, f"{path}[{index}]")
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _unbounded(inner, f"{path}.{shorten(key)}")
        pattern = value.get("pattern")
        if isinstance(pattern, str) and len(pattern) > _LONGEST_PATTERN:
            yield f"{path}.pattern", f"has {len(pattern):,} characters; at most {_LONGEST_PATTERN:,} are read"
        for key in filter(value.__contains__, _UNEVALUATED):
            yield f"{path}.{key}", "takes too long to be checked; use additionalProperties or items"


# Keywords -------------------------------------------------------------------------------------------------------------


@functools.cache
def _validator_class() -> type:
    from jsonschema import Draft202012Validator, validators

    own = {
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties,
        "uniqueItems": _unique_items,
    }
    for name in ("$ref", "$dynamicRef"):
        own[name] = _counted(Draft202012Validator.VALIDATORS[name])
    return validators.extend(Draft202012Validator, own)


def _counted(keyword: Callable) -> Callable:
    def check(validator: Any, value: Any, instance: Any, schema: dict) -> Iterator[Any]:
        if next(_references.get(), None) is None:
            raise TooMuch(f"references are followed more than {_MOST_REFERENCES:,} times")
        yield from keyword(validator, value, instance, schema) or ()

    return check


def _matches(pattern: str, text: str) -> bool:
    """What `re.search` says, unless that takes too long."""
    import regex

    if pattern not in _slow:
        re.compile(pattern)  # what is a pattern is for `re` to say
        try:
            return regex.search(pattern, text, timeout=_SECONDS) is not None
        except TimeoutError:
            _slow.add(pattern)
    raise TooMuch(f"the pattern {quote(pattern)} takes too long to be matched")


def _error(what: str) -> Any:
    from jsonschema import ValidationError

    return ValidationError(what)


def _pattern(validator: Any, pattern: str, instance: Any, schema: dict) -> Iterator[Any]:
    if isinstance(instance, str) and not _matches(pattern, instance):
        yield _error(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, patterns: dict, instance: Any, schema: dict) -> Iterator[Any]:
    for pattern, part in patterns.items() if isinstance(instance, dict) else ():
        for key, value in instance.items():
            if _matches(pattern, key):
                yield from validator.descend(value, part, path=key, schema_path=pattern)


def _additional_properties(validator: Any, wanted: Any, instance: Any, schema: dict) -> Iterator[Any]:
    declared, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    for key, value in instance.items() if isinstance(instance, dict) else ():
        if key in declared or any(_matches(pattern, key) for pattern in patterns):
            continue
        if isinstance(wanted, dict):
            yield from validator.descend(value, wanted, path=key)
        elif not wanted:
            yield _error(f"{key!r} is not declared")
            return


def _unique_items(validator: Any, wanted: bool, instance: Any, schema: dict) -> Iterator[Any]:
    if wanted and isinstance(instance, list):
        seen = {json.dumps(_canonical(item), sort_keys=True) for item in instance}
        if len(seen) < len(instance):
            yield _error(f"non-unique elements in {instance!r}")


def _canonical(value: Any) -> Any:
    """The same value, whole floats as integers: in JSON Schema 1 equals 1.0."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _canonical(inner) for key, inner in value.items()}
    return [_canonical(inner) for inner in value] if isinstance(value, list) else value
