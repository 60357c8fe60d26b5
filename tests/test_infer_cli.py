"""The infer verb on a tiny model that has learnt the fitness coach's calls: its modes, --execute, its streams."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from fitcoach_tune import cli, fitness, functiongemma
from fitcoach_tune.infer import FunctionCaller
from fitcoach_tune.tool_checks import CallChecker

from .taught import QUESTIONS, SAID, STEPS, taught, tokenizers  # noqa: F401 (fixtures)

ODD = [
    "How many stps did i tkae???", "whats my hart rate", "Sing me a song", "What is the capital of France?", "🏃‍♀️🏃‍♀️",
    "كم خطوة مشيت؟", "call get_sleep_metrics", "…", "0", "x" * 500,
    "<start_function_call>call:get_calories{}<end_function_call>",
]  # fmt: skip
SPEAKS = {
    "get_daily_step_goal": "Your goal for today is 10,000 steps.",
    "get_step_goal_progress": "You have reached 84% of today's step goal.",
    "get_sleeping_minutes": "You have slept 7 h 17 min (437 minutes).",
    "get_active_minutes": "You have been active for 52 minutes today.",
    "get_heart_rate": "Your heart rate today was between 54 and 132 beats a minute.",
    "get_body_battery_level": "Your body battery is at 61%.",
}


@pytest.fixture
def program(taught, tokenizers, monkeypatch, tmp_path):  # noqa: F811
    """Run the command line in this process, in a folder of the test's own."""

    def run(*arguments, stdin: str | bytes = ""):
        monkeypatch.chdir(tmp_path)
        short = ["--adapter", taught, "--device", "cpu", "--max-new-tokens", "24"]
        return CliRunner().invoke(cli.app, ["infer", *map(str, [*arguments, *short])], input=stdin)

    return run


@pytest.fixture(scope="module")
def caller(taught):  # noqa: F811
    return FunctionCaller.from_adapter(str(taught), device="cpu", max_new_tokens=24)


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def refused(done, code: int) -> str:
    assert done.exit_code == code, (done.stderr, done.exception)
    assert done.stdout == ""
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr
    return done.stderr


# ------------------------------------------------------------------------------------------------ what is asked


def test_the_seven_questions(caller):
    for query, name in QUESTIONS.items():
        answer = caller(query)
        assert [(call.name, call.arguments) for call in answer.calls] == [(name, {})]
        assert (answer.constrained, answer.error) == (True, None)


def test_typos_and_what_is_out_of_scope(caller):
    """Whatever is asked: what comes out is text, or calls of the seven functions."""
    checker = CallChecker()
    answers = [caller(query) for query in ODD]
    assert any(answer.calls for answer in answers)
    for answer in answers:
        assert answer.error is None or not answer.raw.endswith(functiongemma.STOP_TOKENS)  # cut off in the middle
        for call in answer.calls:
            assert list(checker.call_problems(call.name, call.arguments, caller.tools)) == []
    assert caller.answer([caller.prompt(query) for query in ODD]) == answers


def test_an_interrupted_answer_leaves_no_trace(caller):
    """The next question is answered as if nothing had been."""
    expected = caller("How many steps?")
    model, passes = caller._generator.model.model, []

    def interrupt(*_):
        passes.append(1)
        if len(passes) == 2:
            raise KeyboardInterrupt

    hook = model.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        caller("Show my pulse")
    hook.remove()
    assert not model._forward_pre_hooks
    assert caller("How many steps?") == expected


def test_many_questions(program):
    """All languages through stdin and stdout; one of them in a row's place that cannot be asked."""
    queries = [*QUESTIONS, *ODD, "How many steps?" * 20]
    sent = [json.dumps({"query": query}, ensure_ascii=False) for query in queries]
    done = program(stdin="\n".join([*sent[:3], "", "oops", *sent[3:]]).encode())
    assert done.exit_code == 3, done.exception
    found = lines(done.stdout)
    assert found.pop(3) == {"line": 5, "error": "not valid JSON at column 1: expecting value"}
    assert [line["query"] for line in found] == queries
    assert [line["calls"] for line in found[:7]] == [[{"name": name, "arguments": {}}] for name in QUESTIONS.values()]
    assert "stdin: 1 of 20 lines could not be asked; the others are answered" in done.stderr
    assert "line 5: " in done.stderr


def test_a_file_with_questions_whose_functions_are_run(program, tmp_path):
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"query": query}) + "\n" for query in QUESTIONS))
    done = program("--input", "in.jsonl", "--execute")
    assert done.exit_code == 0, done.stderr
    found = lines(done.stdout)
    assert [line["results"][0]["name"] for line in found] == list(QUESTIONS.values())
    assert [line["answer_from"] for line in found] == ["model"] + 6 * ["results"]
    assert [line["answer"] for line in found] == [SAID, *SPEAKS.values()]


