"""Running functions: what fits is run with its arguments, whatever goes wrong is told, and nothing of it is fatal."""

from __future__ import annotations

import asyncio
import enum
import subprocess
import sys
import threading
import types

import pytest

from fitcoach_tune.builtin import FITNESS
from fitcoach_tune.console import SILENT
from fitcoach_tune.errors import ConfigError, DataError
from fitcoach_tune.functiongemma import Call
from fitcoach_tune.inference.execute import Result, Toolbox, find_toolbox
from fitcoach_tune.tools import read_tools
from tests.conftest import tool

DAYS = {"days": {"type": "integer", "description": "How many days back."}}


class Colour(enum.StrEnum):
    RED = "red"


def run(function, arguments=None, tools=None, timeout=30.0, name="go"):
    """What comes of a call to `go`, which is the function."""
    tools = tools if tools is not None else [tool("go")]
    return Toolbox(tools, {"go": function}, timeout).run(Call(name, arguments or {}))


# ------------------------------------------------------------------------------------------------ what is run


def test_it_runs_with_keyword_arguments():
    seen = []

    def go(*positional, **named):
        seen.append((positional, named))
        return named["days"] * 2

    result = run(go, {"days": 3}, [tool("go", **DAYS)])
    assert (result.value, result.error) == (6, None)
    assert seen == [((), {"days": 3})]
    assert result.as_dict() == {"name": "go", "arguments": {"days": 3}, "result": 6}


def test_an_argument_that_is_left_out_takes_the_function_s_default():
    optional = tool("go", **DAYS)
    optional["function"]["parameters"]["required"] = []
    assert run(lambda days=7: days, {}, [optional]).value == 7


def test_a_coroutine_is_awaited():
    async def go():
        await asyncio.sleep(0)
        return "awaited"

    class Ready:
        def __await__(self):
            yield from asyncio.sleep(0).__await__()
            return "by itself"

    assert run(go).value == "awaited"
    assert run(Ready).value == "by itself"


def test_what_a_function_does_to_its_arguments_is_its_own_affair():
    call = Call("go", {"tags": ["a"]})
    tags = {"tags": {"type": "array", "items": {"type": "string"}, "description": "Tags."}}
    result = Toolbox([tool("go", **tags)], {"go": lambda tags: tags.append("b")}).run(call)
    assert result.error is None
    assert result.as_dict()["arguments"] == call.arguments == {"tags": ["a"]}


@pytest.mark.parametrize(("value", "expected"), [
    ((54, 132), [54, 132]), (Colour.RED, "red"), ({8: 120}, {"8": 120}), (None, None), (True, True), (1e300, 1e300),
    ({"a": [{"b": None}]}, {"a": [{"b": None}]}), ("<end_of_turn><escape>", "<end_of_turn><escape>"),
    ({"<escape>": 1}, {"<escape>": 1}), ("żółw 🐢", "żółw 🐢"), ({"name": "Bob", "response": "hi"},) * 2,
])  # fmt: skip
def test_values_as_json_has_them(value, expected):
    result = run(lambda: value)
    assert (result.value, result.error) == (expected, None)
    assert type(result.value) is type(expected)


# ------------------------------------------------------------------------------------------------ what goes wrong


@pytest.mark.parametrize(("arguments", "part"), [
    ({"days": "three"}, "arguments.days: 'three' is not of type 'integer'"),
    ({}, "'days' is a required property"),
    ({"days": 1, "weeks": 2}, "unknown argument 'weeks'"),
])  # fmt: skip
def test_arguments_that_do_not_fit_are_not_tried(arguments, part):
    result = run(lambda **_: pytest.fail("it was run"), arguments, [tool("go", **DAYS)])
    assert part in result.error
    assert result.as_dict() == {"name": "go", "arguments": arguments, "error": result.error}


def test_an_undeclared_function():
    assert run(lambda: 1, name="goo").error == "there is no function 'goo'; did you mean go?"


class Untold(Exception):
    def __str__(self) -> str:
        raise RuntimeError


def raising(error):
    def go():
        raise error

    return go


@pytest.mark.parametrize(("function", "error"), [
    (raising(ValueError("no\n  band")), "ValueError: no band"),
    (raising(KeyError()), "KeyError"),
    (raising(SystemExit(3)), "SystemExit: 3"),
    (raising(KeyboardInterrupt()), "KeyboardInterrupt"),
    (raising(Untold()), "Untold"), (raising(OSError("caf\udce9")), "OSError: caf?"),
    (raising(ValueError("x" * 600)), "ValueError: " + "x" * 488 + "…"),
    (lambda more: 1, "TypeError: "),
])  # fmt: skip
def test_a_function_that_raises(function, error):
    result = run(function)
    assert result.value is None
    assert result.error.startswith(error)
    assert "fitcoach_tune/execute.py" not in result.trace  # only what the function's author wrote
    assert error.partition(":")[0] in result.trace


class Odd(dict):
    def items(self):
        raise RuntimeError("odd")


def endless():
    value: list = []
    value.append(value)
    return value


def deep(levels):
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


