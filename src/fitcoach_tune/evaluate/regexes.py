"""Regular expressions for numbers in a range, JSON Schema's `pattern` and texts without certain words in them.

They are written for llguidance's terminals: Rust's syntax without look-around, and `&` between two `/…/` asks for both.
Everything here is exact or says less than it could: what a terminal matches is always valid.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection
from decimal import Decimal
from fractions import Fraction

from fitcoach_tune.evaluate.schemas import Inexpressible

MAX_DIGITS = 24
"""Most digits of an integer, and of a number's integer part."""
_FRACTION_DIGITS = 20
# The forms of numbers, as Python prints them: without zeros at the end, with an exponent below 1e-4 and from 1e16 on.
# What has an exponent stays below 1e308, so that none is infinite.
_SMALL, _LARGE, _HUGE = 1e-4, 10**16, 1e308
_INTEGER = f"0|-?[1-9][0-9]{{0,{MAX_DIGITS - 1}}}"
_DECIMAL = rf"-?(0|[1-9][0-9]{{0,15}})\.([0-9]|[0-9]{{1,{_FRACTION_DIGITS - 1}}}[1-9])"
_ANY_DECIMAL = r"[0-9]+\.[0-9]+"
_COEFFICIENT = r"[1-9](\.[0-9]{0,16}[1-9])?"
_SMALL_FORM = _COEFFICIENT + "e-(0[5-9]|[1-9][0-9]|[12][0-9]{2}|3[01][0-9]|32[0-4])"
_LARGE_FORM = _COEFFICIENT + r"e\+(1[6-9]|[2-9][0-9]|[12][0-9]{2}|30[0-7])"

Number = int | float


# Numbers --------------------------------------------------------------------------------------------------------------


# Conditions from one side, on numbers without a sign. They are loose about zeros at the start and the end, and about
# how long a number may be: that is for the form to say, with which they are combined by `&`.


def _digits_from(least: int) -> str:
    """Integers of at least this value."""
    text = str(least)
    larger = [f"{text[:i]}[{int(d) + 1}-9][0-9]{{{len(text) - i - 1}}}" for i, d in enumerate(text) if d != "9"]
    return f"({'|'.join([text, *larger, f'[0-9]{{{len(text) + 1},}}'])})"


def _digits_to(most: int) -> str:
    text = str(most)
    smaller = [f"{text[:i]}[0-{int(d) - 1}][0-9]{{{len(text) - i - 1}}}" for i, d in enumerate(text) if d != "0"]
    shorter = [f"[0-9]{{1,{len(text) - 1}}}"] if len(text) > 1 else []
    return f"({'|'.join([text, *smaller, *shorter])})"


def _fraction_from(digits: str) -> str:
    """Digits behind the point of at least this value; `digits` does not end in a zero."""
    kept = digits[:_FRACTION_DIGITS]
    equal = [f"{kept}[0-9]*"] if kept == digits else []
    return f"({'|'.join([*equal, *(f'{kept[:i]}[{int(d) + 1}-9][0-9]*' for i, d in enumerate(kept) if d != '9')])})"


def _fraction_to(digits: str) -> str:
    kept = digits[:_FRACTION_DIGITS]
    smaller = [f"{kept[:i]}[0-{int(d) - 1}][0-9]*" for i, d in enumerate(kept) if d != "0"]
    return f"({'|'.join(['0', *smaller, *(kept[: i + 1] for i in range(len(kept)))])})"


def _parts(value: float) -> tuple[int, str]:
    """The integer part and the digits behind the point of a float's shortest spelling, without its sign."""
    whole, _, fraction = format(Decimal(repr(abs(value))), "f").partition(".")
    return int(whole), fraction.rstrip("0")


def _decimal_from(value: float) -> str:
    whole, fraction = _parts(value)
    return rf"({_digits_from(whole + 1)}\.[0-9]+|{whole}\.{_fraction_from(fraction)})"


def _decimal_to(value: float) -> str:
    whole, fraction = _parts(value)
    smaller = rf"{_digits_to(whole - 1)}\.[0-9]+|" if whole else ""
    return rf"({smaller}{whole}\.{_fraction_to(fraction)})"


def integers(low: Number | None, high: Number | None, over: Number | None, under: Number | None) -> str:
    """The terminal of the integers from `low` to `high` that are more than `over` and less than `under`.

    Raises:
        Inexpressible: there is none, or none of up to 24 digits.
    """
    if whole := _integers(*_whole_bounds(low, high, over, under)):
        return whole
    raise Inexpressible("no integer fits")


