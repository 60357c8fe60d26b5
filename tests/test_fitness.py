"""The shipped fitness example: its rows keep the promises of its card, and its tools are the known seven."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import unicodedata
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from rapidfuzz import fuzz
from rapidfuzz.distance import Indel
from rapidfuzz.process import cdist

from fitcoach_tune import builtin, fitness
from fitcoach_tune.dataset import read_examples, validate
from fitcoach_tune.fitness import generator
from fitcoach_tune.splits import NEAR, normalise

DEVELOPER = "You are a model that can do function calling with the following functions"
# The question that the documentation asks the tuned model: it must stay unseen.
DEMO_QUESTION = "How many steps?"
DEV, GOLD = "builtin:fitness-dev", "builtin:fitness-gold"
SETS = (builtin.FITNESS, DEV, GOLD)
FOLDER = Path(fitness.__file__).parent
CARD = (FOLDER / "README.md").read_text(encoding="utf-8")
LABELS = {
    "steps": "get_steps",
    "goal": "get_daily_step_goal",
    "progress": "get_step_goal_progress",
    "sleep": "get_sleeping_minutes",
    "active": "get_active_minutes",
    "heart": "get_heart_rate",
    "battery": "get_body_battery_level",
}


def rows_of(source: str) -> list[dict]:
    return [json.loads(line) for line in builtin.rows_path(source).read_text(encoding="utf-8").splitlines()]


def phrase_lines() -> dict[str, list[list[str]]]:
    """File → its lines' columns, read as a person would."""
    files = {file.stem: file.read_text(encoding="utf-8").splitlines() for file in (FOLDER / "phrases").glob("*.txt")}
    return {name: [line.split("\t") for line in lines if line[0] != "#"] for name, lines in files.items()}


def phrases_by_id() -> dict[str, str]:
    """The row's id → the phrase it is made of: ids are numbered in the order of the files."""
    found, files = {}, phrase_lines()
    labelled = [(label, text) for label in LABELS for (text,) in files[label]]
    labelled += [(label, text) for label, text in files["parallel"]]
    labelled += [(f"unserved:{kind}", text) for kind, text in files["unserved"]]
    labelled += [(f"{language}-{label}", text) for language, label, text in files["languages"]]
    numbers: Counter[str] = Counter()
    for label, text in labelled:
        numbers[label] += 1
        found[f"{label}-{numbers[label]:03d}"] = text
    return found


ROWS = {source: rows_of(source) for source in SETS}
TRAIN = ROWS[builtin.FITNESS]
EVERY = [row for rows in ROWS.values() for row in rows]
PHRASES = phrases_by_id()


def text_of(row: dict) -> str:
    return row["messages"][1]["content"]


def calls_of(row: dict) -> list[str]:
    return [call["function"]["name"] for call in row["messages"][2].get("tool_calls", [])]


def split_id(name: str) -> tuple[str, str]:
    """(language, label) of an id."""
    language, label = re.fullmatch(r"(?:([a-z]{2})-)?(.+)-\d+", name).groups()
    return language or "en", label


def words(text: str) -> list[str]:
    """Words without case, punctuation or apostrophes: "What's" and "whats" are the same."""
    return normalise(text).split()


def key(text: str) -> str:
    return normalise(text).replace(" ", "")


def table(header: str) -> list[list[str]]:
    """The cells of the card's table that begins with `header`, without backticks."""
    lines = CARD[CARD.index(f"| {header}") :].split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]


def group(row: dict) -> str:
    """The line of the card's first table that a row is counted in."""
    calls = calls_of(row)
    if len(calls) == 1:
        return next(label for label, function in LABELS.items() if function == calls[0])
    return ("unserved", "", "two of these", "three of these")[len(calls)]


# ------------------------------------------------------------------------------------------------ the tools


