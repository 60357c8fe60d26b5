"""Root may write where the modes of files forbid it: a power that tests of what is refused have to give up."""

from __future__ import annotations

import contextlib
import ctypes
import struct
import sys
from collections.abc import Iterator

_VERSION_3, _OF_THIS_THREAD = 0x20080522, 0
_DAC_OVERRIDE, _DAC_READ_SEARCH = 1, 2  # numbers of capabilities(7)


@contextlib.contextmanager
def without_powers() -> Iterator[None]:
    """In here the modes of files hold for root as for anybody, in this thread and those that it starts."""
    if sys.platform != "linux":
        yield
        return
    system, header = ctypes.CDLL(None), struct.pack("Ii", _VERSION_3, _OF_THIS_THREAD)
    before = ctypes.create_string_buffer(24)
    assert system.capget(header, before) == 0
    effective, *rest = struct.unpack("6I", before)
    effective &= ~(1 << _DAC_OVERRIDE | 1 << _DAC_READ_SEARCH)
    assert system.capset(header, struct.pack("6I", effective, *rest)) == 0
    try:
        yield
    finally:
        assert system.capset(header, before) == 0
