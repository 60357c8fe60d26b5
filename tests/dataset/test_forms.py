"""Rows of every form become examples, and what is not a row is one clear error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fitcoach_tune import functiongemma
from fitcoach_tune.dataset import Example, read_examples, validate
from fitcoach_tune.errors import DataError
from fitcoach_tune.functiongemma import TRIGGER, Call
from fitcoach_tune.gold import gold_of

from .rows import (
    CONTAINERS,
    FORMS,
    RUN,
    STEPS,
    STEPS_CALL,
    TOOLS,
    WIRE,
    WORKOUT,
    as_json,
    as_jsonl,
    as_parquet,
    assistant,
    called,
    conversation,
    user,
)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_in_every_container(form, container, tmp_path):
    row = FORMS[form]
    if container is as_parquet:  # which has no empty objects; two properties each keep Arrow from needing one
        row = json.loads(json.dumps(row).replace('"properties": {}', '"properties": {"never": null}'))
    examples, source = read_examples(container([row, row], tmp_path))
    validate(examples)
    assert [example.gold for example in examples] == [[Call("log_workout", RUN)]] * 2
    assert examples[0].query == "log it"
    assert examples[0].tools == TOOLS
    assert examples[0].tools is examples[1].tools
    assert source.rows == 2
    assert len(source.sha256) == 64
    roles = [message["role"] for message in examples[0].messages]
    assert roles[-2:] == ["user", "assistant"]
    assert all(set(message) <= {"role", "content", "tool_calls"} for message in examples[0].messages)


def test_conversations_with_results_parallel_calls_and_text(tmp_path):
    first, second = {"id": "a", **called("log_workout", RUN)}, {"id": "b", **called("get_steps", {})}
    messages = [
        {"role": "developer", "content": "Help.", "name": None},
        {"role": "user", "content": "both"},
        {"role": "assistant", "content": "One moment.", "tool_calls": [first, second]},
        {"role": "tool", "tool_call_id": "b", "content": {"steps": 2400, "unit": None}},
        {"role": "tool", "tool_call_id": "a", "content": "logged"},
        {"role": "assistant", "content": "Done."},
        {"role": "user", "content": "and again"},
        {"role": "assistant", "tool_calls": [called("get_steps", {})]},
        {"role": "tool", "content": [{"type": "text", "text": "2500"}]},
        {"role": "assistant", "content": "2500 steps."},
    ]
    [example], _ = read_examples(as_jsonl([{"messages": messages, "tools": TOOLS}], tmp_path))
    validate([example])
    assert example.gold == []
    assert example.query == "and again"
    assert example.messages == [
        {"role": "developer", "content": "Help."},
        {"role": "user", "content": "both"},
        {
            "role": "assistant",
            "content": "One moment.",
            "tool_calls": [called("log_workout", RUN), called("get_steps", {})],
        },
        {"role": "tool", "name": "get_steps", "content": {"steps": 2400, "unit": None}},
        {"role": "tool", "name": "log_workout", "content": "logged"},
        {"role": "assistant", "content": "Done."},
        {"role": "user", "content": "and again"},
        {"role": "assistant", "content": "", "tool_calls": [called("get_steps", {})]},
        {"role": "tool", "name": "get_steps", "content": "2500"},
        {"role": "assistant", "content": "2500 steps."},
    ]
    parallel = {"messages": [messages[1], {"role": "assistant", "tool_calls": [second, first]}], "tools": TOOLS}
    [example], _ = read_examples(as_jsonl([parallel], tmp_path))
    assert example.gold == [Call("get_steps", {}), Call("log_workout", RUN)]


def test_rows_render_to_the_bytes_of_the_published_template(tmp_path):
    cases = json.loads((Path(__file__).parents[1] / "format_cases.json").read_text())
    cases = [case for case in cases if case["messages"][-1]["role"] == "assistant"]
    assert len(cases) >= 9
    rows = [{"messages": json.dumps(case["messages"]), "tools": json.dumps(case["tools"])} for case in cases]
    for container in (as_jsonl, as_parquet):
        examples, _ = read_examples(container(rows, tmp_path))
        validate(examples)
        texts = [functiongemma.render(example.messages, example.tools) for example in examples]
        assert texts == [case["text"] for case in cases]


@pytest.mark.parametrize(
    "answer",
    ["You walked far.", '{"steps": 5}', "[1, 2]", "{not json", "[]", '[{"name": "Bob"}]', '{"name": "Bob", "age": 3}'],
)
def test_what_cannot_be_told_apart_is_text(answer, tmp_path):
    [example], _ = read_examples(
        as_jsonl([{"system": "", "user": "hi", "assistant": answer, "tools": TOOLS}], tmp_path)
    )
    assert example.messages == [{"role": "user", "content": "hi"}, {"role": "assistant", "content": answer}]
    assert example.gold == []


def test_a_bare_name_is_a_call_without_arguments_after_the_trigger(tmp_path):
    [example], _ = read_examples(
        as_jsonl([{"user_query": "steps?", "function_call": "get_steps"}], tmp_path), tools=TOOLS
    )
    assert example.messages[0] == {"role": "developer", "content": TRIGGER}
    assert example.gold == [Call("get_steps", {})]


def test_tools_in_the_row_win_over_the_given_ones(tmp_path):
    rows = [{"user": "a", "assistant": "b", "tools": [STEPS]}, {"user": "a", "assistant": "b", "tools": None}]
    examples, _ = read_examples(as_jsonl(rows, tmp_path), tools=[WORKOUT["function"]])
    assert [example.tools for example in examples] == [[STEPS], [WORKOUT]]
    with pytest.raises(DataError, match=r"rows\.jsonl:2: tools: .*--tools"):
        read_examples(as_jsonl(rows, tmp_path))


def test_example_is_what_it_says():
    example = Example([user("a"), {"role": "assistant", "content": "", "tool_calls": [STEPS_CALL]}], TOOLS, "here:1")
    assert example.gold == [Call("get_steps", {})]
    assert example.query == "a"
    validate([example])
    validate([])


# Further answers

RUN_CALL = Call("log_workout", RUN)
ANSWERS = {
    "a call": ({"name": "log_workout", "arguments": RUN}, [RUN_CALL]),
    "a call as OpenAI writes it": (called("log_workout", json.dumps(RUN)), [RUN_CALL]),
    "a list of calls": ([called("log_workout", RUN), STEPS_CALL], [RUN_CALL, Call("get_steps", {})]),
    "a message": ({"tool_calls": [called("log_workout", RUN)]}, [RUN_CALL]),
    "JSON": (json.dumps([called("log_workout", RUN)]), [RUN_CALL]),
    "the wire format": (WIRE, [RUN_CALL]),
    "a bare name": (" get_steps ", [Call("get_steps", {})]),
    "words": ("Which workout?", []),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("container", CONTAINERS)
def test_a_row_of_any_form_may_accept_further_answers(form, container, tmp_path):
    row = FORMS[form] | {"acceptable_answers": json.dumps([answer for answer, _ in ANSWERS.values()])}
    if container is as_parquet:
        row = json.loads(json.dumps(row).replace('"properties": {}', '"properties": {"never": null}'))
    [example], _ = read_examples(container([row], tmp_path))
    validate([example])
    assert example.acceptable == gold_of([RUN_CALL], TOOLS, [calls for _, calls in ANSWERS.values()])


@pytest.mark.parametrize("answer", ANSWERS)
def test_each_kind_of_further_answer(answer, tmp_path):
    given, calls = ANSWERS[answer]
    row = {"user": "a", "assistant": "b", "tools": TOOLS, "acceptable_answers": [given]}
    for container in (as_jsonl, as_json, as_parquet):
        if container is as_parquet:
            row = json.loads(json.dumps(row).replace("{}", '{"never": null}'))
        [example], _ = read_examples(container([row], tmp_path))
        validate([example])
        assert example.acceptable == gold_of([], TOOLS, [calls])
        assert not example.acceptable.wants_call


@pytest.mark.parametrize("none", [None, [], "[]", "null"])
def test_rows_without_further_answers(none, tmp_path):
    row = FORMS["query, value"]
    examples, _ = read_examples(as_jsonl([row, row | {"acceptable_answers": none}], tmp_path))
    assert [example.acceptable for example in examples] == [None, None]


def test_further_answers_belong_to_the_last_message(tmp_path):
    messages = [*conversation([STEPS_CALL]), {"role": "tool", "content": "1"}, {"role": "assistant", "content": "One."}]
    row = {"messages": messages, "tools": TOOLS, "acceptable_answers": ["get_steps"]}
    [example], _ = read_examples(as_jsonl([row], tmp_path))
    assert example.acceptable == gold_of([], TOOLS, [[Call("get_steps", {})]])


@pytest.mark.parametrize(
    ("cell", "field", "part"),
    [
        ("get_steps", "acceptable_answers", "not valid JSON"),
        ({"name": "get_steps"}, "acceptable_answers", "must be a list of answers, not an object"),
        ([" "], "acceptable_answers[0]", "is empty"),
        ([None], "acceptable_answers[0]", "must be a call or a list of calls"),
        (["get_steps", []], "acceptable_answers[1]", "not an empty list"),
        (['{"name": "get_steps"'], "acceptable_answers[0]", "not valid JSON"),
        ([{"arguments": {}}], "acceptable_answers[0].name", "needs the name"),
        ([[STEPS_CALL, {"name": "f", "args": {}}]], "acceptable_answers[0][1].args", "rename it"),
        (["<start_function_call>call:f{"], "acceptable_answers[0]", "not in the wire format"),
    ],
)
def test_further_answers_that_cannot_be_read(cell, field, part, tmp_path):
    with pytest.raises(DataError) as caught:
        read_examples(as_jsonl([FORMS["query, value"] | {"acceptable_answers": cell}], tmp_path))
    [problem] = caught.value.details
    assert problem.startswith(f"rows.jsonl:1: {field}: ")
    assert part in problem


# What rows may not say


@pytest.mark.parametrize(
    ("messages", "field", "part"),
    [
        ([], "messages", "is empty"),
        ("hello", "messages", "not valid JSON"),
        ({"role": "user"}, "messages", "list of messages, not an object"),
        (["hi"], "messages[0]", "a message must be an object, not text"),
        ([{"role": "bot", "content": "x"}], "messages[0].role", "'bot' is not a role"),
        ([{"content": "x"}], "messages[0].role", "null is not a role"),
        ([user()], "messages[0]", "last message must be the assistant's"),
        ([assistant(text="x")], "messages[0]", "must follow a user message"),
        ([{"role": "system", "content": "x"}, assistant(text="x")], "messages[1]", "must follow a user message"),
        ([user(), {"role": "system", "content": "x"}], "messages[1]", "can only be the first"),
        ([user(), user()], "messages[1]", "join the two"),
        ([user(), assistant(text="x"), assistant(text="y")], "messages[2]", "must follow a user message"),
        ([user(" \n"), assistant(text="x")], "messages[0].content", "is empty"),
        ([user(None), assistant(text="x")], "messages[0].content", "must be text, not null"),
        ([user(5), assistant(text="x")], "messages[0].content", "must be text, not a number"),
        ([user([{"type": "image"}]), assistant(text="x")], "messages[0].content", "the model reads nothing else"),
        ([user(), assistant(text=" ")], "messages[1].content", "is empty"),
        ([user(), assistant()], "messages[1].content", "is empty"),
        ([user(), {"role": "tool", "content": "x"}], "messages[1]", "answers no call"),
        ([user(), assistant(STEPS_CALL), user()], "messages[2]", "call to 'get_steps' has no result"),
        ([user(), assistant(STEPS_CALL, STEPS_CALL), {"role": "tool", "content": "1"}, assistant(text="x")],
         "messages[3]", "has no result"),
        ([user(), assistant(STEPS_CALL), {"role": "tool", "content": "1"}, user()], "messages[3]", "let the assistant"),
        ([user(), assistant(STEPS_CALL), {"role": "tool", "content": "1"}, {"role": "tool", "content": "1"}],
         "messages[3]", "answers no call"),
        ([user(), assistant(STEPS_CALL), {"role": "tool", "name": "x", "content": "1"}], "messages[2].name", "'x' was"),
        ([user(), assistant(STEPS_CALL), {"role": "tool", "content": 5}], "messages[2].content", "text or an object"),
        ([{**user(), "tool_calls": [STEPS_CALL]}], "messages[0].tool_calls", "only the assistant calls"),
        ([user(), {"role": "assistant", "tool_calls": 5}], "messages[1].tool_calls", "must be a list of calls"),
        ([user(), assistant("get_steps")], "messages[1].tool_calls[0]", "a call must be"),
        ([user(), assistant({"arguments": {}})], "messages[1].tool_calls[0].name", "needs the name"),
        ([user(), assistant(called("get_steps", None))], "messages[1].tool_calls[0].arguments", "not null"),
        ([user(), assistant(called("get_steps", "[]"))], "messages[1].tool_calls[0].arguments", "not a list"),
        ([user(), assistant(called("get_steps", "{"))], "messages[1].tool_calls[0].arguments", "not valid JSON"),
        ([user(), assistant(called("get_steps", '{"a":1,"a":2}'))], "messages[1].tool_calls[0].arguments", "twice"),
        ([user(), assistant({"name": "get_steps", "args": {}})], "messages[1].tool_calls[0].args", "rename it"),
    ],
)  # fmt: skip
def test_conversations_that_make_no_sense(messages, field, part, tmp_path):
    with pytest.raises(DataError) as caught:
        read_examples(as_jsonl([{"messages": messages, "tools": TOOLS}], tmp_path))
    [problem] = caught.value.details
    assert problem.startswith(f"rows.jsonl:1: {field}: ")
    assert part in problem


@pytest.mark.parametrize(
    ("row", "field", "part"),
    [
        ({"user": "", "assistant": "x"}, "user", "is empty"),
        ({"user": 3, "assistant": "x"}, "user", "must be text, not a number"),
        ({"user": "a", "assistant": "  "}, "assistant", "is empty"),
        ({"user": "a", "assistant": 3}, "assistant", "a call or a list of calls"),
        ({"user": "a", "assistant": []}, "assistant", "not an empty list"),
        ({"user": "a", "assistant": {"tool_calls": []}}, "assistant.tool_calls", "not an empty list"),
        ({"user": "a", "assistant": '{"name": "f", "arguments": {"x": 1, "x": 2}}'}, "assistant", "stands twice"),
        ({"user": "a", "assistant": "<start_function_call>call:f{"}, "assistant", "not in the wire format"),
        ({"user": "a", "assistant": WIRE + "<end_of_turn>more"}, "assistant", "text after <end_of_turn>"),
        ({"user": "a", "assistant": "<start_of_turn>model\n" + WIRE}, "assistant", "<start_of_turn> outside its place"),
        ({"system": 3, "user": "a", "assistant": "x"}, "system", "must be text"),
        ({"user_query": "a", "function_call": "get_steps()"}, "function_call", "is not a call that can be read"),
        ({"user_query": "a", "function_call": "{get_steps}"}, "function_call", "not valid JSON"),
        ({"user_query": "a", "function_call": "[]"}, "function_call", "not an empty list"),
        ({"user_query": " ", "function_call": "get_steps"}, "user_query", "is empty"),
        ({"user": "a", "assistant": "x", "tools": "nope"}, "tools", "not valid JSON"),
        ({"user": "a", "assistant": "x", "tools": [{}]}, "tools[0].name", "needs a name"),
    ],
)
def test_flat_rows_that_make_no_sense(row, field, part, tmp_path):
    with pytest.raises(DataError) as caught:
        read_examples(as_jsonl([row], tmp_path), tools=TOOLS)
    [problem] = caught.value.details
    assert problem.startswith(f"rows.jsonl:1: {field}: ")
    assert part in problem


# Any JSON value as a row


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
words = st.sampled_from(["", "get_steps", "{}", "[]", '{"name":', WIRE, "<escape>", "\ud800", "hi", "user", "tool"])
cells = words | json_values | st.deferred(lambda: st.lists(messages | calls, max_size=3))
calls = st.fixed_dictionaries(
    {}, optional={"name": cells, "function": cells, "arguments": cells, "type": cells, "id": words}
)
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "system", "x", None])},
    optional={"content": cells, "tool_calls": cells, "function_call": cells, "name": cells, "tool_call_id": cells},
)
COLUMNS = [
    "messages", "tools", "system", "user", "assistant", "user_query", "function_call", "acceptable_answers",
    "id", "question", "function", "ground_truth", "possible_answer",
]  # fmt: skip
rows_like = st.dictionaries(st.sampled_from(COLUMNS), cells, max_size=4)


@st.composite
def nearly_rows(draw):
    """A sound row in which one value, anywhere, is replaced or removed."""
    row = draw(st.sampled_from([*FORMS.values(), LONG_ROW, BFCL_ROW]))
    if draw(st.booleans()):
        answers = st.sampled_from([answer for answer, _ in ANSWERS.values()])
        row = row | {"acceptable_answers": draw(st.lists(answers, max_size=3))}
    row = json.loads(json.dumps(row))
    place, key = row, draw(st.sampled_from(sorted(row)))
    while isinstance(place[key], (dict, list)) and place[key] and draw(st.integers(0, 3)):
        place = place[key]
        key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
    if draw(st.booleans()):
        place[key] = draw(cells)
    else:
        del place[key]
    return row


LONG_ROW = {
    "messages": [
        *conversation([called("log_workout", RUN), called("get_steps", {})]),
        {"role": "tool", "name": "get_steps", "content": {"steps": [1, {"a": "b"}]}},
        {"role": "tool", "name": "log_workout", "content": "done"},
        {"role": "assistant", "content": [{"type": "text", "text": "Done."}]},
    ],
    "tools": TOOLS,
}
BFCL_ROW = {
    "id": "simple_python_0",
    "question": [[user()]],
    "function": [tool["function"] for tool in TOOLS],
    "ground_truth": [{"log_workout": {"kind": ["run", "swim"], "minutes": ["", 30]}}],
}


@settings(
    max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
@given(row=json_values | rows_like | nearly_rows(), given_tools=st.booleans(), whole=st.booleans())
def test_any_json_value_is_a_row_or_a_data_error(row, given_tools, whole, tmp_path):
    path = as_json([row], tmp_path) if whole else as_jsonl([row], tmp_path)
    refused = None
    try:
        examples, source = read_examples(path, tools=TOOLS if given_tools else None)
        validate(examples)
    except DataError as error:
        refused = error
    if refused:
        assert "rows.json" in str(refused)
        return
    assert source.rows == len(examples) == 1
    assert examples[0].acceptable is None or examples[0].acceptable.calls == tuple(examples[0].gold)
    text = functiongemma.render(examples[0].messages, examples[0].tools)
    assert text.endswith(("<end_of_turn>\n", "<start_function_response>"))
    for call in examples[0].gold:
        assert functiongemma.render_call(call) in text
