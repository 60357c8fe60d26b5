"""What the tests of generation let an XLA process do; the expected answers come from the same cases on plain torch.

    python -m tests.evaluate.xla_generate_worker DEVICES FILE

answers every case and leaves what it found in FILE.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from fitcoach_tune.backends import make_backend
from fitcoach_tune.errors import DeviceError
from fitcoach_tune.evaluate.generate import STOP_IDS, Generator
from tests.conftest import tiny_gemma
from tests.evaluate.test_generate import make_prompts

# Each case has sizes of its own, so that it finds no graph of another's. A call has the lengths of its prompts behind
# the prefix, and how many it asks at a time.
CASES: dict[str, dict[str, Any]] = {
    "prefix": {"prefix": 30, "limit": 21, "calls": [([1, 9, 5, 17, 2, 30], 4), ([7, 31, 2], 8)]},
    "no_prefix": {"prefix": 0, "limit": 12, "calls": [([3, 1, 12], None), ([20], 4)]},
    "sliding": {"prefix": 40, "limit": 34, "window": 16, "calls": [([1, 26, 5, 32, 9], 4)]},
    "long": {"prefix": 20, "limit": 10, "window": 64, "calls": [([3, 700, 512, 513], 4), ([701], 4)]},
    "stops": {"prefix": 23, "limit": 60, "likely": True, "calls": [([4, 8, 3, 12, 6, 7, 9, 5], 8)]},
    "one_token": {"prefix": 11, "limit": 1, "calls": [([4, 8], None)]},
    "bf16": {"prefix": 17, "limit": 19, "dtype": torch.bfloat16, "calls": [([4, 8, 3, 12, 6], 4)]},
}  # fmt: skip


def make_model(case: dict[str, Any]) -> torch.nn.Module:
    """Untied: a random model with tied embeddings says one token again and again, whatever stands before it."""
    model = tiny_gemma(window=case.get("window", 512), seed=3, tie_word_embeddings=False)
    if case.get("likely"):
        model.lm_head.weight.data[sorted(STOP_IDS)] *= 3
    return model.to(case.get("dtype", torch.float32))


def answer(case: dict[str, Any], generator: Generator) -> tuple[list[list[list[int]]], list[list[tuple]]]:
    """The answers of each call, and in which order they were told."""
    answers, told = [], []
    for lengths, size in case["calls"]:
        head, prompts = make_prompts(case["prefix"], lengths, seed=case["limit"])
        generator.warm(head)
        order: list[tuple] = []
        answers.append(generator.generate(prompts, case["limit"], lambda *row, to=order: to.append(row), size))
        told.append(order)
    return answers, told


def count_compilations(backend: Any) -> dict[str, list[int]]:
    """From now on: how many graphs each use of the prefix's, prompts', … graph compiled."""
    from fitcoach_tune.backends.xla import compilations

    found, graph = defaultdict(list), backend.graph

    @contextlib.contextmanager
    def counted(kind, at, shapes):
        before = compilations()
        with graph(kind, at, shapes):
            yield
        found[kind.split()[0]].append(compilations() - before)

    backend.graph = counted
    return found


def refused(model: torch.nn.Module, backend: Any) -> str:
    """Is a change of the model noticed that compiles a graph anew?"""
    generator = Generator(model, backend)
    generator.generate([[5, 6, 7]], 3)
    model.model.layers[0].mlp.register_forward_hook(lambda module, inputs, output: output.sin())
    try:
        generator.generate([[5, 6, 7]], 3)
    except DeviceError as error:
        return str(error)
    return ""


def constrained(model: torch.nn.Module, backend: Any) -> str:
    try:
        Generator(model, backend).generate([[5, 6, 7], [8]], 3, constraints=[None, object()])
    except DeviceError as error:
        return str(error)
    return ""


def among_hosts(model: torch.nn.Module, backend: Any) -> str:
    backend.world_size = 2
    try:
        Generator(model, backend)
    except DeviceError as error:
        return str(error)
    return ""


def main(devices: str, file: str) -> None:
    found: dict[str, Any] = {}
    for name, case in CASES.items():
        backend = make_backend("xla-cpu", int(devices))
        compiled = count_compilations(backend)
        model = make_model(case)
        backend.place(model)
        answers, told = answer(case, Generator(model, backend))
        found[name] = {"answers": answers, "told": told, "compiled": compiled}
    backend, model = make_backend("xla-cpu", int(devices)), make_model({})
    backend.place(model)
    found["refused"] = refused(model, backend)
    found["constrained"] = constrained(model, backend)
    found["among_hosts"] = among_hosts(model, backend)
    Path(file).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
