"""What is trained, token by token; what is refused; what the manifest promises."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from fitcoach_tune import functiongemma, models, prepare, prepared_rows, prepared_set, rendering
from fitcoach_tune.config import Config
from fitcoach_tune.dataset import Example
from fitcoach_tune.errors import DataError, MismatchError, OutputError
from fitcoach_tune.functiongemma import Call
from fitcoach_tune.gold import gold_of
from fitcoach_tune.training.batches import TokenizedRow

from .conftest import SLEEP, STEPS, conversation

TOOLS = [STEPS, SLEEP]


def supervised_text(tokenizer, row):
    return [tokenizer.decode(row.input_ids[start:end].tolist(), skip_special_tokens=False) for start, end in row.spans]


def one(tokenizer, messages, tools=TOOLS):
    (row,) = rendering.tokenize([Example(messages, tools, "rows.jsonl:1")], tokenizer)
    return row


def multi_turn():
    call = conversation("how did I sleep", ("get_sleep", {"days": 2}))
    return [
        *call,
        {"role": "tool", "name": "get_sleep", "content": {"minutes": 400}},
        {"role": "assistant", "content": "You slept 400 minutes."},
        {"role": "user", "content": "and steps?"},
        conversation("", ("get_steps", {}))[-1],
    ]


@pytest.mark.parametrize(("messages", "expected"), [
    (conversation("walk", ("get_steps", {})),
     ["<start_function_call>call:get_steps{}<end_function_call><start_function_response>"]),
    (conversation("both", ("get_steps", {}), ("get_sleep", {"days": 3})),
     ["<start_function_call>call:get_steps{}<end_function_call>"
      "<start_function_call>call:get_sleep{days:3}<end_function_call><start_function_response>"]),
    (conversation("hi", text="Hello, how can I help?"), ["Hello, how can I help?<end_of_turn>"]),
    (multi_turn(),
     ["<start_function_call>call:get_sleep{days:2}<end_function_call><start_function_response>",
      "You slept 400 minutes.<end_of_turn>",
      "<start_function_call>call:get_steps{}<end_function_call><start_function_response>"]),
])  # fmt: skip
def test_trains_what_the_model_says_and_nothing_else(tokenizer, messages, expected):
    row = one(tokenizer, messages)
    assert supervised_text(tokenizer, row) == expected
    stops = {functiongemma.CONTROL_TOKENS[t] for t in functiongemma.STOP_TOKENS}
    assert all(row.input_ids[end - 1] in stops for _, end in row.spans)
    whole = tokenizer.decode(row.input_ids.tolist(), skip_special_tokens=False)
    assert whole == functiongemma.render(messages, TOOLS)


def test_the_exact_tokens_of_a_call(tokenizer):
    row = one(tokenizer, conversation("walk", ("get_steps", {})))
    (start, end), ids = row.spans[0], row.input_ids
    assert ids[0] == 2
    assert ids[start - 2 : start].tolist() == tokenizer.convert_tokens_to_ids(["model", "\n"])
    assert ids[start] == 48
    assert ids[end - 2 : end].tolist() == [49, 50]
    assert end == len(ids)


def test_the_prompt_is_what_inference_asks(tokenizer):
    """Generation continues from exactly the tokens that training saw before the answer."""
    messages = multi_turn()
    row = one(tokenizer, messages)
    for (start, _), index in zip(row.spans, (2, 4, 6), strict=True):
        asked = functiongemma.render(messages[:index], TOOLS, add_generation_prompt=True)
        assert tokenizer(asked, add_special_tokens=False)["input_ids"] == row.input_ids[:start].tolist()


def test_uses_the_template_that_the_model_ships(tokenizer):
    """A base with another template of its own is rendered with that one, not with the project's."""
    import copy

    other = copy.deepcopy(tokenizer)
    other.chat_template = functiongemma.chat_template() + "{# another version #}"
    messages = conversation("walk", ("get_sleep", {"days": 3}))
    assert rendering.uses_project_template(other) is False
    assert np.array_equal(one(other, messages).input_ids, one(tokenizer, messages).input_ids)
    other.chat_template = "hello" + functiongemma.chat_template()
    assert not np.array_equal(one(other, messages).input_ids, one(tokenizer, messages).input_ids)


