"""Control tokens, and conversations as text: conformance, exact bytes, agreement with the chat template, bad input."""

from __future__ import annotations

import copy
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError

from fitcoach_tune import functiongemma as fg
from fitcoach_tune.errors import DataError
from fitcoach_tune.functiongemma import Call, ModelOutput, parse, render, render_call

from .strategies import (
    CASES,
    both,
    calling,
    conversations,
    render_jinja,
    sound_functions,
    thorough,
    tool_with,
    user,
)


def test_tokens():
    assert fg.CONTROL_TOKENS[fg.ESCAPE] == 52
    assert [fg.CONTROL_TOKENS[token] for token in fg.STOP_TOKENS] == [1, 106, 50]
    assert sorted(fg.CONTROL_TOKENS.values()) == [0, 1, 2, *range(46, 53), 105, 106]
    assert list(fg.RENAMED_TOKENS) == [f"<unused{i}>" for i in range(40, 47)]
    assert [fg.CONTROL_TOKENS[token] for token in fg.RENAMED_TOKENS.values()] == list(range(46, 53))
    assert fg.find_control_token("a <escape b <end_of_turn> <bos>") == "<end_of_turn>"
    assert fg.find_control_token("<escape b") is None


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
@pytest.mark.parametrize("renderer", [render, render_jinja])
def test_conformance_case(case, renderer):
    options = {"add_generation_prompt": case["add_generation_prompt"]}
    assert renderer(case["messages"], case["tools"], **options) == case["text"]


def test_all_conformance_calls_parse_back():
    ending_in_calls = [case for case in CASES if case["messages"][-1].get("tool_calls")]
    assert len(ending_in_calls) >= 6
    for case in ending_in_calls:
        expected = [Call(**entry["function"]) for entry in case["messages"][-1]["tool_calls"]]
        prompt = render(case["messages"][:-1], case["tools"], add_generation_prompt=True)
        assert case["text"].startswith(prompt)
        assert parse(case["text"].removeprefix(prompt)) == ModelOutput(tuple(expected), "")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (calling(("f", {"a": 1})), "<start_function_call>call:f{a:1}<end_function_call><start_function_response>"),
        ({"role": "assistant", "content": " Yes. "}, "Yes.<end_of_turn>\n"),
    ],
)
def test_the_last_message_ends_in_the_stop_token_after_its_prompt(answer, expected):
    assert both([user(), answer]) == both([user()], add_generation_prompt=True) + expected


def test_text_and_calls_share_a_turn():
    text = both([user(), calling(("f", {}), ("g", {}), content=" Let me look. ")])
    assert text.endswith(
        "<start_of_turn>model\nLet me look.<start_function_call>call:f{}<end_function_call>"
        "<start_function_call>call:g{}<end_function_call><start_function_response>"
    )


def test_results_and_further_calls_stay_in_one_turn():
    messages = [
        user(),
        calling(("f", {}), ("g", {})),
        {"role": "tool", "name": "f", "content": {"b": 1, "A": None}},
        {"role": "tool", "name": "g", "content": " x "},
        calling(("h", {})),
        {"role": "tool", "name": "h", "content": "1"},
    ]
    model = (
        "<start_of_turn>model\n"
        "<start_function_call>call:f{}<end_function_call><start_function_call>call:g{}<end_function_call>"
        "<start_function_response>response:f{A:None,b:1}<end_function_response>"
        "<start_function_response>response:g{value:<escape> x <escape>}<end_function_response>"
        "<start_function_call>call:h{}<end_function_call>"
        "<start_function_response>response:h{value:<escape>1<escape>}<end_function_response>"
    )
    assert both(messages, add_generation_prompt=True).endswith("hi<end_of_turn>\n" + model)
    messages += [{"role": "assistant", "content": "Done."}, user("more")]
    assert both(messages, add_generation_prompt=True).endswith(
        model + "Done.<end_of_turn>\n<start_of_turn>user\nmore<end_of_turn>\n<start_of_turn>model\n"
    )


def test_an_empty_answer_after_a_result_closes_the_turn():
    messages = [user(), calling(("f", {})), {"role": "tool", "name": "f", "content": {}}, {"role": "assistant"}]
    assert both(messages).endswith("response:f{}<end_function_response><end_of_turn>\n")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"name": "f", "content": "2"}, "response:f{value:<escape>2<escape>}"),
        ({"name": "f", "content": 2}, "response:f{value:2}"),
        ({"name": "f", "content": True}, "response:f{value:true}"),
        ({"name": "f", "content": None}, "response:f{value:None}"),
        ({"name": "f"}, "response:f{value:None}"),
        ({"name": "f", "content": [60, 120]}, "response:f{value:[60,120]}"),
        ({"name": "f", "content": []}, "response:f{value:[]}"),
        ({"name": "f", "content": [{"type": "text", "text": "a"}]}, "response:f{value:<escape>a<escape>}"),
        ({"name": "f", "content": {"a": {"b": [1.5]}}}, "response:f{a:{b:[1.5]}}"),
        ({"content": {"name": "g", "response": {"a": 1}}}, "response:g{a:1}"),
        ({"tool_call_id": "2", "content": "x"}, "response:g{value:<escape>x<escape>}"),
        ({"tool_call_id": "1", "content": "x"}, "response:f{value:<escape>x<escape>}"),
        (
            {"content": [{"name": "f", "response": {"a": 1}}, {"name": "g", "response": "b"}]},
            "response:f{a:1}<end_function_response><start_function_response>response:g{value:<escape>b<escape>}",
        ),
    ],
)
def test_tool_result(message, expected):
    call = calling(("f", {}), ("g", {}))
    call["tool_calls"][0]["id"] = "1"
    call["tool_calls"][1]["id"] = "2"
    text = both([user(), call, {"role": "tool", **message}], add_generation_prompt=True)
    assert text.endswith(f"<end_function_call><start_function_response>{expected}<end_function_response>")


