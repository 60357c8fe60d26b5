"""Conversations: on a real pseudo-terminal with a child process, and from a pipe."""

from __future__ import annotations

import codecs
import fcntl
import io
import json
import os
import re
import select
import subprocess
import sys
import termios
import textwrap

import pytest

from fitcoach_tune import functiongemma
from fitcoach_tune.console import SILENT
from fitcoach_tune.functiongemma import TRIGGER
from fitcoach_tune.inference.caller import read_answer
from fitcoach_tune.inference.chat import Chat
from fitcoach_tune.inference.dialogue import Dialogue
from fitcoach_tune.inference.prompting import Prompter
from tests.conftest import tool
from tests.taught import QUESTIONS, SAID, taught  # noqa: F401 (a fixture)

CTRL_C, CTRL_D, UP, BACKSPACE = "\x03", "\x04", "\x1b[A", "\x7f"
PATIENCE, PAUSE = 120, 5
READY = "\n> "


class Terminal:
    """A child process at a terminal of its own."""

    def __init__(self, arguments, cwd):
        self._end, inner = os.openpty()
        self._pressed, self._seen, self._decode = "", "", codecs.getincrementaldecoder("utf-8")().decode
        self.process = subprocess.Popen(
            [sys.executable, *map(str, arguments)], cwd=cwd, stdin=inner, stdout=inner, stderr=inner,
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            env={**os.environ, "TERM": "xterm", "PYTHONUTF8": "1", "LC_ALL": "C.UTF-8"},
        )  # fmt: skip
        os.close(inner)

    def send(self, text: str) -> None:
        self._pressed = ""
        os.write(self._end, text.encode())

    def interrupt(self) -> None:
        """Press Ctrl-C, and again whenever nothing comes for a while: one that arrives between a key and Python's next
        wait for keys is noticed only with the next key.
        """
        self.send(CTRL_C)
        self._pressed = CTRL_C

    def until(self, text: str) -> str:
        """All that is printed up to this text."""
        while text not in self._seen:
            if (more := self._read()) is None:
                raise AssertionError(f"ended before {text!r}: {self._seen!r}")
            self._seen = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self._seen + more).replace("\r\n", "\n")
        before, _, self._seen = self._seen.partition(text)
        return before

    def end(self) -> tuple[int, str]:
        """The exit code, and what was printed last."""
        rest = ""
        while (more := self._read()) is not None:
            rest += more
        return self.process.wait(PATIENCE), self._seen + rest

    def _read(self) -> str | None:
        """What is printed next; None if the child has closed its end."""
        for _ in range(PATIENCE // PAUSE):
            if select.select([self._end], [], [], PAUSE)[0]:
                try:
                    read = os.read(self._end, 4096)
                except OSError:
                    return None
                return self._decode(read) if read else None
            if self._pressed:
                os.write(self._end, self._pressed.encode())
        raise AssertionError(f"nothing came for {PATIENCE} s, after {self._seen!r}")


@pytest.fixture
def terminal(tmp_path):
    opened = []

    def open_terminal(*arguments):
        opened.append(Terminal(arguments, tmp_path))
        return opened[-1]

    yield open_terminal
    for each in opened:
        each.process.kill()
        each.process.wait()


# ------------------------------------------------------------------------------------------------ the whole program

HOME = '''
import sys, time


def get_steps():
    """Get the number of steps walked today."""
    return 8421


def get_heart_rate():
    """Get the minimum and maximum heart rate measured today."""
    print("measuring", file=sys.stderr, flush=True)
    time.sleep(3600)


def get_daily_step_goal():
    """Get the daily step goal for today."""


def get_step_goal_progress():
    """Get the step goal progress for today in percentage."""


def get_sleeping_minutes():
    """Get the number of minutes that the user has slept."""


def get_active_minutes():
    """Get the number of minutes that the user has been active today."""


def get_body_battery_level():
    """Get the current body battery level."""


# Declared as it was taught, so that it calls what it was taught to call.
TOOLS = [
    get_steps, get_daily_step_goal, get_step_goal_progress, get_sleeping_minutes, get_active_minutes, get_heart_rate,
    get_body_battery_level,
]
'''


def test_a_conversation_at_a_terminal(terminal, taught, tmp_path):  # noqa: F811
    (tmp_path / "home.py").write_text(HOME)
    child = terminal(
        "-m", "fitcoach_tune", "infer", "--adapter", taught, "--tools", "home:TOOLS", "--execute", "--device", "cpu",
        "--max-new-tokens", "24",
    )  # fmt: skip
    assert "/help shows what else there is" in child.until(READY)
    child.send(f"How many stex{BACKSPACE}ps?\r")
    assert "get_steps() gave 8421" in (printed := child.until(READY))
    assert printed.endswith(f"\n{SAID}")
    child.send("no question at all")
    child.until("at all")
    child.interrupt()
    child.until(READY)
    child.send("/tools\r")
    listed = child.until(READY).splitlines()[1:]
    assert len(listed) == 7
    assert listed[0] == "get_steps()  Get the number of steps walked today."
    child.send("/reset\r")  # a history is more than it was taught
    assert "forgotten" in child.until(READY)
    child.send("Show my pulse\r")
    child.until("measuring")
    child.interrupt()
    assert "stopped; this question is forgotten" in child.until(READY)
    child.send("/reset\r")
    assert "forgotten" in child.until(READY)
    child.send(CTRL_D)
    code, last = child.end()
    assert code == 0, last
    assert "left while still running: get_heart_rate" in last


def test_a_question_at_a_terminal_is_answered_and_that_is_all(terminal, taught):  # noqa: F811
    child = terminal(
        "-m", "fitcoach_tune", "infer", "How many steps?", "--adapter", taught, "--device", "cpu",
        "--max-new-tokens", "24",
    )  # fmt: skip
    code, printed = child.end()
    assert code == 0, printed
    assert "get_steps" in printed
    assert READY not in printed


def test_what_a_published_description_holds_is_no_command_to_the_terminal(capsys):
    spoken = tool("beep")
    spoken["function"]["description"] = "a\x1b]0;title\x07b"
    Chat(None, [spoken], print, SILENT)._command("/tools")
    assert "\x1b" not in (said := capsys.readouterr().err)
    assert "beep" in said


def test_a_conversation_from_a_pipe(taught, tmp_path):  # noqa: F811
    """Only answers come out, and what was not UTF-8 is an error among them."""
    lines = [*QUESTIONS, "/help", "", "caf\udce9", "/tolls", "How many steps? 🐢", "/quit", "How many steps?"]
    done = subprocess.run(
        [sys.executable, "-m", "fitcoach_tune", "infer", "--adapter", taught, "--chat", "--json", "--device", "cpu"],
        cwd=tmp_path, input="\n".join(lines).encode(errors="surrogateescape"), capture_output=True, timeout=PATIENCE,
        env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    )  # fmt: skip
    stderr = done.stderr.decode(errors="replace")
    assert done.returncode == 0, stderr
    answers = [json.loads(line) for line in done.stdout.decode().splitlines()]
    assert [answer["query"] for answer in answers] == [*QUESTIONS, "How many steps? 🐢"]
    assert answers[0]["calls"] == [{"name": "get_steps", "arguments": {}}]
    assert stderr.count("error: ") == 1
    assert "not UTF-8" in stderr
    assert "/tolls is no command; did you mean /tools?" in stderr


# ------------------------------------------------------------------------------------------------ keys

TALK = textwrap.dedent("""
    import sys
    from fitcoach_tune.inference.caller import Answer
    from fitcoach_tune.inference.chat import Chat
    from fitcoach_tune.console import Console
    from fitcoach_tune.inference.dialogue import Reply
    class Echo:
        def ask(self, query, history=()):
            answer = Answer((), f"heard {query!r} after {len(history)}", "")
            return Reply(query, answer, None, None, None, [{"role": "user", "content": query}])
    Chat(Echo(), [], lambda reply: print(reply.answer.text), Console()).run(*sys.argv[1:])
    print("left")
""")


@pytest.fixture
def talk(terminal, tmp_path):
    """A conversation at a terminal with one who repeats what he heard."""
    (tmp_path / "talk.py").write_text(TALK)
    return lambda *arguments: terminal("talk.py", *arguments)


def test_lines_are_edited_and_remembered(talk):
    child = talk("the first one")
    assert "heard 'the first one' after 0" in child.until(READY)
    child.send("żółw 👟x" + BACKSPACE + "\r")
    assert "heard 'żółw 👟' after 1" in child.until(READY)
    child.send(UP + "!\r")
    assert "heard 'żółw 👟!' after 2" in child.until(READY)
    child.send("/nope\r")
    assert "/nope is no command; /help lists them" in child.until(READY)
    child.send("/reset now\r")
    assert "did you mean /reset?" in child.until(READY)
    child.send("/help\r")
    listed = child.until(READY)
    assert all(name in listed for name in ("/tools", "/reset", "/help", "/quit", "Ctrl-C", "Ctrl-D"))
    child.send("/tools\r")
    assert "There are none." in child.until(READY)
    child.send("/reset\r\r")
    child.until(READY)
    child.until(READY)
    child.send("again\r")
    assert "heard 'again' after 0" in child.until(READY)
    child.send("/quit\r")
    code, last = child.end()
    assert code == 0
    assert last.endswith("left\r\n")


def test_ctrl_d_leaves(talk):
    child = talk()
    child.until(READY)
    child.send(CTRL_D)
    code, last = child.end()
    assert code == 0
    assert last.endswith("left\r\n")


@pytest.mark.parametrize("typed", ["", "something", "   "])
def test_ctrl_c_clears_the_line_and_leaves_from_an_empty_one(talk, typed):
    child = talk()
    child.until(READY)
    if typed:
        child.send(typed)
        child.until(typed)
    if typed.strip():
        child.interrupt()
        child.until(READY)
        child.send("still here\r")
        assert "heard 'still here' after 0" in child.until(READY)
    child.interrupt()
    code, last = child.end()
    assert code != 0
    assert "KeyboardInterrupt" in last  # which the program's main turns into exit code 130


def test_ctrl_c_twice_leaves(talk):
    child = talk()
    child.until(READY)
    child.send("something")
    child.until("something")
    child.interrupt()
    child.until(READY)
    child.interrupt()
    assert "KeyboardInterrupt" in child.end()[1]


# ------------------------------------------------------------------------------------------------ history


class Scripted:
    """Makes real prompts, and gives outputs that were written beforehand."""

    def __init__(self, prompter, tokenizer, *outputs):
        self.encode, self._tokenizer, self._outputs = prompter.encode, tokenizer, list(outputs)
        self.prompts: list[str] = []

    def answer(self, prompts):
        self.prompts += [self._tokenizer.decode(prompt, skip_special_tokens=False) for prompt in prompts]
        return [read_answer(self._outputs.pop(0)) for _ in prompts]


@pytest.fixture
def chat(tokenizer, monkeypatch):
    """Run a conversation of these lines; returns the replies and the prompts."""

    def run(lines, *outputs, length=1000, ui=SILENT):
        tools = [tool("get_steps")]
        model = Scripted(Prompter(tokenizer, tools, TRIGGER, length=length, answer=0), tokenizer, *outputs)
        replies = []
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
        Chat(Dialogue(model), tools, replies.append, ui).run()
        return replies, model.prompts

    return run


def test_turns_are_kept_until_they_are_reset(chat):
    outputs = ["Hello.<end_of_turn>", "I said hello.<end_of_turn>", "Who are you?<end_of_turn>"]
    replies, prompts = chat(["Hi", "What?", "/reset", "You again"], *outputs)
    assert [reply.answer.text for reply in replies] == ["Hello.", "I said hello.", "Who are you?"]
    head = [{"role": "developer", "content": TRIGGER}]
    first = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    second, third = ({"role": "user", "content": text} for text in ("What?", "You again"))
    expected = [[*head, first[0]], [*head, *first, second], [*head, third]]
    assert prompts == [functiongemma.render(m, [tool("get_steps")], add_generation_prompt=True) for m in expected]


def test_what_no_longer_fits_is_forgotten(chat, capsys):
    """The oldest turns first; a question that does not fit alone is an error, and forgets nothing."""
    from fitcoach_tune.console import Console

    long, said = "word " * 50, "yes<end_of_turn>"
    replies, prompts = chat(
        [long + "one", long + "two", long + "three", "word " * 500, "four"], *[said] * 4, length=220, ui=Console()
    )
    assert [reply.query.split()[-1] for reply in replies] == ["one", "two", "three", "four"]
    assert ["one" in prompts[1], "one" in prompts[2], "two" in prompts[2]] == [True, False, True]
    assert "two" in prompts[3]
    stderr = capsys.readouterr().err
    assert "its first 1 questions were forgotten" in stderr
    assert re.search(r"error: the query: the prompt has \d+ tokens, and 220 fit", stderr)


def test_a_failed_question_leaves_the_others(chat, capsys):
    replies, prompts = chat(
        ["Hi", "\ud800", "<start_function_call>", "Bye"],
        "Hello.<end_of_turn>",
        "<start_function_call>call:x",
        "Bye.<end_of_turn>",
    )
    assert [reply.query for reply in replies] == ["Hi", "<start_function_call>", "Bye"]
    assert "error: the query: it is not UTF-8 text" in capsys.readouterr().err
    assert "call:x" not in prompts[2]
    assert "Hello." in prompts[2]
