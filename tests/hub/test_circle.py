"""The whole circle over HTTP: rows out, rows in, a model trained, measured and published, and used by a stranger."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from tests.conftest import SLEEP, STEPS, conversation, tiny_gemma
from tests.hub.conftest import surroundings

BASE, ROWS, ADAPTER = "ada/tiny", "ada/rows", "coaches/tiny-coach"
QUESTION = "five five?"
SETTINGS = """
model: ada/tiny
dataset: ada/rows
test_size: 0.2
dtype: fp32
device: cpu
optim: adamw
learning_rate: 0.01
lora_r: 16
lora_dropout: 0.0
target_modules: all-linear
per_device_train_batch_size: 8
gradient_accumulation_steps: 1
num_train_epochs: 20
max_new_tokens: 24
output_dir: output/run
hub_model_id: coaches/tiny-coach
"""


def rows() -> list[dict]:
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    found = [conversation(f"{word} {word}?", ("get_steps", {})) for word in words]
    found += [conversation(f"bed {letter}", ("get_sleep", {"days": 2})) for letter in "abcdefghij"]
    return [{"messages": messages, "tools": [STEPS, SLEEP]} for messages in found]


@pytest.fixture
def base(hub, tokenizer, offline_base, tmp_path):
    """A tiny model that is quickly taught these calls, gated on the Hub as the real one is; ada accepted its terms."""
    from fitcoach_tune import functiongemma, models

    answers = [functiongemma.render(row["messages"][-1:]) for row in rows()]
    used = sorted({i for ids in tokenizer(answers, add_special_tokens=False)["input_ids"] for i in ids})
    model = tiny_gemma(vocab_size=262144, layers=2)
    weight = model.model.embed_tokens.weight.data
    large = 2 * weight[used]
    weight *= 0.3
    weight[used] = large
    model.save_pretrained(tmp_path / "base")
    models.copy_tokenizer(offline_base.path, tmp_path / "base", functiongemma.chat_template())
    files = {file.name: file.read_bytes() for file in (tmp_path / "base").iterdir()}
    return hub.add("model", BASE, files, gated=True, accepted={"ada"})


def test_the_circle(hub, program, base, tmp_path):
    def run(*arguments, **environment) -> str:
        done = program(*arguments, **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    (tmp_path / "settings.yaml").write_text(SETTINGS)
    out = [
        "--model",
        BASE,
        "--dataset",
        "rows.jsonl",
        "--test-size",
        "0.1",
        "--push-to-hub",
        ROWS,
        "--private",
        "--json",
    ]
    published = json.loads(run("prepare", *out))["hub"]
    dataset = hub.repositories["dataset", ROWS]
    assert published["commit"] == dataset.head.oid
    assert dataset.private

    run("train", "--config", "settings.yaml")
    record = json.loads((tmp_path / "output/run/run.json").read_text())
    assert (record["data"]["source"]["name"], record["data"]["source"]["revision"]) == (ROWS, dataset.head.oid)
    assert (record["base"]["name"], record["base"]["revision"]) == (BASE, base.head.oid)
    run("eval", "--max-new-tokens", "24", "--unconstrained")
    pushed = json.loads(run("push", "--yes", "--json"))
    repository = hub.repositories["model", ADAPTER]
    assert pushed["commit"] == repository.head.oid
    assert [commit.title for commit in repository.history()] == ["Adapter by fitcoach-tune", "initial commit"]

    ask = ["infer", QUESTION, "--json", "--device", "cpu", "--max-new-tokens", "24", "--unconstrained"]
    mine = json.loads(run(*ask, "--adapter", "output/run"))
    assert [call["name"] for call in mine["calls"]] == ["get_steps"]
    clean = {"HF_HOME": str(tmp_path / "clean"), "FITCOACH_TUNE_CACHE": str(tmp_path / "other-cache")}
    assert json.loads(run(*ask, "--adapter", ADAPTER, **clean)) == mine
    pinned = f"{ADAPTER}@{repository.head.oid}"
    assert json.loads(run(*ask, "--adapter", pinned, **clean, HF_HUB_OFFLINE="1")) == mine
    assert answer_of_the_cards_code(hub, repository, tmp_path) == mine["raw"]


def answer_of_the_cards_code(hub, repository, tmp_path) -> str:
    """What the code on the model card prints, run as it stands but for the question."""
    card = repository.head.files["README.md"].decode()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert code.count("What your user says") == 1
    done = subprocess.run(
        [sys.executable, "-c", code.replace("What your user says", QUESTION)],
        env=surroundings(hub, tmp_path / "a-strangers-home"), cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.removesuffix("\n")