def test_a_repeated_call_id_means_the_last_call_with_it():
    messages = []
    for name in ("f", "g"):
        call = calling((name, {}))
        call["tool_calls"][0]["id"] = "same"
        messages += [call, {"role": "tool", "tool_call_id": "same", "content": "1"}]
    assert re.findall(r"response:(\w+){", both([user(), *messages])) == ["f", "g"]


def test_list_content_is_trimmed_part_by_part():
    parts = [{"type": "text", "text": " a "}, {"type": "text", "text": "\nb"}]
    for role in ("developer", "user"):
        assert both([{"role": role, "content": parts}]) == f"<bos><start_of_turn>{role}\nab<end_of_turn>\n"


def test_arguments_sort_without_case_and_print_as_python_does():
    arguments = {"b": 1e-07, "A": None, "a": -0.0, "B": 10**30, "ä": [True, [], {}], "c": {"Z": "ü\n", "y": 1.0}}
    text = render_call(Call("f", arguments))
    inner = "A:None,a:-0.0,b:1e-07,B:" + "1" + "0" * 30 + ",c:{y:1.0,Z:<escape>ü\n<escape>},ä:[true,[],{}]"
    assert text == "<start_function_call>call:f{" + inner + "}<end_function_call>"
    assert both([user(), calling(("f", arguments))]).endswith(text + "<start_function_response>")


def test_json_text_arguments_are_parsed():
    expected = render([user(), calling(("f", {"b": [1, 2.0], "a": "x"}))])
    assert render([user(), calling(("f", '{"b": [1, 2.0], "a": "x"}'))]) == expected
    with pytest.raises(TemplateError, match="parse the JSON text first"):  # Jinja cannot; it must not paste it raw
        render_jinja([user(), calling(("f", '{"b": 1}'))])
    for empty in ("{}", "", " ", None):
        assert both([user(), calling(("f", empty))]).endswith("call:f{}<end_function_call><start_function_response>")


def test_the_callers_data_is_left_alone():
    messages = [user(" a "), calling(("f", '{"b": 1, "a": 2}'))]
    tools = [tool_with({"b": {"type": "string"}, "a": {"type": "string"}})]
    before = copy.deepcopy((messages, tools))
    render(messages, tools)
    assert (messages, tools) == before


BAD_CONVERSATIONS = {
    "call without result": ([user(), calling(("f", {})), user()], r"messages\[1\]|messages\[2\]"),
    "result without call": ([user(), {"role": "tool", "name": "f", "content": "1"}], r"messages\[1\]"),
    "result without name": ([user(), calling(("f", {})), {"role": "tool", "content": "1"}], r"messages\[2\]"),
    "unknown role": ([{"role": "function", "content": "x"}], r"messages\[0\]\.role"),
    "no role": ([{"content": "x"}], r"messages\[0\]\.role"),
    "number as content": ([user(5)], r"messages\[0\]\.content"),
    "image": ([user([{"type": "image", "url": "x"}])], r"messages\[0\]\.content"),
    "object as content": ([user({"text": "x"})], r"messages\[0\]\.content"),
    "call without name": ([calling((None, {}))], r"messages\[0\]\.tool_calls\[0\]"),
    "list arguments": ([user(), calling(("f", [1]))], r"messages\[1\]\.tool_calls\[0\]\.arguments"),
    "broken JSON": ([user(), calling(("f", "{"))], r"messages\[1\]\.tool_calls\[0\]\.arguments"),
    "NaN in JSON": ([user(), calling(("f", '{"a": NaN}'))], r"messages\[1\]\.tool_calls\[0\]\.arguments"),
    "deep JSON": ([user(), calling(("f", "[" * 100_000))], r"messages\[1\]\.tool_calls\[0\]\.arguments"),
}


@pytest.mark.parametrize(("messages", "where"), BAD_CONVERSATIONS.values(), ids=BAD_CONVERSATIONS)
def test_bad_conversation_says_where(messages, where):
    with pytest.raises(DataError) as caught:
        render(messages)
    assert re.fullmatch(where, caught.value.where)
    assert caught.value.hint
    with pytest.raises(TemplateError):
        render_jinja(messages)


def test_a_message_that_is_no_object_is_a_data_error():
    with pytest.raises(DataError, match=r"messages\[1\]"):
        render([user(), "hello"])


def test_arguments_that_cannot_be_written_are_data_errors():
    for arguments, error in (({"a": 10**5000}, "number"), ({1: 2}, "not a string")):
        with pytest.raises(DataError, match=error):
            render_call(Call("f", arguments))


@thorough
@given(conversations(), st.none() | st.lists(sound_functions, max_size=2), st.booleans())
def test_renderers_agree(messages, tools, add_generation_prompt):
    both(messages, tools, add_generation_prompt=add_generation_prompt)


def test_jinja_takes_bos_from_the_tokenizer():
    assert render_jinja([user()], bos_token="<bos>") == render([user()])
    assert render_jinja([user()], bos_token=None) == render([user()])


def test_saved_tokenizer_renders_without_the_package(tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate(["<unk>", *fg.CONTROL_TOKENS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>")
    tokenizer.chat_template = fg.chat_template()
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for case in CASES:
        options = {"add_generation_prompt": case["add_generation_prompt"], "tokenize": False}
        assert loaded.apply_chat_template(case["messages"], tools=case["tools"], **options) == case["text"]
