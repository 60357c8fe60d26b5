"""Tools: load them, bring them to one form, and check them and the calls made to them.

A tool is a function that the model may call, described as a JSON Schema. Rows and files spell tools in several ways;
everything after this module sees `{"type": "function", "function": {"name", "description", "parameters"}}`. The strict
JSON reading at the top serves tools files and rows alike.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import json
import math
import operator
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from fitcoach_tune import functiongemma
from fitcoach_tune.errors import DataError

MAX_DEPTH = 100
"""Nesting beyond which a value is refused: far more than a call needs, far less than Python's stack."""

BUILTIN = "builtin:fitness"

_MODULE_OBJECT = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_ERRORS_PER_CALL = 10


class RowError(Exception):
    """One thing wrong with one row or tool.

    Args:
        field: the path inside it, such as `messages[2].content`; empty for the row as a whole.
        what: what is wrong with it and what to do.
        repeated: the same fault of a shared object was reported for an earlier row.
    """

    def __init__(self, field: str, what: str, *, repeated: bool = False):
        super().__init__(f"{field}: {what}" if field else what)
        self.field = field
        self.what = what
        self.repeated = repeated


# Strict JSON ----------------------------------------------------------------------------------------------------------


class JSONFlaw(ValueError):
    """A text that is not JSON (`is_syntax`), or that is, but says something on which readers disagree."""

    def __init__(self, what: str, *, path: str = "", line: int | None = None):
        super().__init__(f"{path}: {what}" if path else what)
        self.path = path
        self.what = what
        self.line = line

    @property
    def is_syntax(self) -> bool:
        return self.line is not None


@dataclass(frozen=True)
class _Refused:
    """Stands in a parsed value for a part that is refused, so that its place can still be named."""

    what: str


def _object(pairs: list[tuple[str, object]]) -> object:
    value = dict(pairs)
    if len(value) == len(pairs):
        return value
    repeated = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
    return _Refused(f"the key {quote(repeated)} stands twice in one object; keep one of them")


def _integer(digits: str) -> object:
    try:
        return int(digits)
    except ValueError:  # Python refuses integers of more than 4300 digits
        return _Refused(f"a number of {len(digits)} digits is too long to be read")


def decode_json(text: str) -> object:
    """Parses `text`; what JSON forbids or readers disagree on stays in the value for `find_flaw` to locate.

    Raises:
        JSONFlaw: the text is not JSON, or is nested too deeply to be parsed.
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_int=_integer)
    except json.JSONDecodeError as error:
        what = f"not valid JSON at column {error.colno}: {error.msg[0].lower()}{error.msg[1:]}"
        raise JSONFlaw(what, line=error.lineno) from None
    except RecursionError:
        raise JSONFlaw(f"nested more than {MAX_DEPTH} levels deep") from None


def find_flaw(value: object) -> tuple[str, str] | None:
    """The path and description of the first part of `value` that strict JSON cannot carry, or None.

    Looks for repeated keys and overlong integers (left there by `decode_json`), numbers that are not finite, lone
    surrogates, types that only a columnar format has (timestamps, bytes), and nesting beyond `MAX_DEPTH`.
    """
    found = _find_flaw(value, 0)
    if found is None:
        return None
    parts, what = found
    return "".join(reversed(parts)).removeprefix("."), what


def _find_flaw(value: object, depth: int) -> tuple[list[str], str] | None:
    if isinstance(value, str):
        return None if _is_text(value) else ([], _SURROGATE)
    if value is None or isinstance(value, (bool, int)):
        return None
    if isinstance(value, float):
        return None if math.isfinite(value) else ([], f"{value} is not a number that JSON has")
    if isinstance(value, _Refused):
        return [], value.what
    if not isinstance(value, (dict, list)):
        return [], f"a {type(value).__name__} is not a JSON value; store it as text"
    if depth == MAX_DEPTH:
        return [], f"nested more than {MAX_DEPTH} levels deep"
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        if isinstance(key, str) and not _is_text(key):
            return [], f"in a key: {_SURROGATE}"
        if found := _find_flaw(inner, depth + 1):
            # The path is put together only on the way out: values without a flaw pay nothing for it.
            found[0].append(f".{key}" if isinstance(key, str) else f"[{key}]")
            return found
    return None


_SURROGATE = "half of a surrogate pair (\\ud800 to \\udfff) is not a character; write the whole character"


def _is_text(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def parse_json(text: str) -> object:
    """Parses `text` as strict JSON. Raises `JSONFlaw`."""
    value = decode_json(text)
    if flaw := find_flaw(value):
        raise JSONFlaw(flaw[1], path=flaw[0])
    return value


def decode_utf8(data: bytes) -> str:
    """Decodes a file or line; a byte-order mark must have been cut off. Raises `JSONFlaw` that names the byte."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise JSONFlaw(f"byte {error.start + 1} is not UTF-8; save the file as UTF-8") from None


