"""A run that goes on from a checkpoint is the run that never ended: bit for bit, or refused and told why."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fitcoach_tune import config as configuration
from fitcoach_tune.backends import make_backend
from fitcoach_tune.config import Config
from fitcoach_tune.errors import ConfigError, MismatchError, TrainingError
from fitcoach_tune.training import adapter, checkpoint, resume
from fitcoach_tune.training.core import Plan, Trainer, TrainingData
from fitcoach_tune.training.signals import StopSignals
from fitcoach_tune.training.variation import Variation

from .conftest import tiny_gemma
from .training.test_prefix import make_rows

# ------------------------------------------------------------------------------------------------ bit for bit

# 22 rows in batches of 8: two whole steps and a partial one in an epoch, each of two micro-batches or more.
COMMON = {"dtype": "fp32", "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.3, "num_train_epochs": 3, "save_steps": 1}
RUNS = {
    "adamw": {"optim": "adamw", "learning_rate": 1e-2, "weight_decay": 0.1, "lr_scheduler_type": "cosine"},
    "adafactor": {"optim": "adafactor", "learning_rate": 1e-2, "warmup_ratio": 0.3, "lr_scheduler_type": "linear"},
    "many micro-batches": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "learning_rate": 1e-2},
    "bf16": {"dtype": "bf16", "learning_rate": 1e-2, "target_modules": "all-linear"},
    "tools that vary": {"shuffle_tools": True, "tool_dropout": 0.5, "learning_rate": 1e-2},
}
STEPS = 9


HEAD = np.array([2, 46, 5, 6, 47, 46, 7, 47, 46, 8, 9, 47], np.int32)  # three tools between their control tokens


def make_data(config):
    """22 rows to train on, each of which calls one of three tools, and 5 held out."""
    _, rows = make_rows(np.random.default_rng(3), len(HEAD), rows=27)
    for row in rows:
        row.input_ids[: len(HEAD)] = HEAD
    variation = None
    if config.tool_dropout:
        calls = [(frozenset("abc"[i % 3]),) for i in range(22)]
        refusal = np.array([11, 12], np.int32)
        variation = Variation(config.seed, config.shuffle_tools, config.tool_dropout, tuple("abc"), calls, refusal)
    return TrainingData(rows[:22], rows[22:], HEAD, variation=variation)


def make_trainer(chosen, start=None):
    config = Config(**{**COMMON, **chosen})
    model = tiny_gemma(layers=2).to(torch.bfloat16 if config.dtype == "bf16" else torch.float32)
    adapter.attach_configured(model, config)
    return Trainer(model, config, make_data(config), make_backend("cpu"), start)


def carry_out(trainer, stop=lambda: False):
    """Train; returns metrics but for the speed, the rows of every step that was taken, and a snapshot of every save."""
    send, rows, saved = trainer.send, [], {}

    def noted(step):
        sent = send(step)
        rows.append(sent.rows.tolist())
        return sent

    def save():
        snapshot = trainer.snapshot()
        saved[snapshot.step] = snapshot

    trainer.send = noted
    history = trainer.run(lambda _: None, save, stop)
    return [without_speed(m) for m in history], rows, saved


def without_speed(metrics):
    return {key: value for key, value in metrics.as_dict().items() if key != "examples_per_second"}


@pytest.fixture(scope="module")
def straight():
    return {name: carry_out(make_trainer(chosen)) for name, chosen in RUNS.items()}


@pytest.mark.parametrize("at", [0, 1, 3, 5, 8, 9])
@pytest.mark.parametrize("name", RUNS)
def test_going_on_equals_never_having_stopped(straight, tmp_path, name, at):
    """Through the files: losses, evaluations, rates, the order of rows, LoRA and optimizer. 3 and 9 end an epoch."""
    metrics, rows, saved = straight[name]
    taken = saved[at] if at else make_trainer(RUNS[name]).snapshot()
    found = checkpoint.read(checkpoint.write(tmp_path, taken, STATE))
    second = make_trainer(RUNS[name], found.snapshot)
    metrics_again, rows_again, saved_again = carry_out(second)
    assert metrics_again == metrics
    assert rows_again == rows[at:]
    assert len(rows) == STEPS
    end, other = saved[STEPS], second.snapshot()
    assert end.lora.keys() == other.lora.keys()
    assert end.optimizer.keys() == other.optimizer.keys()
    assert all(torch.equal(value, other.lora[key]) for key, value in end.lora.items())
    assert all(torch.equal(value, other.optimizer[key]) for key, value in end.optimizer.items())
    assert sorted(saved_again) == list(range(at + 1, STEPS + 1))


def test_the_runs_are_worth_comparing(straight):
    """Guards the test above: dropout, the rate's schedule and the optimizer's state do matter to what follows."""
    metrics, _, saved = straight["adamw"]
    assert len({line["learning_rate"] for line in metrics}) == STEPS
    assert [line["step"] for line in metrics if "eval_loss" in line] == [3, 6, 9]
    blank = {key: torch.zeros_like(value) for key, value in saved[5].optimizer.items()}
    forgetful = make_trainer(RUNS["adamw"], checkpoint.Snapshot(saved[5].lora, blank, saved[5].metrics))
    assert carry_out(forgetful)[0][6:] != metrics[6:]
    other = make_trainer({**RUNS["adamw"], "lora_dropout": 0.0}, saved[5])
    assert carry_out(other)[0][5:] != metrics[5:]
    metrics, _, saved = straight["tools that vary"]
    steady = make_trainer({**RUNS["tools that vary"], "tool_dropout": 0.0}, saved[5])
    assert carry_out(steady)[0][5:] != metrics[5:]


@pytest.mark.parametrize("micro", [0, 2])
def test_a_signal_in_the_midst_of_accumulation(straight, tmp_path, micro):
    """It comes before the first of step 5's four micro-batches, or the third: all four are in what is saved."""
    chosen = RUNS["many micro-batches"]
    metrics, _, saved = straight["many micro-batches"]
    trainer = make_trainer(chosen)
    seed = trainer.backend.seed

    def seeding(*parts):
        if parts[1:] == (4, micro):
            os.kill(os.getpid(), signal.SIGTERM)
        seed(*parts)

    trainer.backend.seed = seeding
    with StopSignals(quiet=True) as signals:
        stopped, _, taken = carry_out(trainer, signals.stopping)
    assert signals.name == "SIGTERM"
    assert stopped == metrics[:5]
    assert all(torch.equal(value, saved[5].lora[key]) for key, value in taken[5].lora.items())
    found = checkpoint.read(checkpoint.write(tmp_path, taken[5], STATE))
    assert carry_out(make_trainer(chosen, found.snapshot))[0] == metrics


