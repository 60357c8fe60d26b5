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

from fitcoach_tune import cli, files, functiongemma, models, prepare, prepared_set, runs
from fitcoach_tune.config import load_config
from fitcoach_tune.evaluate import evaluation, report, results
from fitcoach_tune.evaluate.answers import Answer, read_answers
from fitcoach_tune.evaluate.evaluation import Options
from fitcoach_tune.evaluate.generate import STOP_IDS
from fitcoach_tune.evaluate.turns import Turn
from fitcoach_tune.gold import gold_of
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


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Answers of base models that other tests were given are not found here, nor these elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        (real := tmp_path_factory.mktemp("cache")).mkdir(exist_ok=True)
        patch.setenv("FITCOACH_TUNE_CACHE", str(real))
        yield real


@pytest.fixture(scope="module")
def found(taught, cache):
    """All rows, base beside tuned."""
    report = str(taught / "found")  # where no other test writes
    return evaluation.evaluate(str(taught / "run"), settings_of(taught), Options(split="all", report=report))


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
    (only,) = printed["sets"]
    assert only["n"] == held_out > 0
    assert (only["name"], printed["data"]["split"]) == ("test", "test")
    assert [model["name"] for model in only["models"]] == ["base", "tuned", "tuned, constrained"]
    for model in only["models"]:
        metrics = model["metrics"]
        assert metrics["exact"]["n"] == held_out
        assert metrics["exact"]["right"] == held_out - sum(metrics["errors"].values())
    assert printed.pop("report") == "run/eval/test"
    assert printed == json.loads((taught / "run/eval/test/results.json").read_text())
    assert printed["schema_version"] == 1
    assert f"all answers and the report: {Path('run/eval/test')}" in done.stderr


def test_training_shows(found):
    """The base only prints newlines, which is no answer to a greeting; the tuned model knows which tool is meant."""
    base, tuned, _ = found.sets[0].models
    assert base.metrics.errors == {"no_call": 16, "no_answer": 5}
    assert base.metrics.exact.right == 0
    assert tuned.metrics.names.right >= 14
    assert any(v.right and t.gold.wants_call for v, t in zip(tuned.verdicts, found.sets[0].asked.turns, strict=True))


def test_the_comparison_is_row_by_row(found):
    main = found.sets[0]
    tuned = [verdict.right for verdict in main.of("tuned").verdicts]
    compared = found.results["sets"][0]["comparison"]
    assert (compared["baseline"], compared["model"]) == ("base", "tuned")
    assert compared["only_model_right"] == sum(tuned)
    assert compared["both_right"] == compared["only_baseline_right"] == 0
    assert compared["worse"] == []
    assert compared["better"] == [f"all/{i + 1}" for i, right in enumerate(tuned) if right]


