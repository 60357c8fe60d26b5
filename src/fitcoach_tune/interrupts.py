"""Ctrl-C where it would otherwise be lost."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def postponed() -> Iterator[None]:
    """A context at whose end a Ctrl-C is raised that came in it."""
    if threading.current_thread() is not threading.main_thread():  # no other is interrupted, nor may set handlers
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        signal.raise_signal(signal.SIGINT)


def ready_pyarrow() -> None:
    """Call it before pyarrow converts anything to numpy.

    The first time it imports pandas where that is installed, which takes half a second, and drops whatever is raised
    meanwhile.
    """
    import pyarrow as pa

    with postponed():
        pa.array([], pa.int32()).to_numpy()
