"""Strict JSON: what the standard parser lets through but readers disagree on is refused, and its place is named."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import dataclass

MAX_DEPTH = 100
"""Nesting beyond which a value is refused: far more than a call needs, far less than Python's stack."""

_LONGEST_KEY = 80
_HALF_ESCAPED = re.compile(r"\\u[dD][89a-fA-F]")

_SURROGATE = re.compile("[\ud800-\udfff]")
_SURROGATE_TEXT = "half of a surrogate pair (\\ud800 to \\udfff) is not a character; write the whole character"


class Flaw(Exception):
    """One thing wrong with one value: a JSON text, a tool or a row.

    Args:
        field: the path inside it, such as `messages[2].content`; empty for the value as a whole.
        what: what is wrong with it and what to do.
        line: of a text that is not JSON at all; None where it is, but says something that it must not.
        repeated: the same fault of a shared value was reported before.
    """

    def __init__(self, field: str, what: str, *, line: int | None = None, repeated: bool = False):
        super().__init__(f"{field}: {what}" if field else what)
        self.field = field
        self.what = what
        self.line = line
        self.repeated = repeated


@dataclass(frozen=True)
class _Refused:
    """Stands in a parsed value for a part that is refused, so that its place can still be named."""

    what: str


def _object(pairs: list[tuple[str, object]]) -> object:
    value = dict(pairs)
    if len(value) == len(pairs):
        return value
    [(repeated, _)] = Counter(key for key, _ in pairs).most_common(1)
    return _Refused(f"the key {quote(repeated)} stands twice in one object; keep one of them")


def _integer(digits: str) -> object:
    try:
        return int(digits)
    except ValueError:  # Python refuses integers of more than 4300 digits
        return _Refused(f"a number of {len(digits)} digits is too long to be read")


