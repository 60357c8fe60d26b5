"""Training on 1 and 8 virtual XLA devices: the numbers of plain torch, one compiled graph, everything sharded."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from fitcoach_tune.backends import make_backend
from tests.spmd import jobs

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("torch_xla"), reason="torch_xla is not installed")
ROOT = Path(__file__).parents[2]
EIGHT = [*jobs.RUNS, "long_prefix", "bf16", "dropout", "shardings", "recompile", "not_finite", "resumed", "unwatched"]
ONE = ["adamw", "adafactor-accumulated", "long_prefix"]


def run_jobs(devices: int, folder: Path, names: list[str], cache: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.spmd.jobs", str(devices), str(folder), *names],
        cwd=ROOT,
        env={**os.environ, "FITCOACH_TUNE_CACHE": str(cache)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def xla(tmp_path_factory):
    """The results of a job on a number of devices."""
    base = tmp_path_factory.mktemp("spmd")
    folders = {
        devices: run_jobs(devices, base / str(devices), names, base / "cache")
        for devices, names in {8: EIGHT, 1: ONE}.items()
    }

    def read(job: str, devices: int = 8) -> dict:
        return json.loads((folders[devices] / f"{job}.json").read_text(encoding="utf-8"))

    read.tensors = lambda job, devices: load_file(folders[devices] / f"{job}.safetensors")
    return read


RUNS = [(name, 8) for name in EIGHT if name in (*jobs.RUNS, "long_prefix")] + [(name, 1) for name in ONE]


@pytest.mark.parametrize(("job", "devices"), RUNS)
def test_equals_plain_torch(xla, job, devices):
    """Losses, evaluation losses, gradient norms and the adapter: within what float32 rounding leaves."""
    expected, tensors = jobs.do(job, make_backend("cpu"))
    found = xla(job, devices)
    assert len(found["metrics"]) == len(expected["metrics"]) >= 3
    for mine, plain in zip(found["metrics"], expected["metrics"], strict=True):
        assert mine == pytest.approx(plain, rel=1e-4)
    trained = xla.tensors(job, devices)
    assert trained.keys() == tensors.keys()
    for key, value in tensors.items():
        # By norm: AdamW makes a step of full length of an element whose gradient is nothing but rounding.
        assert (trained[key] - value).norm() <= 5e-4 * value.norm(), key
    losses = [line["loss"] for line in expected["metrics"]]
    assert min(losses[1:]) < losses[0]
    assert any("eval_loss" in line for line in expected["metrics"])


@pytest.mark.parametrize(("job", "devices"), [*RUNS, ("bf16", 8)])
def test_one_training_graph(xla, job, devices):
    compiled = xla(job, devices)["compiled"]
    assert compiled == [1] + [0] * (len(compiled) - 1)


@pytest.mark.parametrize(("job", "devices"), RUNS)
def test_no_step_reads_the_device(xla, job, devices):
    """Values are read after a step was sent, and while the next one is computed."""
    reads = xla(job, devices)["reads"]
    assert reads == [0] * len(reads)


def test_the_last_step_is_read_where_nothing_asks_for_it(xla):
    assert xla("unwatched") == {"seen": [1, 2, 3], "finished": True}


def test_dropout_is_drawn_from_the_seed(xla):
    found = xla("dropout")
    assert found["equal"]
    assert found["first"] == found["second"]
    # The first step's loss knows no dropout yet: B is zero.
    assert found["first"][0] == pytest.approx(found["without"][0], rel=1e-5)
    assert found["first"][1:] != pytest.approx(found["without"][1:], rel=1e-4)
    assert found["compiled"] == [1, 0, 0]


def test_everything_is_sharded_over_the_devices(xla):
    found = xla("shardings")
    assert found["mesh"] == [[8, 1], ["fsdp", "tensor"]]
    for name, (shape, dtype, spec) in found["parameters"].items():
        assert spec.startswith("{devices=["), (name, spec)
        split = [int(n) for n in spec.split("[")[1].split("]")[0].split(",")]
        assert sorted(split) == [1] * (len(shape) - 1) + [8], (name, spec)
        assert shape[split.index(8)] == max(shape), name
        assert dtype == "torch.float32"
    assert len(found["requires_grad"]) == 2 * 4 * 2  # A and B of q, k, v, o in two layers
    for name, (shape, _, spec) in found["state"].items():
        assert ("replicated" in spec) == (not shape), name  # the counts alone
        if shape:
            assert spec == found["parameters"][name.rsplit(".", 1)[0]][2]
    assert all(spec.startswith("{devices=[8,1]") for _, _, spec in found["inputs"])
    assert all("_orig_module" not in key for key in found["keys"])


def test_a_device_computes_one_prefix(xla):
    """Eight rows on eight devices are eight groups: each the prefix once, and one row behind it."""
    shape = xla("shardings")["inputs"][0][0]
    assert shape[0] == 8
    trainer = jobs.make_trainer(make_backend("cpu"), {})
    width, _ = trainer.data.static_shape()
    assert shape[1] == len(trainer.data.prefix) + width


def test_the_slice_of_a_host_is_sharded_like_a_batch(xla):
    found = xla("shardings")["host_slice"]
    assert found["equal"]
    assert found["sharding"] == [[8, 2], "torch.float32", "{devices=[8,1]0,1,2,3,4,5,6,7}"]


def test_every_decoder_layer_and_the_root_are_wrapped(xla):
    found = xla("shardings")
    layers = [f"_orig_module.model.model.layers.{i}" for i in range(2)]
    assert found["wrapped"] == ["", *layers]
    # The layer inside the wrapper, and the wrapper because it passes the inner one's attributes on.
    assert found["checkpointed"] == sorted([*layers, *(f"{name}._orig_module" for name in layers)])


def test_a_second_compilation_stops_the_run(xla):
    found = xla("recompile")
    kind, message = found["refused"]
    assert kind == "DeviceError"
    assert message.startswith("step 2: the training graph was compiled a second time\n  input_ids: [8, ")
    assert "--allow-recompile" in message
    (allowed,) = found["allowed"]
    assert allowed.startswith("step 2: input_ids: [8, ")
    assert "targets" not in allowed  # whose shape did not change


@pytest.mark.parametrize(("spoiled", "seen", "saved"), [(1, [1], []), (4, [1, 2, 3, 4], [2, 4])])
def test_values_that_are_not_finite_stop_the_run(xla, spoiled, seen, saved):
    """Also in the last step, whose values nobody would read before saving if they were read a step late.

    A checkpoint was due right after the first of the spoiled steps: it is not written.
    """
    kind, message, steps, checkpoints = xla("not_finite")[str(spoiled)]
    assert kind == "TrainingError"
    assert message.startswith(f"step {spoiled + 1}: the loss is not finite\n  training rows of this step: ")
    assert steps == seen
    assert checkpoints == saved


def test_resuming_equals_going_straight_on(xla):
    """From the middle of an epoch, with dropout and accumulation: bit for bit, with the very same training graph."""
    found = xla("resumed")
    assert len(found["metrics"][0]) == 5
    assert found["metrics"][1] == found["metrics"][0]
    assert found["equal"] == found["tensors"]
    assert len(found["tensors"]) == 2 * 4 * 2 * (1 + 3)  # A and B of q, k, v, o in two layers, and state of each
    assert found["compiled"] == [[1, 0, 0, 0, 0], [0, 0]]


def test_a_run_moves_from_a_cpu_to_eight_devices(xla):
    found = xla("resumed")
    assert len(found["moved"]) == len(found["on a cpu"]) == 5
    for mine, plain in zip(found["moved"], found["on a cpu"], strict=True):
        assert mine == pytest.approx(plain, rel=1e-4)


def test_the_next_process_finds_each_graph_in_the_cache(tmp_path):
    """The first process stores what it compiles, the second misses nothing.

    The CPU's runtime can store an executable but not load it (`UNIMPLEMENTED: Deserializing serialized executable`), so
    here each find is one failed load; on a TPU it is a graph that need not be compiled.
    """
    first, second = (
        json.loads((run_jobs(2, tmp_path / name, ["cached"], tmp_path / "cache") / "cached.json").read_text())
        for name in ("first", "second")
    )
    assert first["PersistentCacheMiss"] >= 2  # training and evaluation
    assert first["PersistentCacheHit"] + first["PersistentCacheDeserializeFailure"] == 0
    assert second["PersistentCacheMiss"] == 0
    assert second["PersistentCacheHit"] + second["PersistentCacheDeserializeFailure"] == first["PersistentCacheMiss"]
    assert len(list((tmp_path / "cache/xla").iterdir())) == first["PersistentCacheMiss"]
