"""What hangs is to fail its test, and not to hold up all others."""

from __future__ import annotations

import signal

import pytest

PATIENCE = 240  # seconds, many times what any of them takes


@pytest.fixture(autouse=True)
def nothing_hangs():
    def stop(*_):
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(PATIENCE)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