def numbers(low: Number | None, high: Number | None, over: Number | None, under: Number | None) -> str:
    """The terminal of the numbers in such a range.

    Raises:
        Inexpressible: there is none, or none of up to 24 digits before and 20 behind the point.
    """
    least = _tighter(max, _float(low, math.inf, False), _float(over, math.inf, True))
    most = _tighter(min, _float(high, -math.inf, False), _float(under, -math.inf, True))
    whole = _integers(*_whole_bounds(low, high, over, under))
    found = [part for part in (whole, _decimals(least, most), _exponents(least, most)) if part]
    if not found:
        raise Inexpressible("no number fits")
    return " | ".join(found)


def _whole_bounds(
    low: Number | None, high: Number | None, over: Number | None, under: Number | None
) -> tuple[int | None, int | None]:
    least = _tighter(max, low, None if over is None else math.floor(over) + 1)
    most = _tighter(min, high, None if under is None else math.ceil(under) - 1)
    return None if least is None else math.ceil(least), None if most is None else math.floor(most)


def _integers(least: int | None, most: int | None) -> str | None:
    limit = 10**MAX_DIGITS
    least = -limit if least is None else max(least, -limit)
    most = limit if most is None else min(most, limit)
    if least > most or least >= limit or most <= -limit:
        return None
    terminal = f"/{_INTEGER}/"
    if least > -limit:
        terminal += f" & /{_digits_from(least) if least > 0 else f'[0-9]+|-{_digits_to(-least)}'}/"
    if most < limit:
        terminal += f" & /{f'{_digits_to(most)}|-[0-9]+' if most >= 0 else f'-{_digits_from(-most)}'}/"
    return terminal


def _tighter(choose: Callable[[list[Number]], Number], a: Number | None, b: Number | None) -> Number | None:
    given = [value for value in (a, b) if value is not None]
    return choose(given) if given else None


def _float(bound: Number | None, towards: float, excluded: bool) -> float | None:
    """The outermost float on the right side of a bound. Floats are what the numbers with a point are read as."""
    if bound is None:
        return None
    try:
        value = float(bound)
    except OverflowError:  # an integer beyond all floats
        value = math.inf if bound > 0 else -math.inf
    outside = value < bound if towards > 0 else value > bound
    return math.nextafter(value, towards) if outside or (excluded and value == bound) else value


def _decimals(low: float | None, high: float | None) -> str | None:
    least = -_LARGE if low is None else max(low, -_LARGE)
    most = _LARGE if high is None else min(high, _LARGE)
    if least >= _LARGE or most <= -_LARGE:
        return None
    first, last = (Fraction(str(bound)) * 10**_FRACTION_DIGITS for bound in (least, most))
    if math.ceil(first) > math.floor(last):
        return None
    terminal = f"/{_DECIMAL}/"
    if least > -_LARGE:
        terminal += f" & /{_decimal_from(least) if least > 0 else f'{_ANY_DECIMAL}|-{_decimal_to(least)}'}/"
    if most < _LARGE:
        terminal += f" & /{f'{_decimal_to(most)}|-{_ANY_DECIMAL}' if most >= 0 else f'-{_decimal_from(most)}'}/"
    return terminal


def _exponents(low: float | None, high: float | None) -> str | None:
    """Numbers with an exponent, where all that are written so are in the range; others are written out."""
    low = -math.inf if low is None else low
    high = math.inf if high is None else high
    forms = []
    for sign, least, most in (("", low, high), ("-", -high, -low)):
        if least <= 0 and most >= _SMALL:
            forms.append(sign + _SMALL_FORM)
        if least <= _LARGE and most >= _HUGE:
            forms.append(sign + _LARGE_FORM)
    return f"/{'|'.join(forms)}/" if forms else None


# Patterns -------------------------------------------------------------------------------------------------------------

# The characters of Python's \d (ASCII only, unless they are excluded), \w and \s, for use inside brackets.
_DIGIT, _WORD, _SPACE = "0-9", r"\p{L}\p{N}_", r"\s\x1c-\x1f"
_CLASSES = {"d": _DIGIT, "w": _WORD, "s": _SPACE}
_NEGATED = {"D": r"\P{Nd}", "W": f"[^{_WORD}]", "S": f"[^{_SPACE}]"}
_CONTROLS = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v"}
_ESCAPE = r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|[dDwWsSnrtfv]|[^A-Za-z0-9])"
_PIECE = re.compile(
    rf"""(?P<group>\(\?:|\((?!\?)|\))
    |(?P<either>\|)
    |(?P<repeat>(?:[*+?]|\{{[0-9]+(?:,[0-9]*)?\}}|\{{,[0-9]+\}}))\??(?![*+?{{])
    |\[(?P<not>\^?)(?P<set>\]?(?:{_ESCAPE}|[^\]\\])*)\]
    |(?P<escape>{_ESCAPE})
    |(?P<anchor>[\^$])
    |(?P<dot>\.)
    |(?P<char>[^\\()|*+?{{\[])""",
    re.VERBOSE,
)
_MEMBER = re.compile(rf"({_ESCAPE}|.)(?:-({_ESCAPE}|[^\]]))?", re.DOTALL)


