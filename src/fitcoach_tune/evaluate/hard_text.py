"""Queries as people type them: with typing errors, in another case, without punctuation; argument values stay."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

LETTERS_PER_TYPO = 12
NEIGHBOURS = {
    "q": "wa", "w": "qeas", "e": "wrsd", "r": "etdf", "t": "ryfg", "y": "tugh", "u": "yihj", "i": "uojk", "o": "ipkl",
    "p": "ol", "a": "qwsz", "s": "weadzx", "d": "ersfxc", "f": "rtdgcv", "g": "tyfhvb", "h": "yugjbn", "j": "uihknm",
    "k": "iojlm", "l": "opk", "z": "asx", "x": "sdzc", "c": "dfxv", "v": "fgcb", "b": "ghvn", "n": "hjbm", "m": "jkn",
}  # fmt: skip
"""The keys beside each letter's on a QWERTY keyboard."""

# What is typed with care: what is quoted, and words with digits or signs in them (dates, addresses, paths).
_QUOTED = re.compile(r"\"[^\"]*\"|“[^”]*”|„[^“”]*[“”]|«[^»]*»|「[^」]*」")
_SIGNS = re.compile(r"[\d@#/\\_<>{}]")
_MARKS = frozenset(".,;:!?…'’‘\"“”„«»()[]¡¿-–—、。，！？；：「」『』؟،")


def mistyped(text: str, values: Sequence[str], rng: np.random.Generator) -> str | None:
    """The text with one word in a few mistyped, or None where no word may be.

    Long words come first: one letter more or less makes another word of a short one. Only scripts with upper and
    lower case are touched, as others are not typed a letter a key.

    Args:
        values: texts that must stay wherever they occur, as must the single words of them.
    """
    kept = {place for start, end in _kept(text, values) for place in range(start, end)}
    words = [
        (match.start(), match.end())
        for match in re.finditer(r"[^\W\d_]{2,}", text)
        if all(c.lower() != c.upper() for c in match.group()) and kept.isdisjoint(range(*match.span()))
    ]
    wanted = max(1, round(sum(end - start for start, end in words) / LETTERS_PER_TYPO))
    for length in (4, 3, 2):
        usable = [(start, end) for start, end in words if end - start >= length]
        if len(usable) >= wanted:
            break
    if not usable:
        return None
    chosen = rng.choice(len(usable), size=min(wanted, len(usable)), replace=False)
    for start, end in sorted((usable[i] for i in chosen), reverse=True):
        text = text[:start] + _slip(text[start:end], rng) + text[end:]
    return text


def _kept(text: str, values: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Spans that must stay as they are."""
    yield from (match.span() for match in _QUOTED.finditer(text))
    yield from (match.span() for match in re.finditer(r"\S+", text) if _SIGNS.search(match.group()))
    for value in values:
        yield from (match.span() for match in re.finditer(re.escape(value), text, re.IGNORECASE))
    single = {word.lower() for value in values for word in _words(value)}
    yield from (match.span() for match in re.finditer(r"[^\W_]+", text) if match.group().lower() in single)


def _slip(word: str, rng: np.random.Generator) -> str:
    """`word`, of two letters or more, with one typing error behind its first letter."""
    at = int(rng.integers(1, len(word)))
    before, here, after = word[:at], word[at], word[at + 1 :]
    slips = [before + here + here + after]
    if near := NEIGHBOURS.get(here.lower()):
        other = near[rng.integers(len(near))]
        slips.append(before + (other.upper() if here.isupper() else other) + after)
    if len(word) > 3:
        slips.append(before + after)
    if after and after[0] != here:
        slips.append(before + after[0] + here + after[1:])
    return slips[rng.integers(len(slips))]


def without_marks(text: str) -> str:
    """As people type who leave punctuation out: `What's 3.5 km, roughly?` becomes `Whats 3.5 km roughly`."""
    plain = "".join(c for i, c in enumerate(text) if c not in _MARKS or _inside(text, i))
    return re.sub(r" {2,}", " ", plain).strip() if plain != text and plain.strip() else text


def _inside(text: str, i: int) -> bool:
    """Whether a mark belongs to a word or number: 3.5, 7:30, e-mail, -4, 5'."""
    before, after = text[i - 1 : i], text[i + 1 : i + 2]
    if text[i] in "'’‘":
        return before.isdigit()
    return (before.isalnum() and after.isalnum()) or (text[i] in "-." and after.isdigit())


def still_says(text: str, changed: str, values: Sequence[str]) -> bool:
    """Whether all that `text` quotes of the values, single words included, stands unchanged in the other."""
    pieces = {*values, *(word for value in values for word in _words(value))}
    return all(piece in changed for piece in pieces if piece in text)


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text)
