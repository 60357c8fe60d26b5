"""Tools: load them and bring them to one form.

A tool is a function that the model may call, described as a JSON Schema. Rows and files spell tools in several ways;
everything after this module sees `{"type": "function", "function": {"name", "description", "parameters"}}`.
"""

from __future__ import annotations

import codecs
import contextlib
import difflib
import importlib
import json
import operator
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from fitcoach_tune import builtin
from fitcoach_tune.errors import DataError
from fitcoach_tune.strict_json import Flaw, find_flaw, kind, parse_cell, parse_json, quote
from fitcoach_tune.tool_checks import CallChecker

_MODULE_OBJECT = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def read_tools(source: str) -> list[dict]:
    """Loads tools.

    Args:
        source: a built-in example (`builtin:fitness`), the path of a JSON file (a list of tools, a single tool, or
            `{"tools": […]}`), or `module:object`, where the object is a Python function or a schema, or a list of
            those. The module is imported, with the working directory on the path while that lasts; functions become
            schemas with `transformers.utils.get_json_schema`.

    Returns:
        tools in the common form, checked: each can be carried by the wire format and is valid JSON Schema.

    Raises:
        DataError: there is no such file, module or object, or what it holds are not usable tools.
    """
    if source in builtin.NAMES:
        loaded: object = builtin.tools(source)
    elif source.lower().endswith(".json") or local_path(source)[1]:
        loaded = _json_file(source)
    elif _MODULE_OBJECT.fullmatch(source) and not source.startswith("builtin:"):
        loaded = _module_object(source)
    else:
        what = f"cannot tell what tools {quote(source)} means"
        raise DataError(what, hint=f"give a .json file, module:object or one of {', '.join(builtin.NAMES)}")
    return check_tools(loaded, source)


def check_tools(value: object, where: str) -> list[dict]:
    """Tools in the common form, each of which the wire format can carry and is valid JSON Schema.

    Args:
        where: they come from, for messages.

    Raises:
        DataError: they are not; lists the problems.
    """
    try:
        tools = normalise_tools(value)
    except Flaw as flaw:
        raise DataError(str(flaw), where=where, hint="correct the tool and run again") from None
    if not tools:
        raise DataError("there are no tools in it", where=where, hint="declare at least one function")
    problems = [f"{place}: {what}" for place, what in CallChecker().tool_problems(tools)]
    if problems:
        raise DataError("the tools cannot be used", where=where, details=problems, hint="correct them and run again")
    return tools


def local_path(source: str) -> tuple[Path, bool]:
    """The path that a source may be, `~` expanded, and whether something is there."""
    try:
        path = Path(source).expanduser()
        return path, path.exists()
    except (OSError, RuntimeError, ValueError):  # too long for a name, no such user, a null character
        return Path(source), False


# Where tools come from ------------------------------------------------------------------------------------------------


def _json_file(source: str) -> object:
    path = local_path(source)[0]
    try:
        if path.exists() and not path.is_file():  # a device or a pipe may have no end
            raise OSError("it is no regular file")
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        what = f"cannot be read: {getattr(error, 'strerror', None) or error}"
        raise DataError(what, where=source, hint="check the path of the tools") from None
    try:
        return parse_json(data.removeprefix(codecs.BOM_UTF8))
    except Flaw as flaw:
        where = f"{source}:{flaw.line}" if flaw.line else source
        raise DataError(str(flaw), where=where, hint="correct the file and run again") from None


def _module_object(source: str) -> object:
    """Imports `module:object`; every function in it becomes a schema."""
    value = module_object(source)
    with _anybody(source, "it cannot be looked at"):
        if isinstance(value, (list, tuple)):
            return [_as_schema(item, source) for item in value]
        return _as_schema(value, source)