def test_a_template_that_does_not_extend_its_prompt_is_refused(tokenizer):
    import copy

    other = copy.deepcopy(tokenizer)
    other.chat_template = "{{ messages | length }}" + functiongemma.chat_template()
    with pytest.raises(DataError, match=r"as a continuation"):
        one(other, conversation("walk", ("get_steps", {})))


def row_of(ids, *spans):
    return TokenizedRow(np.array(ids, dtype=np.int32), spans)


@pytest.mark.parametrize(("rows", "expected"), [
    ([row_of([2, 5, 6, 7, 8], (3, 5)), row_of([2, 5, 6, 9, 8], (3, 5))], 2),  # a prompt token is left to each
    ([row_of([2, 5, 6, 7, 8], (4, 5)), row_of([2, 5, 9, 7, 8], (4, 5))], 2),
    ([row_of([2, 5, 6, 7], (3, 4))], 2),
    ([row_of([2, 5, 6], (1, 3)), row_of([2, 5, 6], (1, 3))], 0),
    ([row_of([2, 3], (1, 2)), row_of([9, 3], (1, 2))], 0),
])  # fmt: skip
def test_common_prefix(rows, expected):
    assert prepared_rows.common_prefix(rows) == expected


@pytest.fixture
def base_config(tiny_base, rows_file, tmp_path):
    return Config(model=str(tiny_base), dataset=str(rows_file), data=str(tmp_path / "set"))


def test_the_set_reads_back(base_config, tokenizer):
    prepared = prepare.prepare(base_config)
    assert len(prepared.train) + len(prepared.test) == 20
    assert len(prepared.test) == 6
    origins = [rows.example(i).origin for rows in (prepared.train, prepared.test) for i in range(len(rows))]
    assert sorted(origins) == sorted(f"rows.jsonl:{n}" for n in range(1, 21))
    for rows in (prepared.train, prepared.test):
        for i in range(len(rows)):
            again = one(tokenizer, rows.example(i).messages, rows.example(i).tools)
            assert np.array_equal(rows[i].input_ids, again.input_ids)
            assert rows[i].spans == again.spans
            assert np.array_equal(rows[i].input_ids[: len(prepared.prefix)], prepared.prefix)
    shared = tokenizer.decode(prepared.prefix.tolist())
    assert shared.endswith("<start_of_turn>user\n")
    assert prepared.common_prompt()["developer"] == functiongemma.TRIGGER
    assert [t["function"]["name"] for t in prepared.common_prompt()["tools"]] == ["get_steps", "get_sleep"]


def test_the_set_keeps_what_is_acceptable(base_config, rows_file):
    lines = [json.loads(line) for line in rows_file.read_text().splitlines()]
    for line in lines[::2]:
        line["acceptable_answers"] = [{"name": "get_sleep", "arguments": {"days": 1}}, "Which days – all?"]
    rows_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    prepared = prepare.prepare(base_config)
    further = gold_of([Call("get_steps", {})], TOOLS, [[Call("get_sleep", {"days": 1})], []])
    for rows in (prepared.train, prepared.test):
        for i in range(len(rows)):
            example = rows.example(i)
            assert example.acceptable == (further if int(example.origin.split(":")[1]) % 2 else None)


def test_a_set_of_the_format_without_it_is_refused(base_config):
    """Version 1 had no column for it."""
    prepared = prepare.prepare(base_config)
    assert prepared.manifest["format"] == 2
    manifest = prepared.path / prepared_set.MANIFEST
    manifest.write_text(json.dumps(prepared.manifest | {"format": 1}))
    with pytest.raises(MismatchError, match=r"not a prepared set of this version(.|\n)*run prepare again"):
        prepared_set.open_set(prepared.path)


