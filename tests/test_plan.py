"""`train --dry-run`: one step measured on a device that is here, everything estimated for a TPU that is not."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from fitcoach_tune import plan
from fitcoach_tune.config import load_config
from fitcoach_tune.errors import ConfigError, MismatchError

from .conftest import QUICK

# Where a TPU is attached, this hides it: the estimate is for one that is not.
NO_TPU = {"PJRT_DEVICE": "CPU"}
ON_EIGHT = ["--device", "tpu", "--num-devices", "8", "--price-per-hour", "3.6"]
# Rank 4 on q (32→64), k and v (32→16), o (64→32), in two layers.
TRAINED = 2 * 4 * ((32 + 64) + 2 * (32 + 16) + (64 + 32))


@pytest.fixture
def dry_run(run_cli, tiny_base, rows_file):
    def run(*extra, **environment):
        arguments = ["train", "--model", tiny_base, "--dataset", rows_file, "--output-dir", "run", *QUICK]
        return run_cli(*arguments, "--dry-run", *extra, check=True, **{**NO_TPU, **environment})

    return run


@pytest.fixture
def estimate(tiny_base, rows_file, tmp_path, monkeypatch):
    """The plan for an absent TPU, made in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PJRT_DEVICE", "CPU")

    def run(**settings):
        shared = {"model": str(tiny_base), "dataset": str(rows_file), "device": "tpu", "lora_r": 4}
        return plan.dry_run(load_config(None, {**shared, **settings}))

    return run


def files_in(folder: Path) -> dict[str, float]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_one_step_is_measured_and_nothing_changed(dry_run, tmp_path):
    before = files_in(tmp_path)
    found = json.loads(dry_run("--json", "--price-per-hour", "3.6").stdout)
    assert found["estimated"] is False
    assert found["rows"] == {"train": 14, "test": 6}
    assert found["steps"] == 4
    assert found["batch_size"] == 8
    assert found["trainable_parameters"] == TRAINED
    assert found["examples_per_second"] > 0
    assert found["training_seconds"] == pytest.approx(28 / found["examples_per_second"], abs=0.1)
    assert found["price"] == pytest.approx(found["training_seconds"] / 1000, abs=1e-4)
    assert found["peak_memory_bytes"] > 2**20
    assert files_in(tmp_path) == before


@pytest.mark.skipif(not importlib.util.find_spec("torch_xla"), reason="torch_xla is not installed")
def test_one_step_is_measured_on_virtual_xla_devices(dry_run, tmp_path):
    """Steps that update nothing are a graph of their own, and both are the same one."""
    before = files_in(tmp_path)
    done = dry_run("--device", "xla-cpu", "--num-devices", "2", "--json")
    found = json.loads(done.stdout)
    assert found["estimated"] is False
    assert found["device"].startswith("2 virtual XLA devices on a CPU")
    assert (found["batch_size"], found["steps"]) == (2 * 8, 2)
    assert found["trainable_parameters"] == TRAINED
    assert found["compile_seconds"] > 0
    assert found["training_seconds"] > 0
    assert files_in(tmp_path) == before


