"""What the SPMD tests let a process do; the expected values come from the same jobs on plain torch.

XLA's devices and SPMD are settings of a process, so each number of devices needs one of its own:

    python -m tests.spmd.jobs DEVICES FOLDER JOB...

runs jobs one after another and leaves FOLDER/JOB.json and FOLDER/JOB.safetensors.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from fitcoach_tune.backends import make_backend
from fitcoach_tune.config import Config
from fitcoach_tune.errors import FitcoachTuneError
from fitcoach_tune.training import adapter
from fitcoach_tune.training.core import Trainer, TrainingData
from tests.conftest import tiny_gemma
from tests.training.test_prefix import make_rows

# Micro-batches of 8 rows whatever the devices: 19 rows make whole steps and a partial one, and divide by nothing.
MICRO, ROWS, HELD_OUT = 8, 19, 6
BASE = {"dtype": "fp32", "lora_r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "learning_rate": 1e-2, "optim": "adamw"}
RUNS = {
    "adamw": {"num_train_epochs": 2, "lr_scheduler_type": "cosine", "warmup_ratio": 0.2, "weight_decay": 0.1},
    "adafactor": {"num_train_epochs": 2, "optim": "adafactor", "max_grad_norm": 0},
    "accumulated": {"num_train_epochs": 3, "gradient_accumulation_steps": 2, "max_grad_norm": 0.05},
    "adafactor-accumulated": {"num_train_epochs": 3, "optim": "adafactor", "gradient_accumulation_steps": 2},
    "no-checkpointing": {"num_train_epochs": 2, "xla_fsdp_grad_ckpt": False, "target_modules": "all-linear"},
    "replicated": {"num_train_epochs": 2, "xla_fsdp_v2": False},
}


def tiny(**overrides: Any) -> Any:
    """A layer of each kind of attention: what XLA compiles for minutes grows with the layers."""
    return tiny_gemma(layers=2, **overrides)


def make_trainer(
    backend: Any,
    settings: dict,
    rows: int = ROWS,
    prefix: int = 12,
    model: Any = None,
    start: Any = None,
    held_out: int = HELD_OUT,
) -> Trainer:
    devices = backend.groups * backend.world_size
    sizes = {"per_device_train_batch_size": MICRO // devices, "per_device_eval_batch_size": MICRO // devices}
    config = Config(**{**BASE, "gradient_accumulation_steps": 1, **sizes, **settings})
    head, made = make_rows(np.random.default_rng(7), prefix, rows=rows + held_out)
    model = model or tiny()
    adapter.attach_configured(model, config)
    return Trainer(model, config, TrainingData(made[:rows], made[rows:], head), backend, start)


def trained(trainer: Trainer) -> dict[str, torch.Tensor]:
    return trainer.backend.to_host(adapter.trained_parameters(trainer.model))


def a_run(backend: Any, settings: dict, **shape: Any) -> tuple[dict, dict]:
    """Train; returns the metrics, the trained tensors, and for each step how often it compiled and read the device."""
    trainer = make_trainer(backend, settings, **shape)
    history, compiled, reads, send = [], [], [], trainer.send

    def counted(step: int, **options: Any):
        before = compilations(backend), transfers(backend)
        sent = send(step, **options)
        compiled.append(compilations(backend) - before[0])
        reads.append(transfers(backend) - before[1])
        return sent

    trainer.send = counted
    trainer.run(history.append)
    metrics = [m.as_dict() for m in history]
    for line in metrics:
        del line["examples_per_second"]
    return {"metrics": metrics, "compiled": compiled, "reads": reads}, trained(trainer)


def compilations(backend: Any) -> int:
    if not backend.compiled:
        return 0
    from fitcoach_tune.backends import xla

    return xla.compilations()


def transfers(backend: Any) -> int:
    """How often a value was brought from the device to the host."""
    if not backend.compiled:
        return 0
    from torch_xla.debug import metrics

    found = metrics.metric_data("TransferFromDeviceTime")
    return found[0] if found else 0


def long_prefix(backend: Any) -> tuple[dict, dict]:
    """A prefix and rows that reach past the sliding window."""
    return a_run(backend, {"num_train_epochs": 1}, prefix=40, model=tiny(window=16))


def bf16(backend: Any) -> tuple[dict, dict]:
    """A bfloat16 base, its buffers too; what is compared is the number of graphs."""
    return a_run(backend, {"num_train_epochs": 1}, model=tiny().to(torch.bfloat16))


def dropout(backend: Any) -> tuple[dict, dict]:
    """The same run twice, and the loss of one step with and without."""
    settings = {"num_train_epochs": 1, "lora_dropout": 0.4}
    first, second = a_run(backend, settings), a_run(backend, settings)
    other = a_run(backend, {**settings, "lora_dropout": 0.0})
    equal = all(torch.equal(value, second[1][key]) for key, value in first[1].items())
    losses = {"first": first, "second": second, "without": other}
    return {"equal": equal, "compiled": first[0]["compiled"]} | {
        name: [line["loss"] for line in found[0]["metrics"]] for name, found in losses.items()
    }, {}


def shardings(backend: Any) -> tuple[dict, dict]:
    """How parameters, optimizer state and inputs lie on the devices."""
    from torch_xla import _XLAC

    trainer = make_trainer(backend, RUNS["adamw"])
    trainer.step(0)

    def of(tensor: torch.Tensor) -> list:
        return [list(tensor.shape), str(tensor.dtype), _XLAC._get_xla_sharding_spec(tensor)]

    def host_slice() -> dict:
        """How a host of several sends its slice, asked of one that has all: the same tensor."""
        array = np.arange(16, dtype=np.float32).reshape(8, 2)
        tensor = backend._send(torch.from_numpy(array), ("fsdp", None), minibatch=True)
        return {"sharding": of(tensor), "equal": bool((tensor.cpu().numpy() == array).all())}

    packed = trainer._pack(trainer.data.train, trainer.data.prefix, np.arange(MICRO))[0]
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    return {
        "parameters": {name: of(p) for name, p in trainer.model.named_parameters()},
        "requires_grad": [name for name, p in trainer.model.named_parameters() if p.requires_grad],
        "state": {
            f"{names[id(p)]}.{key}": of(value) for p, s in trainer.optimizer.state.items() for key, value in s.items()
        },
        "inputs": [of(tensor) for tensor in trainer._inputs(packed)[:4]],
        "host_slice": host_slice(),
        "wrapped": sorted(name for name, m in trainer.loss.named_modules() if "FullySharded" in type(m).__name__),
        "checkpointed": sorted(
            name for name, m in trainer.loss.named_modules() if hasattr(m, "_xla_checkpointed_forward_original")
        ),
        "mesh": [list(trainer.backend.mesh.mesh_shape), list(trainer.backend.mesh.axis_names)],
        "keys": sorted(adapter.trained_parameters(trainer.model)),
    }, {}


def recompile(backend: Any) -> tuple[dict, dict]:
    """Change a shape in the middle of a run: refused, and with `allow_recompile` noted."""
    found = {}
    for allowed in (False, True):
        trainer = make_trainer(backend, {**RUNS["adamw"], "allow_recompile": allowed})
        trainer.step(0)
        width, targets = trainer._static
        trainer._static = (width + 8, targets)
        try:
            trainer.step(1)
            found["allowed"] = backend.statistics()["recompiled"]
        except FitcoachTuneError as error:
            found["refused"] = [type(error).__name__, str(error)]
    return found, {}


def not_finite(backend: Any) -> tuple[dict, dict]:
    """Spoil a weight, in the middle of a run and before its last step; a checkpoint is due after every other step."""
    found = {}
    for spoiled in (1, 4):
        trainer = make_trainer(backend, {"max_steps": 5, "save_steps": 2})
        send, seen, saved = trainer.send, [], []

        def spoil(step: int, at: int = spoiled, trainer: Trainer = trainer, send: Any = send, **options: Any):
            if step == at:
                next(adapter.lora_layers(trainer.model))[1].lora_B.data.fill_(math.nan)
                trainer.backend.end_step()  # a graph of its own
            return send(step, **options)

        trainer.send = spoil
        try:
            trainer.run(
                lambda metrics, seen=seen: seen.append(metrics.step),
                lambda trainer=trainer, saved=saved: saved.append(trainer.snapshot().step),
            )
        except FitcoachTuneError as error:
            found[str(spoiled)] = [type(error).__name__, str(error), seen, saved]
    return found, {}


RESUMED = {"max_steps": 5, "save_steps": 3, "xla_fsdp_grad_ckpt": False}


def unwatched(backend: Any) -> tuple[dict, dict]:
    """No row held out and no checkpoint: nothing but the end of the run asks for the last step's values."""
    trainer = make_trainer(backend, {"max_steps": 3, "save_steps": 0}, held_out=0)
    seen = []
    trainer.run(lambda metrics: seen.append(metrics.step))
    return {"seen": seen, "finished": trainer.finished}, {}


