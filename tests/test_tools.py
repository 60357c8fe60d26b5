"""Strict JSON, loading tools, and checking tools and calls."""

from __future__ import annotations

import copy
import json
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitcoach_tune.errors import DataError
from fitcoach_tune.tools import (
    CallChecker,
    JSONFlaw,
    RowError,
    ToolCache,
    drop_nulls,
    find_flaw,
    normalise_tools,
    parse_json,
    read_tools,
    undo_columnar,
)


def tool(name="log_workout", description="Log a workout.", **parameters):
    parameters = {"type": "object", "properties": {}, **parameters}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


WORKOUT = tool(
    properties={
        "kind": {"type": "string", "description": "Kind", "enum": ["run", "swim"]},
        "minutes": {"type": "integer", "description": "Minutes"},
        "goal": {
            "type": "object",
            "description": "Goal",
            "properties": {"km": {"type": "number", "description": "Distance"}},
        },
        "laps": {"type": "array", "description": "Laps", "items": {"type": "integer"}},
    },
    required=["kind"],
)


# Strict JSON


finite_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(finite_json)
def test_parse_json_reads_every_json_value_back(value):
    assert parse_json(json.dumps(value)) == value


@pytest.mark.parametrize(
    ("text", "path", "part"),
    [
        ('{"a": {"b": 1, "b": 2}}', "a", "'b' stands twice"),
        ('{"a": [1, NaN]}', "a[1]", "nan is not a number"),
        ("[-Infinity]", "[0]", "-inf is not a number"),
        ('{"big": 1e999}', "big", "inf is not a number"),
        ('{"a": "x\\ud800y"}', "a", "surrogate"),
        ('{"\\udfff": 1}', "", "in a key: half of a surrogate"),
        ('{"n": ' + "9" * 5000 + "}", "n", "5000 digits"),
        ("[" * 101 + "]" * 101, "[0]" * 100, "nested more than 100"),
        ("[" * 1_000_000, "", "nested more than 100"),
    ],
)
def test_parse_json_names_the_place_of_what_it_refuses(text, path, part):
    with pytest.raises(JSONFlaw) as caught:
        parse_json(text)
    assert caught.value.path == path
    assert part in caught.value.what
    assert not caught.value.is_syntax


def test_parse_json_accepts_pairs_of_surrogates_and_the_deepest_allowed_nesting():
    assert parse_json('"\\ud83d\\ude00"') == "\U0001f600"
    assert find_flaw(parse_json("[" * 100 + "]" * 100)) is None


def test_syntax_errors_give_line_and_column():
    with pytest.raises(JSONFlaw, match="not valid JSON at column 6") as caught:
        parse_json('{\n "a":, 1}')
    assert caught.value.is_syntax
    assert caught.value.line == 2


def test_values_that_only_columnar_formats_have_are_flaws():
    assert find_flaw({"a": [b"bytes"]}) == ("a[0]", "a bytes is not a JSON value; store it as text")


# One form


@pytest.mark.parametrize(
    "given_form",
    [
        [WORKOUT],
        WORKOUT,
        {"tools": [WORKOUT]},
        [WORKOUT["function"]],
        [{"type": "function", **WORKOUT["function"]}],
        [json.dumps(WORKOUT)],
        [{"type": "function", "function": json.dumps(WORKOUT["function"])}],
        [{**WORKOUT["function"], "parameters": json.dumps(WORKOUT["function"]["parameters"])}],
        [{"type": "function", "function": {**WORKOUT["function"], "strict": True, "return": {"type": "integer"}}}],
    ],
)
def test_every_spelling_of_a_tool_comes_to_one_form(given_form):
    assert normalise_tools(given_form) == [WORKOUT]


@pytest.mark.parametrize(
    ("given_form", "field", "part"),
    [
        (3, "tools", "list of tools, not a number"),
        ([True], "tools[0]", "not a boolean"),
        (["{"], "tools[0]", "not valid JSON"),
        ([{"type": "retrieval", "name": "x"}], "tools[0]", '{"type": "function"'),
        ([WORKOUT, {"description": "x"}], "tools[1].name", "needs a name"),
        ([{"name": ""}], "tools[0].name", "needs a name"),
        ([{"name": "f", "input_schema": {}}], "tools[0].input_schema", "rename it to 'parameters'"),
        ([{"name": "f", "parameters": []}], "tools[0].parameters", "JSON Schema object, not a list"),
        ([{"name": "f", "description": None}], "tools[0].description", "text, not null"),
    ],
)
def test_what_is_not_a_tool_is_refused_by_field(given_form, field, part):
    with pytest.raises(RowError) as caught:
        normalise_tools(given_form)
    assert caught.value.field == field
    assert part in caught.value.what


