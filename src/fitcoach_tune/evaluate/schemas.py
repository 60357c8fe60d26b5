"""A JSON Schema taken apart for a grammar: its types, the values that it lists, its alternatives, its limits.

Schemas come as `tool_checks` closes them, and mean what jsonschema takes them to mean.
"""

from __future__ import annotations

import json
import math
from fractions import Fraction
from typing import Any

_TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
_ANY, _NUMBERS, _ARRAY, _OBJECT = set(_TYPES), {"integer", "number"}, {"array"}, {"object"}
# What jsonschema checks and no grammar of ours expresses, with the types that it is about.
INEXPRESSIBLE: dict[str, set[str]] = {
    "$ref": _ANY, "$dynamicRef": _ANY, "not": _ANY, "if": _ANY, "oneOf": _ANY,
    "multipleOf": _NUMBERS,
    "contains": _ARRAY, "prefixItems": _ARRAY, "unevaluatedItems": _ARRAY, "uniqueItems": _ARRAY,
    "dependentRequired": _OBJECT, "dependentSchemas": _OBJECT, "patternProperties": _OBJECT, "propertyNames": _OBJECT,
    "unevaluatedProperties": _OBJECT,
}  # fmt: skip
_LOWER = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_UPPER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_SINGLE = ("const", "enum", "pattern", "items", "additionalProperties", "anyOf")
_MOST_MULTIPLES = 1000


class Inexpressible(ValueError):
    """A schema asks for what cannot be expressed, or nothing fits it.

    Attributes:
        path: where in the schema.
    """

    def __init__(self, what: str, path: str = ""):
        super().__init__(what)
        self.path = path


def types(schema: dict) -> list[str]:
    """The types that a value may have; integers are not named beside numbers."""
    given = schema.get("type", _TYPES)
    given = [given] if isinstance(given, str) else given
    return [kind for kind in _TYPES if kind in given and not (kind == "integer" and "number" in given)]


def check_keywords(schema: dict, path: str) -> None:
    """Refuse the keywords of which a grammar could not keep the promise.

    Raises:
        Inexpressible: there is one that is about a type which the value may have.
    """
    for keyword, about in INEXPRESSIBLE.items():
        if keyword in schema and about & set(types(schema)) and (keyword != "uniqueItems" or schema[keyword]):
            raise Inexpressible(f"{keyword} cannot be expressed", f"{path}.{keyword}")


def limits(schema: dict, what: str, most: int, path: str) -> tuple[int, int]:
    """What `min…` and `max…` (`Length`, `Items`, `Properties`) allow within our own limit.

    Raises:
        Inexpressible: nothing.
    """
    low, high = int(schema.get(f"min{what}", 0)), int(min(schema.get(f"max{what}", most), most))
    if low > high:
        raise Inexpressible(f"min{what} is {low}, and at most {high} can be given", path)
    return low, high


def choices(schema: dict) -> list[Any] | None:
    """The values that the schema lists, of which not all need to fit it; None if it does not list them."""
    if "const" in schema:
        return [schema["const"]]
    if "enum" in schema:
        return schema["enum"]
    for keyword in ("anyOf", "oneOf"):
        lists = [choices(branch) if isinstance(branch, dict) else None for branch in schema.get(keyword, ())]
        if lists and None not in lists:
            return [value for values in lists for value in values]
    return _multiples(schema) if "multipleOf" in schema else None


def _multiples(schema: dict) -> list[Any] | None:
    """The multiples between two bounds, if they are few; whole ones as integers, and as floats where those may be."""
    low, high = (
        [schema[key] for key in keys if key in schema]
        for keys in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum"))
    )
    if not low or not high or not set(types(schema)) <= _NUMBERS | {"null"}:
        return None
    step = Fraction(str(schema["multipleOf"]))  # as it is written: 0.1 is not the float's value
    first, last = math.ceil(Fraction(str(max(low))) / step), math.floor(Fraction(str(min(high))) / step)
    if last - first >= _MOST_MULTIPLES:
        return None
    found = [step * i for i in range(first, last + 1)]
    whole = [int(value) for value in found if value.denominator == 1]
    return [None, *whole, *(map(float, found) if "number" in types(schema) else ())]


def branches(schema: dict, path: str) -> list[Any]:
    """The schemas of which one must fit, without `allOf` and `anyOf`.

    Raises:
        Inexpressible: two parts say things of the same value that cannot be brought together.
    """
    base: Any = {key: value for key, value in schema.items() if key not in ("allOf", "anyOf")}
    for part in schema.get("allOf", ()):
        base = _both(base, part, f"{path}.allOf")
    return [_both(base, part, f"{path}.anyOf") for part in schema.get("anyOf", (True,))]


def _both(a: Any, b: Any, path: str) -> Any:
    """The schema that fits what fits both."""
    if isinstance(a, bool) or isinstance(b, bool):
        return (b if a is True else a) if a is not False and b is not False else False
    merged = {**b, **a}
    for key in a.keys() & b.keys():
        merged[key] = _combined(key, a[key], b[key], path)
    for own, other in ((a, b), (b, a)):
        # To a part, the properties of another one are additional.
        further = other.get("properties", {}).keys() - own.get("properties", {}).keys()
        if further and own.get("additionalProperties", True) is not True:
            raise Inexpressible("additionalProperties beside properties of another part cannot be expressed", path)
    return merged


def _combined(key: str, a: Any, b: Any, path: str) -> Any:
    if key == "type":
        common = set(types({key: a})) & set(types({key: b}))
        either = {*types({key: a}), *types({key: b})}
        return [*common, *(["integer"] if {"integer", "number"} <= either and "number" not in common else [])]
    if key in _LOWER:
        return max(a, b)
    if key in _UPPER:
        return min(a, b)
    if key == "required":
        return [*a, *b]
    if key == "properties":
        return {**a, **b, **{name: _both(a[name], b[name], f"{path}.{name}") for name in a.keys() & b.keys()}}
    if key == "allOf":
        return [*a, *b]
    if json.dumps(a, sort_keys=True) != json.dumps(b, sort_keys=True) and (key in _SINGLE or key in INEXPRESSIBLE):
        raise Inexpressible(f"{key} in two parts of one schema cannot be expressed", path)
    return a
