"""Small folders as the program writes them, made without a model: a prepared set, a run, a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from fitcoach_tune import files, functiongemma, prepared_set
from fitcoach_tune.dataset import Example
from fitcoach_tune.functiongemma import Call
from fitcoach_tune.gold import gold_of
from fitcoach_tune.prepared_set import PreparedRow
from fitcoach_tune.prepared_set_writer import Spool, as_batch, conversations, tokens, write_set
from fitcoach_tune.training import checkpoint
from tests.conftest import SLEEP, STEPS, conversation
from tests.training.test_checkpoint import RUN, snapshot, state

TOOLS = [STEPS, SLEEP]
ADAPTER = {
    "peft_type": "LORA",
    "base_model_name_or_path": "owner/base",
    "revision": None,
    "r": 2,
    "lora_alpha": 4,
    "bias": "none",
    "target_modules": ["q_proj"],
}


def prepared(folder: Path) -> Path:
    """Three rows to train on and one held out."""
    rows = [conversation(f"bed {i}", ("get_sleep", {"days": i})) for i in range(3)] + [conversation("hi", text="Hello")]
    examples = [Example(messages, TOOLS, f"rows.jsonl:{i + 1}") for i, messages in enumerate(rows)]
    examples[0] = Example(rows[0], TOOLS, "rows.jsonl:1", gold_of(examples[0].gold, TOOLS, [[Call("get_steps", {})]]))
    made = [PreparedRow(np.array([2, 105, 9, 48 + i, 106], np.int32), ((3, 5),), i) for i in range(4)]
    manifest = {
        "format": prepared_set.FORMAT,
        "versions": {"fitcoach_tune": "0"},
        "source": {"name": "rows.jsonl", "revision": None, "sha256": "0", "tools_sha256": None, "notes": []},
        "settings": {
            "dataset": "rows.jsonl", "revision": None, "tools": None, "seed": 42, "max_length": 512,
            "excess_length": "error", "test_size": 0.3, "split": "random",
        },
        "model": {"name": "owner/base", "revision": None, "tokenizer_sha256": files.sha256_text("{}")},
        "rows": {"read": 4, "dropped": 0, "train": 3, "test": 1},
        "tokens": {"total": 20, "supervised": 8, "p50": 5, "p95": 5, "max": 5},
        "prefix": {"tokens": 2, "sha256": "0"},
        "split": {"conflicts": 0},
        "developer": functiongemma.TRIGGER,
    }  # fmt: skip
    template = functiongemma.chat_template()
    with Spool(folder) as rows:
        rows.add(as_batch(tokens(made) | conversations(examples, [0] * 4)))
        write_set(folder, manifest, rows, (np.arange(3), np.arange(3, 4)), [TOOLS], [0] * 4, template)
    return folder


def run(folder: Path) -> Path:
    """A finished run with every file that is read of one; its weights are for no model."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(ADAPTER))
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    save_file({f"{name}.lora_{x}.weight": torch.ones(2, 2) for x in "AB"}, folder / "adapter_model.safetensors")
    (folder / "prompt.json").write_text(json.dumps({"developer": functiongemma.TRIGGER, "tools": TOOLS}))
    for name in ("tokenizer.json", "tokenizer_config.json", "config.resolved.yaml"):
        (folder / name).write_text("{}")
    (folder / "chat_template.jinja").write_text(functiongemma.chat_template())
    (folder / "run.json").write_text(json.dumps(record(folder)))
    return folder


def record(folder: Path) -> dict:
    """What its run.json says."""
    return {
        "format": 1,
        "finished": "2026-01-01T00:00:00+00:00",
        "versions": {"fitcoach_tune": "0", "python": "3.11", "torch": "2"},
        "device": {"name": "cpu", "hardware": "a CPU", "count": 1},
        "base": {
            "name": "owner/base", "revision": "abc", "reference": "owner/base", "tokenizer_sha256": "0",
            "weights_sha256": "0",
        },
        "data": {
            "path": str(folder / "set"),
            "source": {"name": "rows.jsonl", "revision": None, "sha256": "0", "notes": []},
            "rows": {"read": 4, "dropped": 0, "train": 3, "test": 1},
            "tokens": {"p50": 5},
            "prefix": {"tokens": 2},
            **dict.fromkeys(("data_sha256", "tools_sha256", "template_sha256"), "0"),
        },
        "config": {
            "dtype": "fp32", "hub_model_id": None, "max_new_tokens": 8, "split": "random", "lora_r": 2, "seed": 42,
            "lora_alpha": 4, "lora_dropout": 0.1, "target_modules": ["q_proj"], "warmup_ratio": 0, "max_grad_norm": 1,
            "optim": "adamw", "learning_rate": 1e-3, "lr_scheduler_type": "constant", "weight_decay": 0,
        },
        "training": {
            "trainable_parameters": 8, "batch_size": 1, "steps": 3, "resumed_at": [], "epochs": 1.0, "first_loss": 2.0,
            "last_loss": 1.0, "eval_losses": [], "examples_per_second": 1.0, "peak_memory_bytes": 1,
        },
        "check": {"logit_difference": 0.0, "logit_change_from_base": 1.0, "lora_b_norm": 1.0, "loaded_by": "peft"},
        "seconds": {"train": 1.0, "total": 1.0},
        "files": {file.name: files.sha256_file(file) for file in folder.iterdir() if file.name != "run.json"},
    }  # fmt: skip


def checkpoints(folder: Path) -> Path:
    """A checkpoint of step 2."""
    return checkpoint.write(folder, snapshot(2), state(run=RUN))


def forge(folder: Path, name: str, data: bytes) -> None:
    """Put other contents into a file, and into the manifest the hash of them."""
    (folder / name).write_bytes(data)
    manifest = next(folder / m for m in ("manifest.json", "run.json") if (folder / m).exists())
    listed = json.loads(manifest.read_text())
    found = files.sha256_file(folder / name)
    is_checkpoint = isinstance(listed["files"][name], dict)
    listed["files"][name] = {"bytes": len(data), "sha256": found} if is_checkpoint else found
    manifest.write_text(json.dumps(listed))
