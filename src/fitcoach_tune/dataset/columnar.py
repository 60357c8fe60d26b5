"""What columnar formats add to rows, taken back out.

Arrow gives all rows of a column one struct type. A tool with no parameter `minutes` comes back with `"minutes": null`
when another row's tool has one, a call gets the arguments of every other call as nulls, and integers become floats
where another row has a fraction. Rendered, that would declare and pass arguments that do not exist.
"""

from __future__ import annotations

from collections import Counter


def is_phantom(value: object) -> bool:
    """Whether `value` is null, or an object with nothing but nulls in it: how Arrow fills in a key a row never had."""
    return value is None or (isinstance(value, dict) and bool(value) and all(map(is_phantom, value.values())))


def clean(value: object, counts: Counter[str], schemas: dict[str, object] | None = None) -> object:
    """A copy of columnar tools, or of messages and calls, without phantom keys.

    Args:
        value: the cell, or a part of it.
        counts: of what was repaired; added to.
        schemas: for messages and calls: the parameters of the row's tools, by their names.
    """
    if isinstance(value, list):
        return [clean(item, counts, schemas) for item in value]
    if not isinstance(value, dict):
        return value
    kept, name = {}, value.get("name")
    for key, inner in value.items():
        if schemas is not None and key == "arguments" and isinstance(inner, dict):
            kept[key] = clean_arguments(inner, schemas.get(name) if isinstance(name, str) else None, counts)
        elif not is_phantom(inner) or (key == "properties" and inner):  # a tool without parameters has its properties
            kept[key] = clean(inner, counts, schemas)
        elif schemas is None:
            counts["null keys of merged column schemas dropped from tools"] += 1
    return kept


def clean_arguments(arguments: dict, schema: object, counts: Counter[str]) -> dict:
    """A call's columnar `arguments` as they were before Arrow gave all calls one struct type.

    Phantom nulls go unless the tool's `schema` declares that argument and lets it be null; whole floats become
    integers where an integer is declared.
    """
    properties = schema.get("properties") if isinstance(schema, dict) else None
    properties = properties if isinstance(properties, dict) else {}
    kept = {}
    for key, value in arguments.items():
        declared = properties.get(key)
        if is_phantom(value) and not (value is None and isinstance(declared, dict) and _accepts_null(declared)):
            counts["null arguments of merged column schemas dropped"] += 1
        else:
            kept[key] = _clean_argument(value, declared, counts)
    return kept


def _clean_argument(value: object, schema: object, counts: Counter[str]) -> object:
    if isinstance(value, dict):
        return clean_arguments(value, schema, counts)
    if isinstance(value, list):
        items = schema.get("items") if isinstance(schema, dict) else None
        return [_clean_argument(item, items, counts) for item in value]
    types = type_names(schema)
    if isinstance(value, float) and value.is_integer() and "integer" in types and "number" not in types:
        counts["whole floats turned back into integers"] += 1
        return int(value)
    return value


def type_names(schema: object) -> list[str]:
    """The lower-case type names that a schema gives, [] where it gives none."""
    named = schema.get("type") if isinstance(schema, dict) else None
    named = named if isinstance(named, list) else [named]
    return [name.lower() for name in named if isinstance(name, str)]


def _accepts_null(schema: dict) -> bool:
    if types := type_names(schema):
        return "null" in types or schema.get("nullable") is True
    options = schema.get("anyOf", schema.get("oneOf"))
    if isinstance(options, list):
        return any(isinstance(option, dict) and _accepts_null(option) for option in options)
    return True
