"""How a step's time grows with the prefix, the suffixes and the rows, and where sharing the prefix stops paying.

Each point of a grid is a batch of random tokens: rows that start with the same `prefix` tokens and go on with `suffix`
of their own, by up to a quarter more or fewer. It is computed twice by the program: with the prefix shared, and with
each row whole, as without the idea of sharing; the weights, LoRA, loss, and everything else are the same, so that
sharing alone is measured, which is less than what `shared_prefix.py` and `training_trl.py` measure. Whole rows are
taken a few at a time and their gradients added up, as one has to where they do not fit the memory together.

What sharing can give at most is the ratio of the tokens: rows · (prefix + suffix) to prefix + rows · suffix. With no
common prefix, or with one row, both compute the same.

    python benchmarks/cost_shape.py --repeat 3 --plot cost.png
    python benchmarks/cost_shape.py --prefixes 0 256 --suffixes 16 --batches 1 32
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import measuring

if TYPE_CHECKING:
    from fitcoach_tune.training.batches import TokenizedRow

# Whole rows that are computed together: tokens, padding included.
AT_ONCE = 4096
TARGETS = 8
PAYS_FROM = 1.05
_ORDINARY_TOKENS = (1_000, 200_000)


def make_rows(prefix: int, suffix: int, batch: int) -> tuple[list[TokenizedRow], Any]:
    """Rows of random tokens, and the prefix that they share. The last tokens of a row are supervised."""
    import numpy as np

    from fitcoach_tune.training.batches import TokenizedRow

    random = np.random.default_rng([prefix, suffix, batch])
    shared = random.integers(*_ORDINARY_TOKENS, prefix, dtype=np.int32)
    rows = []
    for length in random.integers(suffix - suffix // 4, suffix + suffix // 4 + 1, batch):
        own = random.integers(*_ORDINARY_TOKENS, length + 1, dtype=np.int32)  # the last one is only predicted
        ids = np.concatenate([shared, own])
        rows.append(TokenizedRow(ids, ((len(ids) - min(TARGETS, length), len(ids)),)))
    return rows, shared


def whole_rows(rows: Sequence[TokenizedRow]) -> list[list[int]]:
    """Row numbers in groups of at most `AT_ONCE` tokens, rows of like length together."""
    order = sorted(range(len(rows)), key=lambda i: -rows[i].end)
    groups: list[list[int]] = []
    for i in order:
        if groups and (len(groups[-1]) + 1) * rows[groups[-1][0]].end <= AT_ONCE:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def step(loss: Any, rows: Sequence[TokenizedRow], groups: Sequence[Sequence[int]], prefix: Any) -> Callable[[], float]:
    """A step over rows, group by group, each behind `prefix`, as the program takes them; it returns the loss per
    supervised token.
    """
    import numpy as np
    import torch

    from fitcoach_tune.backends import make_backend
    from fitcoach_tune.training import batches
    from fitcoach_tune.training.step import inputs

    count = batches.supervised_count(rows, np.arange(len(rows)))
    most = make_backend("cpu").most_tokens
    parts = [part for group in groups for part in batches.parts(rows, np.array(group), len(prefix), most)]

    def run() -> float:
        total = 0.0
        for part in parts:
            batch = batches.pack(rows, part, prefix, groups=1)
            summed = loss(*inputs(batch, loss.model.config.sliding_window, torch.from_numpy)) / count
            summed.backward()
            total += summed.item()
        loss.model.zero_grad(set_to_none=True)
        return total

    return run


def point(loss: Any, prefix: int, suffix: int, batch: int, repeat: int) -> dict[str, Any]:
    """Both ways of computing a point, in turn."""
    rows, shared = make_rows(prefix, suffix, batch)
    steps = {
        "shared": step(loss, rows, [range(batch)], shared),
        "whole": step(loss, rows, whole_rows(rows), shared[:0]),
    }
    losses = {name: run() for name, run in steps.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeat):
        for name, run in steps.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    speeds = {name: batch / median(taken) for name, taken in seconds.items()}
    own = sum(row.end - prefix for row in rows)
    return {
        "prefix": prefix,
        "suffix": suffix,
        "batch": batch,
        "shared": speeds["shared"],
        "whole": speeds["whole"],
        "ratio": speeds["shared"] / speeds["whole"],
        "tokens": (batch * prefix + own) / (prefix + own),
        "loss_difference": abs(losses["shared"] / losses["whole"] - 1),
    }


def measure(grid: Sequence[tuple[int, int, int]], repeat: int, dtype: str) -> dict[str, Any]:
    """All points of a grid of (prefix, suffix, batch)."""
    import torch

    from fitcoach_tune import models
    from fitcoach_tune.config import ORIGINAL_TARGETS
    from fitcoach_tune.training import adapter
    from fitcoach_tune.training.step import PackedLoss

    model = models.load_model(models.resolve("offline"), dtype)
    adapter.attach(model, rank=32, alpha=64, dropout=0.0, target_modules=list(ORIGINAL_TARGETS), seed=0)
    loss = PackedLoss(model.train())
    rows = [point(loss, *shape, repeat) for shape in grid]
    columns = {
        "prefix": ("prefix, tokens", "{}"),
        "suffix": ("suffix, tokens", "{}"),
        "batch": ("rows a step", "{}"),
        "whole": ("whole rows, examples/s", "{:.2f}"),
        "shared": ("shared prefix, examples/s", "{:.2f}"),
        "ratio": ("ratio", "{:.2f}×"),
        "tokens": ("tokens' ratio", "{:.2f}×"),
        "loss_difference": ("losses differ by", "{:.2%}"),
    }
    best, worst = (pick(rows, key=lambda row: row["ratio"]) for pick in (max, min))
    return {
        "title": "Where sharing the prefix pays",
        "rows": rows,
        "table": measuring.table(rows, columns),
        "ratios": {f"sharing, {how}: {describe(row)}": row["ratio"] for how, row in (("best", best), ("worst", worst))},
        "notes": [f"{dtype}, {torch.get_num_threads()} threads", where_it_stops(rows)],
    }


def describe(row: dict[str, Any]) -> str:
    return f"prefix {row['prefix']}, suffix {row['suffix']}, {row['batch']} rows"


def where_it_stops(rows: Sequence[dict[str, Any]]) -> str:
    """The points at which sharing gives nothing worth having, in one sentence."""
    useless = [row for row in rows if row["ratio"] < PAYS_FROM]
    if not useless:
        return "sharing pays at all points"
    most = max(row["tokens"] for row in useless)
    pays = [row["tokens"] for row in rows if row["ratio"] >= PAYS_FROM]
    least = f"; the smallest ratio of tokens at which it does is {min(pays):.2f}" if pays else ""
    listed = "; ".join(f"{describe(row)} ({row['ratio']:.2f}×)" for row in useless)
    return (
        f"sharing stops paying (less than {PAYS_FROM}×) at {listed}: the ratio of the tokens is at most {most:.2f} "
        f"there{least}"
    )


def plot(rows: Sequence[dict[str, Any]], file: str) -> None:
    """The ratio over the prefix's length, a panel for each suffix and a line for each number of rows."""
    from matplotlib.figure import Figure

    suffixes, counts = (sorted({row[key] for row in rows}) for key in ("suffix", "batch"))
    figure = Figure(figsize=(4 * len(suffixes), 3.6), layout="constrained")
    panels = figure.subplots(1, len(suffixes), sharey=True, squeeze=False)[0]
    for panel, suffix in zip(panels, suffixes, strict=True):
        for color, count in enumerate(counts):
            line = [row for row in rows if (row["suffix"], row["batch"]) == (suffix, count)]
            prefixes, ratios, tokens = ([row[key] for row in line] for key in ("prefix", "ratio", "tokens"))
            panel.plot(prefixes, ratios, marker="o", color=f"C{color}", label=f"{count} row{'s' * (count > 1)}")
            panel.plot(prefixes, tokens, linestyle=":", color=f"C{color}")
        panel.axhline(1, color="grey", linewidth=0.8)
        panel.set(title=f"suffixes of {suffix} tokens", xlabel="prefix, tokens", yscale="log")
    panels[0].set_ylabel("times as fast as whole rows\n(dotted: ratio of the tokens)")
    panels[0].legend()
    figure.savefig(Path(file), dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prefixes", type=int, nargs="+", default=[0, 64, 256, 512], help="tokens; 0 for none")
    parser.add_argument("--suffixes", type=int, nargs="+", default=[16, 64, 256], help="tokens a row")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32], help="rows of a step")
    parser.add_argument("--repeat", type=int, default=3, help="counted turns of each point, after one that warms up")
    parser.add_argument("--dtype", choices=["auto", "bf16", "fp32"], default="auto")
    parser.add_argument("--plot", help="a picture, too: a .png or .svg file")
    parser.add_argument("--quick", action="store_true", help="two points, one turn")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    grid = list(itertools.product(given.prefixes, given.suffixes, given.batches))
    if given.quick:
        grid, given.repeat = [(0, 16, 2), (64, 16, 4)], 1
    found = measure(grid, given.repeat, measuring.cpu_dtype(given.dtype))
    if given.plot:
        plot(found["rows"], given.plot)
    measuring.show(found, given.json)


if __name__ == "__main__":
    main()
