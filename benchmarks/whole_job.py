"""The original's whole job as a user runs it: training on 149 rows for 8 epochs, asking 64 others before and after.

As many rows as the published set has (213, each of which calls one function) are drawn from the built-in dataset and
cut 149 to 64 by a plain shuffle. `fitcoach-tune train --config offline` and `fitcoach-tune eval` are run as commands in
a folder of their own, with the base model unpacked but no answer of it known. The seconds are those of the commands
from start to end; the phases of training are those in run.json, and what they lack is starting and ending.

    python benchmarks/whole_job.py
    python benchmarks/whole_job.py --keep output/whole-job      # the run directory stays there
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import measuring

ROWS = 213


def write_rows(file: Path, count: int, seed: int = 0) -> None:
    """Draw rows of the built-in dataset that call one function."""
    from fitcoach_tune.builtin import rows_path
    from fitcoach_tune.fitness.generator import FUNCTIONS  # an id begins with the labels

    lines = rows_path("builtin:fitness").read_text(encoding="utf-8").splitlines(keepends=True)
    single = [line for line in lines if json.loads(line)["id"].partition("-")[0] in FUNCTIONS]
    file.write_text("".join(random.Random(seed).sample(single, count)), encoding="utf-8")


def own_cache(folder: Path) -> dict[str, str]:
    """The environment with a cache that has the unpacked base model, and nothing else."""
    from fitcoach_tune.files import cache_dir

    folder.mkdir()
    for base in cache_dir().glob("offline-base-*"):
        (folder / base.name).symlink_to(base, target_is_directory=True)
    return {"FITCOACH_TUNE_CACHE": str(folder)}


def measure(rows: int, epochs: int, keep: str | None) -> dict[str, Any]:
    """Run the two commands."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "rows.jsonl", rows)
        source = ["--dataset", "rows.jsonl", "--tools", "builtin:fitness", "--split", "random", "--test-size", "0.3"]
        # Unpacks the base if that has never been done, and warms the disk's cache.
        measuring.program("prepare", "--config", "offline", *source, "--output-dir", "warm", "--quiet", folder=name)
        settings = ["--num-train-epochs", str(epochs), "--output-dir", "run", "--json", "--quiet"]
        trained = measuring.program("train", "--config", "offline", *source, *settings, folder=name)
        asking = ["--adapter", "run", "--json", "--quiet"]
        asked = measuring.program("eval", *asking, environment=own_cache(folder / "cache"), folder=name)
        if keep:
            shutil.copytree(folder / "run", keep)
    record, found = json.loads(trained.output), json.loads(asked.output)
    phases = {name: seconds for name, seconds in record["seconds"].items() if name != "total"}
    lines = [
        *({"phase": f"train: {name}", "seconds": seconds} for name, seconds in phases.items()),
        {"phase": "train: starting and ending", "seconds": trained.seconds - sum(phases.values())},
        {"phase": "train, the command", "seconds": trained.seconds, "peak_gb": trained.peak_bytes / 1e9},
        {"phase": "eval, the command", "seconds": asked.seconds, "peak_gb": asked.peak_bytes / 1e9},
        {"phase": "total", "seconds": trained.seconds + asked.seconds},
    ]
    columns = {"phase": ("phase", "{}"), "seconds": ("s", "{:.1f}"), "peak_gb": ("peak memory, GB", "{:.1f}")}
    return {
        "title": "The original's whole job",
        "rows": lines,
        "table": measuring.table(lines, columns),
        "seconds": lines[-1]["seconds"],
        "notes": [_job(record, epochs), *_exact(found)],
    }


def _job(record: dict[str, Any], epochs: int) -> str:
    rows, training = record["data"]["rows"], record["training"]
    length = f"{epochs} epoch{'s' * (epochs > 1)}, {training['steps']} steps of {training['batch_size']} rows"
    return (
        f"{rows['train']} rows to train on, {rows['test']} held out; {length}, "
        f"{training['examples_per_second']:.1f} examples/s; {os.cpu_count()} cores"
    )


def _exact(found: dict[str, Any]) -> list[str]:
    models = found["sets"][0]["models"]
    counts = ((model["name"], model["metrics"]["exact"]) for model in models)
    return [f"exact calls, {name}: {exact['right']} of {exact['n']}" for name, exact in counts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=ROWS, help="rows, of which three tenths are held out")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--keep", help="where to leave the run directory; by default nowhere")
    parser.add_argument("--quick", action="store_true", help="14 rows, one epoch")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    sizes = (14, 1) if given.quick else (given.rows, given.epochs)
    measuring.show(measure(*sizes, given.keep), given.json)


if __name__ == "__main__":
    main()
