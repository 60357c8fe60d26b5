"""Training examples per second of the program beside TRL's SFTTrainer, on the real 270M weights and the CPU.

Optimizer steps of 32 rows of the built-in dataset, the same rows in the same order: the program's own `Trainer`, TRL
with the recipe of the original (rows padded to 512 tokens, 4 rows at a time, loss on the whole sequence), and TRL as it
is fastest on a CPU (padded to the longest row, loss on the answers alone, 16 rows at a time). All have bf16, LoRA of
rank 32 and alpha 64 on q, k, v and o, dropout 0.05 and Adafactor at 5e-5; none computes activations twice, which TRL
does unless it is told not to, and which takes time and saves memory. Each runs in a process of its own, whose
peak memory is that of the whole process. A step is timed from its first micro-batch to the moved weights; the first one
warms up and does not count.

TRL gets the tokens that the program has prepared, so that its own preparation is neither timed nor a difference. The
losses of the warming step must agree between the program and TRL's second form: LoRA's B is still zero, so that
dropout changes nothing.

TRL is no dependency of the program. What it needs besides itself (accelerate, datasets, transformers) is there:

    pip install --no-deps --target /tmp/trl trl==1.16.0
    PYTHONPATH=/tmp/trl python benchmarks/training_trl.py
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import measuring

OURS, ORIGINAL, BEST = "fitcoach-tune", "TRL, the original's recipe", "TRL, at its fastest"
PADDED_TO = 512


def settings(batch: int) -> dict[str, Any]:
    """The original's recipe on what needs no account, with `batch` rows a step."""
    return {
        "model": "offline",
        "dataset": "builtin:fitness",
        "device": "cpu",
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": 1,
    }


# ------------------------------------------------------------------------------------------------ one process each


def ours(data: str, batch: int, steps: int) -> dict[str, Any]:
    """Steps of the program."""
    from fitcoach_tune.config import load_config

    trainer = measuring.trainer(load_config("original", settings(batch)), data)
    seconds, losses = [], []
    for step in range(steps + 1):
        started = time.perf_counter()
        losses.append(trainer.step(step).loss)
        seconds.append(time.perf_counter() - started)
    return {"seconds": seconds[1:], "loss": losses[0]}


def trl(data: str, batch: int, steps: int, at_once: int, pad_to: int | None, answers_only: bool) -> dict[str, Any]:
    """Steps of `SFTTrainer`, `at_once` rows at a time."""
    # Before TRL, so that it finds no torch_xla.
    from fitcoach_tune import models, prepared_set
    from fitcoach_tune.config import load_config

    config = load_config("original", {**settings(batch), "dtype": measuring.cpu_dtype()})
    base = models.resolve(config.model)
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import GemmaTokenizer
    from trl import SFTConfig, SFTTrainer

    rows = _rows(prepared_set.open_set(Path(data)), config.seed, batch, steps + 1, answers_only)
    watch = _stopwatch()
    with tempfile.TemporaryDirectory() as folder, models.quiet_libraries():
        arguments = SFTConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=config.dtype == "bf16",
            gradient_checkpointing=False,
            per_device_train_batch_size=at_once,
            gradient_accumulation_steps=batch // at_once,
            max_steps=steps + 1,
            max_length=PADDED_TO,
            pad_to_multiple_of=pad_to,
            train_sampling_strategy="sequential",
            optim="adafactor",
            learning_rate=config.learning_rate,
            lr_scheduler_type="constant",
            max_grad_norm=config.max_grad_norm,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = SFTTrainer(
            model=models.load_model(base, config.dtype),
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=GemmaTokenizer.from_pretrained(base.path),
            callbacks=[watch],
            peft_config=LoraConfig(
                r=config.lora_r,
                lora_alpha=config.lora_alpha,
                lora_dropout=config.lora_dropout,
                target_modules=list(config.target_modules),
                task_type="CAUSAL_LM",
            ),
        )
        trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return {"seconds": watch.seconds[1:], "loss": float(losses[0])}


