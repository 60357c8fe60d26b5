"""The XLA backend on virtual CPU devices, on the real 270M weights: what is compiled, computed, sent and stored.

Each measurement is a process of its own, because XLA's devices are a setting of the process. Absolute times say little:
the devices share a CPU's cores. What carries over to a TPU are counts (compilations, FLOPs, bytes), ratios within one
process, and the losses.

    python benchmarks/xla.py devices            # 1, 2, 4, 8 devices: compilation, step, bytes and FLOPs per device
    python benchmarks/xla.py padded             # the padded step with all logits beside the shared prefix, in turn
    python benchmarks/xla.py losses             # four devices beside plain torch, step by step
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hlo

PEAK = 197e12  # bf16 FLOP/s of a TPU v5e chip: https://cloud.google.com/tpu/docs/v5e
ROWS = 8  # per step, over all devices
EXACT = {"lora_dropout": 0.0, "gradient_accumulation_steps": 1, "max_steps": 1000, "lr_scheduler_type": "constant"}


def child(task: str, *arguments: str, dump: Path | None = None) -> dict[str, Any]:
    """Run one measurement in its own process, with an empty cache of compiled graphs."""
    flags = f"--xla_dump_to={dump} --xla_dump_hlo_as_text --xla_dump_hlo_pass_re=spmd.*" if dump else ""
    with tempfile.TemporaryDirectory(prefix="xla-cache-") as cache:
        environment = {**os.environ, "XLA_PERSISTENT_CACHE_PATH": cache, "XLA_FLAGS": flags}
        done = subprocess.run(
            [sys.executable, __file__, task, *arguments], env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
    return json.loads(done.stdout.splitlines()[-1])


def make_trainer(device: str, devices: int, **settings: Any) -> Any:
    """A trainer on the real weights and the built-in dataset, as the train verb makes it."""
    from fitcoach_tune import models, train
    from fitcoach_tune.backends import make_backend
    from fitcoach_tune.config import load_config

    backend = make_backend(device, devices if device != "cpu" else None)
    size = ROWS // devices
    sizes = {"per_device_train_batch_size": size, "per_device_eval_batch_size": size}
    config = load_config("offline", {**EXACT, **sizes, **settings})
    prepared = train.ensure_prepared(config)
    base = models.resolve(config.model)
    config = train.settle_dtype(train.with_data_settings(config, prepared), backend)
    return train.build(config, prepared, base, backend)[0]


# ------------------------------------------------------------------------------------------------ measurements


def measure_devices(devices: int, repeat: int, *options: str) -> dict[str, Any]:
    """One process's training steps: compilation, time, and what lies on each device."""
    settings = {"xla_fsdp_v2": "replicated" not in options, "xla_fsdp_grad_ckpt": "no-checkpointing" not in options}
    trainer = make_trainer("xla-cpu", devices, **settings)
    from torch_xla import _XLAC  # once the backend has set what torch_xla reads as it is imported

    from fitcoach_tune.backends import xla

    before, started = xla.compilations(), time.perf_counter()
    trainer.step(0)
    first = time.perf_counter() - started
    seconds, recording, end_step = [], [], trainer.backend.end_step

    def timed() -> None:
        recording.append(time.perf_counter() - started)
        end_step()

    trainer.backend.end_step = timed
    for step in range(1, repeat + 1):
        started = time.perf_counter()
        trainer.step(step)
        seconds.append(time.perf_counter() - started)
    parts = {"base": [], "lora": []}
    for parameter in trainer.model.parameters():
        parts["lora" if parameter.requires_grad else "base"].append(parameter)
    parts["optimizer"] = [v for state in trainer.optimizer.state.values() for v in state.values()]
    sharded = sum("devices=" in _XLAC._get_xla_sharding_spec(p) for p in trainer.model.parameters())
    on_device = {
        name: sum(t.numel() * t.element_size() / _pieces(_XLAC._get_xla_sharding_spec(t)) for t in tensors)
        for name, tensors in parts.items()
    }
    return {
        "devices": devices,
        "compilations": xla.compilations() - before,
        "first_step_seconds": first,
        "compile_seconds": trainer.backend.statistics()["compile_seconds"],
        "step_seconds": statistics.median(seconds),
        "recording_seconds": statistics.median(recording),
        "sharded": f"{sharded} of {len(list(trainer.model.parameters()))}",
        "bytes_per_device": on_device,
    }


