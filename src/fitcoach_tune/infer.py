"""The infer verb: one question in, the call out; and `FunctionCaller`, the same for programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fitcoach_tune import functiongemma, models, runs
from fitcoach_tune.console import SILENT, Console
from fitcoach_tune.errors import ConfigError
from fitcoach_tune.functiongemma import Call, ParseError
from fitcoach_tune.tools import read_tools

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from fitcoach_tune.backends.base import Backend

# Stands for the user's text while the prompt around it is rendered; private-use characters that no tool holds.
_SLOT = "\uf8ff\ue000\uf8ff"


@dataclass(frozen=True)
class Answer:
    """What the model said.

    Attributes:
        calls: the parsed calls; empty if there are none or they could not be parsed.
        text: what it says besides calls.
        raw: the whole output, special tokens included.
        error: why the output could not be parsed, or None.
    """

    calls: tuple[Call, ...]
    text: str
    raw: str
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """{"calls": [{"name": …, "arguments": {…}}], "text": …, "raw": …}, with "error" where there is one."""
        calls = [{"name": call.name, "arguments": call.arguments} for call in self.calls]
        found = {"calls": calls, "text": self.text, "raw": self.raw}
        return found | ({"error": self.error} if self.error else {})


class FunctionCaller:
    """A fine-tuned model with its tools, ready to be asked.

    >>> caller = FunctionCaller.from_adapter("output/fitness-offline")
    >>> caller("How many steps?").calls
    (Call(name='get_steps', arguments={}),)
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        tools: list[dict],
        developer: str,
        max_new_tokens: int = 128,
        backend: Backend | None = None,
    ):
        from fitcoach_tune.evaluate.generate import Generator
        from fitcoach_tune.prepare import make_renderer

        self.tokenizer, self.tools, self.max_new_tokens = tokenizer, tools, max_new_tokens
        self._generator = Generator(model, backend)
        head = [{"role": "developer", "content": developer}] if developer else []
        asked = [*head, {"role": "user", "content": _SLOT}]
        text = make_renderer(tokenizer)(asked, tools, add_generation_prompt=True)
        self._before, self._after = text.split(_SLOT)
        self._special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        # What every prompt starts with, computed once; the last character may join with the user's first.
        self._shared = self._encode(self._before)[:-1]

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
        ui: Console = SILENT,
    ) -> FunctionCaller:
        """Load an adapter from a folder or the Hub, on its own base model or on `model`.

        Args:
            tools: other tools than those it was trained with: a JSON file, `module:object` or `builtin:fitness`.

        Raises:
            AccessError, DataError, DeviceError, MismatchError: see `runs.open_run`, `read_tools`, `models.resolve` and
                `make_backend`.
        """
        from fitcoach_tune.backends import make_backend

        run = runs.open_run(adapter)
        given = read_tools(tools) if tools else None
        prompt = run.prompt(given)
        if given and prompt["trained_with"] not in (None, given):
            ui.warn("these are not the tools that the adapter was trained with")
        backend = make_backend(device, num_devices)
        loaded, tokenizer = load_tuned(run, model, ui)
        backend.place(loaded)
        return cls(loaded, tokenizer, prompt["tools"], prompt["developer"], max_new_tokens, backend)

    def __call__(self, query: str) -> Answer:
        """Ask. Control tokens in `query` are read as plain text.

        Raises:
            ConfigError: the query is empty, or the prompt does not fit the model.
        """
        ids = self.prompt(query)
        self._generator.warm(self._shared)
        (answer,) = self._generator.generate([ids], self.max_new_tokens)
        return read_answer(self.tokenizer.decode(answer, skip_special_tokens=False))

    def prompt(self, query: str) -> list[int]:
        """The token ids of a question's prompt.

        Raises:
            ConfigError: see `__call__`.
        """
        from fitcoach_tune.evaluate.generate import encode_literally

        text = check_query(query)
        if any(token in text for token in self._special):
            ids = self._encode(self._before) + encode_literally(self.tokenizer, text) + self._encode(self._after)
        else:
            ids = self._encode(self._before + text + self._after)
        room = max(0, self._generator.model.config.max_position_embeddings - self.max_new_tokens)
        if len(ids) > room:
            raise ConfigError(
                f"the prompt has {len(ids)} tokens, and {room} fit before an answer of {self.max_new_tokens}",
                where="the query",
                hint="ask it shorter, or lower --max-new-tokens",
            )
        return ids

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


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


def load_tuned(
    run: runs.Run, model: str | None, ui: Console = SILENT
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The run's base model (or `model`, if it is the same) with its adapter, and the run's tokenizer."""
    from fitcoach_tune.training.adapter import load_adapter

    name, revision = (model, None) if model else run.base_name
    base = models.resolve(name, revision, ui)
    runs.check_base(run, base)
    tokenizer = models.load_tokenizer(run.path if (run.path / "tokenizer.json").is_file() else base.path)
    loaded = load_adapter(models.load_model(base, run.dtype), run.path)
    return loaded, tokenizer


def describe_call(call: Call) -> str:
    """A call as people write it: `get_history(metric="steps", days=7)`."""
    import json

    arguments = ", ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in call.arguments.items())
    return f"{call.name}({arguments})"


def default_adapter(adapter: str | None) -> str:
    """The given adapter, or the newest run."""
    return adapter or runs.newest_run()
