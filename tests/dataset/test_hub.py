"""Datasets of the Hub, asked over HTTP from the loopback Hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from fitcoach_tune.errors import AccessError, ConfigError
from tests.hub.server import Fault, Hub

from .rows import (
    GOOD,
)

REFUSALS = {
    "login": (401, {"X-Error-Code": "GatedRepo"}),
    "terms/auth-check": (403, {"X-Error-Code": "GatedRepo"}),  # what is known of a gated dataset is public
    "gone": (404, {"X-Error-Code": "RepoNotFound"}),
    "unknown": (401, {}),
    "expired": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
    "broken": (500, {}),
}


@pytest.fixture
def hub():
    """`user/open` has two files; the names in `REFUSALS` are refused."""
    with Hub() as server:
        row = f"{GOOD}\n".encode()
        server.add("dataset", "user/open", {"train.jsonl": row * 3, "test.jsonl": row})
        server.add("dataset", "user/terms")
        for name, (status, headers) in REFUSALS.items():
            server.faults.append(Fault("GET|HEAD", f"/user/{name}", status, headers, times=1000))
        yield server


READ = """
import json, sys
from fitcoach_tune import hub
from fitcoach_tune.dataset import read_examples
from fitcoach_tune.errors import FitcoachTuneError
for asked in json.loads(sys.argv[1]):
    try:
        if "what" in asked:
            answer = str(hub.download(asked["source"], None, ["*.jsonl"], what=asked["what"]))
        else:
            examples, source = read_examples(asked["source"], split=asked.get("split"), revision=asked.get("revision"))
            answer = {"rows": source.rows, "name": source.name, "revision": source.revision, "notes": source.notes}
            answer["origin"] = examples[-1].origin
    except FitcoachTuneError as error:
        answer = {"error": type(error).__name__, "text": str(error)}
    print("ANSWER", json.dumps(answer))
assert "torch" not in sys.modules, "reading rows must not need torch"
"""


def read_in_a_process(endpoint, home, asked, **settings):
    """Reads each of `asked` in one fresh process whose only Hub is `endpoint`, without a login."""
    keep = {key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()}
    ours = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", READ, json.dumps(asked)],
        env=keep | ours | settings,
        capture_output=True,
        text=True,
        timeout=80,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line.removeprefix("ANSWER ")) for line in done.stdout.splitlines() if line.startswith("ANSWER ")]


def address_of_nothing():
    """An address where nothing listens (any more)."""
    with Hub() as server:
        return server.address


def test_a_hub_dataset_at_its_resolved_commit(hub, tmp_path):
    asked = [
        {"source": "user/open"},
        {"source": "user/open@main", "split": "test"},
        {"source": "user/open", "revision": "main", "split": "dev"},
        {"source": "user/open@main", "revision": "v2"},
    ]
    commit = hub.repositories["dataset", "user/open"].head.oid
    train, test, no_split, two = read_in_a_process(hub.address, tmp_path, asked)
    assert train == {"notes": [], "rows": 3, "name": "user/open", "revision": commit, "origin": "user/open[train][2]"}
    assert test == {"notes": [], "rows": 1, "name": "user/open", "revision": commit, "origin": "user/open[test][0]"}
    assert no_split["error"] == "DataError"
    assert "choose a split: " in no_split["text"]
    assert "two revisions" in two["text"]
    assert any(path.endswith(f"/resolve/{commit}/train.jsonl") for _, path, _ in hub.asked)


def test_what_the_hub_refuses(hub, tmp_path):
    names = ["login", "terms", "gone", "unknown", "expired", "broken", "open@absent"]
    asked = [{"source": f"user/{name}"} for name in names]
    answers = read_in_a_process(hub.address, tmp_path, asked)
    assert {answer["error"] for answer in answers} == {AccessError.__name__}
    texts = dict(zip(names, [answer["text"] for answer in answers], strict=True))
    assert "it is gated, and you are not logged in" in texts["login"]
    assert "hf auth login" in texts["login"]
    assert "https://huggingface.co/datasets/user/login" in texts["login"]
    assert "its licence is not accepted" in texts["terms"]
    assert "accept it at https://huggingface.co/datasets/user/terms" in texts["terms"]
    for name in ("gone", "unknown"):
        assert "not found on the Hub, or it is private" in texts[name]
        assert "hf auth login" in texts[name]
    assert "refuses your login" in texts["expired"]
    assert "HTTP 500" in texts["broken"]
    assert "dataset user/open@absent: the Hub has no such branch, tag or commit" in texts["open@absent"]
    assert all("--dataset builtin:fitness" in texts[name] for name in names if name != "open@absent")


def test_models_and_adapters_are_refused_alike(hub, tmp_path):
    asked = [
        {"source": f"user/{name}", "what": what}
        for what in ("model", "adapter")
        for name in ("login", "gone", "broken")
    ]
    asked.append({"source": "-", "what": "model"})
    answers = read_in_a_process(hub.address, tmp_path, asked)
    for answer, part in zip(answers, 2 * ["not logged in", "not found on the Hub", "HTTP 500"], strict=False):
        assert answer["error"] == AccessError.__name__
        assert part in answer["text"]
    assert all("--config offline" in answer["text"] for answer in answers[:3])
    assert all("folder of a run" in answer["text"] for answer in answers[3:6])
    assert "datasets/" not in answers[0]["text"]
    assert answers[6]["error"] == ConfigError.__name__
    assert "not a valid Hub id" in answers[6]["text"]


def test_no_network(tmp_path):
    [answer] = read_in_a_process(address_of_nothing(), tmp_path, [{"source": "user/open"}])
    assert answer["error"] == AccessError.__name__
    assert "there is no network to the Hub, and no copy in the cache" in answer["text"]
    assert "--dataset builtin:fitness" in answer["text"]


def test_without_a_network_the_cache_serves_what_was_loaded(hub, tmp_path):
    commit = hub.repositories["dataset", "user/open"].head.oid
    asked = [
        {"source": "user/open"},
        {"source": f"user/open@{commit}", "split": "test"},
        {"source": "user/open", "revision": "v2"},
        {"source": "user/other"},
    ]
    online = hub.address
    [loaded] = read_in_a_process(online, tmp_path, asked[:1])
    assert loaded["notes"] == []
    for endpoint, settings in ((address_of_nothing(), {}), (online, {"HF_HUB_OFFLINE": "1"})):
        train, test, branch, other = read_in_a_process(endpoint, tmp_path, asked, **settings)
        [note] = train["notes"]
        assert f"read from the cache, commit {commit}" in note
        assert train == loaded | {"notes": [note]}
        assert (test["rows"], test["revision"]) == (1, commit)
        assert branch["error"] == AccessError.__name__
        assert f"the copy in the cache is commit {commit}" in branch["text"]
        assert "no copy in the cache" in other["text"]