def test_every_answer_is_that_of_plain_transformers(found, taught):
    """Token for token: the base by transformers alone, the tuned model by transformers and PEFT."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(taught / "run")
    model = AutoModelForCausalLM.from_pretrained(taught / "base", dtype=torch.float32)
    for result in found.sets[0].models[:2]:
        if result.name == "tuned":
            model = PeftModel.from_pretrained(model, taught / "run")
        expected = []
        for prompt in found.sets[0].asked.prompts:
            ids = torch.tensor([prompt])
            made = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False,
                eos_token_id=sorted(STOP_IDS), pad_token_id=0,
            )  # fmt: skip
            expected.append(made[0, ids.shape[1] :].tolist())
        raw = [answer.raw for answer in result.answers]
        encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in raw]
        assert raw == [tokenizer.decode(ids, skip_special_tokens=False) for ids in expected]
        # A text may be spelt with other tokens; what was trained here is spelt with its own.
        assert result.name == "base" or sum(e == x for e, x in zip(encoded, expected, strict=True)) >= 14
        assert [answer.stopped for answer in result.answers] == [ids[-1] in STOP_IDS for ids in expected]
        assert [answer.tokens for answer in result.answers] == [len(ids) for ids in expected]


def test_constrained_answers_are_valid(found):
    """Whatever the model prefers: what is finished can be parsed, and calls nothing undeclared."""
    constrained = found.sets[0].of("tuned, constrained")
    for answer, verdict in zip(constrained.answers, constrained.verdicts, strict=True):
        assert not answer.stopped or verdict.error != "decoder_failed"
        assert verdict.error != "invented_func_name"
    plain = found.sets[0].of("tuned")
    assert sum(a.raw == b.raw for a, b in zip(constrained.answers, plain.answers, strict=True)) >= 10


def test_the_questions_are_the_rows(found, taught, tokenizer):
    """Each prompt is the row's own, up to where the answer starts; gold and origin are those of the file."""
    lines = (taught / "rows.jsonl").read_text().splitlines()
    asked = found.sets[0].asked
    assert sorted(t.origin for t in asked.turns) == sorted(f"rows.jsonl:{n}" for n in range(1, len(lines) + 1))
    for turn, prompt, text in zip(asked.turns, asked.prompts, asked.texts, strict=True):
        row = json.loads(lines[int(turn.origin.split(":")[1]) - 1])["messages"]
        assert turn.query == row[1]["content"]
        wanted = [call["function"] for call in row[2].get("tool_calls", [])]
        assert [{"name": call.name, "arguments": call.arguments} for call in turn.gold.calls] == wanted
        assert text == functiongemma.render(row[:2], [STEPS, SLEEP], add_generation_prompt=True)
        assert tokenizer.decode(prompt) == text


def test_the_prompts_are_those_of_training(found, taught):
    """Token for token what stands before the supervised span."""
    prepared = prepared_set.open_set(taught / "set")
    trained = [row for part in (prepared.train, prepared.test) for row in part]
    for row, prompt in zip(trained, found.sets[0].asked.prompts, strict=True):
        assert row.input_ids[: row.spans[-1][0]].tolist() == prompt


def test_infer_gives_what_was_evaluated(found, taught):
    caller = FunctionCaller.from_adapter(str(taught / "run"), device="cpu", max_new_tokens=NEW, constrained=False)
    asked = found.sets[0]
    for turn, answer in list(zip(asked.asked.turns, asked.of("tuned").answers, strict=True))[::5]:
        assert caller(turn.query).raw == answer.raw


def test_rows_that_want_no_call(found):
    """Right when the model answers in words, wrong when it calls or says nothing."""
    seen = Counter()
    for result in found.sets[0].models[:2]:
        for turn, verdict in zip(found.sets[0].asked.turns, result.verdicts, strict=True):
            if not turn.gold.wants_call:
                assert verdict.right == bool(verdict.text and not verdict.calls)
                assert verdict.error in (None, "unexpected_call", "no_answer")
                seen[result.name] += 1
    assert seen == {"base": 5, "tuned": 5}


def test_splits_and_baselines(program, found, taught):
    """The train split, and the run beside itself instead of the base."""
    done = program("--adapter", "run", "--split", "train", "--baseline", "run", "--unconstrained", "--json", "-q")
    assert done.exit_code == 0, done.stderr
    assert done.stderr == ""
    (only,) = json.loads(done.stdout)["sets"]
    rows = json.loads((taught / "set" / prepared_set.MANIFEST).read_text())["rows"]
    assert only["n"] == rows["train"]
    other, tuned = only["models"]
    assert other["metrics"]["exact"] == tuned["metrics"]["exact"]
    assert (other["name"], tuned["name"]) == ("run", "tuned")
    assert len(found.sets[0].asked.turns) == rows["train"] + rows["test"]
    assert (only["comparison"]["p_value"], only["comparison"]["difference"]["value"]) == (1, 0)
    trained = found.sets[0].of("tuned").verdicts[: rows["train"]]
    assert tuned["metrics"]["exact"]["right"] == sum(verdict.right for verdict in trained)


