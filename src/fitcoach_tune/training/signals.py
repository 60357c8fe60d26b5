"""SIGTERM and Ctrl-C while training: a wish to stop, which the loop grants once it has finished its step."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType


class StopSignals:
    """A context in which SIGTERM and SIGINT do not end the process but are remembered.

    Every further one is remembered as well and changes nothing: a save that has begun is not disturbed.

    Args:
        quiet: say nothing on stderr when one arrives.

    Attributes:
        name: the first that arrived, or None.
    """

    _NUMBERS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, quiet: bool = False):
        self.name: str | None = None
        self._quiet = quiet
        self._before: list = []

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # no other may set handlers, nor gets signals
            self._before = [signal.signal(number, self._remember) for number in self._NUMBERS]
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in zip(self._NUMBERS, self._before, strict=False):
            signal.signal(number, handler)

    def stopping(self) -> bool:
        """Has one arrived?"""
        return self.name is not None

    def _remember(self, number: int, _: FrameType | None) -> None:
        said = "stopping as soon as all is saved" if self.name is None else "still saving"
        self.name = self.name or signal.Signals(number).name
        if not self._quiet:
            # Not print: the signal may have arrived in the middle of one.
            os.write(2, f"{signal.Signals(number).name}: {said}\n".encode())