def shorten(text: str, limit: int = 80) -> str:
    """`text` cut to what an error message can quote."""
    return text if len(text) <= limit else f"{text[:limit]}…"


def quote(text: str) -> str:
    """`text` in quotes, escaped and cut to what an error message can hold."""
    return repr(shorten(text))


def kind(value: object) -> str:
    """What JSON calls the type of `value`, with its article, for messages."""
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


# One form -------------------------------------------------------------------------------------------------------------


def normalise_tools(value: object, field: str = "tools") -> list[dict]:
    """Brings a list of tools, or a single one, to the common form. Raises `RowError`."""
    if isinstance(value, dict):
        value = value["tools"] if isinstance(value.get("tools"), list) else [value]
    if not isinstance(value, list):
        raise RowError(field, f"must be a list of tools, not {kind(value)}")
    return [_normalise_tool(tool, f"{field}[{index}]") for index, tool in enumerate(value)]


def _normalise_tool(tool: object, field: str) -> dict:
    tool = decoded(tool, field)
    if not isinstance(tool, dict):
        raise RowError(field, f"a tool must be an object, not {kind(tool)}")
    function = decoded(tool.get("function", tool), f"{field}.function")
    if tool.get("type", "function") != "function" or not isinstance(function, dict):
        raise RowError(field, 'must be {"type": "function", "function": {"name": …, "description": …, …}}')
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise RowError(f"{field}.name", "a tool needs a name")
    if misnamed := {"input_schema", "inputSchema", "args_schema", "arguments"} & function.keys():
        raise RowError(f"{field}.{min(misnamed)}", f"rename it to 'parameters' (tool {name!r})")
    kept = {key: function[key] for key in ("name", "description", "parameters") if key in function}
    if "parameters" in kept:
        kept["parameters"] = decoded(kept["parameters"], f"{field}.parameters")
        if not isinstance(kept["parameters"], dict):
            found = kind(kept["parameters"])
            raise RowError(f"{field}.parameters", f"must be a JSON Schema object, not {found} (tool {name!r})")
    if not isinstance(kept.get("description", ""), str):
        raise RowError(f"{field}.description", f"must be text, not {kind(kept['description'])} (tool {name!r})")
    return {"type": "function", "function": kept}


def decoded(value: object, field: str) -> object:
    """`value`, parsed first where it is a JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
    except JSONFlaw as flaw:
        raise RowError(field, str(flaw)) from None


class ToolCache:
    """Gives every row whose tools are equal the same list object, and reports a fault of shared tools once."""

    def __init__(self, counts: Counter[str]):
        self._counts = counts
        self._by_text: dict[str, list[dict] | RowError] = {}
        self._by_content: dict[str, list[dict]] = {}
        self.not_shown: dict[str, None] = {}
        """A note on each tool with keywords that the format leaves out, in the order they were met."""

    def get(self, cell: object, *, columnar: bool) -> list[dict]:
        """The tools in `cell`: a list, or its JSON text.

        Args:
            columnar: nulls inside a `cell` that is not text come from Arrow's merging of schemas: drop them.

        Raises:
            RowError: they are not tools; `repeated` from the second equal cell on.
        """
        key = cell if isinstance(cell, str) else json.dumps(cell)
        if key not in self._by_text:
            try:
                self._by_text[key] = self._read(cell, columnar)
            except RowError as error:
                self._by_text[key] = RowError(error.field, error.what, repeated=True)
                raise
        tools = self._by_text[key]
        if isinstance(tools, RowError):
            raise tools
        return tools

    def _read(self, cell: object, columnar: bool) -> list[dict]:
        if columnar and not isinstance(cell, str):
            cell, dropped = drop_nulls(cell)
            self._counts["null keys of merged column schemas dropped from tools"] += dropped
        tools = normalise_tools(decoded(cell, "tools"))
        self.not_shown |= dict.fromkeys(filter(None, map(_not_shown, tools)))
        return self._by_content.setdefault(json.dumps(tools), tools)


_SHOWN = {"description", "type", "properties", "required", "nullable"}


def _not_shown(tool: dict) -> str | None:
    """A note that names the schema keywords of a tool's parameters that the wire format does not carry, if any."""
    function = tool["function"]
    properties = function.get("parameters", {}).get("properties")
    hidden = list(_hidden(properties, ""))
    return f"tool {quote(function['name'])}: the format does not show {', '.join(hidden)}" if hidden else None


