"""Asking a model many questions: grouped by what their prompts share, timed, each answer handed on as it comes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fitcoach_tune.evaluate.answers import Answer
from fitcoach_tune.evaluate.generate import STOP_IDS, Generator, common_prefix

if TYPE_CHECKING:
    from fitcoach_tune.evaluate.constrain import Constraint
    from fitcoach_tune.tokenizer import AnyTokenizer

# Questions with equal tools share a long prefix. So few of them are asked together with others all the same: a batch of
# its own costs more than what the prefix saves.
_TOO_FEW = 4


def groups(tools: Sequence[list[dict]]) -> list[list[int]]:
    """Which questions are asked together: those with equal tools (the same list object), and the rest of all lists that
    occur too rarely. Numbers of questions.
    """
    alike: dict[int, list[int]] = defaultdict(list)
    for i, declared in enumerate(tools):
        alike[id(declared)].append(i)
    found = [group for group in alike.values() if len(group) >= _TOO_FEW]
    rest = [i for group in alike.values() if len(group) < _TOO_FEW for i in group]
    return found + ([rest] if rest else [])


def ask(
    generator: Generator,
    tokenizer: AnyTokenizer,
    prompts: Sequence[list[int]],
    together: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    constraints: Sequence[Constraint] | None,
    on_answer: Callable[[int, Answer], None],
) -> None:
    """Get an answer to every prompt that stands in a group.

    Args:
        prompts: token ids.
        together: the groups, as numbers of prompts; see `groups`.
        constraints: for each prompt, or None.
        on_answer: told each prompt's number and its answer, when it comes.
    """
    for group in together:
        order = sorted(group, key=lambda i: len(prompts[i]))  # alike lengths need little padding
        size = min(batch_size, len(order))
        batch, started = 0, time.perf_counter()
        last = started

        def finished(place: int, tokens: list[int], order: list[int] = order, size: int = size) -> None:
            nonlocal batch, started, last
            if place // size != batch:
                batch, started = place // size, last
            now = time.perf_counter()
            raw = tokenizer.decode(tokens, skip_special_tokens=False)
            stopped = tokens[-1] in STOP_IDS
            on_answer(order[place], Answer(raw, len(tokens), stopped, now - started, now - last))
            last = now

        generator.warm(common_prefix([prompts[i] for i in order]))
        generator.generate(
            [prompts[i] for i in order],
            max_new_tokens,
            finished,
            batch_size=size,
            constraints=[constraints[i] for i in order] if constraints else None,
        )
