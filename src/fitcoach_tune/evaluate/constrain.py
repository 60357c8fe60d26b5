"""Decoding held to a grammar: whatever the logits are, an answer is text, or calls of declared tools that fit them.

llguidance keeps the state of the grammar and says which tokens may come next. Two things that it cannot know are added:
a key that is not declared comes only once in an object, and a call is closed before the tokens run out.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fitcoach_tune import functiongemma
from fitcoach_tune.evaluate.grammar import COMMON, MAX_KEY, answer_grammar, unusable
from fitcoach_tune.functiongemma import CONTROL_TOKENS

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from transformers import PreTrainedTokenizerBase

_START, _END, _STOP, _ESCAPE = (
    CONTROL_TOKENS[token]
    for token in (
        functiongemma.START_FUNCTION_CALL,
        functiongemma.END_FUNCTION_CALL,
        functiongemma.START_FUNCTION_RESPONSE,
        functiongemma.ESCAPE,
    )
)
_BYTE = re.compile("<0x([0-9A-F]{2})>")
# What the tokens of most strings are; llguidance finds out once which these are, and not at each token.
_SLICES = ["(?s:[^<]{1,30})"]
# A call is led to its end from this many tokens before the limit on, or from twice what the shortest calls need.
_LEAST_REACH, _MOST_REACH = 32, 512
# What llguidance may spend on a token before it gives up: about a second.
_FUEL = 10_000_000


class Constraint:
    """One grammar, for all rows with the same tools.

    Args:
        tools: in the common form. Without any, an answer can only be text.
        tokenizer: FunctionGemma's. What llguidance needs of it is made once in a process, in about half a second.

    Raises:
        DataError: a tool has a problem of its own, or its schema asks for what a grammar cannot express.
    """

    def __init__(self, tools: Sequence[dict], tokenizer: PreTrainedTokenizerBase):
        self.vocabulary = _vocabulary(tokenizer)
        self.grammar = answer_grammar(tools)
        self._matcher = self._compile(self.grammar.lark)
        for where, terminal in self.grammar.doubtful:
            alone = self._compile(f"start: <escape> T <escape>{COMMON}T: {terminal}")
            alone.consume_token(_ESCAPE)
            alone.compute_bitmask()
            if alone.is_error():
                raise unusable("no text fits", where)

    def start(self) -> Guide:
        """The state of a row that has said nothing yet."""
        return Guide(self, self._matcher.deep_copy())

    @cached_property
    def reach(self) -> int:
        """From how many tokens before the limit on a call is led to its end."""
        longest = _LEAST_REACH
        for opening in self.grammar.calls:
            guide = self.start()
            for token in (_START, *self.vocabulary.encode(opening)):
                guide.advance(token)
            longest = max(longest, 2 * len(guide.closing(_MOST_REACH) or ()))
        return longest

    @cached_property
    def closers(self) -> list[list[int]]:
        """Tokens that lead to the end of a call, the better ones first; in a string, only the last two do."""
        marks = [self.vocabulary.encode(mark) for mark in ("}", "]", ",", ":")]
        required = [self.vocabulary.encode(f"{key}:") for key in self.grammar.required]
        return [[_STOP], [_END], *marks, *required, [_ESCAPE], self.vocabulary.encode("0")]

    def _compile(self, lark: str) -> LLMatcher:
        from llguidance import LLMatcher, LLParserLimits

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

    @property
    def stopped(self) -> bool:
        """Whether the answer is complete; its last token is then a stop token."""
        return self._matcher.is_stopped()

    def allow(self, logits: Tensor, left: int | None = None) -> Tensor:
        """The logits [V] of the next token with those that may not come set to -inf.

        Args:
            left: how many tokens the answer may still get. If they are few, and a call could not be closed in them
                behind the best token, the only one left over is the one that leads to its end, where there is one.
        """
        masked = self._masked(logits, self._allowed())
        if left is None or left > self._constraint.reach:
            return masked
        best = int(masked.argmax())
        if not (self._calling or best == _START) or self._closes_behind(best, left):
            return masked
        if path := self.closing(left):
            masked = self._masked(logits, np.isin(np.arange(len(logits)), path[0]))
        return masked

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

    def forced(self) -> list[int]:
        """The tokens that must come next, as the tokenizer itself would cut them; empty where there is a choice."""
        return [] if self.stopped else self._matcher.compute_ff_tokens()

    def closing(self, left: int) -> list[int] | None:
        """A short way to the end of the call, of at most `left` tokens; None if none is found."""
        guide, path = self._copy(), []
        while len(path) < left and not guide.stopped:
            tokens = guide.forced() or guide._closer()
            for token in tokens:
                guide.advance(token)
            path += tokens
        return path if guide.stopped and len(path) <= left else None

    def _closes_behind(self, token: int, left: int) -> bool:
        guide = self._copy()
        guide.advance(token)
        return guide.stopped or guide.closing(left - 1) is not None

    def _closer(self) -> list[int]:
        closers = self._constraint.closers
        for tokens in closers[-2:] if self._quoted else closers:  # inside a string a brace is a letter like any other
            if self._matcher.validate_tokens(tokens) == len(tokens) and self._keys_behind(tokens) is not None:
                return tokens
        return [int(self._allowed().argmax())]

    def _copy(self) -> Guide:
        other = copy.copy(self)
        other._matcher = self._matcher.deep_copy()
        return other

    @property
    def _writes_keys(self) -> bool:
        return self._constraint.grammar.free and self._calling and not self._quoted

    def _keys_behind(self, tokens: Sequence[int]) -> _Keys | None:
        """The keys when these tokens have come; None if one of them comes twice then."""
        if not self._writes_keys:
            return self._keys
        return self._keys.read(b"".join(self._constraint.vocabulary.tokens[token] for token in tokens))

    def _allowed(self) -> np.ndarray:
        """Bool [tokens]."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        _check(self._matcher)
        allowed = np.unpackbits(bits, bitorder="little", count=len(self._constraint.vocabulary.tokens)).astype(bool)
        if self._writes_keys:
            allowed[self._keys.repeating(self._constraint.vocabulary, allowed)] = False
        return allowed

    def _masked(self, logits: Tensor, allowed: np.ndarray) -> Tensor:
        known = min(len(allowed), len(logits))
        mask = torch.zeros(len(logits), dtype=torch.bool)
        mask[:known] = torch.from_numpy(allowed[:known])
        # A token that may come must stand above those that may not, however impossible the model thinks it.
        return logits.clamp(min=torch.finfo(logits.dtype).min).masked_fill(~mask.to(logits.device), -torch.inf)


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

    def repeating(self, vocabulary: _Vocabulary, allowed: np.ndarray) -> list[int]:
        """Of the tokens that the grammar allows, those with which a key comes twice, or must come twice."""
        used = self.open[-1] if self.open else ()
        found = [i for i in vocabulary.colons if allowed[i] and not self.read(vocabulary.tokens[i])] if used else []
        for key in used:
            # A key of the greatest length can only be avoided before it is complete.
            if len(key.decode()) == MAX_KEY and key.startswith(self.partial):
                rest = key[len(self.partial) :]
                found += [i for i, token in enumerate(vocabulary.tokens) if token == rest]
        return found


