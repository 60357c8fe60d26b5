"""A tiny model that has learnt the fitness coach's calls by heart, for the tests of `infer`."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest

from fitcoach_tune import fitness, functiongemma, models
from fitcoach_tune.config import load_config
from fitcoach_tune.train import train

from .conftest import conversation, tiny_gemma

QUESTIONS = {
    "How many steps?": "get_steps",
    "What is my step goal?": "get_daily_step_goal",
    "Am I close to my goal?": "get_step_goal_progress",
    "Display my sleep metrics": "get_sleeping_minutes",
    "How long was I active?": "get_active_minutes",
    "Show my pulse": "get_heart_rate",
    "How is my body battery?": "get_body_battery_level",
}
STEPS = 8421
SAID = f"That is {STEPS} steps."
"""What the model has learnt to say of the sample's steps; of other results it has learnt nothing."""


def _rows() -> list[list[dict]]:
    rows = [conversation(query, (name, {})) for query, name in QUESTIONS.items()]
    result = {"role": "tool", "name": "get_steps", "content": {"value": STEPS}}
    rows.append([*conversation("How many steps?", ("get_steps", {})), result, {"role": "assistant", "content": SAID}])
    return rows


@functools.cache
def _teach(folder: Path, offline: Path) -> Path:
    tokenizer = models.load_tokenizer(offline)
    rows, tools = _rows(), fitness.tools()
    # The tokens that matter get large embeddings, so that a few steps teach it.
    spoken = [functiongemma.render(row[-1:]) for row in rows] + [SAID]
    used = sorted({i for ids in tokenizer(spoken, add_special_tokens=False)["input_ids"] for i in ids})
    model = tiny_gemma(vocab_size=262144, layers=2, hidden_size=64)
    weight = model.model.embed_tokens.weight.data
    large = 2 * weight[used]
    weight *= 0.1
    weight[used] = large
    model.save_pretrained(folder / "base")
    models.copy_tokenizer(offline, folder / "base", functiongemma.chat_template())
    lines = [json.dumps({"messages": row, "tools": tools}) for row in rows * 4]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    config = load_config(None, {
        "model": str(folder / "base"), "dataset": str(folder / "rows.jsonl"), "data": str(folder / "set"),
        "output_dir": str(folder / "run"), "dtype": "fp32", "device": "cpu", "optim": "adamw", "learning_rate": 1e-2,
        "lora_r": 16, "lora_dropout": 0.0, "target_modules": "all-linear", "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1, "num_train_epochs": 16, "lr_scheduler_type": "linear",
        "split": "random", "test_size": 0.04,
    })  # fmt: skip
    train(config)
    return folder / "run"


@pytest.fixture(scope="session")
def taught(offline_base, tmp_path_factory) -> Path:
    """The run's folder; the same one for all modules that import this fixture."""
    return _teach(tmp_path_factory.getbasetemp().joinpath("coach"), offline_base.path)


@pytest.fixture(scope="module")
def tokenizers():
    """Each tokenizer is read once: it takes a second or more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "load_tokenizer", functools.cache(models.load_tokenizer))
        yield
