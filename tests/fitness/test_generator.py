"""The generator of the fitness rows: always the same file, and ways of writing that leave the label alone."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from rapidfuzz import fuzz
from rapidfuzz.distance import Indel

from fitcoach_tune import builtin, fitness
from fitcoach_tune.fitness import generator
from tests.fitness.data import PHRASES, key, text_of


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
        ("without_end", "Combien de pas ?", "Combien de pas"),
        ("chatty", "Combien de pas ?", "combien de pas"),
        ("lower", "My BPM, please.", "my bpm, please."),
        ("lower_without_marks", "Did I pass 10,000 or 3.5 km, then?", "did i pass 10,000 or 3.5 km then"),
        ("lower_without_marks", "I've done 10,000. Or 3.5?", "ive done 10,000 or 3.5"),
        ("lower_without_marks", "Slept 6:30? Or: at 7: up?", "slept 6:30 or at 7 up"),
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


def test_a_phrase_of_another_language_loses_its_last_mark_and_the_space_before_it() -> None:
    found = {generator._bare("Combien de pas ?", Random(seed)) for seed in range(20)}
    assert found == {"Combien de pas ?", "Combien de pas"}


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
    number = r"\d+(?:[.,:]\d+)*"
    written = (text for text in PHRASES.values() if not text[0].islower())
    for text in ("Steps: 9,999 of 10,000?", "Slept 6:45?", *written):
        changed = getattr(generator, f"_{style}")(text, Random(0))
        assert re.findall(number, changed) == re.findall(number, text), text


@pytest.mark.parametrize("module", [fitness, generator])
def test_module_needs_the_standard_library_only(module) -> None:
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names
