"""The grammar of all valid answers, made of the declared tools, in the Lark dialect that llguidance reads.

    answer = text <end_of_turn> | call {call} <start_function_response>
    call   = <start_function_call> "call:" name object <end_function_call>

An object has its declared keys in the renderer's order (those that differ in case only, as they are declared), the
required ones always. Where a schema sets no limit, the grammar does, so that every value comes to an end. llguidance's
lexer takes the longest terminal that may stand at a place, so no terminal here is the beginning of another one that may
stand beside it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fitcoach_tune import functiongemma
from fitcoach_tune.errors import DataError
from fitcoach_tune.evaluate import regexes, schemas
from fitcoach_tune.evaluate.schemas import Inexpressible
from fitcoach_tune.functiongemma import CONTROL_TOKENS, MAX_DEPTH, Call
from fitcoach_tune.strict_json import quote
from fitcoach_tune.tool_checks import CallChecker, closed

MAX_CALLS = 16
MAX_STRING = 2000
"""Most characters of a string."""
MAX_ITEMS = 64
"""Most elements of an array."""
MAX_KEY = 40
"""Most characters of a key that is not declared."""
FREE_DEPTH, FREE_ITEMS = 4, 16
"""Where the schema leaves everything open: containers inside containers, and what each of them holds at most."""

# No control token is spelt out in letters either: a reader of the output could not tell it from a real one. What has no
# "<" in it is named apart, because llguidance knows beforehand which tokens that allows.
_SPACE = r"\s\x1c-\x1f"  # what Python's strip() takes off
COMMON = rf"""
TEXT: /[{_SPACE}]*[^<{_SPACE}](?s:[^<]*)/ | /[{_SPACE}]*[^{_SPACE}](?s:.*)/ & NO_CONTROL
NO_CONTROL: /{regexes.without(CONTROL_TOKENS)}/
"""
_BARE = r":,{}\[\]"
_KEY = rf"[^{_BARE}{_SPACE}]([^{_BARE}]{{0,{MAX_KEY - 2}}}[^{_BARE}{_SPACE}])?:"


@dataclass(frozen=True)
class Grammar:
    """What `answer_grammar` makes.

    Attributes:
        lark: the grammar.
        calls: for each tool, how its calls begin, up to the brace.
        required: the keys that some object must have, first those of objects that also take undeclared keys.
        choices: the strings of which a value must be one, the shorter ones first.
        free: some object takes keys that are not declared, which the grammar cannot keep from coming twice.
        doubtful: (place, terminal) of those that may match nothing at all.
    """

    lark: str
    calls: list[str]
    required: list[str]
    choices: list[str]
    free: bool
    doubtful: list[tuple[str, str]]


def answer_grammar(tools: Sequence[dict]) -> Grammar:
    """The grammar of answers with these tools, which are in the common form; without any, of answers in words.

    Raises:
        DataError: a tool has a problem of its own, or its schema asks for what a grammar cannot express.
    """
    names = [tool["function"]["name"] for tool in tools]
    problems = [f"two tools are named {quote(name)}" for name, times in Counter(names).items() if times > 1]
    problems += [problem for tool in tools for problem in _problems(json.dumps(tool))]
    if problems:
        raise DataError("the tools cannot be used", details=problems, hint="correct them, or use --unconstrained")
    rules, options = _Rules(), []
    for tool in tools:
        function = tool["function"]
        try:
            # A call's arguments are an object, whatever type the schema gives or leaves out.
            schema = {**closed(function.get("parameters", {}), is_top=True), "type": "object"}
            arguments = rules.value(schema, f"tool {function['name']}: parameters", 1)
        except Inexpressible as problem:
            raise unusable(str(problem), problem.path) from None
        options.append(f"{_literal('call:' + function['name'])} {arguments}")
    calls = f" | call{{1,{MAX_CALLS}}} <start_function_response>" if options else ""
    lark = f"start: TEXT <end_of_turn>{calls}{COMMON}"
    if options:
        lark += f"call: <start_function_call> ({' | '.join(options)}) <end_function_call>\n"
    required = sorted(rules.required, key=lambda key: (not rules.required[key], key))
    openings = [f"call:{name}{{" for name in names]
    choices = sorted(rules.choices, key=lambda text: (len(text.encode()), text))
    return Grammar(lark + rules.text(), openings, required, choices, rules.free, rules.doubtful)


@lru_cache(maxsize=10_000)
def _problems(tool: str) -> list[str]:
    """A tool's own problems, as `CallChecker` finds them in some ten milliseconds; `tool` is its JSON."""
    return [f"{where.partition('.')[2]}: {what}" for where, what in CallChecker().tool_problems([json.loads(tool)])]


