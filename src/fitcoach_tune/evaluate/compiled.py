"""Greedy generation on a device that compiles what it does (XLA): nothing changes its shape or moves to the host.

There is one graph for the prompts and one for every further token. Rows that have stopped go on and are not listened
to; prompts are padded to a common width, and batches with dummies to a common number of rows. What changes from token
to token (where a row stands, what it said) are tensors on the device, written in place: a Python number would become a
constant of the graph, and each token another graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fitcoach_tune import functiongemma
from fitcoach_tune.evaluate.cache import FixedCache, Layers
from fitcoach_tune.training.prefix import hidden_states

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from fitcoach_tune.backends.base import Backend

STOP_IDS = frozenset(functiongemma.CONTROL_TOKENS[token] for token in functiongemma.STOP_TOKENS)
# Prompt tokens behind the prefix that run at once: what bounds the memory of attention over a very long prompt.
AT_ONCE = 512
# Prompts are padded to a multiple of this, so that prompts of about the same length share a graph.
_WIDTHS = 32
# Tokens made before the host asks for them, for which it waits: each row makes up to this many for nothing.
_FETCH_EVERY = 8


@dataclass(frozen=True)
class Shape:
    """What must stay the same for a graph to serve again.

    Attributes:
        rows: prompts at a time, dummies included.
        part: prompt tokens behind the prefix that run at once.
        parts: how often they do.
        limit: most tokens of an answer.
    """

    rows: int
    part: int
    parts: int
    limit: int

    @classmethod
    def of(cls, longest: int, rows: int, limit: int, groups: int) -> Shape:
        """For prompts of up to `longest` tokens behind the prefix, and rows that make `groups` equal groups."""
        parts = math.ceil(longest / AT_ONCE)
        return cls(_round_up(rows, groups), _round_up(math.ceil(longest / parts), _WIDTHS), parts, limit)

    @property
    def width(self) -> int:
        return self.part * self.parts

    @property
    def capacity(self) -> int:
        return self.width + self.limit


def _round_up(number: int, multiple: int) -> int:
    return math.ceil(number / multiple) * multiple


@dataclass(frozen=True)
class Progress:
    """Where a batch stands: tensors on the device, sharded by rows.

    Attributes:
        lengths: int64 [B, 1], tokens of each prompt behind the prefix.
        slots: int64 [B, 1], where in the cache the newest token will stand.
        newest: int64 [B, 1], the token chosen last.
        answers: int64 [B, limit], the tokens chosen so far.
    """

    lengths: Tensor
    slots: Tensor
    newest: Tensor
    answers: Tensor

    @classmethod
    def start(cls, lengths: np.ndarray, limit: int, put: Callable[[np.ndarray], Tensor]) -> Progress:
        nothing = np.zeros((len(lengths), limit), dtype=np.int64)
        return cls(put(lengths), put(lengths), put(nothing[:, :1]), put(nothing))

    def record(self) -> None:
        """The newest token is the answer's next one."""
        here = torch.arange(self.answers.shape[1], device=self.answers.device) == self.slots - self.lengths
        self.answers.copy_(torch.where(here, self.newest, self.answers))


class CompiledRows:
    """Rows of one shape behind a computed prefix, with a cache that serves one batch after another."""

    def __init__(
        self, model: PreTrainedModel, backend: Backend, prefix: tuple[int, Layers], shape: Shape, model_name: str
    ):
        self.model, self.backend, self.shape = model, backend, shape
        length, layers = prefix
        self._name = f"{shape.rows}x{shape.part}x{shape.parts}+{shape.limit} behind {length} of {model_name}"
        with backend.graph(f"cache {self._name}", "generation", {}):
            own = {i: tuple(zeros(model, backend, shape.rows, shape.capacity) for _ in "kv") for i in layers}
            backend.end_step()
        self._cache = FixedCache(layers, length, model.config.sliding_window, own)

    def answer(self, tails: Mapping[int, Sequence[int]], on_answer: Callable[[int, list[int]], None]) -> None:
        """Give the greedy continuation of up to `shape.rows` prompts, given by their index without the prefix.

        `on_answer` gets each index with its new tokens once it is known that they are all; see `Generator.generate`.
        """
        shape, backend = self.shape, self.backend
        rows = [*tails.values(), *[[0]] * (shape.rows - len(tails))]
        ids = padded(rows, shape.width)
        progress = Progress.start(np.array([[len(row)] for row in rows]), shape.limit, backend.put)
        for start in range(0, shape.width, shape.part):
            self._prefill(progress, ids[:, start : start + shape.part], start)
        made, going = 1, dict(enumerate(tails))
        while going:
            for _ in range(min(_FETCH_EVERY, shape.limit - made)):
                self._decode(progress)
                made += 1
            answers = self._fetch(progress)
            for row, index in list(going.items()):
                answer = _until_stop(answers[row][:made])
                if made == shape.limit or answer[-1] in STOP_IDS:
                    del going[row]
                    on_answer(index, answer)

    def _prefill(self, progress: Progress, ids: np.ndarray, start: int) -> None:
        """Run a part of the prompts, int64 [B, part] from slot `start`; rows that end in it get their first token."""
        with self.backend.graph(f"prefill {self._name}", f"prompt token {start}", {"ids": ids.shape}):
            columns = torch.arange(self.shape.part, device=self.backend.device)
            slots = self.backend.scalar(start).long() + columns[None]
            hidden = hidden_states(self.model, self.backend.put(ids), self._cache.at(slots), self._cache)
            ends = slots == progress.lengths - 1
            token = self._choose(torch.where(ends[..., None], hidden, 0).sum(1))
            progress.newest.copy_(torch.where(ends.any(1, keepdim=True), token, progress.newest))
            progress.record()
            self.backend.end_step()

    def _decode(self, progress: Progress) -> None:
        """Give every row its next token."""
        with self.backend.graph(f"decode {self._name}", "an answer", {"ids": tuple(progress.newest.shape)}):
            hidden = hidden_states(self.model, progress.newest, self._cache.at(progress.slots), self._cache)
            progress.newest.copy_(self._choose(hidden[:, 0]))
            progress.slots.add_(1)
            progress.record()
            self.backend.end_step()

    def _choose(self, hidden: Tensor) -> Tensor:
        return (hidden @ self.model.lm_head.weight.T).argmax(-1, keepdim=True)

    def _fetch(self, progress: Progress) -> list[list[int]]:
        # Not `cpu()`: of a sharded tensor it compiles a program each time, to gather it.
        with self.backend.graph(f"fetch {self._name}", "an answer", {"answers": tuple(progress.answers.shape)}):
            return self.backend.to_host({"answers": progress.answers})["answers"].tolist()


def zeros(model: PreTrainedModel, backend: Backend, rows: int, slots: int) -> Tensor:
    """Empty keys or values [rows, K, slots, D], sharded by rows. `put` takes no bfloat16, so it is converted there."""
    config = model.config
    shape = (rows, config.num_key_value_heads, slots, config.head_dim)
    return backend.put(np.zeros(shape, np.float32)).to(model.lm_head.weight.dtype)


def padded(rows: Sequence[Sequence[int]], width: int) -> np.ndarray:
    """Rows of tokens as int64 [B, width]."""
    ids = np.zeros((len(rows), width), dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return ids


def _until_stop(answer: list[int]) -> list[int]:
    end = next((i for i, token in enumerate(answer) if token in STOP_IDS), len(answer) - 1)
    return answer[: end + 1]
