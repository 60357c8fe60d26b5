"""The wire format of google/functiongemma-270m-it: messages and tools to text, and model output back to calls.

`render` gives the bytes that the published model's own chat template gives, quirks included, because those bytes are
what the model was trained on. Where such a quirk would teach a wrong declaration (a parameter called `type` vanishes),
`tool_problems` says so beforehand; `call_problems` does the same for values that the format cannot carry. `parse` is
the strict inverse of `render_call`. The file `functiongemma.jinja` beside this module is the same renderer for
`transformers`' `apply_chat_template`; the tests hold the two to the same bytes.

Grammar of a call, with control tokens in angle brackets:

    call   = "<start_function_call>call:" name object "<end_function_call>"
    object = "{" [key ":" value {"," key ":" value}] "}"
    value  = "<escape>" text "<escape>" | "true" | "false" | "None" | number | object | "[" [value {"," value}] "]"
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from fitcoach_tune.errors import DataError

PAD = "<pad>"
EOS = "<eos>"
BOS = "<bos>"
START_FUNCTION_DECLARATION = "<start_function_declaration>"
END_FUNCTION_DECLARATION = "<end_function_declaration>"
START_FUNCTION_CALL = "<start_function_call>"
END_FUNCTION_CALL = "<end_function_call>"
START_FUNCTION_RESPONSE = "<start_function_response>"
END_FUNCTION_RESPONSE = "<end_function_response>"
ESCAPE = "<escape>"
START_OF_TURN = "<start_of_turn>"
END_OF_TURN = "<end_of_turn>"

CONTROL_TOKENS: dict[str, int] = {
    PAD: 0,
    EOS: 1,
    BOS: 2,
    START_FUNCTION_DECLARATION: 46,
    END_FUNCTION_DECLARATION: 47,
    START_FUNCTION_CALL: 48,
    END_FUNCTION_CALL: 49,
    START_FUNCTION_RESPONSE: 50,
    END_FUNCTION_RESPONSE: 51,
    ESCAPE: 52,
    START_OF_TURN: 105,
    END_OF_TURN: 106,
}
"""Every control token and its id in the 262,144-token Gemma 3 vocabulary."""

RENAMED_TOKENS: dict[str, str] = {f"<unused{i - 6}>": token for token, i in CONTROL_TOKENS.items() if 46 <= i <= 52}
"""How plain Gemma 3 spells ids 46 to 52, and how FunctionGemma spells them."""

STOP_TOKENS = (EOS, END_OF_TURN, START_FUNCTION_RESPONSE)
TRIGGER = "You are a model that can do function calling with the following functions"
MAX_DEPTH = 64
"""Containers inside containers that are rendered or parsed; a call's arguments are the first."""
MAX_NUMBER_CHARS = 4300
"""Longest number that is parsed: Python's own default limit for turning text into an int."""
_TOO_LARGE_INT = 10 ** (MAX_NUMBER_CHARS - 1)  # leaves room for a minus sign

# The published template skips these keys in every `properties`, taking them for schema keywords.
_RESERVED = ("description", "type", "properties", "required", "nullable")
_UNIONS = ("anyOf", "oneOf", "allOf", "$ref")

_CONTROL_TOKEN = re.compile("|".join(map(re.escape, CONTROL_TOKENS)))
_STOP_TOKEN = re.compile("|".join(map(re.escape, STOP_TOKENS)))
_SURROGATE = re.compile("[\ud800-\udfff]")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_KEY = re.compile(r"[^:,{}\[\]]+")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_WORD = re.compile(r"true|false|None")
_WORDS = {"true": True, "false": False, "None": None}