@pytest.mark.parametrize("at", [2, 3, 9])
def test_asked_to_stop_it_ends_after_the_step_and_goes_on_later(straight, at):
    """At the end of an epoch without its evaluation, which is made up for."""
    metrics, rows, _ = straight["adafactor"]
    asked = iter(range(1, 99))
    first = make_trainer(RUNS["adafactor"])
    stopped, _, saved = carry_out(first, stop=lambda: next(asked) == at)
    assert len(stopped) == at
    assert "eval_loss" not in stopped[-1]
    assert max(saved) == at
    assert not first.finished
    assert first.owes_evaluation == (at in (3, 9))
    second = make_trainer(RUNS["adafactor"], saved[at])
    heard = []
    assert [without_speed(m) for m in second.run(heard.append)] == metrics
    assert second.finished
    assert [m.step for m in heard] == list(range(at + (at not in (3, 9)), STEPS + 1))
    assert len(rows) == STEPS


@pytest.mark.parametrize(("chosen", "expected"), [
    ({"save_steps": None}, [3, 6, 9]), ({"save_steps": 4}, [4, 8, 9]), ({"save_steps": 1}, list(range(1, 10))),
    ({"save_steps": 0}, []), ({"save_steps": 100}, [9]), ({"save_steps": None, "max_steps": 5}, [3, 5]),
])  # fmt: skip
def test_when_checkpoints_are_due(chosen, expected):
    assert sorted(carry_out(make_trainer({**RUNS["adamw"], **chosen}))[2]) == expected