@pytest.mark.parametrize("arguments", [[], ["--input", "-"], ["--input", "empty.jsonl"]])
def test_empty_input(program, tmp_path, arguments, monkeypatch):
    """Nothing comes out, and no model is loaded for it."""
    (tmp_path / "empty.jsonl").write_text("\n\n")
    monkeypatch.setattr(FunctionCaller, "from_parts", lambda *_: pytest.fail("the model was loaded"))
    done = program(*arguments)
    assert (done.exit_code, done.stdout, done.exception) == (0, "", None)


# ------------------------------------------------------------------------------------------------ --execute


def test_the_model_s_own_words_where_they_tell_the_result(program):
    done = program("How many steps?", "--execute", "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == {
        "query": "How many steps?",
        "calls": [{"name": "get_steps", "arguments": {}}],
        "text": "",
        "raw": "<start_function_call>call:get_steps{}<end_function_call><start_function_response>",
        "constrained": True,
        "results": [{"name": "get_steps", "arguments": {}, "result": STEPS}],
        "answer": SAID,
        "answer_from": "model",
    }
    assert "sample data" in done.stderr
    assert "get_steps() gave 8421" in done.stderr


def test_other_data_than_the_model_has_learnt_to_say(program, tmp_path):
    """It says 8421 whatever the result is, so its words are not taken."""
    (tmp_path / "day.json").write_text('{"steps": 12345}')
    done = program("How many steps?", "--execute", "--fitness-data", "day.json", "--verbose")
    assert (done.exit_code, done.stdout) == (0, "You have walked 12,345 steps today.\n")
    assert "sample data" not in done.stderr
    assert "response:get_steps{value:12345}<end_function_response>" in done.stderr
    assert "the answer is made of the results, and not in the model's words" in done.stderr
    assert " tokens/s" in done.stderr


SPY = """
from pathlib import Path
from fitcoach_tune import fitness

def get_steps() -> int:
    '''
    Get the number of steps walked today.

    Returns:
        int: The number of steps taken today
    '''
    Path("ran").touch()

TOOLS = [get_steps if tool["function"]["name"] == "get_steps" else tool for tool in fitness.tools()]
"""


def test_nothing_is_run_without_execute(program, tmp_path):
    (tmp_path / "spy.py").write_text(SPY)
    done = program("How many steps?", "--tools", "spy:TOOLS")
    assert (done.exit_code, done.stdout) == (0, "get_steps()\n")
    assert "not the tools" not in done.stderr
    assert not (tmp_path / "ran").exists()
    sys.modules.pop("spy")


@pytest.mark.parametrize(("arguments", "code", "part"), [
    (["q", "--input", "x.jsonl"], 2, "--input and a question: the two exclude each other"),
    (["--chat", "--input", "x.jsonl"], 2, "--input and --chat"),
    (["q", "--verbose", "--quiet"], 2, "--verbose and --quiet"),
    (["q", "--fitness-data", "day.json"], 2, "--fitness-data: nothing is run"),
    (["q", "--tool-timeout", "3"], 2, "--tool-timeout: nothing is run"),
    (["q", "--execute", "--tool-timeout", "0"], 2, "--tool-timeout 0: must be a number of seconds above 0"),
    (["q", "--execute", "--tool-timeout", "nan"], 2, "--tool-timeout nan: must be"),
    (["q", "--execute", "--fitness-data", "none.json"], 3, "none.json: cannot be read"),
    (["--input", "none.jsonl"], 3, "--input none.jsonl: cannot be read"),
    (["q", "--execute", "--tools", "tools.json"], 2, "there are no functions in a file"),
    (["q", "--execute", "--tools", "nowhere:TOOLS"], 3, "there is no module 'nowhere'"),
    (["  "], 2, "nothing to ask"),
    (["x " * 5000], 2, "and 4072 fit before an answer of 24"),
])  # fmt: skip
def test_refused_before_a_model_is_loaded(program, tmp_path, monkeypatch, arguments, code, part):
    (tmp_path / "tools.json").write_text(json.dumps(fitness.tools()))
    monkeypatch.setattr(FunctionCaller, "from_parts", lambda *_: pytest.fail("the model was loaded"))
    assert part in refused(program(*arguments), code)


def test_an_adapter_with_other_tools_has_no_functions(finished_run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli.app, ["infer", "hi", "--adapter", str(finished_run[1]), "--execute"])
    assert "--execute: an adapter has the declarations of its tools, and not the functions" in refused(done, 2)


# ------------------------------------------------------------------------------------------------ a process of its own

HOME = '''
import asyncio, os, subprocess, time

print("imported")


def get_steps():
    """Get the number of steps walked today."""
    print("counting", flush=True)
    os.write(1, b"past Python\\n")
    subprocess.run(["echo", "from a child"], check=True)
    import beside

    return beside.STEPS


async def get_heart_rate():
    """Get the minimum and maximum heart rate measured today."""
    await asyncio.sleep(3600)


def get_sleeping_minutes():
    """Get the number of minutes that the user has slept."""
    while True:
        print("still here", flush=True)
        time.sleep(0.01)


def get_active_minutes():
    """Get the number of minutes that the user has been active today."""
    raise ValueError("no band")


def get_daily_step_goal():
    """Get the daily step goal for today."""


def get_step_goal_progress():
    """Get the step goal progress for today in percentage."""


def get_body_battery_level():
    """Get the current body battery level."""


# Declared as it was taught, so that it calls what it was taught to call.
TOOLS = [
    get_steps, get_daily_step_goal, get_step_goal_progress, get_sleeping_minutes, get_active_minutes, get_heart_rate,
    get_body_battery_level,
]
'''


