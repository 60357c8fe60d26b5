"""The wire format: conformance, agreement of the two renderers, round trips, hostile output, hazards."""

from __future__ import annotations

import ast
import copy
import json
import pickle
import re
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from fitcoach_tune import functiongemma as fg
from fitcoach_tune.errors import DataError
from fitcoach_tune.functiongemma import Call, ModelOutput, ParseError, call_problems, parse, render, tool_problems

CASES = json.loads((Path(__file__).parent / "format_cases.json").read_text(encoding="utf-8"))
END = "<end_function_call>"
thorough = settings(deadline=None, database=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])


def render_jinja(messages, tools=None, *, add_generation_prompt=False, **variables):
    """What `apply_chat_template(tokenize=False)` gives: transformers' own compiler, sandbox and input conversion."""
    rendered, _ = render_jinja_template(
        [copy.deepcopy(messages)],
        tools=tools,
        chat_template=fg.chat_template(),
        add_generation_prompt=add_generation_prompt,
        **variables,
    )
    return rendered[0]


def both(messages, tools=None, **options):
    """Render in Python after checking that the template agrees."""
    text = render(messages, tools, **options)
    assert render_jinja(messages, tools, **options) == text
    return text


def user(text="hi"):
    return {"role": "user", "content": text}


def calling(*calls, **more):
    entries = [{"type": "function", "function": {"name": name, "arguments": arguments}} for name, arguments in calls]
    return {"role": "assistant", "tool_calls": entries, **more}


def tool_with(properties=None, **parameters):
    schema = {"type": "object", "properties": properties or {}, **parameters}
    return {"type": "function", "function": {"name": "f", "description": "F", "parameters": schema}}


def declared(properties=None, **parameters):
    """The text of `parameters` in the declaration of a tool."""
    tool = tool_with(properties, **parameters)
    text = both([user()], [tool])
    declaration = fg.render_declaration(tool)
    assert declaration in text
    head = "<start_function_declaration>declaration:f{description:<escape>F<escape>,parameters:"
    assert declaration.startswith(head)
    return declaration.removeprefix(head).removesuffix("}<end_function_declaration>")


# --- Conformance ------------------------------------------------------------------------------------------------------


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


def test_tokens():
    assert fg.CONTROL_TOKENS[fg.ESCAPE] == 52
    assert [fg.CONTROL_TOKENS[token] for token in fg.STOP_TOKENS] == [1, 106, 50]
    assert sorted(fg.CONTROL_TOKENS.values()) == [0, 1, 2, *range(46, 53), 105, 106]
    assert list(fg.RENAMED_TOKENS) == [f"<unused{i}>" for i in range(40, 47)]
    assert [fg.CONTROL_TOKENS[token] for token in fg.RENAMED_TOKENS.values()] == list(range(46, 53))
    assert fg.find_control_token("a <escape b <end_of_turn> <bos>") == "<end_of_turn>"
    assert fg.find_control_token("<escape b") is None