NO_JSON, UNTOLD = "it returned what JSON cannot carry: ", "it returned what the model cannot be told: "
UNCARRIED = {
    "object": (object, NO_JSON), "nan": (lambda: float("nan"), NO_JSON), "infinity": (lambda: float("-inf"), NO_JSON),
    "bytes": (lambda: b"bytes", NO_JSON), "set": (lambda: {1, 2}, NO_JSON),
    "tuple keys": (lambda: {(1, 2): 3}, NO_JSON),
    "in itself": (endless, NO_JSON), "very deep": (lambda: deep(100_000), NO_JSON),
    "surrogate": (lambda: "\ud800", NO_JSON),
    "equal keys": (lambda: {1: "a", "1": "b"}, NO_JSON), "generator": (lambda: (i for i in "ab"), NO_JSON),
    "huge": (lambda: 10**5000, NO_JSON), "odd": (lambda: Odd(a=1), "RuntimeError: odd"),
    "colon": (lambda: {"08:00": 1}, UNTOLD + "result.08:00: keys are written bare"),
    "deep": (lambda: deep(70), UNTOLD), "no key": (lambda: [{"": 1}], UNTOLD + "result.value[0].: keys must"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNCARRIED)
def test_what_cannot_be_carried(name):
    function, error = UNCARRIED[name]
    result = run(function)
    assert result.value is None
    assert result.error.startswith(error)
    assert len(result.error) < 400


def test_a_function_that_hangs_is_given_up():
    over = threading.Event()
    box = Toolbox([tool("go"), tool("fine")], {"go": over.wait, "fine": lambda: 1}, timeout=0.05)
    assert box.run(Call("go", {})).error == "there was no result within 0.05 s"
    assert box.still_running == ["go"]
    assert box.run(Call("fine", {})).value == 1
    over.set()
    for thread in threading.enumerate():
        if thread.name == "tool go":
            thread.join(30)
    assert box.still_running == []


def test_the_program_ends_though_a_function_does_not(tmp_path):
    (tmp_path / "main.py").write_text(
        "import time\n"
        "from fitcoach_tune.inference.execute import Toolbox\n"
        "from fitcoach_tune.functiongemma import Call\n"
        "def go():\n"
        "    while True: time.sleep(3600)\n"
        "tools = [{'type': 'function', 'function': {'name': 'go'}}]\n"
        "print(Toolbox(tools, {'go': go}, 0.05).run(Call('go', {})).error)\n"
    )
    done = subprocess.run([sys.executable, tmp_path / "main.py"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "there was no result within 0.05 s\n", "")


# ------------------------------------------------------------------------------------------------ what is told


@pytest.mark.parametrize(("result", "response"), [
    (Result(Call("go", {}), 3), {"value": 3}), (Result(Call("go", {}), [1]), {"value": [1]}),
    (Result(Call("go", {}), {"a": 1}), {"a": 1}), (Result(Call("go", {}), None), {"value": None}),
    (Result(Call("go", {}), error="E"), {"error": "E"}),
])  # fmt: skip
def test_messages(result, response):
    assert result.as_message() == {"role": "tool", "content": {"name": "go", "response": response}}


# ------------------------------------------------------------------------------------------------ finding functions


@pytest.fixture
def module(monkeypatch):
    """A module that can be named in --tools."""

    def go(days: int):
        """
        Go.

        Args:
            days: How many days back.
        """
        return days

    made = types.ModuleType("some_home")
    made.go, made.both, made.mixed, made.schema = go, [go], (go, tool("stay")), tool("stay")
    made.inner = types.SimpleNamespace(go=go)
    monkeypatch.setitem(sys.modules, "some_home", made)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return made


@pytest.mark.parametrize("name", ["go", "both", "inner.go"])
def test_functions_of_a_module(module, name):
    source = f"some_home:{name}"
    box = find_toolbox(read_tools(source), source, 30, None, SILENT)
    assert box.run(Call("go", {"days": 4})).value == 4


@pytest.mark.parametrize("name", ["mixed", "schema"])
def test_a_schema_is_no_function(module, name):
    source = f"some_home:{name}"
    with pytest.raises(ConfigError, match="stay is a schema, and no function"):
        find_toolbox(read_tools(source), source, 30, None, SILENT)


def test_a_file_has_no_functions(tmp_path):
    with pytest.raises(ConfigError, match="no functions in a file"):
        find_toolbox([tool("go")], str(tmp_path / "tools.json"), 30, None, SILENT)


def test_an_adapter_has_no_functions_but_the_coach_s():
    with pytest.raises(ConfigError, match="--tools module:object"):
        find_toolbox([tool("go")], None, 30, None, SILENT)
    trained_with = read_tools(FITNESS)
    trained_with[0]["function"]["parameters"].pop("required")  # the model sees no difference
    assert find_toolbox(trained_with, None, 30, None, SILENT).run(Call("get_steps", {})).value == 8421
    with pytest.raises(ConfigError, match="not the functions"):
        find_toolbox(trained_with[:6], None, 30, None, SILENT)


def test_the_day_s_data_are_the_coach_s(module, tmp_path):
    with pytest.raises(ConfigError, match="other tools are run"):
        find_toolbox(read_tools("some_home:go"), "some_home:go", 30, "day.json", SILENT)
    with pytest.raises(DataError, match="cannot be read"):
        find_toolbox(read_tools(FITNESS), FITNESS, 30, str(tmp_path / "none.json"), SILENT)
    (tmp_path / "day.json").write_text('{"steps": 12}')
    box = find_toolbox(read_tools(FITNESS), FITNESS, 30, str(tmp_path / "day.json"), SILENT)
    assert box.run(Call("get_steps", {})).value == 12
    assert box.run(Call("get_heart_rate", {})).error == "LookupError: the day's data has no heart_rate"
