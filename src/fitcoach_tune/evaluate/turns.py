"""What is asked in an evaluation: the places in conversations at which the model speaks, with what it should say."""

from __future__ import annotations

from dataclasses import dataclass

from fitcoach_tune.dataset import Example
from fitcoach_tune.functiongemma import Call
from fitcoach_tune.gold import Gold, gold_of


@dataclass(frozen=True)
class Turn:
    """A place in a conversation at which the model speaks.

    Attributes:
        messages: all that stands before it, as in `Example`; what was said there is the data's, not the model's.
        tools: what is declared, in the common form; the same list object for turns whose tools are equal.
        gold: what it should say.
        origin: the row, and the message where a row has several answers: `rows.jsonl:12, messages[4]`.
    """

    messages: list[dict]
    tools: list[dict]
    gold: Gold
    origin: str

    @property
    def query(self) -> str:
        """The text of the last user message."""
        return next(message["content"] for message in reversed(self.messages) if message["role"] == "user")

    @property
    def declared(self) -> tuple[str, ...]:
        """The names of the tools."""
        return tuple(tool["function"]["name"] for tool in self.tools)


def turns_of(example: Example) -> list[Turn]:
    """Every turn at which the model speaks; a row's further acceptable answers belong to its last one."""
    places = [i for i, message in enumerate(example.messages) if message["role"] == "assistant"]
    found = []
    for place in places:
        calls = [Call(**call["function"]) for call in example.messages[place].get("tool_calls", [])]
        given = example.acceptable if place == places[-1] else None
        origin = example.origin if len(places) == 1 else f"{example.origin}, messages[{place}]"
        found.append(Turn(example.messages[:place], example.tools, given or gold_of(calls, example.tools), origin))
    return found