def test_imports_only_the_standard_library():
    tree = ast.parse(Path(fg.__file__).read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    standard = {"__future__", "json", "math", "re", "collections.abc", "dataclasses", "importlib", "typing"}
    assert imported == standard | {"fitcoach_tune.errors"}


# --- Exact bytes of conversations -------------------------------------------------------------------------------------


def test_call_that_ends_the_conversation_ends_in_the_stop_token():
    prompt = both([user()], add_generation_prompt=True)
    whole = both([user(), calling(("f", {"a": 1}))])
    supervised = whole.removeprefix(prompt)
    assert supervised == "<start_function_call>call:f{a:1}<end_function_call><start_function_response>"
    assert parse(supervised) == ModelOutput((Call("f", {"a": 1}),), "")


def test_answer_that_ends_the_conversation_ends_in_end_of_turn():
    prompt = both([user()], add_generation_prompt=True)
    assert both([user(), {"role": "assistant", "content": " Yes. "}]).removeprefix(prompt) == "Yes.<end_of_turn>\n"


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
    assert text.endswith(f"{END}<start_function_response>{expected}<end_function_response>")


def test_a_repeated_call_id_means_the_last_call_with_it():
    messages = []
    for name in ("f", "g"):
        call = calling((name, {}))
        call["tool_calls"][0]["id"] = "same"
        messages += [call, {"role": "tool", "tool_call_id": "same", "content": "1"}]
    assert re.findall(r"response:(\w+){", both([user(), *messages])) == ["f", "g"]


def test_parameters_without_type_lose_a_brace_as_in_the_published_template():
    tool = {"name": "f", "parameters": {"properties": {"a": {"type": "string"}}, "required": ["a"]}}
    assert fg.render_declaration(tool) == (
        "<start_function_declaration>declaration:f{description:<escape><escape>,parameters:{properties:{"
        "a:{description:<escape><escape>,type:<escape>STRING<escape>}},required:[<escape>a<escape>],}"
        "<end_function_declaration>"
    )
    both([user()], [tool])


def test_list_content_is_trimmed_part_by_part():
    parts = [{"type": "text", "text": " a "}, {"type": "text", "text": "\nb"}]
    for role in ("developer", "user"):
        assert both([{"role": role, "content": parts}]) == f"<bos><start_of_turn>{role}\nab<end_of_turn>\n"


def test_arguments_sort_without_case_and_print_as_python_does():
    arguments = {"b": 1e-07, "A": None, "a": -0.0, "B": 10**30, "ä": [True, [], {}], "c": {"Z": "ü\n", "y": 1.0}}
    text = fg.render_call(Call("f", arguments))
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


def test_bad_message_and_tool_objects_are_data_errors():
    with pytest.raises(DataError, match=r"messages\[1\]"):
        render([user(), "hello"])
    for tool in ({}, {"function": {"description": "no name"}}, {"name": 5}, "f"):
        with pytest.raises(DataError, match="no name"):
            render([user()], [tool])
    with pytest.raises(DataError, match="properties"):
        render([user()], [{"name": "f", "parameters": {"type": "object", "properties": ["a"]}}])
    with pytest.raises(DataError, match="list"):
        render([user()], [tool_with(required="a")])


def test_values_too_deep_or_too_long_to_write_are_data_errors():
    value = schema = {"type": "string"}
    for _ in range(100):
        value, schema = [value], {"type": "object", "properties": {"a": schema}}
    with pytest.raises(DataError, match="nested deeper than 64"):
        fg.render_call(Call("f", {"a": value}))
    with pytest.raises(DataError, match="nested deeper than 64"):
        fg.render_declaration(tool_with({"a": schema}))
    with pytest.raises(DataError, match="number"):
        fg.render_call(Call("f", {"a": 10**5000}))
    with pytest.raises(DataError, match="not a string"):
        fg.render_call(Call("f", {1: 2}))


# --- Exact bytes of declarations --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ({"name": "f"}, "declaration:f{description:<escape><escape>}"),
        ({"name": "f", "description": "F", "parameters": {}}, "declaration:f{description:<escape>F<escape>}"),
        ({"name": "f", "description": "F", "parameters": None}, "declaration:f{description:<escape>F<escape>}"),
        (
            {"name": "f", "description": " é\n", "parameters": {"type": "object"}, "strict": True, "return": {"a": 1}},
            "declaration:f{description:<escape> é\n<escape>,parameters:{type:<escape>OBJECT<escape>}}",
        ),
    ],
)
def test_declaration_of_function(function, expected):
    framed = f"<start_function_declaration>{expected}<end_function_declaration>"
    for tool in (function, {"type": "function", "function": function}):
        assert fg.render_declaration(tool) == framed
        assert both([user()], [tool, tool]).startswith(f"<bos><start_of_turn>developer\n{framed}{framed}<end_of_turn>")


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string"}, "{description:<escape><escape>,type:<escape>STRING<escape>}"),
        (
            {"type": "integer", "description": "D", "enum": [1], "default": 2, "minimum": 0, "format": "int32"},
            "{description:<escape>D<escape>,type:<escape>INTEGER<escape>}",
        ),
        (
            {"type": "string", "enum": ["b", "a"], "nullable": True},
            "{description:<escape><escape>,enum:[<escape>b<escape>,<escape>a<escape>],type:<escape>STRING<escape>}",
        ),
        (
            {"type": "object", "properties": {}},
            "{description:<escape><escape>,properties:{},type:<escape>OBJECT<escape>}",
        ),
        (
            {"type": "array", "items": {}},
            "{description:<escape><escape>,type:<escape>ARRAY<escape>}",
        ),
        (
            {"type": "array", "items": {"type": "string", "enum": ["x"], "minLength": 1, "description": "I"}},
            "{description:<escape><escape>,items:{description:<escape>I<escape>,enum:[<escape>x<escape>],minLength:1,"
            "type:<escape>STRING<escape>},type:<escape>ARRAY<escape>}",
        ),
        (
            {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
            "{description:<escape><escape>,items:{items:{<escape>type<escape>:<escape>integer<escape>},"
            "type:<escape>ARRAY<escape>},type:<escape>ARRAY<escape>}",
        ),
        (
            {"type": "array", "items": {"type": ["string", "null"], "title": None, "properties": None}},
            "{description:<escape><escape>,items:{type:[<escape>STRING<escape>,<escape>NULL<escape>]},"
            "type:<escape>ARRAY<escape>}",
        ),
        (
            {"type": "string", "enum": [{"k": "v"}, None, 1]},
            "{description:<escape><escape>,enum:[{<escape>k<escape>:<escape>v<escape>},None,1],"
            "type:<escape>STRING<escape>}",
        ),
        (  # a hazard: its other keywords turn into parameters
            {"type": "object", "description": "D", "additionalProperties": {"type": "string"}},
            "{description:<escape>D<escape>,properties:{additionalProperties:{description:<escape><escape>,"
            "type:<escape>STRING<escape>}},type:<escape>OBJECT<escape>}",
        ),
        (  # a hazard: these two are taken for keywords
            {"type": "object", "properties": {"type": {"type": "string"}, "nullable": {"type": "string"}}},
            "{description:<escape><escape>,properties:{},type:<escape>OBJECT<escape>}",
        ),
        (None, "{description:<escape><escape>,type:<escape><escape>}"),
        ({"type": ["string", "null"]}, "{description:<escape><escape>,type:<escape>['STRING', 'NULL']<escape>}"),
    ],
)
def test_declaration_of_parameter(schema, expected):
    assert declared({"p": schema}) == "{properties:{p:" + expected + "},type:<escape>OBJECT<escape>}"


