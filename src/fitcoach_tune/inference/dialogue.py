"""From a question to what a person is told: the model is asked, its calls are run, and it goes on with the results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fitcoach_tune.errors import ConfigError
from fitcoach_tune.functiongemma import Call
from fitcoach_tune.inference.caller import Answer, FunctionCaller, check_query
from fitcoach_tune.inference.execute import Result, Toolbox
from fitcoach_tune.inference.prompting import PromptTooLong
from fitcoach_tune.inference.wording import plain_sentence, untrue

MAX_ROUNDS = 5
"""How often the model may call functions for one question; each time it may call several."""


class Watcher:
    """Is told what happens meanwhile; this one does nothing about it."""

    def answered(self, prompt: list[int], answer: Answer) -> None:
        """The model said something."""

    def ran(self, result: Result) -> None:
        """A call came to its end."""

    def decided(self, reason: str) -> None:
        """Whose words the final answer is in, and why."""


@dataclass(frozen=True)
class Reply:
    """What came of a question.

    Attributes:
        answer: what the model said to the question.
        results: of all calls in their order; None if calls are not run.
        text: the final answer, where calls are run.
        source: whose words that are: the `model`'s, or made of the `results`.
        messages: the turn as the model will see it later, in the common form. Calls that were not run have an empty
            result there, as the format wants one. Empty where the model's output could not be parsed.
    """

    query: str
    answer: Answer
    results: tuple[Result, ...] | None
    text: str | None
    source: Literal["model", "results"] | None
    messages: list[dict]

    def as_dict(self) -> dict[str, Any]:
        """What `infer --json` prints; see docs/infer.md."""
        found = {"query": self.query} | self.answer.as_dict()
        if self.results is None:
            return found
        results = [result.as_dict() for result in self.results]
        return found | {"results": results, "answer": self.text, "answer_from": self.source}


@dataclass
class _Turn:
    """A question on its way to its reply.

    Attributes:
        query: as it was given.
        messages: before it, and its own from `start` on.
        last: the results that the model has been told and not answered yet.
    """

    query: str
    messages: list[dict]
    start: int
    answers: list[Answer] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    last: list[Result] = field(default_factory=list)
    given_up: str | None = None

    def called(self, answer: Answer, results: Sequence[Result] | None) -> None:
        """The model called functions, which gave these results, or were not run."""
        entries = [{"type": "function", "function": {"name": c.name, "arguments": c.arguments}} for c in answer.calls]
        self.messages.append({"role": "assistant", "content": answer.text, "tool_calls": entries})
        told = results if results is not None else [Result(call, {}) for call in answer.calls]
        self.messages += [result.as_message() for result in told]


class Dialogue:
    """A model, and what runs its calls.

    Args:
        toolbox: runs the calls; without one nothing is run.
    """

    def __init__(self, caller: FunctionCaller, toolbox: Toolbox | None = None, watcher: Watcher | None = None):
        self._caller, self._toolbox, self._watcher = caller, toolbox, watcher or Watcher()

    def ask(self, query: str, history: Sequence[dict] = ()) -> Reply:
        """Ask one question, behind the messages of a conversation.

        Raises:
            ConfigError: the query is empty or not text, or does not fit the model with its history.
        """
        (reply,) = self.ask_all([query], history)
        if isinstance(reply, ConfigError):
            raise reply
        return reply

    def ask_all(self, queries: Sequence[str], history: Sequence[dict] = ()) -> list[Reply | ConfigError]:
        """Ask several questions together, which know nothing of each other; the calls of the first are run first.

        A question that cannot be asked gets its error in place of a reply.
        """
        turns: list[_Turn | ConfigError] = []
        prompts: list[list[int]] = []
        for query in queries:
            try:
                turn = _Turn(query, [*history, {"role": "user", "content": check_query(query)}], len(history))
                prompts.append(self._caller.encode(turn.messages))
                turns.append(turn)
            except ConfigError as error:
                turns.append(error)
        going = [turn for turn in turns if isinstance(turn, _Turn)]
        while going:
            self._answer(going, prompts)
            going, prompts = self._run_calls(going)
        return [self._reply(turn) if isinstance(turn, _Turn) else turn for turn in turns]

    def _answer(self, turns: list[_Turn], prompts: list[list[int]]) -> None:
        for turn, prompt, answer in zip(turns, prompts, self._caller.answer(prompts), strict=True):
            turn.answers.append(answer)
            self._watcher.answered(prompt, answer)

    def _run_calls(self, turns: list[_Turn]) -> tuple[list[_Turn], list[list[int]]]:
        """Run what the model called last; returns the turns that go on, and their prompts."""
        going, prompts = [], []
        for turn in turns:
            if self._toolbox is None or not self._run_new(turn, self._toolbox):
                continue
            try:
                prompts.append(self._caller.encode(turn.messages))
                going.append(turn)
            except PromptTooLong as error:
                turn.given_up = f"the result does not fit the model: {error.what}"
        return going, prompts

    def _run_new(self, turn: _Turn, toolbox: Toolbox) -> bool:
        """Run the calls that were not run before; says whether there were any."""
        answer = turn.answers[-1]
        known = {_key(result.call): result for result in turn.results}
        if not answer.calls:
            return False
        if all(_key(call) in known for call in answer.calls):
            turn.given_up = "it called the same again"
            return False
        if len(turn.answers) > MAX_ROUNDS:
            turn.given_up = f"it called functions more than {MAX_ROUNDS} times"
            return False
        turn.last = []
        for call in answer.calls:
            result = known.get(_key(call))
            if result is None:
                result = toolbox.run(call)
                turn.results.append(result)
                self._watcher.ran(result)
            turn.last.append(result)
        turn.called(answer, turn.last)
        return True

    def _reply(self, turn: _Turn) -> Reply:
        first, own = turn.answers[0], turn.messages
        if self._toolbox is None:
            if first.calls:
                turn.called(first, None)
            own.append({"role": "assistant", "content": "" if first.calls else first.text})
            return Reply(
                turn.query, first, None, None, None, [] if first.error and not first.calls else own[turn.start :]
            )
        text, source = self._final(turn, self._toolbox)
        own.append({"role": "assistant", "content": text})
        kept = own[turn.start :] if text else []
        return Reply(turn.query, first, tuple(turn.results), text, source, kept)

    def _final(self, turn: _Turn, toolbox: Toolbox) -> tuple[str, Literal["model", "results"]]:
        """The final answer, and whose words it is in."""
        said = turn.answers[-1]
        if not turn.results:
            return said.text, "model"
        reason = turn.given_up or said.error or (None if said.text else "it said nothing")
        reason = reason or untrue(said.text, turn.query, turn.results, turn.last)
        if reason is None:
            self._watcher.decided("the answer is in the model's words")
            return said.text, "model"
        self._watcher.decided(f"the answer is made of the results, and not in the model's words: {reason}")
        return "\n".join(plain_sentence(result, toolbox.sentences) for result in turn.results), "results"


def _key(call: Call) -> str:
    return json.dumps([call.name, call.arguments], sort_keys=True)
