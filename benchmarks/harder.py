"""Some of the harder sets, each asked freely and held to the declared tools: what holding answers is good for.

    python benchmarks/harder.py --adapter output/fitness-offline --data builtin:fitness-dev --sets all renamed --rows 48

`fitcoach-tune eval --hard` asks all sets with the base beside the model; this asks fewer questions.
"""

from __future__ import annotations

import argparse

from fitcoach_tune import models, runs
from fitcoach_tune.backends import answering_dtype, make_backend
from fitcoach_tune.console import SILENT
from fitcoach_tune.evaluate.answers import Answer
from fitcoach_tune.evaluate.asking import ask, groups
from fitcoach_tune.evaluate.constrain import Constraint
from fitcoach_tune.evaluate.gemma import answering_model
from fitcoach_tune.evaluate.generate import Generator
from fitcoach_tune.evaluate.hard import per_list
from fitcoach_tune.evaluate.score import judge
from fitcoach_tune.evaluate.sources import question_sets, read_rows
from fitcoach_tune.evaluate.statistics import Rate
from fitcoach_tune.training.adapter import load_adapter

LIMIT, ROOM, SEED = 128, 4096, 42


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--data", help="as of `eval`; by default the held-out rows")
    parser.add_argument(
        "--sets", nargs="+", default=["gold-removed", "renamed"], help="test, or all of --data: as they are"
    )
    parser.add_argument("--rows", type=int, default=60, help="of each set, the first ones")
    given = parser.parse_args()
    run, backend = runs.open_run(given.adapter), make_backend("cpu")
    tokenizer = models.load_tokenizer(run.path)
    model = answering_model(models.resolve(*run.base_name), answering_dtype(run.dtype, backend), backend)
    generator = Generator(load_adapter(model, run.path), backend)
    rows = read_rows(run, given.data, None, SILENT)
    asked = {one.name.removeprefix("hard/"): one for one in question_sets(rows, tokenizer, ROOM, SEED)}
    print("| set | held to the tools | exact | called nothing |\n| --- | --- | ---: | ---: |")
    for name in given.sets:
        turns, prompts = asked[name].turns[: given.rows], asked[name].prompts[: given.rows]
        for held in (False, True):
            made = per_list(turns, lambda tools: Constraint(tools, tokenizer)) if held else {}
            answers: dict[int, Answer] = {}
            ask(
                generator,
                tokenizer,
                prompts,
                groups([turn.tools for turn in turns]),
                max_new_tokens=LIMIT,
                batch_size=32,
                constraints=[made[id(turn.tools)] for turn in turns] if held else None,
                on_answer=answers.__setitem__,
            )
            verdicts = [judge(answers[i].raw, turn.gold, turn.tools) for i, turn in enumerate(turns)]
            right = Rate(sum(verdict.right for verdict in verdicts), len(turns))
            silent = sum(not verdict.calls for verdict in verdicts)
            print(f"| {name} | {'yes' if held else 'no'} | {right} | {silent} |", flush=True)


if __name__ == "__main__":
    main()
