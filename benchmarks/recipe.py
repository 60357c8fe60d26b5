"""Which recipe is best on the offline base: each point trained with several seeds and asked the development set.

    python benchmarks/recipe.py run          # every point without a result in benchmarks/recipe.jsonl: a night's work
    python benchmarks/recipe.py run --points "all rows" --seeds 3 --ask builtin:fitness-dev builtin:fitness-gold
    python benchmarks/recipe.py table        # the results as Markdown

A point is some rows and some flags of `fitcoach-tune train`. It is trained and asked by the program's own commands,
each in a process of its own; a result is a line of JSON, and what is there already is not run again, so that a night's
work can be stopped and continued. Results on another version of the data are kept, and stand in lines of their own.
Choose by `builtin:fitness-dev`; the gold set is for what was chosen.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean

from fitcoach_tune.builtin import rows_path
from fitcoach_tune.evaluate.statistics import Rate
from fitcoach_tune.fitness import DATASET_VERSION
from fitcoach_tune.fitness.generator import FUNCTIONS

RESULTS = Path(__file__).with_name("recipe.jsonl")
# What every point has, unless it says otherwise: the recipe of `configs/offline.yaml`.
CHOSEN = {
    "target-modules": "all-linear",
    "lora-r": 32,
    "lora-alpha": 64,
    "lora-dropout": 0.05,
    "per-device-train-batch-size": 16,
    "num-train-epochs": 3,
    "optim": "adamw",
    "learning-rate": "6e-4",
    "lr-scheduler-type": "cosine",
    "test-size": 0.05,
    "shuffle-tools": False,
    "tool-dropout": 0,
}

# One thing changed at a time, tried on a thousand of the rows.
FACTORS: dict[str, dict] = {
    "chosen": {},
    "attention": {"target-modules": "q_proj,k_proj,v_proj,o_proj"},
    "attention, 1e-3": {"target-modules": "q_proj,k_proj,v_proj,o_proj", "learning-rate": "1e-3"},
    "2e-4": {"learning-rate": "2e-4"},
    "4e-4": {"learning-rate": "4e-4"},
    "1e-3": {"learning-rate": "1e-3"},
    "adafactor": {"optim": "adafactor"},
    "linear": {"lr-scheduler-type": "linear"},
    "constant": {"lr-scheduler-type": "constant"},
    "1 epoch": {"num-train-epochs": 1},
    "2 epochs": {"num-train-epochs": 2},
    "5 epochs": {"num-train-epochs": 5},
    "rank 8": {"lora-r": 8, "lora-alpha": 16},
    "rank 64": {"lora-r": 64, "lora-alpha": 128},
    "no dropout": {"lora-dropout": 0},
    "dropout 0.1": {"lora-dropout": 0.1},
    "batch 8": {"per-device-train-batch-size": 8},
    "batch 32": {"per-device-train-batch-size": 32},
    "tools shuffled": {"shuffle-tools": True},
}

# Name → (rows to train on, flags beside `CHOSEN`). `thousand` is 1,000 random rows of the built-in set; `few` 157
# queries that call one function each, of which 149 are left when a twentieth is held out, as many as the published set
# has.
POINTS: dict[str, tuple[str, dict]] = {
    **{f"1,000 rows, {name}": ("thousand", flags) for name, flags in FACTORS.items()},
    "all rows": ("all", {}),
    "all rows, 1e-3": ("all", {"learning-rate": "1e-3"}),
    "all rows, 2 epochs": ("all", {"num-train-epochs": 2}),
    "all rows, tools vary, 0.1": ("all", {"shuffle-tools": True, "tool-dropout": 0.1}),
    "149 rows": ("few", {"num-train-epochs": 8, "split": "random"}),
    "149 rows, 1e-3": ("few", {"num-train-epochs": 8, "split": "random", "learning-rate": "1e-3"}),
}


def rows_of(source: str) -> list[dict]:
    return [json.loads(line) for line in rows_path(source).read_text(encoding="utf-8").splitlines()]


def single_calls(rows: list[dict]) -> list[dict]:
    """The English rows that call exactly one function."""
    return [row for row in rows if row["id"].partition("-")[0] in FUNCTIONS]


def as_file(rows: list[dict], file: Path) -> str:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def subset(name: str, seed: int, folder: Path) -> str:
    """The rows of a point as `--dataset` takes them."""
    if name == "all":
        return "builtin:fitness"
    rows = rows_of("builtin:fitness")
    if name == "few":
        rows = single_calls(rows)
    return as_file(random.Random(seed).sample(rows, {"thousand": 1000, "few": 157}[name]), folder / f"{name}.jsonl")


def measure(point: str, seed: int, questions: list[str], threads: int, hard: bool, keep: str | None) -> dict:
    """Train a point with a seed and ask the model, unconstrained and constrained; with `keep` the run stays there."""
    rows, flags = POINTS[point]
    # `few` draws its rows by the seed, as the splits of the published set do; else the seed is the training's alone.
    with tempfile.TemporaryDirectory() as folder:
        out = Path(keep or folder, f"{point}, seed {seed}")
        settings = CHOSEN | flags | {"seed": seed, "dataset": subset(rows, seed if rows == "few" else 0, Path(folder))}
        given = [spelt(name, value) for name, value in settings.items()]
        command = ["train", "--config", "offline", "--tools", "builtin:fitness", *given, "--output-dir", str(out)]
        record = program(*command, threads=threads, folder=folder)
        result = {"point": point, "data": DATASET_VERSION, "rows": rows, "flags": flags, "seed": seed}
        result["seconds"], result["steps"] = record["seconds"]["train"], record["training"]["steps"]
        result["train_rows"] = record["data"]["rows"]["train"]
        for place, source in enumerate(questions):
            harder = ["--hard"] if hard and not place else []
            # What learnt single calls alone is asked for nothing else.
            asked_of = source if rows != "few" else as_file(single_calls(rows_of(source)), Path(folder, "asked.jsonl"))
            asked = ["eval", "--adapter", str(out), "--data", asked_of, "--baseline", "none", *harder]
            found = program(*asked, threads=threads, folder=folder)
            result[source] = {
                part["name"]: {model["name"]: shares(model["metrics"]) for model in part["models"]}
                for part in found["sets"]
            }
    return result


def spelt(name: str, value: object) -> str:
    """A setting as a flag."""
    return f"--{'' if value else 'no-'}{name}" if isinstance(value, bool) else f"--{name}={value}"


def shares(metrics: dict) -> dict:
    """The counts that a table needs."""
    return {name: [metrics[name]["right"], metrics[name]["n"]] for name in ("exact", "silent", "called", "invented")}


def program(*arguments: str, threads: int, folder: str) -> dict:
    """Run a command of the program and return the JSON that it prints."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "fitcoach_tune", *arguments, "--json", "--quiet"]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return json.loads(done.stdout)