def test_the_terminal_table(program, found):
    """No baseline: one line, with n and the interval; then the mistakes."""
    done = program("--adapter", "run", "--split", "all", "--baseline", "none", "--unconstrained")
    assert done.exit_code == 0, done.stderr
    tuned = found.sets[0].of("tuned").metrics.exact
    low, high = tuned.interval
    (line,) = [line for line in done.stdout.splitlines() if " tuned " in line and " to " in line]
    for part in (f" {tuned.right} ", " 21 ", f"{tuned.value:.1%}", f"{low:.1%} to {high:.1%}"):
        assert part in line
    assert "95% interval" in done.stdout
    assert "base" not in done.stdout
    assert f"of {21 - tuned.right})" in done.stdout
    assert "McNemar" not in done.stdout


def test_the_terminal_tells_who_is_better(program, found):
    done = program("--adapter", "run", "--split", "all")
    assert done.exit_code == 0, done.stderr
    right = found.sets[0].of("tuned").metrics.exact.right
    told = " ".join(done.stdout.split())
    assert f"Against base: {right} rows got better and 0 got worse." in told
    assert f"exact McNemar p {'< 0.001' if right > 10 else f'= {2 / 2**right:.3f}'}, n = 21." in told
    better = [
        turn.query
        for turn, verdict in zip(found.sets[0].asked.turns, found.sets[0].of("tuned").verdicts, strict=True)
        if verdict.right
    ]
    assert f"Got better: {' | '.join(better[:3])}{f' and {right - 3} more' * (right > 3)}" in told
    assert "Got worse" not in told
    for part in ("by tool", "F1", "Wanted (rows) and called (columns)", "no call", "invented", "unparsable", "p50"):
        assert part in told


def test_mistakes_are_shown_as_they_are(tmp_path):
    """What people and models say may look like markup for the terminal; it is printed letter by letter."""
    from rich.console import Console

    turn = Turn([{"role": "user", "content": "[bold]how[/bold] many [/]"}], [STEPS], gold_of([], [STEPS]), "rows:1")
    asked = results.QuestionSet("all", "All rows", "", [turn], [""], [[1]])
    answer = Answer("[red]<start_function_call>call:", 9, False, 1.0, 1.0)
    judged = results.judge_all(asked, "tuned", ["k"], [answer], "exact")
    console = Console(width=160, file=io.StringIO())
    shown = evaluation.Evaluation([results.SetResult(asked, [judged])], None, [], {}, [], tmp_path)
    for part in report.as_tables(shown):
        console.print(part)
    text = console.file.getvalue()
    assert "[bold]how[/bold] many [/]" in text
    assert "[red]<start_function_call>call:" in text
    assert "decoder_failed 1" in text


# ------------------------------------------------------------------------------------------------ what is kept


def test_the_files(found, taught):
    """One sample for each model and row, with all there is to know; and a page."""
    folder = taught / "found"
    assert found.folder == folder
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert samples == found.samples
    assert Counter(s["model"] for s in samples) == {"base": 21, "tuned": 21, "tuned, constrained": 21}
    tuned = found.sets[0].of("tuned")
    for i, sample in enumerate(s for s in samples if s["model"] == "tuned"):
        turn, answer, verdict = found.sets[0].asked.turns[i], tuned.answers[i], tuned.verdicts[i]
        assert (sample["id"], sample["origin"], sample["query"]) == (f"all/{i + 1}", turn.origin, turn.query)
        assert (sample["raw"], sample["tokens"], sample["seconds"]) == (answer.raw, answer.tokens, answer.seconds)
        assert (sample["right"], sample["error"]) == (verdict.right, verdict.error)
        assert sample["gold"] == [[{"name": c.name, "arguments": c.arguments} for c in turn.gold.calls]]
        assert sample["prompt"].endswith("<start_of_turn>model\n")
        assert 0 < sample["busy"] <= sample["seconds"]
    assert "<html" in (folder / "report.html").read_text()


