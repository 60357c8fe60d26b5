"""Whatever text stands where JSON or YAML is read: one error of the right kind, which names the file."""

from __future__ import annotations

import io
import json
import os
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from fitcoach_tune import cli, config, models, prepared_set, runs
from fitcoach_tune.console import printable
from fitcoach_tune.dataset import read_examples, validate
from fitcoach_tune.errors import ConfigError, DataError, MismatchError
from fitcoach_tune.fitness.provider import Provider
from fitcoach_tune.inference.batch import answer_lines
from fitcoach_tune.tools import read_tools
from fitcoach_tune.training import checkpoint
from tests.dataset.rows import TOOLS
from tests.hostile import folders
from tests.hostile.material import MEGABYTES, NASTY, altered, fuzz, one_error


def rows(path: Path) -> None:
    examples, _ = read_examples(str(path), tools=TOOLS)
    validate(examples)


def lines(path: Path) -> None:
    def ask(queries):
        return [ConfigError("it was read") for _ in queries]

    with path.open("rb") as source:
        answer_lines(source, str(path), ask, io.StringIO())


# (the file, what else lies in its folder, how it is read, the error)
READERS = {
    "rows": ("rows.jsonl", None, rows, DataError),
    "rows in a list": ("rows.json", None, rows, DataError),
    "tools": ("tools.json", None, lambda path: read_tools(str(path)), DataError),
    "the day": ("day.json", None, Provider, DataError),
    "questions": ("questions.jsonl", None, lines, DataError),
    "configuration": ("config.yaml", None, lambda path: config.load_config(str(path)), ConfigError),
    "prepared set": ("manifest.json", folders.prepared, lambda path: prepared_set.open_set(path.parent), MismatchError),
    "its tools": ("toolsets.json", folders.prepared, lambda path: prepared_set.PreparedSet(path.parent, {}).toolsets,
                  MismatchError),
    "run": ("run.json", folders.run, lambda path: runs.open_run(str(path.parent)), MismatchError),
    "adapter": ("adapter_config.json", folders.run, lambda path: runs.open_run(str(path.parent)).base_name,
                MismatchError),
    "prompt": ("prompt.json", folders.run, lambda path: runs.Run("", path.parent, {}).prompt(), MismatchError),
    "checkpoint": ("manifest.json", folders.checkpoints, lambda path: checkpoint.read(path.parent), MismatchError),
    "model": ("config.json", None, lambda path: models.read_config(models.Base("it", None, path.parent)),
              MismatchError),
}  # fmt: skip


def place(reader: str, folder: Path) -> Path:
    """The file that a reader reads, in a folder with all that belongs to it."""
    file, make, _, _ = READERS[reader]
    if make:
        return make(folder) / file
    folder.mkdir()
    return folder / file


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return {reader: place(reader, tmp_path_factory.mktemp("place") / "folder") for reader in READERS}


# What says nothing, and may.
ALLOWED = {
    ("configuration", "nothing"),
    ("configuration", "null"),
    ("questions", "nothing"),
    ("its tools", "a list"),
}


@pytest.mark.parametrize("what", NASTY)
@pytest.mark.parametrize("reader", READERS)
def test_nasty_texts(places, reader, what):
    path, (_, _, read, kind) = places[reader], READERS[reader]
    path.write_bytes(NASTY[what])
    if (reader, what) in ALLOWED:
        read(path)
        return
    with pytest.raises(kind) as caught:
        read(path)
    error = one_error(caught.value, path.parent.name if path.name == "manifest.json" else path.name, of=kind)
    assert "\x1b" not in printable(str(error))


@pytest.mark.parametrize("reader", sorted(READERS.keys() - {"questions"}))  # which may come from a pipe
@pytest.mark.parametrize("kind", ["pipe", "endless device", "folder"])
def test_what_is_no_file(tmp_path, reader, kind):
    """A pipe that nobody writes to, and a device that has no end: reading either would never come back."""
    _, _, read, expected = READERS[reader]
    path = place(reader, tmp_path / "folder")
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(expected) as caught:
        read(path)
    one_error(caught.value, tmp_path, of=expected)


@fuzz
@given(data=st.data())
def test_any_changed_text(data):
    """Refused, or read as something that is as sound as before."""
    reader = data.draw(st.sampled_from(sorted(READERS)))
    _, _, read, kind = READERS[reader]
    with tempfile.TemporaryDirectory() as folder:
        path = place(reader, Path(folder, "folder"))
        path.write_bytes(data.draw(altered(path.read_bytes() if path.exists() else SOUND[path.name])))
        try:
            read(path)
        except kind as error:
            one_error(error)


