"""Tools in another order, or one left out: what a step sees is what those tools would have been rendered as."""

from __future__ import annotations

import numpy as np
import pytest

from fitcoach_tune import fitness
from fitcoach_tune.dataset import Example
from fitcoach_tune.fitness.generator import DEVELOPER, row
from fitcoach_tune.prepared_rows import common_prefix
from fitcoach_tune.rendering import tokenize
from fitcoach_tune.train import called_functions
from fitcoach_tune.training.variation import Variation, common_refusal, declarations

QUESTIONS = [
    ("steps", "How far have my feet carried me"),
    ("sleep", "hours in bed?"),
    ("steps+heart", "Steps and pulse, please."),
    ("unserved:not-measured", "calories?"),
    ("unserved:not-measured", "My weight?"),
    ("unserved:chat", "hello"),
]
NAMES = tuple(tool["function"]["name"] for tool in fitness.tools())


def examples(tools=None, without=None):
    """The questions as rows with these tools; those that call `without` are answered as what is not measured."""
    made = []
    for label, question in QUESTIONS:
        messages = row("id", label, question)["messages"]
        if without and any(call["function"]["name"] == without for call in messages[2].get("tool_calls", ())):
            messages = row("id", "unserved:not-measured", question)["messages"]
        messages[2].setdefault("content", "")
        made.append(Example(messages, tools or fitness.tools(), "here"))
    return made


@pytest.fixture(scope="module")
def rows(tokenizer):
    return list(tokenize(examples(), tokenizer))


@pytest.fixture(scope="module")
def prefix(rows):
    return rows[0].input_ids[: common_prefix(rows)]


def variation(rows, **settings):
    calls = [called_functions(example) for example in examples()]
    return Variation(names=NAMES, calls=calls, refusal=common_refusal(rows, calls), **settings)


def same(seen, head, expected) -> None:
    assert len(seen) == len(expected)
    for found, wanted in zip(seen, expected, strict=True):
        assert found.spans == wanted.spans
        end = wanted.spans[-1][1]  # the newline behind it is nobody's
        assert [*head, *found.input_ids[len(head) : end]] == wanted.input_ids[:end].tolist()


def test_the_developer_and_the_functions_are_in_the_prefix(prefix, tokenizer) -> None:
    parts = declarations(prefix)
    assert len(parts) == 7
    texts = [tokenizer.decode(prefix[start:end]) for start, end in parts]
    assert [text.partition("{")[0].rpartition(":")[2] for text in texts] == list(NAMES)
    assert DEVELOPER in tokenizer.decode(prefix[: parts[0][0]])


def test_an_order_is_that_of_tools_declared_so(rows, prefix, tokenizer) -> None:
    """Token for token what the renderer and the tokenizer make of the tools in that order."""
    orders = set()
    for step in range(5):
        seen, head = variation(rows, seed=3, shuffle=True).view(step, rows, prefix)
        texts = [tokenizer.decode(head[start:end]) for start, end in declarations(head)]
        order = [text.partition("{")[0].rpartition(":")[2] for text in texts]
        assert sorted(order) == sorted(NAMES)
        orders.add(tuple(order))
        tools = sorted(fitness.tools(), key=lambda tool: order.index(tool["function"]["name"]))
        same(seen, head, list(tokenize(examples(tools), tokenizer)))
    assert len(orders) == 5


@pytest.mark.parametrize("shuffle", [False, True])
def test_what_calls_a_tool_that_is_left_out_refuses(rows, prefix, tokenizer, shuffle) -> None:
    hidden = set()
    for step in range(12):
        seen, head = variation(rows, seed=1, shuffle=shuffle, dropout=0.999).view(step, rows, prefix)
        texts = [tokenizer.decode(head[start:end]) for start, end in declarations(head)]
        order = [text.partition("{")[0].rpartition(":")[2] for text in texts]
        (without,) = set(NAMES) - set(order)
        hidden.add(without)
        tools = {tool["function"]["name"]: tool for tool in fitness.tools()}
        same(seen, head, list(tokenize(examples([tools[name] for name in order], without), tokenizer)))
    assert len(hidden) > 3


def test_a_conversation_refuses_where_it_calls_what_is_left_out(tokenizer) -> None:
    """The answers before that stay; so does one that calls nothing that is missing."""
    first = examples()[0].messages
    turn = [{"role": "tool", "name": "get_steps", "content": {"steps": 9}}, {"role": "assistant", "content": "Nine."}]
    second = examples()[1].messages[1:]
    talk = Example([*first, *turn, *second], fitness.tools(), "here")
    rows = list(tokenize([talk, *examples()], tokenizer))
    calls = [called_functions(talk), *(called_functions(example) for example in examples())]
    refusal = common_refusal(rows, calls)
    prefix = rows[0].input_ids[: common_prefix(rows)]
    made = Variation(1, False, 0.999, NAMES, calls, refusal)
    kept = {}
    for step in range(40):
        seen, head = made.view(step, rows, prefix)
        (without,) = [n for n in NAMES if f"declaration:{n}{{" not in tokenizer.decode(head)]
        row, shift = seen[0], len(head) - len(prefix)
        answers = [tokenizer.decode(row.input_ids[start:end]) for start, end in row.spans]
        originals = [tokenizer.decode(rows[0].input_ids[start:end]) for start, end in rows[0].spans]
        assert all(start > shift for start, _ in row.spans)
        kept[without] = [answer == original for answer, original in zip(answers, originals, strict=False)]
        if not all(kept[without]):
            assert answers[-1] == tokenizer.decode(refusal)
            assert row.spans[-1][1] == len(row.input_ids)
    assert kept["get_steps"] == [False]
    assert kept["get_sleeping_minutes"] == [True, True, False]
    assert kept["get_heart_rate"] == [True, True, True]


def test_a_tool_is_left_out_as_often_as_asked(rows, prefix) -> None:
    made = variation(rows, seed=5, shuffle=False, dropout=0.25)
    lengths = [len(made.view(step, rows, prefix)[1]) for step in range(2000)]
    # 2,000 draws at 0.25: four standard deviations are 0.039.
    assert sum(length < len(prefix) for length in lengths) / 2000 == pytest.approx(0.25, abs=0.039)


def test_a_step_is_a_pure_function_of_seed_and_step(rows, prefix) -> None:
    def heads(seed: int) -> list[list[int]]:
        made = variation(rows, seed=seed, shuffle=True, dropout=0.5)
        return [made.view(step, rows, prefix)[1].tolist() for step in (4, 0, 2)]

    np.random.seed(0)
    first = heads(9)
    np.random.seed(1)
    assert heads(9) == first
    assert heads(10) != first


def test_the_commonest_refusal(rows, tokenizer) -> None:
    calls = [called_functions(example) for example in examples()]
    refusal = common_refusal(rows, calls)
    assert tokenizer.decode(refusal) == "I have no reading of that.<end_of_turn>"
    assert common_refusal(rows[:3], calls[:3]) is None


def test_no_declarations_leave_all_as_it_is(rows) -> None:
    nothing = np.array([2, 5, 6])
    seen, head = variation(rows, seed=0, shuffle=True, dropout=0.9).view(0, rows, nothing)
    assert seen is rows
    assert head is nothing
