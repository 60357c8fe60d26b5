"""The harder sets, by hand: what each of them changes, and where it does not apply."""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from dataclasses import replace

import pytest

from fitcoach_tune import fitness
from fitcoach_tune.dataset import read_examples
from fitcoach_tune.evaluate import hard_data
from fitcoach_tune.evaluate.hard import hard_sets
from fitcoach_tune.evaluate.turns import Turn, turns_of
from fitcoach_tune.functiongemma import TRIGGER, find_control_token
from fitcoach_tune.gold import Gold, GoldCall
from tests.evaluate.hard_rows import (
    LOG,
    NAMES,
    SILENT,
    SLEEP,
    STEPS,
    TOOLS,
    calling,
    made,
    only,
    result,
    says,
    tool,
    turn,
    user,
)


@pytest.fixture(scope="module")
def fitness_turns() -> list[Turn]:
    examples, _ = read_examples("builtin:fitness")
    return [one for example in examples for one in turns_of(example)]


# ------------------------------------------------------------------------------------------------ the fitness rows


def test_the_sets_of_the_fitness_rows(fitness_turns) -> None:
    sets = hard_sets(fitness_turns, 42)
    assert [found.name for found in sets] == NAMES
    assert all(found.title and found.description.endswith(".") for found in sets)
    sizes = {found.name: (len(found.turns), found.left_out) for found in sets}
    rows, called = len(fitness_turns), [frozenset(call.name for call in one.gold.calls) for one in fitness_turns]
    none, every = frozenset(), frozenset(tool["function"]["name"] for tool in fitness.tools())
    kept = [names for names in called if names not in (none, every)]
    assert all(sum(size) == rows for size in sizes.values())
    assert sizes["tool-order"] == sizes["renamed"] == (rows, 0)
    # What calls nothing has no wanted tool, and what calls all seven leaves none to declare.
    assert sizes["gold-removed"] == (len(kept), rows - len(kept))
    # Some scripts have no words to mistype, or no capitals.
    assert sizes["typos"][0] > 0.95 * rows
    assert sizes["casing"][0] > 0.95 * rows
    # A row that calls nothing is left out, and of the others only what touches on the topic of an added tool.
    assert sizes["distractors"][0] > 0.95 * sum(names != none for names in called)
    assert sizes["unserved"][0] == len(hard_data.unserved_queries(fitness.tools())) > 130
    for found in sets:
        lists = {id(one.tools) for one in found.turns}
        assert len(lists) == (len(set(kept)) if found.name == "gold-removed" else 1)


def test_nothing_comes_of_nothing() -> None:
    assert hard_sets([], 0) == []


# ------------------------------------------------------------------------------------------------ tool-order


def test_another_order_of_the_same_tools() -> None:
    orders = {only("tool-order", turn("steps?", ("get_steps", {})), seed).declared for seed in range(60)}
    own = ("get_steps", "get_sleep", "log_meal")
    assert own not in orders
    assert len(orders) == 5  # all others of the six
    changed = only("tool-order", turn("steps?", ("get_steps", {})))
    assert sorted(map(json.dumps, changed.tools)) == sorted(map(json.dumps, TOOLS))
    assert replace(changed, tools=TOOLS) == turn("steps?", ("get_steps", {}))


def test_two_tools_change_places_and_one_has_no_other_order() -> None:
    two, one = turn("a?", tools=[STEPS, SLEEP]), turn("a?", tools=[STEPS])
    for seed in range(5):
        found = made("tool-order", two, one, seed=seed)
        assert [derived.declared for derived in found.turns] == [("get_sleep", "get_steps")]
        assert found.left_out == 1
    assert made("tool-order", one) is None


# ------------------------------------------------------------------------------------------------ distractors