def test_parameters_sort_without_case_and_required_keeps_its_order():
    schema = {"type": "string"}
    text = declared({"b": schema, "C": schema, "a": schema}, required=["b", "a"])
    assert re.findall(r"(\w+):\{description", text) == ["a", "b", "C"]
    assert "},required:[<escape>b<escape>,<escape>a<escape>],type:" in text


# --- The two renderers agree ------------------------------------------------------------------------------------------

pieces = st.sampled_from(["{", "}", ",", ":", "[", "]", "\n", " ", "<", "<escape", "escape>", "True", "None", "1", "é"])
texts = st.one_of(st.text(max_size=12), st.lists(pieces, max_size=6).map("".join))
keys = st.one_of(st.sampled_from(["a", "A", "b", "items", "values", "name", "type"]), st.text(min_size=1, max_size=5))
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts)
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=8
)
arguments_strategy = st.dictionaries(keys, json_values, max_size=4)
names = st.sampled_from(["f", "get_steps", "a.b-c"])

parameter_names = st.sampled_from(["a", "B", "b", "unit", "items", "values"])
required = st.lists(parameter_names, max_size=2, unique=True)


def _good_containers(inner):
    objects = st.fixed_dictionaries(
        {
            "type": st.sampled_from(["object", "OBJECT"]),
            "properties": st.dictionaries(parameter_names, inner, max_size=3),
        },
        optional={"description": texts, "required": required, "additionalProperties": st.booleans()},
    )
    arrays = st.fixed_dictionaries({"type": st.just("array"), "items": inner}, optional={"description": texts})
    return objects | arrays


good_schemas = st.recursive(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["integer", "Boolean"])},
        optional={"description": texts, "minimum": st.integers() | st.floats(-9, 9)},
    )
    | st.fixed_dictionaries(
        {"type": st.just("string")}, optional={"description": texts, "enum": st.lists(texts, max_size=3)}
    ),
    _good_containers,
    max_leaves=8,
)
good_functions = st.fixed_dictionaries(
    {"name": names, "description": texts},
    optional={
        "parameters": st.fixed_dictionaries(
            {"type": st.just("object"), "properties": st.dictionaries(parameter_names, good_schemas, max_size=4)},
            optional={"required": required},
        )
    },
)

# Whatever `tool_problems` complains about: the two renderers must agree on hazards, too.
any_names = parameter_names | st.sampled_from(["type", "description", "properties", "required", "nullable"])


def _containers(inner):
    return st.fixed_dictionaries(
        {"type": st.sampled_from(["object", "array", "array", "ARRAY", None])},
        optional={
            "properties": st.dictionaries(any_names, inner | st.none(), max_size=3) | st.none(),
            "items": inner
            | st.dictionaries(parameter_names, inner | st.none(), max_size=3)
            | st.none()
            | st.just(True),
            "description": texts | st.none(),
            "required": st.lists(any_names, max_size=2) | st.none(),
            "additionalProperties": inner | st.booleans(),
            "anyOf": st.lists(inner, max_size=2),
        },
    )


