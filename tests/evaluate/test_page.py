"""The report: what it says of invented answers, counted by hand; that nothing in it leads out or breaks out."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitcoach_tune.evaluate.page import render_page, verdict
from fitcoach_tune.evaluate.score import ERRORS
from fitcoach_tune.functiongemma import Call
from tests.evaluate.reports import (
    HEART,
    SLEEP,
    STEPS,
    TOOLS,
    WORDS,
    Reader,
    better,
    eight_rows,
    make_report,
    make_set,
    read,
    row,
    said,
    squeeze,
)
from tests.samples import tool

# ------------------------------------------------------------------------------------------------ what it says


def test_the_first_screen() -> None:
    page = read(make_set(eight_rows()))
    assert page.all("header")[0]["class"] == "unsure"
    assert "8 rows cannot tell tuned from base." in page.text
    # Wilson for 6 of 8 and 1 of 8; the exact test of 6 against 1 gives 2 (1 + 7) / 128 = 0.125.
    assert "tuned gets 75.0% of 8 held-out rows exactly right (95% interval 40.9 to 92.9)" in page.text
    assert "base 12.5% (2.2 to 47.1); the difference of +62.5 points (" in page.text
    assert "cannot be told from chance with 8 rows (exact McNemar p = 0.12)." in page.text
    assert "0 both right 6 only tuned right 1 only base right 1 neither right" in page.text
    assert "2 of 8 answers." in page.text
    assert "1 calls a function that was not declared" in page.text
    assert "1 calls another function" in page.text
    assert {
        "#change=better&error=any",
        "#change=worse",
        "#error=wrong_func_name",
        "#error=invented_func_name",
        "#wanted=get_steps&called=get_heart_rate",
        "#wanted=get_steps&called=invented",
        "#id=test%2F7&error=any",
    } <= set(page.links)
    assert "Got worse right in base, wrong in tuned How is my walking?" in page.text


@pytest.mark.parametrize(
    ("rows", "tone", "headline", "ending"),
    [
        (better(7), "better", "tuned is better than base by 100.0 points.", "is not chance (exact McNemar p = 0.016)."),
        (
            better(12),
            "better",
            "tuned is better than base by 100.0 points.",
            "is not chance (exact McNemar p < 0.001).",
        ),
        (
            [row(said(STEPS), WORDS)] * 6 + [row(said(STEPS), said(STEPS))] * 6,
            "worse",
            "tuned is worse than base by 50.0 points.",
            "is not chance (exact McNemar p = 0.031).",
        ),
        (better(5), "unsure", "5 rows cannot tell tuned from base.", "with 5 rows (exact McNemar p = 0.062)."),
        (
            [row(said(STEPS), said(STEPS)), row(WORDS, WORDS)],
            "unsure",
            "tuned and base are right on the same rows.",
            "there is no row on which one is right and the other wrong.",
        ),
        ([], "alone", "No rows were asked.", "There is nothing to tell about tuned."),
    ],
)
def test_verdicts(rows, tone, headline, ending) -> None:
    found = verdict(make_set(rows)[0])
    assert (found.tone, found.headline) == (tone, headline)
    assert squeeze(found.sentence).endswith(ending)


def test_a_verdict_names_rows_by_the_sets_title_where_that_is_rows() -> None:
    rows = better(7)
    assert "of 7 training rows exactly" in verdict(make_set(rows, title="Training rows")[0]).sentence
    assert "of 7 rows exactly" in verdict(make_set(rows, title="Tools renamed")[0]).sentence


def test_the_verdict_without_a_baseline() -> None:
    test_set = make_set([row(WORDS, said(STEPS))] * 4, models=("tuned",), compare=False)
    found = verdict(test_set[0])
    assert (found.tone, found.headline) == ("alone", "tuned gets 100.0% exactly right.")
    assert found.sentence == "tuned gets 100.0% of 4 held-out rows exactly right (95% interval 51.0 to 100.0)."
    assert "minus" not in read(test_set).text


def test_every_figure_has_its_count_and_interval() -> None:
    page = read(make_set(eight_rows()))
    six, one, none = "75.0% 6 of 8 40.9 to 92.9", "12.5% 1 of 8 2.2 to 47.1", "0.0% 0 of 8 0.0 to 32.4"
    assert page.row("Exactly right") == [one, six]
    assert page.row("Right functions") == [one, six]
    assert page.row("Calls where a call is wanted") == [one, "100.0% 8 of 8 67.6 to 100.0"]
    assert page.row("Words where none is wanted") == ["–", "–"]
    assert page.row("Invented functions") == [none, one]
    assert page.row("Can be parsed") == ["100.0% 8 of 8 67.6 to 100.0"] * 2
    assert page.row("Half of the rows within") == ["0.75 s", "0.75 s"]  # between 0.7 and 0.8
    assert page.row("wrong_func_name") == ["0", "1"]
    assert page.row("no_call") == ["7", "0"]
    assert "#model=base&error=no_call" in page.links


def test_tools_have_their_figures_in_a_table() -> None:
    page = read(make_set(eight_rows()))
    cells = {found[0]: found[1:] for found in page.rows if len(found) == 4}
    assert cells["get_heart_rate"] == ["0.0% 0 of 1 0.0 to 79.3", "–", "0.0%"]
    assert cells["get_steps"] == ["100.0% 6 of 6 61.0 to 100.0", "75.0% 6 of 8 40.9 to 92.9", "85.7%"]
    assert cells["get_active_minutes"] == ["–", "–", "–"]
    assert "#tool=get_active_minutes&error=any" in page.links


def test_pictures_say_in_words_what_they_show() -> None:
    page = read(make_set(eight_rows()))
    intervals, difference, confusion, tools = (svg["aria-label"] for svg in page.all("svg"))
    assert intervals.endswith("95% intervals: base 12.5% (2.2 to 47.1); tuned 75.0% (40.9 to 92.9).")
    assert difference.startswith("Difference: +62.5 points, 95% interval ")
    assert confusion == "What was wanted against what was called: 6 times the same, 2 times something else."
    # The worst first. Six calls of get_steps, all wanted, of eight that are wanted: F1 = 12 / 14.
    assert tools.startswith("Precision, recall and F1 by tool. F1: get_heart_rate 0.0%; get_steps 85.7%; get_active_m")
    assert tools.count("–") == 5


def test_harder_sets_have_a_row_each() -> None:
    hard = make_set([row(said(STEPS), WORDS)] * 3 + better(1), "hard/renamed", "Tools renamed")
    alone = make_set(better(2), "hard/alone", "Without a baseline", models=("tuned",), compare=False)
    page = read(make_set(eight_rows()), hard, alone)
    n, _, base, tuned = page.row("Tools renamed")
    assert (n, base, tuned) == ("4", "75.0% 3 of 4 30.1 to 95.4", "25.0% 1 of 4 4.6 to 69.9")
    assert page.row("Without a baseline")[2:] == ["not asked", "100.0% 2 of 2 34.2 to 100.0"]
    # The exact test of 1 against 3 gives 2 (1 + 4) / 16.
    assert "−50.0 points, p = 0.62 1 better , 3 worse" in page.text
    assert "#set=hard%2Frenamed&change=worse&error=mistakes" in page.links
    assert "95% intervals: base 75.0% (30.1 to 95.4); tuned 25.0% (4.6 to 69.9)." in [
        svg["aria-label"] for svg in page.all("svg")
    ]
    assert "Harder sets" not in read(make_set(eight_rows())).text


def test_gates_say_whether_they_passed() -> None:
    gates = [
        {"flag": "--fail-under", "wanted": 0.9, "found": 0.75, "passed": False, "text": "exact calls 75.0%"},
        {"flag": "--fail-if-worse", "wanted": 0, "found": 0, "passed": True, "text": "not worse"},
    ]
    page = read(make_set(eight_rows()), gates=gates)
    assert "✗ failed exact calls 75.0% --fail-under ✓ passed not worse --fail-if-worse" in page.text
    assert [item["class"] for item in page.all("li") if "class" in item][:2] == ["failed", "passed"]


def test_where_it_comes_from_is_told() -> None:
    text = read(make_set(eight_rows())).text
    for fact in ("output/fitness-offline , on offline", "ab" * 32, "test split", "cd" * 32, "x86_64 cpu, 2 threads"):
        assert fact in text
    assert "2026-03-09T10:11:12+00:00" in text


def test_of_many_tools_those_with_most_mistakes_are_drawn() -> None:
    many = [tool(f"tool_{i:02}") for i in range(60)]
    wrong = {0: 1, 41: 7, 59: 58}
    calls = [Call(f"tool_{i:02}", {}) for i in range(60)]
    rows = [row(WORDS, said(calls[wrong.get(i, i)]), gold=[call]) for i, call in enumerate(calls)]
    page = render_page(*make_report(make_set(rows, tools=many)))
    assert "Drawn are the 20 of 60 tools with most mistakes." in squeeze(page)
    matrix = page[page.index('aria-label="What was wanted against') :].partition("</svg>")[0]
    drawn = set(re.findall("tool_[0-9]{2}", re.sub("<[^>]*>", " ", matrix)))
    assert len(drawn) == 20
    assert {"tool_00", "tool_01", "tool_41", "tool_07", "tool_59", "tool_58"} <= drawn


# ------------------------------------------------------------------------------------------------ the data block


def test_the_data_block_holds_every_answer_and_each_prompt_once() -> None:
    rows = [(f"Steps {i}?", [STEPS], {"base": WORDS, "tuned": said(STEPS)}) for i in range(126)]
    results, samples = make_report(make_set(rows))
    text = render_page(results, samples)
    assert text.count("declaration:get_steps") == 1
    data = Reader(text).data
    assert (len(data["rows"]), len(data["answers"])) == (126, 252)
    for sample, answer in zip(samples[:4], data["answers"][:4], strict=True):
        about = data["rows"][answer["row"]]
        assert data["heads"][about["head"]] + about["tail"] == sample["prompt"]
        assert data["toolsets"][about["tools"]] == sample["tools"]
        assert (answer["model"], answer["raw"], about["query"]) == (sample["model"], sample["raw"], sample["query"])
        assert about["gold"] == [[["get_steps", ""]]]


def test_arguments_keep_what_a_script_would_round() -> None:
    goal = tool("set_goal", properties={"steps": {"type": "number"}, "on": {"type": "string"}})
    call = Call("set_goal", {"on": "montag 🙂", "steps": 12345678901234567890})
    data = read(make_set([row(WORDS, said(call), gold=[Call("set_goal", {"steps": 1.0})])], tools=[goal])).data
    assert data["answers"][1]["calls"] == [["set_goal", 'on="montag 🙂", steps=12345678901234567890']]
    assert data["rows"][0]["gold"] == [[["set_goal", "steps=1.0"]]]


# ------------------------------------------------------------------------------------------------ nothing breaks out

HOSTILE = "</script><script>alert(1)</script><!-- <b onclick=x> &amp; \"'\u2028]]>{{ 7 * 7 }}"
KEPT = {*ERRORS, "no call", "invented", "unparsable", ""}


def poisoned(value: Any, names: bool = False) -> Any:
    """The same value with markup behind every string but those that the program itself defines.

    Args:
        names: whether the keys of the value, a dict, are such strings too, as those of `tools` are.
    """
    if isinstance(value, str):
        return value if value in KEPT else value + HOSTILE
    if isinstance(value, list):
        return [poisoned(item) for item in value]
    if isinstance(value, dict):
        return {poisoned(key) if names else key: poisoned(item, key == "tools") for key, item in value.items()}
    return value


def shape(page: Reader) -> Counter:
    return Counter((tag, tuple(sorted(attributes))) for tag, attributes in page.elements)


def test_markup_in_the_data_stays_text() -> None:
    hard = make_set(eight_rows(), "hard/renamed", "Tools renamed")
    gates = [{"flag": "--fail-under", "wanted": 0.9, "found": 0.75, "passed": False, "text": "exact calls"}]
    results, samples = make_report(make_set(eight_rows()), hard, gates=gates)
    clean, page = Reader(render_page(results, samples)), Reader(render_page(poisoned(results), poisoned(samples)))
    assert shape(page) == shape(clean)
    assert len(page.hidden["script"]) == 2
    assert f"tuned{HOSTILE} minus base{HOSTILE}, in points" in " ".join(page.words).replace("\n", " ")
    assert page.data["answers"][0]["raw"] == WORDS + HOSTILE
    assert "49" not in page.text


@settings(max_examples=15, deadline=None)
@given(st.text(), st.text(max_size=40))
def test_any_text_may_be_asked_and_answered(query, name) -> None:
    declared = [tool(name), *TOOLS]
    results, samples = make_report(make_set([row(query, said(STEPS), query)], tools=TOOLS))
    metrics = results["sets"][0]["models"][1]["metrics"]
    metrics["tools"][name] = metrics["tools"]["get_steps"]
    metrics["confusion"].append({"wanted": name, "called": "get_steps", "count": 1})
    samples[0]["tools"] = [t["function"]["name"] for t in declared]
    page = Reader(render_page(results, samples))
    assert page.open == []
    assert page.data["answers"][0]["raw"] == query
    assert page.data["toolsets"][0][0] == name
    assert len(page.hidden["script"]) == 2


def test_half_a_surrogate_pair_can_be_written() -> None:
    page = render_page(*make_report(make_set([row(WORDS, WORDS, "half \ud83d a pair")])))
    assert "half \ufffd a pair" in page.encode("utf-8").decode("utf-8")


def test_nothing_leads_out_of_the_page() -> None:
    text = render_page(*make_report(make_set(eight_rows()), make_set(eight_rows(), "hard/renamed", "Tools renamed")))
    page = Reader(text)
    leading = ("href", "src", "srcset", "xlink:href", "action", "formaction", "poster", "data", "background", "ping")
    targets = {found[name] for _, found in page.elements for name in leading if name in found}
    assert len(targets) > 20
    assert {target for target in targets if not target.startswith("#")} == {"data:,"}
    assert not re.search(r"https?:|//[a-z]|@import|url\(", "".join(page.hidden["style"]))
    assert not re.search(r"https?://", text)
    assert {tag for tag, _ in page.elements} & {"img", "iframe", "object", "embed", "base", "image", "use"} == set()
    (policy,) = [meta["content"] for meta in page.all("meta") if "http-equiv" in meta]
    assert policy.startswith("default-src 'none';")


def test_ids_are_unique_and_links_inside_the_page_arrive() -> None:
    page = read(make_set(eight_rows()), make_set(eight_rows(), "hard/renamed", "Tools renamed"))
    ids = [found["id"] for _, found in page.elements if "id" in found]
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in page.links if "=" not in link} <= set(ids)


def test_the_same_results_give_the_same_page() -> None:
    results, samples = make_report(make_set(eight_rows()), make_set(eight_rows(), "hard/renamed", "Tools renamed"))
    script = (
        "import json, sys; from fitcoach_tune.evaluate.page import render_page;"
        "sys.stdout.buffer.write(render_page(*json.load(sys.stdin)).encode())"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        input=json.dumps([results, samples]).encode(),
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        check=True,
    )
    assert done.stdout.decode() == render_page(results, samples)


# ------------------------------------------------------------------------------------------------ edges


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([], "No rows were asked."),
        ([row(said(STEPS), said(STEPS))] * 3, "Nothing: all 3 answers are right."),
        ([row(WORDS, "<start_function_call>oops")] * 3, "3 the answer cannot be parsed"),
        ([row(WORDS, "x" * 10_000)], "calls nothing, where a call is wanted"),
        ([row(WORDS, WORDS, "كم خطوة مشيت اليوم؟ 🙂")], "calls nothing, where a call is wanted"),
        ([row(said(HEART), WORDS, "كم خطوة مشيت اليوم؟ 🙂", [HEART])], "كم خطوة مشيت اليوم؟ 🙂"),
        ([row("", "", "Hello", [])], "1 neither a call nor a word, where words are wanted"),
        ([row(WORDS, said(STEPS, SLEEP), gold=[STEPS, HEART])], "get_heart_rate → get_sleeping_minutes"),
    ],
    ids=["no rows", "all right", "all wrong", "long", "right to left", "worse in arabic", "no answer", "two calls"],
)
def test_edges(rows, told) -> None:
    assert told in read(make_set(rows)).text


@pytest.mark.parametrize("name", ["<b>", "$x$", "a-->b", "مشي", "🙂🙂", "n" * 200, 'id="x"', "#0f0f01"])
def test_a_single_tool_of_any_name(name) -> None:
    results, samples = make_report(make_set([row(WORDS, said(STEPS))], tools=[tool("get_steps")]))
    text = json.dumps([results, samples], ensure_ascii=False).replace("get_steps", json.dumps(name)[1:-1])
    page = Reader(render_page(*json.loads(text)))
    assert page.open == []
    shown = name if len(name) <= 30 else "n" * 29 + "…"
    assert page.words.count(shown) >= 3  # a row and a column of the matrix, and a line of the bars