def test_an_update_that_spoils_the_weights_is_not_saved():
    """Loss and gradient were finite; the rate makes the update infinite."""
    trainer = make_trainer({**RUNS["adamw"], "lr_scheduler_type": "constant"})
    saved = []
    for group in trainer.optimizer.param_groups:
        group["weight_decay"] = float("inf")
    with pytest.raises(TrainingError, match=r"step 1: the update made .* not finite"):
        trainer.run(lambda _: None, lambda: saved.append(trainer.snapshot()))
    assert saved == []


# ------------------------------------------------------------------------------------------------ the same run?

CONFIG = Config().model_dump(mode="json")
RUN = {
    "data": {"data_sha256": "d" * 64, "tools_sha256": "t" * 64, "template_sha256": "c" * 64},
    "base": {
        "name": "m",
        "revision": "abc",
        "reference": "m",
        "weights_sha256": "w" * 64,
        "tokenizer_sha256": "k" * 64,
    },
    "config": CONFIG,
    "batch_size": 8,
    "device": {"name": "cpu", "count": 1, "first": 1},
    "versions": {"torch": "2.9.0"},
}


STATE = {"run": RUN, "seconds": 1.5, "resumed_at": []}


def hashes(what, letter):
    return f"{what}: {letter * 12} in the checkpoint, {'e' * 12} now"


def changed(part, **values):
    return {**RUN, part: {**RUN[part], **values}}


@pytest.mark.parametrize(("now", "expected"), [
    (RUN, []),
    (changed("data", data_sha256="e" * 64), [hashes("the prepared rows", "d")]),
    (changed("data", tools_sha256="e" * 64), [hashes("the tools", "t")]),
    (changed("data", template_sha256="e" * 64), [hashes("the chat template", "c")]),
    (changed("base", revision=None), ["the base model's revision: abc in the checkpoint, none now"]),
    (changed("base", weights_sha256="e" * 64), [hashes("the base model's weights", "w")]),
    (changed("base", tokenizer_sha256="e" * 64), [hashes("the tokenizer", "k")]),
    (changed("config", learning_rate=0.1, lora_r=8), ["--lora-r: 32 in the checkpoint, 8 now",
                                                      "--learning-rate: 5e-05 in the checkpoint, 0.1 now"]),
    (changed("config", target_modules=["q_proj"]),
     ["--target-modules: q_proj,k_proj,v_proj,o_proj in the checkpoint, q_proj now"]),
    ({**RUN, "batch_size": 16, "config": {**CONFIG, "per_device_train_batch_size": 8}},
     ["rows of a step: 8 in the checkpoint, 16 now", "--per-device-train-batch-size: 4 in the checkpoint, 8 now"]),
    ({**changed("data", data_sha256="e" * 64), "config": {**CONFIG, "test_size": 0.5, "data": "elsewhere"}},
     [hashes("the prepared rows", "d"), "--test-size: 0.3 in the checkpoint, 0.5 now"]),
    (changed("base", name="moved", reference="/elsewhere/m"), []),
    (changed("config", data="moved", model="moved", dataset="moved", output_dir="moved", seed=42), []),
])  # fmt: skip
def test_differences(now, expected):
    assert resume.differences(RUN, now) == expected
    assert resume.differences(json.loads(json.dumps(RUN)), now) == expected