def _rows(prepared: Any, seed: int, batch: int, steps: int, answers_only: bool) -> list[dict[str, list[int]]]:
    """The rows of the program's first steps in their order, as TRL takes rows that are tokenized."""
    from fitcoach_tune.training import batches

    found = []
    for step in range(steps):
        for number in batches.batch_rows(len(prepared.train), batch, seed, 0, step):
            row = prepared.train[int(number)]
            ids = row.input_ids.tolist()
            wanted = set(row.supervised.tolist()) if answers_only else range(len(ids))
            found.append({"input_ids": ids, "labels": [t if i in wanted else -100 for i, t in enumerate(ids)]})
    return found


def _stopwatch() -> Any:
    from transformers import TrainerCallback

    class Stopwatch(TrainerCallback):
        """Seconds of each optimizer step."""

        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self._started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds.append(time.perf_counter() - self._started)

    return Stopwatch()


# ------------------------------------------------------------------------------------------------ side by side


def measure(batch: int, steps: int, trl_steps: int, at_once: int, rounds: int) -> dict[str, Any]:
    """Run the three in turn, `rounds` times."""
    runs: dict[str, list[dict[str, Any]]] = {ORIGINAL: [], BEST: [], OURS: []}
    with tempfile.TemporaryDirectory() as folder:
        data = str(Path(folder, "set"))
        source = ["--model", "offline", "--dataset", "builtin:fitness"]
        measuring.program("prepare", "--config", "original", *source, "--output-dir", data, "--quiet")
        same = {"data": data, "batch": batch}
        padded = {"at_once": min(4, batch), "pad_to": PADDED_TO, "answers_only": False}
        lean = {"at_once": min(at_once, batch), "pad_to": None, "answers_only": True}
        for _ in range(rounds):
            for name, form in ((ORIGINAL, padded), (BEST, lean)):
                runs[name].append(measuring.child(__file__, "trl", **same, steps=trl_steps, **form))
            runs[OURS].append(measuring.child(__file__, "ours", **same, steps=steps))
    rows = [
        {
            "variant": name,
            "batch": batch,
            "examples_per_second": batch / median(second for run in found for second in run["seconds"]),
            "peak_gb": max(run["peak_gb"] for run in found),
            "loss": found[0]["loss"],
            "seconds": [run["seconds"] for run in found],
        }
        for name, found in runs.items()
    ]
    speeds = {row["variant"]: row["examples_per_second"] for row in rows}
    losses = {row["variant"]: row["loss"] for row in rows}
    for row in rows:
        row["ratio"] = row["examples_per_second"] / speeds[ORIGINAL]
    return {
        "title": "Training steps beside TRL's SFTTrainer",
        "rows": rows,
        "table": measuring.table(
            rows,
            {
                "variant": ("variant", "{}"),
                "batch": ("rows a step", "{}"),
                "examples_per_second": ("examples/s", "{:.2f}"),
                "ratio": ("ratio", "{:.1f}×"),
                "peak_gb": ("peak memory, GB", "{:.1f}"),
                "loss": ("first loss", "{:.4f}"),
            },
        ),
        "ratios": {f"training, beside {name}": speeds[OURS] / speeds[name] for name in (ORIGINAL, BEST)},
        "notes": [f"first losses of the same answers differ by {abs(losses[OURS] - losses[BEST]):.1e}"],
    }


def main() -> None:
    if measuring.answered_parent({"ours": ours, "trl": trl}):
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32, help="rows of an optimizer step")
    parser.add_argument("--steps", type=int, default=5, help="counted steps of the program")
    parser.add_argument("--trl-steps", type=int, default=2, help="counted steps of TRL")
    parser.add_argument("--trl-batch", type=int, default=16, help="rows at a time where TRL is fastest")
    parser.add_argument("--rounds", type=int, default=1, help="processes of each, in turn")
    parser.add_argument("--quick", action="store_true", help="4 rows a step, one counted step")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if importlib.util.find_spec("trl") is None:
        sys.exit("TRL is not installed: see the beginning of this file")
    sizes = (4, 1, 1) if given.quick else (given.batch, given.steps, given.trl_steps)
    measuring.show(measure(*sizes, given.trl_batch, given.rounds), given.json)


if __name__ == "__main__":
    main()