def matching(pattern: str) -> str:
    """The regular expression of all texts in which Python finds `pattern`.

    `^` and `$` may stand at the ends, where `$` means the very end. `\\d` is an ASCII digit, which is less than Python
    finds; otherwise it is the same.

    Raises:
        Inexpressible: the pattern uses something else than characters, sets, groups, alternatives and repetitions.
    """
    options, depth, at = [_Option()], 0, 0
    while at < len(pattern):
        piece = _PIECE.match(pattern, at)
        if not piece:
            raise Inexpressible(f"the pattern cannot be read from {pattern[at : at + 10]!r} on")
        at, option, text = piece.end(), options[-1], piece.group()
        if option.ended and (depth or not piece["either"]):
            raise Inexpressible("the pattern has $ in its middle")
        if piece["group"]:
            depth += 1 if text != ")" else -1
            option.body += "(?:" if text != ")" else ")"
        elif piece["either"] and not depth:
            options.append(_Option())
        elif piece["anchor"]:
            option.anchor(text, depth)
        else:
            option.body += _translated(piece)
    return "|".join(map(str, options))


class _Option:
    """One of a pattern's alternatives."""

    def __init__(self) -> None:
        self.body, self.started, self.ended = "", False, False

    def anchor(self, sign: str, depth: int) -> None:
        if depth or (sign == "^" and (self.body or self.started)):
            raise Inexpressible(f"the pattern has {sign} in its middle")
        self.started |= sign == "^"
        self.ended |= sign == "$"

    def __str__(self) -> str:
        anything = "(?s:.*)"
        return f"{'' if self.started else anything}(?:{self.body}){'' if self.ended else anything}"


def without(words: Collection[str]) -> str:
    """The regular expression of texts in which none of these words occurs; each begins with `<`, its only one.

    (To negate one that finds the words would say the same, but llguidance then takes long to see that nothing can
    follow a word.)
    """

    def further(beginning: str) -> set[str]:
        found = {word[: len(beginning) + 1] for word in words if word.startswith(beginning)}
        return found - set(words) - {beginning}

    def half(beginning: str) -> str:
        """A part of a word: it may only end the text, or stand before another `<`."""
        more = [half(longer) for longer in sorted(further(beginning))]
        return _character(beginning[-1]) + (f"({'|'.join(more)})?" if more else "")

    def other(beginning: str) -> str:
        """What begins like a word and goes on otherwise."""
        known = {word[len(beginning)] for word in words if word.startswith(beginning)}
        ways = [f"[^<{''.join(map(_character, sorted(known)))}]", *map(other, sorted(further(beginning)))]
        return f"{_character(beginning[-1])}({'|'.join(ways)})"

    return f"(?s:[^<]*(({half('<')})*{other('<')}[^<]*)*({half('<')})*)"


def _translated(piece: re.Match[str]) -> str:
    if piece["repeat"]:
        return piece["repeat"].replace("{,", "{0,")
    if piece["set"] is not None:
        return f"[{piece['not']}{_members(piece['set'], bool(piece['not']))}]"
    if piece["escape"]:
        return f"[{_member(piece['escape'], False)}]"
    return piece.group() if piece["dot"] or piece["either"] else _character(piece["char"])


def _members(text: str, excluded: bool) -> str:
    found = []
    for first, last in _MEMBER.findall(text):
        if not last:
            found.append(_member(first, excluded))
        elif _is_class(first) or _is_class(last):
            raise Inexpressible(f"the pattern has {first}-{last} in it")
        else:
            found.append(f"{_member(first, excluded)}-{_member(last, excluded)}")
    return "".join(found)


def _is_class(member: str) -> bool:
    return member[1:] in _CLASSES or member[1:] in _NEGATED


def _member(text: str, excluded: bool) -> str:
    """A character or a class, for use inside brackets."""
    kind = text[1:]
    if not kind:
        return _character(text)
    if kind == "d" and excluded:  # what is left must be no digit in Python's eyes either
        return r"\p{Nd}"
    if kind in _CLASSES or kind in _NEGATED:
        return {**_CLASSES, **_NEGATED}[kind]
    if len(kind) > 1:
        return _character(chr(int(kind[1:], 16)))
    return _character(_CONTROLS.get(kind, kind))


def _character(char: str) -> str:
    return char if char.isascii() and char.isalnum() else rf"\x{{{ord(char):x}}}"
