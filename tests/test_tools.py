"""Tools in every spelling and from every source, and one clear error for what are not tools."""

from __future__ import annotations

import json
import sys

import pytest

from fitcoach_tune.errors import DataError
from fitcoach_tune.strict_json import Flaw
from fitcoach_tune.tool_checks import CallChecker
from fitcoach_tune.tools import normalise_tools, read_tools

from .samples import WORKOUT

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
    with pytest.raises(Flaw) as caught:
        normalise_tools(given_form)
    assert caught.value.field == field
    assert part in caught.value.what


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
