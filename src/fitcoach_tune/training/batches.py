"""Which rows stand in which batch, and how rows become the tensors of a packed batch. Host side only: NumPy.

The order is a pure function of (seed, epoch), and a batch of (seed, epoch, step): nothing has to be remembered to
continue a run, and the number of devices or micro-batches changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

PADDING_ROW = -1

# What a block of rows costs beside its tokens, in tokens: the kernels that attention runs for it.
BLOCK_TOKENS = 12

# The most of a part's tokens that its prefix may be for the sake of shorter parts.
PREFIX_SHARE = 1 / 16


@dataclass(frozen=True)
class TokenizedRow:
    """One row as token ids.

    Attributes:
        input_ids: int32 [tokens], the whole row, `<bos>` included.
        spans: supervised half-open ranges [start, end) of `input_ids`; never starting at 0.
    """

    input_ids: np.ndarray
    spans: tuple[tuple[int, int], ...]

    @property
    def supervised(self) -> np.ndarray:
        """int64 positions of the supervised tokens in `input_ids`."""
        return np.concatenate([np.arange(start, end) for start, end in self.spans])

    @property
    def end(self) -> int:
        """Tokens to feed: the last supervised token is only predicted, and nothing after it matters."""
        return self.spans[-1][1] - 1


@dataclass(frozen=True)
class PackedBatch:
    """What a process computes at once: a micro-batch, or a part of one.

    Attributes:
        prefix: P, tokens that are computed once for all rows.
        input_ids: int64 [G, P + T], the T suffix tokens of a group being those of its blocks, one after the other.
        gather: int64 [G, N], positions in the group whose states predict a supervised token.
        targets: int64 [G, N], those tokens.
        weights: float32 [G, N]; 0 for padding.
        blocks: (R, S) of each block: R rows whose suffixes are padded to S tokens.
    """

    prefix: int
    input_ids: np.ndarray
    gather: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    blocks: tuple[tuple[int, int], ...]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the arrays by name."""
        return {name: getattr(self, name).shape for name in ("input_ids", "gather", "targets", "weights")}


def common_length(sequences: Iterable[Sequence[int] | np.ndarray], limit: int) -> int:
    """How many tokens, at most `limit`, all sequences have in common at their start; each has at least `limit`."""
    first = None
    for sequence in sequences:
        head = np.asarray(sequence[:limit])
        if first is None:
            first = head
        elif len(differs := np.flatnonzero(first[:limit] != head)):
            limit = int(differs[0])
    return limit


def epoch_order(rows: int, seed: int, epoch: int) -> np.ndarray:
    """The shuffled row numbers of an epoch (counted from 0)."""
    return np.random.default_rng([seed, epoch]).permutation(rows)


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Optimizer steps per epoch; the last, partial batch counts."""
    return math.ceil(rows / batch_size)


def batch_rows(rows: int, batch_size: int, seed: int, epoch: int, step: int) -> np.ndarray:
    """The `batch_size` row numbers of a step in its epoch; a last partial batch is filled up with `PADDING_ROW`."""
    chosen = epoch_order(rows, seed, epoch)[step * batch_size : (step + 1) * batch_size]
    return np.pad(chosen, (0, batch_size - len(chosen)), constant_values=PADDING_ROW)


def in_order(rows: int, batch_size: int) -> Iterator[np.ndarray]:
    """All rows in their order, in padded batches: for evaluation."""
    for start in range(0, rows, batch_size):
        chosen = np.arange(start, min(start + batch_size, rows))
        yield np.pad(chosen, (0, batch_size - len(chosen)), constant_values=PADDING_ROW)


def process_rows(rows: np.ndarray, micros: int, processes: int, process: int) -> np.ndarray:
    """One process's share of a batch: [micros, rows per micro-batch of the process].

    Each micro-batch is a slice of the batch, and each process has a slice of each micro-batch, so that what a
    micro-batch holds as a whole does not depend on how many processes and devices share it.
    """
    return rows.reshape(micros, processes, -1)[:, process]


def supervised_count(data: Sequence[TokenizedRow], chosen: np.ndarray) -> int:
    """Supervised tokens in these rows: what the summed loss of a step is divided by."""
    return sum(end - start for i in chosen if i != PADDING_ROW for start, end in data[i].spans)


def suffix_width(data: Sequence[TokenizedRow], prefix: int) -> int:
    """The longest suffix of the set, in tokens."""
    return max(row.end - prefix for row in data)


def target_width(data: Sequence[TokenizedRow]) -> int:
    """The most supervised tokens that a row has."""
    return max(len(row.supervised) for row in data)


def cut_blocks(widths: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Cut rows, given by falling width in tokens, into blocks of (rows, width) so that the least is computed.

    A block costs the tokens that it is padded to and `BLOCK_TOKENS` for its own kernels; the best cut is found by
    dynamic programming over the rows.
    """
    best: list[tuple[int, tuple[tuple[int, int], ...]]] = [(0, ())]
    for end in range(1, len(widths) + 1):
        starts = [start for start in range(end) if start == 0 or widths[start] < widths[start - 1]]
        costs = [best[start][0] + (end - start) * widths[start] + BLOCK_TOKENS for start in starts]
        cost = min(costs)
        start = starts[costs.index(cost)]
        best.append((cost, (*best[start][1], (end - start, widths[start]))))
    return best[-1][1]


