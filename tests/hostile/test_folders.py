"""Prepared sets, runs and checkpoints that somebody has tampered with: what is listed, linked, or simply not so."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitcoach_tune import models, prepare, prepared_set, push, runs
from fitcoach_tune.config import Config
from fitcoach_tune.console import SILENT
from fitcoach_tune.errors import AccessError, ConfigError, MismatchError
from fitcoach_tune.evaluate.sources import read_rows
from fitcoach_tune.train import with_data_settings
from fitcoach_tune.training import checkpoint, resume
from tests.hostile import folders
from tests.hostile.material import altered, fuzz, json_values, nearly, one_error


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """As much of a base model as is looked at before it is loaded."""
    folder = tmp_path_factory.mktemp("base")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "config.json").write_text('{"model_type": "gemma3_text", "vocab_size": 262144}')
    return models.Base("owner/base", "abc", folder)


@contextlib.contextmanager
def made(make):
    with tempfile.TemporaryDirectory() as scratch:
        yield make(Path(scratch, "folder"))


# Each uses a folder as the verbs do; it raises, or every part of it is what it says.


def use_set(folder: Path, base: models.Base) -> None:
    prepared = prepared_set.open_set(folder)
    assert isinstance(prepared.chat_template, str)
    prepared.common_prompt()
    for part in (prepared.train, prepared.test):
        for i in range(len(part)):
            assert all(0 < start < end <= len(part[i].input_ids) for start, end in part[i].spans)
            assert len(part[i].supervised)
            part.example(i)
    if len(prepared.train):
        assert len(prepared.prefix) < min(row.spans[0][0] for row in prepared.train)
    with_data_settings(Config(), prepared)
    prepare.is_current(prepared, Config(dataset="builtin:fitness"))
    prepared_set.check_base(prepared, base)


def use_run(folder: Path, base: models.Base) -> None:
    run = runs.open_run(str(folder))
    assert run.dtype in ("bf16", "fp32")
    assert all(isinstance(part, str | None) for part in run.base_name)
    assert run.sha256
    assert run.prompt()["tools"] is not None
    for ending in (
        lambda: runs.check_base(run, base),
        lambda: read_rows(run, None, None, SILENT),
        lambda: _plan(folder),
    ):
        with contextlib.suppress(MismatchError):  # such as: there is no such set
            ending()


def _plan(folder: Path) -> None:
    with push.planned(str(folder), push.Options("owner/name", allow_unevaluated=True)) as plan:
        assert "../" not in "".join(file.path for file in plan.files)


def use_checkpoint(folder: Path, base: models.Base) -> None:
    found = checkpoint.read(folder)
    assert found.snapshot.step == found.state["step"]
    now = {"data": {}, "base": {}, "config": {}, "device": {"count": 2, "name": "cpu"}, "versions": {}, "batch_size": 4}
    with contextlib.suppress(MismatchError, ConfigError):
        shared = resume.share_batch(Config(), 2, found.state["run"])
        assert shared.gradient_accumulation_steps > 0
        resume.check(found, now)


USED = {
    "set": (folders.prepared, use_set),
    "run": (folders.run, use_run),
    "checkpoint": (folders.checkpoints, use_checkpoint),
}


def refuses_or_uses(kind: str, folder: Path, base: models.Base) -> None:
    try:
        USED[kind][1](folder, base)
    except (MismatchError, AccessError, ConfigError) as error:
        one_error(error, folder.parent.name if kind != "run" else "")


@pytest.mark.parametrize("kind", USED)
def test_they_are_sound_before_they_are_tampered_with(tmp_path, base, kind):
    make, use = USED[kind]
    use(make(tmp_path / "folder"), base)


# What is in them -----------------------------------------------------------------------------------------------------

PARTS = [
    ("set", "manifest.json"),
    ("set", "toolsets.json"),
    ("run", "run.json"),
    ("run", "prompt.json"),
    ("run", "adapter_config.json"),
    ("checkpoint", "manifest.json"),
    ("checkpoint", "state.json"),
    ("checkpoint", "metrics.jsonl"),
]


@fuzz
@given(data=st.data())
def test_any_value_in_any_of_their_files(base, data):
    """The hashes agree: whoever changed it, changed the manifest, too."""
    kind, name = data.draw(st.sampled_from(PARTS))
    with made(USED[kind][0]) as folder:
        lines = (folder / name).read_text().splitlines() if name.endswith("l") else [(folder / name).read_text()]
        at = data.draw(st.integers(0, len(lines) - 1))
        lines[at] = json.dumps(data.draw(nearly(json.loads(lines[at]))))
        text = "".join(line + "\n" for line in lines).encode()
        if name in ("manifest.json", "run.json"):
            (folder / name).write_bytes(text)
        else:
            folders.forge(folder, name, text)
        refuses_or_uses(kind, folder, base)


@pytest.mark.parametrize(("kind", "name", "path", "value", "part"), [
    ("set", "manifest.json", ("files",), [], "files: must be an object, not a list"),
    ("set", "manifest.json", ("files",), {}, "it does not list chat_template.jinja"),
    ("set", "manifest.json", ("prefix", "tokens"), -1, "rows do not share their first -1 tokens"),
    ("set", "manifest.json", ("prefix", "tokens"), 4, "rows do not share their first 4 tokens"),
    ("set", "manifest.json", ("prefix", "tokens"), True, "prefix.tokens: must be a whole number"),
    ("set", "manifest.json", ("settings", "max_length"), "long", "settings.max_length: must be a whole number"),
    ("set", "manifest.json", ("developer",), {}, "developer: must be text"),
    ("set", "toolsets.json", (0, 0), "x", "not valid JSON at column 1"),
    ("run", "run.json", ("files",), ["run.json"], "files: must be an object, not a list"),
    ("run", "run.json", ("base",), "owner/base", "base: must be an object, not text"),
    ("run", "run.json", ("base",), {}, "base: has no name"),
    ("run", "run.json", ("config",), [1], "config: must be an object"),
    ("run", "run.json", ("config", "dtype"), "int4", "config.dtype is 'int4'"),
    ("run", "run.json", ("data", "source"), None, "data.source: must be an object, not null"),
    ("run", "prompt.json", ("tools",), {}, "tools: must be a list"),
    ("run", "prompt.json", ("tools", 0, "function", "name"), "a b", "not a function name"),
    ("run", "prompt.json", ("tools", 0, "function", "description"), "<end_of_turn>", "control token"),
    ("run", "prompt.json", ("developer",), ["x"], "developer: must be text"),
    ("checkpoint", "state.json", ("run", "device", "first"), 0, "how its batch was shared"),
    ("checkpoint", "state.json", ("run", "device"), {}, "run.device: has no first"),
    ("checkpoint", "metrics.jsonl", ("loss",), "low", "loss: must be a number, not text"),
])  # fmt: skip
def test_values_that_were_found(tmp_path, base, kind, name, path, value, part):
    folder = USED[kind][0](tmp_path / "folder")
    lines = (folder / name).read_text().splitlines() if name.endswith("l") else [(folder / name).read_text()]
    changed = json.loads(lines[0])
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    text = "".join(line + "\n" for line in [json.dumps(changed), *lines[1:]]).encode()
    if name in ("manifest.json", "run.json"):
        (folder / name).write_bytes(text)
    else:
        folders.forge(folder, name, text)
    with pytest.raises(MismatchError) as caught:
        USED[kind][1](folder, base)
    one_error(caught.value, part, tmp_path.name)


def test_a_run_json_that_says_too_little_for_a_card(tmp_path):
    folder = folders.run(tmp_path / "folder")
    record = json.loads((folder / "run.json").read_text())
    del record["training"]["eval_losses"]
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(MismatchError) as caught:
        _plan(folder)
    one_error(caught.value, "does not say what a model card needs: KeyError('eval_losses')")


# What they list, and what lies there ----------------------------------------------------------------------------------

ESCAPES = ["../secret", "/etc/passwd", "..", ".", "", "sub/train.arrow", "../folder/train.arrow", "a\0b"]
LISTS = {"set": "manifest.json", "run": "run.json", "checkpoint": "manifest.json"}
FILES = [
    *(("set", name) for name in ("manifest.json", "train.arrow", "toolsets.json", "chat_template.jinja")),
    *(("run", name) for name in ("run.json", "prompt.json", "adapter_config.json", "adapter_model.safetensors",
                                 "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")),
    *(("checkpoint", name) for name in ("manifest.json", "state.json", "metrics.jsonl", "adapter_model.safetensors",
                                        "optimizer.safetensors")),
]  # fmt: skip


@pytest.mark.parametrize("name", ESCAPES)
@pytest.mark.parametrize("kind", USED)
def test_a_list_that_leads_out_of_its_folder(tmp_path, base, kind, name):
    (tmp_path / "secret").write_text("not yours")
    folder = USED[kind][0](tmp_path / "folder")
    listed = json.loads((folder / LISTS[kind]).read_text())
    listed["files"][name] = {"bytes": 9, "sha256": "0"} if kind == "checkpoint" else "0"
    (folder / LISTS[kind]).write_text(json.dumps(listed))
    with pytest.raises(MismatchError) as caught:
        USED[kind][1](folder, base)
    one_error(caught.value, f"it lists {name!r}, which leads out of its folder", folder)


@pytest.mark.parametrize(("kind", "name"), FILES)
def test_a_link_out_of_its_folder(tmp_path, base, kind, name):
    """What it leads to is the very file, so that only where it is can be what is wrong."""
    folder = USED[kind][0](tmp_path / "folder")
    shutil.move(folder / name, tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(MismatchError) as caught:
        USED[kind][1](folder, base)
    one_error(caught.value, f"{name} is a link out of its folder", folder)


@pytest.mark.parametrize(("target", "part"), [("prompt.json", "cannot be read"), ("/nowhere", "")])
def test_links_in_a_circle_and_to_nothing(tmp_path, base, target, part):
    folder = folders.run(tmp_path / "folder")
    (folder / "adapter_config.json").unlink()
    (folder / "adapter_config.json").symlink_to(target if part == "" else "adapter_config.json")
    with pytest.raises(MismatchError) as caught:
        use_run(folder, base)
    one_error(caught.value, folder)


def test_links_inside_a_folder_and_in_the_cache_of_the_hub(tmp_path, base):
    folder = folders.run(tmp_path / "folder")
    shutil.move(folder / "prompt.json", folder / "other.json")
    (folder / "prompt.json").symlink_to("other.json")
    use_run(folder, base)
    # models--owner--name/snapshots/COMMIT/FILE -> ../../blobs/HASH
    blobs = tmp_path / "models--owner--name/blobs"
    snapshot = folders.run(tmp_path / "models--owner--name/snapshots/abc")
    blobs.mkdir()
    for i, file in enumerate(sorted(snapshot.iterdir())):
        shutil.move(file, blobs / str(i))
        file.symlink_to(f"../../blobs/{i}")
    use_run(snapshot, base)
    (snapshot / "prompt.json").unlink()
    (snapshot / "prompt.json").symlink_to("../../../folder/other.json")
    with pytest.raises(MismatchError, match=r"prompt\.json is a link out of its folder"):
        use_run(snapshot, base)


def test_a_file_of_a_terabyte_is_refused_before_it_is_read(tmp_path, base):
    """It has holes for bytes: on the disk there is nothing of it."""
    for kind, name in (("run", "adapter_model.safetensors"), ("run", "run.json"), ("set", "train.arrow"),
                       ("set", "manifest.json"), ("checkpoint", "optimizer.safetensors")):  # fmt: skip
        folder = USED[kind][0](tmp_path / name / "folder")
        with (folder / name).open("r+b") as file:
            file.truncate(1 << 40)
        with pytest.raises(MismatchError) as caught:
            USED[kind][1](folder, base)
        one_error(caught.value, f"{name} has 1,099,511,627,776 bytes")


# Arrow ---------------------------------------------------------------------------------------------------------------


def rewrite(folder: Path, **columns) -> None:
    """Put other columns into the training rows."""
    with pa.memory_map(str(folder / "train.arrow")) as source:
        table = pa.ipc.open_file(source).read_all()
    for name, values in columns.items():
        field = table.schema.field(name)
        at = table.schema.names.index(name)
        table = table.set_column(at, field, pa.array(values, field.type))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    folders.forge(folder, "train.arrow", sink.getvalue().to_pybytes())


ROW_PARTS = {
    "spans before": {"span_starts": [[0], [3], [3]]},
    "spans behind": {"span_ends": [[5], [6], [5]]},
    "spans without end": {"span_ends": [[5], [], [5]]},
    "spans backwards": {"span_starts": [[4], [3], [3]], "span_ends": [[4], [5], [5]]},
    "spans over each other": {"span_starts": [[3, 3], [3], [3]], "span_ends": [[5, 5], [5], [5]]},
    "no spans": {"span_starts": [[], [3], [3]], "span_ends": [[], [5], [5]]},
    "negative tokens": {"input_ids": [[2, 105, 9, -1, 106], [2, 105, 9, 8, 106], [2, 105, 9, 8, 106]]},
    "tokens that no model has": {"input_ids": [[2, 105, 9, 2**31 - 1, 106], [2, 105, 9, 8, 106], [2, 105, 9, 8, 106]]},
    "tools that are not there": {"toolset": [0, 1, 0]},
    "tools before the first": {"toolset": [0, -1, 0]},
    "no tools": {"toolset": [0, None, 0]},
    "no tokens": {"input_ids": [None, [2, 105, 9, 8, 106], [2, 105, 9, 8, 106]]},
    "no messages": {"messages": ["[]"] * 3},
    "messages that are none": {"messages": ['[{"role": "admin"}]'] * 3},
    "messages that are no JSON": {"messages": ["[" * 10_000] * 3},
    "nothing acceptable": {"acceptable": ['{"answers": [], "strings": "exact"}'] * 3},
    "acceptable in no known way": {"acceptable": ['{"answers": [[]], "strings": "loose"}'] * 3},
    "no accepted value": {"acceptable": ['{"answers": [[{"name": "f", "arguments": {"a": []}, "optional": [], '
                                         '"unsaid": []}]], "strings": "exact"}'] * 3},
}  # fmt: skip


@pytest.mark.parametrize("columns", ROW_PARTS.values(), ids=ROW_PARTS)
def test_rows_that_cannot_be(tmp_path, base, columns):
    folder = folders.prepared(tmp_path / "folder")
    rewrite(folder, **columns)
    with pytest.raises(MismatchError) as caught:
        use_set(folder, base)
    one_error(caught.value, folder)


def test_other_columns_are_no_rows(tmp_path, base):
    folder = folders.prepared(tmp_path / "folder")
    sink = pa.BufferOutputStream()
    table = pa.table({"input_ids": ["not tokens"]})
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    folders.forge(folder, "train.arrow", sink.getvalue().to_pybytes())
    with pytest.raises(MismatchError, match="it has other columns"):
        use_set(folder, base)


spans = st.lists(st.lists(st.integers(-2, 8), max_size=3), min_size=3, max_size=3)


@fuzz
@given(data=st.data())
def test_any_rows(base, data):
    with made(folders.prepared) as folder:
        if data.draw(st.booleans()):
            starts, ends = data.draw(spans), data.draw(spans)
            tokens = st.lists(st.integers(-1, 9), max_size=8)
            ids = data.draw(st.lists(tokens, min_size=3, max_size=3))
            rewrite(folder, span_starts=starts, span_ends=ends, input_ids=ids)
        else:
            messages = [json.dumps(data.draw(nearly([{"role": "user", "content": "a"}])))] * 3
            gold = {"answers": [[{"name": "f", "arguments": {"a": [1]}, "optional": ["a"], "unsaid": []}]]}
            accepted = json.dumps(data.draw(nearly(gold | {"strings": "exact"}, json_values)))
            rewrite(folder, messages=messages, acceptable=[accepted] * 3)
        refuses_or_uses("set", folder, base)


@fuzz
@given(data=st.data())
def test_any_changed_bytes_of_arrow(base, data):
    """Also such as make an offset point out of the file: it is found before it is followed."""
    with made(folders.prepared) as folder:
        folders.forge(folder, "train.arrow", data.draw(altered((folder / "train.arrow").read_bytes())))
        refuses_or_uses("set", folder, base)
