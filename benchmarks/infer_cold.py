"""Seconds from a command to the printed call, and to an answer in a process that is warm.

Cold: `fitcoach-tune infer "How many steps?" --adapter D --quiet` beside infer_transformers.py, the shortest script with
transformers and PEFT that does the same; new processes in turn, with the files in the disk's cache. Warm: each of a
number of questions to `FunctionCaller`, as it is and unconstrained, and to `model.generate`, with and without the keys
and values of what all prompts start with; all in one process, in turn.

The adapter is one that was trained on the built-in dataset (`fitcoach-tune train --config offline`); by default the
newest run under output/.

    python benchmarks/infer_cold.py --adapter output/fitness-offline --repeat 10
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

import measuring

if TYPE_CHECKING:
    from torch import nn
    from transformers import Cache

QUESTION = "How many steps?"
SCRIPT = str(Path(__file__).with_name("infer_transformers.py"))
LIMIT = 128
_DTYPES = {"bf16": "bfloat16", "fp32": "float32"}  # as transformers spells them
# Where torch_xla is installed, transformers would load it; who asks a question on a CPU has not got it.
PLAIN = {"USE_TORCH_XLA": "0"}


# ------------------------------------------------------------------------------------------------ cold


def cold(adapter: str, repeat: int) -> list[dict[str, Any]]:
    """Both commands in turn, `repeat` times after one that warms the disk's cache."""
    commands = {
        "transformers + PEFT": [measuring.PYTHON, SCRIPT, adapter, QUESTION, _DTYPES[measuring.cpu_dtype()]],
        "fitcoach-tune infer": [
            *(measuring.PYTHON, "-m", "fitcoach_tune", "infer", QUESTION),
            *("--adapter", adapter, "--device", "cpu", "--quiet"),
        ],
    }
    done: dict[str, list[measuring.Finished]] = {name: [] for name in commands}
    for turn in range(repeat + 1):
        for name, command in commands.items():
            finished = measuring.run(command, environment=PLAIN)
            if turn:
                done[name].append(finished)
    middle = {name: median(run.first_line for run in runs) for name, runs in done.items()}
    script = next(iter(commands))
    return [
        {
            "variant": name,
            "seconds": middle[name],
            "ratio": middle[script] / middle[name],
            "to_the_end": median(run.seconds for run in runs),
            "peak_gb": max(run.peak_bytes for run in runs) / 1e9,
            "said": runs[0].output.splitlines()[0],
        }
        for name, runs in done.items()
    ]


# ------------------------------------------------------------------------------------------------ warm


def warm(adapter: str, questions: int) -> dict[str, Any]:
    """Ask all variants each question; the first question is asked once more before it counts."""
    from fitcoach_tune import builtin, models, runs
    from fitcoach_tune.backends import answering_dtype, make_backend
    from fitcoach_tune.infer import FunctionCaller
    from fitcoach_tune.training.batches import common_length

    run = runs.open_run(adapter)
    with models.quiet_libraries():
        from peft import PeftModel

        base = models.load_model(models.resolve(*run.base_name), answering_dtype(run.dtype, make_backend("cpu")))
        plain = PeftModel.from_pretrained(base, run.path).eval()
    callers = {
        "FunctionCaller": FunctionCaller.from_adapter(adapter, device="cpu", max_new_tokens=LIMIT),
        "FunctionCaller, unconstrained": FunctionCaller.from_adapter(
            adapter, device="cpu", max_new_tokens=LIMIT, constrained=False
        ),
    }
    caller = callers["FunctionCaller"]
    lines = builtin.rows_path("builtin:fitness-dev").read_text(encoding="utf-8").splitlines()
    asked = [json.loads(line)["messages"][1]["content"] for line in lines[:questions]]
    prompts = [caller.prompt(question) for question in asked]
    shared = common_length(prompts, min(map(len, prompts)) - 1)
    filled = _filled(plain, prompts[0][:shared])

    def generate(prompt: list[int], cache: Cache | None = None) -> str:
        return caller.tokenizer.decode(_generate(plain, prompt, cache), skip_special_tokens=False)

    variants: dict[str, Callable[[list[int]], str]] = {
        "model.generate": generate,
        "model.generate, prefix cached": lambda prompt: generate(prompt, copy.deepcopy(filled)),
        **{name: lambda prompt, c=c: c.answer([prompt])[0].raw for name, c in callers.items()},
    }
    return {"rows": _in_turn(variants, prompts), "prefix": shared}


