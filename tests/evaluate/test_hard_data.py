"""The pool of tools, queries and names: fit to be published, and kept away from tools that they resemble."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter

import pytest

from fitcoach_tune import fitness
from fitcoach_tune.evaluate import hard_data
from fitcoach_tune.evaluate.hard_data import content_words, pool_names, pool_queries, pool_tools, topics
from fitcoach_tune.functiongemma import find_control_token, render_declaration
from fitcoach_tune.tool_checks import CallChecker

TOOLS = [entry.tool for entry in pool_tools()]
FUNCTIONS = [tool["function"] for tool in TOOLS]
QUERIES = pool_queries()


def tool(name: str, description: str = "", **properties: dict) -> dict:
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def schemas(value) -> list[dict]:
    """Every schema of a parameter, at any depth."""
    inner = [*value.get("properties", {}).values(), *([value["items"]] if "items" in value else [])]
    return [*inner, *(deeper for schema in inner for deeper in schemas(schema))]


def served(query: str, *tools: dict) -> bool:
    (place,) = (i for i, entry in enumerate(QUERIES) if entry.text == query)
    return place not in hard_data.unserved_queries(list(tools))


def is_clean(text: str) -> bool:
    usual = not any(unicodedata.category(c) in ("Cc", "Cf", "Co", "Cn", "Cs") for c in text)
    return bool(text) and text == " ".join(text.split()) and not set("<>") & set(text) and usual


# ------------------------------------------------------------------------------------------------ tools


def test_the_tools_are_sound_and_render() -> None:
    assert list(CallChecker().tool_problems(TOOLS)) == []
    for one in TOOLS:
        assert find_control_token(json.dumps(one)) is None
        assert render_declaration(one)


def test_there_are_many_tools_on_many_topics() -> None:
    assert len(TOOLS) >= 80
    per_topic = Counter(entry.topic for entry in pool_tools())
    assert len(per_topic) >= 25
    assert max(per_topic.values()) <= 4
    assert per_topic.keys() <= hard_data._data()["topics"].keys()


def test_no_tool_is_there_twice() -> None:
    for key in ("name", "description"):
        assert len({function[key].casefold() for function in FUNCTIONS}) == len(FUNCTIONS)
    assert len({entry.words for entry in pool_tools()}) == len(TOOLS)


def test_names_and_descriptions_are_written_alike() -> None:
    for function in FUNCTIONS:
        assert re.fullmatch(r"[a-z]+(_[a-z]+)+", function["name"]), function["name"]
        assert content_words(function["name"]), function["name"]
        said = [function["description"]]
        for name, schema in function["parameters"]["properties"].items():
            assert re.fullmatch(r"[a-z]+(_[a-z]+)*", name), (function["name"], name)
            said += [part["description"] for part in [schema, *schemas(schema)] if "description" in part]
            assert "description" in schema, (function["name"], name)
        for text in said:
            assert is_clean(text), text
            assert text.endswith("."), text


def test_what_is_required_is_declared() -> None:
    for function in FUNCTIONS:
        for schema in [function["parameters"], *schemas(function["parameters"])]:
            assert set(schema.get("required", ())) <= schema.get("properties", {}).keys(), function["name"]


def test_parameters_of_every_kind_occur() -> None:
    found = [schema for function in FUNCTIONS for schema in schemas(function["parameters"])]
    assert Counter(schema["type"] for schema in found).keys() == {
        *("string", "integer", "number", "boolean", "array", "object")
    }
    assert any("enum" in schema for schema in found)
    assert any(schema.get("items", {}).get("type") == "object" for schema in found)
    assert any(schema.get("items", {}).get("type") == "array" for schema in found)
    assert any(not function["parameters"]["properties"] for function in FUNCTIONS)
    assert any(not function["parameters"]["required"] and schemas(function["parameters"]) for function in FUNCTIONS)


def test_every_tool_is_recognised_by_its_own_topic() -> None:
    for entry in pool_tools():
        assert entry.topic in topics(*hard_data.strings(entry.tool)), entry.tool["function"]["name"]


@pytest.mark.parametrize("entry", pool_tools(), ids=lambda entry: entry.tool["function"]["name"])
def test_to_a_tool_of_the_pool_others_of_its_topic_are_related(entry) -> None:
    unrelated = hard_data.unrelated_tools([entry.tool])
    assert len(unrelated) >= 60
    assert entry.topic not in {other.topic for other in unrelated}
    assert not any(other.words & entry.words for other in unrelated)
    left = hard_data.unserved_queries([entry.tool])
    assert not any(QUERIES[i].topic == entry.topic for i in left)


@pytest.mark.parametrize(
    ("own", "gone"),
    [
        (tool("getLocalForecast", "Is it going to be wet?"), {"get_weather_forecast", "get_air_quality"}),
        (tool("f", "Sends an e-mail."), {"send_text_message", "search_inbox", "draft_email"}),
        (tool("alarms"), {"set_alarm", "start_countdown"}),
        (tool("PDFMerger"), {"merge_pdfs", "print_document"}),
        (tool("control", device={"type": "string", "enum": ["lamp", "fan"]}), {"dim_lights", "toggle_bluetooth"}),
        (tool("vets_nearby"), {"book_vet_visit"}),
        (tool("move_mouse"), {"make_chess_move"}),
    ],
    ids=lambda value: value["function"]["name"] if isinstance(value, dict) else "",
)
def test_tools_that_resemble_own_ones_are_kept_away(own, gone) -> None:
    left = {entry.tool["function"]["name"] for entry in hard_data.unrelated_tools([own])}
    assert gone <= {function["name"] for function in FUNCTIONS}
    assert not gone & left
    assert len(left) >= 60


def test_the_fitness_tools_leave_most_of_the_pool() -> None:
    tools = fitness.tools()
    unrelated = hard_data.unrelated_tools(tools)
    assert len(unrelated) >= 60
    assert not {entry.topic for entry in unrelated} & {"health", "maths", "devices"}  # percentages, a battery
    assert len(hard_data.unserved_queries(tools)) >= 130


# ------------------------------------------------------------------------------------------------ queries


def test_there_are_many_queries_in_several_languages() -> None:
    assert len(QUERIES) >= 140
    languages = Counter(query.language for query in QUERIES)
    assert len(languages) >= 15
    assert all(re.fullmatch("[a-z]{2}", language) for language in languages)
    assert 0.5 < languages["en"] / len(QUERIES) < 0.8
    assert len({query.topic for query in QUERIES}) >= 30
    assert {query.topic for query in QUERIES} <= hard_data._data()["topics"].keys()


def test_the_queries_are_clean_and_different() -> None:
    for query in QUERIES:
        assert is_clean(query.text), query.text
        assert find_control_token(query.text) is None
    plain = Counter("".join(c for c in query.text.casefold() if c.isalnum()) for query in QUERIES)
    assert plain.most_common(1)[0][1] == 1


def test_the_register_is_varied() -> None:
    english = [query.text for query in QUERIES if query.language == "en"]
    lower = sum(text == text.lower() for text in english) / len(english)
    bare = sum(text[-1].isalnum() for text in english) / len(english)
    assert 0.3 < lower < 0.7
    assert 0.3 < bare < 0.7
    assert sum(text.isupper() for text in english) >= 2
    assert any(len(text.split()) <= 3 for text in english)
    assert any(len(text.split()) >= 12 for text in english)
    assert Counter(text.split()[0].casefold() for text in english).most_common(1)[0][1] / len(english) < 0.1


@pytest.mark.parametrize(
    ("query", "tools"),
    [
        ("will it rain in Leeds on Sunday", [tool("forecast")]),
        ("明日の天気を教えて", [tool("forecast")]),  # by its topic
        ("Wie wird morgen das Wetter in Kiel?", [tool("wetter_holen", "Das Wetter an einem Ort.")]),  # by its words
        ("Why is the sky blue?", [tool("f", "Colours of the sky.")]),
        ("can dogs have grapes??", [tool("find_dog")]),
        ("why did the roman empire fall, short version please", [tool("search_web", "Search the web.")]),
        ("why did the roman empire fall, short version please", [tool("search")]),
        ("why did the roman empire fall, short version please", [tool("Ask")]),
        ("thanks, that's all for now", [tool("say_goodbye")]),
        ("Why is the sky blue?", [tool("steps"), tool("expert", "Answers any question.")]),
        ("Why is the sky blue?", []),
    ],
)
def test_queries_that_may_be_served_are_left_out(query, tools) -> None:
    assert served(query, *tools)


@pytest.mark.parametrize(
    ("query", "own"),
    [
        ("will it rain in Leeds on Sunday", tool("get_steps", "Get the number of steps.")),
        ("thanks, that's all for now", tool("search_web", "Search the web.")),
        ("Why is the sky blue?", tool("get_user_info", "Get what is known about a user.")),
        ("tell me a joke about penguins", tool("tell", "Tell a user something about the orders.")),  # no content words
    ],
)
def test_the_others_are_not(query, own) -> None:
    assert not served(query, own)


# ------------------------------------------------------------------------------------------------ names and words


def test_the_names_mean_nothing() -> None:
    names = pool_names()
    assert len(set(names)) == len(names) >= 60
    texts = [*hard_data.strings(TOOLS), *(query.text for query in QUERIES), *hard_data._data()["stop_words"]]
    known = " ".join(texts).casefold()
    for name in names:
        assert re.fullmatch("[a-z]{6}", name), name
        assert name not in known
        assert not topics(name), name


def test_words_of_json_schema_belong_to_no_topic() -> None:
    keywords = "type description parameters properties required enum items additionalProperties minItems anyOf"
    kinds = "object string integer number boolean array null nullable default format pattern function name return title"
    assert topics(keywords, kinds) == set()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("get_sleeping_minutes", {"sleep", "minut"}),
        ("getSleepMinute", {"sleep", "minut"}),
        ("HTTPServer2", {"http", "server2"}),
        ("Translation, translates & translating", {"translat"}),
        ("cities City", {"cit"}),
        ("get the list of all users", set()),
        ("a I x1", set()),
        ("Größe gro\u0308ße", {"größ"}),
    ],
)
def test_content_words(text, words) -> None:
    assert content_words(text) == words


def test_topics_of_words_and_beginnings() -> None:
    assert "weather" in topics("Forecasting")
    assert topics("rain") == {"weather"}
    assert topics("training trainers") == set()
    assert {"images", "files"} <= topics("photos", "a PDF")


def test_stop_words_are_sorted_and_single() -> None:
    words = hard_data._data()["stop_words"]
    assert words == sorted(set(words))
    assert all(word == word.lower() and len(word) > 2 for word in words)


def test_strings_are_found_at_any_depth() -> None:
    assert list(hard_data.strings({"a": ["b", {"c": ("d", 1, None, True)}]})) == ["a", "b", "c", "d"]
