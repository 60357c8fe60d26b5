"""The model card of every kind of run: its metadata, its code, and that its figures are those of the records."""

from __future__ import annotations

import ast
import re
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from fitcoach_tune.publish.markdown import cell, table
from fitcoach_tune.publish.model_card import Facts, model_card
from tests.conftest import SLEEP, STEPS, tool
from tests.hub.cards import problems

HEADINGS = ["What it does", "How to use it", "How it was made", "How good it is", "Known mistakes", "Limits", "Licence"]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
RECORD = {
    "finished": "2026-03-01T10:00:00+00:00",
    "versions": {"fitcoach_tune": "0.1.0", "torch": "2.9.0", "python": "3.11.7"},
    "device": {"name": "tpu", "hardware": "TPU v5 lite", "count": 8},
    "base": {"name": "google/gemma-x", "revision": COMMIT, "reference": "google/gemma-x", "weights_sha256": "f" * 64},
    "data": {
        "source": {"name": "ada/rows", "revision": COMMIT, "sha256": "e" * 64},
        "rows": {"read": 440, "dropped": 20, "train": 294, "test": 126},
        "data_sha256": "d" * 64,
    },
    "config": {
        "lora_r": 32, "lora_alpha": 64.0, "lora_dropout": 0.05, "target_modules": ["q_proj", "v_proj"], "dtype": "bf16",
        "optim": "adamw", "learning_rate": 5e-5, "lr_scheduler_type": "cosine", "warmup_ratio": 0.1, "seed": 42,
        "weight_decay": 0.01, "max_grad_norm": 1.0, "split": "grouped", "max_new_tokens": 128,
    },
    "training": {
        "trainable_parameters": 2949120, "batch_size": 16, "steps": 147, "epochs": 8.0, "first_loss": 3.25,
        "last_loss": 0.0125, "eval_losses": [{"step": 147, "eval_loss": 0.0625}], "examples_per_second": 10.25,
        "peak_memory_bytes": 4831838208,
    },
    "seconds": {"train": 273.0, "total": 300.5},
    "price": {"per_hour": 9.6, "total": 0.8013},
    "check": {"logit_difference": 2e-7, "logit_change_from_base": 0.25, "lora_b_norm": 1.0},
}  # fmt: skip


def rate(right: int, n: int, low: float = 0.0, high: float = 1.0) -> dict:
    return {"right": right, "n": n, "value": right / n if n else None, "low": low, "high": high}


def metrics(right: int, low: float, high: float, **changes) -> dict:
    return {
        "n": 126, "exact": rate(right, 126, low, high), "names": rate(right + 2, 126), "silent": rate(0, 0),
        "argument_precision": rate(0, 0), "argument_recall": rate(0, 0), "called": rate(125, 126),
        "valid_format": rate(126, 126), "invented": rate(1, 126), "latency_seconds": {"p50": 0.75, "p95": 1.5},
        "errors": {"wrong_func_name": 10, "invented_func_name": 1} if right < 126 else {},
        "tools": {"get_steps": {"precision": rate(60, 64), "recall": rate(60, 61), "f1": 0.96}},
        "confusion": [
            {"wanted": "get_steps", "called": "get_steps", "count": 60},
            {"wanted": "get_sleep", "called": "get_steps", "count": 4},
            {"wanted": "get_sleep", "called": "invented", "count": 1},
        ],
    } | changes  # fmt: skip


MAIN = {
    "name": "test", "title": "Held-out rows", "n": 126,
    "models": [
        {"name": "base", "metrics": metrics(0, 0.0, 0.0296)},
        {"name": "tuned", "metrics": metrics(115, 0.85, 0.951)},
    ],
    "comparison": {
        "baseline": "base", "only_model_right": 115, "only_baseline_right": 0, "p_value": 4.8e-35,
        "difference": {"value": 0.9127, "low": 0.8407, "high": 0.9506},
    },
}  # fmt: skip
RESULTS = {
    "data": {"name": "output/prepared/rows", "split": "test", "sha256": "d" * 64},
    "settings": {"max_new_tokens": 128, "strings": "exact", "device": "TPU v5 lite", "dtype": "bf16"},
    "sets": [MAIN],
}
PROMPT = {"developer": "You call functions.", "tools": [STEPS, SLEEP]}
FACTS = Facts("ada/coach", RECORD, RESULTS, PROMPT)
HARD = MAIN | {"name": "hard/typos", "title": "Typing errors", "comparison": None}
MERGED = {"difference_fp32": 1e-6, "difference_bf16": 3e-3, "moved": 0.25, "same_token": 99, "tokens": 100}
FOLDER = {"name": "tiny", "revision": None, "reference": "tiny", "weights_sha256": "f" * 64}
OFFLINE = {"name": "offline", "revision": "1.0.0", "reference": "offline", "weights_sha256": "f" * 64}
LOCAL = {"source": {"name": "rows.jsonl", "revision": None, "sha256": "e" * 64}}


