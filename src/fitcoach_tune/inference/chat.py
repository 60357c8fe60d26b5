"""Talking to a model at the terminal: a line is a question, and what was said before stays in its mind."""

from __future__ import annotations

import contextlib
import difflib
import sys
from collections.abc import Callable
from types import ModuleType

from fitcoach_tune.console import Console, printable
from fitcoach_tune.errors import ConfigError
from fitcoach_tune.inference.dialogue import Dialogue, Reply
from fitcoach_tune.inference.prompting import PromptTooLong

COMMANDS = {
    "/tools": "the functions that can be called",
    "/reset": "forget what was said",
    "/help": "this list",
    "/quit": "leave",
}
_PROMPT = "> "
_KEYS = "Ctrl-C stops an answer or clears the line, and leaves from an empty one; Ctrl-D leaves."


class Chat:
    """One conversation.

    Args:
        show: prints a reply. What commands print goes to stderr.
    """

    def __init__(self, dialogue: Dialogue, tools: list[dict], show: Callable[[Reply], None], ui: Console):
        self._dialogue, self._tools, self._show, self._ui = dialogue, tools, show, ui
        self._turns: list[list[dict]] = []

    def run(self, first: str | None = None) -> None:
        """Ask `first`, then read and ask until the end of the input, or `/quit`.

        Raises:
            KeyboardInterrupt: the user left with Ctrl-C.
        """
        readline = _prepare_input()
        self._ui.note("Ask something; /help shows what else there is, Ctrl-D leaves.")
        line: str | None = first if first is not None else self._read(readline)
        while line is not None and line != "/quit":
            if line.startswith("/"):
                self._command(line)
            elif line:
                self._ask(line)
            line = self._read(readline)

    def _read(self, readline: ModuleType | None) -> str | None:
        """The next line; empty if it was cleared, None at the end of the input."""
        try:
            return input(_PROMPT if sys.stdin.isatty() else "").strip()
        except EOFError:
            if sys.stdin.isatty():
                print(file=sys.stderr)
            return None
        except KeyboardInterrupt:
            print(file=sys.stderr)
            if not readline or not readline.get_line_buffer().strip():
                raise
        return ""

    def _command(self, line: str) -> None:
        if line == "/help":
            width = max(map(len, COMMANDS))
            _say("\n".join([*(f"{name:{width}}  {what}" for name, what in COMMANDS.items()), _KEYS]))
        elif line == "/tools":
            _say("\n".join(map(_as_line, self._tools)) or "There are none.")
        elif line == "/reset":
            self._turns.clear()
            self._ui.note("forgotten")
        else:
            near = difflib.get_close_matches(line.split()[0], COMMANDS, n=1)
            self._ui.warn(
                f"{line.split()[0]} is no command; {f'did you mean {near[0]}?' if near else '/help lists them'}"
            )

    def _ask(self, query: str) -> None:
        try:
            reply = self._reply(query)
        except ConfigError as error:
            print(f"error: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            print(file=sys.stderr)
            self._ui.note("stopped; this question is forgotten")
        else:
            self._show(reply)
            if reply.messages:
                self._turns.append(reply.messages)

    def _reply(self, query: str) -> Reply:
        """Ask behind all that was said, or behind as much of it as fits."""
        dropped = 0
        while True:
            try:
                reply = self._dialogue.ask(query, [message for turn in self._turns[dropped:] for message in turn])
                break
            except PromptTooLong:
                if dropped == len(self._turns):
                    raise
                dropped += 1
        if dropped:
            del self._turns[:dropped]
            self._ui.note(f"the conversation has become too long: its first {dropped} questions were forgotten")
        return reply


def _say(text: str) -> None:
    print(printable(text), file=sys.stderr)


def _prepare_input() -> ModuleType | None:
    """The line editor: importing it makes `input` edit lines and remember them, where both ends are a terminal."""
    if hasattr(sys.stdin, "reconfigure"):
        # Other bytes than UTF-8 are found when the line is asked, and no reason to lose those behind it.
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    if sys.stdin.isatty() and sys.stdout.isatty():
        with contextlib.suppress(ImportError):
            import readline

            return readline
    return None


def _as_line(tool: dict) -> str:
    function = tool["function"]
    names = function.get("parameters", {}).get("properties", {})
    return f"{function['name']}({', '.join(names)})  {' '.join(function.get('description', '').split())}".rstrip()
