"""Conversations as token ids: what people and functions say stays text, whatever it spells."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fitcoach_tune.errors import ConfigError

if TYPE_CHECKING:
    from fitcoach_tune.tokenizer import AnyTokenizer

# Stands for a text while the prompt around it is rendered; a private-use character that no tool holds.
_MARK = "\uf8ff"
_SLOT = re.compile(f"{_MARK}([0-9]+){_MARK}")


class PromptTooLong(ConfigError):
    """The prompt does not fit the model beside the longest answer."""


class Prompter:
    """Makes prompts for one list of tools and one developer text.

    Args:
        length: tokens that the model has places for.
        answer: those of them that are kept for the answer.

    Attributes:
        shared: the tokens that every prompt starts with.
    """

    def __init__(self, tokenizer: AnyTokenizer, tools: list[dict], developer: str, *, length: int, answer: int):
        from fitcoach_tune.rendering import make_renderer

        self._tokenizer, self._tools = tokenizer, tools
        self._room, self._answer = max(0, length - answer), answer
        self._head = [{"role": "developer", "content": developer}] if developer else []
        self._render = make_renderer(tokenizer)
        self._special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        self._initials = {token[0] for token in self._special} | {_MARK}
        before = _SLOT.split(self._text([{"role": "user", "content": f"{_MARK}0{_MARK}"}]))[0]
        # Its last character may join with the user's first.
        self.shared = self._encode(before)[:-1]

    def encode(self, messages: Sequence[dict]) -> list[int]:
        """The prompt that asks for what follows these messages, which are in the common form, developer left out.

        A text that spells a special token is cut into other tokens, which decode to the same text.

        Raises:
            PromptTooLong: says how long it is, and how long it may be.
        """
        from fitcoach_tune.evaluate.generate import encode_literally

        slots = _Slots(self._is_odd)
        text = self._text([slots.message(message) for message in messages])
        pieces = _SLOT.split(text)
        ids = []
        for i, piece in enumerate(pieces):
            ids += encode_literally(self._tokenizer, slots.texts[int(piece)]) if i % 2 else self._encode(piece)
        if len(ids) > self._room:
            raise PromptTooLong(
                f"the prompt has {len(ids)} tokens, and {self._room} fit before an answer of {self._answer}",
                where="the query",
                hint="ask it shorter, or lower --max-new-tokens",
            )
        return ids

    def _text(self, messages: Sequence[dict]) -> str:
        return self._render([*self._head, *messages], self._tools, add_generation_prompt=True)

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def _is_odd(self, text: str) -> bool:
        """Whether a text cannot be part of the rendered prompt as it is."""
        if self._initials.isdisjoint(text):
            return False
        return _MARK in text or any(token in text for token in self._special)


class _Slots:
    """Texts taken out of messages, and numbered."""

    def __init__(self, is_odd: Callable[[str], bool]):
        self._is_odd = is_odd
        self.texts: list[str] = []

    def message(self, message: dict) -> dict:
        content = message["content"]
        # The renderer would take off the space around it, and could not see it in a slot.
        filled = message | {"content": self._value(content.strip() if isinstance(content, str) else content)}
        if "tool_calls" in message:
            filled["tool_calls"] = self._value(message["tool_calls"])
        return filled

    def _value(self, value: Any) -> Any:
        if isinstance(value, str):
            if not self._is_odd(value):
                return value
            self.texts.append(value)
            return f"{_MARK}{len(self.texts) - 1}{_MARK}"
        if isinstance(value, dict):
            return {self._value(key): self._value(inner) for key, inner in value.items()}
        return [self._value(inner) for inner in value] if isinstance(value, list) else value
