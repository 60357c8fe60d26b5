"""What does not depend on the kind of device."""

from __future__ import annotations

import subprocess
import sys

PEAK = "from fitcoach_tune.backends.base import process_peak_memory; print(process_peak_memory())"


def test_the_peak_is_not_that_of_the_process_that_started_this_one():
    """A process of a gigabyte starts one that uses less: Linux counts the first one's peak in the second's."""
    large = b"x" * 2**30
    started = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert 2**26 < int(started.stdout) < len(large)


def test_the_peak_is_what_was_used_at_most():
    code = f"used = b'x' * 2**30; del used; {PEAK}"
    started = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(started.stdout) > 2**30
