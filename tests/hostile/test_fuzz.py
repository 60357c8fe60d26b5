"""Coverage-guided fuzzing of the two readers that meet the most foreign text: of model output and of rows."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("target", "runs"), [("parser", 20_000), ("rows", 1_500)])
def test_nothing_that_the_fuzzer_finds_is_a_crash(tmp_path, target, runs):
    """The same draws each time: what is new is found with another -seed and more -runs, by hand."""
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("the fuzzer, atheris, is not installed; there is one for Linux on x86-64")
    command = [sys.executable, "-m", "tests.hostile.fuzz_target", target, f"-runs={runs}", "-seed=1", "-max_len=2048"]
    done = subprocess.run(
        [*command, "-timeout=600", "-rss_limit_mb=0", f"-artifact_prefix={tmp_path}/"],
        cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    assert f"Done {runs}" in done.stderr
    assert not list(tmp_path.iterdir())
