"""The command line as a whole: help without weight, docs that match, one clear error, clean streams."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fitcoach_tune.config import Config, flag
from fitcoach_tune.errors import out_of_memory

DOCS = Path(__file__).parents[1] / "docs"


def test_docs_are_made_from_help():
    spec = importlib.util.spec_from_file_location("make_cli", DOCS / "make_cli.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (DOCS / "cli.md").read_text(encoding="utf-8") == module.page(), "run `make docs`"


def test_every_setting_is_a_flag_with_its_default_in_the_docs():
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    assert [name for name in Config.model_fields if flag(name) not in text] == []
    for default in ("Default: 5e-05.", "Default: 32.", "Default: 512.", "Default: adafactor."):
        assert default in " ".join(text.replace("│", " ").split())


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(arguments):
    code = (
        "import sys, fitcoach_tune.cli as cli\n"
        "sys.argv = ['fitcoach-tune', *sys.argv[1:]]\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'peft', 'huggingface_hub', 'numpy', 'pyarrow', 'matplotlib'}\n"
        "sys.exit(f'loaded: {heavy & set(sys.modules)}' if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "fitcoach-tune" in done.stdout


@pytest.mark.parametrize(("arguments", "code"), [
    (["bogus"], 2), (["train", "--bogus"], 2), (["infer"], 4), (["train", "--lora-r", "many"], 2),
    (["eval", "--split", "none"], 2), (["infer", "hi"], 4), (["eval"], 4), (["infer", "hi", "--adapter", "nowhere"], 4),
    (["prepare", "--dataset", "missing.jsonl"], 3), (["prepare", "--config", "missing.yaml"], 2),
])  # fmt: skip
def test_wrong_usage(run_cli, arguments, code):
    done = run_cli(*arguments)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.strip()
    assert "Traceback" not in done.stderr


def test_many_bad_settings_are_reported_at_once(run_cli, tmp_path):
    (tmp_path / "my.yaml").write_text("lora_rank: 8\nlearning_rate: fast\n")
    done = run_cli("train", "--config", "my.yaml", "--max-length", "2", "--json")
    assert done.returncode == 2
    assert done.stdout == ""
    for part in ("3 settings cannot be used", "lora_rank", "learning_rate", "--max-length"):
        assert part in done.stderr


def test_an_interrupted_training_says_how_to_go_on(tiny_base, rows_file, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "fitcoach_tune", "train", "--model", tiny_base, "--dataset", rows_file,
         "--output-dir", "run", "--num-train-epochs", "100000"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not (tmp_path / "run/metrics.jsonl").exists() or not (tmp_path / "run/metrics.jsonl").read_text():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 10, err
    assert out == ""
    assert "stopped by SIGINT" in err
    assert "--resume-from-checkpoint auto" in err
    assert "Traceback" not in err


def test_a_closed_pipe_is_no_crash(tiny_base, rows_file, tmp_path):
    program = f"{sys.executable} -m fitcoach_tune"
    done = subprocess.run(
        ["bash", "-c", f"{program} prepare --model {tiny_base} --dataset {rows_file} --show 50 -q | head -1"],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"},
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_quiet_json_prints_json_alone(tiny_base, rows_file, run_cli):
    done = run_cli("prepare", "--model", tiny_base, "--dataset", rows_file, "--json", "--quiet", check=True)
    assert json.loads(done.stdout)["rows"]["read"] == 20
    assert done.stderr == ""


def test_what_stdout_cannot_write_is_escaped(tiny_base, rows_file, run_cli):
    command = ["prepare", "--model", tiny_base, "--dataset", rows_file, "--output-dir", "日本", "--quiet"]
    done = run_cli(*command, check=True, PYTHONIOENCODING="latin-1")
    assert done.stdout == "\\u65e5\\u672c\n"


def test_a_closed_stderr_is_no_crash_and_nothing_lands_in_the_data(tiny_base, rows_file, tmp_path):
    command = [sys.executable, "-m", "fitcoach_tune", "prepare", "--model", tiny_base, "--dataset", rows_file, "--json"]
    quoted = " ".join(f"'{part}'" for part in map(str, command))
    done = subprocess.run(["sh", "-c", f"{quoted} 2>&-"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["rows"]["read"] == 20
    asked = subprocess.run(
        ["sh", "-c", f"'{sys.executable}' -m fitcoach_tune infer --chat <&-"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert asked.returncode == 2
    assert "--chat: there is nobody to talk with: stdin is closed" in asked.stderr


def test_too_little_memory_is_told_from_other_failures():
    """The errors are torch's and NumPy's own, for more than any machine has."""
    for ask in (lambda: torch.empty(10**15), lambda: np.empty(10**17)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            ask()
        found = out_of_memory(caught.value)
        assert "not enough memory" in str(found)
        assert "--per-device-train-batch-size" in found.hint
    with pytest.raises(RuntimeError) as caught:
        torch.ones(2) @ torch.ones(3)
    assert out_of_memory(caught.value) is None


@pytest.mark.parametrize(("arguments", "flag"), [
    (["prepare", "--private"], "--private"), (["prepare", "--show", "2", "--json"], "--show and --json"),
])  # fmt: skip
def test_flags_that_would_do_nothing(run_cli, arguments, flag):
    done = run_cli(*arguments)
    assert done.returncode == 2
    assert f"error: {flag}: " in done.stderr