def _hidden(properties: object, path: str) -> Iterator[str]:
    for name, schema in properties.items() if isinstance(properties, dict) else ():
        if not isinstance(schema, dict):
            continue
        shown = _SHOWN | {"string": {"enum"}, "array": {"items"}}.get("".join(_types(schema)), set())
        yield from (f"{path}{name}.{key}" for key in schema if key not in shown)
        yield from _hidden(schema.get("properties"), f"{path}{name}.")


# What columnar formats add --------------------------------------------------------------------------------------------


def is_phantom(value: object) -> bool:
    """Whether `value` is null, or an object with nothing but nulls in it: how Arrow fills in a key a row never had."""
    return value is None or (isinstance(value, dict) and bool(value) and all(map(is_phantom, value.values())))


def drop_nulls(value: object) -> tuple[object, int]:
    """A copy of a columnar `value` without phantom keys, and how many were dropped.

    Arrow gives all rows of a column one struct type, so a tool with no parameter `minutes` comes back with
    `"minutes": null` when another row's tool has one. Rendered, that would declare a parameter that does not exist.
    """
    if isinstance(value, list):
        pairs = [drop_nulls(item) for item in value]
        return [item for item, _ in pairs], sum(count for _, count in pairs)
    if not isinstance(value, dict):
        return value, 0
    kept, dropped = {}, 0
    for key, inner in value.items():
        if is_phantom(inner) and not (key == "properties" and inner):
            dropped += 1
            continue
        kept[key], count = drop_nulls(inner)
        dropped += count
    return kept, dropped


def undo_columnar(arguments: dict, schema: object, counts: Counter[str]) -> dict:
    """A call's columnar `arguments` as they were before Arrow gave all calls one struct type.

    Phantom nulls go unless the tool's `schema` declares that argument and lets it be null; whole floats become
    integers where an integer is declared (a column that also holds fractions stores both as floats).
    """
    schema = schema if isinstance(schema, dict) else {}
    properties = schema.get("properties")
    properties = properties if isinstance(properties, dict) else {}
    kept = {}
    for key, value in arguments.items():
        declared = properties.get(key)
        if is_phantom(value) and not (isinstance(declared, dict) and value is None and _accepts_null(declared)):
            counts["null arguments of merged column schemas dropped"] += 1
        else:
            kept[key] = _undo_value(value, declared, counts)
    return kept


def _undo_value(value: object, schema: object, counts: Counter[str]) -> object:
    if isinstance(value, dict):
        return undo_columnar(value, schema, counts)
    if isinstance(value, list):
        items = schema.get("items") if isinstance(schema, dict) else None
        return [_undo_value(item, items, counts) for item in value]
    types = _types(schema)
    if isinstance(value, float) and value.is_integer() and "integer" in types and "number" not in types:
        counts["whole floats turned back into integers"] += 1
        return int(value)
    return value


def _types(schema: object) -> list[str]:
    """The lower-case type names that a schema gives, [] where it gives none."""
    named = schema.get("type") if isinstance(schema, dict) else None
    named = named if isinstance(named, list) else [named]
    return [name.lower() for name in named if isinstance(name, str)]


def _accepts_null(schema: dict) -> bool:
    if types := _types(schema):
        return "null" in types or schema.get("nullable") is True
    options = schema.get("anyOf", schema.get("oneOf"))
    if isinstance(options, list):
        return any(isinstance(option, dict) and _accepts_null(option) for option in options)
    return True


# Loading --------------------------------------------------------------------------------------------------------------