def with_snapshot(trainer: Trainer) -> tuple[list[dict], list[int], Any]:
    """Train to the end; the metrics without speeds, how often each step compiled, and the snapshot after step 3."""
    compiled, taken, send = [], {}, trainer.send

    def counted(step: int, **options: Any):
        before = compilations(trainer.backend)
        sent = send(step, **options)
        compiled.append(compilations(trainer.backend) - before)
        return sent

    def save() -> None:
        snapshot = trainer.snapshot()
        taken[snapshot.step] = snapshot

    trainer.send = counted
    metrics = [m.as_dict() for m in trainer.run(lambda _: None, save)]
    for line in metrics:
        del line["examples_per_second"]
    return metrics, compiled, taken.get(3)


def resumed(backend: Any) -> tuple[dict, dict]:
    """Straight to the end, and from the middle of an epoch on; and a run that a plain CPU began, to its end."""
    settings = {**RESUMED, "optim": "adafactor", "lora_dropout": 0.4, "gradient_accumulation_steps": 2}
    straight = make_trainer(backend, settings, model=tiny())
    metrics, compiled, middle = with_snapshot(straight)
    second = make_trainer(backend, settings, model=tiny(), start=middle)
    again, again_compiled, _ = with_snapshot(second)
    first, other = (trainer.snapshot() for trainer in (straight, second))
    tensors, others = ({**end.lora, **end.optimizer} for end in (first, other))
    on_a_cpu, _, middle = with_snapshot(make_trainer(make_backend("cpu"), RESUMED))
    return {
        "metrics": [metrics, again],
        "compiled": [compiled, again_compiled],
        "equal": [key for key, value in tensors.items() if torch.equal(value, others[key])],
        "tensors": list(tensors),
        "on a cpu": on_a_cpu,
        "moved": with_snapshot(make_trainer(backend, RESUMED, start=middle))[0],
    }, {}


def cached(backend: Any) -> tuple[dict, dict]:
    """What a short run finds in the cache on disk."""
    from torch_xla.debug import metrics

    a_run(backend, {"max_steps": 2})
    names = ("PersistentCacheMiss", "PersistentCacheHit", "PersistentCacheDeserializeFailure")
    return {name: metrics.counter_value(name) or 0 for name in names}, {}


OTHERS = {
    job.__name__: job
    for job in (long_prefix, bf16, dropout, shardings, recompile, not_finite, resumed, cached, unwatched)
}


def do(job: str, backend: Any) -> tuple[dict, dict]:
    return a_run(backend, RUNS[job]) if job in RUNS else OTHERS[job](backend)


if __name__ == "__main__":
    devices, folder, *jobs = sys.argv[1:]
    for name in jobs:
        made = make_backend("xla-cpu", int(devices))  # as each run of the program makes it
        result, tensors = do(name, made)
        Path(folder, f"{name}.json").write_text(json.dumps(result), encoding="utf-8")
        save_file(tensors, Path(folder, f"{name}.safetensors"))