def test_rows_of_the_berkeley_leaderboard_are_prepared(base_config, tmp_path):
    """And the set is stale when the file with their answers changes."""
    names = ["get_steps", "get_sleep"]
    rows = [{"id": f"simple_{i}", "question": [[{"role": "user", "content": f"Question {i * 7}?"}]],
             "function": [tool["function"] for tool in TOOLS]} for i in range(8)]  # fmt: skip
    values = [{"get_steps": {}}, {"get_sleep": {"days": [3, 4]}}]
    answers = tmp_path / "possible_answer" / "bench.json"
    answers.parent.mkdir()
    answers.write_text("\n".join(json.dumps({"id": f"simple_{i}", "ground_truth": [values[i % 2]]}) for i in range(8)))
    path = tmp_path / "bench.json"
    path.write_text("\n".join(map(json.dumps, rows)))
    config = base_config.model_copy(update={"dataset": str(path)})
    prepared = prepare.prepare(config)
    examples = [rows.example(i) for rows in (prepared.train, prepared.test) for i in range(len(rows))]
    assert len(examples) == 8
    for example in examples:
        number = int(example.origin.split(":")[1]) - 1
        [call] = example.acceptable.answers[0]
        assert (call.name, example.acceptable.strings) == (names[number % 2], "bfcl")
        assert call.arguments == ({"days": (3, 4)} if number % 2 else {})
        assert example.gold == [call.call]
    assert prepare.is_current(prepared, config)
    answers.write_text(answers.read_text() + "\n")
    assert not prepare.is_current(prepared, config)


def test_the_same_settings_give_the_same_bytes(base_config, tmp_path):
    first, second = (prepare.prepare(base_config, target=tmp_path / name) for name in "ab")
    assert first.manifest == second.manifest
    other = prepare.prepare(base_config.model_copy(update={"seed": 1}), target=tmp_path / "c")
    assert other.manifest["data_sha256"] != first.manifest["data_sha256"]


@pytest.mark.parametrize("name", ["train.arrow", "toolsets.json", "chat_template.jinja"])
def test_a_changed_file_is_refused(base_config, name):
    prepared = prepare.prepare(base_config)
    file = prepared.path / name
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(MismatchError, match=f"{name} has changed"):
        prepared_set.open_set(prepared.path)
    file.unlink()
    with pytest.raises(MismatchError, match=f"{name} is missing"):
        prepared_set.open_set(prepared.path)


def test_another_tokenizer_is_refused(base_config, tiny_base, tmp_path):
    prepared = prepare.prepare(base_config)
    other = tmp_path / "other"
    other.mkdir()
    text = (tiny_base / "tokenizer.json").read_text(encoding="utf-8")
    (other / "tokenizer.json").write_text(text.replace("<unused50>", "<unused50x>"), encoding="utf-8")
    with pytest.raises(MismatchError, match="prepared with the tokenizer of"):
        prepared_set.check_base(prepared, models.Base("other", None, other))


def test_a_folder_that_is_no_set_is_left_alone(base_config, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="not a prepared set"):
        prepare.prepare(base_config)
    assert (tmp_path / "set" / "thesis.txt").read_text() == "mine"


def test_a_failed_prepare_keeps_the_older_set(base_config, rows_file):
    before = prepare.prepare(base_config).manifest
    rows_file.write_text(rows_file.read_text() + "{broken\n")
    with pytest.raises(DataError, match=re.escape("rows.jsonl:21")):
        prepare.prepare(base_config)
    assert prepared_set.open_set(Path(base_config.data)).manifest == before
    assert [p.name for p in Path(base_config.data).parent.iterdir()].count("set") == 1
    assert not list(Path(base_config.data).parent.glob("*.incomplete"))


@pytest.fixture
def long_rows(base_config, tmp_path):
    """Two short rows, a long call, a long answer in words, and a long second turn."""
    rows = [conversation(f"short {i}", ("get_sleep", {"days": i})) for i in range(2)]
    rows.append(conversation("word " * 300, ("get_steps", {})))
    rows.append(conversation("talk", text="word " * 300))
    result = {"role": "tool", "name": "get_sleep", "content": "5"}
    answer = {"role": "assistant", "content": "word " * 300}
    rows.append([*conversation("first", ("get_sleep", {"days": 1})), result, answer])
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps({"messages": m, "tools": TOOLS}) + "\n" for m in rows))
    return base_config.model_copy(update={"dataset": str(path), "max_length": 200, "split": "random"})


