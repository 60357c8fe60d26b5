"""Rows to text and to token ids, with the spans that are trained: what the model is taught, and what it is asked.

Rows that share their tools share the developer's turn, which is most of their text. It is rendered and tokenized once:
a control token parts the text for the tokenizer, so that what stands on its two sides is tokenized on its own anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fitcoach_tune import functiongemma
from fitcoach_tune.errors import DataError
from fitcoach_tune.functiongemma import BOS, END_OF_TURN, START_OF_TURN
from fitcoach_tune.prepared_set import PreparedRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from fitcoach_tune.dataset import Example

_AT_ONCE = 1000
_KEPT = 64  # developer turns: a set has few, or each row has its own and keeping them does not help


def uses_project_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether messages become text by the project's own template, and not by one that the model ships."""
    return tokenizer.chat_template is None or tokenizer.chat_template == functiongemma.chat_template()


def make_renderer(tokenizer: PreTrainedTokenizerBase) -> Callable[..., str]:
    """How messages become text: the model's own chat template when it ships one, else the project's.

    The project's Python renderer and its template give the same bytes; it stands in where the template is the
    project's.
    """
    if uses_project_template(tokenizer):
        return _Renderer()

    def render(messages: list[dict], tools: list[dict] | None = None, *, add_generation_prompt: bool = False) -> str:
        return tokenizer.apply_chat_template(
            messages, tools=tools or None, tokenize=False, add_generation_prompt=add_generation_prompt
        )

    return render


class _Renderer:
    """`functiongemma.render` that keeps the last developer turns."""

    def __init__(self) -> None:
        # By a list's id and the developer's text. The list is kept, so that its id is not given away.
        self._turns: dict[tuple[int, str], tuple[object, str]] = {}

    def __call__(
        self, messages: list[dict], tools: list[dict] | None = None, *, add_generation_prompt: bool = False
    ) -> str:
        developer = messages[:1] if messages and messages[0]["role"] == "developer" else []
        key = (id(tools), developer[0]["content"] if developer else "")
        if key not in self._turns:
            if len(self._turns) >= _KEPT:
                self._turns.clear()
            self._turns[key] = (tools, functiongemma.render(developer, tools))
        try:
            rest = functiongemma.render(messages[len(developer) :], add_generation_prompt=add_generation_prompt)
        except DataError:
            rest = ""  # the error is to count the developer's message
        if not rest:
            return functiongemma.render(messages, tools, add_generation_prompt=add_generation_prompt)
        return self._turns[key][1] + rest.removeprefix(BOS)


def render_spans(example: Example, render: Callable[..., str]) -> tuple[str, list[tuple[int, int]]]:
    """A row's text, and the character ranges that are supervised: what the model says, its stop token included.

    Each assistant message is rendered with and without itself; what it adds to its prompt is supervised.

    Raises:
        DataError: the template does not render a conversation as an extension of its own beginning.
    """
    text = render(example.messages, example.tools)
    spans = []
    for i, message in enumerate(example.messages):
        if message["role"] != "assistant":
            continue
        prompt = render(example.messages[:i], example.tools, add_generation_prompt=True)
        is_last = i == len(example.messages) - 1
        through = text if is_last else render(example.messages[: i + 1], example.tools)
        if not through.startswith(prompt) or not text.startswith(through):
            raise DataError(f"the chat template does not render messages[{i}] as a continuation", where=example.origin)
        stop = through.rstrip("\n")  # the newline after <end_of_turn> belongs to the layout: nobody generates it
        if not stop.endswith(functiongemma.STOP_TOKENS):
            raise DataError(f"messages[{i}] does not end in a stop token", where=example.origin)
        spans.append((len(prompt), len(stop)))
    return text, spans


@dataclass(frozen=True)
class _Part:
    """A row's text behind its first turn, to be tokenized.

    Attributes:
        head: the first turn's token ids; cut: its characters.
        text: the whole row; edges: where its spans begin and end, in characters.
    """

    head: list[int]
    cut: int
    text: str
    edges: list[int]


def tokenize(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> Iterator[PreparedRow]:
    """Render and tokenize, with the supervised spans in tokens.

    Raises:
        DataError: a row's prompt is not a token prefix of the row, so that the model would be asked something else than
            it was taught.
    """
    render, encode = make_renderer(tokenizer), _encoder(tokenizer)
    heads: dict[str, list[int]] = {}
    for first in range(0, len(examples), _AT_ONCE):
        batch, parts = examples[first : first + _AT_ONCE], []
        for example in batch:
            text, spans = render_spans(example, render)
            cut = _first_turn(text, spans[0][0])
            if text[:cut] not in heads:
                if len(heads) >= _KEPT:
                    heads.clear()
                (heads[text[:cut]],) = encode([text[:cut]])
            parts.append(_Part(heads[text[:cut]], cut, text, [edge for span in spans for edge in span]))
        wholes = encode([part.text[part.cut :] for part in parts])
        # A span that ends the row ends where its tokens do.
        inner = [part.text[part.cut : edge] for part in parts for edge in part.edges if edge < len(part.text)]
        beginnings = iter(encode(inner))
        for index, (example, part, rest) in enumerate(zip(batch, parts, wholes, strict=True), start=first):
            edges = [
                len(part.head) + _token_edge(rest, next(beginnings) if edge < len(part.text) else rest, example.origin)
                for edge in part.edges
            ]
            ids = np.array([*part.head, *rest], dtype=np.int32)
            yield PreparedRow(ids, tuple(zip(edges[::2], edges[1::2], strict=True)), index)


def _encoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[str]], list[list[int]]]:
    """Texts to token ids, control tokens in them recognised and none added."""

    fast = tokenizer.backend_tokenizer
    fast.no_truncation()
    fast.no_padding()

    def encode(texts: list[str]) -> list[list[int]]:
        fast.encode_special_tokens = False  # text of a user, which is encoded literally, leaves it set
        return [found.ids for found in fast.encode_batch_fast(texts, add_special_tokens=False)]

    return encode


def _first_turn(text: str, before: int) -> int:
    """Where the second turn begins, at its control token and `before` what is trained; 0 if there is none."""
    end = text.find(END_OF_TURN, 0, before)
    return max(text.find(START_OF_TURN, end, before), 0) if end >= 0 else 0


def _token_edge(ids: list[int], head: list[int], origin: str) -> int:
    if ids[: len(head)] != head:
        raise DataError(
            "the prompt's tokens change when the answer follows", where=origin, hint="see `prepare --show 1`"
        )
    return len(head)