def test_equal_tools_share_one_list_and_a_fault_is_new_only_once():
    cache = ToolCache(Counter())
    first = cache.get([WORKOUT], columnar=False)
    assert cache.get(json.dumps([WORKOUT]), columnar=False) is first
    assert cache.get(json.dumps([WORKOUT["function"]], indent=1), columnar=False) is first
    assert cache.get([tool("other")], columnar=False) is not first
    faults = []
    for _ in range(2):
        with pytest.raises(RowError) as caught:
            cache.get("[{}]", columnar=False)
        faults.append(caught.value.repeated)
    assert faults == [False, True]


def test_keywords_that_the_format_leaves_out_are_noted():
    cache = ToolCache(Counter())
    shown = {"type": "string", "description": "d", "enum": ["a"]}
    hidden = {"type": "integer", "enum": [1], "minimum": 0, "description": "d"}
    nested = {"type": "OBJECT", "description": "d", "properties": {"level": hidden, "name": shown}}
    cache.get([tool(properties={"goal": nested, "name": shown})], columnar=False)
    cache.get([WORKOUT], columnar=False)
    assert list(cache.not_shown) == ["tool 'log_workout': the format does not show goal.level.enum, goal.level.minimum"]


# Columnar artefacts


def test_drop_nulls_takes_phantoms_and_leaves_what_was_empty():
    columnar = tool(
        properties={
            "kind": {"type": "string", "description": "Kind", "enum": None, "items": {"type": None}},
            "minutes": None,
            "phantom": {"type": None, "properties": {"deep": None}},
        },
        required=[],
    )
    clean, dropped = drop_nulls([columnar, tool(properties={"minutes": None})])
    assert clean == [tool(properties={"kind": {"type": "string", "description": "Kind"}}, required=[]), tool()]
    assert dropped == 5


def test_undo_columnar_keeps_null_only_where_it_is_declared_and_restores_integers():
    properties = {
        "kind": {"type": "string"},
        "note": {"type": "string", "nullable": True},
        "extra": {"type": ["integer", "null"]},
        "either": {"anyOf": [{"type": "null"}, {"type": "string"}]},
        "minutes": {"type": "INTEGER"},
        "km": {"type": "number"},
        "goal": {"type": "object", "properties": {"reps": {"type": "integer"}}},
        "laps": {"type": "array", "items": {"type": "object", "properties": {"n": {"type": "integer"}}}},
    }
    counts = Counter()
    arguments = {"kind": None, "note": None, "extra": None, "either": None, "undeclared": None, "struct": {"x": None}}
    assert undo_columnar(arguments, {"properties": properties}, counts) == {"note": None, "extra": None, "either": None}
    arguments = {"goal": {"reps": 3.0, "other": None}, "laps": [{"n": 1.0, "m": None}, {"n": 1.5}]}
    assert undo_columnar(arguments, {"properties": properties}, counts) == {
        "goal": {"reps": 3},
        "laps": [{"n": 1}, {"n": 1.5}],
    }
    restored = undo_columnar({"minutes": 30.0, "km": 5.0}, {"properties": properties}, Counter())
    assert [type(value) for value in restored.values()] == [int, float]
    assert counts == {"null arguments of merged column schemas dropped": 5, "whole floats turned back into integers": 2}


# Loading


@pytest.mark.parametrize("content", [[WORKOUT], WORKOUT, {"tools": [WORKOUT["function"]]}])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_tools_from_a_json_file(tmp_path, content, mark):
    path = tmp_path / "tools.json"
    path.write_text(mark + json.dumps(content), encoding="utf-8")
    assert read_tools(str(path)) == [WORKOUT]


MODULE = '''
def get_steps() -> int:
    """Get the number of steps walked today.

    Returns:
        The number of steps.
    """

def set_alarm(time: str, label: str = "wake up", loud: bool | None = None):
    """Set an alarm.

    Args:
        time: When, as HH:MM.
        label: What for.
        loud: Whether it is loud.
    """

def undocumented(x: int): ...

class Holder:
    tools = [get_steps]

SCHEMA = {"name": "plain", "description": "Plain."}
both = [get_steps, set_alarm, SCHEMA]
bad = [{"name": "f", "description": "\\ud800"}]
number = 3
'''


