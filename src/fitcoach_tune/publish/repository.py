"""A repository of the Hub and a commit to it, as values: what is sent, where to, what was found, what was done."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from fitcoach_tune import files


@dataclass(frozen=True)
class File:
    """A file to be sent.

    Attributes:
        path: in the repository.
        source: on this machine.
    """

    path: str
    source: Path

    @property
    def size(self) -> int:
        return self.source.stat().st_size

    @cached_property
    def sha256(self) -> str:
        return files.sha256_file(self.source)

    @cached_property
    def blob_id(self) -> str:
        """Git's id of the file, by which the Hub names what is not in large file storage."""
        data = self.source.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Target:
    """Where to.

    Attributes:
        repo_id: owner/name.
        branch: the main one if None.
        private: make it so, if it has to be made.
    """

    repo_id: str
    kind: Literal["model", "dataset"] = "model"
    branch: str | None = None
    private: bool = False

    def __str__(self) -> str:
        return f"{self.kind} {self.repo_id}" + (f"@{self.branch}" if self.branch else "")


@dataclass(frozen=True)
class Remote:
    """A repository as it was found.

    Attributes:
        head: the commit that was looked at; the branch's, or the main branch's where there is no such branch yet.
        has_branch: whether the branch is there.
        private: None if the Hub does not say.
        card: the metadata of its README.
        hashes: for each file its SHA-256 if it is in large file storage, else Git's id.
    """

    head: str
    has_branch: bool
    private: bool | None
    card: dict[str, Any]
    hashes: dict[str, str]

    def holds(self, sent: Sequence[File], removed: Sequence[str]) -> bool:
        """Whether its files are already what a commit would make them."""
        there = self.hashes
        same = all(there.get(f.path) in (f.sha256, f.blob_id) for f in sent)
        return self.has_branch and same and not there.keys() & set(removed)


@dataclass(frozen=True)
class Sent:
    """What a push did.

    Attributes:
        commit: the branch's head now; url: its page, or the repository's.
        unchanged: everything was there already, so no commit was made.
    """

    commit: str
    url: str
    unchanged: bool

    def as_dict(self) -> dict[str, Any]:
        """What `--json` prints of it."""
        return {"commit": self.commit, "url": self.url, "unchanged": self.unchanged}
