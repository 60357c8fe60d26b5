"""docs/reliability.md keeps its own promise: every test that it names is there, and runs whenever the tests are run."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
NAME = re.compile(r"`(?P<file>[\w/]+\.py)?(?:::(?P<test>\w+))?`")
ROWS = re.findall(r"^\| (.+) \| (.+) \|$", PAGE, re.MULTILINE)
PROMISES = [(promise, held) for promise, held in ROWS if ".py" in held]


def find(file: str) -> Path:
    """A test file by the name that the page gives it: in tests/hostile/ or tests/."""
    places = [folder / file for folder in (ROOT / "tests/hostile", ROOT / "tests") if (folder / file).is_file()]
    assert places, f"there is no {file}"
    return places[0]


def named(held: str) -> list[tuple[Path, str | None]]:
    """(file, test or None for all of the file) of each name in a cell; `::test` is in the file named before it."""
    found, file = [], None
    for match in NAME.finditer(held):
        file = find(match["file"]) if match["file"] else file
        if match["file"] or match["test"]:
            assert file, f"{match[0]} is in no file"
            found.append((file, match["test"]))
    return found


@cache
def markers_of_tests(file: Path) -> dict[str, set[str]]:
    """Of each test in a file the names of its markers, the file's own among them."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    own = [node.value for node in tree.body if isinstance(node, ast.Assign) and "pytestmark" in ast.unparse(node)]
    tests = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    return {test.name: markers(*own, *test.decorator_list) for test in tests}


def markers(*expressions: ast.expr) -> set[str]:
    return {found for each in expressions for found in re.findall(r"mark\.(\w+)", ast.unparse(each))}


def test_the_page_is_understood() -> None:
    assert len(PROMISES) > 40
    for promise, held in ROWS:
        assert (promise, held) in PROMISES or "`test" not in held, held
    assert named("`test_faults.py::test_a`, `::test_x`, and `OUTPUT/checkpoints`, `test_fuzz.py`") == [
        (ROOT / "tests/test_faults.py", "test_a"),
        (ROOT / "tests/test_faults.py", "test_x"),
        (ROOT / "tests/hostile/test_fuzz.py", None),
    ]
    (soak,) = [found for name, found in markers_of_tests(ROOT / "tests/test_faults.py").items() if "fifty" in name]
    assert soak == {"soak"}


@pytest.mark.parametrize("held", [held for _, held in PROMISES], ids=[promise[:60] for promise, _ in PROMISES])
def test_the_tests_that_hold_a_promise_are_there_and_are_run(held) -> None:
    options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    assert "-m 'not soak'" in options["addopts"]
    for file, test in named(held):
        there = markers_of_tests(file)
        assert there if test is None else test in there, f"{file.name} has no {test}"
        assert not any("soak" in there[name] for name in ([test] if test else there)), test


def test_every_test_named_elsewhere_on_the_page_is_there() -> None:
    for file, test in named(PAGE):
        assert test is None or test in markers_of_tests(file), test
