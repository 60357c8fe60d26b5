"""The tokenizer as constrained decoding needs it: for llguidance, and to cut text that must come into tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np

from fitcoach_tune.functiongemma import BOS, CONTROL_TOKENS, EOS

if TYPE_CHECKING:
    from llguidance import LLTokenizer

    from fitcoach_tune.tokenizer import AnyTokenizer

_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]  # the tokens that are nothing but a byte
_CONTROL = re.compile(rb"\xff\[([0-9]+)\]")  # how llguidance writes a control token among forced bytes
# What the tokens of most strings are; llguidance finds out once which these are, and not at each token.
_SLICES = ["(?s:[^<]{1,30})"]


@dataclass
class Vocabulary:
    """What is derived from a tokenizer.

    Attributes:
        tokenizer: llguidance's own.
        encode: text to tokens, never to control tokens.
        tokens: the bytes of each token; none of special ones.
        single: the token that is nothing but a byte, for each byte.
        colons: the tokens with a colon in them.
    """

    tokenizer: LLTokenizer
    encode: Callable[[str], list[int]]
    tokens: list[bytes]
    single: list[int]
    colons: list[int]

    def text(self, tokens: Iterable[int]) -> bytes:
        """What tokens say, without control tokens."""
        return b"".join(self.tokens[token] for token in tokens)

    def spelt(self, data: bytes) -> list[int]:
        """Text byte by byte; control tokens are written as in `cut`."""
        *parts, tail = _CONTROL.split(data)
        found = [i for text, control in _pairs(parts) for i in (*map(self.single.__getitem__, text), control)]
        return found + [self.single[byte] for byte in tail]

    def cut(self, before: Sequence[int], data: bytes, goes_on: Callable[[bytes], bool] | None = None) -> list[int]:
        """Bytes that must come, as the tokens into which the tokenizer cuts them.

        What follows can change them: BPE merges all the text between two control tokens, and `:{}` is cut into `:` and
        `{}`, but `:{},` into `:{` and `},`. A cut at the end of a text is the same whatever follows, unless a token
        reaches across it; then it is one of the cuts where such a token begins. What is common to all these is certain.

        Args:
            before: the tokens so far, from behind the last control token on.
            data: as llguidance gives forced bytes, with control tokens among them.
            goes_on: whether this text can follow the bytes. Given it, only what is certain is cut.
        """
        *parts, tail = _CONTROL.split(data)
        found: list[int] = []
        for text, control in _pairs(parts):
            tokens = self._behind(before, text)
            if tokens is None:
                return found
            found += [*tokens, control]
            before = ()
        ends = [*self._crossed(tail, goes_on), len(tail)] if goes_on and tail else [len(tail)]
        ways = [self._behind(before, tail[:end]) for end in ends]
        if None in ways:
            return found
        return found + [tokens[0] for tokens in takewhile(lambda same: len(set(same)) == 1, zip(*ways, strict=False))]

    def _behind(self, before: Sequence[int], text: bytes) -> list[int] | None:
        """The tokens of a text that goes on behind others; None if it begins or ends within a character."""
        try:
            whole = self.encode((self.text(before) + text).decode())
            if whole[: len(before)] == list(before):
                return whole[len(before) :]
            return self.encode(text.decode())  # what is before has been cut in another way
        except UnicodeDecodeError:
            return None

    def _crossed(self, text: bytes, goes_on: Callable[[bytes], bool]) -> Iterator[int]:
        """Where in a text tokens can begin that reach across its end."""
        following = [byte for byte in map(bytes, zip(range(256), strict=True)) if goes_on(byte)]
        for i in range(len(text)):
            if any(goes_on(token[len(text) - i :]) for byte in following for token in self._beginning(text[i:] + byte)):
                yield i

    def saying(self, text: bytes) -> list[int]:
        """The tokens that say exactly this."""
        return self._between(text, text + b"\1")[0].tolist()  # no token goes on with a null

    def _beginning(self, text: bytes) -> list[bytes]:
        """The tokens that begin like this."""
        return self._between(text, text + b"\xff")[1].tolist()

    def _between(self, first: bytes, last: bytes) -> tuple[np.ndarray, np.ndarray]:
        """The tokens from `first` to before `last`, as tokens and as what they say."""
        order, known = self._sorted
        # In the form of what is searched, or numpy would convert all of that.
        ends = np.searchsorted(known, np.array([first, last], known.dtype))
        return order[slice(*ends)], known[slice(*ends)]

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        known = np.array(self.tokens, dtype=f"S{max(map(len, self.tokens)) + 1}")
        order = np.argsort(known, kind="stable")
        return order, known[order]


def _pairs(parts: Sequence[bytes]) -> Iterator[tuple[bytes, int]]:
    """What is before each control token, and the token."""
    return ((text, int(control)) for text, control in zip(parts[::2], parts[1::2], strict=True))


@lru_cache(maxsize=2)
def vocabulary(tokenizer: AnyTokenizer) -> Vocabulary:
    """Derive it, once for a tokenizer: it takes about half a second.

    llguidance's own reader of tokenizers takes some four times as long, and would keep `<table>` and other HTML tags,
    which Gemma has as tokens, out of texts.
    """
    from llguidance import LLTokenizer, TokenizerWrapper

    source = _Source(tokenizer)
    made = LLTokenizer(TokenizerWrapper(source), n_vocab=len(source.tokens), slices=_SLICES)
    tokens = list(source.tokens)
    for index in source.special_token_ids:
        tokens[index] = b""
    colons = [i for i, token in enumerate(tokens) if b":" in token]
    return Vocabulary(made, source.encode, tokens, source.single, colons)


class _Source:
    """The form in which llguidance's `TokenizerWrapper` takes a tokenizer."""

    def __init__(self, tokenizer: AnyTokenizer):
        self._tokenizer = tokenizer
        self.eos_token_id, self.bos_token_id = CONTROL_TOKENS[EOS], CONTROL_TOKENS[BOS]
        self.special_token_ids = [i for i, token in tokenizer.added_tokens_decoder.items() if token.special]
        self.single = tokenizer.convert_tokens_to_ids(_BYTES)
        known = tokenizer.get_vocab()
        self.tokens = [b""] * (max(known.values()) + 1)
        for text, index in known.items():
            self.tokens[index] = text.replace("▁", " ").encode()
        for byte, text in enumerate(_BYTES):
            if text in known:
                self.tokens[known[text]] = bytes([byte])

    def encode(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def __call__(self, text: bytes) -> list[int]:
        return self.encode(text.decode())