SOUND = {
    "rows.jsonl": json.dumps({"user": "a", "assistant": "get_steps"}).encode() + b"\n",
    "rows.json": json.dumps([{"user_query": "a", "function_call": {"name": "get_steps"}}]).encode(),
    "tools.json": json.dumps(TOOLS).encode(),
    "day.json": b'{"steps": 5, "heart_rate": [50, 90]}',
    "questions.jsonl": b'{"query": "a"}\n"b"\n',
    "config.yaml": b"model: offline\nseed: 7\ntarget_modules: [q_proj, v_proj]\nlearning_rate: 5e-5\n",
    "config.json": json.dumps({"model_type": "gemma3_text", "hidden_size": 32, "layer_types": ["full_attention"],
                               "num_hidden_layers": 1}).encode(),
}  # fmt: skip


def test_a_line_that_never_ends_takes_no_more_than_its_limit(tmp_path, monkeypatch):
    """The limits are lowered, so that the test need not write gigabytes: four lines of twenty megabytes."""
    from fitcoach_tune.dataset import containers
    from fitcoach_tune.inference import batch

    monkeypatch.setattr(containers, "_LONGEST_LINE", MEGABYTES // 20)
    monkeypatch.setattr(batch, "_LONGEST_LINE", MEGABYTES // 20)
    path = tmp_path / "rows.jsonl"
    with path.open("wb") as file:
        for _ in range(4):
            file.write(b'"' + b"x" * (2 * MEGABYTES) + b'"\n')
    for read in (rows, lines):
        tracemalloc.start()
        with pytest.raises(DataError) as caught:
            read(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MEGABYTES // 2
        error = one_error(caught.value, "a line has at most 500,000 bytes")
        assert error.what.startswith("4 ")


def test_what_a_terminal_would_obey_is_spelt_out(tmp_path):
    assert printable("\x1b[2J\x9b\x07 is \u00e4\n\tall\r") == "\\x1b[2J\\x9b\\x07 is \u00e4\n\tall\\r"
    path = tmp_path / "config.yaml"
    path.write_text('"\\e]0;owned\\a": 1\n')
    done = CliRunner().invoke(cli.app, ["prepare", "--config", str(path)])
    assert done.exit_code == 2
    assert "\\x1b]0;owned\\x07: no such setting" in done.stderr
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize("flag", ["--adapter", "--tools", "--input", "--fitness-data", "--config", "--model"])
@pytest.mark.parametrize("name", ["~nobody-of-this-name/x", "x" * 5000, "a/" * 3000, "\udcff"])
def test_names_that_no_file_can_have(flag, name):
    question = [] if flag == "--input" else ["hi"]
    more = ["--execute"] if flag == "--fitness-data" else []
    done = CliRunner().invoke(cli.app, ["infer", *question, *more, flag, name])
    assert isinstance(done.exception, SystemExit), repr(done.exception)
    assert done.exit_code in (2, 3, 4)
    assert done.stderr.count("error: ") == 1


LAUGHS = "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
YAML = {
    "a number of nothing": ("seed: !!int ''", "not readable as YAML"),
    "a time that is none": ("seed: !!timestamp soon", "not readable as YAML"),
    "a truth that is none": ("seed: !!bool perhaps", "not readable as YAML"),
    "a list for a mapping": ("!!map [1]", "not readable as YAML"),
    "a character that there is not": ('model: "\\UFFFFFFFF"', "not readable as YAML"),
    "an object": ("seed: !!python/object/apply:os.system [x]", "not readable as YAML"),
    "lists of lists of lists": (f"a: &a [x]\n{LAUGHS}model: *i\n", "aliases are not read"),
    "a list that holds itself": ("model: &a [*a]", "aliases are not read"),
    "a merged mapping": ("a: &a {b: 1}\n<<: [*a, *a]", "aliases are not read"),
    "half a surrogate pair": ('model: "\\ud800"', "--model|model: must be text without null characters"),
    "a null character": ('output_dir: "a\\0b"', "output_dir: must be text without null characters"),
    "a null character in a list": ('target_modules: ["a\\0b"]', "target_modules: must be text without null characters"),
    "a seed that no generator takes": (f"seed: {2**64}", "seed: must be at most 9223372036854775807"),
    "a million keys": ("".join(f"k{i}: 1\n" for i in range(200_000)), "a configuration has at most 1,048,576 bytes"),
    "a deep value": ("model: " + "[" * 200 + "]" * 200, "model: "),
}


@pytest.mark.parametrize(("text", "part"), YAML.values(), ids=YAML)
def test_yaml_that_was_found(tmp_path, text, part):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=part) as caught:
        config.load_config(str(path))
    one_error(caught.value, path, of=ConfigError)
