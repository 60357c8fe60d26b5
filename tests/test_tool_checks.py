"""Calls are held to their tools, and tools to the wire format and JSON Schema."""

from __future__ import annotations

import copy
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from hypothesis import given

from fitcoach_tune.tool_checks import CallChecker

from .samples import WORKOUT, finite_json, tool


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