def _pieces(spec: str) -> int:
    """Into how many pieces a sharding cuts a tensor: `{devices=[4,1]0,1,2,3}` is 4, `{replicated}` 1."""
    if "devices=" not in spec:
        return 1
    pieces = 1
    for part in spec.split("[")[1].split("]")[0].split(","):
        pieces *= int(part)
    return pieces


def measure_padded(repeat: int) -> dict[str, Any]:
    """One device, one process, in turn: rows padded to 512 with logits everywhere, and the shared prefix."""
    import numpy as np
    import torch
    import torch.nn.functional as F

    rows = 4
    trainer = make_trainer("xla-cpu", 1, per_device_train_batch_size=rows)
    from torch_xla import _XLAC

    backend, model, data = trainer.backend, trainer.model, trainer.data
    chosen = list(range(rows))
    ids, labels = np.zeros((rows, 512), dtype=np.int64), np.full((rows, 512), -100)
    for slot, i in enumerate(chosen):
        row = data.train[i]
        ids[slot, : len(row.input_ids)] = row.input_ids
        labels[slot, row.supervised] = row.input_ids[row.supervised]
    count = int((labels != -100).sum())

    def padded() -> float:
        model.set_attn_implementation("sdpa")
        tensor, targets = backend.put(ids), backend.put(labels)
        # Padding stands behind the rows, where causal attention never looks: no mask is needed.
        logits = model(input_ids=tensor, use_cache=False).logits[:, :-1].float()
        loss = F.cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten(), ignore_index=-100)
        return finish(loss)

    def shared() -> float:
        from fitcoach_tune.training.prefix import use_layouts

        use_layouts(model)
        (batch,) = trainer._pack(data.train, np.array(chosen))
        return finish(trainer.loss(*trainer._inputs(batch)) / count)

    programs: list[int] = []

    def finish(loss: torch.Tensor) -> float:
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trainer.parameters, 1.0)
        trainer.optimizer.zero_grad(set_to_none=True)
        if len(programs) < 2:
            programs.append(hlo.read(_XLAC._get_xla_tensors_hlo([norm, loss])).flops)
        backend.end_step()
        norm.item()
        return loss.item()

    found = _in_turn({"padded to 512, all logits": padded, "shared prefix": shared}, repeat)
    for values, flops in zip(found.values(), programs, strict=True):
        values |= {"examples_per_second": rows / values["seconds"], "flops": flops}
    return found


def _in_turn(variants: dict[str, Callable[[], float]], repeat: int) -> dict[str, dict[str, float]]:
    losses, first, seconds = {}, {}, {name: [] for name in variants}
    for name, step in variants.items():
        started = time.perf_counter()
        losses[name] = step()
        first[name] = time.perf_counter() - started
    for _ in range(repeat):
        for name, step in variants.items():
            started = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - started)
    return {
        name: {"loss": losses[name], "seconds": statistics.median(taken), "first_step_seconds": first[name]}
        for name, taken in seconds.items()
    }


def measure_losses(device: str, devices: int, dtype: str, steps: int) -> dict[str, Any]:
    """Loss and gradient norm of each step, and the evaluation loss after the last."""
    trainer = make_trainer(device, devices, dtype=dtype)
    lines = [trainer.step(step) for step in range(steps)]
    return {
        "loss": [line.loss for line in lines],
        "grad_norm": [line.grad_norm for line in lines],
        "eval_loss": trainer.evaluation_loss(),
    }


# ------------------------------------------------------------------------------------------------ tables


