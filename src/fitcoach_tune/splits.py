"""Which rows are held out: near-duplicates stay on one side, and every tool is represented on both."""

from __future__ import annotations

import json
import math
import unicodedata
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fitcoach_tune.dataset import Example
from fitcoach_tune.functiongemma import Call

# Two questions count as nearly equal from this similarity on: 1 - edits / total length, on normalised text.
NEAR = 0.9
# In a bucket of candidates each text is compared with this many neighbours, so that the cost stays linear.
_NEIGHBOURS = 20
_LISTED, _NAMED = 10, 3
_BASE, _AT_ONCE = 0x9E3779B97F4A7C15, 1 << 16
_APOSTROPHES = "'\u2018\u2019\u02bc"
_ASCII = {i: chr(i).lower() if chr(i).isalnum() else " " for i in range(128)} | {ord("'"): None}


def normalise(text: str) -> str:
    """A text without case, punctuation, accents' encoding and extra space: what makes two questions the same.

    An apostrophe splits no word, and vowel signs, which no one code point may hold with their letter, stay.
    """
    if text.isascii():  # the same, quickly
        return " ".join(text.translate(_ASCII).split())
    return _normalise_any(text)


def _normalise_any(text: str) -> str:
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    kept = (
        c if c.isalnum() or unicodedata.category(c).startswith("M") else " " for c in folded if c not in _APOSTROPHES
    )
    return " ".join("".join(kept).split())


def question(example: Example) -> str:
    """Everything that the user says in a row."""
    return "\n".join(str(m["content"]) for m in example.messages if m["role"] == "user")


def label(calls: Sequence[Call]) -> str:
    """What a row with these calls teaches, for stratifying: tool names, or "no call"."""
    return " + ".join(call.name for call in calls) or "no call"


class Facts:
    """What the split has to know of rows, in little memory."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        """What the user says, normalised."""
        self.openings = array("q")
        """A hash of what the user says first, of this process."""
        self.labels = array("i")
        """The number of each row's label."""
        self.answers = array("q")
        """A hash of each row's calls, of this process."""
        self.toolsets = array("i")
        """A number for each row's tools."""
        self._numbers: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.texts)

    def extend(self, more: Facts) -> None:
        """Add the rows of another one."""
        numbers = [self._numbers.setdefault(name, len(self._numbers)) for name in more._numbers]
        self.labels.extend(numbers[number] for number in more.labels)
        self.texts += more.texts
        self.openings += more.openings
        self.answers += more.answers
        self.toolsets += more.toolsets

    def add(self, example: Example, toolset: int) -> None:
        """Add a row; `toolset` is the same number for rows with equal tools."""
        calls = example.gold
        answer = name = label(calls)
        if any(call.arguments for call in calls):
            answer = json.dumps([[call.name, call.arguments] for call in calls], sort_keys=True)
        said = [str(m["content"]) for m in example.messages if m["role"] == "user"]
        text = normalise(question(example))
        self.texts.append(text)
        self.openings.append(hash(text if len(said) < 2 else normalise(said[0])))
        self.labels.append(self._numbers.setdefault(name, len(self._numbers)))
        self.answers.append(hash(answer))
        self.toolsets.append(toolset)


# Near-duplicates ------------------------------------------------------------------------------------------------------


def group_near_duplicates(texts: Sequence[str]) -> np.ndarray:
    """Group numbers, int64 [N]: equal and nearly equal normalised texts share one, the place of their first.

    Candidates are texts that are equal after one word is left out of each (the deletion neighbourhood of SymSpell, here
    on words); of these, pairs with a similarity of at least `NEAR` are joined. Linear in the number of texts.
    """
    return _group(texts)[1]


