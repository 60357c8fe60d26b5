"""A prepared set published as a dataset, and read back."""

from __future__ import annotations

import json

import pytest

from fitcoach_tune import dataset, prepare
from fitcoach_tune.config import load_config
from fitcoach_tune.console import Console
from fitcoach_tune.dataset import Example
from fitcoach_tune.errors import DataError, MismatchError
from fitcoach_tune.functiongemma import Call
from fitcoach_tune.gold import Gold, GoldCall, gold_of
from fitcoach_tune.publish.rows import as_row, push_rows
from fitcoach_tune.publish.upload import Uploader
from tests.conftest import SLEEP, STEPS, conversation, tool
from tests.hub.cards import problems

REPO = "coaches/rows"
FILES = {".gitattributes", "README.md", "data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"}
ALARM = tool("set_alarm", at={"type": "string"}, labels={"type": "array", "items": {"type": "string"}})


@pytest.fixture
def prepared(tiny_base, rows_file, tmp_path):
    settings = {"model": str(tiny_base), "dataset": str(rows_file), "data": str(tmp_path / "set")}
    return prepare.prepare(load_config(None, settings))


def publish(prepared, **options):
    ui = Console(quiet=True)
    return push_rows(prepared, REPO, ui=ui, uploader=Uploader(ui), **options)


def test_the_rows_come_back_from_the_hub(hub, client, prepared, tmp_path):
    """Split by split, message by message, by `datasets` as `prepare` uses it."""
    done = publish(prepared, private=True)
    repository = hub.repositories["dataset", REPO]
    assert repository.private
    assert set(repository.head.files) == FILES
    assert done.url == f"{hub.address}/datasets/{REPO}/commit/{repository.head.oid}"
    for split in ("train", "test"):
        file = tmp_path / f"{split}.parquet"
        file.write_bytes(repository.head.files[f"data/{split}-00000-of-00001.parquet"])
        found, _ = dataset.read_examples(str(file))
        part = getattr(prepared, split)
        assert [e.messages for e in found] == [part.example(i).messages for i in range(len(part))]
        assert all(e.tools == prepared.toolsets[0] for e in found)
    assert publish(prepared).unchanged


def test_the_datasets_card(hub, client, prepared, tmp_path):
    publish(prepared)
    card = hub.repositories["dataset", REPO].head.files["README.md"].decode()
    assert problems(card, "dataset") == []
    rows = prepared.manifest["rows"]
    assert f"`train` has {rows['train']} rows, `test` {rows['test']} that are held out." in card
    assert "| `get_sleep` | Does get_sleep. |" in card
    assert "`rows.jsonl` (SHA-256 `" in card
    assert str(tmp_path) not in card
    assert "acceptable_answers" not in card
    assert "size_categories:\n- n<1K\n" in card
    assert f"fitcoach-tune prepare --dataset {REPO}" in card


def test_without_held_out_rows_an_older_file_of_them_goes(hub, client, tiny_base, tmp_path):
    rows = tmp_path / "one.jsonl"
    rows.write_text(json.dumps({"messages": conversation("steps?", ("get_steps", {})), "tools": [STEPS]}) + "\n")
    settings = {"model": str(tiny_base), "dataset": str(rows), "data": str(tmp_path / "set")}
    prepared = prepare.prepare(load_config(None, settings))
    assert prepared.manifest["rows"]["test"] == 0
    old = {"README.md": b"---\ntags:\n- fitcoach-tune\n---\n", "data/test-00000-of-00001.parquet": b"old"}
    repository = hub.add("dataset", REPO, old)
    publish(prepared)
    assert set(repository.head.files) == FILES - {"data/test-00000-of-00001.parquet"}


def test_somebody_elses_dataset_is_left_alone(hub, client, prepared):
    repository = hub.add("dataset", REPO, {"train.csv": b"a,b\n", "README.md": b"---\ntags:\n- theirs\n---\n"})
    with pytest.raises(MismatchError, match="that this program did not make"):
        publish(prepared)
    assert len(repository.history()) == 2


def test_a_name_that_cannot_be_one_is_refused_before_anything_is_read(program, hub):
    done = program("prepare", "--dataset", "nowhere.jsonl", "--push-to-hub", "rows")
    assert done.returncode == 2
    assert "--push-to-hub rows: not a valid Hub id" in done.stderr
    assert hub.asked == []


# ------------------------------------------------------------------------------------------------ one row


EXAMPLES = [
    Example(conversation("steps?", ("get_steps", {})), [STEPS, SLEEP], "a"),
    Example(conversation("hi", text="Grüß dich, „du“!"), [STEPS], "b"),
    Example(conversation("both", ("get_steps", {}), ("get_sleep", {"days": 3})), [STEPS, SLEEP], "c"),
    Example(conversation("wake me", ("set_alarm", {"at": "7:00", "labels": ["a|b", ""]})), [ALARM], "d"),
    Example(
        conversation("rest", ("get_sleep", {"days": 1})), [STEPS, SLEEP], "e",
        gold_of([Call("get_sleep", {"days": 1})], [STEPS, SLEEP], [[Call("get_sleep", {"days": 2})], []]),
    ),
    Example(
        [
            *conversation("steps?", ("get_steps", {})),
            {"role": "tool", "name": "get_steps", "content": {"value": 3}},
            {"role": "assistant", "content": "Three."},
        ],
        [STEPS], "f",
    ),
]  # fmt: skip


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.origin)
def test_a_row_is_read_back_as_it_was(example, tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist([as_row(example)]), tmp_path / "row.parquet")
    (found,), _ = dataset.read_examples(str(tmp_path / "row.parquet"))
    assert found.messages == example.messages
    assert found.tools == example.tools
    assert found.acceptable == example.acceptable


@pytest.mark.parametrize("gold", [
    Gold(((GoldCall("get_sleep", {"days": (1, 2)}),),)),
    Gold(((GoldCall("get_sleep", {"days": (1,)}),),), "bfcl"),
])  # fmt: skip
def test_a_row_that_cannot_be_said_so_is_refused(gold):
    example = Example(conversation("rest", ("get_sleep", {"days": 1})), [SLEEP], "rows.json[3]", gold)
    with pytest.raises(DataError, match="cannot be stated as further answers"):
        as_row(example)
