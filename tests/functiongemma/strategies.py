"""What the tests of the wire format share: conversations and tools, fixed and drawn, and the two renderers at once."""

from __future__ import annotations

import copy
import json
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from fitcoach_tune import functiongemma as fg
from fitcoach_tune.functiongemma import Call, call_problems, render

CASES = json.loads((Path(__file__).parents[1] / "format_cases.json").read_text(encoding="utf-8"))
thorough = settings(deadline=None, database=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])


def render_jinja(messages, tools=None, *, add_generation_prompt=False, **variables):
    """What `apply_chat_template(tokenize=False)` gives: transformers' own compiler, sandbox and input conversion."""
    rendered, _ = render_jinja_template(
        [copy.deepcopy(messages)],
        tools=tools,
        chat_template=fg.chat_template(),
        add_generation_prompt=add_generation_prompt,
        **variables,
    )
    return rendered[0]


def both(messages, tools=None, **options):
    """Render in Python after checking that the template agrees."""
    text = render(messages, tools, **options)
    assert render_jinja(messages, tools, **options) == text
    return text


def user(text="hi"):
    return {"role": "user", "content": text}


def calling(*calls, **more):
    entries = [{"type": "function", "function": {"name": name, "arguments": arguments}} for name, arguments in calls]
    return {"role": "assistant", "tool_calls": entries, **more}


def tool_with(properties=None, **parameters):
    schema = {"type": "object", "properties": properties or {}, **parameters}
    return {"type": "function", "function": {"name": "f", "description": "F", "parameters": schema}}


pieces = st.sampled_from(["{", "}", ",", ":", "[", "]", "\n", " ", "<", "<escape", "escape>", "True", "None", "1", "é"])
texts = st.one_of(st.text(max_size=12), st.lists(pieces, max_size=6).map("".join))
keys = st.one_of(st.sampled_from(["a", "A", "b", "items", "values", "name", "type"]), st.text(min_size=1, max_size=5))
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts)
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=8
)
arguments = st.dictionaries(keys, json_values, max_size=4)
names = st.sampled_from(["f", "get_steps", "a.b-c"])

parameter_names = st.sampled_from(["a", "B", "b", "unit", "items", "values"])
required = st.lists(parameter_names, max_size=2, unique=True)


def _sound_containers(inner):
    objects = st.fixed_dictionaries(
        {
            "type": st.sampled_from(["object", "OBJECT"]),
            "properties": st.dictionaries(parameter_names, inner, max_size=3),
        },
        optional={"description": texts, "required": required, "additionalProperties": st.booleans()},
    )
    arrays = st.fixed_dictionaries({"type": st.just("array"), "items": inner}, optional={"description": texts})
    return objects | arrays


sound_schemas = st.recursive(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["integer", "Boolean"])},
        optional={"description": texts, "minimum": st.integers() | st.floats(-9, 9)},
    )
    | st.fixed_dictionaries(
        {"type": st.just("string")}, optional={"description": texts, "enum": st.lists(texts, max_size=3)}
    ),
    _sound_containers,
    max_leaves=8,
)
sound_functions = st.fixed_dictionaries(
    {"name": names, "description": texts},
    optional={
        "parameters": st.fixed_dictionaries(
            {"type": st.just("object"), "properties": st.dictionaries(parameter_names, sound_schemas, max_size=4)},
            optional={"required": required},
        )
    },
)

# Tools with the hazards that `tool_problems` is there for: the two renderers must agree on them, too.
any_names = parameter_names | st.sampled_from(["type", "description", "properties", "required", "nullable"])


def _any_containers(inner):
    return st.fixed_dictionaries(
        {"type": st.sampled_from(["object", "array", "array", "ARRAY", None])},
        optional={
            "properties": st.dictionaries(any_names, inner | st.none(), max_size=3) | st.none(),
            "items": inner
            | st.dictionaries(parameter_names, inner | st.none(), max_size=3)
            | st.none()
            | st.just(True),
            "description": texts | st.none(),
            "required": st.lists(any_names, max_size=2) | st.none(),
            "additionalProperties": inner | st.booleans(),
            "anyOf": st.lists(inner, max_size=2),
        },
    )


leaves = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["string", "STRING", "integer", "object", "array", None, ["string", "null"]]),
        "description": texts | st.none(),
        "enum": st.none() | st.lists(json_values, max_size=2),
        "default": json_values,
    },
)
any_schemas = st.recursive(leaves, _any_containers, max_leaves=8)
any_functions = st.fixed_dictionaries(
    {"name": names},
    optional={
        "description": texts | st.none(),
        "parameters": st.none()
        | st.fixed_dictionaries(
            {"properties": st.none() | st.dictionaries(any_names, any_schemas | st.none(), min_size=1, max_size=3)},
            optional={
                "type": st.sampled_from(["object", "OBJECT", None, ["object", "null"]]),
                "required": st.none() | st.lists(any_names, max_size=2),
            },
        ),
    },
)


@st.composite
def conversations(draw):
    content = st.one_of(texts, st.none(), st.lists(texts.map(lambda t: {"type": "text", "text": t}), max_size=2))
    optional_content = content.map(lambda value: {} if value is None else {"content": value})
    messages = []
    if draw(st.booleans()):
        messages.append({"role": draw(st.sampled_from(["developer", "system"])), **draw(optional_content)})
    for _ in range(draw(st.integers(0, 3))):
        messages.append({"role": draw(st.sampled_from(["user", "developer"])), **draw(optional_content)})
        for _ in range(draw(st.integers(0, 2))):
            calls = draw(st.lists(st.tuples(names, arguments), min_size=1, max_size=2))
            messages.append(calling(*calls, **draw(optional_content)))
            messages.extend({"role": "tool", "name": name, "content": draw(json_values)} for name, _ in calls)
        messages.append({"role": "assistant", **draw(optional_content)})
    if messages and draw(st.booleans()):
        last = max((i for i, m in enumerate(messages) if m.get("tool_calls")), default=len(messages) - 1)
        messages = messages[: last + 1]
    return messages


# What the format can carry, so that whatever is rendered from it must come back.
carried_texts = texts.filter(lambda text: fg.find_control_token(text) is None)
carried_keys = keys.filter(lambda key: not call_problems(Call("f", {key: 1})))
carried_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(4000, 4298).map(lambda digits: -(10**digits)),
    st.floats(allow_nan=False, allow_infinity=False),
    carried_texts,
)
carried_values = st.recursive(
    carried_scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(carried_keys, inner, max_size=4),
    max_leaves=12,
)
carried_calls = st.builds(
    Call, st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,9}", fullmatch=True), st.dictionaries(carried_keys, carried_values)
)