@dataclass(frozen=True)
class Call:
    """One function call: the function's name and its arguments as JSON values."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class ModelOutput:
    """What the model wrote: its calls in order, and the text outside them, without control tokens, stripped."""

    calls: tuple[Call, ...]
    text: str


class ParseError(ValueError):
    """Model output that is not in the format.

    Attributes:
        reason: what is wrong.
        position: the offset of the offending character in the text given to `parse`.
        excerpt: the text around it.
    """

    def __init__(self, reason: str, position: int, excerpt: str):
        super().__init__(reason, position, excerpt)
        self.reason = reason
        self.position = position
        self.excerpt = excerpt

    def __str__(self) -> str:
        return f"{self.reason} at character {self.position}, near {self.excerpt!r}"


def find_control_token(text: str) -> str | None:
    """Return the first control token spelt out in `text`, or None."""
    found = _CONTROL_TOKEN.search(text)
    return found.group() if found else None


def chat_template() -> str:
    """Return the project's Jinja chat template, for a tokenizer's `chat_template`."""
    return resources.files("fitcoach_tune").joinpath("functiongemma.jinja").read_text(encoding="utf-8")


# --- Rendering values -------------------------------------------------------------------------------------------------


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


def _value(value: Any, *, quote_keys: bool = False, depth: int = 1) -> str:
    """One argument value. `quote_keys` is how objects appear inside a declaration's `items`."""
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        _check_depth(depth)
        items = [
            f"{_quoted(key) if quote_keys else key}:{_value(inner, quote_keys=quote_keys, depth=depth + 1)}"
            for key, inner in _sorted_items(value)
        ]
        return "{" + ",".join(items) + "}"
    if isinstance(value, (list, tuple)):
        _check_depth(depth)
        return "[" + ",".join(_value(inner, quote_keys=quote_keys, depth=depth + 1) for inner in value) + "]"
    try:
        return str(value)
    except ValueError as error:  # an int with more digits than Python converts
        raise DataError(f"A number cannot be written: {error}.", hint="send it as a string") from error


def render_call(call: Call) -> str:
    """Return `call` as the model writes it, from `<start_function_call>` to `<end_function_call>`.

    Raises:
        DataError: the arguments are nested deeper than `MAX_DEPTH` or have a key that is not a string. Other values
            that would not survive are found by `call_problems`.
    """
    return f"{START_FUNCTION_CALL}call:{call.name}{_value(call.arguments)}{END_FUNCTION_CALL}"


# --- Rendering declarations -------------------------------------------------------------------------------------------


def _get(schema: Any, key: str, default: Any = "") -> Any:
    """Look up a key as a template does: whatever is missing, or is no object at all, prints as nothing."""
    return schema.get(key, default) if isinstance(schema, Mapping) else default


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
            text = _value(value, quote_keys=True)
        parts.append(f"{key}:{text}")
    return "{" + ",".join(parts) + "}"


def _parameter(schema: Any, depth: int) -> str:
    kind = str(_get(schema, "type")).upper()
    parts = [f"description:{_quoted(_get(schema, 'description'))}"]
    if kind == "STRING" and _get(schema, "enum"):
        parts.append(f"enum:{_value(schema['enum'], quote_keys=True)}")
    elif kind == "OBJECT":
        # An object without `properties` is searched for them itself, so that its other keywords turn into parameters.
        inner = schema["properties"] if isinstance(_get(schema, "properties"), Mapping) else schema
        parts.append("properties:{" + _properties(inner, depth + 1) + "}")
        if _get(schema, "required"):
            parts.append(f"required:{_names(schema['required'])}")
    elif kind == "ARRAY" and isinstance(_get(schema, "items"), Mapping) and schema["items"]:
        parts.append(f"items:{_items_schema(schema['items'], depth)}")
    parts.append(f"type:{_quoted(kind)}")
    return "{" + ",".join(parts) + "}"


def _properties(properties: Mapping[str, Any], depth: int = 1) -> str:
    _check_depth(depth)
    shown = [(key, schema) for key, schema in _sorted_items(properties) if key not in _RESERVED]
    return ",".join(f"{key}:{_parameter(schema, depth)}" for key, schema in shown)


