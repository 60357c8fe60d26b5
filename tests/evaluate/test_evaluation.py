"""The eval verb on a tiny model that has learnt its calls: counts, raw answers against plain transformers, refusals."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fitcoach_tune import cli, functiongemma, models, prepare, prepared_set, runs
from fitcoach_tune.config import load_config
from fitcoach_tune.evaluate import evaluation, report
from fitcoach_tune.evaluate.generate import STOP_IDS
from fitcoach_tune.infer import FunctionCaller
from fitcoach_tune.train import train
from tests.conftest import SLEEP, STEPS, conversation, tiny_gemma, tool

NEW = 16
SHORT = ["--device", "cpu", "--max-new-tokens", str(NEW)]
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]


def write_rows(path: Path, tools=(STEPS, SLEEP), last: str = "eight") -> None:
    """Steps for number words, sleep for letters, words for a greeting."""
    rows = [conversation(f"{w} {w}?", ("get_steps", {})) for w in [*WORDS[:-1], last]]
    rows += [conversation(f"bed {w}", ("get_sleep", {"days": 1 + i % 3})) for i, w in enumerate("abcdefgh")]
    rows += [conversation(f"hello {w}", text="Hello!") for w in "klmno"]
    path.write_text("".join(json.dumps({"messages": m, "tools": list(tools)}) + "\n" for m in rows))


def settings_of(folder: Path, **given):
    chosen = {
        "model": str(folder / "base"), "dataset": str(folder / "rows.jsonl"), "data": str(folder / "set"),
        "output_dir": str(folder / "run"), "dtype": "fp32", "device": "cpu", "optim": "adamw", "learning_rate": 1e-2,
        "lora_r": 16, "lora_dropout": 0.0, "target_modules": "all-linear", "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1, "num_train_epochs": 20, "max_new_tokens": NEW,
    }  # fmt: skip
    return load_config(None, chosen | given)


@pytest.fixture(scope="module")
def taught(tokenizer, offline_base, tmp_path_factory):
    """A run on a base whose answers' tokens have large embeddings, so that a few steps teach it to call."""
    folder = tmp_path_factory.mktemp("taught")
    answers = [conversation("", ("get_steps", {})), conversation("", text="Hello!")]
    answers += [conversation("", ("get_sleep", {"days": days})) for days in (1, 2, 3)]
    texts = [functiongemma.render(messages) for messages in answers]
    used = sorted({i for ids in tokenizer(texts, add_special_tokens=False)["input_ids"] for i in ids})
    model = tiny_gemma(vocab_size=262144, layers=2)
    weight = model.model.embed_tokens.weight.data
    large = 2 * weight[used]
    weight *= 0.3
    weight[used] = large
    model.save_pretrained(folder / "base")
    models.copy_tokenizer(offline_base.path, folder / "base", functiongemma.chat_template())
    write_rows(folder / "rows.jsonl")
    train(settings_of(folder))
    return folder


@pytest.fixture(scope="module")
def found(taught):
    """All rows, base beside tuned."""
    return evaluation.evaluate(str(taught / "run"), settings_of(taught), split="all")


@pytest.fixture
def program(taught, monkeypatch):
    def run(*arguments):
        monkeypatch.chdir(taught)
        return CliRunner().invoke(cli.app, ["eval", *map(str, arguments), *SHORT], env={"COLUMNS": "160"})

    return run


@pytest.fixture
def altered(taught, tmp_path):
    """A place for another set, and a way to prepare it there."""

    def make(**given):
        config = settings_of(taught, data=str(tmp_path / "other"), **given)
        return prepare.prepare(config).path

    return make


def refused(done, code: int) -> str:
    """The one clear error that a command ended in."""
    assert done.exit_code == code, (done.stderr, done.exception)
    assert done.stdout == ""
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr
    return done.stderr


# ------------------------------------------------------------------------------------------------ what is counted


def test_json(program, taught):
    done = program("--adapter", "run", "--json")
    assert done.exit_code == 0, done.stderr
    printed = json.loads(done.stdout)
    held_out = json.loads((taught / "set" / prepared_set.MANIFEST).read_text())["rows"]["test"]
    assert printed["n"] == held_out > 0
    assert printed["split"] == "test"
    assert [result["name"] for result in printed["results"]] == ["base", "tuned"]
    for result in printed["results"]:
        assert result["exact"]["n"] == held_out
        assert result["exact"]["right"] == held_out - sum(result["errors"].values())
    tuned = printed["results"][-1]
    assert len(printed["mistakes"]) == sum(tuned["errors"].values())
    assert Counter(m["error"] for m in printed["mistakes"]) == tuned["errors"]


