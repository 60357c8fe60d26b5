"""`--dtype auto`: what the device multiplies by itself, and what a run that goes on was begun in."""

from __future__ import annotations

import json
import time
from statistics import median

import pytest
import torch
import torch.nn.functional as F

from fitcoach_tune.backends import answering_dtype, make_backend, training_dtype

OTHER = {"bf16": "fp32", "fp32": "bf16"}
SLOW = "no bf16 products of its own"


@pytest.fixture(scope="module")
def native() -> str:
    return make_backend("cpu").native_dtype


@pytest.fixture
def train(run_cli, tiny_base, rows_file):
    def run(*arguments, **options):
        given = (
            "--model",
            tiny_base,
            "--dataset",
            rows_file,
            "--device",
            "cpu",
            "--optim",
            "adamw",
            "--learning-rate",
            "1e-2",
        )
        return run_cli("train", *given, "--output-dir", "run", *arguments, **options)

    return run


def record(folder) -> dict:
    return json.loads((folder / "run/run.json").read_text())


def test_auto_is_never_the_slow_one(native):
    """A processor without bf16 of its own takes tens of times as long for a product in it as in float32."""

    def seconds(dtype: torch.dtype) -> float:
        x, weight = torch.ones(256, 640, dtype=dtype), torch.ones(2048, 640, dtype=dtype)
        F.linear(x, weight) @ weight
        taken = []
        for _ in range(5):
            started = time.process_time()
            F.linear(x, weight) @ weight
            taken.append(time.process_time() - started)
        return median(taken)

    took = {"bf16": seconds(torch.bfloat16), "fp32": seconds(torch.float32)}
    assert took[native] < 3 * took[OTHER[native]]


def test_what_a_run_is_in(native):
    backend = make_backend("cpu")
    assert [training_dtype(dtype, backend) for dtype in ("auto", "bf16", "fp32")] == [native, "bf16", "fp32"]
    assert [training_dtype("auto", backend, begun) for begun in ("bf16", "fp32")] == ["bf16", "fp32"]
    assert [answering_dtype(dtype, backend) for dtype in ("auto", "bf16", "fp32")] == [native, native, "fp32"]


@pytest.mark.parametrize("asked", ["auto", "bf16", "fp32"])
def test_a_run_says_what_it_was_in(train, tmp_path, native, asked):
    done = train("--dtype", asked, "--max-steps", "1", check=True)
    used = record(tmp_path)["config"]["dtype"]
    assert used == (native if asked == "auto" else asked)
    assert f"dtype: {used}\n" in (tmp_path / "run/config.resolved.yaml").read_text()
    assert (SLOW in done.stderr) == (used == "bf16" != native)


def test_a_run_goes_on_in_what_it_was_begun_in(train, tmp_path, native):
    other = OTHER[native]
    train("--dtype", other, "--max-steps", "2", "--save-steps", "1", "--save-total-limit", "9", check=True)
    straight = (tmp_path / "run/adapter_model.safetensors").read_bytes()
    (tmp_path / "run").rename(tmp_path / "first")
    going_on = ("--max-steps", "2", "--save-steps", "1", "--resume-from-checkpoint", "first/checkpoints/step-1")
    refused = train("--dtype", native, *going_on)
    assert refused.returncode
    assert f"--dtype: {other} in the checkpoint, {native} now" in refused.stderr
    train(*going_on, check=True)
    assert record(tmp_path)["config"]["dtype"] == other
    assert (tmp_path / "run/adapter_model.safetensors").read_bytes() == straight


def test_an_adapter_is_asked_in_what_the_device_has(train, run_cli, native):
    train("--dtype", "bf16", "--max-steps", "1", check=True)
    done = run_cli("eval", "--adapter", "run", "--max-new-tokens", "4", "--json", check=True)
    assert json.loads(done.stdout)["settings"]["dtype"] == native
