"""The main job on the real 270M weights: exact against a plain computation, and far better than the base after
training.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fitcoach_tune import models, prepare
from fitcoach_tune.config import load_config
from fitcoach_tune.training import adapter, batches
from fitcoach_tune.training.step import PackedLoss, inputs

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def prepared(offline_base, tmp_path_factory):
    return prepare.prepare(load_config("offline"), target=tmp_path_factory.mktemp("real") / "set")


def test_loss_and_gradients_equal_the_plain_computation(offline_base, prepared):
    """Float32, four fitness rows, LoRA on every linear layer: loss and each gradient within 1e-5 of the plain ones."""
    model = models.load_model(offline_base, "fp32")
    adapter.attach(model, rank=4, alpha=8, dropout=0.0, target_modules=["all-linear"], seed=0)
    generator = torch.Generator().manual_seed(1)
    for _, layer in adapter.lora_layers(model):
        layer.lora_B.data.normal_(std=0.02, generator=generator)
    parameters = list(adapter.trained_parameters(model).values())
    rows = [prepared.train[i] for i in range(4)]
    assert len(prepared.prefix) > 200

    model.set_attn_implementation("eager")
    plain = 0.0
    for row in rows:
        ids = torch.from_numpy(row.input_ids.astype(np.int64))[None]
        at = torch.from_numpy(row.supervised)
        # In float32 torch's cross-entropy over 262,144 classes is itself off by some 1e-4 in the gradients.
        logits = model(input_ids=ids).logits[0, at - 1].double()
        plain = plain + F.cross_entropy(logits, ids[0, at], reduction="sum")
    expected = torch.autograd.grad(plain, parameters)

    batch = batches.pack(rows, np.arange(4), prepared.prefix, groups=1)
    packed = PackedLoss(model)(*inputs(batch, model.config.sliding_window, torch.from_numpy))
    assert packed.item() == pytest.approx(plain.item(), rel=1e-5)
    actual = torch.autograd.grad(packed, parameters)
    total = torch.stack([(a - e).norm() for a, e in zip(actual, expected, strict=True)]).norm()
    assert total / torch.stack([e.norm() for e in expected]).norm() < 1e-5


def test_the_main_job(run_cli, run_example, tmp_path):
    """480 rows, each seen once: far above the base, every answer a call or words, and PEFT gives the same call."""
    settings = ("--max-steps", "30", "--per-device-train-batch-size", "16", "--test-size", "0.015")
    run_cli("train", "--config", "offline", *settings, "--output-dir", "output/short", "-q", check=True)
    done = run_cli("eval", "--max-new-tokens", "40", "--json", "-q", check=True)  # three calls are 34 tokens at most
    found = json.loads(done.stdout)
    base, tuned, constrained = (model["metrics"] for model in found["sets"][0]["models"])
    held_out = json.loads((tmp_path / "output/short/run.json").read_text())["data"]["rows"]["test"]
    assert base["n"] == tuned["n"] == held_out > 50
    assert base["names"]["high"] < 0.2  # of rows that want a call: words alone are right where none is wanted
    assert tuned["names"]["low"] > 0.4
    assert tuned["valid_format"]["right"] == held_out
    assert tuned["unstopped"]["right"] == constrained["unstopped"]["right"] == 0
    assert constrained["invented"]["right"] == 0
    assert constrained["exact"]["right"] >= tuned["exact"]["right"] - 2  # rounded apart, not another model

    asked = run_cli("infer", "How many steps?", "--json", check=True)
    answer = json.loads(asked.stdout)
    assert answer["calls"] == [{"name": "get_steps", "arguments": {}}]
    assert answer["constrained"]

    dtype = {"bf16": "bfloat16", "fp32": "float32"}[found["settings"]["dtype"]]
    plain = run_example(tmp_path / "output/short", "How many steps?", cwd=tmp_path, dtype=dtype)
    assert plain == answer["raw"]