def test_a_tpu_that_is_not_here_is_estimated_without_torch_xla(dry_run, tmp_path):
    broken = tmp_path / "site/torch_xla"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise RuntimeError('torch_xla was imported')")
    before = files_in(tmp_path)
    done = dry_run(*ON_EIGHT, "--json", PYTHONPATH=str(broken.parent))
    found = json.loads(done.stdout)
    assert files_in(tmp_path) == before
    assert "no TPU is attached to this machine" in done.stderr
    assert found["estimated"] is True
    assert found["device"] == "8 × TPU v5e"
    # 4 rows a device and micro-batch, 2 micro-batches, 8 devices; 14 rows are one step an epoch.
    assert (found["batch_size"], found["steps"], found["epochs"]) == (64, 2, 2.0)
    # In each layer q and o of 32·64, k and v of 32·16, three of 32·64, four norms of 32 and two of 16; then a norm.
    base = 262144 * 32 + 2 * (2 * 2048 + 2 * 512 + 3 * 2048 + 4 * 32 + 2 * 16) + 32
    assert found["base_parameters"] == base
    assert found["trainable_parameters"] == TRAINED
    # In float32, and every longest axis divides by eight: an eighth on each device, but for the 16 counts.
    assert found["shards"]["base"] == {
        "bytes": 4 * base, "bytes_per_device": 4 * base // 8, "tensors_sharded": 28, "tensors_replicated": 0,
    }  # fmt: skip
    assert found["shards"]["lora"] == {
        "bytes": 4 * TRAINED, "bytes_per_device": 4 * TRAINED // 8, "tensors_sharded": 16, "tensors_replicated": 0,
    }  # fmt: skip
    assert found["shards"]["optimizer"] == {
        "bytes": 8 * TRAINED + 16 * 4, "bytes_per_device": TRAINED + 16 * 4,
        "tensors_sharded": 32, "tensors_replicated": 16,
    }  # fmt: skip
    assert found["bytes_per_device"] == base // 2 + TRAINED // 2 + TRAINED + 64
    assert found["seconds_per_step"] == max(found["chip_seconds_per_step"], found["recording_seconds_per_step"])
    assert found["training_seconds"] == pytest.approx(2 * found["seconds_per_step"], abs=0.1)
    assert found["price"] == pytest.approx((found["compile_seconds"] + found["training_seconds"]) / 1000, abs=1e-4)
    assert found["padded_flops_per_step"]["total"] > 5 * found["flops_per_step"]["total"]
    assert any("https://cloud.google.com/tpu/docs/v5e" in line for line in found["assumptions"])
    assert sum("a guess" in line for line in found["assumptions"]) == 2


def test_the_table_of_an_estimate(dry_run):
    lines = dry_run(*ON_EIGHT, "--optim", "adafactor").stdout.splitlines()
    table = {cells[1].strip(): cells[2].strip() for line in lines if len(cells := line.split("│")) == 4}
    assert table["device"] == "8 × TPU v5e, estimated"
    assert table["steps"] == "2 of 64 rows (2 epochs)"
    assert table["batch"] == "2 micro-batches of 4 rows on each device"
    assert table["frozen base (fp32)"] == "33.6 MB, 4.21 MB on each device: 28 tensors in 8 shards"
    assert table["LoRA (fp32)"] == "9.22 kB, 1.15 kB on each device: 16 tensors in 8 shards"
    # Of each matrix a vector of rank 4 that eight devices hold whole, besides the count; 576 other numbers are cut.
    assert table["optimizer state (fp32)"] == "2.62 kB, 608 B on each device: 16 tensors in 8 shards, 32 tensors whole"
    assert table["memory"].startswith("4.21 MB of 16 GB on each device")
    assert table["price"] == "$0.09"
    assert [line for line in lines if line.startswith("•")]


