"""What the renderer, the parser and the checks share: control tokens, limits, the form of names and keys, `Call`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

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

ANY_CONTROL_TOKEN = re.compile("|".join(map(re.escape, CONTROL_TOKENS)))
FUNCTION_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
BARE_KEY = re.compile(r"[^:,{}\[\]]+")


@dataclass(frozen=True)
class Call:
    """One function call: the function's name and its arguments as JSON values."""

    name: str
    arguments: dict[str, Any]


def find_control_token(text: str) -> str | None:
    """Return the first control token spelt out in `text`, or None."""
    found = ANY_CONTROL_TOKEN.search(text)
    return found.group() if found else None