def unusable(what: str, where: str) -> DataError:
    """The error for tools by which answers cannot be constrained."""
    return DataError(
        f"answers cannot be constrained: {what}", where=where, hint="change the schema, or use --unconstrained"
    )


def _literal(text: str) -> str:
    return json.dumps(text)


class _Rules:
    """Rules and terminals, each written once however often it is used."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self.required: dict[str, bool] = {}  # whether an object that must have the key takes others
        self.choices: set[str] = set()
        self.free = False
        self.doubtful: list[tuple[str, str]] = []

    def text(self) -> str:
        return "".join(f"{name}: {body}\n" for body, name in self._names.items())

    def _rule(self, body: str) -> str:
        if body.isalnum():  # a rule's or a terminal's name
            return body
        return self._names.setdefault(body, f"r{len(self._names)}")

    def _terminal(self, body: str) -> str:
        return self._names.setdefault(body, f"T{len(self._names)}")

    def value(self, schema: Any, path: str, depth: int) -> str:
        """The rule of a value; a container that stands here is the `depth`-th, from 1.

        Raises:
            Inexpressible: there is no such rule.
        """
        if schema is True:
            return self._anything(min(FREE_DEPTH, MAX_DEPTH - depth + 1))
        if schema is False:
            raise Inexpressible("no value fits", path)
        if (choices := schemas.choices(schema)) is not None:
            return self._choice(schema, choices, path)
        if "allOf" in schema or "anyOf" in schema:
            parts = schemas.branches(schema, path)
            return self._rule(" | ".join(self.value(part, path, depth) for part in parts))
        schemas.check_keywords(schema, path)
        options = [self._typed(kind, schema, path, depth) for kind in schemas.types(schema)]
        if not options:
            raise Inexpressible("no value fits", path)
        return self._rule(" | ".join(options))

    def _typed(self, kind: str, schema: dict, path: str, depth: int) -> str:
        if kind == "array":
            return self._array(schema, path, depth)
        if kind == "object":
            return self._object(schema, path, depth)
        if kind == "string":
            return self._string(schema, path)
        if kind in ("integer", "number"):
            return self._number(schema, path, kind)
        return '"None"' if kind == "null" else '"true" | "false"'

    def _anything(self, levels: int) -> str:
        """Any value, with up to so many containers inside containers."""
        options = [self._typed(kind, {}, "", 1) for kind in ("null", "boolean", "number", "string")]
        if levels > 0:
            inner = self._anything(levels - 1)
            options.append(self._rule(f'"[" ({inner} ("," {inner}){{0,{FREE_ITEMS - 1}}})? "]"'))
            options.append(self._pairs([], inner, 0, FREE_ITEMS))
        return self._rule(" | ".join(options))

    # Scalars ----------------------------------------------------------------------------------------------------------

    def _choice(self, schema: dict, choices: Iterable[Any], path: str) -> str:
        """One of the values that fit the schema, and that a call can carry."""
        from jsonschema import Draft202012Validator

        if '"$ref"' in (text := json.dumps(schema)) or '"$dynamicRef"' in text:
            raise Inexpressible("$ref cannot be expressed", path)
        fits = Draft202012Validator(schema).is_valid
        usable = [v for v in choices if fits(v) and not functiongemma.call_problems(Call("f", {"v": v}))]
        if not usable:
            raise Inexpressible("no value fits", path)
        strings = [v for v in usable if isinstance(v, str)]
        self.choices.update(strings)
        terminal = " | ".join(dict.fromkeys(self._bare(v, path) for v in strings))
        options = [f"<escape> {self._terminal(terminal)} <escape>"] if strings else []
        options += dict.fromkeys(self._constant(v, path) for v in usable if not isinstance(v, str))
        return self._rule(" | ".join(options))

    def _constant(self, value: Any, path: str) -> str:
        """One value, made of the same terminals as any other of its kind."""
        if isinstance(value, str):
            self.choices.add(value)
            return f"<escape> {self._bare(value, path)} <escape>"
        if isinstance(value, list):
            items = ' "," '.join(self._constant(item, path) for item in value)
            return f'"[" {items} "]"'
        if isinstance(value, dict):
            items = sorted(value.items(), key=lambda item: item[0].lower())
            pairs = [
                f"{self._bare(',' * bool(i) + key + ':', path)} {self._constant(inner, path)}"
                for i, (key, inner) in enumerate(items)
            ]
            return f'"{{" {" ".join(pairs)} "}}"'
        return _literal(str(value) if value is None or not isinstance(value, bool) else str(value).lower())

    def _bare(self, text: str, path: str) -> str:
        if "▁" in text:
            raise Inexpressible(f"the tokenizer takes the ▁ in {quote(text)} for a space", path)
        return _literal(text)

    def _number(self, schema: dict, path: str, kind: str) -> str:
        bounds = [schema.get(key) for key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")]
        try:
            return self._terminal((regexes.integers if kind == "integer" else regexes.numbers)(*bounds))
        except Inexpressible as problem:
            raise Inexpressible(str(problem), path) from None

    def _string(self, schema: dict, path: str) -> str:
        least, most = schemas.limits(schema, "Length", MAX_STRING, path)
        length = f"{{{least},{most}}}"
        if "pattern" not in schema:
            terminal = f"/(?s:[^<]{length})/ | /(?s:.{length})/ & NO_CONTROL"
            return f"<escape> {self._terminal(terminal)} <escape>"
        try:
            terminal = f"/{regexes.matching(schema['pattern'])}/ & /(?s:.{length})/ & NO_CONTROL"
        except Inexpressible as problem:
            raise Inexpressible(str(problem), f"{path}.pattern") from None
        self.doubtful.append((f"{path}.pattern", terminal))
        return f"<escape> {self._terminal(terminal)} <escape>"

    # Containers -------------------------------------------------------------------------------------------------------

    def _array(self, schema: dict, path: str, depth: int) -> str:
        most = 0 if schema.get("items") is False else MAX_ITEMS
        least, most = schemas.limits(schema, "Items", most, path)
        if most == 0:
            return self._rule('"[" "]"')
        item = self.value(schema.get("items", True), f"{path}.items", depth + 1)
        items = f'{item} ("," {item}){{{max(least - 1, 0)},{most - 1}}}'
        return self._rule(f'"[" {items} "]"' if least else f'"[" ({items})? "]"')

    def _object(self, schema: dict, path: str, depth: int) -> str:
        additional = schema.get("additionalProperties", True)
        required = set(schema.get("required", ()))
        given = schema.get("properties", {})
        properties = given | dict.fromkeys(sorted(required - given.keys()), additional)
        for key in required:
            self.required[key] = self.required.get(key, False) or additional is not False
        declared = []
        for key in sorted(properties, key=str.lower):
            at = f"{path}.properties.{key}"
            if functiongemma.call_problems(Call("f", {key: None})):
                raise Inexpressible("a key of this name cannot be written", at)
            if properties[key] is False:
                raise Inexpressible("is required, and may not be given", at)
            self._bare(key, at)
            declared.append((key, self.value(properties[key], at, depth + 1), key in required))
        if not declared and additional is not False:
            least, most = schemas.limits(schema, "Properties", FREE_ITEMS, path)
            return self._pairs([], self.value(additional, f"{path}.additionalProperties", depth + 1), least, most)
        if {"minProperties", "maxProperties"} & schema.keys():
            least, most = schemas.limits(schema, "Properties", len(declared), path)
            if additional is not False or least > len(required) or most < len(declared):
                raise Inexpressible("how many properties there must be cannot be expressed", path)
        if additional is False:
            return self._pairs(declared, None, 0, 0)
        other = self.value(additional, f"{path}.additionalProperties", depth + 1)
        return self._pairs(declared, other, 0, FREE_ITEMS)

    def _pairs(self, declared: list[tuple[str, str, bool]], other: str | None, least: int, most: int) -> str:
        """An object, by two rules for each key: one where it would be the first pair, and one behind a comma.

        Args:
            declared: (key, rule of its value, whether it is required), in their order.
            other: the rule of any other key's value, if there may be others.
            least: how many other pairs there must be; not 0 only where nothing is declared.
            most: how many there may be between two declared ones.
        """
        gap = begun = ""
        if other and most:
            self.free = True
            opening, following = (
                self._terminal(" & ".join([f"/{comma}{_KEY}/", "NO_CONTROL", *names]))
                for comma in ("", ",")
                for names in [[f"~{_literal(f'{comma}{key}:')}" for key, _, _ in declared]]
            )
            gap = f"({following} {other}){{0,{most}}} "
            begun = f"{opening} {other} ({following} {other}){{{max(least - 1, 0)},{most - 1}}} "
        first = behind = '"}"'
        for key, value, needed in reversed(declared):
            pair, next_pair = (f"{_literal(f'{comma}{key}:')} {value} {gap}{behind}" for comma in ("", ","))
            first, behind = (
                self._rule(pair if needed else f"{pair} | {first}"),
                self._rule(next_pair if needed else f"{next_pair} | {behind}"),
            )
        if not begun:
            return self._rule(f'"{{" {first}')
        return self._rule(f'"{{" {begun}{behind}' if least else f'"{{" ({first} | {begun}{behind})')
