"""Conversations and calls as people write them, brought to the one form that the rest of the program sees."""

from __future__ import annotations

from fitcoach_tune.strict_json import Flaw, kind, parse_cell, quote

_ROLES = {"developer": "developer", "system": "developer", "user": "user", "tool": "tool"}
_ROLES |= dict.fromkeys(("assistant", "model"), "assistant")


def read_messages(cell: object) -> list[dict]:
    """The `messages` cell of a row, or its JSON text, in the common form. Raises `Flaw`."""
    cell = parse_cell(cell, "messages")
    if not isinstance(cell, list) or not cell:
        raise Flaw("messages", f"must be a list of messages, not {kind(cell)}" if cell != [] else "is empty")
    messages: list[dict] = []
    due: list[tuple[object, str]] = []  # (id, function) of the calls that still wait for their results
    for index, raw in enumerate(cell):
        spot = f"messages[{index}]"
        role = _role(raw, spot)
        calls = _raw_calls(raw, spot)
        if calls and role != "assistant":
            raise Flaw(f"{spot}.tool_calls", f"only the assistant calls functions, not the {raw['role']}")
        _check_order(role, messages[-1]["role"] if messages else None, due, spot)
        if role == "tool":
            messages.append(_result(raw, spot, due))
            continue
        content, place = raw.get("content"), f"{spot}.content"
        text = "" if content is None and role == "assistant" else read_text(content, place)
        if calls:
            messages.append({"role": role, "content": text, "tool_calls": [read_call(c, at) for at, c in calls]})
            names = [call["function"]["name"] for call in messages[-1]["tool_calls"]]
            due = [(call.get("id"), name) for (_, call), name in zip(calls, names, strict=True)]
        else:
            messages.append({"role": role, "content": filled(text, place)})
    if messages[-1]["role"] != "assistant":
        raise Flaw(f"messages[{len(messages) - 1}]", "the last message must be the assistant's, to be learnt")
    return messages


def _role(raw: object, spot: str) -> str:
    if not isinstance(raw, dict):
        raise Flaw(spot, f"a message must be an object, not {kind(raw)}")
    given = raw.get("role")
    if not isinstance(given, str) or given not in _ROLES:
        shown = quote(given) if isinstance(given, str) else kind(given)
        raise Flaw(f"{spot}.role", f"{shown} is not a role; use developer, system, user, assistant or tool")
    return _ROLES[given]


def _check_order(role: str, previous: str | None, due: list[tuple[object, str]], spot: str) -> None:
    """Raises `Flaw` where a message cannot follow the `previous` one in the model's format."""
    what = None
    if role == "tool":
        what = None if due else "the tool message answers no call; put it after the assistant's call"
    elif due:
        what = f"the call to {quote(due[0][1])} has no result before this {role} message; add it"
    elif role == "developer" and previous:
        what = "a developer or system message can only be the first"
    elif role == "user" and previous == "user":
        what = "a user message follows another user message; join the two"
    elif role == "user" and previous == "tool":
        what = "a user message follows a tool result; let the assistant answer"
    elif role == "assistant" and previous not in ("user", "tool"):
        what = "an assistant message must follow a user message or a tool result"
    if what:
        raise Flaw(spot, what)


def _result(raw: dict, spot: str, due: list[tuple[object, str]]) -> dict:
    """A tool message, with the name of the call it answers: by its `tool_call_id`, its name, or the order."""
    name, call_id = raw.get("name"), raw.get("tool_call_id")
    by_id = [index for index, (known, _) in enumerate(due) if call_id is not None and known == call_id]
    by_name = [index for index, (_, called) in enumerate(due) if called == name]
    _, called = due.pop([*by_id, *by_name, 0][0])
    if name is not None and name != called:
        shown = quote(name) if isinstance(name, str) else kind(name)
        raise Flaw(f"{spot}.name", f"{shown} was not called here; the call that waits is to {quote(called)}")
    content = raw.get("content")
    if not isinstance(content, dict):
        content = read_text(content, f"{spot}.content", "text or an object")
    return {"role": "tool", "name": called, "content": content}


def _raw_calls(raw: dict, spot: str) -> list[tuple[str, object]]:
    """(place, call) of a message's calls: `tool_calls`, or the single `function_call` of OpenAI's first interface."""
    several, single = (parse_cell(raw.get(name), f"{spot}.{name}") for name in ("tool_calls", "function_call"))
    if several and single is not None:
        raise Flaw(f"{spot}.function_call", "there are tool_calls as well; keep one of the two")
    if single is not None:
        return [(f"{spot}.function_call", single)]
    if several is not None and not isinstance(several, list):
        raise Flaw(f"{spot}.tool_calls", f"must be a list of calls, not {kind(several)}")
    return [(f"{spot}.tool_calls[{index}]", call) for index, call in enumerate(several or [])]


def read_call(raw: object, spot: str) -> dict:
    """One call, OpenAI-style or flat, in the common form. Raises `Flaw`."""
    function = raw if not isinstance(raw, dict) or raw.get("function") is None else raw["function"]
    if not isinstance(function, dict):
        raise Flaw(spot, f'a call must be {{"name": …, "arguments": {{…}}}}, not {kind(function)}')
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise Flaw(f"{spot}.name", "a call needs the name of its function")
    if "arguments" not in function and (misnamed := {"parameters", "args", "input"} & function.keys()):
        raise Flaw(f"{spot}.{min(misnamed)}", "rename it to 'arguments'")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = parse_cell(arguments, f"{spot}.arguments") if arguments.strip() else {}
    if not isinstance(arguments, dict):
        raise Flaw(f"{spot}.arguments", f"must be an object ({{}} for none), not {kind(arguments)}")
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def read_text(value: object, spot: str, wanted: str = "text") -> str:
    """Text as a string or as OpenAI-style text parts. Raises `Flaw`."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(part, dict) for part in value):
        texts = [part.get("text") if part.get("type") == "text" else None for part in value]
        if texts and all(isinstance(text, str) for text in texts):
            return "".join(texts)
        wanted = f"{wanted} (the model reads nothing else)"
    raise Flaw(spot, f"must be {wanted}, not {kind(value)}")


def filled(text: str, spot: str) -> str:
    """`text` itself, where there is any. Raises `Flaw`."""
    if not text.strip():
        raise Flaw(spot, "is empty")
    return text