leaves = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["string", "STRING", "integer", "object", "array", None, ["string", "null"]]),
        "description": texts | st.none(),
        "enum": st.none() | st.lists(json_values, max_size=2),
        "default": json_values,
    },
)
any_schemas = st.recursive(leaves, _containers, max_leaves=8)
any_functions = st.fixed_dictionaries(
    {"name": names},
    optional={
        "description": texts | st.none(),
        "parameters": st.none()
        | st.fixed_dictionaries(
            {"properties": st.none() | st.dictionaries(any_names, any_schemas | st.none(), min_size=1, max_size=3)},
            optional={
                "type": st.sampled_from(["object", "OBJECT", None, ["object", "null"]]),
                "required": st.none() | st.lists(any_names, max_size=2),
            },
        ),
    },
)
functions = good_functions | any_functions
tools_strategy = st.none() | st.lists(
    functions | functions.map(lambda f: {"type": "function", "function": f}), max_size=2
)


@st.composite
def conversations(draw):
    content = st.one_of(texts, st.none(), st.lists(texts.map(lambda t: {"type": "text", "text": t}), max_size=2))
    optional_content = content.map(lambda value: {} if value is None else {"content": value})
    messages = []
    if draw(st.booleans()):
        messages.append({"role": draw(st.sampled_from(["developer", "system"])), **draw(optional_content)})
    for _ in range(draw(st.integers(0, 3))):
        messages.append({"role": draw(st.sampled_from(["user", "developer"])), **draw(optional_content)})
        for _ in range(draw(st.integers(0, 2))):
            calls = draw(st.lists(st.tuples(names, arguments_strategy), min_size=1, max_size=2))
            messages.append(calling(*calls, **draw(optional_content)))
            messages.extend({"role": "tool", "name": name, "content": draw(json_values)} for name, _ in calls)
        messages.append({"role": "assistant", **draw(optional_content)})
    if messages and draw(st.booleans()):
        last = max((i for i, m in enumerate(messages) if m.get("tool_calls")), default=len(messages) - 1)
        messages = messages[: last + 1]
    return messages


@thorough
@given(conversations(), tools_strategy, st.booleans())
def test_renderers_agree(messages, tools, add_generation_prompt):
    both(messages, tools, add_generation_prompt=add_generation_prompt)


@settings(thorough, max_examples=500)
@given(functions)
def test_renderers_agree_on_tools(function):
    both([user()], [function])


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


# --- Round trips ------------------------------------------------------------------------------------------------------


def carried(value):
    """A form in which two JSON values are equal only with the same types and the same sign of zero."""
    return json.dumps(value, sort_keys=True)


carried_texts = texts.filter(lambda text: fg.find_control_token(text) is None)
carried_keys = keys.filter(lambda key: not call_problems(Call("f", {key: 1})))
carried_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(4000, 4298).map(lambda digits: -(10**digits)),
    st.floats(allow_nan=False, allow_infinity=False),
    carried_texts,
)
carried_values = st.recursive(
    carried_scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(carried_keys, inner, max_size=4),
    max_leaves=12,
)
carried_calls = st.builds(
    Call, st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,9}", fullmatch=True), st.dictionaries(carried_keys, carried_values)
)


@thorough
@given(st.lists(carried_calls, max_size=3), st.sampled_from(["", *fg.STOP_TOKENS]), carried_texts)
def test_calls_round_trip(calls, stop, after):
    for call in calls:
        assert call_problems(call) == []
    text = "".join(map(fg.render_call, calls)) + (stop + after if stop else "")
    output = parse(text)
    assert output == ModelOutput(tuple(calls), "")
    assert [carried(call.arguments) for call in output.calls] == [carried(call.arguments) for call in calls]


@thorough
@given(names | texts, st.dictionaries(st.text(max_size=4), json_values | st.text(alphabet="<escap>", max_size=9)))
def test_no_problems_means_a_round_trip(name, arguments):
    call = Call(name, arguments)
    if not call_problems(call):
        assert carried(parse(fg.render_call(call)).calls[0].arguments) == carried(arguments)


@thorough
@given(
    st.lists(st.sampled_from([*fg.CONTROL_TOKENS, "call:", "f", "{", "}", "a", ":", ",", "[", "]", "1", "-", "None"]))
)
def test_any_output_parses_or_says_where(parts):
    text = "".join(parts)
    try:
        output, error = parse(text), None
    except ParseError as caught:
        output, error = ModelOutput((), ""), caught
    assert error is None or 0 <= error.position <= len(text)
    for call in output.calls:
        assert call_problems(call) == []
        assert parse(fg.render_call(call)) == ModelOutput((call,), "")


