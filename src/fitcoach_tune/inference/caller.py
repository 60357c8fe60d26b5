"""A model with its tools, ready to be asked: prompts in, answers out."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fitcoach_tune import functiongemma, runs
from fitcoach_tune.console import SILENT, Console
from fitcoach_tune.errors import ConfigError
from fitcoach_tune.functiongemma import Call, ParseError
from fitcoach_tune.inference import loading
from fitcoach_tune.inference.prompting import Prompter
from fitcoach_tune.inference.wording import undeclared

if TYPE_CHECKING:
    from fitcoach_tune.backends.base import Backend
    from fitcoach_tune.evaluate.constrain import Constraint
    from fitcoach_tune.evaluate.generate import Model
    from fitcoach_tune.inference.loading import Parts
    from fitcoach_tune.tokenizer import AnyTokenizer

# Tokens behind the shared ones, padding included, that are run together: what bounds the memory of a batch.
_PADDED_AT_ONCE = 1 << 14


@dataclass(frozen=True)
class Timing:
    """What an answer took.

    Attributes:
        tokens: of the answer, the stop token included.
        seconds: from the question to its last token; the answers of a batch are made together.
        first: seconds from the question to its first token; None where the device does not say.
    """

    tokens: int = 0
    seconds: float = 0.0
    first: float | None = None


@dataclass(frozen=True)
class Answer:
    """What the model said.

    Attributes:
        calls: the parsed calls; empty if there are none or they could not be parsed.
        text: what it says besides calls.
        raw: the whole output, special tokens included.
        error: what is wrong with the output: it could not be parsed, or calls a function that is not declared.
        constrained: it was held to valid calls of declared functions.
    """

    calls: tuple[Call, ...]
    text: str
    raw: str
    error: str | None = None
    constrained: bool = False
    timing: Timing = field(default=Timing(), compare=False, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """{"calls": [{"name": …, "arguments": {…}}], "text": …, "raw": …, "constrained": …}, with "error" where there
        is one.
        """
        calls = [{"name": call.name, "arguments": call.arguments} for call in self.calls]
        found = {"calls": calls, "text": self.text, "raw": self.raw, "constrained": self.constrained}
        return found | ({"error": self.error} if self.error else {})


class FunctionCaller:
    """A model with its tools, ready to be asked.

    >>> caller = FunctionCaller.from_adapter("output/fitness-offline")
    >>> caller("How many steps?").calls
    (Call(name='get_steps', arguments={}),)

    Args:
        model: on its device.
        tools: in the common form.
        developer: the text before the tools; empty for none.
        max_new_tokens: longest answer.
        backend: the one that placed the model; without one, its device is taken for a plain one.
        constraint: to valid calls of the tools.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: AnyTokenizer,
        tools: list[dict],
        developer: str,
        max_new_tokens: int = 128,
        backend: Backend | None = None,
        constraint: Constraint | None = None,
    ):
        from fitcoach_tune.evaluate.generate import Generator

        self.tokenizer, self.tools, self.max_new_tokens = tokenizer, tools, max_new_tokens
        self._generator = Generator(model, backend)
        self._constraint = constraint
        # What is recorded on a device that compiles runs later: when a token is there is not known.
        self._tells_time = backend is None or not backend.compiled
        length = model.config.max_position_embeddings
        self._prompter = Prompter(tokenizer, tools, developer, length=length, answer=max_new_tokens)

    @classmethod
    def from_adapter(
        cls,
        adapter: str,
        *,
        model: str | None = None,
        tools: str | None = None,
        device: str = "auto",
        num_devices: int | None = None,
        max_new_tokens: int = 128,
        constrained: bool | None = None,
        ui: Console = SILENT,
    ) -> FunctionCaller:
        """Load an adapter from a folder or the Hub, on its own base model or on `model`.

        Args:
            tools: other tools than those it was trained with: a JSON file, `module:object` or `builtin:fitness`.
            constrained: hold answers to valid calls of the tools. By default they are, unless the device compiles what
                it does or a grammar cannot express the tools, of which `ui` is told; True makes these errors.

        Raises:
            AccessError, ConfigError, DataError, DeviceError, MismatchError: see `loading`.
        """
        run = runs.open_run(adapter)
        declared = loading.declare(run, tools, ui)
        base = loading.find_base(run, model, ui)
        parts = loading.find_parts(
            base, run, declared, device=device, num_devices=num_devices, constrained=constrained, ui=ui
        )
        return cls.from_parts(parts, max_new_tokens)

    @classmethod
    def from_parts(cls, parts: Parts, max_new_tokens: int = 128) -> FunctionCaller:
        """Load the model of what `loading.find_parts` found."""
        model, (developer, tools) = parts.load_model(), (parts.declared.developer, parts.declared.tools)
        return cls(model, parts.tokenizer, tools, developer, max_new_tokens, parts.backend, parts.constraint)

    def __call__(self, query: str) -> Answer:
        """Ask one question. Control tokens in `query` are read as plain text.

        Raises:
            ConfigError: the query is empty, or the prompt does not fit the model.
        """
        return self.answer([self.prompt(query)])[0]

    def prompt(self, query: str) -> list[int]:
        """The token ids of a question's prompt.

        Raises:
            ConfigError: see `__call__`.
        """
        return self.encode([{"role": "user", "content": check_query(query)}])

    def encode(self, messages: Sequence[dict]) -> list[int]:
        """The token ids of a conversation's prompt; see `Prompter.encode`."""
        return self._prompter.encode(messages)

    def answer(self, prompts: Sequence[Sequence[int]]) -> list[Answer]:
        """The answers to prompts, which are run together as far as there is room. What all prompts start with is
        computed only once.
        """
        answers: dict[int, Answer] = {}
        shared = len(self._prompter.shared)
        for group in _groups([len(prompt) - shared for prompt in prompts]):
            answers |= zip(group, self._answer_together([prompts[i] for i in group]), strict=True)
        return [answers[i] for i in range(len(prompts))]

    def _answer_together(self, prompts: Sequence[Sequence[int]]) -> list[Answer]:
        started, ends = time.perf_counter(), {}
        passes: list[float] = []
        self._generator.warm(self._prompter.shared)
        # The first pass behind the prompts' own runs the first token.
        hook = self._generator.model.model.register_forward_pre_hook(lambda *_: passes.append(time.perf_counter()))
        try:
            answers = self._generator.generate(
                prompts,
                self.max_new_tokens,
                lambda index, _: ends.setdefault(index, time.perf_counter()),
                constraints=[self._constraint] * len(prompts) if self._constraint else None,
            )
        finally:
            hook.remove()
        first = self._first_token(prompts, passes)
        return [
            self._read(tokens, Timing(len(tokens), ends[i] - started, first and min(first, ends[i]) - started))
            for i, tokens in enumerate(answers)
        ]

    def _first_token(self, prompts: Sequence[Sequence[int]], passes: list[float]) -> float | None:
        from fitcoach_tune.evaluate.compiled import AT_ONCE

        if not self._tells_time:
            return None
        longest = max(map(len, prompts)) - len(self._prompter.shared)
        return [*passes, math.inf][math.ceil(longest / AT_ONCE)]

    def _read(self, tokens: list[int], timing: Timing) -> Answer:
        answer = read_answer(self.tokenizer.decode(tokens, skip_special_tokens=False))
        declared = [tool["function"]["name"] for tool in self.tools]
        unknown = next((call.name for call in answer.calls if call.name not in declared), None)
        error = answer.error if unknown is None else undeclared(unknown, declared)
        return Answer(answer.calls, answer.text, answer.raw, error, self._constraint is not None, timing)


def _groups(lengths: Sequence[int]) -> list[list[int]]:
    """Which prompts are run together: those of like length, as all are padded to the longest."""
    found: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if found and (len(found[-1]) + 1) * lengths[i] <= _PADDED_AT_ONCE:
            found[-1].append(i)
        else:
            found.append([i])
    return found


def check_query(query: str) -> str:
    """The question as it is asked, without the space around it.

    Raises:
        ConfigError: it is empty, or not text.
    """
    text = query.strip()
    if not text:
        raise ConfigError("there is nothing to ask", where="the query", hint='fitcoach-tune infer "How many steps?"')
    if any("\ud800" <= c <= "\udfff" for c in text):  # what Python makes of an argument with other bytes than UTF-8
        raise ConfigError("it is not UTF-8 text", where="the query", hint="set the terminal's encoding to UTF-8")
    return text


def read_answer(raw: str) -> Answer:
    """Parse a raw output; text that is no valid call comes back as an answer with its `error`."""
    try:
        output = functiongemma.parse(raw)
    except ParseError as error:
        return Answer((), "", raw, str(error))
    return Answer(output.calls, output.text, raw)
