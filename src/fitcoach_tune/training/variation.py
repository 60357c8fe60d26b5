"""The prompt's tools, another way in each step, so that the model learns to read them and not their places.

All rows of a set that share their tools share a prefix, and its declarations can change places for a whole step without
a token more to compute. Or one of them is left out for a step: the rows that call it then have no function to call, and
are answered as the set answers what no function serves. What a step sees is a pure function of (seed, step).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from fitcoach_tune.functiongemma import CONTROL_TOKENS
from fitcoach_tune.training.batches import TokenizedRow

_STREAM = 7  # sets these draws apart from those of the rows' order, which are seeded with (seed, epoch)


def declarations(prefix: np.ndarray) -> list[tuple[int, int]]:
    """The whole tool declarations in a prefix (int [P]), as half-open ranges of tokens."""
    starts = np.flatnonzero(prefix == CONTROL_TOKENS["<start_function_declaration>"])
    ends = np.flatnonzero(prefix == CONTROL_TOKENS["<end_function_declaration>"]) + 1
    return list(zip(starts.tolist(), ends.tolist(), strict=False))


Calls: TypeAlias = tuple[frozenset[str], ...]
"""The functions that each answer of a row calls."""


def common_refusal(rows: Sequence[TokenizedRow], calls: Sequence[Calls]) -> np.ndarray | None:
    """The answer, int32 [tokens], that rows without a call have most often; None if there is no such row."""
    found = Counter(
        tuple(row.input_ids[slice(*row.spans[0])].tolist())
        for row, called in zip(rows, calls, strict=True)
        if not any(called)
    )
    return np.array(found.most_common(1)[0][0], dtype=np.int32) if found else None


@dataclass(frozen=True)
class Variation:
    """How the prompt's tools vary from step to step.

    Attributes:
        seed: of the draws.
        shuffle: the declarations change places.
        dropout: the probability that one tool is left out in a step.
        names: the tools in the order of their declarations.
        calls: for each row the functions that its answers call; needed for dropout.
        refusal: int32 [tokens], what rows answer whose function was left out; needed for dropout.
    """

    seed: int
    shuffle: bool
    dropout: float = 0.0
    names: tuple[str, ...] = ()
    calls: Sequence[Calls] = ()
    refusal: np.ndarray | None = None

    def view(
        self, step: int, rows: Sequence[TokenizedRow], prefix: np.ndarray
    ) -> tuple[Sequence[TokenizedRow], np.ndarray]:
        """The rows and the prefix (int [P]) as a step, counted from 0, sees them."""
        parts = declarations(prefix)
        rng = np.random.default_rng([self.seed, _STREAM, step])
        order = rng.permutation(len(parts)) if self.shuffle else np.arange(len(parts))
        left_out = int(rng.integers(len(parts))) if parts and rng.random() < self.dropout else None
        kept = [parts[i] for i in order if i != left_out]
        if not parts:
            return rows, prefix
        pieces = [prefix[start:end] for start, end in kept]
        seen = np.concatenate([prefix[: parts[0][0]], *pieces, prefix[parts[-1][1] :]])
        if left_out is None:
            return rows, seen
        return _Without(rows, self.calls, self.names[left_out], self.refusal, len(prefix), seen), seen


class _Without(Sequence[TokenizedRow]):
    """Rows behind a prefix that one tool was left out of."""

    def __init__(
        self,
        rows: Sequence[TokenizedRow],
        calls: Sequence[Calls],
        name: str,
        refusal: np.ndarray,
        length: int,
        prefix: np.ndarray,
    ):
        self._rows, self._calls, self._name, self._refusal = rows, calls, name, refusal
        self._length, self._prefix = length, prefix

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> TokenizedRow:
        row = self._rows[index]
        refused = next((i for i, called in enumerate(self._calls[index]) if self._name in called), len(row.spans))
        if refused < len(row.spans):
            # This answer is the last: what comes after it belongs to calls that are not made.
            start = row.spans[refused][0]
            ids = np.concatenate([row.input_ids[:start], self._refusal])
            row = replace(row, input_ids=ids, spans=(*row.spans[:refused], (start, len(ids))))
        shift = len(self._prefix) - self._length
        ids = np.concatenate([self._prefix, row.input_ids[self._length :]])
        return replace(row, input_ids=ids, spans=tuple((start + shift, end + shift) for start, end in row.spans))
