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
    """Take these tokens one by one; each must be allowed, and forced ones must be these."""
    guide = constraint.start()
    logits = torch.zeros(VOCABULARY)
    for place, token in enumerate(ids):
        forced = guide.forced()
        assert forced == ids[place : place + len(forced)]
        assert torch.isfinite(guide.allow(logits)[token]), (place, token)
        guide.advance(token)
    return guide


# ------------------------------------------------------------------------------------------------ sound


@settings(slow, max_examples=25)
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
        allowed = torch.isfinite(guide.allow(torch.zeros(VOCABULARY)))
        closing, other = encode(tokenizer, ">"), encode(tokenizer, "s")
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


@pytest.fixture(scope="module")
def answering(tokenizer):
    """A tiny model that begins an answer to these prompts with a call, and goes on at random."""
    from tests.conftest import tiny_gemma

    model = tiny_gemma(vocab_size=VOCABULARY, layers=2, tie_word_embeddings=False)
    rng = np.random.default_rng(0)
    head = rng.integers(300, VOCABULARY, 12).tolist()
    prompts = [head + rng.integers(300, VOCABULARY, n).tolist() for n in (3, 1, 7, 2, 5)]
    with torch.no_grad():
        last = torch.stack([model.model(torch.tensor([p])).last_hidden_state[0, -1] for p in prompts])
        model.lm_head.weight[START] = torch.linalg.pinv(last) @ torch.full((len(prompts),), 1000.0)
    return model, head, prompts


def by_hand(model, prompt, constraint, limit):
    """Greedy decoding of the whole sequence again for each token, forced or not."""
    model.set_attn_implementation("eager")
    guide, answer = constraint.start(), []
    with torch.no_grad():
        while not guide.stopped and len(answer) < limit:
            logits = model(torch.tensor([prompt + answer]), logits_to_keep=1).logits[0, -1]
            answer.append(int(guide.allow(logits, limit - len(answer)).argmax()))
            guide.advance(answer[-1])
    return answer


def test_generation_equals_decoding_by_hand(answering, make, tokenizer):
    """In a batch of rows with different constraints, which run different numbers of tokens at a time, and alone."""
    model, head, prompts = answering
    tools = [LOG, STEPS, SLEEP, ANYTHING]
    constraints = [make(LOG), make(STEPS, SLEEP), make(LOG), make(ANYTHING, LOG), make()]
    limit = 40
    expected = [by_hand(model, p, c, limit) for p, c in zip(prompts, constraints, strict=True)]
    generator = generate.Generator(model)
    generator.warm(head)
    told = []
    found = generator.generate(prompts, limit, lambda *answer: told.append(answer), constraints=constraints)
    assert found == expected
    assert sorted(told) == list(enumerate(expected))
    assert len({len(answer) for answer in expected}) > 2
    for answer in expected[:4]:
        check(tokenizer.decode(answer), tools)
    assert expected[4][0] != START  # no tools, and so in words
    assert generator.generate(prompts, limit, batch_size=2, constraints=constraints) == expected
    alone = [generator.generate([p], limit, constraints=[c])[0] for p, c in zip(prompts, constraints, strict=True)]
    assert alone == expected


def test_rows_without_a_constraint_are_what_they_were(answering, make):
    model, head, prompts = answering
    generator = generate.Generator(model)
    generator.warm(head)
    plain = generator.generate(prompts, 20)
    assert generator.generate(prompts, 20, constraints=[None] * len(prompts)) == plain
    constraint = make(LOG)
    mixed = generator.generate(prompts, 20, constraints=[None, constraint, None, constraint, None])
    assert [mixed[i] for i in (0, 2, 4)] == [plain[i] for i in (0, 2, 4)]
    assert [mixed[i] for i in (1, 3)] == generator.generate(
        [prompts[i] for i in (1, 3)], 20, constraints=[constraint] * 2
    )
    assert mixed[1] != plain[1]


def test_forced_tokens_need_no_pass_of_their_own(answering, make):
    model, head, prompts = answering
    generator = generate.Generator(model)
    generator.warm(head)
    passes = []
    hook = model.model.register_forward_hook(lambda module, inputs, output: passes.append(output.last_hidden_state))
    try:
        constraint = make(STEPS)
        (answer,) = generator.generate(prompts[:1], 40, constraints=[constraint])
    finally:
        hook.remove()
    assert answer[0] == START
    # The only choice is whether to call again. One pass for the prompt, one for each call, none for the last token.
    calls = answer.count(START)
    assert calls > 1
    assert len(answer) == 8 * calls + 1
    assert [states.shape[1] for states in passes[1:]] == [8] * calls


def test_the_limit_cuts_forced_tokens_as_well(answering, make):
    model, head, prompts = answering
    generator = generate.Generator(model)
    generator.warm(head)
    full = generator.generate(prompts[:1], 40, constraints=[make(STEPS)])[0]
    for limit in range(1, 6):
        assert generator.generate(prompts[:1], limit, constraints=[make(STEPS)])[0] == full[:limit]


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
