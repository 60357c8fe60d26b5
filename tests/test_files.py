"""Files are whole or absent, whatever fails: real full, read-only and refusing file systems."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitcoach_tune import files
from fitcoach_tune.errors import OutputError
from tests.powers import without_powers

BIG = b"x" * (1 << 20)


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name.startswith("."))


@contextlib.contextmanager
def umask(mask: int):
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@contextlib.contextmanager
def small_disk(folder: Path):
    """A file system of 64 KiB over `folder`."""
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a file system can be mounted by root only")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, capture_output=True)


@contextlib.contextmanager
def full_disk(folder: Path):
    with small_disk(folder):
        yield lambda: contextlib.nullcontext()


@contextlib.contextmanager
def read_only_disk(folder: Path):
    with small_disk(folder):

        @contextlib.contextmanager
        def refuse():
            for mode in ("ro", "rw"):
                subprocess.run(["mount", "-o", f"remount,{mode}", str(folder)], check=True, capture_output=True)
                if mode == "ro":
                    yield

        yield refuse


@contextlib.contextmanager
def unwritable_folder(folder: Path):
    @contextlib.contextmanager
    def refuse():
        folder.chmod(0o555)
        try:
            with without_powers():
                yield
        finally:
            folder.chmod(0o755)

    yield refuse


@contextlib.contextmanager
def limited_file_size(folder: Path):
    @contextlib.contextmanager
    def refuse():
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    yield refuse


@pytest.fixture(params=[full_disk, read_only_disk, unwritable_folder, limited_file_size])
def refusing(request, tmp_path):
    """A folder and a context manager in which the operating system lets no 1 MiB file be written into it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    with request.param(folder) as refuse:
        yield folder, refuse


def test_write_atomic_leaves_the_old_file_when_the_system_refuses(refusing) -> None:
    folder, refuse = refusing
    path = folder / "run.json"
    files.write_atomic(path, "old")
    with refuse(), pytest.raises(OutputError, match="cannot write") as caught:
        files.write_atomic(path, BIG)
    assert caught.value.where == str(path)
    assert caught.value.hint
    assert path.read_text() == "old"
    assert leftovers(folder) == []


def test_atomic_directory_leaves_the_old_folder_when_the_system_refuses(refusing) -> None:
    folder, refuse = refusing
    path = folder / "set"
    path.mkdir()
    (path / "a").write_text("old")
    with refuse(), pytest.raises(OutputError, match="cannot write"), files.atomic_directory(path) as staged:
        (staged / "a").write_bytes(BIG)
    assert (path / "a").read_text() == "old"
    assert leftovers(folder) == []


@pytest.mark.parametrize("place", ["file/under", "file/deeply/under", "n" * 300])
@pytest.mark.parametrize("folder", [False, True])
def test_an_impossible_place_is_an_output_error(tmp_path, place, folder) -> None:
    (tmp_path / "file").write_text("no folder")
    path = tmp_path / place
    write = files.atomic_directory(path).__enter__ if folder else partial(files.write_atomic, path, "text")
    with pytest.raises(OutputError, match="cannot write"):
        write()
    assert (tmp_path / "file").read_text() == "no folder"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("content", ["größer\n", b"\x00\xff", ""])