@dataclass(frozen=True)
class _Vocabulary:
    """A tokenizer as llguidance needs it.

    Attributes:
        tokenizer: llguidance's own.
        encode: text to tokens, never to control tokens.
        tokens: the bytes of each token; none of special ones.
        colons: the tokens with a colon in them.
    """

    tokenizer: LLTokenizer
    encode: Callable[[str], list[int]]
    tokens: list[bytes]
    colons: list[int]


@lru_cache(maxsize=2)
def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> _Vocabulary:
    """Make it of the token list: llguidance's own reader of tokenizers takes three times as long, and would keep
    `<table>` and other HTML tags, which Gemma has as tokens, out of texts.
    """
    from llguidance import LLTokenizer, TokenizerWrapper

    source = _Source(tokenizer)
    made = LLTokenizer(TokenizerWrapper(source), n_vocab=len(source.tokens), slices=_SLICES)
    special = set(source.special_token_ids)
    tokens = [b"" if i in special else token for i, token in enumerate(source.tokens)]
    return _Vocabulary(made, source.encode, tokens, [i for i, token in enumerate(tokens) if b":" in token])


class _Source:
    """The form in which llguidance's `TokenizerWrapper` takes a tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self.eos_token_id, self.bos_token_id = (CONTROL_TOKENS[t] for t in (functiongemma.EOS, functiongemma.BOS))
        self.special_token_ids = [i for i, token in tokenizer.added_tokens_decoder.items() if token.special]
        vocabulary = tokenizer.get_vocab()
        self.tokens = [b""] * (max(vocabulary.values()) + 1)
        for text, index in vocabulary.items():
            byte = _BYTE.fullmatch(text)
            self.tokens[index] = bytes.fromhex(byte[1]) if byte else text.replace("▁", " ").encode()

    def encode(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def __call__(self, text: bytes) -> list[int]:
        return self.encode(text.decode())


def _check(matcher: LLMatcher) -> None:
    if matcher.is_error():
        raise unusable(matcher.get_error().partition("\n")[0], "the tools")
