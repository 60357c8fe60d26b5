"""What of a run is published, what never is, and what is refused; over HTTP to the loopback Hub."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fitcoach_tune import files, functiongemma, models, push, runs
from fitcoach_tune.console import Console
from fitcoach_tune.errors import ConfigError, MismatchError
from fitcoach_tune.publish import selection
from fitcoach_tune.publish.upload import Uploader
from tests.hub.conftest import surroundings

REPO = "ada/coach"
ADAPTER_FILES = {
    "NOTICE", "README.md", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja",
    "config.resolved.yaml", "generation_config.json", "prompt.json", "results.json", "run.json", "tokenizer.json",
    "tokenizer_config.json",
}  # fmt: skip
MERGED_FILES = (ADAPTER_FILES - {"adapter_config.json", "adapter_model.safetensors"}) | {
    "config.json",
    "model.safetensors",
}
STRAY = {
    ".env": "HF_TOKEN=hf_ASecretThatLiesInTheFolder",
    "id_ed25519": "a private key",
    "optimizer.safetensors": "optimizer state",
    "checkpoint-4/state.json": "{}",
    "notes.txt": "my notes",
    "model.safetensors": "somebody else's",
    "eval/test/samples.jsonl": "{}",
}


@pytest.fixture(scope="session")
def evaluated(finished_run, tmp_path_factory):
    """A finished run that was evaluated, with its prepared set."""
    folder = tmp_path_factory.mktemp("evaluated") / "work"
    shutil.copytree(finished_run[0], folder)
    done = subprocess.run(
        [sys.executable, "-m", "fitcoach_tune", "eval", "--max-new-tokens", "4", "--unconstrained"],
        cwd=folder, capture_output=True, text=True, timeout=300,
        env=os.environ | {"FITCOACH_TUNE_CACHE": str(folder / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "output/one"


@pytest.fixture
def run(evaluated, tmp_path) -> Path:
    """A run of this test's own, among files that nobody should see."""
    folder = tmp_path / "output" / "one"
    shutil.copytree(evaluated, folder)
    for name, text in STRAY.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


def publish(folder: Path, confirm=lambda remote: None, **options):
    with push.planned(str(folder), push.Options(REPO, **options)) as plan:
        return push.send(plan, Uploader(Console(quiet=True)), confirm)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def edit(path: Path, change) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


# ------------------------------------------------------------------------------------------------ what leaves


