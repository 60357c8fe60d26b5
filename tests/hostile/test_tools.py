"""Tools that are a trap: schemas that take for ever to check, and Python objects that fail when they are looked at."""

from __future__ import annotations

import json
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitcoach_tune.dataset import read_examples, validate
from fitcoach_tune.errors import DataError
from fitcoach_tune.evaluate.constrain import Constraint
from fitcoach_tune.inference.execute import find_toolbox
from fitcoach_tune.tool_checks import CallChecker
from fitcoach_tune.tools import read_tools
from tests.conftest import conversation, tool
from tests.hostile.material import NASTY, fuzz, json_values, nearly, one_error


def described(**schema):
    return {"type": "string", "description": "A thing."} | schema


def problems(parameters: dict, arguments: dict) -> list[str]:
    tools = [{"type": "function", "function": {"name": "f", "description": "", "parameters": parameters}}]
    checker = CallChecker()
    found = [what for _, what in checker.tool_problems(tools)]
    return found or [what for _, what in checker.call_problems("f", arguments, tools)]


def one(schema: dict, value: object, **more) -> list[str]:
    return problems({"type": "object", "properties": {"a": schema}, **more}, {"a": value})


LAUGHS = {f"l{i}": {"allOf": [{"$ref": f"#/$defs/l{i + 1}"}] * 2} for i in range(60)} | {"l60": {"type": "string"}}


def nested(depth: int) -> dict:
    return {"a": nested(depth - 1)} if depth else {}


BOMBS = {
    "a pattern that backtracks": lambda: one(described(pattern="^(a|aa)+$"), "a" * 80 + "!"),
    "a pattern of property names": lambda: problems(
        {"type": "object", "properties": {}, "patternProperties": {"^(b|bb)+$": {}}, "additionalProperties": False},
        {"b" * 80 + "!": 1},
    ),
    "references that are followed twice each": lambda: one(
        described(allOf=[{"$ref": "#/$defs/l0"}]), "x", **{"$defs": LAUGHS}
    ),
    "a reference to itself, twice at each level": lambda: one(
        {"type": "object", "description": "", "properties": {}, "allOf": [{"$ref": "#/$defs/t"}]},
        nested(40),
        **{"$defs": {"t": {"properties": {"a": {"allOf": [{"$ref": "#/$defs/t"}] * 2}}}}},
    ),
    "a reference to itself": lambda: one(
        described(allOf=[{"$ref": "#/$defs/t"}]), "x", **{"$defs": {"t": {"$ref": "#/$defs/t"}}}
    ),
    "an older dialect inside": lambda: one(
        described(allOf=[{"$schema": "http://json-schema.org/draft-07/schema#", "pattern": "^(c|cc)+$"}]),
        "c" * 80 + "!",
    ),
    "what other parts have not looked at": lambda: one(described(unevaluatedProperties=False), "x"),
    "a long list in a schema": lambda: one(described(enum=[{}, "x"] * 20_000), "x"),
    "a list of required things": lambda: problems(
        {"type": "object", "properties": {}, "required": [{"a": i} for i in range(50_000)]}, {}
    ),
    "a long pattern": lambda: one(described(pattern="(a?){60}" * 9999), "x"),
    "a pattern that no compiler takes": lambda: one(described(pattern="a{99999999999}"), "x"),
    "a pattern of brackets": lambda: one(described(pattern="(" * 900 + ")" * 900), "x"),
    "a multiple of nearly nothing": lambda: one({"type": "integer", "description": "", "multipleOf": 1e-300}, 10**400),
    "a deep schema": lambda: one(json.loads('{"items":' * 90 + "{}" + "}" * 90) | {"type": "array"}, []),
}


@pytest.mark.parametrize("check", BOMBS.values(), ids=BOMBS)
def test_schemas_that_take_for_ever(check):
    """There is a problem, and not a wait for the end of the universe."""
    found = check()
    assert found
    assert all(len(what) < 1000 for what in found)


def test_long_lists_of_unlike_things_are_compared_at_once():
    """Forty thousand objects, compared each with each, would be 800 million comparisons."""
    schema = {"type": "array", "description": "", "items": {"type": "object"}, "uniqueItems": True}
    different = [{"a": i} for i in range(40_000)]
    assert one(schema, different) == []
    assert "non-unique" in one(schema, [*different, {"a": 7.0}])[0]


@pytest.mark.parametrize(("first", "second", "equal"), [
    (1, 1.0, True), (True, 1, False), (0, False, False), ({"a": 1, "b": 2}, {"b": 2, "a": 1.0}, True), ("1", 1, False),
    ([1, True], [1.0, True], True), (None, "null", False), ([], {}, False),
])  # fmt: skip
def test_equal_means_what_it_means_in_json_schema(first, second, equal):
    from jsonschema import Draft202012Validator

    assert (one({"type": "array", "description": "", "uniqueItems": True}, [first, second]) != []) == equal
    assert Draft202012Validator({"uniqueItems": True}).is_valid([first, second]) != equal


