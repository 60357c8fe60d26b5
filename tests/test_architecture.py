"""The house rules that no other test would notice: which module may import, rename, or load what."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fitcoach_tune

ROOT = Path(fitcoach_tune.__file__).parent
PACKAGE = "fitcoach_tune"

# From the bottom up; a module belongs to the longest name that it starts with. What is not named here is a verb.
LAYERS = (
    ("errors", "files", "reading", "console", "config", "strict_json", "training.names"),
    (
        "functiongemma",
        "gold",
        "dataset",
        "tool",
        "tools",
        "builtin",
        "fitness",
        "logbook",
        "hub",
        "models",
        "libraries",
        "tokenizer",
        "runs",
        "splits",
    ),
    ("backends", "training", "evaluate"),
    (
        *("prepare", "prepared_set", "rendering", "train", "plan", "infer", "inference", "push", "publish", "show"),
        *("evaluate.evaluation", "evaluate.sources", "evaluate.report"),
    ),
    ("cli",),
    ("__main__",),
)
VERBS = 3
HEAVY = {
    "torch",
    "transformers",
    "datasets",
    "peft",
    "torch_xla",
    "pandas",
    "pyarrow",
    "scipy",
    "matplotlib",
    "jinja2",
    "llguidance",
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8"), str(path)) for name, path in SOURCES.items()}


def layer(module: str) -> int:
    def fits(prefix: str) -> bool:
        return module == prefix or module.startswith((f"{prefix}.", f"{prefix}_"))

    found = [(len(prefix), rank) for rank, names in enumerate(LAYERS) for prefix in names if fits(prefix)]
    return max(found)[1] if found else VERBS


def imported(tree: ast.AST) -> Iterator[tuple[str, str | None, int]]:
    """(module, name taken from it or None, line) of every import, those inside functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (("." * node.level + (node.module or ""), alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            yield from ((arg.value, None, node.lineno) for arg in node.args[:1] if isinstance(arg, ast.Constant))


def own_imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """The package's own modules that a module imports, without the package's name."""
    for module, name, line in imported(tree):
        assert not module.startswith("."), f"line {line}: a relative import"
        if module.split(".")[0] == PACKAGE:
            inner = module.removeprefix(PACKAGE).removeprefix(".")
            full = ".".join(part for part in (inner, name) if part)
            target = full if full in SOURCES else inner
            if target:
                yield target, line


def without_type_checking(tree: ast.Module) -> ast.Module:
    class Drop(ast.NodeTransformer):
        def visit_If(self, node: ast.If):
            return None if ast.unparse(node.test) == "TYPE_CHECKING" else self.generic_visit(node)

    return Drop().visit(ast.parse(ast.unparse(tree)))


def renames(tree: ast.AST) -> Iterator[int]:
    """Lines that rename or move something on disk. `text.replace(a, b)` and `replace(row, field=…)` do not."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in ("os", "shutil"):
            taken = {alias.name for alias in node.names}
            yield from [node.lineno] * bool(taken & {"rename", "renames", "replace", "move"})
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        owner, method, keywords = ast.unparse(node.func.value), node.func.attr, {k.arg for k in node.keywords}
        of_path = method == "replace" and (len(node.args) + len(node.keywords) == 1) and keywords <= {"target"}
        if of_path or method in ("rename", "renames") or (owner, method) in (("os", "replace"), ("shutil", "move")):
            yield node.lineno


def unsafe(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Lines that would run code found in data, or could."""
    for module, name, line in imported(tree):
        root = module.split(".")[0]
        if root in ("pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"):
            yield line, module
        if root == "torch" and name in ("load", "save"):
            yield line, f"{module}.{name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "torch.save", "torch.jit.load"):
            yield node.lineno, ast.unparse(node)
        if isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "allow_pickle"):
            yield node.value.lineno, node.arg
        if isinstance(node, ast.Constant) and node.value in ("trust_remote_code", "allow_pickle"):
            yield node.lineno, node.value


# ------------------------------------------------------------------------------------------------ the rules


def test_the_modules_are_found() -> None:
    assert {"cli", "config", "files", "splits", "training.core", "evaluate.score", "backends.torch"} <= set(SOURCES)


def test_imports_go_downward_only() -> None:
    upward = [
        f"{name}:{line} imports {target}, which is above it (a new module gets its place in LAYERS)"
        for name, tree in TREES.items()
        for target, line in own_imports(tree)
        if layer(target) > layer(name)
    ]
    assert upward == []


def test_no_module_imports_itself_around_a_corner() -> None:
    graph = {name: {t for t, _ in own_imports(without_type_checking(tree))} - {name} for name, tree in TREES.items()}
    while leaves := [name for name, targets in graph.items() if not targets & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert graph == {}


def test_torch_xla_is_imported_in_one_place() -> None:
    importers = {name for name, tree in TREES.items() for m, _, _ in imported(tree) if m.split(".")[0] == "torch_xla"}
    assert importers <= {"backends.xla"}


def test_only_files_renames() -> None:
    found = {name: lines for name, tree in TREES.items() if (lines := list(renames(tree)))}
    assert set(found) == {"files"}, found


def test_nothing_runs_code_from_data() -> None:
    assert [(name, *found) for name, tree in TREES.items() for found in unsafe(tree)] == []


# ------------------------------------------------------------------------------------------------ what gets loaded


def python(*arguments: str) -> subprocess.CompletedProcess:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def test_reading_rows_the_format_the_split_and_the_command_line_need_no_torch() -> None:
    light = [f"{PACKAGE}.{n}" for n in SOURCES if n.split(".")[0] in ("dataset", "functiongemma", "splits", "cli")]
    assert len(light) >= 4
    script = f"import sys, {', '.join(light)}; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    loaded = set(python("-c", script).stdout.split())
    assert PACKAGE in loaded
    assert loaded & HEAVY == set()


@pytest.mark.parametrize("verb", [[], ["train"]], ids=["program", "train"])
def test_help_loads_nothing_heavy(verb) -> None:
    done = python("-X", "importtime", "-m", PACKAGE, *verb, "--help")
    loaded = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "typer" in loaded
    assert loaded & HEAVY == set()
    assert "Usage" in done.stdout


# ------------------------------------------------------------------------------------------------ the detectors


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("path.rename(other)", 1),
        ("path.replace(other)", 1),
        ("path.replace(target=other)", 1),
        ("os.replace(a, b)", 1),
        ("os.rename(a, b)", 1),
        ("shutil.move(a, b)", 1),
        ("from os import replace", 1),
        ("text.replace('a', 'b')", 0),
        ("replace(row, example=1)", 0),
        ("when.replace(tzinfo=UTC)", 0),
        ("from dataclasses import replace", 0),
    ],
)
def test_renames_are_recognised(source, count) -> None:
    assert len(list(renames(ast.parse(source)))) == count


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("import pickle", 1),
        ("def f():\n    from pickle import loads", 1),
        ("torch.load(path)", 1),
        ("from torch import save", 1),
        ("f(trust_remote_code=True)", 1),
        ("f(**{'trust_remote_code': True})", 1),
        ("numpy.load(path, allow_pickle=True)", 1),
        ("'never trust_remote_code'", 0),
        ("from safetensors.torch import save", 0),
    ],
)
def test_unsafe_loading_is_recognised(source, count) -> None:
    assert len(list(unsafe(ast.parse(source)))) == count


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("errors", 0),
        ("training.names", 0),
        ("dataset", 1),
        ("dataset.forms", 1),
        ("dataset_forms", 1),
        ("training.core", 2),
        ("train", 3),
        ("evaluate.score", 2),
        ("evaluate.report", 3),
        ("push", 3),
        ("cli", 4),
    ],
)
def test_layers(module, expected) -> None:
    assert layer(module) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from fitcoach_tune import files, __version__", ["files"]),
        ("from fitcoach_tune.config import Config", ["config"]),
        ("from fitcoach_tune.evaluate import score", ["evaluate.score"]),
        ("def f():\n    import fitcoach_tune.cli", ["cli"]),
        ("import json", []),
    ],
)
def test_own_imports_are_resolved(source, expected) -> None:
    assert [target for target, _ in own_imports(ast.parse(source))] == expected
