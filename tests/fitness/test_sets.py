"""The shipped fitness sets: the tools are the known seven, and the rows are clean, unseen and varied."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from rapidfuzz.distance import Indel
from rapidfuzz.process import cdist

from fitcoach_tune import builtin, fitness
from fitcoach_tune.dataset import read_examples, validate
from fitcoach_tune.fitness import generator
from fitcoach_tune.splits import NEAR, normalise
from tests.fitness import data
from tests.fitness.data import DEV, EVERY, GOLD, PHRASES, ROWS, SETS, TRAIN, calls_of, key, split_id, text_of, words

DEVELOPER = "You are a model that can do function calling with the following functions"
# The question that the documentation asks the tuned model: it must stay unseen.
DEMO_QUESTION = "How many steps?"


# ------------------------------------------------------------------------------------------------ the tools


def test_tools_are_the_seven_of_the_format_cases() -> None:
    cases = json.loads((Path(__file__).parents[1] / "format_cases.json").read_text(encoding="utf-8"))
    expected = next(case["tools"] for case in cases if case["name"] == "seven_tools_call")
    assert fitness.tools() == expected
    # Dict equality forgets the order of keys, which decides the order in a rendered or dumped tool.
    assert json.dumps(fitness.tools()) == json.dumps(expected)
    assert [tool["function"]["name"] for tool in expected] == list(data.LABELS.values())


def test_no_tool_takes_an_argument() -> None:
    for tool in fitness.tools():
        assert tool["function"]["parameters"] == {"type": "object", "properties": {}, "required": []}


def test_tools_gives_a_fresh_list_each_time() -> None:
    spoilt = fitness.tools()
    spoilt[0]["function"]["name"] = "spoilt"
    spoilt.pop()
    assert len(fitness.tools()) == 7
    assert fitness.tools()[0]["function"]["name"] == "get_steps"


# ------------------------------------------------------------------------------------------------ the files


@pytest.mark.parametrize("source", SETS)
def test_file_is_utf8_with_one_compact_object_per_line(source) -> None:
    raw = builtin.rows_path(source).read_bytes()
    assert raw.endswith(b"\n")
    assert not raw.startswith(b"\xef\xbb\xbf")
    assert b"\r" not in raw
    for number, line in enumerate(raw.decode("utf-8", errors="strict").removesuffix("\n").split("\n"), start=1):
        assert line == json.dumps(json.loads(line), ensure_ascii=False, separators=(",", ":")), f"line {number}"


@pytest.mark.parametrize("source", SETS)
def test_every_row_can_be_trained_on_and_asked(source) -> None:
    examples, read = read_examples(source)
    validate(examples)
    assert [one.query for one in examples] == [text_of(row) for row in ROWS[source]]
    assert [[call.name for call in one.gold] for one in examples] == [calls_of(row) for row in ROWS[source]]
    assert read.notes == []


def test_each_row_is_one_query_and_the_answer_that_its_id_names() -> None:
    answers = {kind: answer for kind, *_, answer in data.table("unserved kind")}
    for row in EVERY:
        _, label = split_id(row["id"])
        if label.startswith("unserved"):
            kind = label.removeprefix("unserved").removeprefix(":") or "off-topic"
            answer = {"role": "assistant", "content": answers[kind]}
        else:
            functions = [{"name": data.LABELS[part], "arguments": {}} for part in label.split("+")]
            answer = {"role": "assistant", "tool_calls": [{"type": "function", "function": f} for f in functions]}
            assert len({f["name"] for f in functions}) == len(functions), row["id"]
        query = {"role": "user", "content": text_of(row)}
        assert row == {"id": row["id"], "messages": [{"role": "developer", "content": DEVELOPER}, query, answer]}


def test_texts_are_clean() -> None:
    for text in [*PHRASES.values(), *map(text_of, EVERY)]:
        assert words(text), text
        assert text == " ".join(text.split()), text
        # No control token, and nothing that could become one.
        assert not set("<>") & set(text), text
        assert not any(unicodedata.category(char) in ("Cc", "Cf", "Co", "Cn") for char in text), text


def test_ids_are_numbered_by_label() -> None:
    for rows, digits in zip(ROWS.values(), (3, 2, 2), strict=True):
        numbers = Counter(row["id"].rpartition("-")[0] for row in rows)
        expected = {f"{name}-{n:0{digits}d}" for name, most in numbers.items() for n in range(1, most + 1)}
        assert {row["id"] for row in rows} == expected
        assert len(expected) == len(rows)


def test_the_first_rows_have_every_label() -> None:
    first = [split_id(row["id"])[1] for row in TRAIN[:200]]
    assert {*data.LABELS, *(f"unserved:{kind}" for kind in generator.ANSWERS)} <= set(first)
    assert {1, 2} <= {label.count("+") for label in first}
    assert len({split_id(row["id"])[0] for row in TRAIN[:200]}) > 6


# ------------------------------------------------------------------------------------------------ what is unseen


def test_no_two_queries_are_equal_beyond_case_space_and_punctuation() -> None:
    """Neither in a set, nor in two sets, nor between the held-out sets and the phrases before they were varied."""
    for texts in (list(map(text_of, EVERY)), [*PHRASES.values(), *(text_of(row) for row in EVERY[len(TRAIN) :])]):
        seen: dict[str, str] = {}
        for text in texts:
            assert key(text) not in seen, f"{text!r} repeats {seen[key(text)]!r}"
            seen[key(text)] = text


def test_demo_question_is_unseen() -> None:
    assert key(DEMO_QUESTION) not in map(key, [*PHRASES.values(), *map(text_of, EVERY)])


def test_few_held_out_queries_are_near_a_phrase() -> None:
    written = [normalise(text) for text in PHRASES.values()]
    near = {}
    for source in (DEV, GOLD):
        asked = [normalise(text_of(row)) for row in ROWS[source]]
        near[source] = int((cdist(asked, written, scorer=Indel.normalized_similarity).max(axis=1) >= NEAR).sum())
    assert f"{near[DEV]} queries of dev and {near[GOLD]} of gold are near-duplicates" in " ".join(data.CARD.split())
    assert all(near[source] < 0.03 * len(ROWS[source]) for source in near)


# ------------------------------------------------------------------------------------------------ variety


def test_no_phrase_is_its_neighbour_with_one_word_exchanged() -> None:
    """Slot filling leaves sentences of one label that differ in a single word.

    Across labels such pairs are welcome (they are the hard cases), and sentences under five words cannot avoid them.
    """
    masked: dict[tuple, str] = {}
    for name, text in PHRASES.items():
        sentence = words(text)
        if len(sentence) < 5:
            continue
        for hole in range(len(sentence)):
            pattern = (*split_id(name), *sentence[:hole], None, *sentence[hole + 1 :])
            assert pattern not in masked, f"{name} is {masked[pattern]} with another word {hole + 1}"
            masked[pattern] = name


def sample(sentences: list[list[str]], size: int) -> list[list[str]]:
    """Whole sentences in random order, as many as it takes to have `size` words."""
    before = 0
    taken = []
    for sentence in Random(0).sample(sentences, len(sentences)):
        if before >= size:
            break
        before += len(sentence)
        taken.append(sentence)
    return taken


def test_wording_is_varied() -> None:
    """Both figures depend on how much is measured, so it is always the 23,325 words that version 2.0.0 had in English.

    That version had 50% distinct bigrams and 2,340 different words; version 2.1.0 has 49% and about 2,200.
    """
    sentences = {name: words(text) for name, text in PHRASES.items() if split_id(name)[0] == "en"}
    measured = sample(list(sentences.values()), 23_325)
    assert sum(map(len, measured)) >= 23_325
    bigrams = [pair for sentence in measured for pair in pairwise(sentence)]
    assert len(set(bigrams)) / len(bigrams) > 0.45
    assert len({word for sentence in measured for word in sentence}) > 2000
    openings = Counter((split_id(name)[1], *said[:4]) for name, said in sentences.items() if len(said) >= 4)
    assert openings.most_common(1)[0][1] <= 3  # as the card says
    assert Counter(said[0] for said in sentences.values()).most_common(1)[0][1] / len(sentences) < 0.1


def test_register_is_varied_within_every_label() -> None:
    texts = defaultdict(list)
    for row in TRAIN:
        if split_id(row["id"])[0] == "en":
            texts[" + ".join(calls_of(row)) if len(calls_of(row)) < 2 else "parallel"].append(text_of(row))
    assert len(texts) == 9
    for label, said in texts.items():
        lower = sum(text == text.lower() for text in said) / len(said)
        bare = sum(not unicodedata.category(text[-1]).startswith("P") for text in said) / len(said)
        assert 0.25 < lower < 0.75, (label, lower)
        assert 0.25 < bare < 0.8, (label, bare)
        assert any(text.isupper() for text in said), label
        # Telegram style on one side, a story before the question on the other.
        assert sum(len(text.split()) <= 4 for text in said) >= 4, label
        assert sum(len(text.split()) >= 11 for text in said) >= 50, label