def asked_again(taught, monkeypatch, **options) -> tuple[evaluation.Evaluation, list[str]]:
    """Evaluate, and tell for which models and how many rows a generator was at work."""
    from fitcoach_tune.evaluate import asking

    seen, ask = [], asking.ask

    def counted(generator, tokenizer, prompts, together, **given):
        seen.append(f"{len(prompts)}{' constrained' * bool(given['constraints'])}")
        ask(generator, tokenizer, prompts, together, **given)

    monkeypatch.setattr(asking, "ask", counted)
    given = {name: options.pop(name) for name in list(options) if name in ("max_new_tokens",)}
    return evaluation.evaluate(str(taught / "run"), settings_of(taught, **given), Options(**options)), seen


def test_an_interrupted_evaluation_goes_on(found, taught, monkeypatch, tmp_path):
    """Half of the tuned model's answers, the last one torn: the others are asked, and the result is the same."""
    lines = (found.folder / "samples.jsonl").read_text().splitlines(keepends=True)
    tuned = [line for line in lines if json.loads(line)["model"] == "tuned"]
    (tmp_path / "samples.jsonl").write_text("".join(tuned[:9]) + tuned[9][:200])
    again, seen = asked_again(taught, monkeypatch, split="all", constrained=False, report=str(tmp_path))
    assert seen == ["12"]  # the base is known from before
    before = [sample for sample in found.samples if sample["model"] != "tuned, constrained"]
    timeless = [[{**s, "seconds": 0, "busy": 0} for s in samples] for samples in (again.samples, before)]
    assert timeless[0] == timeless[1]
    assert len(read_answers(tmp_path / "samples.jsonl")) == 2 * 21


def test_nothing_is_asked_twice(found, taught, monkeypatch):
    again, seen = asked_again(taught, monkeypatch, split="all", report=str(taught / "found"))
    assert seen == []
    assert again.samples == found.samples
    assert {**again.results, "finished": ""} == {**found.results, "finished": ""}


def test_the_base_is_asked_once_for_all_reports(found, taught, monkeypatch, tmp_path, cache):
    again, seen = asked_again(taught, monkeypatch, split="all", constrained=False, report=str(tmp_path / "new"))
    assert seen == ["21"]
    assert again.sets[0].of("base").answers == found.sets[0].of("base").answers
    shutil.rmtree(cache / "answers")
    _, seen = asked_again(taught, monkeypatch, split="all", constrained=False, report=str(tmp_path / "other"))
    assert seen == ["21", "21"]


def test_another_limit_or_adapter_starts_anew(found, taught, monkeypatch, tmp_path):
    shutil.copy(found.folder / "samples.jsonl", tmp_path / "samples.jsonl")
    options = {"split": "all", "constrained": False, "report": str(tmp_path), "baseline": "none"}
    _, seen = asked_again(taught, monkeypatch, max_new_tokens=NEW - 1, **options)
    assert seen == ["21"]
    shutil.copytree(taught / "run", tmp_path / "run")
    shutil.copytree(taught / "base", tmp_path / "base")
    file = tmp_path / "run" / "adapter_config.json"
    file.write_text(file.read_text().replace('"lora_alpha": 64', '"lora_alpha": 32'))
    record = json.loads((tmp_path / "run/run.json").read_text())
    record["files"]["adapter_config.json"] = files.sha256_file(file)
    (tmp_path / "run/run.json").write_text(json.dumps(record))
    assert runs.open_run(str(tmp_path / "run")).sha256 != runs.open_run(str(taught / "run")).sha256
    shutil.copy(found.folder / "samples.jsonl", tmp_path / "samples.jsonl")
    monkeypatch.setattr("fitcoach_tune.evaluate.evaluation.TUNED", "tuned")
    found_again = evaluation.evaluate(str(tmp_path / "run"), settings_of(taught), Options(**options))
    keys = [
        {key for model in e.sets[0].models if model.name == "tuned" for key in model.keys} for e in (found, found_again)
    ]
    assert not keys[0] & keys[1]