@pytest.mark.parametrize("depth", [1, fg.MAX_DEPTH - 1, fg.MAX_DEPTH])
def test_the_depth_limit_is_the_same_everywhere(depth):
    value: object = 1
    for _ in range(depth - 1):
        value = [value]
    call = Call("f", {"a": value})
    assert call_problems(call) == []
    assert parse(fg.render_call(call)).calls == (call,)
    deeper = Call("f", {"a": [value]})
    assert bool(call_problems(deeper)) == (depth == fg.MAX_DEPTH)
    if call_problems(deeper):
        with pytest.raises(ParseError, match="nested deeper"):
            parse(fg.render_call(call).replace("1", "[1]"))


# --- Parsing ----------------------------------------------------------------------------------------------------------


def wrapped(arguments):
    return f"<start_function_call>call:f{arguments}{END}"


@pytest.mark.parametrize(
    ("text", "calls", "rest"),
    [
        ("", [], ""),
        ("Hello.<end_of_turn>\n", [], "Hello."),
        ("Hello.<eos><start_function_call>call:f{}", [], "Hello."),
        (wrapped("{}") + "<start_function_response>response:f{", [{}], ""),
        (" Sure. " + wrapped("{}") + "and" + wrapped("{a:1}") + " done. ", [{}, {"a": 1}], "Sure. and done."),
        ("<bos>Hi<pad><pad>", [], "Hi"),
        (wrapped("{a:<escape>}{,:[\n<escape>}"), [{"a": "}{,:[\n"}], ""),
        (wrapped("{a:<escape><escape>,b:[],c:{},d:[[{}]]}"), [{"a": "", "b": [], "c": {}, "d": [[{}]]}], ""),
        (wrapped("{a b:None,C:true,c:false}"), [{"a b": None, "C": True, "c": False}], ""),
        (wrapped("{a:-1,b:1e-07,c:-0.5E+2}"), [{"a": -1, "b": 1e-07, "c": -50.0}], ""),
    ],
)
def test_parse(text, calls, rest):
    assert parse(text) == ModelOutput(tuple(Call("f", arguments) for arguments in calls), rest)


MALFORMED = {
    "unterminated call": ("<start_function_call>call:f{}", 29, "<end_function_call> was expected"),
    "stopped inside": ("<start_function_call>call:f{a:<end_of_turn>", 30, "value was expected"),
    "no call word": ("<start_function_call>f{}" + END, 21, "'call:'"),
    "no name": ("<start_function_call>call:{}" + END, 26, "function name"),
    "bad name": ("<start_function_call>call:f g{}" + END, 27, "'{'"),
    "no arguments": ("<start_function_call>call:f" + END, 27, "'{'"),
    "stray end": ("hi " + END, 3, "ends no call"),
    "junk after arguments": (wrapped("{} "), 29, "<end_function_call> was expected"),
    "bare word": (wrapped("{a:tea}"), 30, "value was expected"),
    "json null": (wrapped("{a:null}"), 30, "value was expected"),
    "python bool": (wrapped("{a:True}"), 30, "value was expected"),
    "word with a tail": (wrapped("{a:trueish}"), 34, "',' or '}'"),
    "json string": (wrapped('{a:"x"}'), 30, "value was expected"),
    "leading zero": (wrapped("{a:01}"), 31, "',' or '}'"),
    "infinity": (wrapped("{a:inf}"), 30, "value was expected"),
    "float overflow": (wrapped("{a:1e999}"), 30, "too large"),
    "half a number": (wrapped("{a:5.}"), 31, "',' or '}'"),
    "minus alone": (wrapped("{a:-}"), 30, "value was expected"),
    "no value": (wrapped("{a:}"), 30, "value was expected"),
    "no colon": (wrapped("{a}"), 29, "':' was expected"),
    "no key": (wrapped("{:1}"), 28, "key was expected"),
    "trailing comma": (wrapped("{a:1,}"), 32, "key was expected"),
    "trailing comma in list": (wrapped("{a:[1,]}"), 33, "value was expected"),
    "space before a key": (wrapped("{a:1, b:2}"), 32, "white space"),
    "quoted key": (wrapped("{<escape>a<escape>:1}"), 28, "control token"),
    "duplicate key": (wrapped("{a:1,a:2}"), 32, "twice"),
    "duplicate nested key": (wrapped("{b:{a:1,a:2}}"), 35, "twice"),
    "wrong bracket": (wrapped("{a:[1}}"), 32, "',' or ']'"),
    "open string": (wrapped("{a:<escape>x}"), 30, "not closed"),
    "string over two calls": (wrapped("{a:<escape>x}") + wrapped("{a:<escape>y<escape>}"), 30, "not closed"),
    "second call broken": (wrapped("{}") + wrapped("{a:tea}"), 78, "value was expected"),
}


