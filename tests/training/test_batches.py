"""The order of rows, and packed batches: written out by hand, and as properties of random rows."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitcoach_tune.training.batches import (
    BLOCK_TOKENS,
    PADDING_ROW,
    PREFIX_SHARE,
    TokenizedRow,
    batch_rows,
    cut_blocks,
    epoch_order,
    in_order,
    pack,
    parts,
    process_rows,
    steps_per_epoch,
    suffix_width,
    supervised_count,
    target_width,
)


def row(ids: list[int], *spans: tuple[int, int]) -> TokenizedRow:
    return TokenizedRow(np.array(ids, dtype=np.int32), spans)


# ------------------------------------------------------------------------------------------------ order


def test_the_order_is_a_pure_function_of_seed_and_epoch() -> None:
    first = epoch_order(50, 42, 0)
    np.random.seed(1)
    assert epoch_order(50, 42, 0).tolist() == first.tolist()
    assert sorted(first.tolist()) == list(range(50))
    others = [epoch_order(50, 42, 1), epoch_order(50, 43, 0), epoch_order(50, 0, 42), np.arange(50)]
    assert len({tuple(order.tolist()) for order in [first, *others]}) == 5


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 60), size=st.integers(1, 17), seed=st.integers(0, 2**40), epoch=st.integers(0, 9))
def test_an_epoch_has_every_row_once(rows, size, seed, epoch) -> None:
    steps = [batch_rows(rows, size, seed, epoch, step) for step in range(steps_per_epoch(rows, size))]
    assert {len(chosen) for chosen in steps} == {size}
    real = np.concatenate(steps)
    assert real.tolist() == epoch_order(rows, seed, epoch).tolist() + [PADDING_ROW] * (-rows % size)
    assert sorted(real[real != PADDING_ROW].tolist()) == list(range(rows))


def test_only_the_last_batch_is_padded() -> None:
    chosen = batch_rows(10, 4, 42, 0, 2)
    assert chosen.tolist() == [*epoch_order(10, 42, 0)[8:].tolist(), PADDING_ROW, PADDING_ROW]
    assert (batch_rows(10, 4, 42, 0, 1) != PADDING_ROW).all()


@pytest.mark.parametrize(
    ("rows", "size", "expected"),
    [(5, 2, [[0, 1], [2, 3], [4, -1]]), (4, 2, [[0, 1], [2, 3]]), (1, 3, [[0, -1, -1]]), (0, 3, [])],
)
def test_in_order(rows, size, expected) -> None:
    assert [chosen.tolist() for chosen in in_order(rows, size)] == expected
    assert steps_per_epoch(rows, size) == len(expected)


# ------------------------------------------------------------------------------------------------ rows

PREFIX = np.array([2, 7])
ROWS = [
    row([2, 7, 10, 11, 12, 13], (4, 6)),  # one prompt token of its own behind the prefix, then another; two to learn
    row([2, 7, 20, 21], (3, 4)),
    row([2, 7, 30, 31, 32, 33, 34, 35, 36], (3, 5), (6, 8)),  # two spans, and an end that nothing is learnt from
]


def test_a_row_knows_what_is_fed_and_learnt() -> None:
    assert [r.supervised.tolist() for r in ROWS] == [[4, 5], [3], [3, 4, 6, 7]]
    assert [r.end for r in ROWS] == [5, 3, 7]
    assert suffix_width(ROWS, len(PREFIX)) == 5
    assert target_width(ROWS) == 4
    assert supervised_count(ROWS, np.array([0, 2, PADDING_ROW, 2])) == 2 + 4 + 4
    assert supervised_count(ROWS, np.array([PADDING_ROW])) == 0


# ------------------------------------------------------------------------------------------------ packing


def check(batch, input_ids, gather, targets, weights, blocks) -> None:
    assert batch.input_ids.tolist() == input_ids
    assert batch.gather.tolist() == gather
    assert batch.targets.tolist() == targets
    assert batch.weights.tolist() == weights
    assert batch.blocks == blocks
    dtypes = (batch.input_ids.dtype, batch.gather.dtype, batch.targets.dtype, batch.weights.dtype)
    assert dtypes == (np.int64, np.int64, np.int64, np.float32)


def test_two_groups_no_wider_than_needed() -> None:
    # Group 0 holds rows 0 and 1, group 1 row 2 and padding; a group is 2 + 2 × 5 positions.
    check(
        pack(ROWS, np.array([0, 1, 2, PADDING_ROW]), PREFIX, groups=2),
        input_ids=[
            [2, 7, 10, 11, 12, 0, 0, 20, 0, 0, 0, 0],
            [2, 7, 30, 31, 32, 33, 34, 0, 0, 0, 0, 0],
        ],
        # 11 predicts 12, and 12 predicts 13; 20 predicts 21; 30 → 31, 31 → 32, 33 → 34, 34 → 35. A missing target
        # points at the first position behind the prefix.
        gather=[[3, 4, 7, 2], [2, 3, 5, 6]],
        targets=[[12, 13, 21, 0], [31, 32, 34, 35]],
        weights=[[1, 1, 1, 0], [1, 1, 1, 1]],
        blocks=((2, 5),),
    )


def test_two_groups_of_static_shape() -> None:
    check(
        pack(ROWS, np.array([0, 1, 2, PADDING_ROW]), PREFIX, groups=2, static=(6, 4)),
        input_ids=[
            [2, 7, 10, 11, 12, 0, 0, 0, 20, 0, 0, 0, 0, 0],
            [2, 7, 30, 31, 32, 33, 34, 0, 0, 0, 0, 0, 0, 0],
        ],
        gather=[[3, 4, 8, 2, 2, 2, 2, 2], [2, 3, 5, 6, 2, 2, 2, 2]],
        targets=[[12, 13, 21, 0, 0, 0, 0, 0], [31, 32, 34, 35, 0, 0, 0, 0]],
        weights=[[1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0]],
        blocks=((2, 6),),
    )


def test_without_a_prefix() -> None:
    check(
        pack(ROWS[:2], np.array([1, 0]), np.array([], dtype=np.int64), groups=1),
        input_ids=[[2, 7, 10, 11, 12, 2, 7, 20, 0, 0]],  # the longer row comes first
        gather=[[3, 4, 7]],
        targets=[[12, 13, 21]],
        weights=[[1, 1, 1]],
        blocks=((2, 5),),
    )


def test_a_row_alone_is_all_prefix() -> None:
    batch = pack(ROWS, np.array([0]), PREFIX, groups=1)
    check(batch, [[2, 7, 10, 11, 12]], [[3, 4]], [[12, 13]], [[1, 1]], ())
    assert batch.prefix == 5


def test_a_row_alone_has_the_prefix_of_its_step() -> None:
    """In which the tools may stand in another order than in the row."""
    batch = pack(ROWS, np.array([0]), PREFIX[::-1].copy(), groups=1)
    check(batch, [[7, 2, 10, 11, 12]], [[3, 4]], [[12, 13]], [[1, 1]], ())


@given(
    widths=st.lists(st.integers(1, 60), min_size=1, max_size=30),
    prefix=st.integers(0, 40),
    most=st.integers(1, 300),
    padding=st.integers(0, 3),
)
def test_parts(widths: list[int], prefix: int, most: int, padding: int) -> None:
    """Each row stands in one part; parts are as few as can be, about equal, and no shorter than the prefix is worth."""
    rows = [row([2] * (prefix + width + 1), (prefix + width, prefix + width + 1)) for width in widths]
    chosen = np.concatenate([np.arange(len(rows)), np.full(padding, PADDING_ROW)])
    found = parts(rows, chosen, prefix, most)
    assert sorted(np.concatenate(found).tolist()) == list(range(len(rows)))
    longest = max(most, prefix / PREFIX_SHARE)
    sums = [sum(widths[i] for i in part) for part in found]
    assert len(found) <= -(-sum(widths) // longest)
    assert max(sums) <= longest + max(widths)
    assert [widths[i] for part in found for i in part] == sorted(widths, reverse=True)


def test_parts_of_padding_alone() -> None:
    assert [part.tolist() for part in parts(ROWS, np.full(3, PADDING_ROW), 2, 100)] == [[PADDING_ROW]]


def test_rows_of_like_length_share_a_block() -> None:
    """Three long rows and thirty short ones: two blocks, the long rows first, each row padded to its block alone."""
    long = row([2, 7, *range(100, 150)], (50, 52))
    rows = [ROWS[1]] * 30 + [long] * 3
    batch = pack(rows, np.arange(33), PREFIX, groups=1)
    assert batch.blocks == ((3, 49), (30, 1))
    assert batch.input_ids.shape == (1, 2 + 3 * 49 + 30)
    assert batch.input_ids[0, 2 : 2 + 49].tolist() == list(range(100, 149))
    assert batch.gather[0, :4].tolist() == [2 + 47, 2 + 48, 2 + 49 + 47, 2 + 49 + 48]
    assert batch.gather[0, 6:].tolist() == list(range(2 + 147, 2 + 147 + 30))


def test_blocks_are_cut_where_it_pays() -> None:
    """A block costs `BLOCK_TOKENS`: 12 tokens of padding are not worth one, 13 are."""
    assert BLOCK_TOKENS == 12
    assert cut_blocks([13, 1]) == ((2, 13),)
    assert cut_blocks([14, 1]) == ((1, 14), (1, 1))
    assert cut_blocks([5]) == ((1, 5),)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=9))
def test_no_other_cut_is_cheaper(widths) -> None:
    widths = sorted(widths, reverse=True)

    def cost(blocks) -> int:
        return sum(rows * width + BLOCK_TOKENS for rows, width in blocks)

    others = []
    for edges in itertools.product([False, True], repeat=len(widths) - 1):
        cuts = [0, *(i + 1 for i, cut in enumerate(edges) if cut), len(widths)]
        others.append([(end - start, widths[start]) for start, end in itertools.pairwise(cuts)])
    chosen = cut_blocks(widths)
    assert sum(rows for rows, _ in chosen) == len(widths)
    assert cost(chosen) == min(map(cost, others))


@pytest.mark.parametrize("static", [None, (5, 4)])
def test_only_padding(static) -> None:
    batch = pack(ROWS, np.full(4, PADDING_ROW), PREFIX, groups=2, static=static)
    assert batch.input_ids.shape == (2, 2 + 2 * (5 if static else 1))
    assert batch.weights.sum() == 0
    assert (batch.gather < batch.input_ids.shape[1]).all()


@st.composite
def random_batch(draw):
    """Rows over a shared prefix, rows chosen from them, the number of groups, and whether shapes are static."""
    prefix = draw(st.lists(st.integers(1, 50), max_size=5))
    rows = []
    for _ in range(draw(st.integers(1, 5))):
        own = draw(st.lists(st.integers(51, 99), min_size=2, max_size=12))
        ids, first = prefix + own, len(prefix) + 1
        cuts = (
            draw(st.lists(st.integers(first, len(ids)), unique=True, min_size=2, max_size=6).map(sorted))
            if (len(ids) - first > 0)
            else [first, len(ids)]
        )
        edges = cuts[: len(cuts) // 2 * 2]
        rows.append(row(ids, *zip(edges[::2], edges[1::2], strict=True)))
    groups, per_group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    indices = st.integers(PADDING_ROW, len(rows) - 1)
    chosen = draw(st.lists(indices, min_size=groups * per_group, max_size=groups * per_group))
    return rows, np.array(prefix, dtype=np.int64), np.array(chosen), groups, draw(st.booleans())


@settings(max_examples=120, deadline=None)
@given(random_batch())
def test_following_the_states_recovers_what_each_row_learns(made) -> None:
    rows, prefix, chosen, groups, is_static = made
    static = (suffix_width(rows, len(prefix)), target_width(rows)) if is_static else None
    batch = pack(rows, chosen, prefix, groups, static)
    alone = [batch.input_ids.shape[1] - len(prefix)]
    widths = [width for rows, width in batch.blocks for _ in range(rows)] or alone
    begins = np.cumsum([len(prefix), *widths])
    assert batch.input_ids.shape == (groups, begins[-1])
    assert (batch.input_ids[:, : len(prefix)] == prefix).all()
    assert batch.weights.sum() == supervised_count(rows, chosen)

    found: dict[int, list] = {slot: [] for slot in range(len(chosen))}
    for (group, i), at in np.ndenumerate(batch.gather):
        place, target, weight = int(at), batch.targets[group, i], batch.weights[group, i]
        slot = int(np.searchsorted(begins, place, side="right")) - 1
        assert 0 <= slot < len(widths)  # a state of the shared prefix belongs to no row
        if weight:
            seen = batch.input_ids[group, begins[slot] : place + 1].tolist()
            found[group * len(widths) + slot].append((seen, int(target)))
    # Each supervised token is predicted by the state that has seen all of its row before it, and nothing more.
    wanted = []
    for index in chosen:
        supervised = [] if index == PADDING_ROW else rows[index].supervised.tolist()
        ids = rows[index].input_ids.tolist()
        wanted.append([(ids[len(prefix) : at], ids[at]) for at in supervised])
    if groups == 1 and not static:  # rows are sorted into blocks
        assert sorted(found.values()) == sorted(wanted)
    else:
        assert list(found.values()) == wanted
    if static:
        assert batch.gather.shape == (groups, len(chosen) // groups * static[1])


# ------------------------------------------------------------------------------------------------ hosts and devices


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_hosts_and_devices_share_a_batch_without_changing_it(data) -> None:
    """What the hosts pack for each micro-batch, one behind the other, is what a single host with all devices packs."""
    hosts, devices = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    micros, per_device = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    size = hosts * devices * micros * per_device
    rows = batch_rows(len(ROWS), size, seed=data.draw(st.integers(0, 99)), epoch=0, step=0)
    static = (suffix_width(ROWS, len(PREFIX)), target_width(ROWS))
    whole = process_rows(rows, micros, 1, 0)
    shares = [process_rows(rows, micros, hosts, host) for host in range(hosts)]
    for micro in range(micros):
        one = pack(ROWS, whole[micro], PREFIX, hosts * devices, static)
        packed = [pack(ROWS, share[micro], PREFIX, devices, static) for share in shares]
        for name in one.shapes():
            together = np.concatenate([getattr(part, name) for part in packed])
            assert (together == getattr(one, name)).all()
        assert {len(part.input_ids) for part in packed} == {devices}
    assert sorted(np.concatenate(shares, axis=None)) == sorted(rows)


@pytest.mark.parametrize(
    ("hosts", "host", "expected"),
    [
        (1, 0, [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]),
        (2, 0, [[0, 1, 2], [6, 7, 8]]),
        (2, 1, [[3, 4, 5], [9, 10, 11]]),
        (3, 2, [[4, 5], [10, 11]]),
    ],
)
def test_the_share_of_a_host(hosts, host, expected) -> None:
    assert process_rows(np.arange(12), 2, hosts, host).tolist() == expected