@pytest.fixture
def tools_module(tmp_path, monkeypatch):
    (tmp_path / "coach_tools.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield "coach_tools"
    sys.modules.pop("coach_tools", None)


def names(tools):
    return [tool["function"]["name"] for tool in tools]


def test_tools_from_python_functions_and_schemas(tools_module):
    path = list(sys.path)
    tools = read_tools(f"{tools_module}:both")
    assert sys.path == path
    assert names(tools) == ["get_steps", "set_alarm", "plain"]
    parameters = tools[1]["function"]["parameters"]
    assert parameters["required"] == ["time"]
    assert parameters["properties"]["time"] == {"type": "string", "description": "When, as HH:MM."}
    assert set(tools[0]["function"]) == {"name", "description", "parameters"}
    checker = CallChecker()
    assert list(checker.call_problems("set_alarm", {"time": "06:00", "loud": None}, tools)) == []
    assert names(read_tools(f"{tools_module}:get_steps")) == ["get_steps"]
    assert names(read_tools(f"{tools_module}:Holder.tools")) == ["get_steps"]
    assert read_tools(f"{tools_module}:SCHEMA")[0]["function"]["description"] == "Plain."


@pytest.mark.parametrize(
    ("what", "parts"),
    [
        ("coach_tools:undocumented", ["undocumented", "docstring"]),
        ("coach_tools:bothh", ["has no 'bothh'", "did you mean coach_tools:both?"]),
        ("coach_tools:number", ["list of tools, not a number"]),
        ("coach_tools:bad", ["surrogate"]),
        ("no_such_module_here:tools", ["no module 'no_such_module_here'"]),
        ("coach_tools.inner:tools", ["no module 'coach_tools.inner'"]),
        ("broken_tools:tools", ["importing it failed: ZeroDivisionError"]),
        ("exiting_tools:tools", ["importing it failed: SystemExit"]),
        ("needy_tools:tools", ["importing it failed: No module named 'absent_dependency'"]),
        ("missing.json", ["missing.json: cannot be read", "No such file"]),
        ("builtin:tennis", ["'builtin:tennis'", "builtin:fitness"]),
        ("what is this", ["cannot tell"]),
        ("x" * 5000, ["cannot tell"]),
        ("null\0character.json", ["cannot be read"]),
    ],
)
def test_tools_that_cannot_be_loaded(tools_module, tmp_path, what, parts):
    (tmp_path / "broken_tools.py").write_text("1 / 0")
    (tmp_path / "exiting_tools.py").write_text("raise SystemExit(0)")
    (tmp_path / "needy_tools.py").write_text("import absent_dependency")
    path = list(sys.path)
    with pytest.raises(DataError) as caught:
        read_tools(what)
    assert sys.path == path
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("content", "where", "part"),
    [
        (b'{\n"a" 1}', ":2: ", "not valid JSON at column 5"),
        (b'[{"name": "f", "name": "g"}]', ": [0]: ", "'name' stands twice"),
        (b"[\xff]", ": ", "byte 2 is not UTF-8"),
        (b"[]", ": ", "no tools in it"),
        (b'[{"name": "f"}, {"name": "f"}]', "tools[1].name: ", "two tools are named 'f'"),
        (
            b'[{"name": "f", "parameters": {"properties": {"type": {"type": "string"}}, "type": "object"}}]',
            "type",
            "rename",
        ),
        (
            b'[{"name": "f", "parameters": {"type": "object", "required": 3}}]',
            "tools[0].parameters.required",
            "'array'",
        ),
    ],
)
def test_tools_files_that_are_wrong(tmp_path, content, where, part):
    path = tmp_path / "tools.json"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_tools(str(path))
    assert str(path) in str(caught.value)
    assert where in str(caught.value)
    assert part in str(caught.value)


def test_builtin_tools_are_sound():
    tools = read_tools("builtin:fitness")
    assert len(tools) == 7
    assert "get_steps" in names(tools)


# Checking


def problems(arguments, *tools, name="log_workout"):
    tools = list(tools or [WORKOUT])
    checker = CallChecker()
    assert list(checker.tool_problems(tools)) == []
    return list(checker.call_problems(name, arguments, tools))