def _function(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = _get(tool, "function", None)
    return inner if isinstance(inner, Mapping) else tool


def render_declaration(tool: Mapping[str, Any]) -> str:
    """Return one tool as the model reads it.

    Args:
        tool: `{"type": "function", "function": {...}}`, or the inner function alone.

    Raises:
        DataError: the tool has no name, or its schema is too deep or not made of objects. Call `tool_problems` first
            to find schemas that render, but not as their author meant.
    """
    function = _function(tool)
    name = _get(function, "name")
    if not isinstance(name, str) or not name:
        raise DataError("A tool has no name.", where="tools", hint="give every tool a `name` that is a string")
    text = f"declaration:{name}{{description:{_quoted(_get(function, 'description'))}"
    parameters = _get(function, "parameters")
    if parameters:
        text += ",parameters:{"
        if _get(parameters, "properties"):
            if not isinstance(parameters["properties"], Mapping):
                raise DataError("`parameters.properties` is not an object.", where=f"tool {name}")
            text += "properties:{" + _properties(parameters["properties"]) + "},"
        if _get(parameters, "required"):
            text += f"required:{_names(parameters['required'])},"
        # The closing brace hangs on the type, as in the published template: hence a problem in `tool_problems`.
        if _get(parameters, "type"):
            text += f"type:{_quoted(str(parameters['type']).upper())}}}"
    return f"{START_FUNCTION_DECLARATION}{text}}}{END_FUNCTION_DECLARATION}"


# --- Rendering conversations ------------------------------------------------------------------------------------------


def _is_text_part(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _text(message: Mapping[str, Any], where: str) -> str:
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content.strip()
    if isinstance(content, (list, tuple)) and all(map(_is_text_part, content)):
        return "".join(part["text"].strip() for part in content)
    raise DataError(
        "The content is neither text nor a list of text parts.",
        where=f"{where}.content",
        hint='use a string, or a list of {"type": "text", "text": ...}; the model reads nothing else',
    )


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _arguments(function: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments, parse_constant=_reject_constant) if arguments.strip() else {}
        except (ValueError, RecursionError) as error:
            hint = "give the arguments as an object, or as that object's JSON text"
            raise DataError(f"The arguments are not JSON: {error}.", where=f"{where}.arguments", hint=hint) from error
    if arguments is None:
        return {}
    if not isinstance(arguments, Mapping):
        raise DataError("The arguments are not an object.", where=f"{where}.arguments", hint="use a JSON object")
    return arguments


def _calls(message: Mapping[str, Any], where: str) -> str:
    rendered = []
    for index, entry in enumerate(message.get("tool_calls") or ()):
        at = f"{where}.tool_calls[{index}]"
        function = _function(entry)
        name = _get(function, "name")
        if not isinstance(name, str) or not name:
            raise DataError("A tool call has no function name.", where=at, hint="set `function.name`")
        rendered.append(render_call(Call(name, dict(_arguments(function, at)))))
    return "".join(rendered)


def _result_name(message: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]], where: str) -> str:
    """The function that a tool message answers: its `name`, or the last call before it with its `tool_call_id`."""
    name = message.get("name")
    if isinstance(name, str) and name:
        return name
    call_id = message.get("tool_call_id")
    for candidate in reversed(earlier) if call_id else ():
        for entry in reversed(candidate.get("tool_calls") or ()):
            if entry.get("id") == call_id and isinstance(_get(_function(entry), "name"), str):
                return _function(entry)["name"]
    raise DataError(
        "A tool result does not say which function it comes from.",
        where=where,
        hint="set `name`, or a `tool_call_id` that an earlier call has as its `id`",
    )


def _is_named_result(content: Any) -> bool:
    return isinstance(content, Mapping) and "name" in content and "response" in content


def _results(message: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]], where: str) -> str:
    """A tool message: one result, or several where its content lists `{"name": ..., "response": ...}` objects."""
    content = message.get("content")
    if _is_named_result(content):
        content = [content]
    if isinstance(content, (list, tuple)) and content and all(map(_is_named_result, content)):
        results = [(one["name"], one["response"]) for one in content]
    else:
        if isinstance(content, (list, tuple)) and content and all(map(_is_text_part, content)):
            content = "".join(part["text"] for part in content)
        results = [(_result_name(message, earlier, where), content)]
    return "".join(
        f"{START_FUNCTION_RESPONSE}response:{name}"
        f"{_value(result) if isinstance(result, Mapping) else '{value:' + _value(result) + '}'}{END_FUNCTION_RESPONSE}"
        for name, result in results
    )


_ROLES = {"assistant": "model", "model": "model", "user": "user", "developer": "developer", "system": "system"}