def test_tools_are_the_seven_of_the_format_cases() -> None:
    cases = json.loads((Path(__file__).parent / "format_cases.json").read_text(encoding="utf-8"))
    expected = next(case["tools"] for case in cases if case["name"] == "seven_tools_call")
    assert fitness.tools() == expected
    # Dict equality forgets the order of keys, which decides the order in a rendered or dumped tool.
    assert json.dumps(fitness.tools()) == json.dumps(expected)
    assert [tool["function"]["name"] for tool in expected] == list(LABELS.values())


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
    answers = {kind: answer for kind, *_, answer in table("unserved kind")}
    for row in EVERY:
        _, label = split_id(row["id"])
        if label.startswith("unserved"):
            kind = label.removeprefix("unserved").removeprefix(":") or "off-topic"
            answer = {"role": "assistant", "content": answers[kind]}
        else:
            functions = [{"name": LABELS[part], "arguments": {}} for part in label.split("+")]
            answer = {"role": "assistant", "tool_calls": [{"type": "function", "function": f} for f in functions]}
            assert len({f["name"] for f in functions}) == len(functions), row["id"]
        query = {"role": "user", "content": text_of(row)}
        assert row == {"id": row["id"], "messages": [{"role": "developer", "content": DEVELOPER}, query, answer]}


def test_texts_are_clean() -> None:
    for text in [*PHRASES.values(), *map(text_of, EVERY)]:
        assert words(text), text
        # A French phrase may lose its last mark and keep the space before it.
        assert text.rstrip(" ") == " ".join(text.split()), text
        # No control token, and nothing that could become one.
        assert not set("<>") & set(text), text
        assert not any(unicodedata.category(char) in ("Cc", "Cf", "Co", "Cn") for char in text), text


def test_ids_are_numbered_by_label() -> None:
    for rows, digits in zip(ROWS.values(), (3, 2, 2), strict=True):
        numbers = Counter(row["id"].rpartition("-")[0] for row in rows)
        expected = {f"{name}-{n:0{digits}d}" for name, most in numbers.items() for n in range(1, most + 1)}
        assert {row["id"] for row in rows} == expected
        assert len(expected) == len(rows)


# ------------------------------------------------------------------------------------------------ the card


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


def test_every_two_tools_are_asked_for_together() -> None:
    pairs = Counter(tuple(calls_of(row)) for row in TRAIN if len(calls_of(row)) == 2)
    assert len(pairs) == 7 * 6
    assert set(pairs.values()) == {4, 5}  # as the card says


def test_the_first_rows_have_every_label() -> None:
    first = [split_id(row["id"])[1] for row in TRAIN[:200]]
    assert {*LABELS, *(f"unserved:{kind}" for kind in generator.ANSWERS)} <= set(first)
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
    assert f"{near[DEV]} queries of dev and {near[GOLD]} of gold are near-duplicates" in " ".join(CARD.split())
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


def test_wording_is_varied() -> None:
    """Measured on the English phrases of 2.0.0: 50% distinct bigrams, about 2,340 different words."""
    sentences = {name: words(text) for name, text in PHRASES.items() if split_id(name)[0] == "en"}
    bigrams = [pair for sentence in sentences.values() for pair in pairwise(sentence)]
    assert len(set(bigrams)) / len(bigrams) > 0.45
    assert len({word for sentence in sentences.values() for word in sentence}) > 2000
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


# ------------------------------------------------------------------------------------------------ the generator


