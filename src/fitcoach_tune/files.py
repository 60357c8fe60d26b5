"""Files that are either complete or not there: atomic writes, hashes, a lock. The only module that renames anything."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fitcoach_tune.errors import OutputError

STAGING_SUFFIX = ".incomplete"
_ASIDE_SUFFIX, _REMOVED_SUFFIX = ".replaced", ".removed"
LOCK_NAME = ".lock"
_LOCK_TRIES = 20
_BLOCK = os.urandom(1 << 16)  # of which no file system can make less


def cache_dir() -> Path:
    """Where derived files that can be made again live: `$FITCOACH_TUNE_CACHE`, else `$XDG_CACHE_HOME/fitcoach-tune`."""
    if chosen := os.environ.get("FITCOACH_TUNE_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fitcoach-tune"


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hex SHA-256 of a JSON value, independent of key order."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def sha256_text(text: str) -> str:
    """Hex SHA-256 of a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def to_json(value: Any) -> str:
    """Indented JSON with a final newline, as the program writes all its JSON files."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _output_error(error: OSError, path: Path, size: int | None = None) -> OutputError:
    much = f" {size:,} bytes" if size else ""
    return OutputError(
        f"cannot write{much}: {error.strerror or error}",
        where=str(path),
        hint="choose another --output-dir or make room",
    )


@contextlib.contextmanager
def output_errors(path: Path, size: int) -> Iterator[None]:
    """Around a write of `size` bytes to a file that is open: what the system refuses becomes an OutputError."""
    try:
        yield
    except OSError as error:
        raise _output_error(error, path, size) from None


def _sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old one or the whole new one.

    Raises:
        OutputError: the folder cannot be written or the disk is full (path and bytes are named); what was there before
            is unchanged.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    staged = path.with_name(f".{path.name}.{os.getpid()}{STAGING_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with staged.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise _output_error(error, path, len(data)) from None
    finally:
        # Gone already after a success; and where nothing can be written, the clean-up fails as well.
        with contextlib.suppress(OSError):
            staged.unlink()


@contextlib.contextmanager
def atomic_directory(path: Path, size: int | None = None) -> Iterator[Path]:
    """A new folder to fill; it takes the place of `path` when the block ends well, and vanishes when it does not.

    An existing `path` is replaced as a whole, at the very end.

    Args:
        size: bytes that the block will write, where that is known, for the message.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=STAGING_SUFFIX, dir=path.parent))
    except OSError as error:
        raise _output_error(error, path, size) from None
    try:
        staged.chmod(0o777 & ~_umask())
        yield staged
        for part in [*sorted(staged.rglob("*")), staged]:
            if part.is_file() or part.is_dir():
                _sync(part)
        _swap_in(staged, path)
    except OSError as error:
        raise _output_error(error, path, size) from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _swap_in(staged: Path, path: Path) -> None:
    if path.exists():
        aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=_ASIDE_SUFFIX, dir=path.parent))
        old = aside / path.name
        try:
            path.rename(old)
            staged.rename(path)
        except BaseException:
            if old.exists() and not path.exists():
                old.rename(path)
            with contextlib.suppress(OSError):
                aside.rmdir()
            raise
        shutil.rmtree(aside)
    else:
        staged.rename(path)
    _sync(path.parent)


def set_aside(path: Path, suffix: str) -> Path:
    """Rename an existing folder to its name with `suffix`, replacing an older one there; returns the new path."""
    aside = path.with_name(path.name + suffix)
    try:
        if aside.exists():
            shutil.rmtree(aside)
        path.rename(aside)
    except OSError as error:
        raise _output_error(error, path) from None
    return aside


def remove_folder(path: Path) -> None:
    """Delete a folder that may be missing; at no moment does its name stand for a part of it.

    Where that fails the folder, or a leftover for `sweep`, stays: nothing depends on its being gone.
    """
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_REMOVED_SUFFIX}")
    with contextlib.suppress(OSError):
        path.rename(aside)
        shutil.rmtree(aside)


def is_leftover(path: Path) -> bool:
    """Is this what a killed writer leaves: half a file or folder, or one that was about to go?"""
    return path.name.startswith(".") and path.name.endswith((STAGING_SUFFIX, _ASIDE_SUFFIX, _REMOVED_SUFFIX))


def sweep(folder: Path) -> None:
    """Delete what killed writers have left in a folder, which may be missing. Only for the folder's one writer."""
    with contextlib.suppress(OSError):
        for path in filter(is_leftover, list(folder.iterdir())):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def probe(folder: Path, sizes: Sequence[int]) -> None:
    """Find out whether files of these sizes, in bytes, fit into a folder, by writing them. Nothing of it stays.

    Raises:
        OutputError: they do not, or nothing can be written there; names the folder and the sum.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=".probe.", suffix=STAGING_SUFFIX, dir=folder) as scratch:
            for number, size in enumerate(sizes):
                with Path(scratch, str(number)).open("wb", buffering=0) as file:
                    while (missing := size - file.tell()) > 0:
                        file.write(_BLOCK[:missing])
    except OSError as error:
        raise _output_error(error, folder, sum(sizes)) from None


class FolderLock:
    """Keeps a folder for this process: an flock on a file in it, which the system takes from a process that dies.

    A context manager; the file goes when it ends, and so does a folder that was made for it and is empty.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._made = False
        self._handle = -1

    def __enter__(self) -> FolderLock:
        self._made = not self._folder.exists()
        self._acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self._release(self._handle, self._folder)
        if self._made:
            with contextlib.suppress(OSError):
                self._folder.rmdir()

    def follow(self, moved: Path) -> None:
        """The folder has been renamed to `moved`: make one of its old name, lock it, and let go of the moved one."""
        before = self._handle
        self._acquire()
        self._release(before, moved)

    def _acquire(self) -> None:
        """Make the folder if need be, and lock it.

        Raises:
            OutputError: another process has it, or it cannot be written.
        """
        path = self._folder / LOCK_NAME
        try:
            self._handle = _lock(path)
            os.truncate(self._handle, 0)
            os.write(self._handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
        except BlockingIOError:
            holder = ""
            with contextlib.suppress(OSError):  # it may end this very moment
                holder = f": {path.read_text(encoding='utf-8')}"
            raise OutputError(
                f"another run is writing there{holder}",
                where=str(self._folder),
                hint="let it end, stop it, or choose another --output-dir",
            ) from None
        except OSError as error:
            raise _output_error(error, self._folder) from None

    @staticmethod
    def _release(handle: int, folder: Path) -> None:
        with contextlib.suppress(OSError):
            (folder / LOCK_NAME).unlink()
        os.close(handle)


def _lock(path: Path) -> int:
    """Lock a file, made with its folder if need be, and return its handle; BlockingIOError where another process has.

    A holder that ends may delete the folder before the file is opened here, or the file after that, so that the lock
    is on nothing: then once more.
    """
    for left in reversed(range(_LOCK_TRIES)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except (FileNotFoundError, FileExistsError):
            if not left:
                raise
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            raise
        if _is_at(path, handle):
            return handle
        os.close(handle)
    raise BlockingIOError


def _is_at(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def follow_umask(folder: Path) -> None:
    """Give the files in a folder the modes that the umask asks for (some libraries write 0600)."""
    for file in folder.rglob("*"):
        file.chmod((0o777 if file.is_dir() else 0o666) & ~_umask())