def with_(facts: Facts = FACTS, base=None, data=None, config=None, results=None, **changes) -> Facts:
    record = facts.record | {
        "base": base or facts.record["base"],
        "data": facts.record["data"] | (data or {}),
        "config": facts.record["config"] | (config or {}),
    }
    found = facts.results and facts.results | (results or {})
    return replace(facts, **{"record": record, "results": found} | changes)


KINDS = {
    "hub": FACTS,
    "folder": with_(base=FOLDER),
    "offline": with_(base=OFFLINE, data=LOCAL),
    "merged": with_(merged=MERGED),
    "several-toolsets": with_(prompt=None),
    "no-developer": with_(prompt={"developer": "", "tools": [STEPS]}),
    "unevaluated": replace(FACTS, results=None),
    "hard": with_(results={"sets": [MAIN, HARD]}),
    "other-data": with_(results={"data": {"name": "other.jsonl", "split": "all", "sha256": "0" * 64}}),
    "trained-on": with_(results={"data": RESULTS["data"] | {"split": "all"}}),
    "trained-on-file": with_(results={"data": {"name": "all.jsonl", "split": "all", "sha256": "e" * 64}}),
    "trained-on-split-anew": with_(results={"data": RESULTS["data"] | {"sha256": "0" * 64, "source_sha256": "e" * 64}}),
    "constrained": with_(results={"settings": RESULTS["settings"] | {"constrained": True}}),
    "random-split": with_(config={"split": "random"}),
    "no-baseline": with_(results={"sets": [MAIN | {"models": MAIN["models"][1:], "comparison": None}]}),
    "no-mistake": with_(
        results={"sets": [MAIN | {"models": [{"name": "tuned", "metrics": metrics(126, 0.9704, 1.0, confusion=[])}]}]}
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_card_is_sound(kind):
    """The Hub takes its metadata, its tables are tables, its code is Python, nothing was left unfilled."""
    card = model_card(KINDS[kind])
    assert problems(card, "model") == []
    loaded = ModelCard(card)
    assert str(loaded) == card
    assert loaded.data.license == "gemma"
    for line, after in zip(card.splitlines(), card.splitlines()[1:], strict=False):
        if line.startswith("|") and after.startswith("|"):
            assert len(re.split(r"(?<!\\)\|", line)) == len(re.split(r"(?<!\\)\|", after)), line
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    ast.parse(code)
    headings = [
        "What it does",
        "How to use it",
        "How it was made",
        "How good it is",
        "Known mistakes",
        "Limits",
        "Licence",
    ]
    assert re.findall(r"^## (.*)$", card, re.MULTILINE) == headings
    assert not re.search(r"\bNone\b(?! was seen)|\bnan\b|\{\{|\}\}|\n\n\n", card.replace(code, ""))
    assert "[ai.google.dev/gemma/terms](https://ai.google.dev/gemma/terms)" in card
    assert "prohibited_use_policy" in card


def test_the_metadata():
    data = ModelCard(model_card(FACTS)).data
    assert data.base_model == "google/gemma-x"
    assert (data.library_name, data.base_model_relation) == ("peft", "adapter")
    assert data.datasets == ["ada/rows"]
    assert data.pipeline_tag == "text-generation"
    assert {"function-calling", "lora", "fitcoach-tune"} <= set(data.tags)
    exact, names = data.eval_results
    assert (exact.metric_type, exact.metric_value) == ("accuracy", 0.9127)  # 115 of 126
    assert exact.metric_args == {"n": 126, "low": 0.85, "high": 0.951}
    assert (exact.dataset_type, exact.dataset_name) == ("ada/rows", "ada/rows (held-out rows)")
    assert exact.dataset_revision == COMMIT
    assert names.metric_value == 0.9286  # 117 of 126
    merged = ModelCard(model_card(KINDS["merged"])).data
    assert (merged.library_name, merged.base_model_relation) == ("transformers", "finetune")
    assert "lora" not in merged.tags
    folder = ModelCard(model_card(KINDS["folder"])).data
    assert folder.base_model is None
    assert ModelCard(model_card(KINDS["offline"])).data.base_model == "google/gemma-3-270m"
    assert ModelCard(model_card(KINDS["offline"])).data.datasets is None
    assert not ModelCard(model_card(KINDS["unevaluated"])).data.eval_results


@pytest.mark.parametrize(("kind", "parts"), [
    ("hub", [
        "A LoRA adapter (PEFT) that turns what a person says into a call of one of 2 functions.",
        f"[google/gemma-x](https://huggingface.co/google/gemma-x) at commit `{COMMIT}`",
        "| `get_sleep` | Does get_sleep. | `days` (integer, required): How many days back. |",
        'fitcoach-tune infer "What your user says" --adapter ada/coach',
        f"[ada/rows](https://huggingface.co/datasets/ada/rows) at commit `{COMMIT}`",
        "294 to train on, 126 held out (near-duplicates kept on one side), 20 left out as too long",
        "LoRA of rank 32, alpha 64, dropout 0.05, on q_proj, v_proj: 2,949,120 parameters",
        "adamw, learning rate 5e-05, cosine after a warm-up over 10% of the steps, weight decay 0.01, gradient norm",
        "147 of 16 rows, 8 epochs, seed 42",
        "3.2500 at the first step, 0.0125 at the last, 0.0625 on the held-out rows at the end",
        "8 × TPU v5 lite, at most 4.5 GiB of memory",
        "5 minutes, of which 5 minutes training, at 10.2 rows a second",
        "0.8013, at 9.6 an hour for the machine",
        "logits are the trained model's but for 2.0e-07 of the largest, where the adapter moves them by 2.5e-01",
        "126 questions of the held-out rows of `ada/rows`, which it was not trained on.",
        "| base, untuned | 0 | 126 | 0.0% | 0.0% to 3.0% |",
        "| **this model** | 115 | 126 | 91.3% | 85.0% to 95.1% |",
        "115 got better, 0 got worse; +91.3 points (95% interval +84.1 to +95.1), exact McNemar p < 0.001",
        "| `get_steps` | 61 | 64 | 93.8% of 64 | 98.4% of 61 |",
        "- calls another function than wanted: 10 of 126",
        "- calls a function that was not declared: 1 of 126",
        "| `get_sleep` | `get_steps` | 4 |\n| `get_sleep` | invented | 1 |",
        "No question asks for something that no function serves",
        "Typing errors, other orders of the functions",
    ]),
    ("folder", ['from_pretrained("path/to/tiny"', f"which is not on the Hub (SHA-256 of its weights: `{'f' * 64}`)"]),
    ("offline", ['models.resolve("offline").path', "It is not FunctionGemma", f"on the Hub (SHA-256 `{'e' * 64}`)"]),
    ("merged", [
        "A model, merged from its base and a LoRA adapter,",
        "On a prompt of 100 tokens", "but for 1.0e-06 of the largest, and the saved ones but for 3.0e-03",
        "the same at 99 of 100 places",
    ]),
    ("several-toolsets", ["It was trained with several prompts: declare your own functions.", '"name": "get_time"']),
    ("unevaluated", ["It was **not evaluated** before it was published"]),
    ("hard", ["| Typing errors | 126 | 0.0% (0.0% to 3.0%) | 91.3% (85.0% to 95.1%) |"]),
    ("other-data", ["126 questions of other data: `other.jsonl`."]),
    ("trained-on", ["**some of which it was trained on: this flatters it.**"]),
    ("trained-on-file", ["**some of which it was trained on: this flatters it.**", "(rows of the training data)"]),
    ("trained-on-split-anew", ["**some of which it was trained on: this flatters it.**"]),
    ("constrained", ["on TPU v5 lite, and was held to valid calls of the declared functions", "constrained: true"]),
    ("random-split", ["though near-duplicates of them may be among its training rows", "held out (drawn at random)"]),
    ("no-mistake", ["None was seen in 126 questions, which a rate of up to 3.0% would make no surprise."]),
])  # fmt: skip
def test_what_it_says(kind, parts):
    card = model_card(KINDS[kind])
    for part in parts:
        assert part in card, part


@pytest.mark.parametrize(("kind", "absent"), [
    ("merged", ["fitcoach-tune infer", "PeftModel", "library_name: peft"]),
    ("no-developer", ['"role": "developer"']),
    ("hard", ["were not measured", "was not measured"]),
    ("no-baseline", ["McNemar", "untuned"]),
    ("unevaluated", ["model-index", "results.json"]),
    ("hub", ["**not evaluated**", "flatters", "held to valid", "constrained: true"]),
])  # fmt: skip
def test_what_it_does_not_say(kind, absent):
    card = model_card(KINDS[kind])
    assert [text for text in absent if text in card] == []


def test_what_a_tool_says_cannot_break_the_card():
    bad = tool("f", x={"type": ["string", "null"], "description": "a | b\n\n## A heading <script>"})
    bad["function"]["description"] = "---\n| one | two |"
    card = model_card(with_(prompt={"developer": "d", "tools": [bad]}))
    assert r"| `f` | --- \| one \| two \| | `x` (string or null, required): a \| b ## A heading &lt;script> |" in card


def test_tables():
    assert cell("a\nb | <c>") == r"a b \| &lt;c>"
    assert table(("x", "n"), [("a", 1)], numbers=1) == "| x | n |\n| --- | ---: |\n| a | 1 |"