def parts(data: Sequence[TokenizedRow], chosen: np.ndarray, prefix: int, most: int) -> list[np.ndarray]:
    """Cut rows into as few parts as have about `most` suffix tokens or fewer each, rows of like length together.

    Each part has the prefix again; parts are longer where it would be more than `PREFIX_SHARE` of them. Padding goes,
    unless there is nothing else.
    """
    real = chosen[chosen != PADDING_ROW]
    if not len(real):
        return [chosen[:1]]
    widths = np.array([data[i].end - prefix for i in real])
    order = np.argsort(-widths, kind="stable")
    count = math.ceil(widths.sum() / max(most, prefix / PREFIX_SHARE))
    middles = widths[order].cumsum() - widths[order] / 2
    ends = np.searchsorted(middles, widths.sum() * np.arange(1, count) / count)
    return [part for part in np.split(real[order], ends) if len(part)]


def pack(
    data: Sequence[TokenizedRow],
    chosen: np.ndarray,
    prefix: np.ndarray,
    groups: int,
    static: tuple[int, int] | None = None,
) -> PackedBatch:
    """Pack the rows `chosen` ([G · R], `PADDING_ROW` allowed) behind their shared `prefix` (int [P]).

    A single group's rows are sorted by length into blocks, so that little is computed for padding; a row alone is all
    prefix, since it shares nothing. Several groups are one tensor, and have one block of their longest row's width.

    Args:
        static: (suffix width, targets per row) to pad to, where every batch must have the same shapes.
    """
    if static is None and len(chosen) == 1 and chosen[0] != PADDING_ROW:
        return _pack_alone(data[chosen[0]], prefix)
    per_group, start = len(chosen) // groups, len(prefix)
    needs = np.array([1 if i == PADDING_ROW else data[i].end - start for i in chosen])
    if static is None and groups == 1:
        order = np.argsort(-needs, kind="stable")
        chosen, blocks = chosen[order], cut_blocks(needs[order].tolist())
    else:
        blocks = ((per_group, static[0] if static else int(needs.max())),)
    begins = np.cumsum([start, *(width for rows, width in blocks for _ in range(rows))])
    ids = np.zeros((groups, begins[-1]), dtype=np.int64)
    ids[:, :start] = prefix
    counts = [sum(len(data[i].supervised) for i in part if i != PADDING_ROW) for part in chosen.reshape(groups, -1)]
    shape = (groups, per_group * static[1] if static else max(counts))
    # Padding points at the group's first suffix position, with weight 0.
    gather, targets = np.full(shape, start, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    filled = [0] * groups
    for slot, index in enumerate(chosen):
        if index == PADDING_ROW:
            continue
        group, place = divmod(slot, per_group)
        row, at = data[index], begins[place]
        ids[group, at : at + row.end - start] = row.input_ids[start : row.end]
        taken = slice(filled[group], filled[group] + len(row.supervised))
        # The state before a token predicts it.
        gather[group, taken] = at + row.supervised - 1 - start
        targets[group, taken] = row.input_ids[row.supervised]
        filled[group] = taken.stop
    weights = (np.arange(shape[1]) < np.array(filled)[:, None]).astype(np.float32)
    return PackedBatch(start, ids, gather, targets, weights, blocks)


def _pack_alone(row: TokenizedRow, prefix: np.ndarray) -> PackedBatch:
    ids = np.concatenate([prefix, row.input_ids[len(prefix) : row.end]]).astype(np.int64)
    targets = row.input_ids[row.supervised].astype(np.int64)
    weights = np.ones(len(targets), dtype=np.float32)
    arrays = (ids, row.supervised - 1, targets, weights)
    return PackedBatch(row.end, *(array[None] for array in arrays), blocks=())