def results() -> list[dict]:
    return [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()] if RESULTS.exists() else []


def run(points: list[str], seeds: int, questions: list[str], workers: int, hard: bool, keep: str | None) -> None:
    known = [found for found in results() if found["data"] == DATASET_VERSION and set(questions) <= set(found)]
    done = {(found["point"], found["seed"]) for found in known}
    due = [(point, seed) for seed in range(seeds) for point in points if (point, seed) not in done]
    threads = max(1, (os.cpu_count() or 1) // workers)
    with ThreadPoolExecutor(workers) as pool:
        for found in pool.map(lambda job: measure(*job, questions, threads, hard, keep), due):
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
            print(found["point"], found["seed"], json.dumps({q: found[q] for q in questions}), file=sys.stderr)


def table() -> str:
    """One line a point: rows, seeds, and the share of exact answers over all seeds with its 95% Wilson interval."""
    lines = ["| point | data | rows | steps | seeds | set | exact, free | exact, constrained | silent when it should |"]
    lines.append("| --- | --- | ---: | ---: | ---: | --- | ---: | ---: | ---: |")
    groups: dict[tuple[str, str, str, str], list[dict]] = {}
    for found in results():
        for source in (key for key in found if key.startswith("builtin:")):
            for name in found[source]:
                groups.setdefault((found["point"], found["data"], source, name), []).append(found)
    for (point, data, source, name), runs in groups.items():
        models = [run[source][name] for run in runs]
        free, bound = ([m[key]["exact"] for m in models] for key in ("tuned", "tuned, constrained"))
        silent = [m["tuned, constrained"]["silent"] for m in models]
        title = source.removeprefix("builtin:fitness-") + ("" if name == next(iter(runs[0][source])) else f", {name}")
        first = runs[0]
        lines.append(
            f"| {point} | {data} | {first['train_rows']:,} | {first['steps']} | {len(runs)} | {title} | "
            f"{pooled(free)} | {pooled(bound)} | {pooled(silent)} |"
        )
    return "\n".join(lines)


def pooled(counts: list[list[int]]) -> str:
    """Percent right over all seeds, interval, and the seeds' own percents."""
    right, n = (sum(column) for column in zip(*counts, strict=True))
    if not n:
        return "–"
    low, high = Rate(right, n).interval
    each = ", ".join(f"{100 * r / n:.1f}" for r, n in counts)
    return f"{100 * mean(r / n for r, n in counts):.1f} ({100 * low:.1f} to {100 * high:.1f}); {each}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    running = verbs.add_parser("run")
    running.add_argument("--points", nargs="+", choices=[*POINTS], default=[*POINTS])
    running.add_argument("--seeds", type=int, default=3)
    running.add_argument(
        "--ask", nargs="+", default=["builtin:fitness-dev"], help="sets to ask, as eval --data names them"
    )
    running.add_argument("--workers", type=int, default=1, help="trainings at once, which share the cores")
    running.add_argument("--hard", action="store_true", help="ask the harder sets of the first of them too")
    running.add_argument("--keep", help="a folder in which the trained adapters stay; by default they do not")
    verbs.add_parser("table")
    chosen = parser.parse_args()
    if chosen.verb == "run":
        keep = chosen.keep and str(Path(chosen.keep).absolute())
        run(chosen.points, chosen.seeds, chosen.ask, chosen.workers, chosen.hard, keep)
    else:
        print(table())


if __name__ == "__main__":
    main()
