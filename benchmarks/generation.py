"""Answers of an adapter: this program's evaluation beside `model.generate` row by row, in one process, in turn.

    python benchmarks/generation.py --adapter output/fitness-offline --rows 64 --repeat 3

Both use the same base, adapter and dtype, greedily; transformers with PEFT's own layers, unmerged, as a user would
write it. Prints rows per second, their ratio, and how many answers are the same letter for letter (bf16 rounds
differently in a batch).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from fitcoach_tune import models, runs
from fitcoach_tune.backends import answering_dtype, make_backend
from fitcoach_tune.console import SILENT
from fitcoach_tune.evaluate.asking import ask, groups
from fitcoach_tune.evaluate.constrain import Constraint
from fitcoach_tune.evaluate.generate import STOP_IDS, Generator
from fitcoach_tune.evaluate.sources import question_sets, read_rows
from fitcoach_tune.training.adapter import load_adapter

LIMIT = 128


def row_by_row(model: torch.nn.Module, tokenizer: object, prompts: list[list[int]]) -> list[str]:
    """What a script around transformers does."""
    answers = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            made = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=LIMIT,
                do_sample=False,
                eos_token_id=sorted(STOP_IDS),
                pad_token_id=0,
            )
        answers.append(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=False))
    return answers


def together(generator: Generator, tokenizer: object, asked: object, rows: int, constrained: bool) -> list[str]:
    """What `eval` does, the prompt prefix and the grammar included."""
    generator.warm([])  # nothing is left from the turn before
    tools = [turn.tools for turn in asked.turns[:rows]]
    constraint = Constraint(tools[0], tokenizer) if constrained else None
    answers = [""] * rows

    def keep(place: int, answer: object) -> None:
        answers[place] = answer.raw

    ask(
        generator,
        tokenizer,
        asked.prompts[:rows],
        groups(tools),
        max_new_tokens=LIMIT,
        batch_size=32,
        constraints=[constraint] * rows if constraint else None,
        on_answer=keep,
    )
    return answers


def main() -> None:
    from peft import PeftModel

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3, help="measured turns, after one that warms up")
    given = parser.parse_args()
    run = runs.open_run(given.adapter)
    base = models.resolve(*run.base_name)
    tokenizer = models.load_tokenizer(run.path)
    asked = question_sets(read_rows(run, None, "test", SILENT), tokenizer, 1024, None)[0]
    rows = min(given.rows, len(asked.turns))
    dtype = answering_dtype(run.dtype, make_backend("cpu"))
    with models.quiet_libraries():
        plain = PeftModel.from_pretrained(models.load_model(base, dtype), run.path).eval()
    generator = Generator(load_adapter(models.load_model(base, dtype), run.path))
    variants: dict[str, Callable[[], list[str]]] = {
        "model.generate, row by row": partial(row_by_row, plain, tokenizer, asked.prompts[:rows]),
        "eval": partial(together, generator, tokenizer, asked, rows, False),
        "eval --constrained": partial(together, generator, tokenizer, asked, rows, True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    said: dict[str, list[str]] = {}
    for turn in range(given.repeat + 1):
        for name, variant in variants.items():
            started = time.perf_counter()
            said[name] = variant()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    first = next(iter(variants))
    slowest = statistics.median(seconds[first])
    print("| variant | rows/s | ratio | same answers |\n| --- | ---: | ---: | ---: |")
    for name in variants:
        median = statistics.median(seconds[name])
        same = sum(a == b for a, b in zip(said[name], said[first], strict=True))
        print(f"| {name} | {rows / median:.2f} | {slowest / median:.1f}× | {same} of {rows} |")


if __name__ == "__main__":
    main()