def test_ten_others_stand_among_the_own_tools_in_their_order() -> None:
    given = turn("How many steps?", ("get_steps", {}))
    seen, places = set(), set()
    for seed in range(20):
        changed = only("distractors", given, seed)
        assert len(changed.tools) == 13
        assert [one for one in changed.tools if one in TOOLS] == TOOLS
        assert replace(changed, tools=TOOLS) == given
        others = {entry.tool["function"]["name"]: entry for entry in hard_data.pool_tools()}
        assert all(name in others or name in given.declared for name in changed.declared)
        assert not {others[name].topic for name in changed.declared if name in others} & {"health", "food"}
        seen.update(changed.declared)
        places.add(tuple(changed.declared.index(name) for name in given.declared))
    assert len(seen) > 50
    assert len(places) > 15


def test_queries_that_an_added_tool_may_serve_are_left_out() -> None:
    weather = turn("and what is the weather like", ("get_steps", {}))
    earlier = turn("and now?", ("get_steps", {}), before=[user("Any snow?"), says("No.")])
    plain = turn("and what is it like", ("get_steps", {}))
    some = 0
    for seed in range(40):
        found = made("distractors", weather, earlier, plain, seed=seed)
        topics = {e.topic for e in hard_data.pool_tools() if e.tool["function"]["name"] in found.turns[-1].declared}
        assert len(found.turns) == (1 if "weather" in topics else 3)
        some += "weather" in topics
    assert 0 < some < 40


def test_where_no_call_is_wanted_nothing_is_added() -> None:
    assert made("distractors", turn("What now?")) is None


def test_without_unrelated_tools_nothing_is_added() -> None:
    everything = tool(
        "do_all", " ".join(entry.topic for entry in hard_data.pool_tools()) + " ticket image mail pay movie"
    )
    given = turn("go", ("do_all", {}), tools=[everything, *(entry.tool for entry in hard_data.pool_tools())])
    assert made("distractors", given) is None


# ------------------------------------------------------------------------------------------------ gold-removed


def test_the_wanted_tool_is_taken_away() -> None:
    changed = only("gold-removed", turn("How many steps?", ("get_steps", {})))
    assert changed.tools == [SLEEP, LOG]
    assert changed.gold == SILENT
    assert changed.messages == turn("How many steps?").messages


def test_all_tools_of_parallel_calls_and_of_other_answers_are_taken_away() -> None:
    parallel = turn("steps and sleep", ("get_steps", {}), ("get_sleep", {"days": 1}))
    either = replace(
        turn("rest?"), gold=Gold(((GoldCall("get_sleep", {"days": (1, 2)}),), (GoldCall("get_steps"),), ()))
    )
    found = made("gold-removed", parallel, either)
    assert [one.tools for one in found.turns] == [[LOG], [LOG]]
    assert found.turns[0].tools is found.turns[1].tools


def test_what_the_gold_cannot_be_removed_from() -> None:
    called = [
        user("steps?"),
        calling(("get_steps", {})),
        result("get_steps", "7"),
        {"role": "assistant", "content": "7."},
    ]
    given = [
        turn("and now?", ("get_steps", {}), before=called),
        turn("How many steps?", ("get_steps", {}), tools=[STEPS]),
        turn("Hello!"),
    ]
    assert made("gold-removed", *given) is None
    found = made("gold-removed", *given, turn("sleep?", ("get_sleep", {"days": 1}), before=called, origin="kept"))
    assert [one.origin for one in found.turns] == ["kept"]
    assert found.left_out == 3


def test_equal_tools_are_one_list_even_where_the_rows_own_differ() -> None:
    turns = [
        turn("a", ("get_steps", {}), tools=[STEPS, LOG]),
        turn("b", ("get_sleep", {"days": 1}), tools=[LOG, SLEEP]),
    ]
    first, second, third = made("gold-removed", *turns, *copy.deepcopy(turns[:1])).turns
    assert first.tools == [LOG]
    assert first.tools is second.tools is third.tools


# ------------------------------------------------------------------------------------------------ renamed


