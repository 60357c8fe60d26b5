"""A Hub with two accounts, and ways to meet it: the program in a process of its own, or the client in this one."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tests.hub.repositories import User
from tests.hub.server import Hub

TOKEN = "hf_SentinelTokenThatNobodyMaySee"
READ_ONLY = "hf_SentinelTokenOfOneWhoMayRead"


@pytest.fixture
def hub():
    users = {TOKEN: User("ada", orgs=("coaches",)), READ_ONLY: User("ada", role="read")}
    with Hub(users) as server:
        yield server


@pytest.fixture
def client(hub, tmp_path, monkeypatch):
    """The real client in this process with the server as its Hub, as HF_ENDPOINT and HF_TOKEN would have it; returns
    what it waited for, in seconds, without having slept.
    """
    from huggingface_hub import close_session, constants
    from huggingface_hub.utils import _http

    waits = []
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + template)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-login"))
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=waits.append))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    close_session()
    yield waits
    close_session()


@pytest.fixture
def program(hub, tmp_path):
    """The program in a process of its own, whose only Hub is the server, logged in as ada with an empty cache."""

    def run(*arguments, token=TOKEN, **environment):
        done = subprocess.run(
            [sys.executable, "-m", "fitcoach_tune", *map(str, arguments)],
            cwd=tmp_path,
            env=surroundings(hub, tmp_path / "hf", token) | environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        shown = done.stdout + done.stderr
        assert TOKEN not in shown
        assert READ_ONLY not in shown
        assert "X-Signature" not in shown
        return done

    return run


def surroundings(hub: Hub, home, token: str | None = TOKEN) -> dict[str, str]:
    """The environment of a process whose only Hub is the server."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    ours = {"HF_ENDPOINT": hub.address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "COLUMNS": "120"}
    # As conftest.py at the top has it: what else the client would report about itself.
    return keep | ours | {"HF_HUB_DISABLE_TELEMETRY": "1"} | ({"HF_TOKEN": token} if token else {})
