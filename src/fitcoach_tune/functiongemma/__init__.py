"""The wire format of google/functiongemma-270m-it: messages and tools to text, and model output back to calls.

`render` gives the bytes that the published model's own chat template gives, quirks included, because those bytes are
what the model was trained on. Where such a quirk would teach something wrong (a parameter called `type` vanishes),
`tool_problems` says so beforehand; `call_problems` does the same for values that the format cannot carry. `parse` is
the strict inverse of `render_call`. `template.jinja` is the same renderer for `transformers`' `apply_chat_template`;
the tests hold the two to the same bytes.
"""

from fitcoach_tune.functiongemma.parser import ModelOutput, ParseError, parse
from fitcoach_tune.functiongemma.problems import call_problems, tool_problems
from fitcoach_tune.functiongemma.renderer import chat_template, render, render_call, render_declaration
from fitcoach_tune.functiongemma.tokens import (
    BOS,
    CONTROL_TOKENS,
    END_FUNCTION_CALL,
    END_FUNCTION_DECLARATION,
    END_FUNCTION_RESPONSE,
    END_OF_TURN,
    EOS,
    ESCAPE,
    MAX_DEPTH,
    MAX_NUMBER_CHARS,
    PAD,
    RENAMED_TOKENS,
    START_FUNCTION_CALL,
    START_FUNCTION_DECLARATION,
    START_FUNCTION_RESPONSE,
    START_OF_TURN,
    STOP_TOKENS,
    TRIGGER,
    Call,
    find_control_token,
)

__all__ = [
    "BOS",
    "CONTROL_TOKENS",
    "END_FUNCTION_CALL",
    "END_FUNCTION_DECLARATION",
    "END_FUNCTION_RESPONSE",
    "END_OF_TURN",
    "EOS",
    "ESCAPE",
    "MAX_DEPTH",
    "MAX_NUMBER_CHARS",
    "PAD",
    "RENAMED_TOKENS",
    "START_FUNCTION_CALL",
    "START_FUNCTION_DECLARATION",
    "START_FUNCTION_RESPONSE",
    "START_OF_TURN",
    "STOP_TOKENS",
    "TRIGGER",
    "Call",
    "ModelOutput",
    "ParseError",
    "call_problems",
    "chat_template",
    "find_control_token",
    "parse",
    "render",
    "render_call",
    "render_declaration",
    "tool_problems",
]