def _group(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """A number for each text, the same for equal ones, int64 [N]; and `group_near_duplicates`."""
    order = sorted(range(len(texts)), key=texts.__getitem__)
    is_new = np.array([not at or texts[i] != texts[order[at - 1]] for at, i in enumerate(order)], dtype=bool)
    order = np.array(order, dtype=np.int64)
    firsts = order[is_new]  # the sort is stable
    roots = _join_near([texts[i] for i in firsts.tolist()])
    earliest = np.full(len(firsts), len(texts))
    np.minimum.at(earliest, roots, firsts)
    numbers = np.empty_like(order)
    numbers[order] = np.cumsum(is_new) - 1
    return numbers, earliest[roots][numbers]


def _join_near(texts: list[str]) -> np.ndarray:
    """For each of these distinct texts, in their order, the number of the first in its group, int64 [N]."""
    from rapidfuzz.distance import Indel
    from rapidfuzz.process import cpdist

    roots = np.arange(len(texts))
    buckets, members = _candidates(texts)
    for step in range(1, _NEIGHBOURS + 1):
        places = np.flatnonzero(buckets[step:] == buckets[:-step])
        left, right = members[places], members[places + step]
        is_apart = roots[left] != roots[right]
        left, right = left[is_apart], right[is_apart]
        pairs = [texts[i] for i in left.tolist()], [texts[i] for i in right.tolist()]
        # In single precision, which is the default, 0.9 is less than NEAR.
        similarity = cpdist(*pairs, scorer=Indel.normalized_similarity, score_cutoff=NEAR, dtype=np.float64)
        _join(roots, left[similarity >= NEAR], right[similarity >= NEAR])
    return roots


def _join(roots: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    """Give all that these pairs, and `roots` so far, connect the same root: the least."""
    while len(left):
        one, other = roots[left], roots[right]
        np.minimum.at(roots, np.maximum(one, other), np.minimum(one, other))
        while not np.array_equal(further := roots[roots], roots):
            roots[:] = further
        is_apart = roots[left] != roots[right]
        left, right = left[is_apart], right[is_apart]


def _join_openings(groups: np.ndarray, openings: np.ndarray) -> None:
    """Join the groups, int64 [N], of rows that open alike: the first answer of one is asked of the other, too."""
    order = np.argsort(openings, kind="stable")
    places = np.flatnonzero(openings[order][1:] == openings[order][:-1])
    _join(groups, order[places], order[places + 1])


def _candidates(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Buckets of two texts or more that are equal without some word: [(bucket's hash, text's number)], sorted."""
    parts = [_deletion_hashes(texts[i : i + _AT_ONCE]) for i in range(0, max(len(texts), 1), _AT_ONCE)]
    hashes = np.concatenate([found for found, _ in parts])
    owners = np.concatenate([number * np.int32(_AT_ONCE) + found for number, (_, found) in enumerate(parts)])
    del parts  # at a million texts this is most of what is in memory
    order = np.argsort(hashes)
    hashes = hashes[order]
    is_again = hashes[1:] == hashes[:-1]
    is_shared = np.zeros(len(hashes), dtype=bool)
    is_shared[1:] |= is_again
    is_shared[:-1] |= is_again
    hashes, owners = hashes[is_shared], owners[order[is_shared]]
    order = np.lexsort((owners, hashes))
    return hashes[order], owners[order]


def _deletion_hashes(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of each text's words without one of them, and of all of them, uint64; and the texts' numbers, int32.

    A text's hash is a polynomial with its words' hashes as coefficients, modulo 2 ** 64: what stands on either side of
    a gap is the difference of two running sums.
    """
    words = [text.split() for text in texts]
    counts = np.array([len(one) for one in words], dtype=np.int64)
    coefficients = np.fromiter((hash(word) for one in words for word in one), np.int64, counts.sum()).view(np.uint64)
    numbers = np.arange(len(texts), dtype=np.int32)
    owners = np.repeat(numbers, counts)
    ends = np.cumsum(counts)
    starts = ends - counts
    gaps = np.arange(len(coefficients))
    places = gaps - starts[owners]
    powers = np.cumprod(np.full(counts.max(initial=0) + 1, _BASE, dtype=np.uint64))
    sums = np.append(np.uint64(0), np.cumsum(coefficients * powers[places + 1]))
    moved = np.append(np.uint64(0), np.cumsum(coefficients * powers[places]))  # behind the gap, one place further left
    without_one = sums[gaps] - sums[starts[owners]] + moved[ends[owners]] - moved[gaps + 1]
    return np.append(without_one, sums[ends] - sums[starts]), np.append(owners, numbers)


# The split ------------------------------------------------------------------------------------------------------------


def split(
    examples: Sequence[Example], kind: str, test_size: float, seed: int
) -> tuple[tuple[np.ndarray, np.ndarray], dict[str, Any]]:
    """Row numbers of (train, test), and a report of duplicates and contradictions.

    Args:
        kind: `grouped`, or `random` for a plain shuffle with the result of `datasets.Dataset.train_test_split`.
        test_size: share of the rows that is held out, between 0 and 1; one row at least stays to train on.
    """
    rows = Facts()
    toolsets: dict[int, int] = {}  # by a list's id: rows whose tools are equal share the list
    for example in examples:
        rows.add(example, toolsets.setdefault(id(example.tools), len(toolsets)))
    return split_facts(rows, kind, test_size, seed, examples.__getitem__)


def split_facts(
    rows: Facts, kind: str, test_size: float, seed: int, example: Callable[[int], Example]
) -> tuple[tuple[np.ndarray, np.ndarray], dict[str, Any]]:
    """`split` of rows that are not in memory; `example` gives one by its number, of which the report quotes a few."""
    texts, groups = _group(rows.texts)
    distinct = len(np.unique(texts))
    near = distinct - len(np.unique(groups))
    _join_openings(groups, np.array(rows.openings))
    parts = _random(len(rows), test_size, seed) if kind == "random" else _grouped(groups, rows.labels, test_size, seed)
    conflicts = _conflicts(texts, np.array(rows.toolsets), np.array(rows.answers))
    return parts, {
        "kind": kind,
        "duplicates": len(rows) - distinct,
        "near_duplicates": near,
        "conflicts": len(conflicts),
        "conflicting": [_described([example(row) for row in found[:_NAMED]]) for found in conflicts[:_LISTED]],
        "groups_on_both_sides": len(np.intersect1d(groups[parts[0]], groups[parts[1]])),
    }


def _described(conflict: list[Example]) -> str:
    return f"{question(conflict[0])!r}: {', '.join(example.origin for example in conflict)}"


def _random(rows: int, test_size: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.random.default_rng(seed).permutation(rows)
    held_out = min(math.ceil(test_size * rows), max(rows - 1, 0))
    return order[held_out:], order[:held_out]


def _grouped(groups: np.ndarray, labels: Sequence[int], test_size: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Whole groups go to the test side in shuffled order while their labels still lack held-out rows.

    At least one row of each label is left to train on.
    """
    wanted = {name: min(round(test_size * count), count - 1) for name, count in Counter(labels).items()}
    members = np.argsort(groups, kind="stable")
    names, starts = np.unique(groups[members], return_index=True)
    ends = np.append(starts[1:], len(groups))
    order = np.searchsorted(names, np.random.default_rng(seed).permutation(names))
    held_out: list[int] = []
    for start, end in zip(starts[order].tolist(), ends[order].tolist(), strict=True):
        rows = members[start:end].tolist()
        counts = Counter(labels[row] for row in rows)
        if all(count <= wanted[name] for name, count in counts.items()):
            held_out += rows
            for name, count in counts.items():
                wanted[name] -= count
    test = np.array(sorted(held_out), dtype=np.int64)
    return np.setdiff1d(np.arange(len(labels)), test), test


def _conflicts(texts: np.ndarray, toolsets: np.ndarray, answers: np.ndarray) -> list[list[int]]:
    """Of each question with several answers the first row with each answer, all in the rows' order.

    The same question with other tools may rightly have another answer.
    """
    order = np.lexsort((answers, toolsets, texts))
    texts, toolsets, answers = texts[order], toolsets[order], answers[order]
    is_same = (texts[1:] == texts[:-1]) & (toolsets[1:] == toolsets[:-1])
    questions = np.append([0], np.cumsum(~is_same))
    is_open = np.isin(questions, questions[1:][is_same & (answers[1:] != answers[:-1])])
    found: dict[int, dict[int, int]] = defaultdict(dict)
    for row, asked, answer in sorted(zip(*(of[is_open].tolist() for of in (order, questions, answers)), strict=True)):
        found[asked].setdefault(answer, row)
    return [list(rows.values()) for rows in found.values()]