@pytest.mark.parametrize(("text", "position", "reason"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_output_is_one_error_that_says_where(text, position, reason):
    with pytest.raises(ParseError) as caught:
        parse(text)
    error = caught.value
    assert reason in error.reason
    assert error.position == position
    assert f"character {position}" in str(error)
    assert len(str(error)) < 200
    assert isinstance(error, ValueError)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


START = "<start_function_call>call:f{"
HOSTILE = {
    "braces": lambda n: START + "a:{" * n,
    "brackets": lambda n: START + "a:" + "[" * n,
    "bare braces": lambda n: START + "{" * n,
    "unterminated string": lambda n: START + "a:<escape>" + "x" * (10 * n),  # 1 MB
    "escapes": lambda n: START + "<escape>" * n,
    "values of escapes": lambda n: START + "a:" + "<escape>" * n,
    "empty strings in a list": lambda n: START + "a:[" + "<escape><escape>," * n,
    "call starts": lambda n: "<start_function_call>" * n,
    "half tokens in a string": lambda n: START + "a:<escape>" + "<escape" * n,
    "long key": lambda n: START + "k" * n,
    "key with half tokens": lambda n: START + "<start_function_" * n + ":",
    "digits": lambda n: START + "a:" + "9" * n + "}" + END,
    "fraction digits": lambda n: START + "a:0." + "9" * n + "}" + END,
    "many keys": lambda n: START + ",".join(f"k{i}:1" for i in range(n)),
    "same key": lambda n: START + "a:1," * n,
    "calls, the last one open": lambda n: (START + "}" + END) * n + START,
}


@pytest.mark.parametrize("build", HOSTILE.values(), ids=HOSTILE)
def test_hostile_output_is_a_parse_error_in_linear_time(build):
    def seconds(text):
        best = float("inf")
        for _ in range(3):
            start = time.process_time()
            with pytest.raises(ParseError) as caught:
                parse(text)
            best = min(best, time.process_time() - start)
        assert len(str(caught.value)) < 200
        return best

    small, large = seconds(build(6_250)), seconds(build(100_000))
    # 16 times the text: a quadratic parser would need 256 times as long. The millisecond absorbs the clock's grain.
    assert large < 64 * max(small, 1e-3)


def test_many_good_calls_parse():
    assert len(parse(wrapped("{a:[1,{b:<escape>x<escape>}]}") * 5_000).calls) == 5_000


# --- Problems ---------------------------------------------------------------------------------------------------------


def nested(inner):
    return {"goal": {"type": "object", "properties": inner}}


STRING = {"type": "string", "description": "D"}
GOAL = "parameters.properties.goal"
TOOL_HAZARDS = {
    **{
        f"parameter named {name}": (tool_with({name: STRING}), f"parameters.properties.{name}", "rename")
        for name in ("description", "type", "properties", "required", "nullable")
    },
    "nested parameter named type": (tool_with(nested({"type": STRING})), f"{GOAL}.properties.type", "rename"),
    "parameter named type in items": (
        tool_with({"a": {"type": "array", "items": {"type": "object", "properties": {"type": STRING}}}}),
        "parameters.properties.a.items.properties.type",
        "rename",
    ),
    "parameters without type": (
        {"name": "f", "parameters": {"properties": {"a": STRING}}},
        "parameters.type",
        "missing",
    ),
    "parameters of another type": (
        tool_with() | {"function": {"name": "f", "parameters": {"type": "string"}}},
        "parameters.type",
        "object",
    ),
    "list-valued type": (tool_with({"a": {"type": ["string", "null"]}}), "parameters.properties.a.type", "single type"),
    "no type": (tool_with({"a": {"description": "D"}}), "parameters.properties.a.type", "missing"),
    **{
        key: (tool_with({"a": {key: value}}), "parameters.properties.a.type", key)
        for key, value in {"anyOf": [STRING], "oneOf": [STRING], "allOf": [STRING], "$ref": "#/$defs/A"}.items()
    },
    "null type": (tool_with({"a": {"type": None}}), "parameters.properties.a.type", "missing"),
    "number as type": (tool_with({"a": {"type": 5}}), "parameters.properties.a.type", "string"),
    "no type in items": (
        tool_with({"a": {"type": "array", "items": {"anyOf": [STRING]}}}),
        "parameters.properties.a.items.type",
        "anyOf",
    ),
    "null property": (tool_with({"a": STRING, "b": None}), "parameters.properties.b", "null"),
    "nested null property": (tool_with(nested({"a": None})), f"{GOAL}.properties.a", "null"),
    "null inside items": (
        tool_with({"a": {"type": "array", "items": {"type": "array", "items": {"type": "string", "enum": None}}}}),
        "parameters.properties.a.items.items.enum",
        "null",
    ),
    "null description": (
        tool_with({"a": {"type": "string", "description": None}}),
        "parameters.properties.a.description",
        "None",
    ),
    "null function description": ({"name": "f", "description": None}, "description", "None"),
    "object without properties": (
        tool_with({"a": {"type": "object", "additionalProperties": {"type": "string"}}}),
        "parameters.properties.a.properties",
        "additionalProperties",
    ),
    "properties not an object": (
        tool_with({"a": {"type": "object", "properties": []}}),
        "parameters.properties.a.properties",
        "object",
    ),
    "top-level properties not an object": (
        {"name": "f", "parameters": {"type": "object", "properties": ["a"]}},
        "parameters.properties",
        "object",
    ),
    "property not an object": (tool_with({"a": True}), "parameters.properties.a", "schema object"),
    "enum not a list": (tool_with({"a": {"type": "string", "enum": "x"}}), "parameters.properties.a.enum", "list"),
    "required not a list": (tool_with({"a": STRING}, required="a"), "parameters.required", "list"),
    "required of items not a list": (
        tool_with({"a": {"type": "array", "items": {"type": "string", "required": {}}}}),
        "parameters.properties.a.items.required",
        "list",
    ),
    "parameters not an object": ({"name": "f", "parameters": [1]}, "parameters", "schema object"),
    **{
        f"function name {name!r}": ({"name": name}, "name", "function name")
        for name in ("", "get steps", "1st", "f{", "é", "f\n", None, 5, "<escape>")
    },
    **{
        f"parameter name {name!r}": (tool_with({name: STRING}), f"parameters.properties.{name}", "rename")
        for name in ("a:b", "a,b", "a{", "a}", "a[", "a]", " a", "a\n", "")
    },
    "control token in a parameter name": (
        tool_with({"a<escape>": STRING}),
        "parameters.properties.a<escape>",
        "<escape>",
    ),
    "control token in the description": (
        {"name": "f", "description": "a <end_of_turn>"},
        "description",
        "<end_of_turn>",
    ),
    "control token in a parameter": (
        tool_with({"a": {"type": "string", "description": "<eos>"}}),
        "parameters.properties.a.description",
        "<eos>",
    ),
    "control token in an enum": (
        tool_with({"a": {"type": "string", "enum": ["x", "<bos>"]}}),
        "parameters.properties.a.enum[1]",
        "<bos>",
    ),
    "control token in required": (tool_with({"a": STRING}, required=["<pad>"]), "parameters.required[0]", "<pad>"),
    "lone surrogate": ({"name": "f", "description": "\ud800"}, "description", "surrogate"),
    "not an object": ("f", "tool", "object"),
}


@pytest.mark.parametrize(("tool", "field", "advice"), TOOL_HAZARDS.values(), ids=TOOL_HAZARDS)
def test_tool_hazard_is_found(tool, field, advice):
    problems = tool_problems(tool)
    assert len(problems) == 1
    assert problems[0].startswith(f"{field}: ")
    assert advice in problems[0]


def test_all_problems_of_a_tool_are_found_at_once():
    tool = tool_with({"type": STRING, "a": {"type": ["string"]}, "b": None})
    tool["function"]["name"] = "not a name"
    assert [problem.split(":")[0] for problem in tool_problems(tool)] == [
        "name",
        "parameters.properties.type",
        "parameters.properties.a.type",
        "parameters.properties.b",
    ]


def test_a_schema_too_deep_to_render_is_a_problem():
    schema = STRING
    for _ in range(5_000):
        schema = {"type": "object", "properties": {"a": schema}}
    problems = tool_problems(tool_with({"a": schema}))
    assert len(problems) == 1
    assert "nested deeper than 64" in problems[0]


def test_no_published_tool_has_a_problem():
    for case in CASES:
        for tool in case["tools"] or []:
            assert tool_problems(tool) == []


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "enum": [1, 2], "default": 1, "minimum": 0},
        {"type": "string", "enum": None, "items": None, "properties": None},
        {"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
        {"type": "array", "items": {"type": "string", "description": None}},
        {"type": "array", "prefixItems": [{"type": "integer"}]},
        {"type": "object", "description": "D"},
        {"type": "object", "properties": {}, "additionalProperties": False},
    ],
)
def test_what_is_left_out_on_purpose_is_no_problem(schema):
    assert tool_problems(tool_with({"a": schema})) == []