def _turns(messages: Sequence[Mapping[str, Any]], offset: int) -> Iterator[str]:
    """Yield the text after the developer turn, one piece per message; errors count messages from `offset`."""
    previous = None  # "call" or "result" while the model's turn is still open
    for index, message in enumerate(messages):
        where = f"messages[{index + offset}]"
        role = message.get("role")
        if role == "tool":
            if previous is None:
                raise DataError("A tool result does not follow a tool call.", where=where, hint="add that call")
            yield _results(message, messages[:index], where)
            previous = "result"
            continue
        if not isinstance(role, str) or role not in _ROLES:
            hint = "use developer, system, user, assistant or tool"
            raise DataError(f"The role {role!r} is unknown.", where=f"{where}.role", hint=hint)
        if previous == "call":
            hint = "add the result as a message of role tool, or end the conversation with the call"
            raise DataError("A tool call is not followed by its result.", where=where, hint=hint)
        # After a result the published template opens no new turn, whatever the role.
        opening = "" if previous == "result" else f"{START_OF_TURN}{_ROLES[role]}\n"
        calls = _calls(message, where)
        last = index == len(messages) - 1
        # A call that ends the conversation ends in the token that the model must learn to stop on.
        closing = f"{END_OF_TURN}\n" if not calls else START_FUNCTION_RESPONSE if last else ""
        yield opening + _text(message, where) + calls + closing
        previous = "call" if calls else None


def render(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    add_generation_prompt: bool = False,
) -> str:
    """Return the whole conversation as text, `<bos>` included: tokenize it without adding special tokens.

    Args:
        messages: transformers-style messages. Roles are developer, system, user, assistant and tool; an assistant may
            have `tool_calls`, with arguments as an object or as its JSON text; a tool's content may be any JSON value.
        tools: `{"type": "function", "function": {...}}` dicts or bare function dicts, in the order to show them.
        add_generation_prompt: open the model's turn at the end, unless a tool result has left it open.

    Raises:
        DataError: a message or tool cannot be rendered; it names the message by its index.
    """
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            hint = "use an object with a role and a content"
            raise DataError("A message is not an object.", where=f"messages[{index}]", hint=hint)
    pieces = [BOS]
    has_developer = bool(messages) and messages[0].get("role") in ("developer", "system")
    if has_developer or tools:
        pieces.append(f"{START_OF_TURN}developer\n")
        pieces.append(_text(messages[0], "messages[0]") if has_developer else "")
        pieces.extend(render_declaration(tool) for tool in tools or ())
        pieces.append(f"{END_OF_TURN}\n")
    rest = messages[1:] if has_developer else messages
    pieces.extend(_turns(rest, int(has_developer)))
    if add_generation_prompt and not (rest and rest[-1].get("role") == "tool"):
        pieces.append(f"{START_OF_TURN}model\n")
    return "".join(pieces)


# --- Parsing ----------------------------------------------------------------------------------------------------------


def _error(reason: str, text: str, at: int) -> ParseError:
    return ParseError(reason, at, text[max(0, at - 20) : at + 20])


def _parse_string(text: str, at: int) -> tuple[str, int]:
    start = at + len(ESCAPE)
    end = _CONTROL_TOKEN.search(text, start)
    if end is None or end.group() != ESCAPE:
        raise _error(f"a string is not closed by {ESCAPE}", text, at)
    return text[start : end.start()], end.end()


def _parse_number(number: re.Match[str], text: str) -> int | float:
    literal = number.group()
    if len(literal) > MAX_NUMBER_CHARS:
        raise _error(f"a number is longer than {MAX_NUMBER_CHARS} characters", text, number.start())
    if number.group(1) is None and number.group(2) is None:
        return int(literal)
    value = float(literal)
    if not math.isfinite(value):
        raise _error("a number is too large", text, number.start())
    return value


def _parse_value(text: str, at: int, depth: int) -> tuple[Any, int]:
    if text.startswith(ESCAPE, at):
        return _parse_string(text, at)
    if text.startswith("{", at):
        return _parse_object(text, at, depth)
    if text.startswith("[", at):
        return _parse_list(text, at, depth)
    if number := _NUMBER.match(text, at):
        return _parse_number(number, text), number.end()
    if word := _WORD.match(text, at):
        return _WORDS[word.group()], word.end()
    raise _error("a value was expected", text, at)


