"""Repositories that hold more than an adapter or a model: what is not needed, or could run, is never fetched."""

from __future__ import annotations

import json
import shutil

import pytest

from fitcoach_tune import hub as downloads
from fitcoach_tune import models, runs
from fitcoach_tune.errors import AccessError, MismatchError
from tests.hostile import folders
from tests.hostile.material import one_error
from tests.hub.conftest import client, hub  # noqa: F401 (fixtures)
from tests.hub.server import Fault

# Beside what is needed: pickles, code, other frameworks' weights, what libraries would look for on their own, and names
# that look like the needed ones or lead out of the cache.
UNWANTED = [
    "adapter_model.bin", "pytorch_model.bin", "optimizer.pt", "scheduler.pkl", "training_args.bin", "model.pth",
    "modeling_trap.py", "configuration_trap.py", "tokenization_trap.py", "handler.py", "requirements.txt", "model.onnx",
    "model.gguf", "tf_model.h5", "flax_model.msgpack", "README.md", "loss.png", ".env", "setup.sh",
    "additional_chat_templates/evil.jinja", "evil.jinja", "tokenizer_evil.json", "nested/tokenizer.json",
    "nested/adapter_model.safetensors", "nested/model.safetensors", "model/../../../../escaped.safetensors",
    "../escaped.json", "../../escaped.safetensors", "tokenizer.json/../../escaped", "/tmp/escaped.json",
]  # fmt: skip
OF_AN_ADAPTER = {
    "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "prompt.json", "run.json",
    "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip
OF_A_MODEL = {
    "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
}  # fmt: skip


@pytest.fixture
def cache(client, tmp_path, monkeypatch):  # noqa: F811
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub/cache"))
    return tmp_path / "hub"


def fetched(hub, name: str) -> set[str]:  # noqa: F811
    return {path.split("/resolve/")[1].split("/", 1)[1] for _, path, _ in hub.asked if f"/{name}/resolve/" in path}


def test_of_an_adapter_only_what_is_needed_is_fetched(hub, cache, tmp_path):  # noqa: F811
    folder = folders.run(tmp_path / "run")
    contents = {file.name: file.read_bytes() for file in folder.iterdir()}
    hub.add("model", "user/adapter", dict.fromkeys(UNWANTED, b"not wanted") | contents)
    found = runs.open_run("user/adapter")
    assert fetched(hub, "user/adapter") == OF_AN_ADAPTER
    assert {file.name for file in found.path.iterdir()} == OF_AN_ADAPTER
    assert b"not wanted" not in {file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert found.prompt()["tools"] == folders.TOOLS


def test_of_a_model_only_what_is_needed_is_fetched(hub, cache, tmp_path):  # noqa: F811
    contents = dict.fromkeys([*OF_A_MODEL, "model-00001-of-00002.safetensors"], b"{}")
    adapter = {"adapter_config.json": b"{}", "generation_config.json": b"{}", "preprocessor_config.json": b"{}"}
    hub.add("model", "user/model", dict.fromkeys(UNWANTED, b"not wanted") | adapter | contents)
    found = models.resolve("user/model")
    assert fetched(hub, "user/model") == contents.keys()
    assert {file.name for file in found.path.iterdir()} == contents.keys()
    assert b"not wanted" not in {file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}


def test_a_pickle_alone_is_no_adapter(hub, cache, tmp_path):  # noqa: F811
    """Nobody falls back on it, as other programs do."""
    folder = folders.run(tmp_path / "run")
    contents = {file.name: file.read_bytes() for file in folder.iterdir()}
    contents["adapter_model.bin"] = contents.pop("adapter_model.safetensors")
    hub.add("model", "user/adapter", contents)
    with pytest.raises(MismatchError) as caught:
        runs.open_run("user/adapter")
    one_error(caught.value, "this folder holds no finished adapter")
    assert "adapter_model.bin" not in fetched(hub, "user/adapter")


def test_an_adapter_from_the_hub_is_checked_like_a_folder(hub, cache, tmp_path):  # noqa: F811
    folder = folders.run(tmp_path / "run")
    contents = {file.name: file.read_bytes() for file in folder.iterdir()}
    record = json.loads(contents["run.json"])
    record["files"]["../../../escaped"] = "0"
    hub.add("model", "user/adapter", contents | {"run.json": json.dumps(record).encode()})
    with pytest.raises(MismatchError) as caught:
        runs.open_run("user/adapter")
    one_error(caught.value, "it lists '../../../escaped', which leads out of its folder")


@pytest.mark.parametrize(("fault", "part"), [
    (Fault("GET", "/api/models/user/adapter", 200, text="<html>", times=99), "it cannot be downloaded: "),
    (Fault("GET", "/api/models/user/adapter", 418, {"X-Error-Message": "hf_SentinelTokenThatNobodyMaySee"}, times=99),
     "HTTP 418"),
])  # fmt: skip
def test_a_hub_that_answers_nonsense(hub, cache, fault, part):  # noqa: F811
    hub.faults.append(fault)
    with pytest.raises(AccessError) as caught:
        runs.open_run("user/adapter")
    one_error(caught.value, part, "adapter user/adapter")
    assert "Sentinel" not in str(caught.value) + repr(caught.value)


@pytest.mark.parametrize("token", ["hf_Sentinel\u00e9", "hf_Sentinel\r\nX-Other: 1", "Sentinel" * 9999])
def test_a_login_that_no_header_can_carry(hub, cache, monkeypatch, token):  # noqa: F811
    """The client says what the header would have been; that is not passed on."""
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(AccessError) as caught:
        downloads.download("user/adapter", None, ["run.json"], what="adapter")
    one_error(caught.value, "adapter user/adapter")
    assert "Sentinel" not in str(caught.value) + repr(caught.value)
    shutil.rmtree(cache, ignore_errors=True)
