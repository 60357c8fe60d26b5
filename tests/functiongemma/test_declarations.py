"""Tool declarations as text: exact bytes, agreement with the chat template, and that sound tools keep their meaning."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings

from fitcoach_tune.errors import DataError
from fitcoach_tune.functiongemma import parse, render, render_declaration, tool_problems

from .strategies import any_functions, both, sound_functions, thorough, tool_with, user


def declared(properties=None, **parameters):
    """The text of `parameters` in the declaration of a tool."""
    tool = tool_with(properties, **parameters)
    text = both([user()], [tool])
    declaration = render_declaration(tool)
    assert declaration in text
    head = "<start_function_declaration>declaration:f{description:<escape>F<escape>,parameters:"
    assert declaration.startswith(head)
    return declaration.removeprefix(head).removesuffix("}<end_function_declaration>")


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ({"name": "f"}, "declaration:f{description:<escape><escape>}"),
        ({"name": "f", "description": "F", "parameters": {}}, "declaration:f{description:<escape>F<escape>}"),
        ({"name": "f", "description": "F", "parameters": None}, "declaration:f{description:<escape>F<escape>}"),
        (
            {"name": "f", "description": " é\n", "parameters": {"type": "object"}, "strict": True, "return": {"a": 1}},
            "declaration:f{description:<escape> é\n<escape>,parameters:{type:<escape>OBJECT<escape>}}",
        ),
    ],
)
def test_declaration_of_function(function, expected):
    framed = f"<start_function_declaration>{expected}<end_function_declaration>"
    for tool in (function, {"type": "function", "function": function}):
        assert render_declaration(tool) == framed
        assert both([user()], [tool, tool]).startswith(f"<bos><start_of_turn>developer\n{framed}{framed}<end_of_turn>")


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string"}, "{description:<escape><escape>,type:<escape>STRING<escape>}"),
        (
            {"type": "integer", "description": "D", "enum": [1], "default": 2, "minimum": 0, "format": "int32"},
            "{description:<escape>D<escape>,type:<escape>INTEGER<escape>}",
        ),
        (
            {"type": "string", "enum": ["b", "a"], "nullable": True},
            "{description:<escape><escape>,enum:[<escape>b<escape>,<escape>a<escape>],type:<escape>STRING<escape>}",
        ),
        (
            {"type": "object", "properties": {}},
            "{description:<escape><escape>,properties:{},type:<escape>OBJECT<escape>}",
        ),
        (
            {"type": "array", "items": {}},
            "{description:<escape><escape>,type:<escape>ARRAY<escape>}",
        ),
        (
            {"type": "array", "items": {"type": "string", "enum": ["x"], "minLength": 1, "description": "I"}},
            "{description:<escape><escape>,items:{description:<escape>I<escape>,enum:[<escape>x<escape>],minLength:1,"
            "type:<escape>STRING<escape>},type:<escape>ARRAY<escape>}",
        ),
        (
            {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
            "{description:<escape><escape>,items:{items:{<escape>type<escape>:<escape>integer<escape>},"
            "type:<escape>ARRAY<escape>},type:<escape>ARRAY<escape>}",
        ),
        (
            {"type": "array", "items": {"type": ["string", "null"], "title": None, "properties": None}},
            "{description:<escape><escape>,items:{type:[<escape>STRING<escape>,<escape>NULL<escape>]},"
            "type:<escape>ARRAY<escape>}",
        ),
        (
            {"type": "string", "enum": [{"k": "v"}, None, 1]},
            "{description:<escape><escape>,enum:[{<escape>k<escape>:<escape>v<escape>},None,1],"
            "type:<escape>STRING<escape>}",
        ),
        (  # a hazard: its other keywords turn into parameters
            {"type": "object", "description": "D", "additionalProperties": {"type": "string"}},
            "{description:<escape>D<escape>,properties:{additionalProperties:{description:<escape><escape>,"
            "type:<escape>STRING<escape>}},type:<escape>OBJECT<escape>}",
        ),
        (  # a hazard: these two are taken for keywords
            {"type": "object", "properties": {"type": {"type": "string"}, "nullable": {"type": "string"}}},
            "{description:<escape><escape>,properties:{},type:<escape>OBJECT<escape>}",
        ),
        (None, "{description:<escape><escape>,type:<escape><escape>}"),
        ({"type": ["string", "null"]}, "{description:<escape><escape>,type:<escape>['STRING', 'NULL']<escape>}"),
    ],
)
def test_declaration_of_parameter(schema, expected):
    assert declared({"p": schema}) == "{properties:{p:" + expected + "},type:<escape>OBJECT<escape>}"


def test_parameters_sort_without_case_and_required_keeps_its_order():
    schema = {"type": "string"}
    text = declared({"b": schema, "C": schema, "a": schema}, required=["b", "a"])
    assert re.findall(r"(\w+):\{description", text) == ["a", "b", "C"]
    assert "},required:[<escape>b<escape>,<escape>a<escape>],type:" in text


def test_parameters_without_type_lose_a_brace_as_in_the_published_template():
    tool = {"name": "f", "parameters": {"properties": {"a": {"type": "string"}}, "required": ["a"]}}
    assert render_declaration(tool) == (
        "<start_function_declaration>declaration:f{description:<escape><escape>,parameters:{properties:{"
        "a:{description:<escape><escape>,type:<escape>STRING<escape>}},required:[<escape>a<escape>],}"
        "<end_function_declaration>"
    )
    both([user()], [tool])


@pytest.mark.parametrize(
    ("tool", "error"),
    [
        ({}, "no name"),
        ({"function": {"description": "no name"}}, "no name"),
        ({"name": 5}, "no name"),
        ("f", "no name"),
        ({"name": "f", "parameters": {"type": "object", "properties": ["a"]}}, "properties"),
        (tool_with(required="a"), "list"),
    ],
)
def test_a_tool_that_cannot_be_written_is_a_data_error(tool, error):
    with pytest.raises(DataError, match=error):
        render([user()], [tool])


def test_a_schema_too_deep_to_write_is_a_data_error():
    schema = {"type": "string"}
    for _ in range(100):
        schema = {"type": "object", "properties": {"a": schema}}
    with pytest.raises(DataError, match="nested deeper than 64"):
        render_declaration(tool_with({"a": schema}))


@settings(thorough, max_examples=500)
@given(sound_functions | any_functions)
def test_renderers_agree_on_tools(function):
    both([user()], [function])


def _read(function):
    """Read a declaration with the call grammar, which it shares once quoted keys are made bare."""
    text = render_declaration(function).removeprefix("<start_function_declaration>declaration:")
    text = re.sub(r"([{,])<escape>(\w+)<escape>:", r"\1\2:", text.removesuffix("<end_function_declaration>"))
    return parse(f"<start_function_call>call:{text}<end_function_call>").calls[0].arguments


def _expected_item(schema):
    """An item's schema prints with its type in upper case and its parameters as parameters; all else stays."""
    item = {**schema, "type": schema["type"].upper()}
    if "properties" in schema:
        item["properties"] = _expected(schema["properties"])
    return item