def test_write_atomic_writes_makes_parents_and_follows_the_umask(tmp_path, content) -> None:
    path = tmp_path / "a" / "b" / "file"
    with umask(0o027):
        for _ in range(2):  # the second time over an existing file
            files.write_atomic(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert path.stat().st_mode & 0o777 == 0o640
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_write_atomic_puts_a_new_file_in_place_of_the_old(tmp_path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with path.open() as reader:
        files.write_atomic(path, "new")
        assert reader.read() == "old"  # a reader that was there keeps a whole file
    assert path.read_text() == "new"


def test_atomic_directory_replaces_as_a_whole(tmp_path) -> None:
    path = tmp_path / "set"
    for name in ("first", "second"):
        with files.atomic_directory(path) as staged:
            (staged / "deep").mkdir()
            (staged / "deep" / name).write_text(name)
            assert not path.exists() or not (path / "deep" / name).exists()
        assert [p.name for p in (path / "deep").iterdir()] == [name]
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
@pytest.mark.parametrize("existing", [False, True])
def test_atomic_directory_vanishes_when_the_block_raises(tmp_path, error, existing) -> None:
    path = tmp_path / "set"
    if existing:
        path.mkdir()
        (path / "old").touch()

    def fill() -> None:
        with files.atomic_directory(path) as staged:
            (staged / "half").touch()
            raise error

    with pytest.raises(error):
        fill()
    assert [p.name for p in tmp_path.rglob("*")] == (["set", "old"] if existing else [])


def test_atomic_directory_puts_the_old_folder_back_when_the_new_cannot_take_its_place(tmp_path) -> None:
    path = tmp_path / "set"
    path.mkdir()
    (path / "old").write_text("kept")
    with pytest.raises(OutputError, match="cannot write"), files.atomic_directory(path) as staged:
        staged.rmdir()  # nothing is left to move in, which shows only after the old folder has made room
    assert (path / "old").read_text() == "kept"
    assert leftovers(tmp_path) == []


def test_atomic_directory_over_a_mount_point(tmp_path) -> None:
    path = tmp_path / "set"
    path.mkdir()
    with small_disk(path):  # which cannot be renamed
        (path / "old").write_text("kept")
        with pytest.raises(OutputError, match="cannot write"), files.atomic_directory(path) as staged:
            (staged / "new").touch()
        assert (path / "old").read_text() == "kept"
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(("mask", "folder_mode", "file_mode"), [(0o022, 0o755, 0o644), (0o007, 0o770, 0o660)])
def test_modes_follow_the_umask(tmp_path, mask, folder_mode, file_mode) -> None:
    path = tmp_path / "set"
    with umask(mask):
        with files.atomic_directory(path) as staged:
            (staged / "plain").touch()
            (staged / "inner").mkdir(mode=0o700)
            (staged / "inner" / "private").touch(mode=0o600)
            files.follow_umask(staged)
        assert os.umask(mask) == mask  # looking at the umask does not change it
    modes = {p.name: p.stat().st_mode & 0o777 for p in [path, *path.rglob("*")]}
    assert modes == {"set": folder_mode, "inner": folder_mode, "plain": file_mode, "private": file_mode}


def test_set_aside_keeps_the_newest_previous(tmp_path) -> None:
    path = tmp_path / "run"
    for text in ("first", "second"):
        path.mkdir()
        (path / text).touch()
        assert files.set_aside(path, ".previous") == tmp_path / "run.previous"
        assert not path.exists()
    assert [p.name for p in (tmp_path / "run.previous").iterdir()] == ["second"]


def test_set_aside_of_what_cannot_be_moved(tmp_path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run.previous").write_text("a file, not ours to remove")
    with pytest.raises(OutputError) as caught:
        files.set_aside(tmp_path / "run", ".previous")
    assert caught.value.where == str(tmp_path / "run")
    assert (tmp_path / "run").is_dir()
    assert (tmp_path / "run.previous").is_file()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


def turned(value):
    """The same value with the keys of every object in reverse order."""
    if isinstance(value, dict):
        return {k: turned(v) for k, v in reversed(value.items())}
    return [turned(v) for v in value] if isinstance(value, list) else value


@settings(max_examples=60, deadline=None)
@given(value=json_values)
def test_sha256_json_does_not_depend_on_key_order(value) -> None:
    assert files.sha256_json(turned(value)) == files.sha256_json(value)
    assert files.sha256_json([value]) != files.sha256_json([value, value])
    assert json.loads(files.to_json(value)) == value


@pytest.mark.parametrize(
    ("one", "other"),
    [([1, 2], [2, 1]), (1, 1.0), (True, 1), (None, "null"), ({"a": "b"}, {"b": "a"}), ("\u00e9", "e\u0301")],
)
def test_sha256_json_tells_values_apart(one, other) -> None:
    assert files.sha256_json(one) != files.sha256_json(other)


def test_hashes_are_plain_sha256(tmp_path) -> None:
    path = tmp_path / "file"
    path.write_bytes("größer".encode())
    expected = hashlib.sha256("größer".encode()).hexdigest()
    assert files.sha256_file(path) == files.sha256_text("größer") == expected
    assert files.sha256_json({"b": 1, "a": "ö"}) == files.sha256_text('{"a":"ö","b":1}')


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "HOME/.cache/fitcoach-tune"),
        ({"XDG_CACHE_HOME": ""}, "HOME/.cache/fitcoach-tune"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/fitcoach-tune"),
        ({"XDG_CACHE_HOME": "/x", "FITCOACH_TUNE_CACHE": "/own"}, "/own"),
        ({"FITCOACH_TUNE_CACHE": "~/own"}, "HOME/own"),
        ({"FITCOACH_TUNE_CACHE": ""}, "HOME/.cache/fitcoach-tune"),
    ],
)
def test_cache_dir(monkeypatch, variables, expected) -> None:
    for name in ("FITCOACH_TUNE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/someone", **variables}.items():
        monkeypatch.setenv(name, value)
    assert files.cache_dir() == Path(expected.replace("HOME", "/home/someone"))


# ------------------------------------------------------------------------------------------------ leftovers and room


def test_a_message_names_the_bytes_that_did_not_fit(tmp_path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    with small_disk(folder):
        with pytest.raises(OutputError, match="cannot write 1,048,576 bytes: No space left on device"):
            files.write_atomic(folder / "file", BIG)
        with (
            pytest.raises(OutputError, match="cannot write 1,048,576 bytes: No space left on device"),
            files.atomic_directory(folder / "set", len(BIG)) as staged,
        ):
            (staged / "a").write_bytes(BIG)
        with (
            (folder / "other").open("wb", buffering=0) as file,
            pytest.raises(OutputError, match="cannot write 1,048,576 bytes: No space left on device") as caught,
            files.output_errors(folder / "other", len(BIG)),
        ):
            file.write(BIG[file.write(BIG) :])  # the first takes what there is room for
        assert caught.value.where == str(folder / "other")


def test_a_probe_finds_out_and_leaves_nothing(tmp_path, refusing) -> None:
    folder, refuse = refusing
    before = sorted(folder.iterdir())
    with refuse(), pytest.raises(OutputError, match="cannot write 1,048,577 bytes") as caught:
        files.probe(folder, [1, 1 << 20])
    assert caught.value.where == str(folder)
    assert sorted(folder.iterdir()) == before
    files.probe(tmp_path, [0, 1, 1 << 20, 100_001])
    assert leftovers(tmp_path) == []


def test_a_probe_needs_room_for_all_files_together(tmp_path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    with small_disk(folder):
        files.probe(folder, [20 << 10, 20 << 10])
        with pytest.raises(OutputError, match="cannot write 81,920 bytes: No space left"):
            files.probe(folder, [20 << 10] * 4)


def test_sweep_deletes_leftovers_and_nothing_else(tmp_path) -> None:
    stay = [".lock", "step-3", ".hidden", "a.incomplete", ".replaced.txt"]
    for name in (".step-4.x1.incomplete", ".step-4.x2.replaced", ".step-1.x3.removed", *stay):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    (tmp_path / ".run.json.123.incomplete").touch()
    (tmp_path / ".link.incomplete").symlink_to(tmp_path / "step-3")
    files.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(stay)
    assert (tmp_path / "step-3/file").exists()
    files.sweep(tmp_path / "nowhere")


def test_remove_folder(tmp_path) -> None:
    (tmp_path / "step-1/deep").mkdir(parents=True)
    files.remove_folder(tmp_path / "step-1")
    files.remove_folder(tmp_path / "step-1")  # which is gone already
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------ the lock


def test_a_locked_folder_is_refused_to_others(tmp_path) -> None:
    folder = tmp_path / "deep" / "run"
    with files.FolderLock(folder):
        (folder / "file").touch()
        with pytest.raises(OutputError, match=f"another run is writing there: process {os.getpid()} on ") as caught:
            files.FolderLock(folder).__enter__()
        assert caught.value.where == str(folder)
    assert [path.name for path in folder.iterdir()] == ["file"]
    with files.FolderLock(folder):
        pass


def test_an_empty_folder_goes_with_the_lock_that_made_it(tmp_path) -> None:
    (tmp_path / "given").mkdir()
    for name in ("run", "given"):
        with files.FolderLock(tmp_path / name):
            assert (tmp_path / name).is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["given"]
    assert list((tmp_path / "given").iterdir()) == []


def test_a_lock_follows_a_folder_that_steps_aside(tmp_path) -> None:
    folder = tmp_path / "run"
    with files.FolderLock(folder) as lock:
        (folder / "old").touch()
        lock.follow(files.set_aside(folder, ".previous"))
        (folder / "new").touch()
        assert [path.name for path in (tmp_path / "run.previous").iterdir()] == ["old"]
        with pytest.raises(OutputError, match="another run"):
            files.FolderLock(folder).__enter__()
    assert [path.name for path in folder.iterdir()] == ["new"]


def test_a_place_that_cannot_be_locked(tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        files.FolderLock(tmp_path / "file" / "run").__enter__()


# Each holder makes a file that must not be there yet: two at a time would find each other's.
CONTEND = """
import sys
from pathlib import Path
from fitcoach_tune import files
from fitcoach_tune.errors import OutputError

folder, held = Path(sys.argv[1]), 0
while held < 60:
    try:
        with files.FolderLock(folder):
            (folder / "inside").open("x").close()
            held += 1
            (folder / "inside").unlink()
    except OutputError as error:
        assert "another run" in error.what, error
print(held)
"""


def test_no_two_processes_ever_hold_a_lock_together(tmp_path) -> None:
    """Though each deletes the lock's file, and the folder, when it is done."""
    command = [sys.executable, "-c", CONTEND, str(tmp_path / "run")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        out, err = process.communicate()
        assert (out, err) == ("60\n", "")
