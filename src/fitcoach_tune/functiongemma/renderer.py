"""Messages and tools to text, byte for byte as the published model's own chat template writes them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any

from fitcoach_tune.errors import DataError
from fitcoach_tune.functiongemma.declarations import function_of, lookup, render_declaration, value_text
from fitcoach_tune.functiongemma.tokens import (
    BOS,
    END_FUNCTION_CALL,
    END_FUNCTION_RESPONSE,
    END_OF_TURN,
    START_FUNCTION_CALL,
    START_FUNCTION_RESPONSE,
    START_OF_TURN,
    Call,
)

_ROLES = {"assistant": "model", "model": "model", "user": "user", "developer": "developer", "system": "system"}


def chat_template() -> str:
    """Return the project's Jinja chat template, for a tokenizer's `chat_template`."""
    return resources.files("fitcoach_tune.functiongemma").joinpath("template.jinja").read_text(encoding="utf-8")


def render_call(call: Call) -> str:
    """Return `call` as the model writes it, from `<start_function_call>` to `<end_function_call>`.

    Raises:
        DataError: the arguments are nested deeper than `MAX_DEPTH` or have a key that is not a string. Other values
            that would not survive are found by `call_problems`.
    """
    return f"{START_FUNCTION_CALL}call:{call.name}{value_text(call.arguments)}{END_FUNCTION_CALL}"


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
        function = function_of(entry)
        name = lookup(function, "name")
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
            if entry.get("id") == call_id and isinstance(lookup(function_of(entry), "name"), str):
                return function_of(entry)["name"]
    raise DataError(
        "A tool result does not say which function it comes from.",
        where=where,
        hint="set `name`, or a `tool_call_id` that an earlier call has as its `id`",
    )


def _is_named_result(content: Any) -> bool:
    return isinstance(content, Mapping) and "name" in content and "response" in content


def _result(name: str, result: Any) -> str:
    text = value_text(result)
    if not isinstance(result, Mapping):
        text = "{value:" + text + "}"
    return f"{START_FUNCTION_RESPONSE}response:{name}{text}{END_FUNCTION_RESPONSE}"


def _results(message: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]], where: str) -> str:
    """A tool message: one result, or several where its content lists `{"name": ..., "response": ...}` objects."""
    content = message.get("content")
    if _is_named_result(content):
        content = [content]
    is_list = isinstance(content, (list, tuple)) and bool(content)
    if is_list and all(map(_is_named_result, content)):
        return "".join(_result(one["name"], one["response"]) for one in content)
    if is_list and all(map(_is_text_part, content)):
        content = "".join(part["text"] for part in content)
    return _result(_result_name(message, earlier, where), content)


def render_turns(messages: Sequence[Mapping[str, Any]], offset: int) -> Iterator[str]:
    """Yield what `render` writes after the developer's turn, one piece per message.

    Args:
        messages: without the developer's.
        offset: what errors count messages from.

    Raises:
        DataError: as `render`.
    """
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
    pieces.extend(render_turns(rest, int(has_developer)))
    if add_generation_prompt and not (rest and rest[-1].get("role") == "tool"):
        pieces.append(f"{START_OF_TURN}model\n")
    return "".join(pieces)
