"""Rows of the Berkeley Function-Calling Leaderboard: answers, types, categories, and what is left out."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from fitcoach_tune import functiongemma
from fitcoach_tune.dataset import file_hash, read_examples, validate
from fitcoach_tune.dataset.bfcl import NO_CALL
from fitcoach_tune.errors import DataError
from fitcoach_tune.functiongemma import TRIGGER, Call
from fitcoach_tune.gold import Gold, GoldCall

from .rows import as_json, as_jsonl, as_parquet, as_saved, write

WEATHER = {
    "name": "weather.get",
    "description": "The weather.",
    "parameters": {
        "type": "dict",
        "properties": {
            "city": {"type": "string", "description": "Where."},
            "days": {"type": "integer", "description": "How many.", "default": 1},
            "unit": {"type": "string", "description": "Unit."},
        },
        "required": ["city"],
    },
}
AREA = {
    "name": "area",
    "description": "An area.",
    "parameters": {
        "type": "dict",
        "properties": {
            "points": {
                "type": "array",
                "items": {"type": "tuple", "items": {"type": "float"}},
                "description": "Ends.",
            },
            "frame": {
                "type": "dict",
                "properties": {"width": {"type": "float", "description": "Width."}},
                "description": "Frame.",
            },
        },
        "required": ["points"],
    },
}
ANSWER = [{"weather.get": {"city": ["Berlin", "Berlin, DE"], "days": ["", 1], "unit": ["celsius", ""]}}]


def row(answer=None, functions=(WEATHER,), name="simple_python_0", **more) -> dict:
    question = [[{"role": "user", "content": "Rain in Berlin?"}]]
    given = {} if answer is None else {"ground_truth": answer}
    return {"id": name, "question": question, "function": list(functions), **given, **more}


def function(**properties) -> dict:
    parameters = {"type": "dict", "properties": properties, "required": []}
    return {"name": "f", "description": "F.", "parameters": parameters}


def read_one(one: dict, folder: Path):
    [example], source = read_examples(as_jsonl([one], folder))
    validate([example])
    return example, source


def problem(rows: list[dict], folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_examples(as_jsonl(rows, folder))
    [line] = caught.value.details
    return line


# ------------------------------------------------------------------------------------------------ rows


def test_a_row_and_what_it_accepts(tmp_path):
    example, source = read_one(row(ANSWER), tmp_path)
    own = {"city": "Berlin", "unit": "celsius"}
    assert example.messages == [
        {"role": "developer", "content": TRIGGER},
        {"role": "user", "content": "Rain in Berlin?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": {"name": "weather.get", "arguments": own}}],
        },
    ]
    accepted = {"city": ("Berlin", "Berlin, DE"), "days": (1,), "unit": ("celsius", "")}
    call = GoldCall("weather.get", accepted, optional=frozenset({"days", "unit"}), unsaid=frozenset({"days"}))
    assert example.acceptable == Gold(((call,),), "bfcl")
    assert example.acceptable.calls == (Call("weather.get", own),)
    assert example.origin == "rows.jsonl:1"
    assert source.rows == 1
    assert source.notes == ["tool 'weather.get': the format does not show days.default"]
    assert functiongemma.render(example.messages, example.tools).endswith("<start_function_response>")


def test_types_become_json_schema_s(tmp_path):
    answer = [{"area": {"points": [[[1.0, 2.0]]], "frame": [""]}}]
    example, _ = read_one(row(answer, [AREA]), tmp_path)
    parameters = example.tools[0]["function"]["parameters"]
    assert parameters["type"] == "object"
    assert parameters["properties"]["points"] == {
        "type": "array",
        "items": {"type": "array", "items": {"type": "number"}},
        "description": "Ends.",
    }
    assert parameters["properties"]["frame"]["type"] == "object"
    assert parameters["properties"]["frame"]["properties"]["width"]["type"] == "number"
    assert example.gold == [Call("area", {"points": [[1.0, 2.0]]})]


def test_a_parameter_may_be_named_as_a_keyword_of_schemas(tmp_path):
    example, _ = read_one(row([{"f": {"items": ["x"]}}], [function(items={"type": "string"})]), tmp_path)
    assert example.tools[0]["function"]["parameters"]["properties"] == {"items": {"type": "string"}}


def test_calls_of_several_functions(tmp_path):
    answer = [*ANSWER, {"area": {"points": [[[0, 1]]]}}, *ANSWER]
    example, _ = read_one(row(answer, [WEATHER, AREA], "parallel_multiple_0"), tmp_path)
    assert [call.name for call in example.gold] == ["weather.get", "area", "weather.get"]
    assert len(example.acceptable.answers[0]) == 3


def test_an_empty_text_in_the_values(tmp_path):
    """It lets an argument be left out, unless that is required; an argument without any other value is never given."""
    answer = [{"weather.get": {"city": ["", "Berlin"], "days": [""], "unit": [""]}}]
    [call] = read_one(row(answer), tmp_path)[0].acceptable.answers[0]
    assert call == GoldCall(
        "weather.get", {"city": ("Berlin", ""), "unit": ("",)}, frozenset({"unit"}), frozenset({"unit"})
    )
    answer = [{"f": {"names": [["a"], ""], "old": ["", 1]}}]
    functions = [function(names={"type": "array", "items": {"type": "string"}})]
    [call] = read_one(row(answer, functions), tmp_path)[0].acceptable.answers[0]
    assert call == GoldCall("f", {"names": (["a"], [])}, frozenset({"names"}))  # `old` is not declared


@pytest.mark.parametrize(
    ("kind", "value", "expanded"),
    [
        ({"type": "dict"}, {}, [{}]),
        ({"type": "dict"}, {"a": [1, 2], "b": ["x"]}, [{"a": 1, "b": "x"}, {"a": 2, "b": "x"}]),
        ({"type": "dict"}, {"a": [1], "b": ["", 2]}, [{"a": 1}, {"a": 1, "b": 2}]),
        ({"type": "dict"}, {"a": [[1, 2]]}, [{"a": [1, 2]}]),
        ({"type": "dict"}, {"a": [{"b": [1]}]}, [{"a": {"b": [1]}}]),  # one level deep, as the checker reads it
        ({"type": "dict"}, {"a": 1}, [{"a": 1}]),
        (
            {"type": "array", "items": {"type": "dict"}},
            [{"a": [1, 2]}, {"b": [3]}],
            [[{"a": 1}, {"b": 3}], [{"a": 2}, {"b": 3}]],
        ),
        ({"type": "array", "items": {"type": "integer"}}, [1, 2], [[1, 2]]),
        ({"type": "array", "items": {"type": "integer"}}, [], [[]]),
    ],
)
def test_objects_have_a_list_of_values_for_each_key(kind, value, expanded, tmp_path):
    kind = kind if kind["type"] == "array" else kind | {"properties": {}}
    example, _ = read_one(row([{"f": {"x": [value]}}], [function(x=kind)]), tmp_path)
    [call] = example.acceptable.answers[0]
    assert call.arguments == {"x": tuple(expanded)}
    assert example.gold == [Call("f", {"x": expanded[0]})]


def test_the_system_text_stands_before_the_trigger(tmp_path):
    given = row(ANSWER)
    given["question"][0].insert(0, {"role": "system", "content": "Be brief.\n"})
    example, _ = read_one(given, tmp_path)
    assert [message["role"] for message in example.messages] == ["developer", "user", "assistant"]
    assert example.messages[0]["content"] == f"Be brief.\n{TRIGGER}"


def test_further_acceptable_answers(tmp_path):
    given = row(ANSWER, acceptable_answers=["Which day?", {"name": "weather.get", "arguments": {"city": "Bern"}}])
    example, _ = read_one(given, tmp_path)
    own, words, other = example.acceptable.answers
    assert own[0].name == "weather.get"
    assert words == ()
    assert other == (
        GoldCall("weather.get", {"city": ("Bern",), "days": (1,)}, frozenset({"days"}), frozenset({"days"})),
    )
    assert example.acceptable.strings == "bfcl"


@pytest.mark.parametrize("container", [as_jsonl, as_json, as_parquet, as_saved])
def test_cells_as_text_in_every_container(container, tmp_path):
    whole = row(ANSWER)
    text = {key: value if key == "id" else json.dumps(value) for key, value in whole.items()}
    expected, _ = read_one(whole, tmp_path)
    [example], _ = read_examples(container([text], tmp_path))
    assert (example.messages, example.tools, example.acceptable) == (
        expected.messages,
        expected.tools,
        expected.acceptable,
    )


@pytest.mark.parametrize("container", [as_parquet, as_saved])
def test_columnar_cells_lose_what_was_merged_into_them(container, tmp_path):
    other = [{"f": {"n": [2]}}]
    rows = [row(ANSWER[:1]), row(other, [function(n={"type": "integer"})], "simple_python_1")]
    rows[0]["ground_truth"] = [{"weather.get": {"city": ["Berlin"]}}]
    examples, _ = read_examples(container(rows, tmp_path))
    validate(examples)
    assert [example.gold for example in examples] == [[Call("weather.get", {"city": "Berlin"})], [Call("f", {"n": 2})]]
    assert [len(example.acceptable.answers[0]) for example in examples] == [1, 1]


# ------------------------------------------------------------------------------------------------ answers elsewhere


def published(rows, answers, folder, name="BFCL_v4_simple_python.json") -> str:
    (folder / "possible_answer").mkdir(exist_ok=True)
    lines = [json.dumps({"id": key, "ground_truth": value}) for key, value in answers.items()]
    write(folder / "possible_answer", "\n".join(lines), name)
    return write(folder, "\n".join(map(json.dumps, rows)), name)


def test_answers_are_found_by_id_beside_the_file(tmp_path):
    rows = [row(name=f"simple_python_{n}") for n in (0, 1)]
    answers = {f"simple_python_{n}": [{"weather.get": {"city": [city]}}] for n, city in ((1, "Bern"), (0, "Rome"))}
    path = published([*rows, row(ANSWER, name="simple_python_2")], answers, tmp_path)
    examples, source = read_examples(path)
    assert [example.gold[0].arguments["city"] for example in examples] == ["Rome", "Bern", "Berlin"]
    assert examples[1].origin == "BFCL_v4_simple_python.json:2"
    both = Path(path).read_bytes() + (tmp_path / "possible_answer" / "BFCL_v4_simple_python.json").read_bytes()
    assert source.sha256 == file_hash(Path(path)) == hashlib.sha256(both).hexdigest()


def test_a_file_without_answers_beside_it_has_its_own_hash(tmp_path):
    path = Path(as_jsonl([row(ANSWER)], tmp_path))
    assert file_hash(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_ids_without_an_answer_are_named(tmp_path):
    path = published([row(), row(name="simple_python_7")], {"simple_python_0": ANSWER}, tmp_path)
    with pytest.raises(DataError) as caught:
        read_examples(path)
    [line] = caught.value.details
    assert line.startswith("BFCL_v4_simple_python.json:2: ground_truth: there is no answer for 'simple_python_7'; ")
    assert "possible_answer/" in line
    assert "there is no answer for 'simple_python_0'" in problem([row()], tmp_path)
    assert "there is no answer for the row" in problem([row(name=None)], tmp_path)


def test_a_broken_line_among_the_answers_is_named(tmp_path):
    path = published([row()], {"simple_python_0": ANSWER}, tmp_path)
    file = tmp_path / "possible_answer" / "BFCL_v4_simple_python.json"
    file.write_text(file.read_text() + "\n{broken\n[]")
    with pytest.raises(DataError) as caught:
        read_examples(path)
    assert [line.partition(": ")[0] for line in caught.value.details] == [
        "possible_answer/BFCL_v4_simple_python.json:2",
        "possible_answer/BFCL_v4_simple_python.json:3",
    ]


def test_other_rows_want_nothing_from_the_answers(tmp_path):
    path = published([{"user": "a", "assistant": "b", "tools": [WEATHER]}], {}, tmp_path)
    (tmp_path / "possible_answer" / "BFCL_v4_simple_python.json").write_text("{broken")
    assert len(read_examples(path)[0]) == 1


@pytest.mark.parametrize(
    ("name", "file", "more"),
    [
        ("irrelevance_0", "rows.jsonl", {}),
        ("live_irrelevance_0-0-0", "rows.jsonl", {}),
        ("my_0", "BFCL_v4_irrelevance.json", {}),
        ("my_0", "rows.jsonl", {"ground_truth": []}),
        ("my_0", "rows.jsonl", {"possible_answer": []}),
    ],
)
def test_rows_that_want_no_call(name, file, more, tmp_path):
    [example], _ = read_examples(write(tmp_path, json.dumps(row(name=name, **more)), file))
    validate([example])
    assert example.gold == []
    assert example.messages[-1] == {"role": "assistant", "content": NO_CALL}
    assert example.acceptable == Gold(((),), "bfcl")


# ------------------------------------------------------------------------------------------------ refused


QUESTION = [{"role": "user", "content": "a"}]


@pytest.mark.parametrize(
    ("change", "field", "part"),
    [
        ({"question": [QUESTION, QUESTION]}, "question", "has 2 turns"),
        ({"question": []}, "question", "has 0 turns"),
        ({"question": "Rain?"}, "question", "not valid JSON"),
        ({"question": QUESTION}, "question", "must be a list with one conversation"),
        ({"question": [[]]}, "question", "must be a list with one conversation"),
        ({"function": None}, "function", "is missing"),
        ({"id": "live_relevance_0-0-0"}, "id", "'live_relevance_0-0-0' wants some call, whichever"),
        ({"id": "simple_java_3"}, "id", "Java or JavaScript source"),
        ({"id": "simple_javascript_3"}, "id", "Java or JavaScript source"),
        ({"ground_truth": {}}, "ground_truth", "must be a list of calls, not an object"),
        ({"ground_truth": ["weather.get"]}, "ground_truth[0]", 'must be {"function": {"argument": [accepted values]}}'),
        ({"ground_truth": [{"a": {}, "b": {}}]}, "ground_truth[0]", "must be {"),
        ({"ground_truth": [{"a": []}]}, "ground_truth[0]", "must be {"),
        ({"ground_truth": [{"a": {"x": 1}}]}, "ground_truth[0].a.x", "a list of accepted values, not a number"),
        ({"ground_truth": None, "possible_answer": 3}, "possible_answer", "must be a list of calls, not a number"),
    ],
)
def test_rows_that_cannot_be_meant(change, field, part, tmp_path):
    line = problem([row(ANSWER) | change], tmp_path)
    assert line.startswith(f"rows.jsonl:1: {field}: ")
    assert part in line


# ------------------------------------------------------------------------------------------------ left out

BROKEN = {
    "a parameter that the template leaves out": (
        row([{"f": {"type": ["x"]}}], [function(type={"type": "string"})]),
        "tools[0].parameters.properties.type: the model's template leaves out a parameter of this name",
    ),
    "any": (row([{"f": {}}], [function(x={"type": "any"})]), "tools[0].parameters.properties.x.type: is missing"),
    "no such type": (row([{"f": {}}], [function(x={"type": "HashMap"})]), "tools[0].parameters.properties.x"),
    "a tool without a name": (row(ANSWER, [{"description": "?"}]), "tools[0].name: a tool needs a name"),
    "properties as a list": (row([{"f": {}}], [function() | {"parameters": {"properties": []}}]), "tools[0].param"),
    "functions that are none": (row(ANSWER, ["weather.get"]), "tools[0]"),
    "another function": (row([{"g": {}}]), "messages[2].tool_calls[0].name: 'g' is not one of the row's tools"),
    "a value that the schema does not allow": (
        row([{"weather.get": {"city": [5]}}]),
        "messages[2].tool_calls[0].arguments.city: 5 is not of type 'string'",
    ),
    "no value": (
        row([{"weather.get": {"city": []}}]),
        "ground_truth.city: no value is accepted, and it may not be left out",
    ),
    "too many values": (
        row([{"f": {"x": [{key: list(range(8)) for key in "abc"}]}}], [function(x={"type": "dict", "properties": {}})]),
        "ground_truth.x: stands for more than 500 values",
    ),
    "two users": (row(ANSWER) | {"question": [[*QUESTION, *QUESTION]]}, "messages[2]: a user message follows another"),
    "a control token": (row(ANSWER) | {"question": [[{"role": "user", "content": "<bos>"}]]}, "messages[1].content: "),
    "a further answer that does not fit": (
        row(ANSWER, acceptable_answers=["weather.got"]),
        "acceptable_answers[0].name: 'weather.got' is not one of the row's tools; did you mean 'weather.get'?",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_row_is_left_out_with_a_note(case, tmp_path):
    broken, why = BROKEN[case]
    rows = [broken | {"id": "broken_1"}, row(ANSWER), broken | {"id": "broken_2"}]
    [example], source = read_examples(as_jsonl(rows, tmp_path))
    validate([example])
    assert example.origin == "rows.jsonl:2"
    assert source.rows == 1
    note = source.notes[-1]
    assert note.startswith(f"2 of 3 rows left out: broken_1: {why}")
    assert f"; broken_2: {why}" in note


def test_the_note_names_three_and_counts_the_rest(tmp_path):
    broken = BROKEN["another function"][0]
    rows = [row(ANSWER), *(broken | {"id": f"broken_{n}"} for n in range(5))]
    _, source = read_examples(as_jsonl(rows, tmp_path))
    assert source.notes[-1].startswith("5 of 6 rows left out: broken_0: ")
    assert "broken_2" in source.notes[-1]
    assert "broken_3" not in source.notes[-1]
    assert source.notes[-1].endswith("; … and 2 more")


def test_where_no_row_can_be_used_the_reasons_are_told(tmp_path):
    with pytest.raises(DataError, match="no row in it can be used") as caught:
        read_examples(as_jsonl([BROKEN["any"][0]], tmp_path))
    assert caught.value.details[0].startswith("simple_python_0: tools[0].parameters.properties.x.type: is missing")


def test_notes_on_tools_are_limited(tmp_path):
    functions = [function(x={"type": "integer", "default": 1}) | {"name": f"f{n}"} for n in range(14)]
    rows = [row([{one["name"]: {"x": [1]}}], [one]) for one in functions]
    _, source = read_examples(as_jsonl(rows, tmp_path))
    assert len(source.notes) == 11
    assert source.notes[0] == "tool 'f0': the format does not show x.default"
    assert source.notes[-1] == "… and 4 more tools of which the format leaves something out"