def test_a_pattern_that_is_slow_is_tried_once():
    """A thousand values do not wait a thousand times."""
    schema = {"type": "array", "description": "", "items": {"type": "string", "pattern": "^(d|dd)+$"}}
    for _ in range(1000):
        assert "takes too long" in one(schema, ["d" * 80 + "!"] * 5)[0]


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "description": "Whose.", "pattern": "^[a-z]+$", "enum": ["a", "b"]},
        "days": {"type": "integer", "description": "How many.", "minimum": 0, "multipleOf": 7},
        "all": {"type": "array", "description": "Which.", "items": {"type": "object", "uniqueItems": True}},
        "one": {"type": "string", "description": "One.", "anyOf": [{"const": "x"}, {"$ref": "#/$defs/t"}]},
    },
    "required": ["name"],
    "$defs": {"t": {"type": "string", "maxLength": 3, "not": {"const": "y"}}},
}
ARGUMENTS = {"name": "a", "days": 14, "all": [{}, {"x": 1}], "one": "x"}
keywords = st.sampled_from(
    [*SCHEMA["properties"].values(), SCHEMA, {"$ref": "#"}, {"pattern": "(a|a)*$"}, {"uniqueItems": True}, True]
)


@fuzz
@given(schema=nearly(SCHEMA, json_values | keywords), arguments=nearly(ARGUMENTS) | st.just(ARGUMENTS))
def test_any_schema(schema, arguments):
    if isinstance(schema, dict) and isinstance(arguments, dict):
        assert all(isinstance(what, str) for what in problems(schema, arguments))


@pytest.fixture(scope="module")
def constrain(tokenizer):
    def check(parameters):
        tools = [{"type": "function", "function": {"name": "f", "description": "", "parameters": parameters}}]
        try:
            Constraint(tools, tokenizer)
        except DataError as error:
            one_error(error)

    return check


