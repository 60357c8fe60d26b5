"""The card of the fitness example states what its rows hold."""

from __future__ import annotations

import re
from collections import Counter

from fitcoach_tune import builtin, fitness
from tests.fitness.data import CARD, DEV, GOLD, LABELS, ROWS, TRAIN, calls_of, split_id, table, text_of


def group(row: dict) -> str:
    """The line of the card's first table that a row is counted in."""
    calls = calls_of(row)
    if len(calls) == 1:
        return next(label for label, function in LABELS.items() if function == calls[0])
    return ("unserved", "", "two of these", "three of these", "four to seven of these")[min(len(calls), 4)]


def test_counts_by_label_are_those_of_the_card() -> None:
    english = [row for row in TRAIN if split_id(row["id"])[0] == "en"]
    others = [row for row in TRAIN if split_id(row["id"])[0] != "en"]
    counted = [Counter(map(group, rows)) for rows in (english, others, ROWS[GOLD], ROWS[DEV])]
    *lines, total = table("label |")
    assert {label for label, *_ in lines} == set(counted[0])
    for label, calls, *counts in lines:
        assert [int(n) for n in counts] == [found[label] for found in counted], label
        assert calls == LABELS.get(label, calls)
    assert [int(n) for n in total[2:]] == [found.total() for found in counted]


def test_counts_by_kind_and_language_are_those_of_the_card() -> None:
    kinds = Counter((split_id(row["id"])[0] == "en", split_id(row["id"])[1]) for row in TRAIN if not calls_of(row))
    stated = {}
    for kind, _, english, others, _ in table("unserved kind"):
        stated |= {(True, f"unserved:{kind}"): int(english), (False, f"unserved:{kind}"): int(others)}
    assert kinds == stated
    languages = Counter(split_id(row["id"])[0] for row in TRAIN)
    assert {code: int(n) for code, _, n in table("code |")} | {"en": languages["en"]} == languages
    (front,) = re.findall(r"^language: \[(.+)\]$", CARD, re.M)
    assert set(front.split(", ")) == languages.keys()


def test_card_states_the_version_and_the_sizes() -> None:
    card = " ".join(CARD.split())
    assert f"Version {fitness.DATASET_VERSION}." in card
    for source, rows in ROWS.items():
        assert f"`{builtin.rows_path(source).name}` (`{source}`): {len(rows)} rows" in card
    lengths = [len(text_of(row).split()) for row in TRAIN if split_id(row["id"])[0] == "en"]
    mean = round(sum(lengths) / len(lengths))
    assert f"An English query has {min(lengths)} to {max(lengths)} words, {mean} on average." in card


def test_tools_are_asked_for_together_as_often_as_it_says() -> None:
    english = [calls_of(row) for row in TRAIN if split_id(row["id"])[0] == "en"]
    pairs = Counter(tuple(calls) for calls in english if len(calls) == 2)
    assert len(pairs) == 7 * 6
    assert set(pairs.values()) == {9, 10, 11}
    triples = Counter(frozenset(calls) for calls in english if len(calls) == 3)
    assert len(triples) == 35  # three of seven, in some order
    assert set(triples.values()) == {5, 6, 7, 8}
    others = Counter(split_id(row["id"])[0] for row in TRAIN if len(calls_of(row)) > 1)
    assert {code: others[code] for code, *_ in table("code |")} == {code: 7 for code, *_ in table("code |")}
