"""How much of the machine's own matrix-product rate a training step reaches, at several batch sizes.

The rate is that of the step's own products and nothing else: torch's `linear` and the product for its input's gradient,
with the model's own weights, at the number of tokens that the step has; and the head's, in the chunks in which the step
takes it. A step's FLOPs are those that are necessary, as `training/cost.py` counts them: the shared prefix once, each
row's own tokens, logits where something is supervised; no padding. So the share is

    necessary FLOPs / (seconds of the step · rate of the products)

The step is the program's own, dropout and optimizer included, on the real 270M weights and rows of the built-in
dataset. Steps and products take turns, and the median of the turns counts. Each batch size has a process of its own,
whose peak memory is that of the whole process.

    python benchmarks/roofline.py --batches 16 32 64 256 --repeat 5
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import measuring

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fitcoach_tune.training.core import Trainer


def necessary_flops(trainer: Trainer, rows: Sequence[int]) -> int:
    """FLOPs of a step over these rows without any padding.

    A row adds to the prefix's what a step with it alone has more than one with none: all that is counted is a sum over
    rows.
    """
    from fitcoach_tune.training import adapter
    from fitcoach_tune.training.cost import flops_per_step

    data, config, prefix = trainer.data.train, trainer.config, len(trainer.data.prefix)
    layers = {name.rpartition(".")[-1] for name, _ in adapter.lora_layers(trainer.model)}

    def flops(rows: int, width: int, targets: int) -> int:
        return flops_per_step(
            trainer.model.config,
            prefix=prefix,
            width=width,
            rows=rows,
            targets=targets,
            lora=layers,
            rank=config.lora_r,
            grad_ckpt=False,
        ).total

    alone = flops(0, 0, 0)
    return alone + sum(flops(1, data[i].end - prefix, len(data[i].supervised)) - alone for i in rows)


def products(model: nn.Module, tokens: int, targets: int) -> Iterator[tuple[str, int, Callable[[], Tensor]]]:
    """The products of a step with the model's frozen weights, one by one: name, FLOPs, and what takes it."""
    import torch
    import torch.nn.functional as F

    from fitcoach_tune.training.cost import linear_shapes
    from fitcoach_tune.training.loss import CHUNK, head_product

    def pair(
        name: str, weight: Tensor, rows: int, forward: Callable[[Tensor, Tensor], Tensor]
    ) -> Iterator[tuple[str, int, Callable[[], Tensor]]]:
        outputs, inputs = weight.shape
        x, grad = (torch.ones(rows, size, dtype=weight.dtype) for size in (inputs, outputs))
        flops = 2 * rows * inputs * outputs
        yield f"{name}, forward", flops, lambda: forward(x, weight)
        yield f"{name}, backward", flops, lambda: grad @ weight

    for layer in model.model.layers:
        modules = {name.rsplit(".", 1)[-1]: module for name, module in layer.named_modules()}
        for name in linear_shapes(model.config):
            yield from pair(name, getattr(modules[name], "base", modules[name]).weight, tokens, F.linear)
    buffer = model.lm_head.weight.new_empty(CHUNK, model.lm_head.out_features)
    for start in range(0, targets, CHUNK):
        count = min(CHUNK, targets - start)
        yield from pair("head", model.lm_head.weight, count, lambda x, head: head_product(x, head, buffer[: len(x)]))


def take(model: nn.Module, tokens: int, targets: int) -> dict[str, tuple[int, float]]:
    """Take all products of a step; returns FLOPs and seconds by name."""
    import torch

    found: dict[str, list[tuple[int, float]]] = defaultdict(list)
    with torch.inference_mode():
        for name, flops, product in products(model, tokens, targets):
            started = time.perf_counter()
            product()
            found[name].append((flops, time.perf_counter() - started))
    return {name: (sum(f for f, _ in taken), sum(s for _, s in taken)) for name, taken in found.items()}