def test_training_shows(found):
    """The base only prints newlines, which is no answer to a greeting; the tuned model knows which tool is meant."""
    base, tuned = found.results
    assert base.errors == {"no_call": 16, "no_answer": 5}
    assert base.exact.right == 0
    names = [[call.name for call in verdict.calls] for verdict in tuned.verdicts]
    right = [got == [call.name for call in q.gold] for got, q in zip(names, found.questions, strict=True)]
    assert sum(right) >= 14
    assert any(verdict.right and q.gold for verdict, q in zip(tuned.verdicts, found.questions, strict=True))


def test_every_answer_is_that_of_plain_transformers(found, taught):
    """Token for token: the base by transformers alone, the tuned model by transformers and PEFT."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(taught / "run")
    model = AutoModelForCausalLM.from_pretrained(taught / "base", dtype=torch.float32)
    for result in found.results:
        if result.name == "tuned":
            model = PeftModel.from_pretrained(model, taught / "run")
        expected = []
        for question in found.questions:
            ids = torch.tensor([question.prompt])
            made = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False,
                eos_token_id=sorted(STOP_IDS), pad_token_id=0,
            )  # fmt: skip
            expected.append(made[0, ids.shape[1] :].tolist())
        encoded = [tokenizer(raw, add_special_tokens=False)["input_ids"] for raw in result.raw]
        decoded = [tokenizer.decode(ids, skip_special_tokens=False) for ids in expected]
        assert result.raw == decoded
        # A text may be spelt with other tokens; what was trained here is spelt with its own.
        assert result.name == "base" or sum(e == x for e, x in zip(encoded, expected, strict=True)) >= 14
        assert result.unstopped == sum(ids[-1] not in STOP_IDS for ids in expected)


def test_the_questions_are_the_rows(found, taught, tokenizer):
    """Each prompt is the row's own, up to where the answer starts; gold and origin are those of the file."""
    lines = (taught / "rows.jsonl").read_text().splitlines()
    assert sorted(q.origin for q in found.questions) == sorted(f"rows.jsonl:{n}" for n in range(1, len(lines) + 1))
    for question in found.questions:
        row = json.loads(lines[int(question.origin.split(":")[1]) - 1])["messages"]
        assert question.query == row[1]["content"]
        wanted = [call["function"] for call in row[2].get("tool_calls", [])]
        assert [{"name": call.name, "arguments": call.arguments} for call in question.gold] == wanted
        text = functiongemma.render(row[:2], [STEPS, SLEEP], add_generation_prompt=True)
        assert tokenizer.decode(question.prompt) == text


def test_infer_gives_what_was_evaluated(found, taught):
    caller = FunctionCaller.from_adapter(str(taught / "run"), device="cpu", max_new_tokens=NEW)
    for question, raw in list(zip(found.questions, found.results[-1].raw, strict=True))[::5]:
        assert caller(question.query).raw == raw


def test_rows_that_want_no_call(found):
    """Right when the model answers in words, wrong when it calls or says nothing."""
    seen = Counter()
    for result in found.results:
        for question, verdict in zip(found.questions, result.verdicts, strict=True):
            if not question.gold:
                assert verdict.right == bool(verdict.text and not verdict.calls)
                assert verdict.error in (None, "unexpected_call", "no_answer")
                seen[result.name] += 1
    assert seen == {"base": 5, "tuned": 5}


def test_splits_and_baselines(program, found, taught):
    """The train split, and the run beside itself instead of the base."""
    done = program("--adapter", "run", "--split", "train", "--baseline", "run", "--json", "-q")
    assert done.exit_code == 0, done.stderr
    assert done.stderr == ""
    printed = json.loads(done.stdout)
    rows = json.loads((taught / "set" / prepared_set.MANIFEST).read_text())["rows"]
    assert printed["n"] == rows["train"]
    other, tuned = printed["results"]
    assert other == {**tuned, "name": "run"}
    assert len(found.questions) == rows["train"] + rows["test"]
    trained = found.results[-1].verdicts[: rows["train"]]
    assert tuned["exact"]["right"] == sum(verdict.right for verdict in trained)


def test_the_terminal_table(program, found):
    """No baseline: one line, with n and the interval; then the mistakes."""
    done = program("--adapter", "run", "--split", "all", "--baseline", "none")
    assert done.exit_code == 0, done.stderr
    tuned = found.results[-1].exact
    low, high = tuned.interval
    (line,) = [line for line in done.stdout.splitlines() if " tuned " in line and "%" in line]
    for part in (f" {tuned.right} ", " 21 ", f"{tuned.value:.1%}", f"{low:.1%} to {high:.1%}"):
        assert part in line
    assert "95% interval" in done.stdout
    assert "base" not in done.stdout
    assert f"of {21 - tuned.right})" in done.stdout
    assert "asking the tuned model: 21 of 21 rows" in done.stderr