def module_object(source: str) -> Any:
    """The object that `module:object` names; the module is imported, once in a process.

    Raises:
        DataError: there is no such module or object, or importing or naming it fails, in whatever way.
    """
    module_name, _, attribute = source.partition(":")
    directory = os.getcwd()
    sys.path.insert(0, directory)
    try:
        importlib.invalidate_caches()  # the module may have been written after Python last listed the directory
        with _anybody(source, "importing it failed", "make `import` of the module work on its own first"):
            module = _import(module_name, source)
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(directory)
    with _anybody(source, f"{attribute} cannot be taken from it"):
        try:
            return operator.attrgetter(attribute)(module)
        except AttributeError:
            near = difflib.get_close_matches(attribute, vars(module), n=1)
            hint = f"did you mean {module_name}:{near[0]}?" if near else f"define {attribute} in {module_name}"
            raise DataError(f"the module has no {attribute!r}", where=source, hint=hint) from None


def _import(name: str, source: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        ours = isinstance(error.name, str) and (name + ".").startswith(error.name + ".")
        what = f"there is no module {error.name!r}" if ours else f"importing it failed: {_text(error)}"
        raise DataError(what, where=source, hint="run in the folder that holds the module, or install it") from None


@contextlib.contextmanager
def _anybody(source: str, what: str, hint: str = "give functions or JSON Schemas") -> Iterator[None]:
    """Around what runs somebody's program, which can fail in any way, or try to exit."""
    try:
        yield
    except (DataError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise DataError(f"{what}: {type(error).__name__}: {_text(error)}", where=source, hint=hint) from None


def _text(error: BaseException) -> str:
    try:
        return " ".join(str(error).split())
    except BaseException:  # an exception's own text is made by somebody's program, too
        return "it does not say why"


def _as_schema(value: object, source: str) -> object:
    if not callable(value):
        if flaw := find_flaw(value):
            raise DataError(str(flaw), where=source, hint="give functions or JSON Schemas")
        return json.loads(json.dumps(value))  # plain values, whose methods are nobody's
    from transformers.utils import get_json_schema

    try:
        return get_json_schema(value)
    except Exception as error:  # besides its own two, it lets through whatever inspecting an odd callable raises
        name = getattr(value, "__name__", type(value).__name__)
        hint = "give the function type hints and a Google-style docstring with an Args section"
        raise DataError(f"no schema can be made of {name}: {_text(error)}", where=source, hint=hint) from None


# One form -------------------------------------------------------------------------------------------------------------


def normalise_tools(value: object) -> list[dict]:
    """Brings a list of tools, or a single one, to the common form. Raises `Flaw`, its field from `tools` on."""
    if isinstance(value, dict):
        value = value["tools"] if isinstance(value.get("tools"), list) else [value]
    if not isinstance(value, list):
        raise Flaw("tools", f"must be a list of tools, not {kind(value)}")
    return [_normalise_tool(tool, f"tools[{index}]") for index, tool in enumerate(value)]


def _normalise_tool(tool: object, field: str) -> dict:
    tool = parse_cell(tool, field)
    if not isinstance(tool, dict):
        raise Flaw(field, f"a tool must be an object, not {kind(tool)}")
    function = parse_cell(tool.get("function", tool), f"{field}.function")
    if tool.get("type", "function") != "function" or not isinstance(function, dict):
        raise Flaw(field, 'must be {"type": "function", "function": {"name": …, "description": …, …}}')
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise Flaw(f"{field}.name", "a tool needs a name")
    if misnamed := {"input_schema", "inputSchema", "args_schema", "arguments"} & function.keys():
        raise Flaw(f"{field}.{min(misnamed)}", f"rename it to 'parameters' (tool {name!r})")
    kept = {key: function[key] for key in ("name", "description", "parameters") if key in function}
    if "parameters" in kept:
        kept["parameters"] = parse_cell(kept["parameters"], f"{field}.parameters")
    for key, kind_of, wanted in (("parameters", dict, "a JSON Schema object"), ("description", str, "text")):
        if key in kept and not isinstance(kept[key], kind_of):
            raise Flaw(f"{field}.{key}", f"must be {wanted}, not {kind(kept[key])} (tool {name!r})")
    return {"type": "function", "function": kept}