def _expected(properties):
    """What the notes on the format say is left of each parameter."""
    result = {}
    for key, schema in properties.items():
        kind = schema["type"].upper()
        shown = {"description": schema.get("description", ""), "type": kind}
        if kind == "STRING" and schema.get("enum"):
            shown["enum"] = schema["enum"]
        if kind == "OBJECT":
            shown["properties"] = _expected(schema["properties"])
            shown |= {"required": schema["required"]} if schema.get("required") else {}
        if kind == "ARRAY":
            shown["items"] = _expected_item(schema["items"])
        result[key] = shown
    return result


@settings(thorough, max_examples=400)
@given(sound_functions)
def test_a_sound_tool_has_no_problem_and_its_declaration_says_all_of_it(function):
    if problems := tool_problems(function):
        assert all("control token" in problem for problem in problems)
        return
    expected = {"description": function["description"]}
    if parameters := function.get("parameters"):
        shown = {"type": "OBJECT"}
        shown |= {"properties": _expected(parameters["properties"])} if parameters["properties"] else {}
        shown |= {"required": parameters["required"]} if parameters.get("required") else {}
        expected["parameters"] = shown
    assert _read(function) == expected


@settings(thorough, max_examples=400)
@given(any_functions)
def test_an_unbalanced_declaration_is_always_a_problem(function):
    if not tool_problems(function):
        assert set(_read(function)) <= {"description", "parameters"}