def test_mistakes_are_shown_as_they_are():
    """What people and models say may look like markup for the terminal; it is printed letter by letter."""
    from rich.console import Console

    question = evaluation.Question([1], "[bold]how[/bold] many [/]", [], ["get_steps"], "rows.jsonl:1")
    verdict = evaluation.judge("[red]<start_function_call>call:", [], ["get_steps"])
    one = evaluation.Result("tuned", ["[red]<start_function_call>call:"], [verdict], 1)
    console = Console(width=160, file=io.StringIO())
    for part in report.as_tables(evaluation.Evaluation("a", "d", "all", [question], [one])):
        console.print(part)
    text = console.file.getvalue()
    assert "[bold]how[/bold] many [/]" in text
    assert "[red]<start_function_call>call:" in text
    assert "1 not stopped" in text
    assert "decoder_failed 1" in text


# ------------------------------------------------------------------------------------------------ what is refused


def test_a_set_with_other_tools_and_template(program, altered, taught, tmp_path):
    shutil.copytree(taught / "base", tmp_path / "base")
    (tmp_path / "base/chat_template.jinja").write_text(functiongemma.chat_template() + "{# another #}")
    write_rows(tmp_path / "rows.jsonl", tools=(STEPS, SLEEP, tool("get_weight")))
    path = altered(dataset=str(tmp_path / "rows.jsonl"), model=str(tmp_path / "base"))
    error = refused(program("--adapter", "run", "--data", path), 5)
    assert "trained with another set: the chat template and the tools differ" in error
    assert str(path) in error


def test_rows_that_changed_since(program, altered, taught, tmp_path):
    """The adapter's own set was prepared again from other rows: its held-out rows may have been trained on."""
    write_rows(tmp_path / "rows.jsonl", last="nine")
    path = altered(dataset=str(tmp_path / "rows.jsonl"))
    (taught / "set").rename(taught / "set.mine")
    try:
        shutil.copytree(path, taught / "set")
        error = refused(program("--adapter", "run"), 5)
        assert "the rows differ" in error
        # A named set may have other rows: that is what --data is for.
        assert program("--adapter", "run", "--data", path, "--baseline", "none", "--json").exit_code == 0
    finally:
        shutil.rmtree(taught / "set")
        (taught / "set.mine").rename(taught / "set")


def test_a_damaged_set(program, taught, tmp_path):
    shutil.copytree(taught / "set", tmp_path / "set")
    with (tmp_path / "set/test.arrow").open("r+b") as file:
        file.truncate(100)
    assert "test.arrow has changed" in refused(program("--adapter", "run", "--data", tmp_path / "set"), 5)


@pytest.mark.parametrize(("arguments", "code", "part"), [
    (["--adapter", "run", "--data", "nowhere"], 5, "this is not a prepared set: manifest.json is missing"),
    (["--adapter", "nowhere"], 4, "no such folder"),
    (["--adapter", "run", "--baseline", "nowhere"], 4, "nowhere: no such folder"),
    (["--adapter", "run", "--baseline", "set"], 5, "holds no finished adapter"),
    ([], 4, "there is no finished run here"),
])  # fmt: skip
def test_what_is_missing(program, arguments, code, part):
    assert part in refused(program(*arguments), code)


def test_an_adapter_that_does_not_say_what_it_was_trained_on(program, taught, tmp_path):
    shutil.copytree(taught / "run", tmp_path / "run")
    (tmp_path / "run" / runs.RUN_NAME).unlink()
    error = refused(program("--adapter", tmp_path / "run"), 5)
    assert "does not say what it was trained on" in error
    assert "--data" in error


def test_another_base_as_baseline(program, taught, tmp_path):
    """An adapter of another base beside this one: refused before anything is asked."""
    shutil.copytree(taught / "run", tmp_path / "run")
    record = json.loads((tmp_path / "run" / runs.RUN_NAME).read_text())
    record["base"]["weights_sha256"] = "0" * 64
    (tmp_path / "run" / runs.RUN_NAME).write_text(json.dumps(record))
    assert "another base model: its weights differ" in refused(
        program("--adapter", "run", "--baseline", tmp_path / "run"), 5
    )


def test_a_set_without_held_out_rows(program, altered, taught, tmp_path):
    (tmp_path / "one.jsonl").write_text((taught / "rows.jsonl").read_text().splitlines(keepends=True)[0])
    path = altered(dataset=str(tmp_path / "one.jsonl"))
    error = refused(program("--adapter", "run", "--data", path), 2)
    assert "--split test: the split has no rows" in error
    assert "--test-size" in error