def read_tools(source: str) -> list[dict]:
    """Loads tools.

    Args:
        source: `builtin:fitness`, the path of a JSON file (a list of tools, a single tool, or `{"tools": […]}`), or
            `module:object`, where the object is a Python function or a schema, or a list of those. The module is
            imported, with the working directory on the path while that lasts; functions become schemas with
            `transformers.utils.get_json_schema`.

    Returns:
        tools in the common form, checked: each can be carried by the wire format and is valid JSON Schema.

    Raises:
        DataError: there is no such file, module or object, or what it holds are not usable tools.
    """
    if source == BUILTIN:
        from fitcoach_tune import fitness

        loaded: object = fitness.tools()
    elif source.lower().endswith(".json") or local_path(source)[1]:
        loaded = _json_file(source)
    elif _MODULE_OBJECT.fullmatch(source) and not source.startswith("builtin:"):
        loaded = _module_object(source)
    else:
        raise DataError(
            f"cannot tell what tools {quote(source)} means", hint=f"give a .json file, module:object or {BUILTIN}"
        )
    try:
        tools = normalise_tools(loaded)
    except RowError as error:
        raise DataError(str(error), where=source, hint="correct the tool and run again") from None
    if not tools:
        raise DataError("there are no tools in it", where=source, hint="declare at least one function")
    problems = [f"{where}: {what}" for where, what in CallChecker().tool_problems(tools)]
    if problems:
        raise DataError("the tools cannot be used", where=source, details=problems, hint="correct them and run again")
    return tools


def local_path(source: str) -> tuple[Path, bool]:
    """The path that a source may be, `~` expanded, and whether something is there."""
    try:
        path = Path(source).expanduser()
        return path, path.exists()
    except (OSError, RuntimeError, ValueError):  # too long for a name, no such user, a null character
        return Path(source), False


def _json_file(source: str) -> object:
    try:
        data = local_path(source)[0].read_bytes()
    except (OSError, ValueError) as error:
        what = f"cannot be read: {getattr(error, 'strerror', None) or error}"
        raise DataError(what, where=source, hint="check the path of the tools") from None
    try:
        return parse_json(decode_utf8(data.removeprefix(b"\xef\xbb\xbf")))
    except JSONFlaw as flaw:
        where = f"{source}:{flaw.line}" if flaw.is_syntax else source
        raise DataError(str(flaw), where=where, hint="correct the file and run again") from None


def _module_object(source: str) -> object:
    """Imports `module:object`; every function in it becomes a schema."""
    module_name, _, attribute = source.partition(":")
    directory = os.getcwd()
    sys.path.insert(0, directory)
    try:
        importlib.invalidate_caches()  # the module may have been written after Python last listed the directory
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        ours = error.name is not None and (module_name + ".").startswith(error.name + ".")
        what = f"there is no module {error.name!r}" if ours else f"importing it failed: {error}"
        raise DataError(what, where=source, hint="run in the folder that holds the module, or install it") from None
    except (Exception, SystemExit) as error:  # the module is somebody's program: it can fail in any way
        what = f"importing it failed: {type(error).__name__}: {error}"
        raise DataError(what, where=source, hint="make `import` of the module work on its own first") from error
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(directory)
    try:
        value = operator.attrgetter(attribute)(module)
    except AttributeError:
        near = difflib.get_close_matches(attribute, dir(module), n=1)
        hint = f"did you mean {module_name}:{near[0]}?" if near else f"define {attribute} in {module_name}"
        raise DataError(f"the module has no {attribute!r}", where=source, hint=hint) from None
    if isinstance(value, (list, tuple)):
        return [_as_schema(item, source) for item in value]
    return _as_schema(value, source)


def _as_schema(value: object, source: str) -> object:
    if not callable(value):
        if flaw := find_flaw(value):
            path, what = flaw
            raise DataError(f"{path}: {what}" if path else what, where=source, hint="give functions or JSON Schemas")
        return value
    from transformers.utils import get_json_schema

    try:
        return get_json_schema(value)
    except Exception as error:  # besides its own two, it lets through whatever inspecting an odd callable raises
        name = getattr(value, "__name__", type(value).__name__)
        hint = "give the function type hints and a Google-style docstring with an Args section"
        raise DataError(f"no schema can be made of {name}: {error}", where=source, hint=hint) from None


# Checking -------------------------------------------------------------------------------------------------------------


@dataclass
class _Checked:
    """A tool's problems, and the validator of its arguments where it has none."""

    problems: list[tuple[str, str]]
    validator: object | None