def _parse_key(text: str, at: int) -> tuple[str, int]:
    found = _KEY.match(text, at)
    if found is None:
        raise _error("a key was expected", text, at)
    key, end = found.group(), found.end()
    if token := _CONTROL_TOKEN.search(key):
        raise _error("a key has a control token in it", text, at + token.start())
    if not text.startswith(":", end):
        raise _error("':' was expected after a key", text, end)
    if key != key.strip():
        raise _error("a key starts or ends with white space", text, at)
    return key, end + 1


def _after_item(text: str, at: int, closing: str) -> tuple[bool, int]:
    """Step over what follows an item: (True, next) at the closing bracket, (False, next) at a comma."""
    if text.startswith(closing, at):
        return True, at + 1
    if text.startswith(",", at):
        return False, at + 1
    raise _error(f"',' or {closing!r} was expected", text, at)


def _parse_object(text: str, at: int, depth: int) -> tuple[dict[str, Any], int]:
    if depth > MAX_DEPTH:
        raise _error(f"values are nested deeper than {MAX_DEPTH} levels", text, at)
    result: dict[str, Any] = {}
    at += 1
    done = text.startswith("}", at)
    if done:
        return result, at + 1
    while not done:
        start = at
        key, at = _parse_key(text, at)
        if key in result:
            raise _error(f"the key {key[:40]!r} appears twice", text, start)
        result[key], at = _parse_value(text, at, depth + 1)
        done, at = _after_item(text, at, "}")
    return result, at


def _parse_list(text: str, at: int, depth: int) -> tuple[list[Any], int]:
    if depth > MAX_DEPTH:
        raise _error(f"values are nested deeper than {MAX_DEPTH} levels", text, at)
    result: list[Any] = []
    at += 1
    done = text.startswith("]", at)
    if done:
        return result, at + 1
    while not done:
        value, at = _parse_value(text, at, depth + 1)
        result.append(value)
        done, at = _after_item(text, at, "]")
    return result, at


def _parse_call(text: str, at: int) -> tuple[Call, int]:
    at += len(START_FUNCTION_CALL)
    if not text.startswith("call:", at):
        raise _error("'call:' was expected", text, at)
    name = _NAME.match(text, at + len("call:"))
    if name is None:
        raise _error("a function name was expected", text, at + len("call:"))
    if not text.startswith("{", name.end()):
        raise _error("'{' was expected after the function name", text, name.end())
    arguments, at = _parse_object(text, name.end(), 1)
    if not text.startswith(END_FUNCTION_CALL, at):
        raise _error(f"{END_FUNCTION_CALL} was expected", text, at)
    return Call(name.group(), arguments), at + len(END_FUNCTION_CALL)


def _outside(text: str, start: int, end: int) -> str:
    stray = text.find(END_FUNCTION_CALL, start, end)
    if stray != -1:
        raise _error(f"{END_FUNCTION_CALL} ends no call", text, stray)
    return _CONTROL_TOKEN.sub("", text[start:end])


def parse(text: str) -> ModelOutput:
    """Return the calls and the text of one raw model output, in time linear in its length.

    Args:
        text: everything that the model wrote after the generation prompt, with its control tokens spelt out. What
            follows the first stop token is ignored.

    Raises:
        ParseError: some call is not in the format. No call is returned then, as half an answer is worse than none.
    """
    stop = _STOP_TOKEN.search(text)
    if stop:
        text = text[: stop.start()]
    calls: list[Call] = []
    outside: list[str] = []
    at = 0
    while (start := text.find(START_FUNCTION_CALL, at)) != -1:
        outside.append(_outside(text, at, start))
        call, at = _parse_call(text, start)
        calls.append(call)
    outside.append(_outside(text, at, len(text)))
    return ModelOutput(tuple(calls), "".join(outside).strip())


# --- What the format cannot carry -------------------------------------------------------------------------------------


def _text_problem(text: str) -> str | None:
    if token := find_control_token(text):
        return f"contains the control token {token}, which would change the structure; take it out"
    if _SURROGATE.search(text):
        return "contains half of a surrogate pair, which is not valid Unicode; repair the text"
    return None


