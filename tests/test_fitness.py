"""The shipped fitness example: its rows keep the promises of its card, and its tools are the known seven."""

from __future__ import annotations

import ast
import json
import re
import sys
import unicodedata
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from fitcoach_tune import fitness

DEVELOPER = "You are a model that can do function calling with the following functions"
# The question that the documentation asks the tuned model: it must stay unseen.
DEMO_QUESTION = "How many steps?"
CARD = fitness.rows_path().with_name("README.md")


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return fitness.rows_path().read_bytes().decode("utf-8", errors="strict").removesuffix("\n").split("\n")


@pytest.fixture(scope="module")
def rows(lines: list[str]) -> list[dict]:
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def card_table() -> dict[str, tuple[str, int]]:
    """Tool → (id prefix, number of rows), read from the sizes table of the card."""
    found = re.findall(r"^\| `(\w+)` \| `(\w+)-\*` \| (\d+) \|$", CARD.read_text(encoding="utf-8"), re.M)
    return {tool: (prefix, int(count)) for tool, prefix, count in found}


def text_of(row: dict) -> str:
    return row["messages"][1]["content"]


def label_of(row: dict) -> str:
    return row["messages"][2]["tool_calls"][0]["function"]["name"]


def words(text: str) -> list[str]:
    """Words without case, punctuation or apostrophes: "What's" and "whats" are the same."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return re.findall(r"\w+", plain.replace("'", "").replace("’", ""))


def test_tools_are_the_seven_of_the_format_cases() -> None:
    cases = json.loads((Path(__file__).parent / "format_cases.json").read_text(encoding="utf-8"))
    expected = next(case["tools"] for case in cases if case["name"] == "seven_tools_call")
    assert fitness.tools() == expected
    # Dict equality forgets the order of keys, which decides the order in a rendered or dumped tool.
    assert json.dumps(fitness.tools()) == json.dumps(expected)


def test_no_tool_takes_an_argument() -> None:
    for tool in fitness.tools():
        assert tool["function"]["parameters"] == {"type": "object", "properties": {}, "required": []}


def test_tools_gives_a_fresh_list_each_time() -> None:
    spoilt = fitness.tools()
    spoilt[0]["function"]["name"] = "spoilt"
    spoilt.pop()
    assert len(fitness.tools()) == 7
    assert fitness.tools()[0]["function"]["name"] == "get_steps"


def test_file_is_utf8_with_one_compact_object_per_line() -> None:
    raw = fitness.rows_path().read_bytes()
    assert raw.endswith(b"\n")
    assert not raw.startswith(b"\xef\xbb\xbf")
    assert b"\r" not in raw
    for number, line in enumerate(raw.decode("utf-8", errors="strict").removesuffix("\n").split("\n"), start=1):
        row = json.loads(line)
        assert isinstance(row, dict), f"line {number}"
        assert line == json.dumps(row, ensure_ascii=False, separators=(",", ":")), f"line {number}"


def test_each_row_is_one_question_and_one_call_without_arguments(rows: list[dict]) -> None:
    for row in rows:
        call = {"type": "function", "function": {"name": label_of(row), "arguments": {}}}
        assert row == {
            "id": row["id"],
            "messages": [
                {"role": "developer", "content": DEVELOPER},
                {"role": "user", "content": text_of(row)},
                {"role": "assistant", "tool_calls": [call]},
            ],
        }, row["id"]


def test_texts_are_clean(rows: list[dict]) -> None:
    for row in rows:
        text = text_of(row)
        assert words(text), row["id"]
        assert text == " ".join(text.split()), row["id"]
        # No control token, and nothing that could become one.
        assert not set("<>") & set(text), row["id"]
        assert not any(unicodedata.category(char) in ("Cc", "Cf", "Co", "Cn") for char in text), row["id"]


def test_labels_ids_and_counts_are_those_of_the_card(rows: list[dict], card_table: dict[str, tuple[str, int]]) -> None:
    assert list(card_table) == [tool["function"]["name"] for tool in fitness.tools()]
    assert Counter(map(label_of, rows)) == {tool: count for tool, (_, count) in card_table.items()}
    assert f"{len(rows)} rows" in CARD.read_text(encoding="utf-8")
    expected_ids = {f"{prefix}-{n:03d}" for prefix, count in card_table.values() for n in range(1, count + 1)}
    assert len({row["id"] for row in rows}) == len(rows)
    assert {row["id"] for row in rows} == expected_ids
    for row in rows:
        assert row["id"].rpartition("-")[0] == card_table[label_of(row)][0], row["id"]


def test_tools_take_turns(rows: list[dict]) -> None:
    order = [tool["function"]["name"] for tool in fitness.tools()]
    assert [label_of(row) for row in rows] == order * (len(rows) // len(order))


def test_card_states_the_version_and_the_lengths(rows: list[dict]) -> None:
    card = " ".join(CARD.read_text(encoding="utf-8").split())
    assert f"Version {fitness.DATASET_VERSION}." in card
    lengths = [len(text_of(row).split()) for row in rows]
    mean = round(sum(lengths) / len(lengths))
    assert f"A query has {min(lengths)} to {max(lengths)} words, {mean} on average." in card


def test_texts_differ_beyond_case_space_and_punctuation(rows: list[dict]) -> None:
    seen: dict[str, str] = {}
    for row in rows:
        key = "".join(words(text_of(row)))
        assert key not in seen, f"{row['id']} repeats {seen[key]}"
        seen[key] = row["id"]


def test_demo_question_is_unseen(rows: list[dict]) -> None:
    assert words(DEMO_QUESTION) not in [words(text_of(row)) for row in rows]


def test_no_row_is_its_neighbour_with_one_word_exchanged(rows: list[dict]) -> None:
    """Slot filling leaves sentences of one label that differ in a single word.

    Across labels such pairs are welcome (they are the hard cases), and sentences under five words cannot avoid them.
    """
    masked: dict[tuple, str] = {}
    for row in rows:
        sentence = words(text_of(row))
        if len(sentence) < 5:
            continue
        for hole in range(len(sentence)):
            key = (label_of(row), *sentence[:hole], None, *sentence[hole + 1 :])
            assert key not in masked, f"{row['id']} is {masked[key]} with another word {hole + 1}"
            masked[key] = row["id"]


def test_wording_is_varied(rows: list[dict]) -> None:
    """Measured at version 1.0.0: 65% distinct bigrams, about 700 different words, 3 rows for the commonest opening."""
    sentences = [words(text_of(row)) for row in rows]
    bigrams = [pair for sentence in sentences for pair in pairwise(sentence)]
    assert len(set(bigrams)) / len(bigrams) > 0.6
    assert len({word for sentence in sentences for word in sentence}) > 600
    openings = Counter(tuple(sentence[:4]) for sentence in sentences if len(sentence) >= 4)
    assert openings.most_common(1)[0][1] <= 3  # as the card says
    assert Counter(sentence[0] for sentence in sentences).most_common(1)[0][1] / len(sentences) < 0.2


def test_register_is_varied_within_every_tool(rows: list[dict]) -> None:
    for tool in (tool["function"]["name"] for tool in fitness.tools()):
        texts = [text_of(row) for row in rows if label_of(row) == tool]
        lower = sum(text == text.lower() for text in texts) / len(texts)
        bare = sum(not unicodedata.category(text[-1]).startswith("P") for text in texts) / len(texts)
        assert 0.25 < lower < 0.75, (tool, lower)
        assert 0.25 < bare < 0.8, (tool, bare)
        assert any(text.isupper() for text in texts), tool
        # Telegram style on one side, a story before the question on the other.
        assert sum(len(text.split()) <= 4 for text in texts) >= 4, tool
        assert sum(len(text.split()) >= 11 for text in texts) >= 5, tool


def test_module_needs_the_standard_library_only() -> None:
    tree = ast.parse(Path(fitness.__file__).read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names
