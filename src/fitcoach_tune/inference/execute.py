"""Running the functions that a model calls, in this process: checked first, limited in time, and never fatal."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import inspect
import json
import os
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from fitcoach_tune import functiongemma
from fitcoach_tune.builtin import FITNESS
from fitcoach_tune.errors import ConfigError
from fitcoach_tune.functiongemma import Call
from fitcoach_tune.functiongemma.tokens import ANY_CONTROL_TOKEN
from fitcoach_tune.inference.loading import same_declarations
from fitcoach_tune.inference.wording import undeclared
from fitcoach_tune.reading import user_path
from fitcoach_tune.strict_json import Flaw, parse_json, shorten
from fitcoach_tune.tool_checks import CallChecker
from fitcoach_tune.tools import module_object, read_tools

if TYPE_CHECKING:
    from fitcoach_tune.console import Console
    from fitcoach_tune.inference.wording import Sentences

TIMEOUT = 30.0
"""Seconds that a function may take, unless the user says otherwise."""
_LONGEST_ERROR = 500
_THREAD = "tool "
_NEEDS_FUNCTIONS = f"give --tools module:object, where the object is a list of functions, or --tools {FITNESS}"


@dataclass(frozen=True)
class Result:
    """What came of a call.

    Attributes:
        value: what the function returned, as JSON values.
        error: why there is no value, or None.
        trace: the function's own traceback, where it raised.
    """

    call: Call
    value: Any = None
    error: str | None = None
    trace: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """{"name": …, "arguments": {…}, "result": …}, or with "error" in place of "result"."""
        outcome = {"result": self.value} if self.error is None else {"error": self.error}
        return {"name": self.call.name, "arguments": self.call.arguments} | outcome

    def as_message(self) -> dict[str, Any]:
        """The message that tells the model of it."""
        value = self.value if self.error is None else {"error": self.error}
        response = value if isinstance(value, dict) else {"value": value}
        return {"role": "tool", "content": {"name": self.call.name, "response": response}}


class Toolbox:
    """Functions that may be run.

    Args:
        tools: their declarations, in the common form; arguments have to fit them.
        functions: by name, one for each tool.
        timeout: seconds after which a call is given up. Its thread cannot be ended, and may go on.
        sentences: how to say the results of some of them.
    """

    def __init__(
        self,
        tools: list[dict],
        functions: Mapping[str, Callable[..., Any]],
        timeout: float = TIMEOUT,
        sentences: Sentences | None = None,
    ):
        self.sentences: Sentences = sentences or {}
        self._tools, self._functions, self._timeout = tools, functions, timeout
        self._checker = CallChecker()
        self._begun: list[tuple[str, threading.Event]] = []

    @property
    def still_running(self) -> list[str]:
        """The functions that were given up and have not come back."""
        return [name for name, over in self._begun if not over.is_set()]

    def run(self, call: Call) -> Result:
        """Run one call, with keyword arguments alone, unless it does not fit the declarations. Never raises for it."""
        if problems := self._problems(call):
            return Result(call, error=shorten("; ".join(problems), _LONGEST_ERROR))
        found: list[Result] = []
        over = threading.Event()

        def work() -> None:
            found.append(_run(self._functions[call.name], call))
            over.set()

        # Noted before it begins: Ctrl-C may come while it does.
        self._begun = [*(one for one in self._begun if not one[1].is_set()), (call.name, over)]
        # A daemon, or a function that never returns would keep the program from ending. And no join: Python takes a
        # thread for ended when waiting for it is interrupted.
        threading.Thread(target=work, name=_THREAD + call.name, daemon=True).start()
        is_over = over.wait(self._timeout)
        return found[0] if is_over else Result(call, error=f"there was no result within {self._timeout:g} s")

    def _problems(self, call: Call) -> list[str]:
        if call.name not in self._functions:
            return [undeclared(call.name, self._functions)]
        return [
            f"{where}: {what}" for where, what in self._checker.call_problems(call.name, call.arguments, self._tools)
        ]


def _run(function: Callable[..., Any], call: Call) -> Result:
    try:
        value = function(**copy.deepcopy(call.arguments))
        if inspect.isawaitable(value):
            value = asyncio.run(_await(value))
    except BaseException as error:  # somebody's program: it can fail in any way, or try to exit
        return _raised(call, error)
    return _carried(call, value)


async def _await(value: Awaitable[Any]) -> Any:
    return await value


def _raised(call: Call, error: BaseException) -> Result:
    try:
        # A path in it may have bytes that are no UTF-8, and nobody could print it.
        text = " ".join(str(error).encode(errors="replace").decode().split())
    except Exception:  # an exception's own text is made by somebody's program, too
        text = ""
    ours = error.__traceback__
    lines = traceback.format_exception(type(error), error, ours and ours.tb_next)
    message = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return Result(call, error=shorten(message, _LONGEST_ERROR), trace="".join(lines).rstrip())


def _carried(call: Call, value: Any) -> Result:
    """The value as JSON has it (a tuple is a list there), if JSON and the wire format can carry it."""
    try:
        value = parse_json(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError, Flaw) as error:
        return Result(call, error=f"it returned what JSON cannot carry: {shorten(str(error), 200)}")
    except BaseException as error:  # a subclass of list or dict, with methods of its own
        return _raised(call, error)
    response = _without_control_tokens(value if isinstance(value, dict) else {"value": value})
    for problem in functiongemma.call_problems(Call(call.name, response)):
        problem = problem.replace("arguments", "result", 1)
        return Result(call, error=f"it returned what the model cannot be told: {problem}")
    return Result(call, value)


def _without_control_tokens(value: Any) -> Any:
    """The same, but for those that are spelt in it: a prompt carries them as letters."""
    if isinstance(value, str):
        return ANY_CONTROL_TOKEN.sub("_", value)
    if isinstance(value, dict):
        return {_without_control_tokens(key): _without_control_tokens(inner) for key, inner in value.items()}
    return [_without_control_tokens(inner) for inner in value] if isinstance(value, list) else value


# ------------------------------------------------------------------------------------------------ finding functions


def find_toolbox(
    tools: list[dict], source: str | None, timeout: float, fitness_data: str | None, ui: Console
) -> Toolbox:
    """The functions behind the tools that a model is told of.

    Args:
        tools: in the common form.
        source: where `read_tools` got them from; None if they are those that an adapter was trained with, which can
            be run if they are exactly the fitness coach's.
        fitness_data: the day's data for the fitness coach; see `fitness.provider`.

    Raises:
        ConfigError: there are no functions behind them, or `fitness_data` is given and others are run.
        DataError: the day's data cannot be read.
    """
    if source == FITNESS or (source is None and same_declarations(tools, read_tools(FITNESS))):
        from fitcoach_tune.fitness.provider import SENTENCES, Provider

        if fitness_data is None:
            ui.note("the results are sample data; --fitness-data FILE reads yours")
        provider = Provider(user_path(fitness_data, "--fitness-data") if fitness_data is not None else None)
        return Toolbox(tools, provider.functions(), timeout, SENTENCES)
    if fitness_data is not None:
        raise ConfigError("other tools are run than the fitness coach's", where="--fitness-data", hint="leave it out")
    if source is None:
        what = "an adapter has the declarations of its tools, and not the functions"
        raise ConfigError(what, where="--execute", hint=_NEEDS_FUNCTIONS)
    return Toolbox(tools, _functions(tools, source), timeout)


def _functions(tools: list[dict], source: str) -> dict[str, Callable[..., Any]]:
    """The functions of `module:object`, which `read_tools` has imported."""
    module, _, attribute = source.partition(":")
    if module not in sys.modules or not attribute:
        raise ConfigError(
            f"there are no functions in {'it' if source.startswith('builtin:') else 'a file'}",
            where=f"--execute with --tools {source}",
            hint=_NEEDS_FUNCTIONS,
        )
    value = module_object(source)
    items = value if isinstance(value, (list, tuple)) else [value]
    functions = {tool["function"]["name"]: item for tool, item in zip(tools, items, strict=False)}
    if missing := [name for name, item in functions.items() if not callable(item)]:
        what = f"{', '.join(missing)} is a schema, and no function"
        raise ConfigError(what, where=f"--execute with --tools {source}", hint=_NEEDS_FUNCTIONS)
    # What a function imports when it is called may stand beside its module.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return functions


# ------------------------------------------------------------------------------------------------ stdout


@contextlib.contextmanager
def stdout_for_data() -> Iterator[TextIO]:
    """The stream for results, in UTF-8. Unless it is a terminal, whatever else is printed meanwhile goes to stderr:
    by functions, by threads that they have left behind, by programs that they start.
    """
    out = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (for as long as the program runs)
    if hasattr(out, "reconfigure"):
        out.reconfigure(encoding="utf-8")
    if out.isatty():
        yield out
        return
    out.flush()
    with contextlib.redirect_stdout(sys.stderr):
        if out is not sys.__stdout__:  # somebody's own stream; what writes past Python does not reach it anyway
            yield out
            return
        kept = os.dup(out.fileno())
        os.dup2(sys.stderr.fileno(), out.fileno())
        try:
            with open(os.dup(kept), "w", encoding="utf-8") as data:
                yield data
        finally:
            # A function that is still running may print until the very end.
            if not any(thread.name.startswith(_THREAD) for thread in threading.enumerate()):
                os.dup2(kept, out.fileno())
            os.close(kept)
