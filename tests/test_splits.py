"""What is held out: nothing that was nearly trained on, every tool in its share, the same rows every time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fitcoach_tune import splits
from fitcoach_tune.dataset import Example

TOOLS: list[dict] = []
ALPHABET = "abcdefghijklmnopqrstuvwxyz"


def example(query: str, *calls: tuple[str, dict], tools=TOOLS, origin="rows.jsonl:1") -> Example:
    """A row whose user says `query` and whose answer calls."""
    made = [{"type": "function", "function": {"name": n, "arguments": a}} for n, a in calls]
    answer = {"role": "assistant", "content": "", **({"tool_calls": made} if made else {})}
    return Example([{"role": "user", "content": query}, answer], tools, origin)


def distinct(count: int, seed: int = 0) -> list[str]:
    """Questions of ten random words: nearly equal with a negligible chance."""
    letters = np.random.default_rng(seed).choice(list(ALPHABET), (count, 10, 6))
    return [" ".join("".join(word) for word in row) for row in letters]


def rows_of(counts: dict[str, int]) -> list[Example]:
    names = [name for name, count in counts.items() for _ in range(count)]
    return [example(query, (name, {})) for query, name in zip(distinct(len(names)), names, strict=True)]


def same_partition(one, other) -> bool:
    pairs = set(zip(one, other, strict=True))
    return len(pairs) == len(set(one)) == len(set(other))


# ------------------------------------------------------------------------------------------------ what is the same


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How many steps?", "  how MANY\tsteps "),
        ("What's my pace?", "Whats my pace"),
        ("What’s my pace?", "what's my pace!"),
        ("Straße", "STRASSE"),
        ("caf\u00e9 run", "cafe\u0301 run"),
        ("５ ｋｍ", "5 km"),
        ("run...fast", "run fast"),
        ("?!", ""),
    ],
)
def test_normalise_makes_equal(one, other) -> None:
    assert splits.normalise(one) == splits.normalise(other)


@pytest.mark.parametrize(
    ("one", "other"), [("5 km", "6 km"), ("a b", "ab"), ("né", "ne"), ("की", "का"), ("走る", "歩く")]
)
def test_normalise_keeps_apart(one, other) -> None:
    assert splits.normalise(one) != splits.normalise(other)


@given(st.text(max_size=30))
def test_normalise_twice_is_once(text) -> None:
    once = splits.normalise(text)
    assert splits.normalise(once) == once


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_plain_ascii_has_a_quick_way_to_the_same(text) -> None:
    quick = splits.normalise(text)
    assert quick == splits.normalise(text + "\u00e9").removesuffix("\u00e9").strip()


def test_question_and_label() -> None:
    row = example("first", ("b", {}), ("a", {}))
    row.messages.insert(0, {"role": "developer", "content": "not said by the user"})
    row.messages.insert(2, {"role": "user", "content": "second"})
    assert splits.question(row) == "first\nsecond"
    assert splits.label(row.gold) == "b + a"
    assert splits.label(example("hello").gold) == "no call"


# ------------------------------------------------------------------------------------------------ near duplicates

words = st.text(ALPHABET, min_size=4, max_size=8)
sentences = st.lists(words, min_size=8, max_size=12)


@st.composite
def variants(draw, sentence):
    """The sentence as another person would type it: a slip, other case and punctuation, one short word more or less."""
    words, place = list(sentence), draw(st.integers(0, len(sentence) - 1))
    word, letter = words[place], draw(st.sampled_from(ALPHABET))
    at = draw(st.integers(0, len(word) - 1))
    match draw(st.sampled_from(["swap", "wrong", "missing", "double", "case", "more", "less"])):
        case "swap":
            words[place] = word[:at] + word[at : at + 2][::-1] + word[at + 2 :]
        case "wrong":
            words[place] = word[:at] + letter + word[at + 1 :]
        case "missing":
            words[place] = word[:at] + word[at + 1 :]
        case "double":
            words[place] = word[:at] + letter + word[at:]
        case "case":
            return " ".join(words).title() + "?!"
        case "more":
            words.insert(place, draw(st.text(ALPHABET, min_size=1, max_size=4)))
        case "less":
            words[place : place + 1] = []
            assume(len(word) <= 5)
    return " ".join(words)


@st.composite
def planted(draw):
    """Questions with variants of some of them, shuffled, and which pairs belong together."""
    made = [(i, " ".join(s), s) for i, s in enumerate(draw(st.lists(sentences, min_size=2, max_size=8)))]
    for i, _, sentence in list(made):
        made += [(i, draw(variants(sentence)), sentence) for _ in range(draw(st.integers(0, 3)))]
    made = draw(st.permutations(made))
    return [(family, text) for family, text, _ in made]


@settings(max_examples=80, deadline=None)
@given(rows=planted(), seed=st.integers(0, 99), test_size=st.floats(0.1, 0.9))
def test_near_duplicates_never_stand_on_both_sides(rows, seed, test_size) -> None:
    examples = [example(text, ("f", {})) for _, text in rows]
    (train, test), report = splits.split(examples, "grouped", test_size, seed)
    sides = {
        family: {int(i in set(test.tolist())) for i, (f, _) in enumerate(rows) if f == family} for family, _ in rows
    }
    assert all(len(found) == 1 for found in sides.values()), (sides, rows)
    assert sorted([*train, *test]) == list(range(len(rows)))
    assert len(train)
    assert report["groups_on_both_sides"] == 0


@settings(max_examples=40, deadline=None)
@given(rows=planted(), data=st.data())
def test_groups_do_not_depend_on_row_order(rows, data) -> None:
    texts = [splits.normalise(text) for _, text in rows]
    order = data.draw(st.permutations(range(len(texts))))
    shuffled = splits.group_near_duplicates([texts[i] for i in order])
    assert same_partition(splits.group_near_duplicates(texts)[list(order)].tolist(), shuffled.tolist())


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        ("show me my steps for today", "show me my steps for todya", True),
        ("show me my steps for this week", "show me all my steps for this week", True),
        ("show me my steps for today", "show me my weight for today", False),
        ("steps", "sleep", False),
        ("", "", True),
        ("", "steps", False),
    ],
)
def test_pairs(one, other, together) -> None:
    one_group, other_group = splits.group_near_duplicates([one, other])
    assert bool(one_group == other_group) is together


def test_near_duplicates_chain() -> None:
    a, b, c = "log a run of five km now please", "log a run of nine km now please", "log a ride of nine km now please"
    assert len(set(splits.group_near_duplicates([a, c]).tolist())) == 2
    assert len(set(splits.group_near_duplicates([a, b, c]).tolist())) == 1


@pytest.mark.parametrize("kind", ["unlike", "one_word_open", "one_word"])
def test_cost_is_linear_in_the_number_of_texts(monkeypatch, kind) -> None:
    from rapidfuzz.distance import Indel

    real, compared = Indel.normalized_similarity, []
    monkeypatch.setattr(Indel, "normalized_similarity", lambda *a, **k: compared.append(1) or real(*a, **k))

    def comparisons(count: int) -> int:
        unlike = distinct(count)
        texts = {
            "unlike": unlike,
            "one_word_open": [f"log {text.split()[0] + text.split()[1]} now" for text in unlike],
            "one_word": [text.split()[0] for text in unlike],
        }[kind]
        compared.clear()
        splits.group_near_duplicates(texts)
        return len(compared)

    few, many = comparisons(2000), comparisons(8000)
    assert many <= 5 * few + 8000  # four times the texts: far from the sixteen of all pairs
    assert many <= 8000 * 25


# ------------------------------------------------------------------------------------------------ shares and seeds


@pytest.mark.parametrize("test_size", [0.1, 0.3, 0.5, 0.8])
def test_every_label_is_held_out_in_its_share(test_size) -> None:
    counts = {"a": 100, "b": 40, "c": 11, "rare": 1, "two": 2}
    examples = rows_of(counts)
    (train, test), report = splits.split(examples, "grouped", test_size, 3)
    held_out = Counter(splits.label(examples[i].gold) for i in test)
    for name, count in counts.items():
        assert abs(held_out[name] - test_size * count) <= 1
        assert held_out[name] < count  # nothing is asked that was never trained
    assert report["near_duplicates"] == report["duplicates"] == 0
    assert not set(train.tolist()) & set(test.tolist())


@pytest.mark.parametrize("kind", ["grouped", "random"])
def test_the_seed_alone_decides(kind) -> None:
    examples = rows_of({"a": 30, "b": 20})

    def held_out(seed: int) -> list[int]:
        (_, test), _ = splits.split(examples, kind, 0.3, seed)
        return test.tolist()

    np.random.seed(0)  # the global generator must not matter
    first = held_out(1)
    np.random.seed(1)
    assert held_out(1) == first
    assert held_out(2) != first


def test_the_hash_seed_of_python_does_not_matter() -> None:
    script = (
        "from tests.test_splits import rows_of, splits\n"
        "print([p.tolist() for p in splits.split(rows_of({'a': 30, 'b': 20}), 'grouped', .3, 5)[0]])"
    )
    folders = os.pathsep.join(filter(None, sys.path))
    found = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONPATH": folders, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


@pytest.mark.parametrize(("rows", "test_size", "held_out"), [(213, 0.3, 64), (10, 0.3, 3), (7, 0.5, 4), (2, 0.3, 1)])
def test_random_is_the_split_of_datasets(rows, test_size, held_out) -> None:
    from datasets import Dataset

    theirs = Dataset.from_dict({"row": list(range(rows))}).train_test_split(test_size=test_size, seed=42)
    examples = [example(text, ("f", {})) for text in distinct(rows)]
    (train, test), report = splits.split(examples, "random", test_size, 42)
    assert train.tolist() == theirs["train"]["row"]
    assert test.tolist() == theirs["test"]["row"]
    assert (len(train), len(test)) == (rows - held_out, held_out)
    assert report["kind"] == "random"


@pytest.mark.parametrize("kind", ["grouped", "random"])
@pytest.mark.parametrize("test_size", [0.01, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("queries", [["a"], ["a", "b"], ["a", "a"], ["same"] * 9, [""] * 3, distinct(5)], ids=str)
@pytest.mark.parametrize("labels", ["one", "own"])
def test_tiny_sets_leave_something_to_train_on(kind, test_size, queries, labels) -> None:
    examples = [example(q, ("f" if labels == "one" else f"f{i}", {})) for i, q in enumerate(queries)]
    (train, test), _ = splits.split(examples, kind, test_size, 0)
    assert len(train)
    assert sorted([*train, *test]) == list(range(len(queries)))
    assert train.dtype == test.dtype == np.int64


def conversation_of(*turns: str, name: str = "f") -> Example:
    """A row of several turns, each answered by a call."""
    made = [example(turn, (name, {})).messages for turn in turns]
    return Example([message for messages in made for message in messages], TOOLS, "rows.jsonl:1")


@pytest.mark.parametrize("seed", range(5))
def test_conversations_that_open_alike_stand_on_one_side(seed) -> None:
    """The first answer of one is asked with the very prompt of the other."""
    openings, second = distinct(20), distinct(40, seed=1)
    rows = [conversation_of(text) for text in openings]
    rows += [conversation_of(text.upper(), second[i]) for i, text in enumerate(openings)]
    rows += [conversation_of(text, second[20 + i]) for i, text in enumerate(openings)]
    (train, test), report = splits.split(rows, "grouped", 0.3, seed)
    assert len(test) == 18
    assert not {i % 20 for i in train.tolist()} & {i % 20 for i in test.tolist()}
    assert report["groups_on_both_sides"] == report["near_duplicates"] == 0
    (train, test), report = splits.split(rows, "random", 0.3, seed)
    assert report["groups_on_both_sides"] == len({i % 20 for i in train.tolist()} & {i % 20 for i in test.tolist()}) > 0


@pytest.mark.parametrize("seed", range(8))
def test_no_label_is_held_out_with_the_group_of_another(seed) -> None:
    rows = rows_of({"common": 20})
    rows += [example("one and the same question", (name, {})) for name in ("common", "common", "rare")]
    (train, _), _ = splits.split(rows, "grouped", 0.5, seed)
    assert 22 in train


# ------------------------------------------------------------------------------------------------ the report


def test_duplicates_and_conflicts_are_reported() -> None:
    other_tools: list[dict] = [{"type": "function"}]
    rows = [
        example("Show my steps", ("steps", {}), origin="rows:1"),
        example("show my steps!", ("steps", {}), origin="rows:2"),
        example("SHOW MY STEPS", ("sleep", {}), origin="rows:3"),
        example("show my steps", ("sleep", {}), origin="rows:4", tools=other_tools),
        example("how did I sleep in the last seven nights", ("sleep", {"days": 7}), origin="rows:5"),
        example("how did I slepe in the last seven nights", ("sleep", {"days": 8}), origin="rows:6"),
        example("something else entirely", origin="rows:7"),
    ]
    _, report = splits.split(rows, "grouped", 0.3, 0)
    assert report == {
        "kind": "grouped",
        "duplicates": 3,
        "near_duplicates": 1,
        "conflicts": 1,
        "conflicting": ["'Show my steps': rows:1, rows:3"],
        "groups_on_both_sides": 0,
    }


def test_only_the_first_conflicts_are_listed() -> None:
    rows = [example(text, (name, {})) for text in distinct(25) for name in ("a", "b")]
    _, report = splits.split(rows, "grouped", 0.3, 0)
    assert report["conflicts"] == 25
    assert len(report["conflicting"]) == 10


def test_random_says_how_many_questions_stand_on_both_sides() -> None:
    rows = [example(text, ("f", {})) for text in distinct(20) for _ in range(2)]
    (train, test), report = splits.split(rows, "random", 0.5, 0)
    assert report["groups_on_both_sides"] == len({i // 2 for i in train.tolist()} & {i // 2 for i in test.tolist()}) > 0