def _filled(model: nn.Module, prefix: list[int]) -> Cache:
    """The keys and values of a prefix, as transformers keeps them."""
    import torch
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(input_ids=torch.tensor([prefix]), past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def _generate(model: nn.Module, prompt: list[int], cache: Cache | None) -> list[int]:
    import torch

    from fitcoach_tune.evaluate.generate import STOP_IDS

    ids = torch.tensor([prompt])
    with torch.inference_mode():
        made = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=cache,
            max_new_tokens=LIMIT,
            do_sample=False,
            eos_token_id=sorted(STOP_IDS),
            pad_token_id=0,
        )
    return made[0, ids.shape[1] :].tolist()


def _in_turn(variants: dict[str, Callable[[list[int]], str]], prompts: list[list[int]]) -> list[dict[str, Any]]:
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    said: dict[str, list[str]] = {name: [] for name in variants}
    for variant in variants.values():
        variant(prompts[0])
    for prompt in prompts:
        for name, variant in variants.items():
            started = time.perf_counter()
            said[name].append(variant(prompt))
            seconds[name].append(time.perf_counter() - started)
    first = next(iter(variants))
    middle = {name: median(taken) for name, taken in seconds.items()}
    return [
        {
            "variant": name,
            "p50": middle[name],
            "p95": quantiles(taken, n=20, method="inclusive")[-1],
            "ratio": middle[first] / middle[name],
            "same": f"{sum(a == b for a, b in zip(said[name], said[first], strict=True))} of {len(prompts)}",
        }
        for name, taken in seconds.items()
    ]


# ------------------------------------------------------------------------------------------------ both


def measure(adapter: str, repeat: int, questions: int) -> dict[str, Any]:
    """Cold and warm."""
    started = cold(adapter, repeat)
    answered = measuring.child(__file__, "warm", adapter=adapter, questions=questions)
    tables = [
        measuring.table(
            started,
            {
                "variant": ("cold", "{}"),
                "seconds": ("s to the call", "{:.2f}"),
                "ratio": ("ratio", "{:.2f}×"),
                "to_the_end": ("s to the end", "{:.2f}"),
                "peak_gb": ("peak memory, GB", "{:.1f}"),
                "said": ("printed", "`{}`"),
            },
        ),
        measuring.table(
            answered["rows"],
            {
                "variant": ("warm", "{}"),
                "p50": ("p50, s", "{:.3f}"),
                "p95": ("p95, s", "{:.3f}"),
                "ratio": ("ratio", "{:.2f}×"),
                "same": ("same answers", "{}"),
            },
        ),
    ]
    speed = {row["variant"]: row["ratio"] for row in answered["rows"]}
    cached = "model.generate, prefix cached"
    return {
        "title": "One question, cold and warm",
        "rows": [*started, *answered["rows"]],
        "table": "\n\n".join(tables),
        "ratios": {
            "a cold question, beside transformers + PEFT": started[-1]["ratio"],
            "a warm question, beside model.generate": speed["FunctionCaller"],
            f"a warm question, beside {cached}": speed["FunctionCaller"] / speed[cached],
        },
        "notes": [f"the prompts have {answered['prefix']} tokens in common"],
    }


def main() -> None:
    if measuring.answered_parent({"warm": warm}):
        return
    from fitcoach_tune import runs

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapter", help="a run directory; by default the newest run")
    parser.add_argument("--repeat", type=int, default=10, help="counted cold starts of each, after one that warms up")
    parser.add_argument("--questions", type=int, default=30, help="questions to the warm process")
    parser.add_argument("--quick", action="store_true", help="one cold start, three questions")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    sizes = (1, 3) if given.quick else (given.repeat, given.questions)
    measuring.show(measure(given.adapter or runs.newest_run(), *sizes), given.json)


if __name__ == "__main__":
    main()
