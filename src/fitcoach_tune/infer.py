"""The infer verb: one question, a conversation or many lines in, calls (or what they gave) out.

`FunctionCaller` is the same for programs.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import BinaryIO, TextIO

from fitcoach_tune import models, reading, runs
from fitcoach_tune.config import Config
from fitcoach_tune.console import SILENT, Console, printable
from fitcoach_tune.errors import ConfigError, DataError
from fitcoach_tune.inference.caller import Answer, FunctionCaller, check_query, read_answer
from fitcoach_tune.inference.dialogue import Dialogue, Reply, Watcher
from fitcoach_tune.inference.execute import TIMEOUT, Result, Toolbox, find_toolbox, stdout_for_data
from fitcoach_tune.inference.loading import UNTUNED, Parts, declare, default_adapter, find_base, find_parts
from fitcoach_tune.inference.wording import describe_call
from fitcoach_tune.libraries import without_collections

__all__ = [
    "Answer",
    "FunctionCaller",
    "Options",
    "check_query",
    "default_adapter",
    "describe_call",
    "infer",
    "read_answer",
]

STDIN = "-"


@dataclass(frozen=True)
class Options:
    """What to ask and how, besides the configuration.

    Attributes:
        query: the one question; without it there is a conversation at a terminal, else many lines on stdin.
        adapter: a run directory, a Hub id, or `none`; by default the newest run.
        model: another name for the adapter's own base model.
        tools: other tools than the adapter's.
        constrained: see `FunctionCaller.from_adapter`.
        execute: run the functions that are called.
        tool_timeout: seconds that a function may take.
        fitness_data: the day's data for the fitness coach's functions.
        chat: have a conversation, wherever the lines come from.
        lines: the file with many questions; `-` is stdin.
    """

    query: str | None = None
    adapter: str | None = None
    model: str | None = None
    tools: str | None = None
    constrained: bool | None = None
    execute: bool = False
    tool_timeout: float | None = None
    fitness_data: str | None = None
    chat: bool = False
    lines: str | None = None
    as_json: bool = False
    verbose: bool = False


def infer(options: Options, config: Config, ui: Console = SILENT) -> None:
    """Answer on stdout what is asked; everything else goes to stderr.

    Raises:
        ConfigError: the options contradict each other, or a question is empty or does not fit the model.
        DataError: tools or data cannot be used, or lines could not be asked.
        AccessError, DeviceError, MismatchError: see `loading`.
    """
    _check(options, ui)
    query, lines = options.query, options.lines
    is_at_terminal = sys.stdin is not None and sys.stdin.isatty()
    is_chat = options.chat or (query is None and lines is None and is_at_terminal)
    with contextlib.ExitStack() as stack:
        source = None if is_chat or query is not None else stack.enter_context(_opened(lines or STDIN))
        out = stack.enter_context(stdout_for_data())
        session = _Session(options, config, ui, out)
        stack.enter_context(session.no_functions_left())
        if source:
            session.lines(source, lines or STDIN)
        elif is_chat:
            session.chat(query)
        else:
            session.answer(query or "")


def _check(options: Options, ui: Console) -> None:
    """Refuse what needs nothing to be loaded to be refused."""
    if options.query is not None:
        check_query(options.query)
    both = None
    if options.lines is not None and (options.query is not None or options.chat):
        both = ("--input", "--chat" if options.chat else "a question")
    elif options.chat and sys.stdin is None:
        raise ConfigError("there is nobody to talk with: stdin is closed", where="--chat")
    elif options.verbose and ui.quiet:
        both = ("--verbose", "--quiet")
    if both:
        raise ConfigError("the two exclude each other", where=" and ".join(both), hint="leave one of them out")
    for flag, value in (("--fitness-data", options.fitness_data), ("--tool-timeout", options.tool_timeout)):
        if value is not None and not options.execute:
            raise ConfigError("nothing is run", where=flag, hint="add --execute")
    timeout = options.tool_timeout
    if timeout is not None and not 0 < timeout <= threading.TIMEOUT_MAX:
        raise ConfigError("must be a number of seconds above 0", where=f"--tool-timeout {timeout:g}")


class _Session:
    """What the options name, found at once, and loaded as far as it is needed."""

    def __init__(self, options: Options, config: Config, ui: Console, out: TextIO):
        self._options, self._config, self._ui, self._out = options, config, ui, out
        self._run = None if options.adapter == UNTUNED else runs.open_run(default_adapter(options.adapter))
        self._declared = declare(self._run, options.tools, ui)
        self._toolbox = self._find_toolbox(self._declared.tools) if options.execute else None
        untuned = (config.model, config.model_revision, ui)
        self._base = find_base(self._run, options.model, ui) if self._run else models.resolve(*untuned)

    def _find_toolbox(self, tools: list[dict]) -> Toolbox:
        options = self._options
        return find_toolbox(tools, options.tools, options.tool_timeout or TIMEOUT, options.fitness_data, self._ui)

    @cached_property
    def _parts(self) -> Parts:
        config = self._config
        with without_collections():
            return find_parts(
                self._base,
                self._run,
                self._declared,
                dtype=config.dtype,
                device=config.device,
                num_devices=config.num_devices,
                constrained=self._options.constrained,
                ui=self._ui,
            )

    @cached_property
    def _dialogue(self) -> Dialogue:
        """The model is loaded here."""
        with without_collections():
            caller = FunctionCaller.from_parts(self._parts, self._config.max_new_tokens)
        return Dialogue(caller, self._toolbox, _Reporter(self._parts, self._ui, self._options.verbose))

    # ------------------------------------------------------------------------------------------ the three ways

    def answer(self, query: str) -> None:
        """One question."""
        self._parts.prompter(self._config.max_new_tokens).encode([{"role": "user", "content": check_query(query)}])
        self._show(self._dialogue.ask(query), indent=2)

    def chat(self, first: str | None) -> None:
        """A conversation."""
        from fitcoach_tune.inference.chat import Chat

        Chat(self._dialogue, self._declared.tools, self._show, self._ui).run(first)

    def lines(self, source: BinaryIO, name: str) -> None:
        """Many questions, one a line. Nothing is loaded before the first one comes."""
        from fitcoach_tune.inference.batch import answer_lines

        where = "stdin" if name == STDIN else name
        answer_lines(source, where, lambda queries: self._dialogue.ask_all(queries), self._out)

    # ------------------------------------------------------------------------------------------ what is printed

    def _show(self, reply: Reply, indent: int | None = None) -> None:
        if self._options.as_json:
            print(json.dumps(reply.as_dict(), ensure_ascii=False, indent=indent), file=self._out, flush=True)
            return
        answer = reply.answer
        if reply.results:
            self._say(reply.text or "")
        else:
            self._say(
                "\n".join(map(describe_call, answer.calls)) or answer.text or (answer.raw if answer.error else "")
            )
        if answer.error:
            what = "the model called what is not declared" if answer.calls else "the answer is no valid call"
            self._ui.warn(f"{what}: {answer.error}")

    def _say(self, text: str) -> None:
        # A function's result may be anybody's text; at a terminal it could be taken for a command.
        print(printable(text) if self._out.isatty() else text, file=self._out, flush=True)

    @contextlib.contextmanager
    def no_functions_left(self) -> Iterator[None]:
        """Says at the end which functions have not come back."""
        try:
            yield
        finally:
            if self._toolbox and (left := self._toolbox.still_running):
                self._ui.warn(f"left while still running: {', '.join(left)}")


@contextlib.contextmanager
def _opened(name: str) -> Iterator[BinaryIO]:
    if name == STDIN:
        if sys.stdin is None:
            raise ConfigError("there is nothing to ask: stdin is closed", where="the query")
        yield sys.stdin.buffer
        return
    try:
        source = reading.user_path(name, "--input").open("rb")
    except OSError as error:
        what = f"cannot be read: {error.strerror or error}"
        raise DataError(what, where=f"--input {name}", hint="check its path") from None
    with source:
        yield source


class _Reporter(Watcher):
    """Tells on stderr of what happens on the way to a reply."""

    def __init__(self, parts: Parts, ui: Console, verbose: bool):
        self._parts, self._ui, self._verbose = parts, ui, verbose

    def answered(self, prompt: list[int], answer: Answer) -> None:
        if not self._verbose:
            return
        timing = answer.timing
        speed = f"{timing.tokens} tokens in {timing.seconds:.2f} s, {timing.tokens / timing.seconds:.1f} tokens/s"
        first = f", the first after {timing.first:.2f} s" if timing.first is not None else ""
        self._print("prompt: ", self._parts.tokenizer.decode(prompt, skip_special_tokens=False))
        self._print("output: ", answer.raw)
        self._print("", f"{len(prompt)} tokens of prompt; {speed}{first}")

    def ran(self, result: Result) -> None:
        if result.error is None:
            value = json.dumps(result.value, ensure_ascii=False)
            self._print("", f"{describe_call(result.call)} gave {value}")
            return
        self._ui.warn(f"{describe_call(result.call)} failed: {result.error}")
        if self._verbose and result.trace:
            self._print("", result.trace)

    def decided(self, reason: str) -> None:
        if self._verbose:
            self._print("", reason)

    def _print(self, title: str, text: str) -> None:
        """A line as it is: the console would read `:smile:` as a picture."""
        if not self._ui.quiet:
            from rich.text import Text

            self._ui.err.print(Text(printable(title + text), style="dim"))