def test_new_names_stand_everywhere() -> None:
    before = [
        {"role": "user", "content": "get_steps please"},
        calling(("get_steps", {}), ("get_sleep", {"days": 2})),
        result("get_steps", "7"),
        result("get_sleep", {"name": "get_sleep", "response": {"minutes": 400, "name": "get_sleep"}}),
        says("7 steps."),
    ]
    given = turn("log it", ("log_meal", {"meal": "get_steps"}), ("get_steps", {}), before=before)
    given.messages[0]["content"] = "Use get_steps, not get_steps_2 or forget_steps."
    changed = only("renamed", given)
    steps, sleep, log = changed.declared
    assert {steps, sleep, log} <= set(hard_data.pool_names())
    assert len({steps, sleep, log}) == 3
    assert [one["function"]["description"] for one in changed.tools] == [
        "Steps of the day.", f"Sleep of the last days. See also {steps}.", "Write down a meal.",
    ]  # fmt: skip
    meal = {"type": "string", "description": f"As in {sleep}."}
    assert changed.tools[2]["function"]["parameters"] == {
        "type": "object", "properties": {"meal": meal}, "required": ["meal"],
    }  # fmt: skip
    assert changed.messages == [
        {"role": "developer", "content": f"Use {steps}, not get_steps_2 or forget_steps."},
        {"role": "user", "content": "get_steps please"},
        calling((steps, {}), (sleep, {"days": 2})),
        result(steps, "7"),
        result(sleep, {"name": sleep, "response": {"minutes": 400, "name": "get_sleep"}}),
        says("7 steps."),
        {"role": "user", "content": "log it"},
    ]
    assert changed.gold == Gold(((GoldCall(log, {"meal": ("get_steps",)}), GoldCall(steps)),))


def test_every_acceptable_answer_gets_the_new_names() -> None:
    call = GoldCall("get_sleep", {"days": (1, 2), "more": (None,)}, frozenset({"more"}), frozenset({"more"}))
    given = replace(turn("rest?"), gold=Gold(((call,), (GoldCall("get_steps"), call), ()), "bfcl"))
    changed = only("renamed", given)
    steps, sleep, _ = changed.declared
    renamed = replace(call, name=sleep)
    assert changed.gold == Gold(((renamed,), (GoldCall(steps), renamed), ()), "bfcl")


def test_a_name_that_may_be_a_plain_word_stays_in_texts() -> None:
    given = turn("go", tools=[tool("search", "Does search. Not findFlight."), tool("findFlight")])
    first, second = only("renamed", given).tools
    assert first["function"]["description"] == f"Does search. Not {second['function']['name']}."


def test_there_are_names_for_any_number_of_tools() -> None:
    mentioned = hard_data.pool_names()[0]
    many = [tool("t0", f"Like {mentioned.upper()}s."), *(tool(f"t{i}") for i in range(1, 150))]
    declared = only("renamed", turn("go", tools=many)).declared
    assert len(set(declared)) == 150
    assert not any(name.startswith(mentioned) for name in declared)
    assert Counter(re.sub("[a-z]", "", name) for name in declared) == {"": 59, "_2": 59, "_3": 32}


# ------------------------------------------------------------------------------------------------ typos and casing


def test_only_the_last_user_message_is_mistyped() -> None:
    before = [user("Write down breakfast"), says("What was it?")]
    after = [calling(("get_steps", {})), result("get_steps", {"steps": 7})]
    given = turn("Porridge with 2 apples", ("log_meal", {"meal": "porridge"}), before=before, after=after)
    texts = set()
    for seed in range(10):
        changed = only("typos", given, seed)
        texts.add(changed.query)
        assert changed.messages[:3] == given.messages[:3]
        assert changed.messages[4:] == given.messages[4:]
        assert changed.tools is given.tools
        assert changed.gold is given.gold
        assert re.fullmatch(r"Porridge \w+ 2 \w+", changed.query)
        assert changed.query != given.query
    assert len(texts) > 5


def test_no_typing_error_where_all_is_a_value() -> None:
    given = turn("Porridge 2", ("log_meal", {"meal": "porridge"}))
    assert made("typos", given) is None


def test_every_accepted_value_at_any_depth_stays() -> None:
    answers = ((GoldCall("f", {"x": ("other", {"deep": ["Lima", 3]})}),), (GoldCall("f", {"y": ("Oslo",)}),))
    given = replace(turn("Lima Oslo deep other", tools=[tool("f")]), gold=Gold(answers))
    assert made("typos", given) is None


