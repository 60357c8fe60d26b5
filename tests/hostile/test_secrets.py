"""The login goes to the Hub and nowhere else: not to the screen, a log or a file, whatever a verb does or fails at."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fitcoach_tune import cli
from fitcoach_tune import hub as downloads
from tests.conftest import QUICK
from tests.hub.conftest import READ_ONLY, TOKEN, client, hub  # noqa: F401 (fixtures)
from tests.hub.server import Fault
from tests.taught import tokenizers  # noqa: F401 (a fixture)

SIGNED = "https://cdn.example/x?X-Amz-Signature=TheSignature&token=" + TOKEN
SHORT = ["--device", "cpu", "--max-new-tokens", "4"]


@pytest.fixture
def program(hub, client, tokenizers, tiny_base, rows_file, tmp_path, monkeypatch, caplog):  # noqa: F811
    """The command line in a folder of the test's own, with an empty cache and everything logged; it looks for the
    login in all that was said and written. Returns the finished process.
    """
    from huggingface_hub import constants

    hub.add("model", "user/tiny", {file.name: file.read_bytes() for file in tiny_base.iterdir()})
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("FITCOACH_TUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)  # the HTTP library logs whole headers below that, if somebody asks it to

    def run(*arguments, token=TOKEN):
        monkeypatch.setenv("HF_TOKEN", token)
        done = CliRunner().invoke(cli.app, [*map(str, arguments)], env={"COLUMNS": "120"})
        traces = [*traceback.format_exception(done.exception)] if done.exception else []
        said = [done.stdout, done.stderr, caplog.text, repr(done.exception), repr(done), *traces]
        written = {str(file): file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
        sent = {name: data for repo in hub.repositories.values() for name, data in repo.head.files.items()}
        for secret in {TOKEN, READ_ONLY, token, "TheSignature"}:
            assert not [text for text in said if secret in text]
            assert not [name for name, data in (written | sent).items() if secret.encode() in data or secret in name]
        return done

    return run


def test_from_rows_to_a_published_adapter(program, hub, rows_file, tmp_path):  # noqa: F811
    model = ["--model", "user/tiny", "--dataset", rows_file]
    for arguments in (
        ["prepare", *model, "--output-dir", "set", "--push-to-hub", "ada/rows"],
        ["train", *model, "--data", "set", "--output-dir", "output/run", *QUICK, "--max-steps", "1",
         "--report-to", "tensorboard", "--save-total-limit", "1"],
        ["eval", "--adapter", "output/run", "--unconstrained", *SHORT],
        ["infer", "hi", "--adapter", "output/run", "--verbose", "--unconstrained", *SHORT],
        ["push", "--adapter", "output/run", "--repo-id", "ada/coach", "--yes", "--json"],
    ):  # fmt: skip
        done = program(*arguments)
        assert done.exit_code == 0, (arguments, done.stderr, done.exception)
    # It was needed at each place where it is looked for.
    used = {path.split("?")[0] for _, path, login in hub.asked if login == f"Bearer {TOKEN}"}
    assert {"/api/whoami-v2", "/api/models/ada/coach/commit/main", "/api/datasets/ada/rows/commit/main"} <= used
    assert any("/user/tiny/resolve/" in path for path in used)
    # And what was written is where it is looked for.
    assert {path.name for path in (tmp_path / "output/run").iterdir()} >= {"run.json", "checkpoints", "eval"}
    assert (tmp_path / "cache/answers").is_dir()


FAULTS = {
    "not accepted": Fault("GET|HEAD|POST", "/", 401, text=f"Invalid credentials: {TOKEN}", times=999),
    "forbidden": Fault("GET|HEAD|POST", "/", 403, text=f"{TOKEN} may not read {SIGNED}", times=999),
    "gated": Fault("GET|HEAD|POST", "/", 403, {"X-Error-Code": "GatedRepo"}, f"not for {TOKEN}", times=999),
    "out of order": Fault("GET|HEAD|POST", "/", 500, {"Retry-After": "0"}, f"failed at {SIGNED}", times=999),
    "a page": Fault("GET|HEAD|POST", "/", 502, {"Retry-After": "0"}, f"<html>{TOKEN}", times=999),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_hub_that_repeats_the_login(program, hub, finished_run, rows_file, tmp_path, fault):  # noqa: F811
    shutil.copytree(finished_run[1], tmp_path / "output/run")
    hub.faults.append(FAULTS[fault])
    for arguments in (
        ["prepare", "--model", "user/tiny", "--dataset", rows_file],
        ["prepare", "--model", "user/tiny", "--dataset", "user/rows"],
        ["train", "--model", "user/tiny", "--dataset", rows_file, "--output-dir", "output/new"],
        ["eval", "--adapter", "user/adapter"],
        ["infer", "hi", "--adapter", "user/adapter@v1"],
        ["push", "--adapter", "output/run", "--repo-id", "ada/coach", "--yes", "--allow-unevaluated"],
    ):
        done = program(*arguments)
        assert done.exit_code == 4, (arguments, done.stderr, done.exception)
        assert done.stderr.count("error: ") == 1


def test_failures_that_have_nothing_to_do_with_it(program, finished_run, rows_file, tmp_path):
    shutil.copytree(finished_run[1], tmp_path / "output/run")
    (tmp_path / "bad.jsonl").write_text('{"user": 1}\n')
    (tmp_path / "bad.yaml").write_text("modell: x\n")
    (tmp_path / "trap.py").write_text("import os\nraise ValueError('the environment is nobody\\'s business')\n")
    for code, arguments in (
        (3, ["prepare", "--model", "user/tiny", "--dataset", "bad.jsonl"]),
        (2, ["train", "--config", "bad.yaml"]),
        (3, ["infer", "hi", "--adapter", "output/run", "--tools", "trap:tools"]),
        (5, ["eval", "--adapter", "output/run", "--data", "output"]),
        (2, ["push", "--adapter", "output/run", "--repo-id", "a/b/c", "--yes"]),
        (4, ["push", "--adapter", "output/run", "--repo-id", "ada/coach", "--yes", "--allow-unevaluated"]),
    ):
        done = program(*arguments, token=READ_ONLY if code == 4 else TOKEN)
        assert done.exit_code in (code, 3), (arguments, done.stderr, done.exception)
        assert done.stderr.count("error: ") == 1


@pytest.mark.parametrize("token", ["hf_Sentinel\u00e9", "hf_Sentinel\u00e9 and words", "Sentinel" * 999])
def test_a_login_that_cannot_be_one(program, token):
    """The client quotes the header that it could not send."""
    done = program("infer", "hi", "--adapter", "user/adapter", token=token)
    assert done.exit_code == 4, (done.stderr, done.exception)
    assert "Sentinel" not in done.stderr


def test_what_is_cut_out_of_foreign_text(monkeypatch):
    """A login need not look like one."""
    monkeypatch.setenv("HF_TOKEN", "a login of no known form")
    text = f"{SIGNED} and a login of no known form, hf_Other"
    assert downloads.without_secrets(text) == "https://cdn.example/x and …, hf_…"


FAILING = """
import os
from fitcoach_tune import hub
from huggingface_hub import get_token

def test_that_fails():
    surroundings, login = dict(os.environ), get_token()
    print(surroundings)
    hub.download("user/nothing", None, ["config.json"], what="model")
"""


def test_a_test_that_fails_reports_no_login(tmp_path):
    """Of whoever runs the tests: pytest prints what was written, all local variables, and a file of it."""
    secret = "hf_SentinelOfWhoeverRunsTheTests"
    (tmp_path / "test_it.py").write_text(FAILING)
    (tmp_path / "token").write_text(secret)
    login = {"HF_TOKEN": secret, "HUGGING_FACE_HUB_TOKEN": secret, "HF_TOKEN_PATH": str(tmp_path / "token")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "--rootdir", tmp_path,
         "--showlocals", "-o", "junit_logging=all", f"--junitxml={tmp_path}/report.xml", tmp_path / "test_it.py"],
        cwd=Path(__file__).parents[2], env={**os.environ, **login, "HF_ENDPOINT": "http://127.0.0.1:9"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    report = (tmp_path / "report.xml").read_text()
    assert done.returncode == 1, done.stderr
    assert "surroundings" in done.stdout
    assert "AccessError" in report
    assert "Sentinel" not in done.stdout + done.stderr + report
