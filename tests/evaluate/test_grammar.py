"""What the grammar of answers allows, schema by schema; what it refuses to express; how large it gets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator

from fitcoach_tune.errors import DataError
from fitcoach_tune.evaluate import grammar, schemas
from fitcoach_tune.evaluate.constrain import Constraint
from fitcoach_tune.evaluate.grammar import answer_grammar
from fitcoach_tune.functiongemma import Call, render_call
from fitcoach_tune.tool_checks import CallChecker
from tests.conftest import tool

OPEN = {"type": "object", "description": "d", "properties": {}}


def with_parameters(properties: dict[str, Any] | None = None, **more: Any) -> dict:
    """A tool whose properties are described as the format asks for."""
    described = {key: {"description": "d", **schema} for key, schema in (properties or {}).items()}
    made = tool("f", **described)
    made["function"]["parameters"] = {"type": "object", "properties": described, **more}
    return made


@pytest.fixture(scope="module")
def takes(tokenizer):
    """Whether calls of a tool with these arguments are allowed: as values, or as the text between the braces."""

    def check(one: dict, arguments: dict | str) -> bool:
        text = arguments if isinstance(arguments, str) else render_call(Call("f", arguments))
        if isinstance(arguments, str):
            text = f"<start_function_call>call:f{{{arguments}}}<end_function_call>"
        guide = Constraint([one], tokenizer).start()
        logits = torch.zeros(len(tokenizer))
        for token in tokenizer(text + "<start_function_response>", add_special_tokens=False)["input_ids"]:
            if not torch.isfinite(guide.allow(logits)[token]):
                return False
            guide.advance(token)
        return guide.stopped

    return check


ANY_TYPE = {"type": "object", "properties": {}, "additionalProperties": {}}
VALUES: list[tuple[dict, list[Any], list[Any]]] = [
    ({"type": "string"}, ["", "a", "żółw 🐢", "}],{x:1", "a\nb", "<b>"], [1, None, True, [], {}]),
    ({"type": "STRING", "nullable": True}, ["a", None], [1]),
    ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "żół", "🐢🐢"], ["", "a", "abcd"]),
    ({"type": "string", "maxLength": 0}, [""], ["a"]),
    ({"type": "string", "enum": ["run", "running", ""]}, ["run", "running", ""], ["runn", "swim"]),
    ({"type": "string", "enum": ["run", 7, None]}, ["run"], [7, None]),
    ({"type": "string", "enum": ["a"], "nullable": True}, ["a", None], ["b"]),
    ({"type": "string", "const": "km"}, ["km"], ["mi"]),
    ({"type": "string", "enum": ["aa", "b", "cc"], "minLength": 2}, ["aa", "cc"], ["b"]),
    ({"type": "string", "enum": ["a", "b"], "not": {"const": "b"}}, ["a"], ["b"]),
    ({"type": "string", "pattern": r"^\d{2}:\d{2}$"}, ["07:30"], ["7:30", "07:30h", ""]),
    ({"type": "string", "pattern": "^a", "maxLength": 2}, ["a", "ab"], ["b", "abc"]),
    ({"type": "string", "anyOf": [{"maxLength": 1}, {"minLength": 3}]}, ["a", "abc"], ["ab"]),
    ({"type": "string", "oneOf": [{"const": "a"}, {"enum": ["b", "a"]}]}, ["b"], ["a", "c"]),
    ({"type": "string", "allOf": [{"minLength": 2}, {"maxLength": 3}]}, ["ab", "abc"], ["a", "abcd"]),
    ({"type": "string", "format": "date", "examples": ["x"], "x-more": 1}, ["anything"], []),
    ({"type": "integer"}, [0, -7, 10**23], [1.5, "1", 10**24, True]),
    ({"type": "integer", "minimum": -2, "maximum": 12}, [-2, 0, 12], [-3, 13, 120]),
    ({"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 3}, [1, 2], [0, 3]),
    ({"type": "integer", "minimum": 1.5}, [2, 3], [1]),
    ({"type": "integer", "multipleOf": 5, "minimum": 1, "maximum": 20}, [5, 20], [1, 6, 25]),
    ({"type": "integer", "enum": [1, 12, "1"]}, [1, 12], [2, "1"]),
    ({"type": "number"}, [0, 1.5, -0.25, 1e-7, 1e300, 123456789], ["1.5"]),
    ({"type": "number", "minimum": 0.1, "maximum": 2}, [0.1, 1, 1.75, 2], [0, 0.05, 2.5]),
    ({"type": "number", "multipleOf": 0.5, "minimum": 0, "maximum": 2}, [0, 0.5, 1.0, 1, 2], [0.25, 2.5]),
    ({"type": "boolean"}, [True, False], [0, "true", None]),
    ({"type": "array", "items": {"type": "integer"}}, [[], [1], [1, 2]], [["a"], 1]),
    ({"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2}, [[1], [1, 2]], [[], [1, 2, 3]]),
    ({"type": "array", "items": {"type": "integer"}, "uniqueItems": False}, [[1, 1]], []),
    ({"type": "array"}, [[], [1, "a", None, {"b": [True]}]], [1]),
    ({"type": "array", "maxItems": 0}, [[]], [[1]]),
    ({"type": "array", "enum": [[1, "a"], [{"k": 1}], []]}, [[1, "a"], [{"k": 1}], []], [[1]]),
    (OPEN, [{}, {"a": 1}, {"x y": {"b": [None, 1.5]}, "z": "t"}], [1, []]),
    (OPEN | {"minProperties": 1, "maxProperties": 2}, [{"a": 1}, {"a": 1, "b": 2}], [{}, {"a": 1, "b": 1, "c": 1}]),
    (OPEN | {"additionalProperties": {"type": "integer"}}, [{"a": 1}], [{"a": "x"}]),
    (OPEN | {"additionalProperties": False}, [{}], [{"a": 1}]),
    (
        {"type": "object", "properties": {"a": {"type": "integer", "description": "d"}}, "required": ["a"]},
        [{"a": 1}],
        [{}, {"a": "x"}, {"a": 1, "b": 1}],
    ),
    (
        {"type": "object", "properties": {"m": {"type": "integer", "description": "d"}}, "additionalProperties": True},
        [{}, {"m": 1}, {"a": "x"}, {"a": 1, "m": 2, "z": 3}],
        [{"m": "x"}, {"a": 1, "m": "x"}],
    ),
    (
        {"type": "object", "properties": {}, "required": ["k"], "additionalProperties": {"type": "integer"}},
        [{"k": 1}, {"a": 1, "k": 2, "z": 3}],
        [{}, {"a": 1}, {"k": "x"}],
    ),
    (
        {
            "type": "object",
            "properties": {k: {"type": "integer", "description": "d"} for k in "ab"},
            "additionalProperties": False,
            "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
        },
        [{"a": 1}, {"b": 1}, {"a": 1, "b": 1}],
        [{}],
    ),
    (ANY_TYPE, [{"a": 1}, {"a": [[]]}, {"a": {"b": {}}}], []),
]


@pytest.mark.parametrize(("schema", "fit", "others"), VALUES, ids=lambda case: str(case)[:60])
def test_values(takes, schema, fit, others):
    """The examples mean what jsonschema says they mean."""
    one = with_parameters({"x": schema}, required=["x"])
    checker = CallChecker()
    for value in fit:
        assert list(checker.call_problems("f", {"x": value}, [one])) == [], value
        assert takes(one, {"x": value}), value
    for value in others:
        beyond = isinstance(value, int) and abs(value) >= 10**24  # our own limit
        assert beyond or list(checker.call_problems("f", {"x": value}, [one])), value
        assert not takes(one, {"x": value}), value


def test_optional_keys_in_all_combinations(takes):
    one = with_parameters({key: {"type": "boolean"} for key in ("b", "A", "c", "D")}, required=["c"])
    for bits in range(16):
        chosen = {key: True for i, key in enumerate(("A", "b", "c", "D")) if bits >> i & 1}
        assert takes(one, chosen) == ("c" in chosen), chosen
    assert takes(one, "A:true,b:true,c:true")
    for wrong in ("b:true,A:true,c:true", "c:true,c:true", "c:true,", ",c:true", "c:true,e:true", "c: true", "C:true"):
        assert not takes(one, wrong), wrong


@pytest.mark.parametrize(
    "number", ["01", "-0", "1.", ".5", "1.50", "+1", "1e5", "NaN", "Infinity", "1e999", "9" * 30, "0x1"]
)
def test_only_numbers_as_they_are_printed(takes, number):
    one = with_parameters({"x": {"type": "number"}}, required=["x"])
    assert not takes(one, f"x:{number}")
    assert takes(one, "x:-0.5")


def test_bounds_of_our_own(takes):
    one = with_parameters({"s": {"type": "string"}, "l": {"type": "array"}, "o": OPEN}, required=[])
    assert takes(one, {"s": "x" * grammar.MAX_STRING})
    assert not takes(one, {"s": "x" * (grammar.MAX_STRING + 1)})
    assert takes(one, {"l": [1] * grammar.MAX_ITEMS})
    assert not takes(one, {"l": [1] * (grammar.MAX_ITEMS + 1)})
    assert takes(one, {"o": {"k" * grammar.MAX_KEY: 1}})
    assert not takes(one, {"o": {"k" * (grammar.MAX_KEY + 1): 1}})
    deep: Any = 1
    for _ in range(grammar.FREE_DEPTH):
        deep = [deep]
    assert takes(one, {"o": {"x": deep[0]}})
    assert not takes(one, {"o": {"x": [deep]}})


def test_names_that_begin_alike(tokenizer):
    tools = [tool(name) for name in ("get", "get_steps", "get_step", "get.x", "Get")]
    constraint = Constraint(tools, tokenizer)
    for name, known in [(t["function"]["name"], True) for t in tools] + [("get_", False), ("get_stepss", False)]:
        guide, fine = constraint.start(), True
        text = render_call(Call(name, {})) + "<start_function_response>"
        for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
            fine = bool(torch.isfinite(guide.allow(torch.zeros(len(tokenizer)))[token]))
            if not fine:
                break
            guide.advance(token)
        assert fine == known, name


def test_the_grammar_grows_with_the_number_of_properties():
    sizes = []
    for count in (10, 20, 40):
        one = with_parameters({f"key{i}": {"type": "boolean"} for i in range(count)})
        sizes.append(len(answer_grammar([one]).lark))
    assert sizes[2] - sizes[1] == pytest.approx(2 * (sizes[1] - sizes[0]), rel=0.1)


def test_what_is_used_again_is_written_once():
    schema = {"type": "string", "maxLength": 7}
    one = answer_grammar([with_parameters({"a": schema})]).lark
    more = answer_grammar([with_parameters({"a": schema, "b": schema, "c": schema})]).lark
    assert one.count("{0,7}") == more.count("{0,7}")


# ------------------------------------------------------------------------------------------------ refused


@pytest.mark.parametrize(
    ("schema", "keyword", "where"),
    [
        ({"type": "string", "$ref": "#/x"}, "$ref", "parameters.properties.x.$ref"),
        ({"type": "string", "enum": ["a"], "anyOf": [{"$ref": "#/x"}]}, "$ref", "parameters.properties.x"),
        ({"type": "string", "not": {"const": "a"}}, "not", "parameters.properties.x.not"),
        ({"type": "string", "if": {"const": "a"}, "then": {"minLength": 2}}, "if", "parameters.properties.x.if"),
        ({"type": "string", "oneOf": [{"minLength": 3}, {"maxLength": 5}]}, "oneOf", "parameters.properties.x.oneOf"),
        ({"type": "integer", "multipleOf": 5}, "multipleOf", "parameters.properties.x.multipleOf"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems", "parameters.properties.x.uniqueItems"),
        ({"type": "array", "contains": {"const": 1}}, "contains", "parameters.properties.x.contains"),
        ({"type": "array", "prefixItems": [{"const": 1}]}, "prefixItems", "parameters.properties.x.prefixItems"),
        (
            {"type": "array", "items": {"type": "object", "properties": {}, "patternProperties": {"a": {}}}},
            "patternProperties",
            "parameters.properties.x.items.patternProperties",
        ),
        (OPEN | {"propertyNames": {"maxLength": 3}}, "propertyNames", "parameters.properties.x.propertyNames"),
        ({"type": "string", "pattern": r"(?i)a"}, "pattern", "parameters.properties.x.pattern"),
        (
            {"type": "string", "pattern": "a", "allOf": [{"pattern": "b"}]},
            "pattern in two parts",
            "parameters.properties.x.allOf",
        ),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "no integer fits", "parameters.properties.x"),
        ({"type": "number", "exclusiveMinimum": 5, "maximum": 5}, "no number fits", "parameters.properties.x"),
        ({"type": "integer", "minimum": 10**30}, "no integer fits", "parameters.properties.x"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "minLength", "parameters.properties.x"),
        ({"type": "array", "minItems": 100}, "minItems is 100, and at most 64", "parameters.properties.x"),
        ({"type": "string", "enum": [1, 2]}, "no value fits", "parameters.properties.x"),
        ({"type": "string", "enum": ["a▁b"]}, "▁", "parameters.properties.x"),
        (
            {"type": "object", "properties": {"a": {"type": "integer", "description": "d"}}, "required": ["b"]},
            "is required, and may not be given",
            "parameters.properties.x.properties.b",
        ),
        (
            {"type": "object", "properties": {"a": {"type": "integer", "description": "d"}}, "minProperties": 1},
            "how many properties",
            "parameters.properties.x",
        ),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_expressed_is_refused(schema, keyword, where):
    one = with_parameters({"x": schema})
    assert list(CallChecker().tool_problems([one])) == []
    with pytest.raises(DataError) as caught:
        answer_grammar([one])
    assert keyword in caught.value.what
    assert caught.value.where == f"tool f: {where}"
    assert "--unconstrained" in caught.value.hint


def test_keywords_about_other_types_do_not_matter(takes):
    one = with_parameters({"x": {"type": "integer", "uniqueItems": True, "propertyNames": {}, "minLength": 3}})
    assert takes(one, {"x": 1})


def test_no_keyword_is_ignored():
    """What jsonschema checks is expressed or refused."""
    expressed = {"type", "enum", "const", "anyOf", "allOf", "format", "properties", "required", "additionalProperties"}
    expressed |= {"items", "pattern", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
    expressed |= {f"{end}{what}" for end in ("min", "max") for what in ("Length", "Items", "Properties")}
    assert set(Draft202012Validator.VALIDATORS) == expressed | set(schemas.INEXPRESSIBLE)
    # `format` is a remark for jsonschema, as it is used here.
    assert Draft202012Validator({"format": "date"}).is_valid("no date")


def test_tools_with_problems_of_their_own():
    with pytest.raises(DataError, match="the tools cannot be used") as caught:
        answer_grammar([tool("f", x={"description": "d"}), tool("f")])
    assert caught.value.details[0] == "two tools are named 'f'"
    assert "parameters.properties.x.type: is missing" in caught.value.details[1]


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string"}, ["string"]),
        ({"type": ["number", "integer", "null"]}, ["null", "number"]),
        ({}, ["null", "boolean", "number", "string", "array", "object"]),
    ],
)
def test_types(schema, expected):
    assert schemas.types(schema) == expected


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([{"type": "number"}, {"type": "integer"}], {"type": ["integer"]}),
        ([{"type": ["string", "null"]}, {"type": "string"}], {"type": ["string"]}),
        ([{"minimum": 1, "maximum": 9}, {"minimum": 3, "maximum": 12}], {"minimum": 3, "maximum": 9}),
        ([{"required": ["a"]}, {"required": ["b"]}], {"required": ["a", "b"]}),
        ([{"title": "one"}, {"title": "two"}, True], {"title": "one"}),
        ([{"type": "string"}, False], False),
        (
            [{"properties": {"a": {"minimum": 1}}}, {"properties": {"a": {"minimum": 2}, "b": True}}],
            {"properties": {"a": {"minimum": 2}, "b": True}},
        ),
    ],
)
def test_parts_that_must_all_fit(parts, expected):
    assert schemas.branches({"allOf": parts}, "x") == [expected]


def test_closed_parts_cannot_be_brought_together():
    parts = [{"properties": {"a": True}, "additionalProperties": False}, {"properties": {"b": True}}]
    with pytest.raises(schemas.Inexpressible, match="additionalProperties"):
        schemas.branches({"allOf": parts}, "x")
