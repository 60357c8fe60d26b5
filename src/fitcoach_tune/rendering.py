"""Rows to text and to token ids, with the spans that are trained: what the model is taught, and what it is asked.

Rows that share their tools share the developer's turn, which is most of their text, and many share their answer. Such a
part is rendered and tokenized once: a control token parts the text for the tokenizer, so that what stands on its two
sides is tokenized on its own anyway.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from fitcoach_tune import functiongemma
from fitcoach_tune.errors import DataError
from fitcoach_tune.functiongemma import BOS, END_OF_TURN, START_FUNCTION_RESPONSE, START_OF_TURN
from fitcoach_tune.functiongemma.renderer import render_turns
from fitcoach_tune.prepared_set import PreparedRow

if TYPE_CHECKING:
    from fitcoach_tune.dataset import Example
    from fitcoach_tune.tokenizer import AnyTokenizer

ROWS_AT_ONCE = 1000
_KEPT = 64  # developer turns: a set has few, or each row has its own and keeping them does not help
_KEPT_CHARACTERS = 1 << 21  # of tokenized text
_ID_BYTES = array("i").itemsize
_MODEL = f"{START_OF_TURN}model\n"


def uses_project_template(tokenizer: AnyTokenizer) -> bool:
    """Whether messages become text by the project's own template, and not by one that the model ships."""
    return tokenizer.chat_template is None or tokenizer.chat_template == functiongemma.chat_template()


def make_renderer(tokenizer: AnyTokenizer) -> Callable[..., str]:
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
        developer = _developer(messages)
        try:
            rest = functiongemma.render(messages[len(developer) :], add_generation_prompt=add_generation_prompt)
        except DataError:
            rest = ""  # the error is to count the developer's message
        if not rest:
            return functiongemma.render(messages, tools, add_generation_prompt=add_generation_prompt)
        return self._turn(developer, tools) + rest.removeprefix(BOS)

    def spans(self, messages: list[dict], tools: list[dict]) -> tuple[str, list[tuple[int, int]]]:
        """What `render_spans` is to give, rendered once: this template writes a turn whatever follows."""
        developer = _developer(messages)
        pieces, spans = [self._turn(developer, tools)], []
        place, first, last = len(pieces[0]), len(developer), len(messages) - 1
        for i, piece in enumerate(render_turns(messages[first:], first), start=first):
            if messages[i]["role"] == "assistant":
                opening = len(_MODEL) if not i or messages[i - 1]["role"] != "tool" else 0
                # Where a result follows, the token that the model is to stop on begins the next piece.
                stop = len(START_FUNCTION_RESPONSE) if messages[i].get("tool_calls") and i < last else 0
                spans.append((place + opening, place + len(piece.rstrip("\n")) + stop))
            pieces.append(piece)
            place += len(piece)
        return "".join(pieces), spans

    def _turn(self, developer: list[dict], tools: list[dict] | None) -> str:
        key = (id(tools), developer[0]["content"] if developer else "")
        if key not in self._turns:
            if len(self._turns) >= _KEPT:
                self._turns.clear()
            self._turns[key] = (tools, functiongemma.render(developer, tools))
        return self._turns[key][1]


def _developer(messages: list[dict]) -> list[dict]:
    return messages[:1] if messages and messages[0]["role"] == "developer" else []


def render_spans(example: Example, render: Callable[..., str]) -> tuple[str, list[tuple[int, int]]]:
    """A row's text, and the character ranges that are supervised: what the model says, its stop token included.

    Each assistant message is rendered with and without itself; what it adds to its prompt is supervised.

    Raises:
        DataError: the template does not render a conversation as an extension of its own beginning.
    """
    if isinstance(render, _Renderer):
        return render.spans(example.messages, example.tools)
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


def tokenize(examples: Sequence[Example], tokenizer: AnyTokenizer) -> Iterator[PreparedRow]:
    """Render and tokenize, with the supervised spans in tokens.

    Raises:
        DataError: see `RowTokenizer.rows`.
    """
    rows = RowTokenizer(tokenizer)
    for first in range(0, len(examples), ROWS_AT_ONCE):
        yield from rows.rows(examples[first : first + ROWS_AT_ONCE], first)


class RowTokenizer:
    """Renders and tokenizes rows, and keeps the parts that come again."""

    def __init__(self, tokenizer: AnyTokenizer):
        self._render, self._encode = make_renderer(tokenizer), _encoder(tokenizer)
        self._ids: dict[str, bytes] = {}  # of texts that begin with a control token: their ids, int32
        self._characters = 0

    def rows(self, examples: Sequence[Example], first: int = 0) -> list[PreparedRow]:
        """Rows in the order of `examples`, which are numbered from `first`.

        Raises:
            DataError: a row's prompt is not a token prefix of the row, so that the model would be asked something else
                than it was taught; or see `render_spans`.
        """
        parted = [_parts(*render_spans(example, self._render)) for example in examples]
        self._learn(text for parts in parted for part in parts for text in part)
        return [
            self._row(parts, example.origin, index)
            for index, (parts, example) in enumerate(zip(parted, examples, strict=True), start=first)
        ]

    def _learn(self, texts: Iterable[str]) -> None:
        if self._characters > _KEPT_CHARACTERS:
            self._ids.clear()
            self._characters = 0
        new = [text for text in dict.fromkeys(texts) if text not in self._ids]
        self._ids.update(zip(new, (array("i", ids).tobytes() for ids in self._encode(new)), strict=True))
        self._characters += sum(map(len, new))

    def _row(self, parts: list[tuple[str, ...]], origin: str, index: int) -> PreparedRow:
        found, edges, size = [], [], 0
        for whole, *beginnings in parts:
            ids = self._ids[whole]
            for beginning in beginnings:
                if not ids.startswith(self._ids[beginning]):
                    what = "the prompt's tokens change when the answer follows"
                    raise DataError(what, where=origin, hint="see `prepare --show 1`")
                edges.append((size + len(self._ids[beginning])) // _ID_BYTES)
            found.append(ids)
            size += len(ids)
        spans = tuple(zip(edges[::2], edges[1::2], strict=True))
        return PreparedRow(np.frombuffer(b"".join(found), np.int32), spans, index)


def _parts(text: str, spans: list[tuple[int, int]]) -> list[tuple[str, ...]]:
    """A row's text cut before control tokens: the developer's turn, and what precedes and what is a trained answer.

    Each part is followed by its beginnings up to where spans in it begin and end.
    """
    starts = [0]
    for place in (_first_turn(text, spans[0][0]), *(text.rfind(START_OF_TURN, 0, start) for start, _ in spans)):
        if place > starts[-1]:
            starts.append(place)
    edges = [edge for span in spans for edge in span]
    return [
        (text[start:end], *(text[start:edge] for edge in edges if start < edge <= end))
        for start, end in pairwise([*starts, len(text)])
    ]


def _encoder(tokenizer: AnyTokenizer) -> Callable[[list[str]], list[list[int]]]:
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
