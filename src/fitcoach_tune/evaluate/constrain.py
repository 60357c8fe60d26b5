"""Decoding held to a grammar: whatever the logits are, an answer is text, or calls of declared tools that fit them.

llguidance keeps the state of the grammar and says which tokens may come next. Two things that it cannot know are added:
a key that is not declared comes only once in an object, and a call is closed before the tokens run out. And words end
where the model would go on to a control token: what is likeliest after that is not more words.

One thing a grammar must not decide: a model that would name a function that is not declared has not meant the one whose
name is left over. Where that happens can be asked (`Guide.naming`, `Guide.names`), and the answer be given in words.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fitcoach_tune import functiongemma
from fitcoach_tune.evaluate.grammar import COMMON, MAX_KEY, answer_grammar, unusable
from fitcoach_tune.evaluate.vocabulary import Vocabulary, vocabulary
from fitcoach_tune.functiongemma import CONTROL_TOKENS

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from fitcoach_tune.tokenizer import AnyTokenizer

_START, _END, _STOP, _ESCAPE, _END_OF_TURN = (
    CONTROL_TOKENS[token]
    for token in (
        functiongemma.START_FUNCTION_CALL,
        functiongemma.END_FUNCTION_CALL,
        functiongemma.START_FUNCTION_RESPONSE,
        functiongemma.ESCAPE,
        functiongemma.END_OF_TURN,
    )
)
_CONTROL = frozenset(CONTROL_TOKENS.values())
_CALL, _OPEN = b"call:", b"{"  # what a function's name stands between
# A call is led to its end from this many tokens before the limit on, or from twice what the shortest calls need and
# the longest of the strings to choose from, which may have begun.
_LEAST_REACH, _MOST_REACH = 32, 256
# What llguidance may spend on a token before it gives up: about a second.
_FUEL = 10_000_000
# Copies of a matcher share what they find out about the grammar, and what they may find out in all is limited.
_ROWS_PER_MATCHER = 256


class Constraint:
    """One grammar, for all rows with the same tools.

    Args:
        tools: in the common form. Without any, an answer can only be text.
        tokenizer: FunctionGemma's. What llguidance needs of it is made once in a process, in about half a second.

    Raises:
        DataError: a tool has a problem of its own, or its schema asks for what a grammar cannot express.
    """

    def __init__(self, tools: Sequence[dict], tokenizer: AnyTokenizer):
        self._tokenizer = tokenizer
        self.vocabulary = vocabulary(tokenizer)
        self.grammar = answer_grammar(tools)
        self._matcher, self._rows = self._compile(self.grammar.lark), 0
        for where, terminal in self.grammar.doubtful:
            alone = self._compile(f"start: <escape> T <escape>{COMMON}T: {terminal}")
            alone.consume_token(_ESCAPE)
            alone.compute_bitmask()
            if alone.is_error():
                raise unusable("no text fits", where)

    def start(self) -> Guide:
        """The state of a row that has said nothing yet."""
        self._rows += 1
        if self._rows % _ROWS_PER_MATCHER == 0:
            self._matcher = self._compile(self.grammar.lark)
        return Guide(self, self._matcher.deep_copy())

    @cached_property
    def words(self) -> Constraint:
        """The one to answers in words."""
        return Constraint([], self._tokenizer)

    @cached_property
    def reach(self) -> int:
        """From how many tokens before the limit on a call is led to its end."""
        shortest = 0
        for opening in self.grammar.calls:
            guide = self.start()
            for token in (_START, *self.vocabulary.encode(opening)):
                guide.advance(token)
            shortest = max(shortest, len(guide.closing(_MOST_REACH) or ()))
        begun = len(self.vocabulary.encode(self.grammar.choices[-1])) if self.grammar.choices else 0
        return max(_LEAST_REACH, 2 * shortest + min(begun, _MOST_REACH))

    @cached_property
    def closers(self) -> list[list[int]]:
        """Tokens that lead to the end of a call outside of strings, the better ones first."""
        marks = [self.vocabulary.encode(mark) for mark in ("}", "]", ",", ":")]
        required = [self.vocabulary.encode(f"{key}:") for key in self.grammar.required]
        return [[_STOP], [_END], *marks, *required, [_ESCAPE], self.vocabulary.encode("0")]

    def _compile(self, lark: str) -> LLMatcher:
        from llguidance import LLMatcher, LLParserLimits

        # Without forcing: llguidance would force tokens that can be others, depending on what follows them.
        lark = '%llguidance {"no_forcing": true}\n' + lark
        limits = LLParserLimits(step_lexer_fuel=_FUEL)
        matcher = LLMatcher(self.vocabulary.tokenizer, lark, log_level=0, limits=limits)
        _check(matcher)
        return matcher


class Guide:
    """The state of one row: which tokens may come next."""

    def __init__(self, constraint: Constraint, matcher: LLMatcher):
        self._constraint, self._matcher = constraint, matcher
        self._calling = self._quoted = False
        self._keys = _Keys()
        self._piece: list[int] = []  # the tokens from behind the last control token on
        self._forced: list[int] | None = None  # None until somebody asks

    @property
    def stopped(self) -> bool:
        """Whether the answer is complete; its last token is then a stop token."""
        return self._matcher.is_stopped()

    @property
    def naming(self) -> bool:
        """Whether what comes next belongs to the name of a function, or ends it."""
        if not self._calling or self._quoted:
            return False
        said = self._constraint.vocabulary.text(self._piece)
        return said.startswith(_CALL) and _OPEN not in said

    def names(self, token: int) -> bool:
        """Whether a model that wants this token here goes on with the name of a declared function, or ends it."""
        known, name = self._constraint.vocabulary, self._name_in(token)
        if forced := self.forced():  # and not a part of that token, with which other names begin
            return name == self._name_in(forced[0])
        spelt = known.spelt(name)
        return bool(spelt) and self._matcher.validate_tokens(spelt) == len(spelt)

    def _name_in(self, token: int) -> bytes:
        """What a token says of a name, the brace behind it included; nothing if it is a control token."""
        known = self._constraint.vocabulary.tokens
        name, end, _ = (known[token] if token < len(known) else b"").partition(_OPEN)
        return name + end

    def in_words(self) -> Guide:
        """The state of the same row if it has said nothing yet, and is to answer in words."""
        return self._constraint.words.start()

    def allow(self, logits: Tensor, left: int | None = None) -> Tensor:
        """The logits [V] of the next token with those that may not come set to -inf.

        Args:
            left: how many tokens the answer may still get. If they are few, and a call could not be closed in them
                behind the best token, the only one left over is the one that leads to its end, where there is one.
        """
        allowed = self._allowed()
        if not self._calling and allowed[_END_OF_TURN] and int(logits.max(-1).indices) in _CONTROL:
            return _masked(logits, _only(_END_OF_TURN, len(logits)))
        masked = _masked(logits, allowed)
        if left is None or left > self._constraint.reach:
            return masked
        best = int(masked.argmax())
        if not (self._calling or best == _START) or self._closes_behind(best, left):
            return masked
        path = self.closing(left)
        return _masked(logits, _only(path[0], len(logits))) if path else masked

    def advance(self, token: int) -> None:
        """The answer goes on with this token.

        Raises:
            ValueError: it may not come here.
        """
        keys = self._keys_behind([token])
        if keys is None or not self._matcher.consume_token(token):
            raise ValueError(f"token {token} may not come here")
        self._keys = keys
        self._calling |= token == _START
        self._quoted ^= token == _ESCAPE
        self._piece = [*self._piece, token] if self._constraint.vocabulary.tokens[token] else []
        self._forced = self._forced[1:] if self._forced and self._forced[0] == token else None

    def forced(self) -> list[int]:
        """The tokens that must come next, cut as the tokenizer would cut the whole text; empty where there is a choice
        of what comes, or of how it is cut.
        """
        if not self._forced:
            self._forced = self._must_come(certain=True)
        return list(self._forced)

    def closing(self, left: int) -> list[int] | None:
        """A short way to the end of the call, of at most `left` tokens; None if none is found."""
        guide, path = self.copy(), []
        while len(path) < left and not guide.stopped:
            tokens = guide._must_come(certain=False) or guide._closer()
            for token in tokens:
                guide.advance(token)
            path += tokens
        return path if guide.stopped and len(path) <= left else None

    def _closes_behind(self, token: int, left: int) -> bool:
        guide = self.copy()
        guide.advance(token)
        return guide.stopped or guide.closing(left - 1) is not None

    def _closer(self) -> list[int]:
        for tokens in self._closers_of_string() if self._quoted else self._constraint.closers:
            if self._matcher.validate_tokens(tokens) == len(tokens) and self._keys_behind(tokens) is not None:
                return tokens
        return [int(self._allowed().argmax())]

    def _closers_of_string(self) -> Iterator[list[int]]:
        """Inside a string, where a brace is a letter like any other."""
        known = self._constraint.vocabulary
        yield [_ESCAPE]
        said = known.text(self._piece)
        for text in self._constraint.grammar.choices:
            if (whole := text.encode()).startswith(said):
                rest = whole[len(said) :]
                yield [*(known.cut(self._piece, rest) or known.spelt(rest)), _ESCAPE]
        yield known.encode("0")

    def copy(self) -> Guide:
        """The same state, which goes on by itself."""
        other = copy.copy(self)
        other._matcher = self._matcher.deep_copy()
        return other

    def _must_come(self, certain: bool) -> list[int]:
        if self.stopped:
            return []
        known, behind = self._constraint.vocabulary, self._matcher.deep_copy()
        data = behind.compute_ff_bytes()
        if not data:
            return []
        behind = self._matcher.deep_copy()  # asking for the bytes has moved the other one on
        behind.consume_tokens(known.spelt(data))

        def goes_on(text: bytes) -> bool:
            return behind.validate_tokens(known.spelt(text)) == len(text)

        return known.cut(self._piece, data, goes_on if certain else None)

    @property
    def _writes_keys(self) -> bool:
        return self._constraint.grammar.free and self._calling and not self._quoted

    def _keys_behind(self, tokens: Sequence[int]) -> _Keys | None:
        """The keys when these tokens have come; None if one of them comes twice then."""
        return self._keys.read(self._constraint.vocabulary.text(tokens)) if self._writes_keys else self._keys

    def _allowed(self) -> np.ndarray:
        """Bool [tokens]."""
        known = self._constraint.vocabulary
        if forced := self.forced():
            return _only(forced[0], len(known.tokens))
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        _check(self._matcher)
        allowed = np.unpackbits(bits, bitorder="little", count=len(known.tokens)).astype(bool)
        if self._writes_keys:
            allowed[self._keys.repeating(known, allowed)] = False
        return allowed


@dataclass(frozen=True)
class _Keys:
    """The keys of the objects that are open in a call.

    Attributes:
        open: for each of them the keys so far, the innermost last. Lists are taken for objects without keys.
        partial: the beginning of the next key.
    """

    open: tuple[frozenset[bytes], ...] = ()
    partial: bytes = b""

    def read(self, text: bytes) -> _Keys | None:
        """Read on, outside of strings; None if a key comes twice."""
        opened, partial = self.open, self.partial
        for i in range(len(text)):
            char = text[i : i + 1]
            if char == b":" and opened:
                if partial in opened[-1]:
                    return None
                opened = (*opened[:-1], opened[-1] | {partial})
            elif char in b"{[":
                opened = (*opened, frozenset())
            elif char in b"}]":
                opened = opened[:-1]
            partial = b"" if char in b":,{[}]" else partial + char
        return _Keys(opened, partial)

    def repeating(self, vocabulary: Vocabulary, allowed: np.ndarray) -> list[int]:
        """Of the tokens that the grammar allows, those with which a key comes twice, or must come twice."""
        used = self.open[-1] if self.open else ()
        found = [i for i in vocabulary.colons if allowed[i] and not self.read(vocabulary.tokens[i])] if used else []
        for key in used:
            # A key of the greatest length can only be avoided before it is complete.
            if len(key.decode()) == MAX_KEY and key.startswith(self.partial):
                found += vocabulary.saying(key[len(self.partial) :])
        return found


def _only(token: int, count: int) -> np.ndarray:
    alone = np.zeros(count, bool)
    alone[token] = True
    return alone


def _masked(logits: Tensor, allowed: np.ndarray) -> Tensor:
    known = min(len(allowed), len(logits))
    mask = torch.zeros(len(logits), dtype=torch.bool)
    mask[:known] = torch.from_numpy(allowed[:known])
    # A token that may come must stand above those that may not, however impossible the model thinks it.
    return logits.clamp(min=torch.finfo(logits.dtype).min).masked_fill(~mask.to(logits.device), -torch.inf)


def _check(matcher: LLMatcher) -> None:
    if matcher.is_error():
        raise unusable(matcher.get_error().partition("\n")[0], "the tools")
