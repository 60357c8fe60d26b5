"""Models, adapters and datasets of the Hub through the command line, from a small server that answers as the Hub."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from .conftest import QUICK

COMMIT = "89abcdef0123456789abcdef0123456789abcdef"
SENTINEL = "hf_SentinelTokenThatNobodyMaySee"
REFUSALS = {
    "login": (401, {"X-Error-Code": "GatedRepo"}),
    "terms": (403, {"X-Error-Code": "GatedRepo"}),
    "gone": (404, {"X-Error-Code": "RepoNotFound"}),
    "unknown": (401, {}),
    "broken": (500, {}),
}


class Hub(ThreadingHTTPServer):
    """Serves folders as repositories at one commit; the names in `REFUSALS` are refused."""

    daemon_threads = True

    def __init__(self, repositories: dict[str, Path]):
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.repositories = repositories
        self.asked: list[tuple[str, str | None]] = []  # path, what stood in the Authorization header

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def reply(self, status, body=b"", **headers):
        self.send_response(status)
        for key, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        path = self.path.split("?")[0].removeprefix("/api/models")
        self.server.asked.append((path, self.headers.get("Authorization")))
        owner, name, *rest = path.strip("/").removeprefix("api/datasets/").split("/")
        if name in REFUSALS:
            status, headers = REFUSALS[name]
            return self.reply(status, **headers)
        folder = self.server.repositories.get(f"{owner}/{name}")
        if folder is None:
            return self.reply(404, **{"X-Error-Code": "RepoNotFound"})
        if rest[:1] == ["resolve"]:
            return self.file(folder / "/".join(rest[2:]))
        names = [file.name for file in folder.iterdir()]
        information = {"id": f"{owner}/{name}", "sha": COMMIT, "siblings": [{"rfilename": n} for n in names]}
        sizes = [{"type": "file", "path": n, "size": (folder / n).stat().st_size, "oid": COMMIT} for n in names]
        body = json.dumps(sizes if rest[:1] == ["tree"] else information).encode()
        return self.reply(200, body, Content_Type="application/json")

    do_HEAD = do_GET

    def file(self, file: Path):
        if not file.is_file():
            return self.reply(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        data = file.read_bytes()
        return self.reply(200, data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=COMMIT)


@pytest.fixture(scope="module")
def hub(tiny_base, finished_run):
    with Hub({"user/tiny": tiny_base, "user/adapter": finished_run[1]}) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def program(hub, tmp_path):
    """The program in a process of its own, whose only Hub is the server, with an empty cache and a login to guard."""

    def run(*arguments, endpoint=hub.address, token=SENTINEL, **environment):
        keep = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
        ours = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1", "COLUMNS": "120"}
        login = {"HF_TOKEN": token} if token else {}
        done = subprocess.run(
            [sys.executable, "-m", "fitcoach_tune", *map(str, arguments)],
            cwd=tmp_path, env=keep | ours | login | environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert SENTINEL not in done.stdout + done.stderr
        assert not token or not any(SENTINEL in f.read_text(errors="replace") for f in written(tmp_path))
        return done

    return run


def written(folder: Path):
    return (f for f in folder.rglob("*") if f.is_file() and f.suffix in (".json", ".md", ".yaml", ".jsonl"))


def refused(done) -> str:
    assert done.returncode == 4, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr
    return done.stderr.split("error: ", 1)[1]


# ------------------------------------------------------------------------------------------------ what is refused


PAGE = "https://huggingface.co/user/"


@pytest.mark.parametrize(("verb", "name", "token", "parts"), [
    ("train", "login", None, ["gated, and you are not logged in", f"{PAGE}login", "hf auth login"]),
    ("prepare", "terms", SENTINEL, ["logged in, but its licence is not accepted", f"accept it at {PAGE}terms"]),
    ("prepare", "gone", SENTINEL, ["not found on the Hub, or it is private", f"{PAGE}gone"]),
    ("prepare", "unknown", None, ["not found on the Hub, or it is private", "hf auth login"]),
    ("prepare", "broken", SENTINEL, ["the Hub answered with HTTP 500", "try again later"]),
])  # fmt: skip
def test_a_model_that_is_refused(program, rows_file, tmp_path, verb, name, token, parts):
    """The error says which of the many it is, where to go, and what works without the Hub; nothing is left behind."""
    error = refused(program(verb, "--model", f"user/{name}", "--dataset", rows_file, token=token))
    for part in [f"model user/{name}: ", *parts, "--config offline"]:
        assert part in error
    assert not (tmp_path / "output").exists() or not list((tmp_path / "output").rglob("*.json"))


def test_no_network(program, rows_file):
    with Hub({}) as closed:
        address = closed.address
    error = refused(program("train", "--model", "user/tiny", "--dataset", rows_file, endpoint=address))
    for part in ("model user/tiny: ", "there is no network to the Hub, and no copy in the cache", "--config offline"):
        assert part in error


def test_adapters_and_datasets_are_refused_in_their_own_words(program, hub):
    """With the page to go to, and the way out that fits them."""
    adapter = refused(program("infer", "hi", "--adapter", "user/login", token=None))
    assert "adapter user/login: it is gated, and you are not logged in" in adapter
    assert "folder of a run" in adapter
    absent = refused(program("infer", "hi", "--adapter", "user/nothing@v9"))
    assert "adapter user/nothing@v9: not found on the Hub" in absent
    dataset = refused(program("prepare", "--dataset", "user/terms"))
    assert "dataset user/terms: you are logged in, but its licence is not accepted" in dataset
    assert "https://huggingface.co/datasets/user/terms" in dataset
    assert "--dataset builtin:fitness" in dataset
    # The login went where it belongs, so its absence from all output means something.
    assert any(path.startswith("/api/datasets/user/terms") and SENTINEL in (sent or "") for path, sent in hub.asked)


# ------------------------------------------------------------------------------------------------ what is downloaded


def test_an_adapter_from_the_hub_answers_as_its_folder(program, hub, finished_run, tmp_path):
    ask = ["infer", "bed c", "--json", "--device", "cpu", "--max-new-tokens", "8"]
    local = program(*ask, "--adapter", finished_run[1])
    remote = program(*ask, "--adapter", "user/adapter")
    assert remote.returncode == 0, remote.stderr
    assert json.loads(remote.stdout) == json.loads(local.stdout)
    assert any(path == f"/user/adapter/resolve/{COMMIT}/adapter_model.safetensors" for path, _ in hub.asked)
    # Nothing but what an adapter needs was fetched: a repository may hold anything.
    fetched = {path.rsplit("/", 1)[1] for path, _ in hub.asked if path.startswith("/user/adapter/resolve/")}
    assert fetched == {
        "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "prompt.json", "run.json",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip


def test_a_run_on_a_base_of_the_hub(program, hub, rows_file, tmp_path):
    """The commit is recorded, the adapter names the Hub id; afterwards the cache serves without a network."""
    arguments = ["--model", "user/tiny", "--dataset", rows_file, "--output-dir", "output/run"]
    done = program("train", *arguments, *QUICK, "--max-steps", "1")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "output/run/run.json").read_text())
    assert (record["base"]["name"], record["base"]["revision"]) == ("user/tiny", COMMIT)
    config = json.loads((tmp_path / "output/run/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "user/tiny"
    assert config["revision"] == COMMIT
    (manifest,) = (tmp_path / "output/prepared").glob("*/manifest.json")
    assert json.loads(manifest.read_text())["model"]["name"] == "user/tiny"
    assert "user/tiny" in (tmp_path / "output/run/README.md").read_text()
    for file in written(tmp_path / "output"):
        assert str(tmp_path / "hf") not in file.read_text(), file.name
    with Hub({}) as closed:
        address = closed.address
    ask = ["infer", "bed c", "--json", "--device", "cpu", "--max-new-tokens", "8"]
    answer = program(*ask, endpoint=address)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["raw"]
    shutil.rmtree(tmp_path / "hf")
    error = refused(program(*ask, endpoint=address, HF_HUB_OFFLINE="1"))
    assert f"model user/tiny@{COMMIT}: there is no network to the Hub, and no copy in the cache" in error