def test_functions_that_print_hang_and_fail(taught, tmp_path):  # noqa: F811
    """stdout has the answers and nothing else, every failure is told, and the program ends."""
    (tmp_path / "home.py").write_text(HOME)
    (tmp_path / "beside.py").write_text("STEPS = {'count': 8421, 'note': 'żółw <end_of_turn> 🐢'}\n")
    asked = ["How many steps?", "Show my pulse", "Display my sleep metrics", "How long was I active?"]
    done = subprocess.run(
        [
            os.path.join(os.path.dirname(sys.executable), "fitcoach-tune"), "infer", "--adapter", taught, "--tools",
            "home:TOOLS", "--execute", "--tool-timeout", "0.3", "--device", "cpu", "--max-new-tokens", "24",
        ],
        cwd=tmp_path, input="".join(json.dumps(query) + "\n" for query in asked).encode(), capture_output=True,
        timeout=120, env={**os.environ, "PYTHONIOENCODING": "latin-1"},
    )  # fmt: skip
    stderr = done.stderr.decode("latin-1")
    assert done.returncode == 0, stderr
    found = lines(done.stdout.decode())
    called = [line["calls"][0]["name"] for line in found]
    assert called == ["get_steps", "get_heart_rate", "get_sleeping_minutes", "get_active_minutes"]
    results = [line["results"][0] for line in found]
    assert results[0]["result"] == {"count": 8421, "note": "żółw <end_of_turn> 🐢"}
    assert [result.get("error") for result in results[1:]] == [
        "there was no result within 0.3 s", "there was no result within 0.3 s", "ValueError: no band",
    ]  # fmt: skip
    assert found[2]["answer"] == "get_sleeping_minutes failed: there was no result within 0.3 s"
    for printed in ("imported", "counting", "past Python", "from a child", "still here"):
        assert printed in stderr
    assert "warning: get_active_minutes() failed: ValueError: no band" in stderr
    assert "warning: left while still running: get_heart_rate, get_sleeping_minutes" in stderr


@pytest.mark.parametrize("how", [[], ["--unconstrained"]], ids=["constrained", "unconstrained"])
def test_what_a_plain_question_does_not_load(taught, tmp_path, how):  # noqa: F811
    """Importing transformers and its model takes as long as everything else."""
    code = (
        "import sys\n"
        "read = []\n"
        "def watch(frame, event, what):\n"
        "    if event == 'c_call' and what.__name__ in ('from_file', 'from_str', 'from_buffer'): read.append(1)\n"
        "sys.setprofile(watch)\n"
        "from fitcoach_tune import cli\n"
        "try: cli.app(sys.argv[1:])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "sys.setprofile(None)\n"
        "heavy = {'peft', 'datasets', 'pandas', 'pyarrow', 'sklearn', 'matplotlib', 'rapidfuzz'}\n"
        "heavy |= {'transformers', 'accelerate', 'scipy', 'sympy', 'jinja2', 'torch._dynamo'}\n"
        "unneeded = {'fitcoach_tune.train', 'fitcoach_tune.inference.chat', 'fitcoach_tune.inference.batch'}\n"
        "unneeded |= {'llguidance'} if '--unconstrained' in sys.argv else set()\n"
        "print(sorted((heavy | unneeded) & set(sys.modules)), len(read), file=sys.stderr)\n"
    )
    ask = ["infer", "How many steps?", "--adapter", taught, *how, "--quiet", "--device", "cpu"]
    done = subprocess.run([sys.executable, "-c", code, *map(str, ask)], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "get_steps()\n", done.stderr
    assert done.stderr == "[] 1\n"


def test_the_prefix_and_the_constraint_are_made_once(taught, program, monkeypatch):  # noqa: F811
    """However many questions come, and in however many batches."""
    from fitcoach_tune.evaluate import constrain, generate

    made, warmed = [], []
    init, prefix_pass = constrain.Constraint.__init__, generate.Generator._prefix_pass
    monkeypatch.setattr(constrain.Constraint, "__init__", lambda *given: (made.append(1), init(*given))[1])
    monkeypatch.setattr(generate.Generator, "_prefix_pass", lambda *given: (warmed.append(1), prefix_pass(*given))[1])
    done = program("--execute", stdin='"How many steps?"\n' * 40)
    assert done.exit_code == 0, done.stderr
    assert [line["answer"] for line in lines(done.stdout)] == [SAID] * 40
    assert (made, warmed) == ([1], [1])
