"""What the checks find in tools, calls and conversations, and that they leave sound ones alone."""

from __future__ import annotations

import pytest

from fitcoach_tune.functiongemma import Call, call_problems, tool_problems

from .strategies import CASES, tool_with

KEYWORDS = ("description", "type", "properties", "required", "nullable")
STRING = {"type": "string", "description": "D"}


def found(problems, field, advice):
    assert len(problems) == 1
    assert problems[0].startswith(f"{field}: ")
    assert advice in problems[0]


def object_of(**properties):
    return {"type": "object", "properties": properties}


def array_of(items):
    return {"type": "array", "items": items}


# Schema of a parameter `a`; the field at fault, from there; a word of the advice.
PARAMETER_HAZARDS = {
    "nested parameter named type": (object_of(type=STRING), ".properties.type", "rename"),
    "parameter named type in items": (array_of(object_of(type=STRING)), ".items.properties.type", "rename"),
    "list-valued type": ({"type": ["string", "null"]}, ".type", "single type"),
    "no type": ({"description": "D"}, ".type", "missing"),
    "null type": ({"type": None}, ".type", "missing"),
    "number as type": ({"type": 5}, ".type", "string"),
    "anyOf": ({"anyOf": [STRING]}, ".type", "anyOf"),
    "oneOf": ({"oneOf": [STRING]}, ".type", "oneOf"),
    "allOf": ({"allOf": [STRING]}, ".type", "allOf"),
    "$ref": ({"$ref": "#/$defs/A"}, ".type", "$ref"),
    "no type in items": (array_of({"anyOf": [STRING]}), ".items.type", "anyOf"),
    "null": (None, "", "null"),
    "nested null": (object_of(b=None), ".properties.b", "null"),
    "null inside items": (array_of(array_of({"type": "string", "enum": None})), ".items.items.enum", "null"),
    "null description": ({"type": "string", "description": None}, ".description", "None"),
    "object without properties": (
        {"type": "object", "additionalProperties": {"type": "string"}},
        ".properties",
        "additionalProperties",
    ),
    "properties not an object": ({"type": "object", "properties": []}, ".properties", "object"),
    "not an object": (True, "", "schema object"),
    "enum not a list": ({"type": "string", "enum": "x"}, ".enum", "list"),
    "required of items not a list": (array_of({"type": "string", "required": {}}), ".items.required", "list"),
    "control token in the description": ({"type": "string", "description": "<eos>"}, ".description", "<eos>"),
    "control token in an enum": ({"type": "string", "enum": ["x", "<bos>"]}, ".enum[1]", "<bos>"),
}


@pytest.mark.parametrize(("schema", "field", "advice"), PARAMETER_HAZARDS.values(), ids=PARAMETER_HAZARDS)
def test_parameter_hazard_is_found(schema, field, advice):
    found(tool_problems(tool_with({"a": schema})), f"parameters.properties.a{field}", advice)


TOOL_HAZARDS = {
    "parameters without type": (
        {"name": "f", "parameters": {"properties": {"a": STRING}}},
        "parameters.type",
        "missing",
    ),
    "parameters of another type": ({"name": "f", "parameters": {"type": "string"}}, "parameters.type", "object"),
    "parameters not an object": ({"name": "f", "parameters": [1]}, "parameters", "schema object"),
    "properties not an object": (tool_with(["a"]), "parameters.properties", "object"),
    "required not a list": (tool_with({"a": STRING}, required="a"), "parameters.required", "list"),
    "null description": ({"name": "f", "description": None}, "description", "None"),
    "control token in the description": ({"name": "f", "description": "<end_of_turn>"}, "description", "<end_of_turn>"),
    "control token in required": (tool_with({"a": STRING}, required=["<pad>"]), "parameters.required[0]", "<pad>"),
    "lone surrogate": ({"name": "f", "description": "\ud800"}, "description", "surrogate"),
    "not an object": ("f", "tool", "object"),
    **{
        f"function name {name!r}": ({"name": name}, "name", "function name")
        for name in ("", "get steps", "1st", "f{", "é", "f\n", None, 5, "<escape>")
    },
    **{
        f"parameter name {name!r}": (tool_with({name: STRING}), f"parameters.properties.{name}", "rename")
        for name in (*KEYWORDS, "a:b", "a,b", "a{", "a}", "a[", "a]", " a", "a\n", "")
    },
    "control token in a parameter name": (
        tool_with({"a<escape>": STRING}),
        "parameters.properties.a<escape>",
        "<escape>",
    ),
}


