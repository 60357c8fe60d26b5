"""Constrained answers: always valid whatever the logits are, and no right answer is forbidden."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fitcoach_tune import fitness, functiongemma
from fitcoach_tune.errors import DataError
from fitcoach_tune.evaluate import constrain, generate
from fitcoach_tune.evaluate.constrain import Constraint
from fitcoach_tune.functiongemma import CONTROL_TOKENS, Call, parse, render_call
from fitcoach_tune.tool_checks import CallChecker
from tests.conftest import conversation, tool
from tests.evaluate import strategies

VOCABULARY = 262144
NOISE = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(0))
START, END, ESCAPE, STOP, END_OF_TURN = (
    CONTROL_TOKENS[f"<{name}>"]
    for name in ("start_function_call", "end_function_call", "escape", "start_function_response", "end_of_turn")
)
slow = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))

LOG = tool(
    "log_workout",
    kind={"type": "string", "description": "d", "enum": ["run", "running", "swim"]},
    minutes={"type": "integer", "description": "d", "minimum": 1, "maximum": 300},
    note={"type": "string", "description": "d", "nullable": True},
    laps={"type": "array", "description": "d", "items": {"type": "number"}, "maxItems": 4},
)
LOG["function"]["parameters"]["required"] = ["kind", "minutes"]
STEPS, SLEEP = tool("get_steps"), tool("get_sleep", days={"type": "integer", "description": "d"})
ANYTHING = tool("set_options", options={"type": "object", "description": "d", "properties": {}})


@pytest.fixture(scope="module")
def make(tokenizer):
    return lambda *tools: Constraint(list(tools), tokenizer)


def encode(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def noise(seed: int, step: int) -> torch.Tensor:
    return NOISE.roll(seed * 7919 + step * 104729)


def decode_noise(constraint, seed, limit):
    """An answer to random logits that begins with a call, and whether it stopped."""
    guide, answer = constraint.start(), []
    while not guide.stopped and len(answer) < limit:
        logits = noise(seed, len(answer))
        if not answer:
            logits[START] = 1e9
        answer.append(int(guide.allow(logits, limit - len(answer)).argmax()))
        guide.advance(answer[-1])
        for token in guide.forced()[: limit - len(answer)]:
            guide.advance(token)
            answer.append(token)
    return answer, guide.stopped


def check(raw, tools):
    """The calls of a finished answer; each must fit the tools."""
    output = parse(raw)
    assert output.calls
    assert output.text == ""
    checker = CallChecker()
    for call in output.calls:
        assert list(checker.call_problems(call.name, call.arguments, tools)) == [], raw
    return output.calls


def walk(constraint, ids):
    """Take these tokens one by one for a model that wants them; each must be allowed, and forced ones must be these."""
    guide = constraint.start()
    logits = torch.zeros(VOCABULARY)
    for place, token in enumerate(ids):
        forced = guide.forced()
        assert forced == ids[place : place + len(forced)]
        assert not guide.naming or guide.names(token), (place, token)
        logits[token] = 1
        assert torch.isfinite(guide.allow(logits)[token]), (place, token)
        logits[token] = 0
        guide.advance(token)
    return guide


# ------------------------------------------------------------------------------------------------ sound


# The same tools each time: among thousands are some whose calls are not closed, with an enum of values long in bytes.
@settings(slow, max_examples=25, derandomize=True)
@given(st.data(), st.integers(0, 10**6))
def test_whatever_the_logits_are_calls_fit_the_tools(tokenizer, data, seed):
    tools = data.draw(strategies.tools)
    constraint = Constraint(tools, tokenizer)
    limit = data.draw(st.sampled_from([60, 150]))
    answer, stopped = decode_noise(constraint, seed, limit)
    if stopped:
        check(tokenizer.decode(answer), tools)
    else:
        assert len(answer) == limit
        # A call that has not begun too late is closed, but for texts that must match a pattern and for required keys
        # among undeclared ones, to which no short way is looked for.
        assert "pattern" in str(tools) or "additionalProperties" in str(tools) or constraint.reach > limit


@pytest.mark.parametrize("limit", range(8, 60, 3))
def test_calls_are_closed_before_the_limit(make, tokenizer, limit):
    constraint = make(LOG, SLEEP)
    for seed in range(3):
        answer, stopped = decode_noise(constraint, seed, limit)
        assert len(answer) <= limit
        if limit >= 17:  # what get_sleep takes, and a bit
            assert stopped
        if stopped:
            check(tokenizer.decode(answer), [LOG, SLEEP])


def test_a_call_that_cannot_be_closed_is_cut(make):
    answer, stopped = decode_noise(make(SLEEP), 0, 5)
    assert len(answer) == 5
    assert not stopped


def test_text_ends_with_its_turn(make, tokenizer):
    for seed in range(5):
        constraint, answer = make(STEPS), []
        guide = constraint.start()
        while not guide.stopped:
            logits = noise(seed, len(answer))
            logits[START] = -1e9
            logits[END_OF_TURN] = 1e9 if len(answer) > 5 else 0
            answer.append(int(guide.allow(logits).argmax()))
            guide.advance(answer[-1])
        assert len(answer) <= 8
        assert answer[-1] == END_OF_TURN
        output = parse(tokenizer.decode(answer))
        assert output.text
        assert not output.calls
        assert not set(answer[:-1]) & set(CONTROL_TOKENS.values())


@pytest.mark.parametrize("wish", ["<start_function_call>", "<start_function_response>", "<bos>", "<start_of_turn>"])
def test_words_end_where_no_more_of_them_are_wanted(make, tokenizer, wish):
    """Rather than go on with the likeliest of the tokens that are words."""
    guide = make(STEPS).start()
    logits = torch.zeros(VOCABULARY)
    logits[encode(tokenizer, wish)] = 2
    logits[encode(tokenizer, "and")] = 1
    if wish != "<start_function_call>":
        assert int(guide.allow(logits).argmax()) == encode(tokenizer, "and")[0]  # nothing has been said yet
    for token in encode(tokenizer, "I cannot do that."):
        guide.advance(token)
    assert int(guide.allow(logits).argmax()) == END_OF_TURN


# ------------------------------------------------------------------------------------------------ complete


@settings(slow, max_examples=50)
@given(st.data())
def test_right_calls_are_never_forbidden(tokenizer, data):
    """Token by token as they are trained on; what is forced is what comes."""
    tools = data.draw(strategies.tools)
    chosen = data.draw(st.lists(st.sampled_from(tools), min_size=1, max_size=2))
    calls = [Call(one["function"]["name"], strategies.arguments(data.draw, one)) for one in chosen]
    checker = CallChecker()
    for call in calls:
        assert list(checker.call_problems(call.name, call.arguments, tools)) == []
    text = "".join(map(render_call, calls)) + functiongemma.START_FUNCTION_RESPONSE
    assert walk(Constraint(tools, tokenizer), encode(tokenizer, text)).stopped


@pytest.mark.parametrize("text", [
    "You walked 8,432 steps today.", "Dziś przeszedłeś 8432 kroki!", "今日は8432歩でした。", "١٢٣ خطوة اليوم",
    "🏃\u200d♀️👟 8432 🎉", "a < b <b>bold</b> <table> <escape <end_of_turn <pad", '{"call": [1, 2]}',
    "call:get_steps{}", "line\n\nline\t.", " x",
])  # fmt: skip
def test_answers_in_words_are_allowed(make, tokenizer, text):
    assert walk(make(STEPS), encode(tokenizer, text + "<end_of_turn>")).stopped
    assert walk(make(), encode(tokenizer, text + "<end_of_turn>")).stopped


def test_the_tokens_of_training_are_allowed(make, tokenizer):
    """Each of the shipped tools, in the very tokens of a rendered row, the whole of which `prepare` encodes at once."""
    tools = fitness.tools()
    constraint = make(*tools)
    for one in tools:
        messages = conversation("How far?", (one["function"]["name"], {}))
        prompt = functiongemma.render(messages[:-1], tools, add_generation_prompt=True)
        row = encode(tokenizer, functiongemma.render(messages, tools))
        start = len(encode(tokenizer, prompt))
        assert row[:start] == encode(tokenizer, prompt)
        assert walk(constraint, row[start:]).stopped
    assert tokenizer.convert_ids_to_tokens(row[start:])[:3] == ["<start_function_call>", "call", ":"]
    assert tokenizer.convert_ids_to_tokens(row[start:])[-3] == "{}"


def test_tokens_may_reach_across_what_is_forced(make, tokenizer):
    """`a1:{}` is certain before anything is known of what follows, and yet its tokens depend on it."""
    inner = {"type": "object", "description": "d", "properties": {}, "additionalProperties": False}
    words = {"type": "string", "description": "d"}
    both = tool("f", a1=inner, b=words)
    both["function"]["parameters"]["required"] = ["a1"]
    constraint = make(both)
    cut = [
        encode(tokenizer, f"<start_function_call>call:{text}<end_function_call><start_function_response>")
        for text in ("f{a1:{}}", "f{a1:{},b:<escape>x<escape>}")
    ]
    assert tokenizer.convert_ids_to_tokens(encode(tokenizer, "a1:{}")) == ["a", "1", ":", "{}"]
    assert [tokenizer.convert_ids_to_tokens(ids[7:9]) for ids in cut] == [[":{", "}}"], [":{", "},"]]
    for ids in cut:
        assert walk(constraint, ids).stopped


# ------------------------------------------------------------------------------------------------ adversaries


def obey(guide, tokenizer, wishes, limit=200):
    """Decode for a model that wants these texts above all, each of them at any time, and nothing else much."""
    logits = torch.zeros(VOCABULARY)
    for rank, wish in enumerate(wishes):
        logits[encode(tokenizer, wish)] = 100.0 - rank
    answer = []
    while not guide.stopped and len(answer) < limit:
        answer.append(int(guide.allow(logits, limit - len(answer)).argmax()))
        guide.advance(answer[-1])
    return tokenizer.decode(answer)


@pytest.mark.parametrize("wishes", [
    ["<start_function_call>", "call:get_sleep_metrics{days:3}"],
    ["<start_function_call>", "hours:", "minutes:", "{", ","],
    ["<start_function_call>", "<escape>", "<end_of_turn>", "<bos>", "<start_of_turn>"],
    ["<start_function_call>", "<end_function_call>", "<start_function_response>"],
    ["<start_function_call>", "<end", "_of", "_turn", ">"],
    ["<start_function_call>", "9999999999999999999999999"],
    ["<start_function_call>", "-", "0", "."],
], ids=str)  # fmt: skip
def test_what_a_model_wants_above_all(make, tokenizer, wishes):
    tools = [STEPS, SLEEP, LOG, ANYTHING]
    check(obey(make(*tools).start(), tokenizer, wishes), tools)


def test_control_tokens_are_not_spelt_out(make, tokenizer):
    """A reader of the text could not tell letters from the token."""
    for start in ("", "<start_function_call>call:log_workout{kind:<escape>run<escape>,minutes:3,note:<escape>"):
        guide = make(LOG).start()
        for token in encode(tokenizer, start):
            guide.advance(token)
        for token in generate.encode_literally(tokenizer, "see <end_of_turn"):
            guide.advance(token)
        closing, other = encode(tokenizer, ">"), encode(tokenizer, "s")
        logits = torch.zeros(VOCABULARY)
        logits[closing] = 1
        allowed = torch.isfinite(guide.allow(logits))
        assert not allowed[closing[0]]
        assert allowed[other[0]]
        with pytest.raises(ValueError, match="may not come here"):
            guide.advance(closing[0])


@pytest.mark.parametrize(
    "key", ["a", "ab", "a" * constrain.MAX_KEY, "é" * constrain.MAX_KEY], ids=["1", "2", "max", "é"]
)
def test_undeclared_keys_come_once(make, tokenizer, key):
    """A model that always says the same key, also the longest one, which it cannot make any longer."""
    begun = f"<start_function_call>call:set_options{{options:{{{key}:1,"
    guide = make(ANYTHING).start()
    for token in encode(tokenizer, begun):
        guide.advance(token)
    (call,) = check(begun + obey(guide, tokenizer, [key, ":", "1", ","], limit=400), [ANYTHING])
    assert len(call.arguments["options"]) > 1
    assert key in call.arguments["options"]


@pytest.mark.parametrize("value", [-torch.inf, torch.nan, torch.finfo(torch.bfloat16).min])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_impossible_logits(make, value, dtype):
    """What may come stands above what may not, even where the model thinks nothing of it."""
    logits = torch.full((VOCABULARY,), value, dtype=dtype)
    logits[[END, STOP, END_OF_TURN]] = torch.inf
    allowed = make(STEPS).start().allow(logits)
    assert int(allowed.argmax()) not in (END, STOP, END_OF_TURN)
    assert allowed[START] > -torch.inf or torch.isnan(allowed[START])


def test_models_with_other_vocabularies(make):
    """Some have rows that stand for nothing; a smaller one cannot say the later tokens."""
    constraint = make(STEPS)
    larger = constraint.start().allow(torch.zeros(VOCABULARY + 64))
    assert not torch.isfinite(larger[VOCABULARY:]).any()
    smaller = constraint.start().allow(torch.zeros(1000))
    assert torch.isfinite(smaller[START])


# ------------------------------------------------------------------------------------------------ forced tokens


def test_forced_tokens_are_what_would_be_decoded(make):
    """One token at a time under the mask alone gives the same answer."""
    constraint = make(LOG, SLEEP, ANYTHING)
    for seed in range(4):
        guide, answer = constraint.start(), []
        while not guide.stopped and len(answer) < 90:
            logits = noise(seed, len(answer))
            if not answer:
                logits[START] = 1e9
            forced = guide.forced()
            allowed = guide.allow(logits, 90 - len(answer))
            if forced:
                assert torch.isfinite(allowed).nonzero().flatten().tolist() == forced[:1]
            answer.append(int(allowed.argmax()))
            guide.advance(answer[-1])
            assert not forced[1:] or guide.forced() == forced[1:]
        assert answer == decode_noise(constraint, seed, 90)[0]


def test_what_is_forced(make, tokenizer):
    guide = make(STEPS, SLEEP).start()
    assert guide.forced() == []
    guide.advance(START)
    assert tokenizer.decode(guide.forced()) == "call:get_"
    for token in encode(tokenizer, "call:get_steps"):
        guide.advance(token)
    assert guide.forced() == encode(tokenizer, "{}<end_function_call>")
    for token in encode(tokenizer, "{}<end_function_call>"):
        guide.advance(token)
    assert guide.forced() == []
    guide.advance(STOP)
    assert guide.stopped
    assert guide.forced() == []


# ------------------------------------------------------------------------------------------------ the generator


CALLS = {
    "as declared": ("get_steps{}", [STEPS, SLEEP]),
    "a value": ("log_workout{kind:<escape>running<escape>,minutes:30}", [LOG, STEPS]),
    "another one is left over": ("get_sleep{days:3}", [STEPS]),
    "another one begins alike": ("get_steps{}", [LOG, SLEEP]),
    "too short": ("get_step{}", [STEPS, LOG]),
    "too long": ("get_steps_today{}", [STEPS, SLEEP]),
    "the second is not declared": ("get_steps{} get_sleep{days:3}", [STEPS, ANYTHING]),
    "again": ("get_steps{} get_steps{} get_steps{}", [STEPS]),
    "no tools": ("get_steps{}", []),
}
"""What a model would say, and what is declared."""


def said(calls: str) -> str:
    each = "".join(f"<start_function_call>call:{call}<end_function_call>" for call in calls.split())
    return each + functiongemma.START_FUNCTION_RESPONSE


@pytest.fixture(scope="module")
def speaking(tokenizer):
    """A tiny model that says of each prompt what is written above, and the prompts: what is likeliest behind each of
    their tokens is solved for, and all else is random.
    """
    from tests.conftest import tiny_gemma

    model = tiny_gemma(vocab_size=VOCABULARY, layers=2, hidden_size=160, tie_word_embeddings=False)
    rng = np.random.default_rng(0)
    head = rng.integers(300, VOCABULARY, 12).tolist()
    prompts = [head + rng.integers(300, VOCABULARY, 1 + 5 * i % 7).tolist() for i in range(len(CALLS))]
    scripts = [encode(tokenizer, said(calls)) for calls, _ in CALLS.values()]
    with torch.no_grad():
        states = [
            model.model(torch.tensor([prompt + script[:-1]])).last_hidden_state[0, len(prompt) - 1 :]
            for prompt, script in zip(prompts, scripts, strict=True)
        ]
        tokens = torch.tensor([token for script in scripts for token in script])
        wanted = tokens.unique()
        assert len(tokens) < 160
        solved = torch.linalg.pinv(torch.cat(states)) @ (tokens[:, None] == wanted).float()
        model.lm_head.weight[wanted] = 1000 * solved.T
    return model, head, prompts


@pytest.fixture(scope="module")
def constraints(make):
    return [make(*tools) for _, tools in CALLS.values()]


def by_hand(model, prompt, constraint, limit):
    """Greedy decoding of the whole sequence again for each token, forced or not, with its name asked for."""
    model.set_attn_implementation("eager")
    guide, answer = constraint.start(), []
    with torch.no_grad():
        while not guide.stopped and len(answer) < limit:
            logits = model(torch.tensor([prompt + answer]), logits_to_keep=1).logits[0, -1]
            if guide.naming and not guide.names(int(logits.argmax())):
                call = max(place for place, token in enumerate(answer) if token == START)
                if call:
                    return [*answer[:call], STOP]
                guide, answer = guide.in_words(), []
                continue
            answer.append(int(guide.allow(logits, limit - len(answer)).argmax()))
            guide.advance(answer[-1])
    return answer


def generator_of(model, head):
    generator = generate.Generator(model)
    generator.warm(head)
    return generator


def test_generation_equals_decoding_by_hand(speaking, constraints):
    """In a batch of rows with different constraints, which run different numbers of tokens at a time, and alone."""
    model, head, prompts = speaking
    limit = 40
    expected = [by_hand(model, p, c, limit) for p, c in zip(prompts, constraints, strict=True)]
    generator = generator_of(model, head)
    told = []
    found = generator.generate(prompts, limit, lambda *answer: told.append(answer), constraints=constraints)
    assert found == expected
    assert sorted(told) == list(enumerate(expected))
    assert len({len(answer) for answer in expected}) > 2
    assert generator.generate(prompts, limit, batch_size=2, constraints=constraints) == expected
    alone = [generator.generate([p], limit, constraints=[c])[0] for p, c in zip(prompts, constraints, strict=True)]
    assert alone == expected


def test_what_is_not_declared_is_answered_in_words(speaking, constraints, tokenizer):
    model, head, prompts = speaking
    free = generator_of(model, head).generate(prompts, 40)
    assert [tokenizer.decode(answer) for answer in free] == [said(calls) for calls, _ in CALLS.values()]
    held = generator_of(model, head).generate(prompts, 40, constraints=constraints)
    answers = dict(zip(CALLS, map(tokenizer.decode, held), strict=True))
    for name in ("as declared", "a value", "again"):
        assert answers.pop(name) == said(CALLS[name][0])
    assert answers.pop("the second is not declared") == said("get_steps{}")
    assert len(answers) == 5
    for name, answer in answers.items():
        assert not parse(answer.removesuffix("<end_of_turn>")).calls, name
        assert "<start_function_call>" not in answer


def test_rows_without_a_constraint_are_what_they_were(speaking, make):
    model, head, prompts = speaking
    prompts = prompts[:5]
    generator = generator_of(model, head)
    plain = generator.generate(prompts, 20)
    assert generator.generate(prompts, 20, constraints=[None] * len(prompts)) == plain
    constraint = make(STEPS)
    mixed = generator.generate(prompts, 20, constraints=[None, constraint, None, constraint, None])
    assert [mixed[i] for i in (0, 2, 4)] == [plain[i] for i in (0, 2, 4)]
    assert [mixed[i] for i in (1, 3)] == generator.generate(
        [prompts[i] for i in (1, 3)], 20, constraints=[constraint] * 2
    )
    assert mixed[1] != plain[1]


def test_forced_tokens_need_no_pass_of_their_own(speaking, constraints):
    model, head, prompts = speaking
    place = list(CALLS).index("again")
    passes = []
    generator = generator_of(model, head)
    hook = model.model.register_forward_hook(lambda module, inputs, output: passes.append(output.last_hidden_state))
    try:
        (answer,) = generator.generate([prompts[place]], 40, constraints=[constraints[place]])
    finally:
        hook.remove()
    # The only choice is whether to call again. One pass for the prompt, one for each call, none for the last token.
    assert answer.count(START) == 3
    assert len(answer) == 8 * 3 + 1
    assert [states.shape[1] for states in passes[1:]] == [8] * 3


def test_the_limit_cuts_forced_tokens_as_well(speaking, constraints):
    model, head, prompts = speaking
    place = list(CALLS).index("again")
    generator = generator_of(model, head)
    full = generator.generate([prompts[place]], 40, constraints=[constraints[place]])[0]
    for limit in range(1, 6):
        assert generator.generate([prompts[place]], limit, constraints=[constraints[place]])[0] == full[:limit]


# ------------------------------------------------------------------------------------------------ the constraint


def test_many_rows_of_one_constraint(make, monkeypatch):
    monkeypatch.setattr(constrain, "_ROWS_PER_MATCHER", 3)
    constraint = make(LOG)
    answers = [decode_noise(constraint, 0, 40) for _ in range(8)]
    assert answers == answers[:1] * 8


def test_rows_do_not_disturb_each_other(make):
    constraint = make(LOG, SLEEP)
    first, second = constraint.start(), constraint.start()
    first.advance(START)
    assert second.forced() == []
    assert torch.isfinite(second.allow(torch.zeros(VOCABULARY))[START])


def test_a_token_that_may_not_come(make):
    guide = make(STEPS).start()
    with pytest.raises(ValueError, match="token 49 may not come here"):
        guide.advance(END)


def test_a_pattern_that_nothing_fits(make):
    impossible = tool("f", x={"type": "string", "description": "d", "pattern": "^a{5}$", "maxLength": 3})
    with pytest.raises(DataError, match="no text fits") as caught:
        make(impossible)
    assert caught.value.where == "tool f: parameters.properties.x.pattern"
    assert "--unconstrained" in caught.value.hint


def test_unconstrained_generation_loads_nothing_of_this():
    script = "import sys, fitcoach_tune.evaluate.generate; print([m for m in sys.modules if 'llguidance' in m])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