def _read(text):
    """Read a declaration's `{...}` with the call grammar, which it shares once quoted keys are made bare."""
    text = re.sub(r"([{,])<escape>(\w+)<escape>:", r"\1\2:", text)
    return parse(f"<start_function_call>call:f{text}{END}").calls[0].arguments


def _expected_item(schema):
    """An item's schema prints with its type in upper case and its parameters as parameters; all else stays."""
    item = {**schema, "type": schema["type"].upper()}
    if "properties" in schema:
        item["properties"] = _expected(schema["properties"])
    return item


def _expected(properties):
    """What the notes on the format say is left of each parameter."""
    result = {}
    for key, schema in properties.items():
        kind = schema["type"].upper()
        shown = {"description": schema.get("description", ""), "type": kind}
        if kind == "STRING" and schema.get("enum"):
            shown["enum"] = schema["enum"]
        if kind == "OBJECT":
            shown["properties"] = _expected(schema["properties"])
            shown |= {"required": schema["required"]} if schema.get("required") else {}
        if kind == "ARRAY":
            shown["items"] = _expected_item(schema["items"])
        result[key] = shown
    return result


@settings(thorough, max_examples=400)
@given(good_functions)
def test_a_sound_tool_has_no_problem_and_its_declaration_says_all_of_it(function):
    problems = tool_problems(function)
    assert problems == [] or all("control token" in problem for problem in problems)
    if problems:
        return
    body = fg.render_declaration(function).removeprefix("<start_function_declaration>declaration:" + function["name"])
    read = _read(body.removesuffix("<end_function_declaration>"))
    expected = {"description": function["description"]}
    if parameters := function.get("parameters"):
        shown = {"type": "OBJECT"}
        shown |= {"properties": _expected(parameters["properties"])} if parameters["properties"] else {}
        shown |= {"required": parameters["required"]} if parameters.get("required") else {}
        expected["parameters"] = shown
    assert read == expected