def test_what_leaves_the_machine(hub, client, run, tiny_base, tmp_path):
    before = everything(run)
    done = publish(run, message="first")
    head = hub.repositories["model", REPO].head
    assert (head.oid, head.title) == (done.commit, "first")
    assert set(head.files) == ADAPTER_FILES | {".gitattributes"}
    for name in ("adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert head.files[name] == before[name], name
    assert head.files["prompt.json"] == before["prompt.json"]
    everywhere = b"\n".join(head.files.values())
    for secret in [*STRAY.values(), str(tmp_path), str(tiny_base), str(tiny_base.parent)]:
        assert len(secret) < 5 or secret.encode() not in everywhere, secret
    assert everything(run) == before  # nothing local changed


def test_what_is_made_for_publication(hub, client, run):
    publish(run)
    published = hub.repositories["model", REPO].head.files
    generation = json.loads(published["generation_config.json"])
    assert generation["eos_token_id"] == [1, 106, 50]  # <eos>, <end_of_turn>, <start_function_response>
    assert (generation["bos_token_id"], generation["pad_token_id"], generation["do_sample"]) == (2, 0, False)
    assert b"subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms" in published["NOTICE"]
    record, original = json.loads(published["run.json"]), json.loads((run / "run.json").read_text())
    assert (record["base"]["name"], record["base"]["reference"]) == ("tiny", "tiny")
    assert json.loads(published["adapter_config.json"])["base_model_name_or_path"] == "tiny"
    assert yaml.safe_load(published["config.resolved.yaml"])["model"] == "tiny"
    assert record["training"] == original["training"]
    assert record["check"] == original["check"]


def test_the_published_files_are_a_run_again(hub, client, run, tmp_path):
    """Their hashes are those in run.json, and results.json is the evaluation of just these."""
    publish(run)
    folder = tmp_path / "downloaded"
    folder.mkdir()
    for name, data in hub.repositories["model", REPO].head.files.items():
        (folder / name).write_bytes(data)
    opened = runs.open_run(str(folder))
    expected = {name: files.sha256_file(folder / name) for name in ADAPTER_FILES - {"run.json"}}
    assert opened.record["files"] == expected
    assert json.loads((folder / "results.json").read_text())["adapter"]["sha256"] == opened.sha256
    tokenizer = models.load_tokenizer(folder)
    assert tokenizer.chat_template == functiongemma.chat_template()
    (folder / "README.md").write_text("changed")
    with pytest.raises(MismatchError, match=r"README\.md has changed"):
        runs.open_run(str(folder))


def test_a_base_on_the_hub_is_named_as_it_is(run, tmp_path):
    """Nothing of the adapter is rewritten then."""

    def on_hub(value):
        value["base"] |= {"name": "google/gemma", "reference": "google/gemma", "revision": "a" * 40}

    config = json.loads((run / "adapter_config.json").read_text()) | {"base_model_name_or_path": "google/gemma"}
    (run / "adapter_config.json").write_text(json.dumps(config))
    edit(run / "run.json", on_hub)
    recorded(run, "adapter_config.json")
    with push.planned(str(run), push.Options(REPO, allow_unevaluated=True)) as plan:
        (file,) = [file for file in plan.files if file.path == "adapter_config.json"]
        assert file.source.read_bytes() == (run / "adapter_config.json").read_bytes()
        assert "base_model: google/gemma" in plan.card


def test_the_newest_evaluation_of_rows_it_was_not_trained_on(run):
    results = json.loads((run / "eval/test/results.json").read_text())

    def evaluation(folder, finished, **data):
        (run / "eval" / folder).mkdir()
        made = results | {"finished": finished, "data": results["data"] | data}
        (run / "eval" / folder / "results.json").write_text(json.dumps(made))

    opened = runs.open_run(str(run))
    assert selection.newest_results(opened)["finished"] == results["finished"]
    evaluation(
        "other-all",
        "2999-01-01T00:00:00+00:00",
        name="other.jsonl",
        split="all",
        sha256="0" * 64,
        source_sha256="0" * 64,
    )
    assert selection.newest_results(opened)["data"]["name"] == "other.jsonl"
    evaluation("train", "3000-01-01T00:00:00+00:00", split="train")
    source = opened.record["data"]["source"]["sha256"]
    evaluation("rows-all", "3001-01-01T00:00:00+00:00", name="rows.jsonl", split="all", sha256=source)
    evaluation("anew", "3002-01-01T00:00:00+00:00", name="other-split", sha256="0" * 64, source_sha256=source)
    assert selection.newest_results(opened)["data"]["name"] == "other.jsonl"
    shutil.rmtree(run / "eval/test")
    for seen in ("other-all", "rows-all", "anew"):
        shutil.rmtree(run / "eval" / seen)
    assert selection.newest_results(opened)["data"]["split"] == "train"


def test_an_unevaluated_adapter_says_so(hub, client, run):
    shutil.rmtree(run / "eval")
    publish(run, allow_unevaluated=True)
    published = hub.repositories["model", REPO].head.files
    assert set(published) == (ADAPTER_FILES - {"results.json"}) | {".gitattributes"}
    assert b"**not evaluated**" in published["README.md"]
    assert b"model-index" not in published["README.md"]


@pytest.mark.parametrize(("value", "expected"), [
    ("/home/ada/secret/rows.jsonl", "rows.jsonl"),
    ("~/rows.jsonl", "rows.jsonl"),
    ("../customers/ada/rows.jsonl", "rows.jsonl"),
    ("/home/ada/home.py:TOOLS", "home.py:TOOLS"),
    ("output/prepared/rows", "output/prepared/rows"),
    ("google/gemma", "google/gemma"),
    ("/", "/"),
    ({"a": ["/x/y", 1, None]}, {"a": ["y", 1, None]}),
])  # fmt: skip
def test_folders_of_this_machine_are_not_named(value, expected):
    assert selection.portable(value) == expected


# ------------------------------------------------------------------------------------------------ what is refused


def recorded(run: Path, name: str) -> None:
    """Let run.json say that the file is as it should be."""
    edit(run / "run.json", lambda value: value["files"].update({name: files.sha256_file(run / name)}))


def no_record(run: Path):
    (run / "run.json").unlink()


def unchecked(run: Path):
    edit(run / "run.json", lambda value: value.pop("check"))


def check_failed(run: Path):
    edit(run / "run.json", lambda value: value["check"].update(logit_difference=0.2))


def moved_nothing(run: Path):
    edit(run / "run.json", lambda value: value["check"].update(logit_difference=1e-4, logit_change_from_base=1e-5))


def zero_b(run: Path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(run / "adapter_model.safetensors")
    zeroed = {key: value * 0 if ".lora_B." in key else value for key, value in tensors.items()}
    save_file(zeroed, run / "adapter_model.safetensors")
    recorded(run, "adapter_model.safetensors")


def changed(run: Path):
    with (run / "chat_template.jinja").open("a") as file:
        file.write("x")


def missing(run: Path):
    (run / "tokenizer_config.json").unlink()


def not_recorded(run: Path):
    (run / "special_tokens_map.json").write_text("{}")


def never_evaluated(run: Path):
    shutil.rmtree(run / "eval")


def another_was_evaluated(run: Path):
    edit(run / "eval/test/results.json", lambda value: value["adapter"].update(sha256="0" * 64))


@pytest.mark.parametrize(("spoil", "parts"), [
    (no_record, ["no run.json"]),
    (unchecked, ["its save check did not pass"]),
    (check_failed, ["its save check did not pass"]),
    (moved_nothing, ["its save check did not pass"]),
    (zero_b, ["every LoRA B is zero"]),
    (changed, ["chat_template.jinja has changed since it was saved"]),
    (missing, ["tokenizer_config.json is missing"]),
    (not_recorded, ["special_tokens_map.json is not the file that training saved"]),
    (never_evaluated, ["never evaluated", "fitcoach-tune eval", "--allow-unevaluated"]),
    (another_was_evaluated, ["never evaluated as it is now"]),
])  # fmt: skip
def test_a_run_that_nobody_should_see(hub, client, run, spoil, parts):
    spoil(run)
    with pytest.raises(MismatchError) as caught:
        publish(run)
    for part in [*parts, str(run)]:
        assert part in str(caught.value)
    assert hub.asked == []  # nothing was sent, not even the login


@pytest.mark.parametrize(
    "name", ["coach", "ada/coach/x", "ada/..", "ada/a--b", "a da/coach", "ada/coach.git", "/coach"]
)
def test_a_name_that_cannot_be_one(hub, client, run, name):
    with pytest.raises(ConfigError, match="not a valid Hub id"), push.planned(str(run), push.Options(name)):
        pass
    assert hub.asked == []


def test_no_name_and_no_folder(run):
    with pytest.raises(ConfigError, match="no repository is named"), push.planned(str(run), push.Options()):
        pass
    with pytest.raises(ConfigError, match="only a run on this machine"), push.planned(REPO, push.Options(REPO)):
        pass


def test_the_configurations_name(run):
    edit(run / "run.json", lambda value: value["config"].update(hub_model_id="ada/configured"))
    with push.planned(str(run), push.Options()) as plan:
        assert plan.target.repo_id == "ada/configured"
    with push.planned(str(run), push.Options(REPO)) as plan:
        assert plan.target.repo_id == REPO


@pytest.mark.parametrize(("there", "parts"), [
    ({"adapter_config.json": b'{"base_model_name_or_path": "meta/llama"}'}, ["another base model: meta/llama"]),
    ({"run.json": b'{"base": {"reference": "meta/llama"}}'}, ["another base model: meta/llama, not tiny"]),
    ({"README.md": b"---\nbase_model: meta/llama\n---\n"}, ["another base model: meta/llama, not tiny"]),
    ({"README.md": b"---\nbase_model:\n- a/b\n- c/d\n---\n"}, ["another base model: a/b, c/d, not tiny"]),
    ({"run.json": b"not JSON"}, ["one that its run.json does not name"]),
    ({"pytorch_model.bin": b"weights"}, ["holds weights already, and does not say of which base model"]),
])  # fmt: skip
def test_a_repository_of_another_base(hub, client, run, there, parts):
    repository = hub.add("model", REPO, there)
    with pytest.raises(MismatchError) as caught:
        publish(run)
    for part in [*parts, "choose another --repo-id"]:
        assert part in str(caught.value)
    assert len(repository.history()) == 2


@pytest.mark.parametrize("there", [
    {"adapter_config.json": b'{"base_model_name_or_path": "tiny"}'},
    {"README.md": b"---\nlicense: gemma\n---\n# A page made by hand\n"},
    {},
])  # fmt: skip
def test_a_repository_of_the_same_base_or_of_none(hub, client, run, there):
    hub.add("model", REPO, there)
    assert not publish(run).unchanged


def test_confirmation_sees_what_is_there_and_can_stop(hub, client, run):
    seen = []

    def refuse(remote):
        seen.append(remote)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish(run, confirm=refuse)
    assert seen == [None]
    assert hub.repositories == {}
    assert {method for method, _, _ in hub.asked} == {"GET"}


# ------------------------------------------------------------------------------------------------ merged


def test_merged_weights_are_the_adapters(hub, client, run, tiny_base, tmp_path, monkeypatch):
    """What transformers loads from the Hub answers as base and adapter do; and an adapter can take its place again."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from fitcoach_tune.training.adapter import load_adapter

    publish(run)
    publish(run, merged=True)
    repository = hub.repositories["model", REPO]
    assert set(repository.head.files) == MERGED_FILES | {".gitattributes"}
    assert "library_name: transformers" in repository.head.files["README.md"].decode()
    found = json.loads(repository.head.files["run.json"])["merged"]
    assert found["difference_fp32"] < 1e-3
    assert found["difference_fp32"] < found["difference_bf16"] < found["moved"]
    folder = tmp_path / "downloaded"
    folder.mkdir()
    for name, data in repository.head.files.items():
        (folder / name).write_bytes(data)
    merged = AutoModelForCausalLM.from_pretrained(folder)
    assert merged.dtype == torch.bfloat16
    assert merged.generation_config.eos_token_id == [1, 106, 50]
    base = models.load_model(models.resolve(str(tiny_base)), "fp32")
    plain = {name: value.clone() for name, value in base.state_dict().items()}
    ids = AutoTokenizer.from_pretrained(folder)("bed c", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        expected = load_adapter(base, run)(input_ids=ids).logits
        got = merged.float()(input_ids=ids).logits
    assert (got - expected).abs().max() < 0.05 * expected.abs().max()
    changed = [name for name, value in merged.state_dict().items() if not torch.allclose(value, plain[name], atol=1e-2)]
    assert changed
    assert all(name.split(".")[-2] in ("q_proj", "k_proj", "v_proj", "o_proj") for name in changed)

    publish(run)
    assert set(repository.head.files) == ADAPTER_FILES | {".gitattributes"}


def test_an_update_that_bf16_would_round_away_is_not_merged(run):
    from safetensors.torch import load_file, save_file

    tensors = load_file(run / "adapter_model.safetensors")
    tiny = {key: value * 1e-4 if ".lora_B." in key else value for key, value in tensors.items()}
    save_file(tiny, run / "adapter_model.safetensors")
    recorded(run, "adapter_model.safetensors")
    options = push.Options(REPO, merged=True, allow_unevaluated=True)
    with pytest.raises(MismatchError) as caught, push.planned(str(run), options):
        pass
    assert "the merged weights do not give the adapter's logits" in str(caught.value)
    assert "leave --merged out" in str(caught.value)


# ------------------------------------------------------------------------------------------------ the command line


def test_without_a_terminal_it_needs_yes(hub, program, run):
    done = program("push", "--adapter", run, "--repo-id", REPO)
    assert done.returncode == 2
    assert "there is no terminal to ask at" in done.stderr
    assert "--yes" in done.stderr
    assert hub.asked == []


def test_dry_run_shows_all_and_sends_nothing(hub, program, run):
    done = program("push", "--adapter", run, "--repo-id", REPO, "--dry-run", token=None)
    assert done.returncode == 0, done.stderr
    for name in ADAPTER_FILES:
        assert f"  {name}\n" in done.stdout
    assert "33.4 MB  tokenizer.json" in done.stdout
    assert "12 files, " in done.stdout
    assert "\n---\nlibrary_name: peft\n" in done.stdout
    assert "# coach\n" in done.stdout
    as_json = program("push", "--adapter", run, "--repo-id", REPO, "--dry-run", "--json", "--quiet", token=None)
    found = json.loads(as_json.stdout)
    assert {file["path"] for file in found["files"]} == ADAPTER_FILES
    assert found["card"] in done.stdout
    assert as_json.stderr == ""
    assert hub.asked == []


def test_the_newest_run_is_pushed_and_its_address_printed(hub, program, run):
    done = program("push", "--repo-id", REPO, "--yes", "--private", "--revision", "v1", "-m", "one")
    assert done.returncode == 0, done.stderr
    repository = hub.repositories["model", REPO]
    assert done.stdout == f"{hub.address}/{REPO}/commit/{repository.branches['v1']}\n"
    assert repository.at("v1").title == "one"
    assert repository.private
    assert "as one commit to model ada/coach@v1 (new, private)" in done.stderr
    again = program("push", "--repo-id", REPO, "--yes", "--private", "--revision", "v1", "--json")
    assert json.loads(again.stdout)["unchanged"] is True


@pytest.mark.parametrize(("token", "environment", "part"), [
    (None, {}, "you are not logged in"),
    ("hf_x", {"HF_HUB_OFFLINE": "1"}, "offline mode is on"),
])  # fmt: skip
def test_what_the_user_is_told(hub, program, run, token, environment, part):
    done = program("push", "--repo-id", REPO, "--yes", token=token, **environment)
    assert done.returncode == 4
    assert f"error: model {REPO}: {part}" in done.stderr
    assert "Traceback" not in done.stderr
    assert hub.repositories == {}


@pytest.mark.parametrize(("answer", "sent"), [("y\n", True), ("\n", False)])
def test_at_a_terminal_it_asks(hub, run, tmp_path, answer, sent):
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "fitcoach_tune", "push", "--repo-id", REPO, "--quiet"],
        cwd=tmp_path, env=surroundings(hub, tmp_path / "hf"), stdin=theirs, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(theirs)
    os.write(ours, answer.encode())
    out, shown = child.communicate(timeout=120)
    os.close(ours)
    assert "12 files, " in shown
    assert "Send this? [y/N]" in shown
    assert (child.returncode == 0) is sent
    assert bool(hub.repositories) is sent
    assert out.startswith(hub.address) is sent