@pytest.mark.parametrize(("now", "expected"), [
    (RUN, []),
    (changed("device", count=4, first=4), ["devices: 4 now, 1 before"]),
    (changed("device", name="tpu", count=8), ["devices: 8 now, 1 before", "device: tpu now, cpu before"]),
    (changed("config", save_steps=5, save_total_limit=3),
     ["--save-steps: none before, 5 now", "--save-total-limit: none before, 3 now"]),
    (changed("versions", torch="2.11.0"), ["torch: 2.11.0 now, 2.9.0 before"]),
])  # fmt: skip
def test_what_may_differ_is_said(now, expected):
    assert resume.differences(RUN, now) == []
    assert resume.remarks(RUN, now) == expected


DECIDES = {
    "seed", "dtype", "lora_r", "lora_alpha", "lora_dropout", "target_modules", "num_train_epochs", "max_steps",
    "learning_rate", "optim", "lr_scheduler_type", "warmup_ratio", "weight_decay", "max_grad_norm",
    "shuffle_tools", "tool_dropout",
}  # fmt: skip


def test_every_setting_is_accounted_for():
    """A new one is refused if it changed until somebody has decided what it means for a run that goes on."""
    other = {name: f"not {value}" for name, value in CONFIG.items()}
    found = resume.differences(RUN, {**RUN, "config": other})
    assert {line.split(":")[0] for line in found} == {configuration.flag(name) for name in DECIDES}


@pytest.mark.parametrize(("rows", "micros", "devices", "then", "expected"), [
    (4, 2, 1, (8, 1), (4, 2)),      # as it was
    (4, 2, 2, (8, 1), (4, 1)),      # twice the devices, half the micro-batches
    (4, 2, 4, (8, 1), (2, 1)),
    (4, 2, 1, (64, 8), (4, 16)),    # one device of eight is left
    (6, 1, 4, (12, 2), (3, 1)),
    (5, 1, 2, (20, 4), (5, 2)),
    (4, 1, 2, (8, 4), (4, 1)),      # the user has shared it out already
    (8, 2, 1, (8, 1), (8, 2)),      # the user wants another batch: found as a difference
])  # fmt: skip
def test_other_devices_share_the_same_batch(rows, micros, devices, then, expected):
    config = Config(per_device_train_batch_size=rows, gradient_accumulation_steps=micros)
    size, first = then
    shared = resume.share_batch(config, devices, {"batch_size": size, "device": {"first": first}})
    assert (shared.per_device_train_batch_size, shared.gradient_accumulation_steps) == expected
    assert (Plan.of(shared, 100, devices).batch_size == size) == (rows != 8)


@settings(max_examples=100, deadline=None)
@given(rows=st.integers(1, 12), micros=st.integers(1, 6), first=st.integers(1, 8), devices=st.integers(1, 8))
def test_whatever_the_devices_the_batch_stays_and_none_gets_more_rows_at_once(rows, micros, first, devices):
    config = Config(per_device_train_batch_size=rows, gradient_accumulation_steps=micros)
    size = rows * micros * first
    then = {"batch_size": size, "device": {"first": first}}
    if size % devices:
        with pytest.raises(ConfigError, match="cannot be shared evenly"):
            resume.share_batch(config, devices, then)
        return
    shared = resume.share_batch(config, devices, then)
    assert Plan.of(shared, 100, devices).batch_size == size
    assert shared.per_device_train_batch_size <= rows


def test_a_batch_that_cannot_be_shared():
    with pytest.raises(ConfigError, match="the 8 rows of a step cannot be shared evenly by 3 devices"):
        resume.share_batch(Config(), 3, RUN)


def test_another_run_is_refused_with_everything_that_differs(tmp_path):
    taken = checkpoint.Snapshot({"a": torch.ones(1)}, {}, [])
    found = checkpoint.read(checkpoint.write(tmp_path, taken, STATE))
    assert resume.check(found, RUN) == []
    now = {**changed("base", revision="def"), "config": {**CONFIG, "seed": 1}}
    with pytest.raises(MismatchError, match="this checkpoint is of another run") as caught:
        resume.check(found, now)
    assert caught.value.where == str(tmp_path / "step-0")
    assert len(caught.value.details) == 2