def row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def devices_table(repeat: int, counts: list[int], options: list[str]) -> None:
    """Print one row for each number of devices, and what the program of the training step holds."""
    row("devices", "graphs", "compiling s", "step s", "base MB", "LoRA MB", "optimizer MB", "sharded", "GFLOP",
        "at 197 TFLOP/s", "exchanged MB")  # fmt: skip
    row(*["---:"] * 11)
    for count in counts:
        with tempfile.TemporaryDirectory(prefix="xla-dump-") as folder:
            found = child("measure-devices", str(count), str(repeat), *options, dump=Path(folder))
            # One device's program; with a single device nothing is partitioned.
            stage = "after_spmd-partitioning" if count > 1 else "before_optimizations"
            texts = [path.read_text() for path in Path(folder).glob(f"*{stage}*.txt")]
        program = max((hlo.read(text) for text in texts), key=lambda p: p.flops)
        megabytes = [f"{found['bytes_per_device'][part] / 1e6:.2f}" for part in ("base", "lora", "optimizer")]
        row(str(count), str(found["compilations"]), f"{found['compile_seconds']:.1f}", f"{found['step_seconds']:.2f}",
            *megabytes, found["sharded"], f"{program.flops / 1e9:.1f}", f"{program.flops / PEAK * 1e3:.2f} ms",
            f"{sum(program.collectives.values()) / 1e6:.0f}")  # fmt: skip
        exchanged = ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in program.collectives.items())
        print(
            f"{count} devices: recording a step on the host {found['recording_seconds']:.2f} s; {exchanged}",
            file=sys.stderr,
        )


def padded_table(repeat: int) -> None:
    """Print the two steps side by side."""
    found = child("measure-padded", str(repeat))
    slowest, most = (max(values[key] for values in found.values()) for key in ("seconds", "flops"))
    row("step", "loss", "first step s (compiles)", "step s", "examples/s", "ratio", "GFLOP", "ratio")
    row("---", *["---:"] * 7)
    for name, v in found.items():
        row(name, f"{v['loss']:.4f}", f"{v['first_step_seconds']:.1f}", f"{v['seconds']:.2f}",
            f"{v['examples_per_second']:.2f}", f"{slowest / v['seconds']:.1f}×", f"{v['flops'] / 1e9:.0f}",
            f"{most / v['flops']:.1f}×")  # fmt: skip


def losses_table(dtype: str, steps: int) -> None:
    """Print the losses of plain torch and of four devices side by side."""
    plain = child("measure-losses", "cpu", "1", dtype, str(steps))
    xla = child("measure-losses", "xla-cpu", "4", dtype, str(steps))
    row(f"step, {dtype}", "plain torch", "4 XLA devices", "difference")
    row(*["---:"] * 4)
    names = [str(step) for step in range(1, steps + 1)] + ["evaluation"]
    pairs = zip([*plain["loss"], plain["eval_loss"]], [*xla["loss"], xla["eval_loss"]], strict=True)
    for name, (a, b) in zip(names, pairs, strict=True):
        row(name, f"{a:.6f}", f"{b:.6f}", f"{b - a:+.1e}")


MEASUREMENTS = {f.__name__.replace("_", "-"): f for f in (measure_devices, measure_padded, measure_losses)}


def main() -> None:
    if sys.argv[1] in MEASUREMENTS:
        arguments = [int(word) if word.isdigit() else word for word in sys.argv[2:]]
        print(json.dumps(MEASUREMENTS[sys.argv[1]](*arguments)))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(dest="task", required=True)
    devices, padded, losses = (tasks.add_parser(name) for name in ("devices", "padded", "losses"))
    for task in (devices, padded):
        task.add_argument("--repeat", type=int, default=3, help="measured steps, after the one that compiles")
    devices.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4, 8])
    devices.add_argument("--options", nargs="*", default=[], choices=["replicated", "no-checkpointing"])
    losses.add_argument("--steps", type=int, default=10)
    losses.add_argument("--dtype", default="bf16", choices=["bf16", "fp32"])
    given = vars(parser.parse_args())
    {"devices": devices_table, "padded": padded_table, "losses": losses_table}[given.pop("task")](**given)


if __name__ == "__main__":
    main()
