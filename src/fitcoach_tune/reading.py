"""Files that somebody else may have made: looked at before they are read, and read strictly and within bounds.

What lies in a prepared set, a run directory or a checkpoint has been written by this program, or by somebody who wants
it to be taken for that.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

from fitcoach_tune.errors import ConfigError, MismatchError
from fitcoach_tune.strict_json import Flaw, misfit, parse_json

LARGEST = 1 << 32
"""Bytes of the largest file that is read: an adapter of full rank for the 270M model has a tenth of that."""
_LARGEST_JSON = 1 << 26


def user_path(text: str, where: str) -> Path:
    """The path that somebody names, `~` expanded; nothing need be there.

    Args:
        where: what it was given for, for messages.

    Raises:
        ConfigError: it cannot be looked for: too long for a name, no such user, not permitted.
    """
    try:
        path = Path(text).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        what = f"cannot be looked for: {getattr(error, 'strerror', None) or error}"
        raise ConfigError(what, where=where, hint="check the path") from None
    return path


def check_own(path: Path, what: str, most: int = LARGEST, *, links: bool = False) -> None:
    """Refuse a file that is not plainly a part of its folder, before a byte of it is read.

    In the Hub's cache all files of a folder are links to others of the same repository; there they may be.

    Args:
        what: the thing that it belongs to, such as "an adapter".
        most: bytes that it may have.
        links: it may be a link to anywhere.

    Raises:
        MismatchError: it is missing, a link out of the folder, no regular file, or larger.
    """
    where = str(path)
    try:
        home = path.parent.resolve(strict=True)
        if home.parent.name == "snapshots" and home.parents[1].name.startswith(("models--", "datasets--")):
            home = home.parents[1]
        is_inside = path.resolve(strict=True).is_relative_to(home)
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise MismatchError(f"this is not {what}: {path.name} is missing", where=str(path.parent)) from None
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: links in a circle
        why = getattr(error, "strerror", None) or error
        raise MismatchError(f"{what} is damaged: {path.name} cannot be read: {why}", where=where) from None
    if not (is_inside or links):
        raise MismatchError(f"{what} is damaged: {path.name} is a link out of its folder", where=where)
    if not stat.S_ISREG(found.st_mode):
        raise MismatchError(f"{what} is damaged: {path.name} is no regular file", where=where)
    if found.st_size > most:
        raise MismatchError(
            f"{what} is damaged: {path.name} has {found.st_size:,} bytes, more than the {most:,} that it may have",
            where=where,
        )


def check_listed(folder: Path, name: str, what: str) -> Path:
    """The path of a file that a list in a folder names.

    Raises:
        MismatchError: the name leads out of the folder.
    """
    if name in ("", ".", "..") or Path(name).name != name or "\0" in name:
        raise MismatchError(f"{what} is damaged: it lists {name!r}, which leads out of its folder", where=str(folder))
    return folder / name


def read_json(path: Path, what: str, form: object = None, *, links: bool = False) -> Any:
    """Parse a JSON file, strictly.

    Args:
        what: the thing that it belongs to, such as "a prepared set".
        form: what it must look like, as `strict_json.misfit` takes it; anything if None.
        links: see `check_own`.

    Raises:
        MismatchError: see `check_own`; it is not strict JSON, or not of that form.
    """
    check_own(path, what, _LARGEST_JSON, links=links)
    try:
        value = parse_json(path.read_bytes())
        if form is not None and (flaw := misfit(value, form)):
            raise flaw
    except OSError as error:
        raise MismatchError(f"{what} is damaged: {error.strerror or error}", where=str(path)) from None
    except Flaw as flaw:
        raise MismatchError(f"{what} is damaged: {flaw}", where=str(path)) from None
    return value
