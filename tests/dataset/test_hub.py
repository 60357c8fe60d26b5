"""Datasets of the Hub, asked over HTTP from a small server that answers as the Hub does."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fitcoach_tune.errors import AccessError, ConfigError

from .rows import (
    GOOD,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"
JSON_TYPE = {"Content-Type": "application/json"}


class Hub(ThreadingHTTPServer):
    """The few addresses of the Hub that reading a dataset asks for: `user/open` has a file, the others refuse."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.files = {"train.jsonl": (GOOD + "\n").encode() * 3, "test.jsonl": (GOOD + "\n").encode()}
        self.asked: list[str] = []


class HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def reply(self, status, body=b"", headers=None):
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        path = self.path.split("?")[0]
        self.server.asked.append(path)
        refusals = {
            "login": (401, {"X-Error-Code": "GatedRepo"}),
            "terms": (403, {"X-Error-Code": "GatedRepo"}),
            "gone": (404, {"X-Error-Code": "RepoNotFound"}),
            "unknown": (401, {}),
            "expired": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
            "broken": (500, {}),
        }
        name = next((name for name in refusals if f"/user/{name}" in path), None)
        info_is_public = name == "terms" and "auth-check" not in path  # as for real gated datasets
        if name and not info_is_public:
            status, headers = refusals[name]
            return self.reply(status, headers=headers)
        if path.endswith("/revision/absent"):
            return self.reply(404, headers={"X-Error-Code": "RevisionNotFound"})
        if "/resolve/" in path:
            return self.file(path.rsplit("/", 1)[1])
        listing = [
            {"type": "file", "path": name, "size": len(data), "oid": COMMIT} for name, data in self.server.files.items()
        ]
        siblings = [{"rfilename": name} for name in self.server.files]
        information = {"id": "user/open", "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
        return self.reply(200, json.dumps(listing if "/tree/" in path else information).encode(), JSON_TYPE)

    do_HEAD = do_GET

    def file(self, name):
        data = self.server.files.get(name)
        if data is None:
            return self.reply(404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        etag = f'"{hashlib.sha1(data).hexdigest()}"'
        return self.reply(200, data, {"ETag": etag, "X-Repo-Commit": COMMIT})


@pytest.fixture(scope="module")
def hub():
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


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
    with ThreadingHTTPServer(("127.0.0.1", 0), HubHandler) as server:
        return f"http://127.0.0.1:{server.server_port}"


def test_a_hub_dataset_at_its_resolved_commit(hub, tmp_path):
    asked = [
        {"source": "user/open"},
        {"source": "user/open@main", "split": "test"},
        {"source": "user/open", "revision": "main", "split": "dev"},
        {"source": "user/open@main", "revision": "v2"},
    ]
    train, test, no_split, two = read_in_a_process(f"http://127.0.0.1:{hub.server_port}", tmp_path, asked)
    assert train == {"notes": [], "rows": 3, "name": "user/open", "revision": COMMIT, "origin": "user/open[train][2]"}
    assert test == {"notes": [], "rows": 1, "name": "user/open", "revision": COMMIT, "origin": "user/open[test][0]"}
    assert no_split["error"] == "DataError"
    assert "choose a split: " in no_split["text"]
    assert "two revisions" in two["text"]
    assert any(path.endswith(f"/resolve/{COMMIT}/train.jsonl") for path in hub.asked)


def test_what_the_hub_refuses(hub, tmp_path):
    names = ["login", "terms", "gone", "unknown", "expired", "broken", "open@absent"]
    asked = [{"source": f"user/{name}"} for name in names]
    answers = read_in_a_process(f"http://127.0.0.1:{hub.server_port}", tmp_path, asked)
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
    answers = read_in_a_process(f"http://127.0.0.1:{hub.server_port}", tmp_path, asked)
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
    asked = [
        {"source": "user/open"},
        {"source": f"user/open@{COMMIT}", "split": "test"},
        {"source": "user/open", "revision": "v2"},
        {"source": "user/other"},
    ]
    online = f"http://127.0.0.1:{hub.server_port}"
    [loaded] = read_in_a_process(online, tmp_path, asked[:1])
    assert loaded["notes"] == []
    for endpoint, settings in ((address_of_nothing(), {}), (online, {"HF_HUB_OFFLINE": "1"})):
        train, test, branch, other = read_in_a_process(endpoint, tmp_path, asked, **settings)
        [note] = train["notes"]
        assert f"read from the cache, commit {COMMIT}" in note
        assert train == loaded | {"notes": [note]}
        assert (test["rows"], test["revision"]) == (1, COMMIT)
        assert branch["error"] == AccessError.__name__
        assert f"the copy in the cache is commit {COMMIT}" in branch["text"]
        assert "no copy in the cache" in other["text"]