@dataclass
class CallChecker:
    """Checks tools and calls; each distinct tool is compiled, and its problems are reported, once."""

    _tools: dict[str, _Checked] = field(default_factory=dict)
    _lists: dict[int, tuple[list[dict], dict[str, _Checked]]] = field(default_factory=dict)

    def tool_problems(self, tools: list[dict]) -> Iterator[tuple[str, str]]:
        """Yields (field, what) for each problem of these tools that was not reported before."""
        if id(tools) in self._lists:
            return
        by_name: dict[str, _Checked] = {}
        # The list itself is kept beside the entry, so that its id cannot be given to another list meanwhile.
        self._lists[id(tools)] = (tools, by_name)
        for index, tool in enumerate(tools):
            name = tool["function"]["name"]
            if name in by_name:
                yield f"tools[{index}].name", f"two tools are named {quote(name)}; rename or remove one"
            key = json.dumps(tool)
            known = key in self._tools
            if not known:
                self._tools[key] = _check_tool(tool)
            by_name.setdefault(name, self._tools[key])
            if not known:
                for path, what in self._tools[key].problems:
                    yield f"tools[{index}].{path}", f"{what} (tool {quote(name)})"

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
        for problem in functiongemma.call_problems(functiongemma.Call(name, arguments)):
            yield _split(problem)
        validator = by_name[name].validator
        if validator is not None:
            yield from _schema_problems(validator, arguments)


def _split(problem: str) -> tuple[str, str]:
    path, _, what = problem.partition(": ")
    return path, what


def _check_tool(tool: dict) -> _Checked:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError
    from referencing import Registry

    problems = [_split(problem) for problem in functiongemma.tool_problems(tool)]
    schema = _argument_schema(tool["function"].get("parameters", {}))
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        problems.append(
            (f"parameters{_path(error.absolute_path)}", f"not valid JSON Schema: {shorten(error.message, 200)}")
        )
    except RecursionError:
        problems.append(("parameters", "nested too deeply to be checked; flatten it"))
    # The empty registry keeps a `$ref` to an address or file in somebody's data from being fetched.
    validator = None if problems else Draft202012Validator(schema, registry=Registry())
    return _Checked(problems, validator)


def _path(parts: Iterable[str | int]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)


def _argument_schema(parameters: dict) -> dict:
    """The schema that a tool's calls are held to: the declared one, closed and in JSON Schema's own spelling."""
    schema = _closed(parameters)
    if not any(key in schema for key in _COMBINATORS):
        # What is not declared is not rendered, so the model could not know of it.
        schema.setdefault("properties", {})
        schema.setdefault("additionalProperties", False)
    return schema


_COMBINATORS = ("allOf", "anyOf", "oneOf", "not", "if", "$ref", "$dynamicRef", "patternProperties")


def _closed(schema: dict) -> dict:
    """A copy of `schema` with lower-case types, OpenAPI's `nullable` spelt as a type, and closed objects.

    An object that declares properties takes no others unless it says so. Combined schemas stay open: each part of an
    `allOf` sees the properties of the others as additional.
    """
    copy = dict(schema)
    for key, value in schema.items():
        if key == "type" and isinstance(value, (str, list)):
            copy[key] = value.lower() if isinstance(value, str) else [str(name).lower() for name in value]
        elif key == "properties" and isinstance(value, dict):
            copy[key] = {name: _closed(inner) if isinstance(inner, dict) else inner for name, inner in value.items()}
        elif key == "items" and isinstance(value, dict):
            copy[key] = _closed(value)
    if isinstance(copy.get("properties"), dict) and copy["properties"] and not any(key in copy for key in _COMBINATORS):
        copy.setdefault("additionalProperties", False)
    if copy.pop("nullable", None) is True:
        if isinstance(copy.get("type"), str):
            copy["type"] = [copy["type"], "null"]
        if isinstance(copy.get("enum"), list) and None not in copy["enum"]:
            copy["enum"] = [*copy["enum"], None]
    return copy


def _schema_problems(validator: object, arguments: dict) -> Iterator[tuple[str, str]]:
    try:
        errors = list(islice(validator.iter_errors(arguments), _ERRORS_PER_CALL))
    except RecursionError:
        yield "arguments", "nested too deeply to be checked; flatten it"
        return
    except Exception as error:  # the schema is data: a pattern that does not compile, a reference that leads nowhere
        yield (
            "arguments",
            f"cannot be checked against the tool's schema: {type(error).__name__}: {shorten(str(error), 200)}",
        )
        return
    for error in errors:
        what = shorten(error.message, 200)
        if error.validator == "additionalProperties" and error.validator_value is False:
            declared = list(error.schema.get("properties", {}))
            unknown = next(key for key in error.instance if key not in declared)
            what = f"unknown argument {quote(unknown)}; declared: {', '.join(declared) or 'none'}"
        yield f"arguments{_path(error.absolute_path)}", what