def one_size(data: str, batch: int, repeat: int, dtype: str) -> dict[str, Any]:
    """Steps of `batch` rows and their products, in turn."""
    import torch

    from fitcoach_tune.config import load_config
    from fitcoach_tune.training import batches

    given = {"device": "cpu", "dtype": dtype, "per_device_train_batch_size": batch, "max_steps": repeat + 1}
    trainer = measuring.trainer(load_config("offline", given), data)
    rows, prefix = trainer.data.train, trainer.data.prefix
    turns, rates = [], defaultdict(list)
    for step in range(repeat + 1):
        chosen = batches.batch_rows(len(rows), batch, trainer.config.seed, *divmod(step, trainer.plan.steps_per_epoch))
        chosen = chosen[chosen != batches.PADDING_ROW]
        computed = sum(batch.input_ids.size for batch in trainer._pack(rows, prefix, chosen))
        real = len(prefix) + sum(rows[i].end - len(prefix) for i in chosen)
        started = time.perf_counter()
        trainer.step(step)
        seconds = time.perf_counter() - started
        taken = take(trainer.model, computed, batches.supervised_count(rows, chosen))
        if step == 0:
            continue
        for name, (flops, lasted) in taken.items():
            rates[name].append(flops / lasted / 1e9)
        rate = sum(flops for flops, _ in taken.values()) / sum(lasted for _, lasted in taken.values())
        reached = necessary_flops(trainer, chosen) / seconds
        turns.append((len(chosen) / seconds, reached / 1e9, rate / 1e9, reached / rate, computed / real))
    speed, reached, rate, share, padding = (median(column) for column in zip(*turns, strict=True))
    return {
        "batch": batch,
        "threads": torch.get_num_threads(),
        "examples_per_second": speed,
        "gflops_reached": reached,
        "gflops_products": rate,
        "share": share,
        "padding": padding - 1,
        "products": {name: median(each) for name, each in rates.items()},
    }


def measure(sizes: Sequence[int], repeat: int, dtype: str) -> dict[str, Any]:
    """Measure every batch size."""
    with tempfile.TemporaryDirectory() as folder:
        data = str(Path(folder, "set"))
        measuring.program("prepare", "--config", "offline", "--output-dir", data, "--quiet")
        same = {"data": data, "repeat": repeat, "dtype": dtype}
        rows = [measuring.child(__file__, "size", batch=size, **same) for size in sizes]
    columns = {
        "batch": ("rows a step", "{}"),
        "examples_per_second": ("examples/s", "{:.2f}"),
        "gflops_reached": ("necessary GFLOP/s", "{:.0f}"),
        "gflops_products": ("the products alone, GFLOP/s", "{:.0f}"),
        "share": ("share", "{:.1%}"),
        "padding": ("padding", "{:.1%}"),
        "peak_gb": ("peak memory, GB", "{:.1f}"),
    }
    name, rate = max(((n, r) for row in rows for n, r in row["products"].items()), key=lambda found: found[1])
    return {
        "title": "A step's share of the machine's matrix-product rate",
        "rows": rows,
        "table": measuring.table(rows, columns),
        "shares": {f"of the products' rate, {row['batch']} rows a step": row["share"] for row in rows},
        "notes": [f"{dtype}, {rows[0]['threads']} threads; the fastest product is {name}: {rate:.0f} GFLOP/s"],
    }


def main() -> None:
    if measuring.answered_parent({"size": one_size}):
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 32, 64, 256], help="rows of a step")
    parser.add_argument("--repeat", type=int, default=5, help="counted turns, after one that warms up")
    parser.add_argument("--dtype", choices=["auto", "bf16", "fp32"], default="auto")
    parser.add_argument("--quick", action="store_true", help="4 rows a step, one counted turn")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    sizes, repeat = ([4], 1) if given.quick else (given.batches, given.repeat)
    measuring.show(measure(sizes, repeat, measuring.cpu_dtype(given.dtype)), given.json)


if __name__ == "__main__":
    main()
