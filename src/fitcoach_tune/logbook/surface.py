"""How a sentence is put on the screen: greetings, casing, final punctuation and slips, never inside a copied value."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

from fitcoach_tune.logbook.values import lines, pick

_OPENERS, _CLOSERS = lines("openers"), lines("closers")
_POLITE = re.compile(r"please|pls|thanks|thx|cheers|would|could|kindly|\bta\b", re.IGNORECASE)
_GREETS = re.compile(r"(yo|hey|so|right|ok|ugh|yay|yikes|sorry|update)\b", re.IGNORECASE)
_EIGHTEEN = re.compile(r"8|1[18](?!\d)")


@dataclass(frozen=True)
class Piece:
    """A part of a sentence.

    Attributes:
        text: as the phrases file or the drawn value has it.
        kind: `words` of the pattern; `telling`, words that give an argument; a `value`, which may change its case; or
            `copied`, which stays letter for letter. Only `words` have typing errors.
    """

    text: str
    kind: Literal["words", "telling", "value", "copied"]

    @property
    def is_drawn(self) -> bool:
        """Whether it came from a slot."""
        return self.kind in ("value", "copied")


def written(rng: Random, pieces: list[Piece]) -> str:
    """One way of writing the sentence."""
    pieces = _settled(pieces)
    if rng.random() < 0.12:
        pieces = _opened(rng, pieces)
    if rng.random() < 0.1:
        pieces = _closed(rng, pieces)
    if rng.random() < 0.08:
        pieces = _slipped(rng, pieces)
    pieces = _cased(rng, pieces)
    text = "".join(piece.text for piece in pieces)
    if not pieces[-1].is_drawn and text[-1] in ".?!" and rng.random() < 0.35:
        text = text[:-1]
    return text


def _settled(pieces: list[Piece]) -> list[Piece]:
    """The pieces, each `a(n)` as the word after it wants it, and no second full stop after "7 a.m."."""
    joined: list[Piece] = []
    for piece, following in zip(pieces, [*pieces[1:], None], strict=True):
        text = piece.text
        if following and text.endswith("a(n) "):
            text = text.removesuffix("a(n) ") + ("an " if _wants_an(following.text) else "a ")
        if joined and joined[-1].text.endswith(".m."):
            text = text.removeprefix(".")
        joined += [replace(piece, text=text)] if text else []
    return joined


def _wants_an(text: str) -> bool:
    sound = text.lower()
    vowel = sound[0] in "aeiou" or sound.startswith("hour") or _EIGHTEEN.match(sound)
    return bool(vowel) and not sound.startswith("one")  # "one-hour" begins as "won" does


def _opened(rng: Random, pieces: list[Piece]) -> list[Piece]:
    first = pieces[0]
    if not first.is_drawn and _GREETS.match(first.text):
        return pieces
    opener = pick(rng, _OPENERS)
    keeps_case = opener[-1] in "!.:" or re.match(r"I\b", first.text) or first.kind == "copied"
    if not keeps_case:
        first = replace(first, text=first.text[0].lower() + first.text[1:])
    return [Piece(f"{opener} ", "words"), first, *pieces[1:]]


def _closed(rng: Random, pieces: list[Piece]) -> list[Piece]:
    if any(not piece.is_drawn and _POLITE.search(piece.text) for piece in pieces):
        return pieces
    last = pieces[-1]
    if not last.is_drawn:
        last = replace(last, text=last.text.rstrip(".?!"))
    # After the user's own words a comma says where they end.
    comma = "," if pieces[-1].kind == "copied" or rng.random() < 0.6 else ""
    return [*pieces[:-1], last, Piece(f"{comma} {pick(rng, _CLOSERS)}", "words")]


def _slipped(rng: Random, pieces: list[Piece]) -> list[Piece]:
    """One typing error in the pattern's own words: two letters swapped, one left out or one doubled."""
    spots = [
        (index, match)
        for index, piece in enumerate(pieces)
        if piece.kind == "words"
        for match in re.finditer(r"(?<![\w'])[A-Za-z][a-z]{3,}(?![\w'])", piece.text)
    ]
    if not spots:
        return pieces
    index, match = pick(rng, spots)
    word = match.group()
    at = 1 + int(rng.random() * (len(word) - 2))
    way = pick(rng, ["swap", "drop", "double"])
    if way == "swap":
        word = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    else:
        word = word[:at] + (word[at] * 2 if way == "double" else "") + word[at + 1 :]
    text = pieces[index].text
    text = text[: match.start()] + word + text[match.end() :]
    return [*pieces[:index], replace(pieces[index], text=text), *pieces[index + 1 :]]


def _cased(rng: Random, pieces: list[Piece]) -> list[Piece]:
    chance = rng.random()
    if chance < 0.03 and not any(piece.kind == "copied" for piece in pieces):
        return [replace(piece, text=piece.text.upper()) for piece in pieces]
    if chance < 0.33:
        return [piece if piece.kind == "copied" else replace(piece, text=piece.text.lower()) for piece in pieces]
    first = pieces[0]
    if chance < 0.6 and first.kind != "copied":
        return [replace(first, text=first.text[0].upper() + first.text[1:]), *pieces[1:]]
    return pieces