def decode_json(data: bytes | str) -> object:
    """Parses JSON; what readers disagree on stays in the value for `find_flaw` to locate.

    Args:
        data: text, or UTF-8 without a byte-order mark.

    Raises:
        Flaw: it is not UTF-8, not JSON, or nested too deeply to be parsed.
    """
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
        return json.loads(text, object_pairs_hook=_object, parse_int=_integer)
    except UnicodeDecodeError as error:
        raise Flaw("", f"byte {error.start + 1} is not UTF-8; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        what = f"not valid JSON at column {error.colno}: {error.msg[0].lower()}{error.msg[1:]}"
        raise Flaw("", what, line=error.lineno) from None
    except RecursionError:
        raise Flaw("", f"nested more than {MAX_DEPTH} levels deep") from None


def find_flaw(value: object) -> Flaw | None:
    """The first part of `value` that strict JSON cannot carry, or None.

    Looks for repeated keys and overlong integers (left there by `decode_json`), numbers that are not finite, lone
    surrogates, types that only a columnar format has (timestamps, bytes), and nesting beyond `MAX_DEPTH`.
    """
    found = _find_flaw(value, 0)
    if found is None:
        return None
    parts, what = found
    return Flaw("".join(reversed(parts)).removeprefix("."), what)


def _find_flaw(value: object, depth: int) -> tuple[list[str], str] | None:
    if isinstance(value, str):
        return ([], _SURROGATE_TEXT) if _SURROGATE.search(value) else None
    if value is None or isinstance(value, (bool, int)):
        return None
    if isinstance(value, float):
        return None if math.isfinite(value) else ([], f"{value} is not a number that JSON has")
    if isinstance(value, _Refused):
        return [], value.what
    if not isinstance(value, (dict, list)):
        return [], f"a {type(value).__name__} is not a JSON value; store it as text"
    if depth == MAX_DEPTH:
        return [], f"nested more than {MAX_DEPTH} levels deep"
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        if isinstance(key, str) and _SURROGATE.search(key):
            return [], f"in a key: {_SURROGATE_TEXT}"
        if found := _find_flaw(inner, depth + 1):
            # The path is put together only on the way out: values without a flaw pay nothing for it.
            found[0].append(_step(key))
            return found
    return None


def _step(key: object) -> str:
    """How a key or an index continues a path."""
    if not isinstance(key, str):
        return f"[{key}]"
    return f".{key}" if key.isprintable() and len(key) <= _LONGEST_KEY else f".{quote(key)}"


def parse_json(data: bytes | str) -> object:
    """Parses text, or UTF-8, as strict JSON. Raises `Flaw`."""
    try:
        return _parse_plain(data)
    except (_Doubtful, ValueError, RecursionError):
        value = decode_json(data)
    if flaw := find_flaw(value):
        raise flaw
    return value


# The quick way: what is plainly without a flaw, as nearly all rows are, is not searched for one -----------------------


class _Doubtful(Exception):
    """It may have a flaw."""


def _plain_object(pairs: list[tuple[str, object]]) -> dict:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise _Doubtful
    return value


def _plain_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _Doubtful
    return value


def _no_constant(_: str) -> None:
    raise _Doubtful


_PLAIN = json.JSONDecoder(object_pairs_hook=_plain_object, parse_float=_plain_float, parse_constant=_no_constant)


def _parse_plain(data: bytes | str) -> object:
    """Parses JSON. Raises `_Doubtful`, or what the standard parser raises, unless it is certain that it has no flaw."""
    text = data if isinstance(data, str) else data.decode("utf-8")
    may_be_deep = text.count("[") + text.count("{") > MAX_DEPTH
    # Only an escape, or text that was not decoded here, can bring half of a surrogate pair.
    if may_be_deep or ("\\u" in text and _HALF_ESCAPED.search(text)) or (text is data and _SURROGATE.search(text)):
        raise _Doubtful
    return _PLAIN.decode(text)


def parse_cell(value: object, field: str) -> object:
    """`value` itself, or what it says where it is a JSON text. Raises `Flaw` at `field`."""
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
    except Flaw as flaw:
        raise Flaw(field, str(flaw)) from None


# Values of a known form -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Maybe:
    """In a form: a part that may be null, and unless `missing` is false may be missing."""

    form: object
    missing: bool = True


def misfit(value: object, form: object, field: str = "") -> Flaw | None:
    """The first part of a JSON value that is not of the wanted form, or None.

    Args:
        form: a type (`float` stands for any number), a list with the form of all items, a dict with the forms of the
            keys that there must be (others may be there as well), a dict whose only key is the type `str` with the form
            of all values, or a `Maybe`.
        field: the path of the value.
    """
    if isinstance(form, Maybe):
        return None if value is None else misfit(value, form.form, field)
    if isinstance(form, type):
        kinds = (int, float) if form is float else form
        fits = isinstance(value, kinds) and (form is bool or not isinstance(value, bool))
        return None if fits else Flaw(field, f"must be {_NAMES[form]}, not {kind(value)}")
    if not isinstance(value, type(form)):
        return Flaw(field, f"must be {_NAMES[type(form)]}, not {kind(value)}")
    if isinstance(value, list):
        parts = [(f"{field}[{index}]", item, form[0]) for index, item in enumerate(value)]
    elif str in form:
        parts = [(f"{field}{_step(key)}", item, form[str]) for key, item in value.items()]
    else:
        needed = [key for key, part in form.items() if not (isinstance(part, Maybe) and part.missing)]
        if absent := [key for key in needed if key not in value]:
            return Flaw(field, f"has no {absent[0]}")
        parts = [(f"{field}.{key}", value.get(key), part) for key, part in form.items()]
    found = (misfit(item, part, place.removeprefix(".")) for place, item, part in parts)
    return next(filter(None, found), None)


def shorten(text: str, limit: int = 80) -> str:
    """`text` cut to what an error message can quote."""
    return text if len(text) <= limit else f"{text[:limit]}…"


def quote(text: str) -> str:
    """`text` in quotes, escaped and cut to what an error message can hold."""
    return repr(shorten(text))


_NAMES = {
    dict: "an object",
    list: "a list",
    str: "text",
    bool: "a boolean",
    type(None): "null",
    int: "a whole number",
    float: "a number",
}


def kind(value: object) -> str:
    """What JSON calls the type of `value`, with its article, for messages."""
    return "a number" if type(value) is int else _NAMES.get(type(value), "a number")
