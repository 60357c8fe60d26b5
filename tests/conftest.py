"""What the tests share: tiny random Gemma 3 models made on the spot, the real tokenizer, and the real offline base."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("USE_TORCH_XLA", "0")  # as `fitcoach_tune.models` sets it before anything imports transformers
# No test may depend on, or leak, somebody's account.
os.environ.pop("HF_TOKEN", None)
os.environ.pop("HUGGING_FACE_HUB_TOKEN", None)
os.environ.update(HF_TOKEN_PATH=os.devnull)

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

# Tests that run at the same time share the cores: threads that wait for each other's core are slower than one.
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if WORKERS > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // WORKERS)))

# As at a terminal: what a shell starts in the background ignores Ctrl-C, and so does all that it starts in turn.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Fixtures that take many seconds, up to minutes: the tests that share one share a process.
COSTLY = ("xla", "taught", "found", "finished_run", "world")


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook
def pytest_collection_modifyitems(items):
    """Side by side, the longest come first, or one of them would be waited for at the end."""
    if WORKERS > 1:
        items.sort(key=lambda item: item.get_closest_marker("real") is None)
        for item in items:
            if shared := [name for name in COSTLY if name in item.fixturenames]:
                item.add_marker(pytest.mark.xdist_group(shared[0]))


def tiny_gemma(*, vocab_size: int = 320, window: int = 512, layers: int = 3, seed: int = 0, **overrides):
    """A random Gemma 3 text model in float32 with both kinds of attention layer; weights large enough to matter."""
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(seed)
    kinds = ["sliding_attention", "full_attention"]
    values = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": window,
        "layer_types": [kinds[i % 2] for i in range(layers)],
        "max_position_embeddings": 4096,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        "tie_word_embeddings": True,
    }
    return Gemma3ForCausalLM(Gemma3TextConfig(**{**values, **overrides})).eval()


@pytest.fixture
def make_tiny():
    return tiny_gemma


@pytest.fixture(scope="session")
def offline_base():
    """The real 270M weights with the real tokenizer; unpacked once into the cache."""
    from fitcoach_tune import models

    return models.resolve(models.OFFLINE)


@pytest.fixture(scope="session")
def tokenizer(offline_base):
    from fitcoach_tune import models

    return models.load_tokenizer(offline_base.path)


@pytest.fixture(scope="session")
def tiny_base(offline_base, tmp_path_factory):
    """A model folder as a user would have one: a tiny random model over the whole vocabulary, with the real
    tokenizer.
    """
    from fitcoach_tune import functiongemma, models

    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_gemma(vocab_size=262144, layers=2).save_pretrained(folder)
    models.copy_tokenizer(offline_base.path, folder, functiongemma.chat_template())
    return folder


def tool(name: str, **properties: dict) -> dict:
    """A tool's schema; every property is required."""
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": f"Does {name}.", "parameters": parameters}}


def conversation(query: str, *calls: tuple[str, dict], text: str | None = None) -> list[dict]:
    """Developer, user and an assistant that calls, or answers in words."""
    from fitcoach_tune.functiongemma import TRIGGER

    answer: dict = {"role": "assistant", "content": text or ""}
    if calls:
        answer["tool_calls"] = [{"type": "function", "function": {"name": n, "arguments": a}} for n, a in calls]
    return [{"role": "developer", "content": TRIGGER}, {"role": "user", "content": query}, answer]


STEPS, SLEEP = tool("get_steps"), tool("get_sleep", days={"type": "integer", "description": "How many days back."})


@pytest.fixture
def rows_file(tmp_path):
    """Twenty small rows over two tools, one with an argument."""
    path = tmp_path / "rows.jsonl"
    words = ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliet"]
    rows = []
    for i, word in enumerate(words):
        rows.append(conversation(f"walking {word} count {word * 2}?", ("get_steps", {})))
        rows.append(conversation(f"{word} nights of rest, {word * 3}", ("get_sleep", {"days": i})))
    path.write_text("".join(json.dumps({"messages": m, "tools": [STEPS, SLEEP]}) + "\n" for m in rows))
    return path


@pytest.fixture
def run_cli(tmp_path):
    """Run the program as a user does, in an own process and folder; returns the finished process."""

    def run(*arguments: str, cwd: Path = tmp_path, check: bool = False, **environment: str):
        done = subprocess.run(
            [sys.executable, "-m", "fitcoach_tune", *map(str, arguments)],
            cwd=cwd,
            env={**os.environ, "COLUMNS": "120", **environment},
            capture_output=True,
            text=True,
        )
        if check and done.returncode:
            raise AssertionError(f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    return run


@pytest.fixture
def run_example():
    """Run the Python of a run's README, where this package cannot be imported; returns what it prints."""

    def run(folder: Path, question: str, cwd: Path, dtype: str = "auto") -> str:
        _, code, _ = re.split(r"```(?:python)?\n", (folder / "README.md").read_text(encoding="utf-8"))
        assert code.count('"How many steps?"') == code.count('dtype="auto"') == 1
        code = code.replace("How many steps?", question).replace('dtype="auto"', f'dtype="{dtype}"')
        without = 'import sys\nsys.modules["fitcoach_tune"] = None\n'
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", without + code], cwd=cwd, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.removesuffix("\n")

    return run


QUICK = ["--dtype", "fp32", "--num-train-epochs", "2", "--optim", "adamw", "--learning-rate", "1e-2", "--lora-r", "4"]


@pytest.fixture(scope="session")
def finished_run(tiny_base, tmp_path_factory):
    """A finished run in a folder of its own: the folder, the run, and what the program printed."""
    folder = tmp_path_factory.mktemp("finished")
    rows = [
        conversation(f"{w} {w}?", ("get_steps", {}))
        for w in ["one", "two", "three", "four", "five", "six", "seven", "eight"]
    ]
    rows += [
        conversation(f"bed {w}", ("get_sleep", {"days": i}))
        for i, w in enumerate(["a", "b", "c", "d", "e", "f", "g", "h"])
    ]
    (folder / "rows.jsonl").write_text(
        "".join(json.dumps({"messages": m, "tools": [STEPS, SLEEP]}) + "\n" for m in rows)
    )
    arguments = ["train", "--model", tiny_base, "--dataset", "rows.jsonl", "--output-dir", "output/one", *QUICK]
    done = subprocess.run(
        [sys.executable, "-m", "fitcoach_tune", *map(str, arguments), "--price-per-hour", "3.6", "--json"],
        cwd=folder, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, folder / "output/one", json.loads(done.stdout)
