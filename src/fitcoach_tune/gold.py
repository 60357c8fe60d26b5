"""What a row wants the model to say, with everything that is accepted for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from fitcoach_tune.functiongemma import Call
from fitcoach_tune.strict_json import Flaw, misfit

Strings = Literal["exact", "normalised", "bfcl"]
_FORM = {
    "answers": [[{"name": str, "arguments": {str: list}, "optional": [str], "unsaid": [str]}]],
    "strings": str,
}
_DISREGARDED = {**dict.fromkeys(map(ord, " ,./-_*^")), ord("'"): '"'}


@dataclass(frozen=True)
class GoldCall:
    """A call that is wanted.

    Attributes:
        name: of the function.
        arguments: for each argument the values that are accepted, the data's own first.
        optional: arguments that may be left out.
        unsaid: those of them that the data's own call leaves out.
    """

    name: str
    arguments: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    unsaid: frozenset[str] = frozenset()

    @property
    def call(self) -> Call:
        """The data's own call."""
        return Call(self.name, {name: values[0] for name, values in self.arguments.items() if name not in self.unsaid})


Answer = tuple[GoldCall, ...]
"""Calls in any order; none where the model should answer in words."""


@dataclass(frozen=True)
class Gold:
    """The answers that are right, the data's own first.

    Attributes:
        answers: at least one.
        strings: how strings are compared, where the data says so (the Berkeley Function-Calling Leaderboard does).
    """

    answers: tuple[Answer, ...]
    strings: Strings = "exact"

    @property
    def wants_call(self) -> bool:
        """Whether the data's own answer calls anything."""
        return bool(self.answers[0])

    @property
    def calls(self) -> tuple[Call, ...]:
        """The data's own calls."""
        return tuple(call.call for call in self.answers[0])

    def as_json(self) -> dict[str, Any]:
        """A JSON value that `from_json` reads back to an equal Gold."""
        return {
            "answers": [
                [
                    {
                        "name": call.name,
                        "arguments": {name: list(values) for name, values in call.arguments.items()},
                        "optional": sorted(call.optional),
                        "unsaid": sorted(call.unsaid),
                    }
                    for call in answer
                ]
                for answer in self.answers
            ],
            "strings": self.strings,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Gold:
        """Read what `as_json` wrote. Raises `Flaw`."""
        if flaw := misfit(value, _FORM):
            raise flaw
        if not value["answers"] or value["strings"] not in get_args(Strings):
            raise Flaw("answers", "there is none, or its strings are compared in no known way")
        answers = (tuple(_call_from_json(call) for call in answer) for answer in value["answers"])
        return cls(tuple(answers), value["strings"])


def _call_from_json(value: dict[str, Any]) -> GoldCall:
    if not all(value["arguments"].values()):
        raise Flaw("arguments", "an argument has no accepted value")
    arguments = {name: tuple(values) for name, values in value["arguments"].items()}
    return GoldCall(value["name"], arguments, frozenset(value["optional"]), frozenset(value["unsaid"]))


def gold_of(
    calls: Iterable[Call], tools: Sequence[dict], others: Iterable[Iterable[Call]] = (), strings: Strings = "exact"
) -> Gold:
    """What a row with these calls wants.

    An argument that the schema gives a default may be left out where the default is wanted, and may be given as the
    default where the row leaves it out.

    Args:
        calls: the row's own answer; empty where it answers in words.
        tools: what was declared, in the common form.
        others: further answers that are as right.
    """
    schemas = declared(tools)
    answers = [
        tuple(_with_defaults(call, *schemas.get(call.name, ({}, ()))) for call in answer) for answer in (calls, *others)
    ]
    return Gold(tuple(answers), strings)


def declared(tools: Sequence[dict]) -> dict[str, tuple[dict, Sequence]]:
    """By function: the schemas of its arguments, and which are required; of unchecked tools, what of it is sound."""
    found = {}
    for function in (tool["function"] for tool in tools):
        schema = function.get("parameters", {})
        properties, required = schema.get("properties"), schema.get("required")
        properties = properties if isinstance(properties, dict) else {}
        found.setdefault(function["name"], (properties, required if isinstance(required, list) else ()))
    return found


def _with_defaults(call: Call, properties: dict, required: Sequence) -> GoldCall:
    arguments = {name: (value,) for name, value in call.arguments.items()}
    optional = set()
    for name, part in properties.items():
        if isinstance(part, dict) and "default" in part and name not in required:
            default = part["default"]
            if same_value(arguments.setdefault(name, (default,))[0], default):
                optional.add(name)
    return GoldCall(call.name, arguments, frozenset(optional), frozenset(arguments.keys() - call.arguments.keys()))


def same_value(a: Any, b: Any, strings: Strings = "exact") -> bool:
    """Equality of JSON values: 1 equals 1.0, but true does not equal 1; lists keep their order.

    Args:
        strings: `exact`; `normalised`, but for case and white space; or `bfcl`, but for what the Berkeley leaderboard's
            checker disregards: case, spaces, the characters , . / - _ * ^ and the kind of quotation mark.
    """
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, str) and isinstance(b, str):
        return _plain(a, strings) == _plain(b, strings)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same_value(v, b[k], strings) for k, v in a.items())
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(same_value(x, y, strings) for x, y in zip(a, b, strict=True))
    return a == b


def _plain(text: str, strings: Strings) -> str:
    if strings == "normalised":
        return " ".join(text.casefold().split())
    return text.translate(_DISREGARDED).lower() if strings == "bfcl" else text
