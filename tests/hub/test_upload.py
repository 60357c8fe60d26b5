"""What a commit does to a repository, as the server has it afterwards."""

from __future__ import annotations

import hashlib

import pytest

from fitcoach_tune.console import Console
from fitcoach_tune.hub import without_secrets
from fitcoach_tune.publish.failures import pause_for
from fitcoach_tune.publish.repository import File, Target
from fitcoach_tune.publish.upload import Uploader


@pytest.fixture
def files(tmp_path) -> list[File]:
    folder = tmp_path / "sent"
    folder.mkdir()
    (folder / "weights").write_bytes(b"weights" * 1000)
    (folder / "note").write_text("a note")
    return [File("model.safetensors", folder / "weights"), File("note.txt", folder / "note")]


def send(target: Target, sent: list[File], removed=()):
    uploader = Uploader(Console(quiet=True))
    return uploader.send(target, uploader.look(target), sent, removed, "a message")


def test_files_have_gits_names(tmp_path):
    """`printf 'a note' | git hash-object --stdin` and `sha256sum` say the same."""
    (tmp_path / "note").write_text("a note")
    file = File("note.txt", tmp_path / "note")
    assert file.blob_id == hashlib.sha1(b"blob 6\x00a note").hexdigest()
    assert file.sha256 == hashlib.sha256(b"a note").hexdigest()
    assert file.size == 6


def test_a_new_repository(hub, client, files):
    done = send(Target("ada/new", private=True), files)
    repository = hub.repositories["model", "ada/new"]
    assert repository.private
    assert repository.head.oid == done.commit
    assert repository.head.title == "a message"
    assert repository.head.files["model.safetensors"] == b"weights" * 1000
    assert repository.head.files["note.txt"] == b"a note"
    assert len(repository.history()) == 2


def test_sending_it_again_changes_nothing(hub, client, files):
    first = send(Target("ada/new"), files)
    second = send(Target("ada/new"), files, ["old.txt"])
    assert second.unchanged
    assert second.commit == first.commit
    assert second.url == f"{hub.address}/ada/new"
    assert hub.requests("POST", "/commit/") == 1


def test_what_is_there_stays_but_for_what_is_taken_away(hub, client, files):
    there = {"theirs.txt": b"theirs", "old.txt": b"old", "note.txt": b"an older note"}
    repository = hub.add("model", "ada/there", there)
    assert not send(Target("ada/there"), files, ["old.txt", "never-there.txt"]).unchanged
    found = repository.head.files
    assert set(found) == {".gitattributes", "theirs.txt", "note.txt", "model.safetensors"}
    assert (found["theirs.txt"], found["note.txt"]) == (b"theirs", b"a note")
    assert len(repository.history()) == 3


def test_a_branch_is_made_and_the_main_one_stays(hub, client, files):
    repository = hub.add("model", "ada/there", {"theirs.txt": b"theirs"})
    main = repository.head.oid
    done = send(Target("ada/there", branch="v2"), files)
    assert repository.branches == {"main": main, "v2": done.commit}
    assert repository.at("v2").parent == main
    assert set(repository.at("v2").files) == {".gitattributes", "theirs.txt", "note.txt", "model.safetensors"}
    assert send(Target("ada/there", branch="v2"), files).unchanged


def test_the_parent_is_named(hub, client, files):
    """A commit that lands on another parent than the one that was looked at would be refused by the server."""
    target, uploader = Target("ada/there"), Uploader(Console(quiet=True))
    hub.add("model", "ada/there", {"a.txt": b"1"})
    seen = uploader.look(target)
    hub.repositories["model", "ada/there"].commit("main", "somebody else", {"b.txt": b"2"})
    with pytest.raises(Exception, match="somebody else has changed the repository"):
        uploader.send(target, seen, files, [], "a message")


def test_reading_a_file_at_the_commit_that_was_seen(hub, client):
    repository = hub.add("model", "ada/there", {"a.json": b"{}"})
    uploader, target = Uploader(Console(quiet=True)), Target("ada/there")
    seen = uploader.look(target)
    repository.commit("main", "later", {"a.json": b"[]"})
    assert uploader.read(target, seen, "a.json") == b"{}"


@pytest.mark.parametrize(("text", "shown"), [
    ("PUT https://host/a/b?X-Amz-Signature=abc&c=1 failed", "PUT https://host/a/b failed"),
    ("at 'http://host/x?y=1'.", "at 'http://host/x'."),
    ("token hf_AbC123 is bad", "token hf_… is bad"),
    ("nothing to hide? no", "nothing to hide? no"),
])  # fmt: skip
def test_what_is_never_shown(text, shown):
    assert without_secrets(text) == shown


def test_other_failures_are_not_tried_again():
    assert pause_for(TypeError("a mistake of ours"), 1) is None