# ------------------------------------------------------------------------------------------------ other rows


def test_rows_of_a_file(program, taught, tmp_path):
    """Without tools of their own, and with several acceptable answers."""
    rows = [
        {"user_query": "one one?", "function_call": "get_steps"},
        {"user_query": "bed a", "function_call": {"name": "get_sleep", "arguments": {"days": 1}},
         "acceptable_answers": [{"name": "get_sleep", "arguments": {"days": 2}}, "get_steps"]},
    ]  # fmt: skip
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = program("--adapter", "run", "--data", path, "--baseline", "none", "--unconstrained", "--json")
    assert done.exit_code == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["report"] == "run/eval/mine-all"
    digest = files.sha256_file(path)
    assert printed["data"] == {"name": str(path), "split": "all", "sha256": digest, "source_sha256": digest}
    assert printed["sets"][0]["n"] == 2
    samples = [json.loads(line) for line in (taught / "run/eval/mine-all/samples.jsonl").read_text().splitlines()]
    assert [len(sample["gold"]) for sample in samples] == [1, 3]
    assert [sample["tools"] for sample in samples] == [["get_steps", "get_sleep"]] * 2


def test_rows_that_were_trained_on_are_called_that(program, taught):
    done = program("--adapter", "run", "--data", "rows.jsonl", "--baseline", "none", "--unconstrained", "--json")
    assert done.exit_code == 0, done.stderr
    assert "the adapter was trained on a part of these rows" in done.stderr
    results = json.loads(done.stdout)
    assert results["sets"][0]["n"] == 21
    record = json.loads((taught / "run/run.json").read_text())
    assert results["data"]["source_sha256"] == record["data"]["source"]["sha256"]


def test_rows_of_one_name_from_two_places(program, taught, tmp_path):
    """The second report does not take the place of the first."""
    folders = set()
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        file = tmp_path / place / "set-1.0.jsonl"
        shutil.copy(taught / "rows.jsonl", file)
        arguments = ("--adapter", "run", "--data", file, "--baseline", "none", "--unconstrained", "--json")
        for _ in range(2):
            done = program(*arguments)
            assert done.exit_code == 0, done.stderr
            folders.add(json.loads(done.stdout)["report"])
    assert len(folders) == 2
    assert all(Path(folder).name.startswith("set-1.0-all") for folder in folders)


def test_a_base_that_has_moved(program, taught, tmp_path):
    """Its weights are what counts, not where they are."""
    (taught / "base").rename(tmp_path / "moved")
    try:
        arguments = ("--adapter", "run", "--baseline", "none", "--unconstrained", "--report", tmp_path / "report")
        assert f"--model {taught / 'base'}: no such folder" in refused(program(*arguments), 2)
        done = program(*arguments, "--model", tmp_path / "moved")
        assert done.exit_code == 0, done.stderr
    finally:
        (tmp_path / "moved").rename(taught / "base")


@pytest.mark.parametrize(("arguments", "expected"), [
    (("--gate", "lower"), "--gate: nothing is held against it"),
    (("--baseline", "tuned"), "write ./tuned"),
    (("--baseline", "tuned, constrained"), "reports call the adapter itself so"),
])  # fmt: skip
def test_options_that_would_do_nothing_or_mislead(program, arguments, expected):
    assert expected in refused(program("--adapter", "run", *arguments), 2)


