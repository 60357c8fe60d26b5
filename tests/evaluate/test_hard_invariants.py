"""What holds of every harder set, whatever the rows: it is sound, it changes one thing, and it can be made again."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fitcoach_tune.dataset import read_examples
from fitcoach_tune.evaluate import hard
from fitcoach_tune.evaluate.hard import hard_sets
from fitcoach_tune.evaluate.turns import Turn, turns_of
from fitcoach_tune.functiongemma import find_control_token, render
from fitcoach_tune.gold import Gold, GoldCall
from fitcoach_tune.tool_checks import CallChecker
from tests.evaluate.hard_rows import NAMES, SILENT, calling, result, says, tool, user

word = st.sampled_from(["get", "steps", "weather", "Rome", "sleep", "mail", "borvel", "x", "Größe", "7", "天気", "run"])
more = st.sampled_from(["Hello,", "is", "it?", "“Rome”", "7:30", "<", "escape>", "get_steps", "don't"])
names = st.lists(word.filter(str.isascii), min_size=1, max_size=3).map("_".join).filter(lambda name: name[0].isalpha())
sentences = st.lists(word | more, min_size=1).map(" ".join)
leaves = st.fixed_dictionaries({"type": st.sampled_from(["integer", "string"])}, optional={"description": sentences})
VALUES = {"integer": st.integers(0, 9), "string": sentences}
parameters = st.dictionaries(st.sampled_from("abc"), leaves, max_size=2)


@st.composite
def tool_lists(draw) -> list[dict]:
    own = draw(st.lists(names, max_size=4, unique=True))
    return [tool(name, draw(sentences), **draw(parameters)) for name in own]


@st.composite
def calls(draw, tools: list[dict], least: int) -> list[tuple[str, dict]]:
    made = []
    for chosen in draw(st.lists(st.sampled_from(tools), min_size=least, max_size=2)) if tools else ():
        properties = chosen["function"]["parameters"]["properties"]
        arguments = {key: draw(VALUES[schema["type"]]) for key, schema in properties.items()}
        made.append((chosen["function"]["name"], arguments))
    return made


@st.composite
def called(draw, tools: list[dict]) -> list[dict]:
    """A user message, and perhaps calls with their results."""
    made = draw(calls(tools, 0))
    answered = [calling(*made), *(result(name, draw(sentences) if i else {"n": i}) for i, (name, _) in enumerate(made))]
    return [user(draw(sentences)), *(answered if made else ())]


@st.composite
def golds(draw, tools: list[dict]) -> Gold:
    answers = [
        tuple(GoldCall(name, {key: (value,) for key, value in given.items()}) for name, given in draw(calls(tools, 0)))
        for _ in range(draw(st.integers(1, 2)))
    ]
    return Gold(tuple(answers))


@st.composite
def turn_lists(draw) -> list[Turn]:
    lists = draw(st.lists(tool_lists(), min_size=1, max_size=3))
    lists.append(copy.deepcopy(lists[0]))
    turns = []
    for i in range(draw(st.integers(1, 6))):
        tools = draw(st.sampled_from(lists))
        messages = [{"role": "developer", "content": draw(sentences)}] if draw(st.booleans()) else []
        if draw(st.booleans()):
            messages += [*draw(called(tools)), says(draw(sentences))]
        turns.append(Turn([*messages, *draw(called(tools))], tools, draw(golds(tools)), f"rows.jsonl:{i}"))
    return turns


seeds = st.integers(0, 2**32)


def some(examples: int):
    return settings(deadline=None, max_examples=examples, suppress_health_check=[HealthCheck.too_slow])


@some(80)
@given(turn_lists(), seeds)
def test_sets_are_sound(turns, seed) -> None:
    before = copy.deepcopy(turns)
    sets = hard_sets(turns, seed)
    assert turns == before
    found = [one.name for one in sets]
    assert found == [name for name in NAMES if name in found]
    for one in sets:
        assert one.turns
        assert len(one.turns) + one.left_out == len(turns)
        checker, lists = CallChecker(), {}
        for changed in one.turns:
            assert lists.setdefault(json.dumps(changed.tools, sort_keys=True), changed.tools) is changed.tools
            assert list(checker.tool_problems(changed.tools)) == []
            assert find_control_token(repr(changed)) is None
            assert render(changed.messages, changed.tools, add_generation_prompt=True)
            for call in (call for answer in changed.gold.answers for call in answer):
                assert list(checker.call_problems(call.name, call.call.arguments, changed.tools)) == []


@some(80)
@given(turn_lists(), seeds)
def test_sets_change_what_they_say_and_nothing_else(turns, seed) -> None:
    own = {one.origin: one for one in turns}
    for one in hard_sets(turns, seed):
        origins = [changed.origin for changed in one.turns]
        if one.name == "unserved":
            assert not own.keys() & set(origins)
            assert all(changed.gold == SILENT for changed in one.turns)
            continue
        assert origins == [origin for origin in own if origin in origins]
        for changed in one.turns:
            CHECKS[one.name](changed, own[changed.origin])


def check_order(changed: Turn, own: Turn) -> None:
    assert changed.declared != own.declared
    assert sorted(changed.declared) == sorted(own.declared)
    assert replace(changed, tools=own.tools) == own


def check_distractors(changed: Turn, own: Turn) -> None:
    assert [one for one in changed.tools if one["function"]["name"] in own.declared] == own.tools
    assert len(own.tools) < len(changed.tools) <= len(own.tools) + 10
    assert replace(changed, tools=own.tools) == own


def check_removed(changed: Turn, own: Turn) -> None:
    wanted = {call.name for answer in own.gold.answers for call in answer}
    assert changed.tools == [one for one in own.tools if one["function"]["name"] not in wanted] != []
    assert replace(changed, tools=own.tools, gold=own.gold) == own
    assert changed.gold == SILENT


def check_renamed(changed: Turn, own: Turn) -> None:
    back = dict(zip(changed.declared, own.declared, strict=True))
    assert not back.keys() & set(own.declared)
    answers = tuple(tuple(replace(c, name=back[c.name]) for c in answer) for answer in changed.gold.answers)
    assert replace(changed.gold, answers=answers) == own.gold
    for new, old in zip(changed.messages, own.messages, strict=True):
        if "tool_calls" in old:
            functions = [call["function"] for call in new["tool_calls"]]
            assert calling(*((back[f["name"]], f["arguments"]) for f in functions)) == old
        elif old["role"] == "tool":
            assert {**new, "name": back[new["name"]]} == old
        else:
            assert new == old or old["role"] == "developer"
    for new, old in zip(changed.tools, own.tools, strict=True):
        assert new["function"]["parameters"].keys() == old["function"]["parameters"].keys()


def check_text(changed: Turn, own: Turn) -> None:
    assert changed.query != own.query
    last = max(i for i, message in enumerate(own.messages) if message["role"] == "user")
    assert changed.messages == [*own.messages[:last], user(changed.query), *own.messages[last + 1 :]]
    assert replace(changed, messages=own.messages) == own
    values = [value for answer in own.gold.answers for call in answer for value in call.call.arguments.values()]
    for value in (value for value in values if isinstance(value, str)):
        assert value not in own.query or value in changed.query


CHECKS = {"tool-order": check_order, "distractors": check_distractors, "gold-removed": check_removed}
CHECKS |= {"renamed": check_renamed, "typos": check_text, "casing": check_text}


def reversed_keys(value):
    if isinstance(value, dict):
        return {key: reversed_keys(value[key]) for key in reversed(value)}
    return [reversed_keys(part) for part in value] if isinstance(value, list) else value


@some(50)
@given(turn_lists(), seeds)
def test_sets_depend_on_rows_and_seed_alone(turns, seed) -> None:
    sets = hard_sets(turns, seed)
    assert hard_sets(copy.deepcopy(turns), seed) == sets
    again = [replace(one, messages=reversed_keys(one.messages), tools=reversed_keys(one.tools)) for one in turns]
    assert hard_sets(again, seed) == sets


@some(30)
@given(turn_lists(), seeds)
def test_a_row_is_changed_alike_whatever_other_rows_there_are(turns, seed) -> None:
    alone = {(one.name, row.origin): one.turns for row in turns for one in hard_sets([row], seed)}
    for one in hard_sets(turns, seed):
        if one.name not in ("casing", "unserved"):
            assert [alone[one.name, changed.origin] for changed in one.turns] == [[changed] for changed in one.turns]


@pytest.fixture(scope="module")
def fitness_turns() -> list[Turn]:
    examples, _ = read_examples("builtin:fitness")
    return [one for example in examples[:60] for one in turns_of(example)]


def test_no_set_depends_on_another(fitness_turns, monkeypatch) -> None:
    whole = {one.name: one for one in hard_sets(fitness_turns, 7)}
    parts = dict(hard._SETS)
    for name in NAMES:
        monkeypatch.setattr(hard, "_SETS", {name: parts[name]})
        assert hard_sets(fitness_turns, 7) == [whole[name]]


def test_other_seeds_give_other_sets(fitness_turns) -> None:
    first, second = (hard_sets(fitness_turns, seed) for seed in (1, 2))
    for one, other in zip(first, second, strict=True):
        assert (one == other) is (one.name == "gold-removed"), one.name  # nothing is drawn there


SCRIPT = """
import hashlib, json
from fitcoach_tune.dataset import read_examples
from fitcoach_tune.evaluate.hard import hard_sets
from fitcoach_tune.evaluate.turns import turns_of

examples, _ = read_examples("builtin:fitness")
sets = hard_sets([turn for example in examples[:60] for turn in turns_of(example)], 5)
said = [[s.name, s.left_out, [[t.messages, t.tools, t.gold.as_json(), t.origin] for t in s.turns]] for s in sets]
print(hashlib.sha256(json.dumps(said).encode()).hexdigest())
"""


def test_sets_are_the_same_in_every_process(fitness_turns) -> None:
    sets = hard_sets(fitness_turns, 5)
    said = [[s.name, s.left_out, [[t.messages, t.tools, t.gold.as_json(), t.origin] for t in s.turns]] for s in sets]
    here = hashlib.sha256(json.dumps(said).encode()).hexdigest()
    for hash_seed in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == here