def test_the_file_is_what_the_generator_prints() -> None:
    """In a process with another hash seed, so that no order of a set has slipped in."""
    done = subprocess.run(
        [sys.executable, "-m", "fitcoach_tune.fitness.generator"],
        capture_output=True, env={**os.environ, "PYTHONHASHSEED": "12345", "PYTHONIOENCODING": "utf-8"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == builtin.rows_path(builtin.FITNESS).read_bytes()


def test_each_phrase_is_one_row_whatever_the_seed() -> None:
    made = {seed: {row["id"]: row for row in generator.rows(seed)} for seed in (0, 1)}
    assert list(made[0]) != list(made[1])
    changed = 0
    for name, phrase in PHRASES.items():
        one, other = made[0].pop(name), made[1].pop(name)
        assert one["messages"][2] == other["messages"][2], name
        changed += one != other
        for row in (one, other):
            # Words may stand before it, and a short one may be chat spelling from end to end.
            assert fuzz.partial_ratio(key(phrase), key(text_of(row))) > 60, (phrase, text_of(row))
    assert made == {0: {}, 1: {}}
    assert 0.2 < changed / len(PHRASES) < 0.6


def test_a_phrase_in_lower_case_is_left_alone() -> None:
    text = "how many steps, pls?"
    assert {generator._written(text, Random(seed), ["Hello,"]) for seed in range(200)} == {text}
    varied = {generator._written(text.capitalize(), Random(seed), ["Hello,"]) for seed in range(200)}
    assert len(varied) > 10
    assert any(text.startswith("Hello, how") for text in varied)


@pytest.mark.parametrize(
    ("style", "text", "expected"),
    [
        ("without_end", "Steps? Today?!", "Steps? Today"),
        ("lower", "My BPM, please.", "my bpm, please."),
        ("lower_without_marks", "Did I pass 10,000 or 3.5 km, then?", "did i pass 10,000 or 3.5 km then"),
        ("lower_without_marks", "I've done 10,000. Or 3.5?", "ive done 10,000 or 3.5"),
        ("lower_without_marks", "Pulse: ok? “Fine”; it’s 62!", "pulse ok “fine” its 62"),
        ("slipped", "Is it up?", "Is it up?"),
        ("shouted", "Steps, please!", "STEPS, PLEASE!"),
    ],
)
def test_a_style(style, text, expected) -> None:
    assert getattr(generator, f"_{style}")(text, Random(0)) == expected


@pytest.mark.parametrize(
    ("opener", "text", "expected"),
    [
        ("Hi there,", "How long did I sleep?", "Hi there, how long did I sleep?"),
        ("um", "What's my pulse?", "um what's my pulse?"),
        ("Hi there,", "I slept how long?", "Hi there, I slept how long?"),
        ("Hi there,", "I'm at how many steps?", "Hi there, I'm at how many steps?"),
        ("Hi there,", "In bed how long?", "Hi there, in bed how long?"),
        ("Hi there,", "BPM now?", "Hi there, BPM now?"),
        ("Good evening.", "How long did I sleep?", "Good evening. How long did I sleep?"),
        ("Quick one:", "How long did I sleep?", "Quick one: How long did I sleep?"),
    ],
)
def test_words_before_a_question(opener, text, expected) -> None:
    assert generator._opened(text, opener) == expected


def test_slips_are_few_and_leave_numbers_and_short_words() -> None:
    text = "Have I walked 10,000 steps or was it 12,000 by now?"  # 33 letters: one slip
    for seed in range(100):
        slipped = generator._slipped(text, Random(seed))
        assert Indel.distance(text, slipped) <= 2  # two swapped letters are one out and one in
        kept = [word for word in text.split() if len(word) < 4 or word[0].isdigit()]
        assert [word for word in slipped.split() if word in kept] == kept
    assert len({generator._slipped(text, Random(seed)) for seed in range(100)}) > 10


def test_chat_spelling_replaces_whole_words_only() -> None:
    found = {generator._chatty("Are you sure today's before tomorrow?", Random(seed)) for seed in range(200)}
    assert found == {
        f"{are} {you} sure {today}s {before} tomorrow"
        for are in ("are", "r")
        for you in ("you", "u")
        for today in ("today", "2day")
        for before in ("before", "b4")
    }


def test_what_is_spoken_has_one_filler() -> None:
    for seed in range(50):
        said = generator._spoken("Steps today, please?", Random(seed))
        assert any(said.replace(f"{filler} ", "", 1) == "steps today please" for filler in generator._FILLERS)
        assert said.endswith("please")


STYLES = ("as_it_is", "without_end", "lower", "lower_without_marks", "slipped", "spoken", "shouted")


@pytest.mark.parametrize("style", STYLES)
def test_a_number_stays_as_it_is(style) -> None:
    """Numbers decide labels. Chat spelling is left out: it writes 2, 4 and b4."""
    number = r"\d+(?:[.,]\d+)*"
    for text in ("Steps: 9,999 of 10,000?", *(text for text in PHRASES.values() if not text[0].islower())):
        changed = getattr(generator, f"_{style}")(text, Random(0))
        assert re.findall(number, changed) == re.findall(number, text), text


@pytest.mark.parametrize("module", [fitness, generator])
def test_module_needs_the_standard_library_only(module) -> None:
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names
