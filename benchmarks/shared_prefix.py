"""Training examples per second of the shared-prefix step beside the usual computation, on the real 270M weights.

One process, one machine, the variants in turn, so that what counts is their ratio. The usual computation is what a
common trainer does: PEFT's LoRA on the same layers, rows padded to a fixed length (or to the longest of the batch),
logits and cross-entropy at every position; the same rows, dtype and rank, dropout off. A step is forward and
backward over one batch; the variants take turns, and each one's time is the median of its `--repeat` steps.

    python benchmarks/shared_prefix.py --repeat 3
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import measuring
import numpy as np
import torch

from fitcoach_tune import models, prepare
from fitcoach_tune.config import load_config
from fitcoach_tune.training import adapter, batches
from fitcoach_tune.training.step import PackedLoss, inputs

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]


def measure(variants: dict[tuple[str, int], Callable[[], float]], repeat: int) -> list[dict]:
    """Time the variants in turn, round by round, so that a machine that slows down slows all of them.

    Args:
        variants: steps by (name, rows in its batch); a step returns its loss per supervised token.
        repeat: counted rounds, after one that warms up.
    """
    losses = {key: step() for key, step in variants.items()}
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in variants}
    for _ in range(repeat):
        for key, step in variants.items():
            started = time.perf_counter()
            step()
            seconds[key].append(time.perf_counter() - started)
    speeds = {key: key[1] / statistics.median(taken) for key, taken in seconds.items()}
    first = next(iter(speeds.values()))
    return [
        {
            "variant": name,
            "batch": size,
            "examples_per_second": speed,
            "ratio": speed / first,
            "loss": losses[name, size],
        }
        for (name, size), speed in speeds.items()
    ]


def padded_step(model: torch.nn.Module, rows: list, length: int | None) -> Callable[[], float]:
    """A batch padded to `length` tokens, or to its longest row."""
    width = length or max(len(row.input_ids) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, row in enumerate(rows):
        tokens = torch.from_numpy(row.input_ids.astype(np.int64))
        ids[i, : len(tokens)], mask[i, : len(tokens)] = tokens, 1
        labels[i, row.supervised] = tokens[row.supervised]

    def step() -> float:
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        model.zero_grad(set_to_none=True)
        return loss.item()

    return step


def packed_step(model: torch.nn.Module, rows: list, prefix: np.ndarray) -> Callable[[], float]:
    """The program's own step."""
    loss_module = PackedLoss(model)
    count = sum(len(row.supervised) for row in rows)

    def step() -> float:
        batch = batches.pack(rows, np.arange(len(rows)), prefix, groups=1)
        loss = loss_module(*inputs(batch, model.config.sliding_window, torch.from_numpy)) / count
        loss.backward()
        model.zero_grad(set_to_none=True)
        return loss.item()

    return step


def main() -> None:
    from peft import LoraConfig, get_peft_model

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3, help="counted steps of each variant")
    parser.add_argument("--dtype", choices=["auto", "bf16", "fp32"], default="auto")
    parser.add_argument("--quick", action="store_true", help="one step of each variant")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()

    config, dtype = load_config("offline"), measuring.cpu_dtype(chosen.dtype)
    base = models.resolve(config.model)
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare.prepare(config, target=Path(folder) / "set")
        rows, prefix = [prepared.train[i] for i in range(32)], prepared.prefix.copy()
        with models.quiet_libraries():
            usual = get_peft_model(
                models.load_model(base, dtype), LoraConfig(r=32, lora_alpha=64, target_modules=TARGETS)
            ).train()
        own = models.load_model(base, dtype)
        adapter.attach(own, rank=32, alpha=64, dropout=0.0, target_modules=TARGETS, seed=0)
        own.train()
        results = measure(
            {
                ("padded to 512", 4): padded_step(usual, rows[:4], 512),
                ("padded to the longest", 4): padded_step(usual, rows[:4], None),
                **{("shared prefix", size): packed_step(own, rows[:size], prefix) for size in (4, 16, 32)},
            },
            1 if chosen.quick else chosen.repeat,
        )
    columns = {
        "variant": ("variant", "{}"),
        "batch": ("batch", "{}"),
        "examples_per_second": ("examples/s", "{:.2f}"),
        "ratio": ("ratio", "{:.1f}×"),
        "loss": ("loss", "{:.4f}"),
    }
    speed = {f"{row['variant']}, {row['batch']} rows": row["ratio"] for row in results}
    best = max(speed.values())
    found = {
        "title": "The training step beside the usual computation",
        "rows": results,
        "table": measuring.table(results, columns),
        "ratios": {
            f"a step, beside {name}": best / ratio for name, ratio in speed.items() if name.startswith("padded")
        },
    }
    measuring.show(found, chosen.json)


if __name__ == "__main__":
    main()