@pytest.mark.parametrize(
    ("arguments", "field", "part"),
    [
        ({}, "arguments", "'kind' is a required property"),
        ({"kind": "run", "minute": 3}, "arguments", "unknown argument 'minute'; declared: kind, minutes, goal, laps"),
        ({"kind": "run", "minutes": "30"}, "arguments.minutes", "is not of type 'integer'"),
        ({"kind": "run", "minutes": True}, "arguments.minutes", "is not of type 'integer'"),
        ({"kind": "fly"}, "arguments.kind", "is not one of ['run', 'swim']"),
        ({"kind": None}, "arguments.kind", "None is not"),
        ({"kind": "run", "goal": {"km": 3, "mi": 2}}, "arguments.goal", "unknown argument 'mi'; declared: km"),
        ({"kind": "run", "laps": [1, "x"]}, "arguments.laps[1]", "is not of type 'integer'"),
        ({"kind": "<escape>"}, "arguments.kind", "control token <escape>"),
    ],
)
def test_arguments_off_the_schema(arguments, field, part):
    found = problems(arguments)
    assert any(where == field and part in what for where, what in found), found


def test_arguments_that_fit():
    assert problems({"kind": "run", "minutes": 30, "goal": {"km": 5.5}, "laps": [1, 2]}) == []
    shouting = json.loads(json.dumps(WORKOUT).replace('"string"', '"STRING"').replace('"integer"', '"Integer"'))
    before = copy.deepcopy(shouting)
    assert problems({"kind": "run", "minutes": 30}, shouting) == []
    assert problems({"kind": "run", "minutes": "x"}, shouting) != []
    assert shouting == before


def test_objects_are_open_only_where_they_say_so():
    free = {"type": "object", "description": "Anything", "properties": {}}
    closed = tool(properties={"free": free})
    assert problems({"free": {"x": 1}}, closed) == []
    assert problems({"other": 1}, closed) == [("arguments", "unknown argument 'other'; declared: free")]
    assert problems({"other": 1}, tool(properties={"free": free}, additionalProperties=True)) == []
    assert problems({"x": 1}, tool()) == [("arguments", "unknown argument 'x'; declared: none")]
    bare = {"type": "function", "function": {"name": "log_workout", "description": "Bare."}}
    assert problems({"x": 1}, bare) == [("arguments", "unknown argument 'x'; declared: none")]
    assert problems({}, bare) == []


def test_nullable_means_null_is_allowed():
    sort = {"type": "string", "description": "d", "enum": ["a"], "nullable": True}
    assert problems({"sort": None}, tool(properties={"sort": sort})) == []
    assert problems({"sort": "b"}, tool(properties={"sort": sort})) != []


def test_an_undeclared_tool_is_named_with_the_nearest():
    assert problems({}, name="log_workuot") == [
        ("name", "'log_workuot' is not one of the row's tools; did you mean 'log_workout'?")
    ]
    assert problems({}, name="zzz") == [("name", "'zzz' is not one of the row's tools; declared: log_workout")]


def test_each_broken_tool_is_reported_once_and_its_calls_are_left_alone():
    broken = tool("broken", properties={"x": {"type": "strnig", "description": "d"}})
    checker = CallChecker()
    first = list(checker.tool_problems([WORKOUT, broken]))
    assert [field for field, _ in first] == ["tools[1].parameters.properties.x.type"]
    assert "'strnig'" in first[0][1]
    assert "(tool 'broken')" in first[0][1]
    other = [broken]
    assert list(checker.tool_problems(other)) == []
    assert list(checker.call_problems("broken", {"x": 1}, other)) == []


def test_a_reference_in_a_schema_is_never_fetched():
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        reference = f"http://127.0.0.1:{server.server_port}/schema"
        referring = tool(properties={"x": {"type": "string", "description": "d", "$ref": reference}})
        found = problems({"x": "a"}, referring)
    finally:
        server.shutdown()
        server.server_close()
    assert requests == []
    assert len(found) == 1
    assert "cannot be checked against the tool's schema" in found[0][1]


def test_a_pattern_that_does_not_compile_is_a_problem_not_a_crash():
    bad = tool(properties={"x": {"type": "string", "description": "d", "pattern": "("}})
    found = list(CallChecker().tool_problems([bad]))
    assert [field for field, _ in found] == ["tools[0].parameters.properties.x.pattern"]


def test_problems_of_one_call_stay_few_and_short():
    found = problems({"kind": "run", "laps": ["x" * 10_000] * 1000})
    assert len(found) == 10
    assert all(len(what) < 300 for _, what in found)


@given(finite_json, finite_json)
def test_any_schema_and_arguments_are_checked_without_a_crash(schema, arguments):
    strange = [tool(properties={"x": schema}), tool("g", **(schema if isinstance(schema, dict) else {}))]
    checker = CallChecker()
    list(checker.tool_problems(strange))
    for name in ("log_workout", "g"):
        list(checker.call_problems(name, {"x": arguments}, strange))