@settings(thorough, max_examples=400)
@given(any_functions)
def test_an_unbalanced_declaration_is_always_a_problem(function):
    if not tool_problems(function):
        body = fg.render_declaration(function).removeprefix(
            "<start_function_declaration>declaration:" + function["name"]
        )
        assert set(_read(body.removesuffix("<end_function_declaration>"))) <= {"description", "parameters"}


CALL_HAZARDS = {
    "control token": ({"a": "x<end_of_turn>"}, "arguments.a", "<end_of_turn>"),
    "nested control token": ({"a": [1, {"b": "<escape>"}]}, "arguments.a[1].b", "<escape>"),
    "control token in a key": ({"<eos>": 1}, "arguments.<eos>", "<eos>"),
    "nan": ({"a": float("nan")}, "arguments.a", "JSON number"),
    "inf": ({"a": [float("-inf")]}, "arguments.a[0]", "JSON number"),
    "tuple": ({"a": (1, 2)}, "arguments.a", "tuple"),
    "bytes": ({"a": b"x"}, "arguments.a", "bytes"),
    "set": ({"a": {1}}, "arguments.a", "set"),
    "lone surrogate": ({"a": "\udc00"}, "arguments.a", "surrogate"),
    "lone surrogate in a key": ({"\udc00": 1}, "arguments.\udc00", "surrogate"),
    "huge int": ({"a": 10**10_000}, "arguments.a", "digits"),
    "not a dict": ([1], "arguments", "dict"),
    "number as key": ({1: 2}, "arguments.1", "keys"),
    **{
        f"key {key!r}": ({"o": {key: 1}}, f"arguments.o.{key}", "keys")
        for key in ("", " a", "a ", "a:b", "a,b", "a{", "}", "[", "a]")
    },
}


@pytest.mark.parametrize(("arguments", "field", "advice"), CALL_HAZARDS.values(), ids=CALL_HAZARDS)
def test_call_hazard_is_found(arguments, field, advice):
    problems = call_problems(Call("f", arguments))
    assert len(problems) == 1
    assert problems[0].startswith(f"{field}: ")
    assert advice in problems[0]


def test_the_longest_ints_that_are_carried():
    for value in (10**4299 - 1, -(10**4299) + 1):
        call = Call("f", {"a": value})
        assert call_problems(call) == []
        assert parse(fg.render_call(call)).calls == (call,)
        assert "digits" in call_problems(Call("f", {"a": value + (1 if value > 0 else -1)}))[0]


def test_call_name_hazards():
    for name in ("", "a b", "f{", "<escape>", None):
        assert call_problems(Call(name, {}))[0].startswith("name: ")
    assert call_problems(Call("a.B-c_1", {})) == []


def test_values_that_contain_themselves_do_not_hang():
    loop: list = []
    loop.append(loop)
    assert "nested deeper" in call_problems(Call("f", {"a": loop}))[0]
