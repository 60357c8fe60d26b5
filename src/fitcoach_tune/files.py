"""Files that are either complete or not there: atomic writes, hashes. The only module that renames anything."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fitcoach_tune.errors import MismatchError, OutputError

STAGING_SUFFIX = ".incomplete"


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


def read_json(path: Path, what: str) -> Any:
    """Parse a JSON file of ours.

    Raises:
        MismatchError: it is missing or not JSON; `what` names the thing that it belongs to.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MismatchError(f"this is not {what}: {path.name} is missing", where=str(path.parent)) from None
    except (OSError, ValueError, RecursionError) as error:
        raise MismatchError(f"{what} is damaged: {error}", where=str(path)) from None


def _output_error(error: OSError, path: Path) -> OutputError:
    return OutputError(
        f"cannot write: {error.strerror or error}", where=str(path), hint="choose another --output-dir or make room"
    )


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old one or the whole new one.

    Raises:
        OutputError: the folder cannot be written or the disk is full; what was there before is unchanged.
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
        _sync_directory(path.parent)
    except OSError as error:
        raise _output_error(error, path) from None
    finally:
        # Gone already after a success; and where nothing can be written, the clean-up fails as well.
        with contextlib.suppress(OSError):
            staged.unlink()


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """A new folder to fill; it takes the place of `path` when the block ends well, and vanishes when it does not.

    An existing `path` is replaced as a whole, at the very end.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=STAGING_SUFFIX, dir=path.parent))
    except OSError as error:
        raise _output_error(error, path) from None
    try:
        staged.chmod(0o777 & ~_umask())
        yield staged
        for file in sorted(staged.rglob("*")):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        _swap_in(staged, path)
    except OSError as error:
        raise _output_error(error, path) from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _swap_in(staged: Path, path: Path) -> None:
    if path.exists():
        aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".replaced", dir=path.parent))
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
    _sync_directory(path.parent)


def set_aside(path: Path) -> Path:
    """Rename an existing folder to `NAME.previous`, replacing an older one of that name; returns the new path."""
    previous = path.with_name(path.name + ".previous")
    try:
        if previous.exists():
            shutil.rmtree(previous)
        path.rename(previous)
    except OSError as error:
        raise _output_error(error, path) from None
    return previous


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def follow_umask(folder: Path) -> None:
    """Give the files in a folder the modes that the umask asks for (some libraries write 0600)."""
    for file in folder.rglob("*"):
        file.chmod((0o777 if file.is_dir() else 0o666) & ~_umask())