def test_cases_take_turns() -> None:
    found = made("casing", *(turn("Hello, you!") for _ in range(9)))
    counts = Counter(one.query for one in found.turns)
    assert counts == {"hello, you!": 3, "HELLO, YOU!": 3, "Hello you": 3}
    starts = {tuple(o.query for o in made("casing", *[turn("Hello, you!")] * 3, seed=s).turns) for s in range(40)}
    assert len(starts) == 6


def test_a_case_that_changes_nothing_is_passed_over() -> None:
    for seed in range(6):
        assert only("casing", turn("hello you"), seed).query == "HELLO YOU"
        assert only("casing", turn("HELLO"), seed).query == "hello"
        assert only("casing", turn("天気は？"), seed).query == "天気は"
        assert made("casing", turn("天気"), seed=seed) is None


def test_a_case_that_would_change_a_value_is_passed_over() -> None:
    for seed in range(6):
        assert only("casing", turn("Log: Pad Thai!", ("log_meal", {"meal": "Pad Thai"})), seed).query == "Log Pad Thai"
        assert only("casing", turn("log pad thai", ("log_meal", {"meal": "Pad Thai"})), seed).query == "LOG PAD THAI"
        assert made("casing", turn("log Pad Thai", ("log_meal", {"meal": "Pad Thai"})), seed=seed) is None
        assert made("casing", turn("log: Soup!", ("log_meal", {"meal": "log: Soup!"})), seed=seed) is None


def test_a_text_never_comes_to_spell_a_control_token() -> None:
    assert made("casing", turn("<ESCAPE>")) is None
    for seed in range(200):
        found = made("typos", turn("<end of turn>"), seed=seed)
        assert found is None or find_control_token(found.turns[0].query) is None


# ------------------------------------------------------------------------------------------------ unserved


def test_general_queries_are_asked_with_the_own_tools() -> None:
    given = [turn(f"query {i}", ("get_steps", {}), origin=f"rows.jsonl:{i}") for i in range(30)]
    found = made("unserved", *given)
    assert (len(found.turns), found.left_out) == (30, 0)
    texts = {f"hard.json[queries][{i}]": query.text for i, query in enumerate(hard_data.pool_queries())}
    assert len({one.origin for one in found.turns}) == 30
    for one in found.turns:
        assert one.messages == [{"role": "developer", "content": TRIGGER}, user(texts[one.origin])]
        assert one.gold == SILENT
        assert one.tools is TOOLS


def test_the_developer_message_is_the_rows_own_or_none() -> None:
    own = turn("hi", before=[user("a"), says("b")])
    own.messages[0]["content"] = "Be brief."
    assert only("unserved", own).messages[0] == {"role": "developer", "content": "Be brief."}
    bare = replace(own, messages=[user("hi")])
    assert [message["role"] for message in only("unserved", bare).messages] == ["user"]


def test_queries_stand_in_the_order_of_the_rows() -> None:
    rows = [
        replace(turn("hi"), messages=[{"role": "developer", "content": f"Row {i}."}, user("hi")]) for i in range(200)
    ]
    places = [int(one.messages[0]["content"][4:-1]) for one in made("unserved", *rows).turns]
    assert places == sorted(places)
    assert max(places) > 150  # not just the first ones


def test_each_list_of_tools_gets_queries_of_its_own() -> None:
    web = [tool("search_web", "Search the web.")]
    found = made("unserved", *[turn("a"), turn("b", tools=web), turn("c", tools=[])] * 20)
    queries = {query.text: query.topic for query in hard_data.pool_queries()}
    of_web = [one for one in found.turns if one.tools is web]
    small_talk = sum(topic == "smalltalk" for topic in queries.values())
    assert 0 < len(of_web) <= small_talk
    assert {queries[one.query] for one in of_web} == {"smalltalk"}
    assert sum(one.tools is TOOLS for one in found.turns) == 20
    assert not any(one.tools == [] for one in found.turns)
    assert found.left_out == 60 - len(found.turns)