@pytest.mark.parametrize(("tool", "field", "advice"), TOOL_HAZARDS.values(), ids=TOOL_HAZARDS)
def test_tool_hazard_is_found(tool, field, advice):
    found(tool_problems(tool), field, advice)


def test_all_problems_of_a_tool_are_found_at_once():
    tool = tool_with({"type": STRING, "a": {"type": ["string"]}, "b": None})
    tool["function"]["name"] = "not a name"
    assert [problem.split(":")[0] for problem in tool_problems(tool)] == [
        "name",
        "parameters.properties.type",
        "parameters.properties.a.type",
        "parameters.properties.b",
    ]


def test_a_schema_too_deep_to_render_is_a_problem():
    schema = STRING
    for _ in range(5_000):
        schema = object_of(a=schema)
    problems = tool_problems(tool_with({"a": schema}))
    assert len(problems) == 1
    assert "nested deeper than 64" in problems[0]


def test_no_published_tool_has_a_problem():
    for case in CASES:
        for tool in case["tools"] or []:
            assert tool_problems(tool) == []


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "enum": [1, 2], "default": 1, "minimum": 0},
        {"type": "string", "enum": None, "items": None, "properties": None},
        array_of(array_of({"type": "number"})),
        array_of({"type": "string", "description": None}),
        {"type": "array", "prefixItems": [{"type": "integer"}]},
        {"type": "object", "description": "D"},
        {"type": "object", "properties": {}, "additionalProperties": False},
    ],
)
def test_what_is_left_out_on_purpose_is_no_problem(schema):
    assert tool_problems(tool_with({"a": schema})) == []


CALL_HAZARDS = {
    "control token": ({"a": "x<end_of_turn>"}, "arguments.a", "<end_of_turn>"),
    "nested control token": ({"a": [1, {"b": "<escape>"}]}, "arguments.a[1].b", "<escape>"),
    "control token in a key": ({"<eos>": 1}, "arguments.<eos>", "<eos>"),
    "nan": ({"a": float("nan")}, "arguments.a", "JSON number"),
    "inf": ({"a": [float("-inf")]}, "arguments.a[0]", "JSON number"),
    "tuple": ({"a": (1, 2)}, "arguments.a", "tuple"),
    "bytes": ({"a": b"x"}, "arguments.a", "bytes"),
    "lone surrogate": ({"a": "\udc00"}, "arguments.a", "surrogate"),
    "lone surrogate in a key": ({"\udc00": 1}, "arguments.\udc00", "surrogate"),
    "huge int": ({"a": 10**10_000}, "arguments.a", "digits"),
    "not a dict": ([1], "arguments", "dict"),
    "number as key": ({1: 2}, "arguments.1", "keys"),
    **{
        f"key {key!r}": ({"o": {key: 1}}, f"arguments.o.{key}", "keys")
        for key in ("", " a", "a ", "a:b", "a,b", "a{", "}", "[", "a]")
    },
}


@pytest.mark.parametrize(("arguments", "field", "advice"), CALL_HAZARDS.values(), ids=CALL_HAZARDS)
def test_call_hazard_is_found(arguments, field, advice):
    found(call_problems(Call("f", arguments)), field, advice)


def test_call_name_hazards():
    for name in ("", "a b", "f{", "<escape>", None):
        assert call_problems(Call(name, {}))[0].startswith("name: ")
    assert call_problems(Call("a.B-c_1", {})) == []


def test_values_that_contain_themselves_do_not_hang():
    loop: list = []
    loop.append(loop)
    assert "nested deeper" in call_problems(Call("f", {"a": loop}))[0]
