"""Which rows are held out: near-duplicates stay on one side, and every tool is represented on both."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from fitcoach_tune import files
from fitcoach_tune.dataset import Example

# Two questions count as nearly equal from this similarity on: 1 - edits / total length, on normalised text.
NEAR = 0.9
# In a bucket of candidates each text is compared with this many neighbours, so that the cost stays linear.
_NEIGHBOURS = 20
_LISTED = 10
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


def label(example: Example) -> str:
    """What a row teaches to call, for stratifying: tool names, or "no call"."""
    return " + ".join(call.name for call in example.gold) or "no call"


def group_near_duplicates(texts: Sequence[str]) -> np.ndarray:
    """Group numbers, int64 [N]: equal and nearly equal normalised texts share one.

    Candidates are texts that are equal after one word is left out of each (the deletion neighbourhood of SymSpell, here
    on words); of these, pairs with a similarity of at least `NEAR` are joined. Linear in the number of texts.
    """
    from rapidfuzz.distance import Indel

    parent = list(range(len(texts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[str, int] = {}
    for i, text in enumerate(texts):
        parent[i] = first.setdefault(text, i)
    buckets: dict[Hashable, list[int]] = defaultdict(list)
    for text, i in first.items():
        words = text.split()
        for gap in range(len(words)):
            buckets[hash((*words[:gap], *words[gap + 1 :]))].append(i)
        buckets[hash(tuple(words))].append(i)
    for members in buckets.values():
        members.sort(key=lambda i: texts[i])
        for place, i in enumerate(members):
            for j in members[place + 1 : place + 1 + _NEIGHBOURS]:
                if root(i) != root(j) and Indel.normalized_similarity(texts[i], texts[j], score_cutoff=NEAR) >= NEAR:
                    parent[max(root(i), root(j))] = min(root(i), root(j))
    return np.array([root(i) for i in range(len(texts))], dtype=np.int64)


def split(
    examples: Sequence[Example], kind: str, test_size: float, seed: int
) -> tuple[tuple[np.ndarray, np.ndarray], dict[str, Any]]:
    """Row numbers of (train, test), and a report of duplicates and contradictions.

    Args:
        kind: `grouped`, or `random` for a plain shuffle with the result of `datasets.Dataset.train_test_split`.
        test_size: share of the rows that is held out, between 0 and 1; one row at least stays to train on.
    """
    texts = [normalise(question(e)) for e in examples]
    labels = [label(e) for e in examples]
    groups = group_near_duplicates(texts)
    parts = _random(len(examples), test_size, seed) if kind == "random" else _grouped(groups, labels, test_size, seed)
    shared = len(set(groups[parts[0]]) & set(groups[parts[1]]))
    return parts, {"kind": kind, **_duplicates(examples, texts, groups), "groups_on_both_sides": shared}


def _random(rows: int, test_size: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.random.default_rng(seed).permutation(rows)
    held_out = min(math.ceil(test_size * rows), max(rows - 1, 0))
    return order[held_out:], order[:held_out]


def _grouped(groups: np.ndarray, labels: list[str], test_size: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Whole groups go to the test side in shuffled order while their label still lacks held-out rows.

    At least one row of each label is left to train on.
    """
    wanted = {name: min(round(test_size * count), count - 1) for name, count in Counter(labels).items()}
    members: dict[int, list[int]] = defaultdict(list)
    for row, group in enumerate(groups.tolist()):
        members[group].append(row)
    order = np.random.default_rng(seed).permutation(sorted(members))
    held_out: list[int] = []
    for group in order.tolist():
        rows = members[group]
        name = Counter(labels[row] for row in rows).most_common(1)[0][0]
        if len(rows) <= wanted[name]:
            held_out += rows
            wanted[name] -= len(rows)
    test = np.array(sorted(held_out), dtype=np.int64)
    return np.setdiff1d(np.arange(len(labels)), test), test


def _duplicates(examples: Sequence[Example], texts: list[str], groups: np.ndarray) -> dict[str, Any]:
    answers: dict[tuple, dict[str, Example]] = defaultdict(dict)
    for example, text in zip(examples, texts, strict=True):
        gold = [{"name": call.name, "arguments": call.arguments} for call in example.gold]
        # The same question with other tools may rightly have another answer.
        answers[text, id(example.tools)].setdefault(files.sha256_json(gold), example)
    conflicts = [list(found.values()) for found in answers.values() if len(found) > 1]
    return {
        "duplicates": len(texts) - len(set(texts)),
        "near_duplicates": len(set(texts)) - len(set(groups.tolist())),
        "conflicts": len(conflicts),
        "conflicting": [f"{question(c[0])!r}: {', '.join(e.origin for e in c[:3])}" for c in conflicts[:_LISTED]],
    }
