"""The loop against a plain reference loop, and the promises of a step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fitcoach_tune.backends import make_backend
from fitcoach_tune.config import Config
from fitcoach_tune.errors import ConfigError, TrainingError
from fitcoach_tune.training import adapter, batches, optim
from fitcoach_tune.training.core import Trainer, TrainingData

from .test_prefix import make_rows

BASE = {"dtype": "fp32", "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "num_train_epochs": 2, "optim": "adamw"}


def make_trainer(model, rows=20, seed=7, test=0, **settings):
    config = Config(**{**BASE, "learning_rate": 1e-2, **settings})
    head, made = make_rows(np.random.default_rng(seed), 12, rows=rows + test)
    adapter.attach_configured(model, config)
    return Trainer(model, config, TrainingData(made[:rows], made[rows:], head), make_backend("cpu"))


def run(trainer):
    history = []
    trainer.run(history.append)
    return history


def tensors(trainer):
    return {k: v.detach().clone() for k, v in adapter.trained_parameters(trainer.model).items()}


def reference_run(model, trainer):
    """Plain PyTorch: each row alone under eager attention, the mean over the batch's supervised tokens, no packing."""
    model.set_attn_implementation("eager")
    config, rows, plan = trainer.config, trainer.data.train, trainer.plan
    parameters = list(adapter.trained_parameters(model).values())
    optimizer = optim.make_optimizer(config, parameters)
    losses = []
    for step in range(plan.steps):
        epoch, in_epoch = divmod(step, plan.steps_per_epoch)
        chosen = [i for i in batches.batch_rows(len(rows), plan.batch_size, config.seed, epoch, in_epoch) if i >= 0]
        total, count = 0.0, 0
        for i in chosen:
            ids = torch.from_numpy(rows[i].input_ids.astype(np.int64))[None]
            at = torch.from_numpy(rows[i].supervised)
            total = total + F.cross_entropy(model(input_ids=ids).logits[0, at - 1], ids[0, at], reduction="sum")
            count += len(at)
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm or float("inf"))
        for group in optimizer.param_groups:
            group["lr"] = optim.learning_rate(config, step, plan.steps)
        optimizer.step()
        optimizer.zero_grad()
        losses.append((total / count).item())
    return losses


