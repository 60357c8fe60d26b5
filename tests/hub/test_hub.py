"""Models, adapters and datasets of the Hub through the command line: what is refused, and what is brought here."""

from __future__ import annotations

import json
import shutil

import pytest

from fitcoach_tune import runs
from tests.conftest import QUICK
from tests.hub.conftest import TOKEN
from tests.hub.server import Fault, Hub

REFUSALS = {
    "login": (401, {"X-Error-Code": "GatedRepo"}),
    "terms": (403, {"X-Error-Code": "GatedRepo"}),
    "gone": (404, {"X-Error-Code": "RepoNotFound"}),
    "unknown": (401, {}),
    "broken": (500, {}),
}
PAGE = "https://huggingface.co/user/"


@pytest.fixture
def hub(hub, tiny_base, finished_run):
    """With the tiny base and an adapter on it; the names in `REFUSALS` are refused."""
    hub.add("model", "user/tiny", {file.name: file.read_bytes() for file in tiny_base.iterdir()})
    hub.add("model", "user/adapter", {file.name: file.read_bytes() for file in finished_run[1].iterdir()})
    for name, (status, headers) in REFUSALS.items():
        hub.faults.append(Fault("GET|HEAD", f"/user/{name}", status, headers, times=1000))
    return hub


def refused(done) -> str:
    assert done.returncode == 4, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr
    return done.stderr.split("error: ", 1)[1]


def address_of_nothing() -> str:
    with Hub() as closed:
        return closed.address


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(("verb", "name", "token", "parts"), [
    ("train", "login", None, ["gated, and you are not logged in", f"{PAGE}login", "hf auth login"]),
    ("prepare", "terms", TOKEN, ["logged in, but its licence is not accepted", f"accept it at {PAGE}terms"]),
    ("prepare", "gone", TOKEN, ["not found on the Hub, or it is private", f"{PAGE}gone"]),
    ("prepare", "unknown", None, ["not found on the Hub, or it is private", "hf auth login"]),
    ("prepare", "broken", TOKEN, ["the Hub answered with HTTP 500", "try again later"]),
])  # fmt: skip
def test_a_model_that_is_refused(program, rows_file, tmp_path, verb, name, token, parts):
    """The error says which of the many it is, where to go, and what works without the Hub; nothing is left behind."""
    error = refused(program(verb, "--model", f"user/{name}", "--dataset", rows_file, token=token))
    for part in [f"model user/{name}: ", *parts, "--config offline"]:
        assert part in error
    assert not (tmp_path / "output").exists() or not list((tmp_path / "output").rglob("*.json"))


def test_no_network(program, rows_file):
    error = refused(program("train", "--model", "user/tiny", "--dataset", rows_file, HF_ENDPOINT=address_of_nothing()))
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
    assert ("GET", "/api/datasets/user/terms", f"Bearer {TOKEN}") in hub.asked


# ------------------------------------------------------------------------------------------------ what is downloaded


def test_an_adapter_from_the_hub_answers_as_its_folder(program, hub, finished_run, tmp_path):
    ask = ["infer", "bed c", "--json", "--device", "cpu", "--max-new-tokens", "8", "--unconstrained"]
    local = program(*ask, "--adapter", finished_run[1])
    remote = program(*ask, "--adapter", "user/adapter")
    assert remote.returncode == 0, remote.stderr
    assert json.loads(remote.stdout) == json.loads(local.stdout)
    # Nothing but what an adapter needs was fetched, of one commit: a repository may hold anything.
    fetched = [path for _, path, _ in hub.asked if path.startswith("/user/adapter/resolve/")]
    assert {path.split("/")[4] for path in fetched} == {hub.repositories["model", "user/adapter"].head.oid}
    assert {path.rsplit("/", 1)[1] for path in fetched} == {
        "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "prompt.json", "run.json",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip


def test_an_adapters_commit_is_resolved_once_and_kept(hub, client, tmp_path, monkeypatch):
    """A branch's name gives the commit that it stands for then; without a network, the copy that is here."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    repository = hub.repositories["model", "user/adapter"]
    first = repository.head.oid
    repository.branches["v1"] = first
    repository.commit("main", "later", {"notes.txt": b"later"})
    assert runs.open_run("user/adapter@v1").revision == first
    assert runs.open_run("user/adapter").revision == repository.head.oid
    assert runs.open_run(f"user/adapter@{first}").revision == first
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.asked)
    assert runs.open_run("user/adapter@v1").revision == first
    assert runs.open_run("user/adapter").revision == repository.head.oid
    assert len(hub.asked) == asked


def test_a_folder_has_no_commit(finished_run):
    assert runs.open_run(str(finished_run[1])).revision is None


def test_a_run_on_a_base_of_the_hub(program, hub, rows_file, tmp_path):
    """The commit is recorded, the adapter names the Hub id; afterwards the cache serves without a network."""
    arguments = ["--model", "user/tiny", "--dataset", rows_file, "--output-dir", "output/run"]
    done = program("train", *arguments, *QUICK, "--max-steps", "1")
    assert done.returncode == 0, done.stderr
    commit = hub.repositories["model", "user/tiny"].head.oid
    record = json.loads((tmp_path / "output/run/run.json").read_text())
    assert (record["base"]["name"], record["base"]["revision"]) == ("user/tiny", commit)
    config = json.loads((tmp_path / "output/run/adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("user/tiny", commit)
    (manifest,) = (tmp_path / "output/prepared").glob("*/manifest.json")
    assert json.loads(manifest.read_text())["model"]["name"] == "user/tiny"
    assert "user/tiny" in (tmp_path / "output/run/README.md").read_text()
    written = [f for f in (tmp_path / "output").rglob("*") if f.suffix in (".json", ".md", ".yaml", ".jsonl")]
    for file in written:
        assert str(tmp_path / "hf") not in file.read_text(), file.name
        assert TOKEN not in file.read_text(), file.name
    nowhere = {"HF_ENDPOINT": address_of_nothing()}
    ask = ["infer", "bed c", "--json", "--device", "cpu", "--max-new-tokens", "8", "--unconstrained"]
    answer = program(*ask, **nowhere)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["raw"]
    shutil.rmtree(tmp_path / "hf")
    error = refused(program(*ask, **nowhere, HF_HUB_OFFLINE="1"))
    assert f"model user/tiny@{commit}: there is no network to the Hub, and no copy in the cache" in error