def test_numbers_of_an_estimate(estimate):
    """What follows from the settings: devices, sharding, micro-batches, checkpointing, padding."""
    found = estimate()
    assert found["devices"] == 8  # as many as the original recipe's
    assert found["price"] is None
    three = estimate(num_devices=3)["shards"]
    # 262144 and 64 leave a rest over 3: FSDPv2 pads up. The optimizer's vectors of 32, 64 and 16 stay whole.
    layer = 5 * 22 * 32 + 2 * 11 * 16 + 4 * 11 + 2 * 6  # q, o and the MLP's three; k and v; the norms
    assert three["base"]["bytes_per_device"] == 2 * (87382 * 32 + 2 * layer + 11)
    assert three["optimizer"]["bytes_per_device"] == three["optimizer"]["bytes"]
    assert three["optimizer"]["tensors_sharded"] == 0
    whole = estimate(xla_fsdp_v2=False)
    assert whole["shards"]["base"]["bytes_per_device"] == whole["shards"]["base"]["bytes"]
    assert whole["shards"]["base"]["tensors_sharded"] == 0
    assert whole["exchanged_bytes_per_step"] == 2 * 2 * whole["shards"]["lora"]["bytes"] * 7 // 8
    assert (
        estimate(xla_fsdp_grad_ckpt=False)["flops_per_step"]["recomputed"] == 0 < found["flops_per_step"]["recomputed"]
    )
    more = estimate(gradient_accumulation_steps=6)
    assert more["flops_per_step"]["total"] == 3 * found["flops_per_step"]["total"]
    assert more["recording_seconds_per_step"] == pytest.approx(3 * found["recording_seconds_per_step"])
    assert estimate(max_length=256)["padded_flops_per_step"]["total"] < found["padded_flops_per_step"]["total"]
    every = estimate(target_modules="all-linear")
    assert every["trainable_parameters"] == TRAINED + 2 * 4 * 3 * (32 + 64)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_modules": "q_prj"}, "no linear layer of the model is called q_prj"),
        ({"transformer_layer_cls_to_wrap": "Gemma3Layer"}, "the model has no layer of class Gemma3Layer"),
    ],
)
def test_an_estimate_refuses_what_the_run_would(estimate, settings, message):
    with pytest.raises(ConfigError, match=message):
        estimate(**settings)


def test_an_estimate_refuses_another_kind_of_model(estimate, tiny_base, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for file in tiny_base.iterdir():
        (other / file.name).symlink_to(file)
    (other / "config.json").unlink()
    (other / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(MismatchError, match="this is a llama model"):
        estimate(model=str(other))


def test_a_stale_prepared_set_is_noticed_and_left_alone(dry_run, run_cli, tiny_base, rows_file, tmp_path):
    run_cli("prepare", "--model", tiny_base, "--dataset", rows_file, "-q", check=True)
    before = files_in(tmp_path / "output")
    assert before
    fresh = dry_run(*ON_EIGHT, "--json")
    assert "using the prepared set output/prepared/" in fresh.stderr
    assert json.loads(fresh.stdout)["rows"] == {"train": 14, "test": 6}
    rows_file.write_text("".join(rows_file.read_text().splitlines(keepends=True)[:-4]))
    stale = dry_run(*ON_EIGHT, "--json")
    assert "again: it, its tools or this program may have changed" in stale.stderr
    assert sum(json.loads(stale.stdout)["rows"].values()) == 16
    assert json.loads(stale.stdout)["data"] == json.loads(fresh.stdout)["data"]
    assert files_in(tmp_path / "output") == before


@pytest.mark.real
def test_the_real_base(offline_base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PJRT_DEVICE", "CPU")
    found = plan.dry_run(load_config("offline", {"device": "tpu", "num_devices": 8}))
    assert found["base_parameters"] == 268_098_176
    # A of 32 rows and B of 32 columns beside q (640→1024), k and v (640→256), o (1024→640), gate and up (640→2048) and
    # down (2048→640), in 18 layers.
    lora = 18 * 32 * (2 * (640 + 1024) + 2 * (640 + 256) + 3 * (640 + 2048))
    assert found["trainable_parameters"] == lora == 7_593_984
    assert found["shards"]["base"]["bytes"] == 2 * 268_098_176
    assert found["shards"]["base"]["bytes_per_device"] == 2 * 268_098_176 // 8
    assert found["shards"]["lora"]["bytes_per_device"] == 4 * lora // 8
    assert found["shards"]["optimizer"]["bytes_per_device"] == 2 * 4 * lora // 8 + 252 * 4
    assert (found["batch_size"], found["steps"]) == (128, 102)
    # Rows of 512 tokens in all, beside suffixes as wide as the longest, 117.
    assert 4 < found["padded_flops_per_step"]["total"] / found["flops_per_step"]["total"] < 6
    assert not list(tmp_path.iterdir())
