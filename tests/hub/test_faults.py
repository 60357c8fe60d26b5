"""Whatever goes wrong while something is sent: what the user is told, what is tried again, and that it is one commit.

docs/hub.md has the same cases as a table.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fitcoach_tune.console import Console
from fitcoach_tune.errors import AccessError, FitcoachTuneError, MismatchError
from fitcoach_tune.publish.repository import File, Target
from fitcoach_tune.publish.upload import Uploader
from tests.hub.conftest import READ_ONLY, TOKEN
from tests.hub.repositories import User
from tests.hub.server import Fault

FILES: dict[str, bytes] = {}  # what the running test sends
CARD = "---\nlicense: gemma\n---\n\n# A model\n"
COMMIT = "/commit/main$"
DOCS = Path(__file__).parents[2] / "docs" / "hub.md"
EVERY_PAUSE = [1, 2, 4, 8, 16]


@pytest.fixture
def sent(tmp_path) -> list[File]:
    """Two large files and two small ones."""
    folder = tmp_path / "sent"
    folder.mkdir()
    texts = {"a.safetensors": "A" * 5000, "b.safetensors": "B" * 300_000, "README.md": CARD, "run.json": "{}"}
    for name, text in texts.items():
        (folder / name).write_text(text)
    return [File(name, folder / name) for name in texts]


@dataclass
class Case:
    """A fault, and what comes of it.

    Attributes:
        faults: by the hub's address, since some are acts of others on it.
        error: what is raised, with these parts in its text; None if all goes well in the end.
        waits: seconds waited for by the program; client_waits: by the client itself.
        commits: of the repository afterwards, the Hub's own first one included; 0 if there is none.
    """

    faults: Callable[[object], list[Fault]] = lambda hub: []
    error: type[FitcoachTuneError] | None = None
    parts: list[str] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    client_waits: list[float] = field(default_factory=list)
    commits: int = 2
    token: str | None = TOKEN
    target: Target = field(default_factory=lambda: Target("ada/coach"))
    card: str = CARD
    exists: bool = False


def always(*arguments, **options) -> Callable:
    """The same faults whatever the hub."""
    return lambda hub: [Fault(*arguments, **options)]


def somebody_commits(hub) -> Callable[[], object]:
    return lambda: hub.repositories["model", "ada/coach"].commit("main", "somebody else", {"theirs.txt": b"theirs"})


def own_commit(hub) -> Callable[[], object]:
    """The commit that was asked for before, and that the Hub makes only now."""
    return lambda: hub.repositories["model", "ada/coach"].commit("main", "Adapter", dict(FILES))


HTML = "<html>bad gateway</html>"
DENIED = {"X-Error-Code": "GatedRepo"}
CASES = {
    "not-logged-in": Case(
        token=None, error=AccessError, parts=["you are not logged in", "hf auth login"], commits=0
    ),
    "token-unknown": Case(
        token="hf_Expired", error=AccessError, parts=["does not accept your token", "settings/tokens"], commits=0
    ),
    "token-may-only-read": Case(
        token=READ_ONLY, error=AccessError, parts=["your token may only read", "settings/tokens"], commits=0
    ),
    "no-such-namespace": Case(
        target=Target("grace/coach"), error=AccessError, commits=0,
        parts=["you are ada", "no namespace grace that you can write to", "choose one of ada, coaches"],
    ),
    "fine-grained-token-refused": Case(
        token="hf_FineGrained", target=Target("grace/coach"), error=AccessError, commits=0,
        parts=["you may not write there (You don't have the rights to create a model", "settings/tokens"],
    ),
    "namespace-unknown-to-the-hub": Case(
        always("POST", "/repos/create", 404, text="Namespace not found"), error=AccessError, commits=0,
        parts=["there is no such namespace or repository (Namespace not found)"],
    ),
    "gated": Case(
        always("GET", "/api/models/ada/coach$", 403, headers=DENIED), error=AccessError, exists=True, commits=1,
        parts=["it is gated, and you have no access to it", "/ada/coach"],
    ),
    "write-refused": Case(
        always("POST", COMMIT, 403, text="Blocked"), error=AccessError, commits=1,
        parts=["you may not write there (Blocked)"],
    ),
    "public-but-private-wanted": Case(
        target=Target("ada/coach", private=True), exists=True, error=MismatchError, commits=1,
        parts=["it is public", "leave --private out"],
    ),
    "card-refused": Case(
        card="---\nlicense: 5\n---\n", error=MismatchError, commits=0,
        parts=["the Hub refuses the card", '"license" must be one of the known licences'],
    ),
    "busy-at-login": Case(always("GET", "/whoami-v2", 429, headers={"Retry-After": "7"}), waits=[7]),
    "busy-window": Case(always("GET", "/whoami-v2", 429, headers={"RateLimit": '"api";r=0;t=11'}), waits=[11]),
    "busy-for-long": Case(
        always("GET", "/whoami-v2", 429, headers={"Retry-After": "4000"}), error=AccessError, commits=0,
        parts=["refuses so many requests", "wait some minutes"],
    ),
    "busy-at-upload": Case(
        always("POST", "/preupload/", 429, headers={"Retry-After": "3"}), client_waits=[4]  # the client adds a second
    ),
    "busy-at-commit": Case(always("POST", COMMIT, 429, headers={"Retry-After": "5"}), waits=[5]),
    "down-at-creation": Case(always("POST", "/repos/create", 503, times=2), waits=[1, 2]),
    "down-at-transfer": Case(always("PUT", "/lfs/", 500, times=1), client_waits=[1]),
    "down-at-commit": Case(always("POST", COMMIT, 502, times=2), waits=[1, 2]),
    "down-for-good": Case(
        always("POST", COMMIT, 503, times=99), error=AccessError, waits=EVERY_PAUSE, commits=1,
        parts=["the Hub keeps answering with HTTP 503", "what has been transferred is not transferred again"],
    ),
    "web-page-for-an-answer": Case(always("POST", "/validate-yaml", 502, text=HTML, skip=1), waits=[1]),
    "another-write-going-on": Case(always("POST", COMMIT, 409, text="Another commit is in progress"), waits=[1]),
    "transfer-cut": Case(always("PUT", "/lfs/", cut="request"), client_waits=[1]),
    "transfer-cut-for-good": Case(
        always("PUT", "/lfs/", cut="request", times=99), error=AccessError, commits=1,
        parts=["the connection to the Hub failed", "what has been transferred is not transferred again"],
    ),
    "commit-cut": Case(always("POST", COMMIT, cut="request"), waits=[1]),
    "answer-lost": Case(always("POST", COMMIT, cut="answer")),
    "gateway-lost-the-answer": Case(always("POST", COMMIT, 504, text=HTML, done=True)),
    "answer-lost-then-down": Case(
        lambda hub: [Fault("POST", COMMIT, cut="answer"), Fault("GET", "/models/ada/coach$", 503, skip=2)], waits=[1]
    ),
    "commit-lands-late": Case(  # after the head was compared, before the second try
        lambda hub: [Fault("POST", COMMIT, 504), Fault("POST", COMMIT, before=own_commit(hub))], waits=[1]
    ),
    "parent-moved": Case(
        lambda hub: [Fault("POST", "/preupload/", before=somebody_commits(hub))], error=MismatchError, commits=2,
        parts=["somebody else has changed the repository", "nothing was written over it"],
    ),
    "parent-moved-while-cut": Case(
        lambda hub: [Fault("POST", COMMIT, cut="request", before=somebody_commits(hub))], error=MismatchError,
        parts=["somebody else has changed the repository"],
    ),
}  # fmt: skip


def push(case: Case, sent: list[File], waits: list[float]):
    uploader = Uploader(Console(), sleep=waits.append)
    uploader.log_in(case.target)
    remote = uploader.look(case.target)
    uploader.check_card(case.target, case.card)
    return uploader.send(case.target, remote, sent, ["old.txt"], "Adapter")


@pytest.mark.parametrize("name", CASES)
def test_fault(name, hub, client, sent, monkeypatch, capfd, caplog):
    case, waits = CASES[name], []
    hub.users["hf_FineGrained"] = User("ada", role="fineGrained")
    monkeypatch.delenv("HF_TOKEN") if case.token is None else monkeypatch.setenv("HF_TOKEN", case.token)
    FILES.clear()
    FILES.update({file.path: file.source.read_bytes() for file in sent})
    if case.exists:
        hub.add("model", case.target.repo_id)
    hub.faults = case.faults(hub)
    before = dict(FILES)

    if case.error:
        with pytest.raises(case.error) as caught:
            push(case, sent, waits)
        text = str(caught.value)
        assert all(part in text for part in [f"model {case.target.repo_id}", "To fix it: ", *case.parts]), text
        shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    else:
        done, shown = push(case, sent, waits), ""
        assert not done.unchanged
        assert done.commit == hub.repositories["model", "ada/coach"].head.oid
        assert done.url == f"{hub.address}/ada/coach/commit/{done.commit}"

    assert waits == case.waits
    assert case.client_waits in (client[: len(case.client_waits)], client)
    repository = hub.repositories.get(("model", case.target.repo_id))
    commits = repository.history() if repository else []
    assert len(commits) == case.commits
    assert sum(commit.title == "Adapter" for commit in commits) == (0 if case.error else 1)
    if not case.error:
        assert {name: commits[0].files[name] for name in before} == before
    # Nothing here was changed, and no secret was shown: neither the token nor the signature of an address.
    assert {file.path: file.source.read_bytes() for file in sent} == before
    printed = capfd.readouterr()
    for text in (shown, printed.out, printed.err, caplog.text):
        assert not re.search(r"Sentinel|Expired|FineGrained|X-Signature", text)


def test_the_login_was_used(hub, client, sent):
    """So that its absence from what is shown means something."""
    push(CASES["answer-lost"], sent, [])
    used = {authorization for _, path, authorization in hub.asked if path.startswith("/api/models/")}
    assert used == {f"Bearer {TOKEN}"}
    storage = {authorization for method, _, authorization in hub.asked if method == "PUT"}
    assert storage == {None}  # the storage behind the Hub is not told


def test_no_network(hub, client, sent, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    waits = []
    with pytest.raises(AccessError, match="the connection to the Hub failed"):
        push(Case(), sent, waits)
    assert waits == EVERY_PAUSE


def test_progress_is_kept(hub, client, sent):
    """After a push that was given up, the next one sends what is missing."""
    hub.faults = [Fault("PUT", f"/lfs/{sent[1].sha256}", 500, times=99)]
    with pytest.raises(AccessError):
        push(Case(), sent, [])
    assert set(hub.large) == {sent[0].sha256}
    hub.faults.clear()
    before = hub.requests("PUT", sent[0].sha256)
    push(Case(), sent, [])
    assert hub.requests("PUT", sent[0].sha256) == before == 1


def test_the_table_in_the_docs_has_these_cases():
    listed = re.findall(r"^\| .*`test_fault\[([\w-]+)\]` \|$", DOCS.read_text(), re.MULTILINE)
    assert listed == list(CASES)