def test_long_rows_are_an_error_with_the_lengths(long_rows):
    with pytest.raises(
        DataError, match=r"3 of 5 rows are longer than 200 tokens \(p50 \d+, p95 \d+, max \d+\)"
    ) as caught:
        prepare.prepare(long_rows)
    assert "long.jsonl:3" in str(caught.value)
    assert "--excess-length" in str(caught.value)


def test_long_rows_dropped(long_rows):
    prepared = prepare.prepare(long_rows.model_copy(update={"excess_length": "drop"}))
    assert prepared.manifest["rows"]["dropped"] == 3
    assert prepared.manifest["tokens"]["max"] <= 200


def test_truncation_never_cuts_inside_an_answer(long_rows, tokenizer):
    prepared = prepare.prepare(long_rows.model_copy(update={"excess_length": "truncate"}))
    assert prepared.manifest["rows"] == {"read": 5, "dropped": 2, "train": 2, "test": 1}
    for rows in (prepared.train, prepared.test):
        for i in range(len(rows)):
            assert len(rows[i].input_ids) <= 200
            (text,) = supervised_text(tokenizer, rows[i])
            assert re.fullmatch(r"<start_function_call>call:get_sleep\{days:\d\}<end_function_call>.*", text)
            assert rows.example(i).gold[0].name == "get_sleep"  # what is asked in eval is what was kept


def test_truncation_drops_what_the_last_answer_may_be(long_rows, tmp_path):
    """A row that is cut ends in another answer than the one that its further answers belong to."""
    path = Path(long_rows.dataset)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line["acceptable_answers"] = ["get_steps"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    prepared = prepare.prepare(long_rows.model_copy(update={"excess_length": "truncate"}))
    examples = [rows.example(i) for rows in (prepared.train, prepared.test) for i in range(len(rows))]
    assert {example.origin: example.acceptable is not None for example in examples} == {
        "long.jsonl:1": True,
        "long.jsonl:2": True,
        "long.jsonl:5": False,
    }


def test_cut_keeps_an_example_that_is_whole():
    gold = gold_of([], TOOLS, [[Call("get_steps", {})]])
    example = Example(multi_turn(), TOOLS, "rows.jsonl:1", gold)
    assert prepared_rows.cut(example, 3) is example
    assert prepared_rows.cut(example, 2) == Example(multi_turn()[:5], TOOLS, "rows.jsonl:1", None)


@pytest.mark.parametrize("text", ["a <end_of_turn> b", "<start_function_call>call:x{}<end_function_call>", "<bos>"])
def test_control_tokens_in_text_are_refused(base_config, rows_file, text):
    rows_file.write_text(json.dumps({"messages": conversation(text, ("get_steps", {})), "tools": TOOLS}) + "\n")
    with pytest.raises(DataError, match=re.escape("rows.jsonl:1")) as caught:
        prepare.prepare(base_config)
    assert "control token" in str(caught.value)


def test_show_says_what_is_trained(base_config, run_cli, tiny_base, rows_file, tmp_path):
    done = run_cli(
        "prepare",
        "--dataset",
        rows_file,
        "--model",
        tiny_base,
        "--output-dir",
        tmp_path / "s",
        "--show",
        "2",
        check=True,
    )
    assert done.stdout.count("trained, the stop token included") == 2
    assert "tokens shared by all rows" in done.stdout
    assert done.stdout.rstrip().endswith(str(tmp_path / "s"))
    as_json = run_cli(
        "prepare",
        "--dataset",
        rows_file,
        "--model",
        tiny_base,
        "--output-dir",
        tmp_path / "s",
        "--json",
        "-q",
        check=True,
    )
    assert json.loads(as_json.stdout)["rows"] == {"read": 20, "dropped": 0, "train": 14, "test": 6}
    assert as_json.stderr == ""


def test_conflicting_answers_are_reported(base_config, rows_file, run_cli, tiny_base, tmp_path):
    extra = conversation("WALKING alpha count alphaalpha", ("get_sleep", {"days": 1}))
    rows_file.write_text(rows_file.read_text() + json.dumps({"messages": extra, "tools": TOOLS}) + "\n")
    done = run_cli("prepare", "--dataset", rows_file, "--model", tiny_base, "--output-dir", tmp_path / "s", check=True)
    assert "1 questions have several answers" in done.stderr
    assert "rows.jsonl:1, rows.jsonl:21" in done.stderr