@pytest.mark.parametrize("settings", [
    {"optim": "adamw", "lr_scheduler_type": "cosine", "warmup_ratio": 0.2},
    {"optim": "adafactor", "max_grad_norm": 0},
    {"optim": "adamw", "gradient_accumulation_steps": 3, "weight_decay": 0.1, "max_grad_norm": 0.05},
])  # fmt: skip
def test_equals_a_plain_loop(make_tiny, settings):
    """20 rows do not divide by the batch: the last partial batch is part of it."""
    trainer = make_trainer(make_tiny(), **settings)
    other = make_tiny()
    twin = make_trainer(other, **settings)
    expected = reference_run(other, twin)
    history = run(trainer)
    assert [m.loss for m in history] == pytest.approx(expected, rel=1e-4)
    assert expected[-1] < expected[0]
    for name, value in tensors(twin).items():
        torch.testing.assert_close(tensors(trainer)[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("size", "accumulation"), [(1, 8), (2, 4), (8, 1)])
def test_micro_batches_change_nothing(make_tiny, size, accumulation):
    settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
    trainer = make_trainer(make_tiny(), **settings)
    whole = make_trainer(make_tiny(), per_device_train_batch_size=8, gradient_accumulation_steps=1)
    assert [m.loss for m in run(trainer)] == pytest.approx([m.loss for m in run(whole)], rel=1e-4)
    for name, value in tensors(whole).items():
        torch.testing.assert_close(tensors(trainer)[name], value, rtol=1e-3, atol=1e-5)


def test_the_same_twice_with_dropout_and_not_with_another_seed(make_tiny):
    first, second, other = (
        make_trainer(make_tiny(), lora_dropout=0.3, seed=7, **extra) for extra in ({}, {}, {"max_steps": 6})
    )
    losses = [[m.loss for m in run(trainer)] for trainer in (first, second)]
    assert losses[0] == losses[1]
    assert all(torch.equal(v, tensors(second)[k]) for k, v in tensors(first).items())
    other.config = other.config.model_copy(update={"seed": 8})
    assert [m.loss for m in run(other)] != losses[0][:6]


def test_dropout_is_on_in_training_and_off_in_evaluation(make_tiny):
    trainer = make_trainer(make_tiny(), lora_dropout=0.5, test=6)
    for _, layer in adapter.lora_layers(trainer.model):
        layer.lora_B.data.fill_(0.05)
    assert trainer.evaluation_loss() == trainer.evaluation_loss()
    assert trainer.step(0, update=False).loss != trainer.step(len(trainer.data.train), update=False).loss


def test_evaluation_loss_is_the_mean_over_tokens(make_tiny):
    model = make_tiny()
    trainer = make_trainer(model, test=7, per_device_eval_batch_size=3)
    measured = trainer.evaluation_loss()
    model.set_attn_implementation("eager")
    total = count = 0
    for row in trainer.data.test:
        ids = torch.from_numpy(row.input_ids.astype(np.int64))[None]
        at = torch.from_numpy(row.supervised)
        total += F.cross_entropy(model(input_ids=ids).logits[0, at - 1], ids[0, at], reduction="sum").item()
        count += len(at)
    assert measured == pytest.approx(total / count, rel=1e-5)


def test_metrics_of_every_step_and_an_evaluation_each_epoch(make_tiny):
    trainer = make_trainer(make_tiny(), test=5)
    history = run(trainer)
    assert [m.step for m in history] == [1, 2, 3, 4, 5, 6]
    assert [m.step for m in history if m.eval_loss is not None] == [3, 6]
    assert history[2].epoch == 1.0
    assert all(m.grad_norm > 0 and m.supervised_tokens > 0 and m.examples_per_second > 0 for m in history)


def of_type(model, dtype):
    return model.to(torch.bfloat16) if dtype == "bf16" else model


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("step", [0, 3, 5])
def test_a_loss_that_is_not_finite_stops_before_the_update(make_tiny, step, dtype):
    trainer = make_trainer(of_type(make_tiny(), dtype), dtype=dtype)
    for earlier in range(step):
        trainer.step(earlier)
    before = tensors(trainer)
    layer = next(adapter.lora_layers(trainer.model))[1]
    layer.base.weight[0, 0] = float("nan")
    with pytest.raises(TrainingError, match=f"step {step + 1}: the loss is not finite") as caught:
        trainer.step(step)
    assert "training rows of this step" in str(caught.value)
    assert all(torch.equal(v, before[k]) for k, v in tensors(trainer).items())


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("step", [0, 5])
def test_a_gradient_that_is_not_finite_stops_before_the_update(make_tiny, step, dtype):
    """B is zero and A is huge: the loss is the base's, and the gradient of B longer than a float32 can say."""
    trainer = make_trainer(of_type(make_tiny(), dtype), dtype=dtype)
    for _, layer in adapter.lora_layers(trainer.model):
        layer.lora_A.data *= 1e30
    before = tensors(trainer)
    with pytest.raises(TrainingError, match=f"step {step + 1}: the gradient is not finite") as caught:
        trainer.step(step)
    assert "training rows of this step" in str(caught.value)
    assert all(torch.equal(v, before[k]) for k, v in tensors(trainer).items())
    assert not any(value.any() for state in trainer.optimizer.state.values() for value in state.values())


def test_parts_of_a_step_change_nothing(make_tiny):
    """What a CPU computes in several parts is what it would compute at once: losses, the evaluation's, and weights."""
    size = {"per_device_train_batch_size": 40, "gradient_accumulation_steps": 1}
    settings = {"rows": 100, "test": 40, "optim": "adamw", "max_steps": 4, **size}
    at_once, in_parts = (make_trainer(make_tiny(), **settings) for _ in range(2))
    in_parts.backend.most_tokens = 30
    assert len(in_parts._pack(in_parts.data.train, in_parts.data.prefix, np.arange(40))) > 2
    first, second = run(at_once), run(in_parts)
    for one, other in zip(first, second, strict=True):
        assert (other.loss, other.grad_norm) == pytest.approx((one.loss, one.grad_norm), rel=1e-5)
    assert second[-1].eval_loss == pytest.approx(first[-1].eval_loss, rel=1e-5)
    for name, expected in tensors(at_once).items():
        torch.testing.assert_close(tensors(in_parts)[name], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"dtype": "bf16"}, {"target_modules": "all-linear", "lora_dropout": 0.1}])
def test_the_base_is_bit_equal_after_training(make_tiny, settings):
    model = of_type(make_tiny(), settings.get("dtype"))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    run(make_trainer(model, **settings))
    after = {k.replace(".base.", "."): v for k, v in model.state_dict().items() if "lora_" not in k}
    assert before.keys() == after.keys()
    assert all(torch.equal(v, after[k]) for k, v in before.items())


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_the_original_learning_rate_moves_b(make_tiny, optimizer):
    """torch's own Adafactor scales its step by the parameter's size, and a B of zeros would stay where it is."""
    trainer = make_trainer(make_tiny(), optim=optimizer, learning_rate=5e-5, max_steps=3)
    run(trainer)
    moved = [layer.lora_B.abs().max().item() for _, layer in adapter.lora_layers(trainer.model)]
    assert min(moved) > 1e-5


def test_unknown_target_lists_what_there_is(make_tiny):
    with pytest.raises(ConfigError, match="no linear layer of the model is called qkv") as caught:
        make_trainer(make_tiny(), target_modules="q_proj,qkv")
    assert "down_proj" in str(caught.value)
    assert "all-linear" in str(caught.value)


def test_bf16_follows_fp32(make_tiny):
    """Frozen base and arithmetic in bfloat16, LoRA and optimizer state in float32."""
    exact, rough = make_trainer(make_tiny()), make_trainer(make_tiny().to(torch.bfloat16), dtype="bf16")
    assert {p.dtype for p in rough.parameters} == {torch.float32}
    expected, losses = ([m.loss for m in run(t)] for t in (exact, rough))
    assert losses == pytest.approx(expected, rel=0.05)
    assert {s.dtype for state in rough.optimizer.state.values() for k, s in state.items() if k != "step"} == {
        torch.float32
    }