def test_every_answer_of_a_conversation_is_asked(program, taught, tmp_path):
    """The call, and the words after its result; each with what stands before it in the data."""
    messages = conversation("one one?", ("get_steps", {}))
    messages += [
        {"role": "tool", "name": "get_steps", "content": {"steps": 5000}},
        {"role": "assistant", "content": "Hello!"},
    ]
    path = tmp_path / "talk.jsonl"
    path.write_text(json.dumps({"messages": messages, "tools": [STEPS, SLEEP]}) + "\n")
    done = program("--adapter", "run", "--data", path, "--baseline", "none", "--unconstrained", "--json")
    assert done.exit_code == 0, done.stderr
    lines = (taught / "run/eval/talk-all/samples.jsonl").read_text().splitlines()
    first, second = map(json.loads, lines)
    assert [s["origin"] for s in (first, second)] == ["talk.jsonl:1, messages[2]", "talk.jsonl:1, messages[4]"]
    assert first["gold"] == [[{"name": "get_steps", "arguments": {}}]]
    assert second["gold"] == [[]]
    assert second["prompt"].endswith("response:get_steps{steps:5000}<end_function_response>")


def test_harder_sets(program, taught):
    """Each is a row of its own, with models side by side."""
    done = program("--adapter", "run", "--hard", "--baseline", "none", "--unconstrained", "--json")
    assert done.exit_code == 0, done.stderr
    sets = json.loads(done.stdout)["sets"]
    names = ["tool-order", "distractors", "gold-removed", "renamed", "typos", "casing", "unserved"]
    assert [made["name"] for made in sets] == ["test", *(f"hard/{name}" for name in names)]
    assert all(made["n"] and made["models"][0]["metrics"]["n"] == made["n"] for made in sets)
    samples = [json.loads(line) for line in (taught / "run/eval/test/samples.jsonl").read_text().splitlines()]
    for sample in samples:
        if sample["set"] in ("hard/gold-removed", "hard/unserved"):
            assert sample["gold"] == [[]]
    table = program("--adapter", "run", "--hard", "--baseline", "none", "--unconstrained").stdout
    assert "harder sets" in table
    again = program("--adapter", "run", "--hard", "--baseline", "none", "--unconstrained", "--json", "--seed", "1")
    assert json.loads(again.stdout)["settings"]["seed"] == 1


# ------------------------------------------------------------------------------------------------ gates


@pytest.mark.parametrize(
    ("arguments", "failed"),
    [
        (["--fail-under", "0"], []),
        (["--fail-under", "1"], ["--fail-under"]),
        (["--max-invented", "21"], []),
        (["--fail-under", "1", "--gate", "lower", "--max-invented", "21"], ["--fail-under"]),
    ],
)
def test_gates(program, found, arguments, failed):
    """What was found is printed all the same; the exit code tells."""
    assert 0 < found.sets[0].of("tuned").metrics.exact.right < 21
    done = program("--adapter", "run", "--split", "all", "--json", *arguments)
    assert done.exit_code == (9 if failed else 0), done.stderr
    gates = json.loads(done.stdout)["gates"]
    assert [gate["flag"] for gate in gates if not gate["passed"]] == failed
    assert done.stderr.count("error: ") == len(failed)
    told = program("--adapter", "run", "--split", "all", *arguments).stdout
    assert ("FAILED" in told) == bool(failed)


def test_a_share_is_between_0_and_1(program):
    done = program("--adapter", "run", "--fail-under", "90")
    assert done.exit_code == 2
    assert "--fail-under" in done.stderr


def test_a_gate_between_the_point_and_its_lower_end(program, found):
    rate = found.sets[0].of("tuned").metrics.exact
    between = str((rate.value + rate.interval[0]) / 2)
    for gate, code in (("point", 0), ("lower", 9)):
        assert program("--adapter", "run", "--split", "all", "--fail-under", between, "--gate", gate).exit_code == code


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
    (["--adapter", "run", "--data", "nowhere.jsonl"], 3, "nowhere.jsonl"),
    (["--adapter", "run", "--data", "rows.jsonl", "--split", "test"], 2, "have no splits"),
    (["--adapter", "run", "--report", "rows.jsonl"], 6, "rows.jsonl/samples.jsonl: cannot write"),
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