def _key_problem(key: Any) -> str | None:
    if not isinstance(key, str) or not key:
        return "keys must be strings that are not empty; rename it"
    if key != key.strip() or not _KEY.fullmatch(key):
        return "keys are written bare, so they cannot have any of : , { } [ ] or white space at an edge; rename it"
    return _text_problem(key)


def _name_problems(name: Any) -> Iterator[str]:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        yield f"name: {name!r} is not a function name; use letters, digits, _ . and -, starting with a letter or _"


def _value_problems(value: Any, path: str, depth: int) -> Iterator[str]:
    kind = type(value)
    if value is None or kind is bool:
        return
    if kind is str:
        if problem := _text_problem(value):
            yield f"{path}: {problem}"
    elif kind is int:
        if abs(value) >= _TOO_LARGE_INT:
            yield f"{path}: has {MAX_NUMBER_CHARS} digits or more; send it as a string"
    elif kind is float:
        if not math.isfinite(value):
            yield f"{path}: {value} is not a JSON number; use a finite number or null"
    elif kind not in (dict, list):
        yield f"{path}: a Python {kind.__name__} is not a JSON value; use str, int, float, bool, None, list or dict"
    elif depth > MAX_DEPTH:
        yield f"{path}: is nested deeper than {MAX_DEPTH} levels; flatten it"
    elif kind is list:
        for index, inner in enumerate(value):
            yield from _value_problems(inner, f"{path}[{index}]", depth + 1)
    else:
        for key, inner in value.items():
            if problem := _key_problem(key):
                yield f"{path}.{key}: {problem}"
            yield from _value_problems(inner, f"{path}.{key}", depth + 1)


def call_problems(call: Call) -> list[str]:
    """Return everything about `call` that would not survive `parse(render_call(call))`, as `path: what and what to do`.

    An empty list is a promise: the call comes back equal, types included.
    """
    problems = list(_name_problems(call.name))
    if type(call.arguments) is not dict:
        return [*problems, "arguments: must be a dict; use {} for none"]
    return [*problems, *_value_problems(call.arguments, "arguments", 1)]


def _text_problems(value: Any, path: str, depth: int = 1) -> Iterator[str]:
    """Text in a schema, keys included, that cannot be written; and schemas too deep to write at all."""
    if isinstance(value, str):
        if problem := _text_problem(value):
            yield f"{path}: {problem}"
    elif isinstance(value, (Mapping, list, tuple)) and depth > MAX_DEPTH:
        yield f"{path}: is nested deeper than {MAX_DEPTH} levels; flatten it"
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
    if phantoms := sorted(str(key) for key in schema if key not in _RESERVED):
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
        if (problem := _key_problem(key)) and not (isinstance(key, str) and _text_problem(key)):
            yield f"{path}.{key}: {problem}"
        if key in _RESERVED:
            yield f"{path}.{key}: the model's template leaves out a parameter of this name; rename it"
        yield from _parameter_problems(schema, f"{path}.{key}")


def tool_problems(tool: Mapping[str, Any]) -> list[str]:
    """Return every way in which the declaration of `tool` would not say what its author meant.

    Each entry is `path: what is wrong; what to do`, with paths as in the schema (`parameters.properties.kind.type`).
    What the format leaves out on purpose (`default`, `minimum`, an `enum` of numbers, `return`) is no problem.
    """
    function = _function(tool) if isinstance(tool, Mapping) else None
    if function is None:
        return ["tool: must be an object with a name, a description and parameters"]
    problems = list(_name_problems(function.get("name")))
    problems += _description_problems(function, "description")
    problems += _text_problems(function.get("description"), "description")
    parameters = function.get("parameters")
    if not parameters:
        return problems
    if not isinstance(parameters, Mapping):
        return [*problems, "parameters: must be a schema object of type object"]
    deep = list(_text_problems(parameters, "parameters"))
    problems += deep
    if any("nested deeper" in problem for problem in deep):
        return problems
    problems += _type_problems(parameters, "parameters")
    if isinstance(parameters.get("type"), str) and parameters["type"] and parameters["type"].upper() != "OBJECT":
        problems.append(f"parameters.type: is {parameters['type']!r}; parameters are always of type object")
    problems += _required_problems(parameters, "parameters")
    if parameters.get("properties"):
        problems += _properties_problems(parameters["properties"], "parameters.properties")
    return problems
