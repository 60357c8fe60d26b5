"""What hostile input is made of, and what a refusal has to look like."""

from __future__ import annotations

import json
import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from fitcoach_tune.errors import FitcoachTuneError
from fitcoach_tune.functiongemma import CONTROL_TOKENS

DEEP = 10_000
MEGABYTES = 10_000_000

# JSON that the standard parser takes and readers disagree on, or that takes a parser to its limits.
NASTY = {
    "nothing": b"",
    "brackets": b"[" * DEEP,
    "closed brackets": b"[" * DEEP + b"]" * DEEP,
    "braces": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "ten megabytes of text": b'"' + b"x" * MEGABYTES + b'"',
    "ten megabytes of brackets": b"[" * MEGABYTES,
    "ten megabytes of digits": b"9" * MEGABYTES,
    "a key of ten megabytes": b'{"' + b"k" * MEGABYTES + b'": NaN}',
    "a null byte": b'{"a": 1}\0',
    "null bytes": b"\0" * 100,
    "no UTF-8": b'{"a": "\xff\xfe"}',
    "half a surrogate pair": b'{"a": "\\ud800"}',
    "half a surrogate pair in a key": b'{"\\udfff": 1}',
    "a huge integer": b'{"a": ' + b"7" * 5000 + b"}",
    "a huge float": b'{"a": 1e999}',
    "not a number": b'{"a": NaN}',
    "a key twice": b'{"a": 1, "a": 2}',
    "control characters in a key": b'{"\\u001b]0;owned\\u0007": Infinity}',
    "a list": b"[]",
    "a number": b"17",
    "null": b"null",
}

# More can be asked for, to look for what nobody has found yet.
fuzz = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "60")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)

TOKENS = sorted(CONTROL_TOKENS)
ODD = ["..", "../x", "/etc/passwd", "a\0b", "\ud800", "x" * 5000, "~nobody", "\x1b[2J", "$ref"]
texts = st.text(max_size=6) | st.sampled_from([*TOKENS, *ODD])
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | texts
    | st.sampled_from([10**400, -1, 2**63, 0, 1e308, "true", "1"])
)
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def nearly(draw, value: Any, junk=json_values) -> Any:
    """A copy of a JSON value in which one part, anywhere, is replaced by something else, added or removed."""
    whole = {"": json.loads(json.dumps(value))}
    place, key = whole, ""
    while isinstance(place[key], dict | list) and place[key] and draw(st.integers(0, 4)):
        place = place[key]
        key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
    what = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
    if what == "add" and isinstance(place, dict):
        place[draw(texts)] = draw(junk)
    elif what == "remove" and place is not whole:
        del place[key]
    else:
        place[key] = draw(junk)
    return whole.get("")


@st.composite
def altered(draw, data: bytes) -> bytes:
    """The same bytes with some changed, cut out, or put in."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.sampled_from([1, 1, 1, 4, 8, len(data)]))
        data = data[:at] + draw(st.binary(max_size=8)) + data[at + draw(st.integers(0, length)) :]
    return data


def one_error(error: BaseException, *parts: object, of: type | tuple = FitcoachTuneError) -> FitcoachTuneError:
    """The error is of the program's own kind, says where, and is short enough to be read and safe to be printed."""
    assert isinstance(error, of), repr(error)
    text = str(error)
    assert len(text) < 5000
    text.encode("utf-8", "backslashreplace")
    for part in parts:
        assert str(part) in text, text
    return error