@settings(fuzz, max_examples=fuzz.max_examples // 4)
@given(data=st.data())
def test_any_schema_as_a_grammar(constrain, data):
    """For every schema that is a sound one there is a grammar, or a reason why there is none."""
    schema = data.draw(nearly(SCHEMA, json_values | keywords))
    if isinstance(schema, dict) and not problems(schema, ARGUMENTS):
        constrain(schema)


@pytest.mark.parametrize("schema", [
    described(maxLength=10**9), described(minLength=10**9), described(pattern="(a{1000}){1000}"),
    described(enum=["x" * 1000] * 1000), described(pattern="^(a+)+$"),
    {"type": "array", "description": "", "items": {"type": "string"}, "minItems": 10**9},
    {"type": "integer", "description": "", "minimum": -(10**4000), "maximum": 10**4000},
    {"type": "integer", "description": "", "multipleOf": 1, "minimum": 0, "maximum": 10**4000},
    {"type": "number", "description": "", "multipleOf": 1e-300, "minimum": 0, "maximum": 1},
    described(allOf=[{"anyOf": [{"minLength": i}, {"maxLength": i}]} for i in range(60)]),
    {"type": "string", "description": "", "anyOf": [{"anyOf": [{"anyOf": [{"const": "a"}] * 9}] * 9}] * 9},
])  # fmt: skip
def test_schemas_that_would_make_huge_grammars(constrain, schema):
    constrain({"type": "object", "properties": {"a": schema}})


# Rows -----------------------------------------------------------------------------------------------------------------


def test_a_row_with_a_slow_schema_is_one_problem(tmp_path):
    slow = tool("f", a=described(pattern="^(e|ee)+$"))
    row = {"messages": conversation("?", ("f", {"a": "e" * 80 + "!"})), "tools": [slow]}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    examples, _ = read_examples(str(path))
    with pytest.raises(DataError) as caught:
        validate(examples)
    one_error(caught.value, "rows.jsonl:1: messages[2].tool_calls[0].arguments: ", "takes too long to be matched")


@pytest.mark.parametrize("what", NASTY)
@pytest.mark.parametrize("cell", ["tools", "messages", "user", "assistant", "function_call", "acceptable_answers"])
def test_nasty_texts_in_a_cell(tmp_path, cell, what):
    text = NASTY[what].decode("utf-8", "replace")
    sound = {"function_call": {"user_query": "?"}, "user": {"assistant": "get"}}.get(cell, {"user": "?"})
    row = {"assistant": '{"name": "get"}', "tools": [tool("get")], **sound, cell: text}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    try:
        examples, _ = read_examples(str(path))
        validate(examples)
    except DataError as error:
        one_error(error, "rows.jsonl:1: ", of=DataError)
    else:
        assert cell in ("user", "assistant", "acceptable_answers") or what in ("null", "a list")


# Python objects -------------------------------------------------------------------------------------------------------

MODULES = {
    "raises": ("1 / 0", "tools", "importing it failed: ZeroDivisionError: division by zero"),
    "exits": ("import sys\nsys.exit('gone')", "tools", "importing it failed: SystemExit: gone"),
    "raises what is no Exception": (
        "class Out(BaseException): ...\nraise Out('far out')", "tools", "importing it failed: Out: far out",
    ),
    "stops a generator": ("raise GeneratorExit", "tools", "importing it failed: GeneratorExit"),
    "raises an error without words": (
        "class Mute(Exception):\n    def __str__(self): raise SystemExit\nraise Mute", "tools", "it does not say why",
    ),
    "raises megabytes": ("raise ValueError('x' * 10_000_000)", "tools", "importing it failed: ValueError: xxx"),
    "misses a module with an odd name": (
        "raise ModuleNotFoundError('x', name=5)", "tools", "importing it failed: x",
    ),
    "is no Python": ("def (", "tools", "importing it failed: SyntaxError"),
    "has null bytes": ("a = '\0'", "tools", "importing it failed: "),
    "raises at a name": (
        "def __getattr__(name): raise OSError('no ' + name)", "tools",
        "tools cannot be taken from it: OSError: no tools",
    ),
    "exits at a name": (
        "import sys\ndef __getattr__(name): sys.exit(name)", "tools",
        "tools cannot be taken from it: SystemExit: tools",
    ),
    "misses a module at a name": (
        "def __getattr__(name): import absent_module", "tools", "tools cannot be taken from it: ModuleNotFoundError",
    ),
    "raises in a property": (
        "class Holder:\n    @property\n    def tools(self): raise KeyError('no')\nholder = Holder()", "holder.tools",
        "holder.tools cannot be taken from it: KeyError",
    ),
    "says that it is a list": (
        "class Liar:\n    __class__ = list\n    def __iter__(self): raise SystemExit(3)\ntools = Liar()", "tools",
        "it cannot be looked at: SystemExit: 3",
    ),
    "exits when it is inspected": (
        "import sys\nclass Odd:\n    def __call__(self): ...\n    def __getattr__(self, name): sys.exit(name)\n"
        "tools = Odd()", "tools", "it cannot be looked at: SystemExit: ",
    ),
    "holds a dict that fails": (
        "class Bad(dict):\n    def items(self): raise SystemExit(5)\ntools = [Bad(name='f')]", "tools",
        "it cannot be looked at: SystemExit: 5",
    ),
    "holds itself": ("tools = []\ntools.append(tools)", "tools", "nested more than 100 levels deep"),
    "holds what JSON has not": ("tools = [{'name': 'f', 'parameters': {1: {2}}}]", "tools", "not a JSON value"),
}  # fmt: skip


@pytest.mark.parametrize(("source", "name", "part"), MODULES.values(), ids=MODULES)
def test_modules_that_fail(tmp_path, monkeypatch, source, name, part):
    monkeypatch.chdir(tmp_path)
    module = f"hostile_{abs(hash(source))}"
    (tmp_path / f"{module}.py").write_text(source)
    before = list(sys.path)
    with pytest.raises(DataError) as caught:
        read_tools(f"{module}:{name}")
    one_error(caught.value, part, f"{module}:{name}", of=DataError)
    assert sys.path == before


def test_a_name_that_works_once_and_then_exits(tmp_path, monkeypatch):
    """It is taken again to find the functions behind the tools."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hostile_twice.py").write_text(
        "import sys\nleft = [0]\ndef get():\n    'Gets.'\n"
        "def __getattr__(name):\n    left.pop() if left else sys.exit('gone')\n    return get\n"
    )
    tools = read_tools("hostile_twice:anything")
    with pytest.raises(DataError) as caught:
        find_toolbox(tools, "hostile_twice:anything", 1.0, None, None)
    one_error(caught.value, "anything cannot be taken from it: SystemExit: gone")


def test_only_the_named_module_is_imported(tmp_path, monkeypatch):
    """Not what lies beside it, nor what a file of tools is named after."""
    monkeypatch.chdir(tmp_path)
    for name in ("hostile_beside", "tools", "sitecustomize", "hostile_named"):
        (tmp_path / f"{name}.py").write_text(f"open('sprung-{name}', 'w').close()\ntools = [{{'name': 'f'}}]")
    (tmp_path / "tools.json").write_text('[{"name": "f"}]')
    read_tools("tools.json")
    assert not list(tmp_path.glob("sprung-*"))
    read_tools("hostile_named:tools")
    assert [path.name for path in tmp_path.glob("sprung-*")] == ["sprung-hostile_named"]
