"""What the loopback Hub keeps: accounts, and repositories with their commits and branches."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

# As the Hub's default .gitattributes: what goes into large file storage whatever its size.
LARGE_SUFFIXES = (".safetensors", ".parquet", ".arrow", ".bin", ".gguf")
LARGE_BYTES = 10 * 2**20


@dataclass(frozen=True)
class User:
    """An account, and the role of the token that stands for it."""

    name: str
    orgs: tuple[str, ...] = ()
    role: str = "write"

    def owns(self, repository: str) -> bool:
        return repository.split("/")[0] in (self.name, *self.orgs)


@dataclass(frozen=True)
class Commit:
    """One commit: everything that is there afterwards."""

    oid: str
    parent: str | None
    title: str
    files: dict[str, bytes]


@dataclass
class Repository:
    """A model or dataset; it starts, as on the Hub, with a commit of .gitattributes."""

    kind: str
    name: str
    private: bool = False
    gated: bool = False
    accepted: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        self.commit("main", "initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})

    def commit(self, branch: str, title: str, added: dict[str, bytes], removed: tuple[str, ...] = ()) -> Commit:
        parent = self.branches.get(branch)
        files = dict(self.commits[parent].files) if parent else {}
        files |= added
        files = {name: data for name, data in files.items() if name not in removed}
        text = f"{self.kind} {self.name} {parent} {title} {sorted((n, blob_id(d)) for n, d in files.items())}"
        made = Commit(hashlib.sha1(text.encode()).hexdigest(), parent, title, files)
        self.commits[made.oid] = made
        self.branches[branch] = made.oid
        return made

    def at(self, revision: str) -> Commit | None:
        """The commit of a branch, or of that id."""
        return self.commits.get(self.branches.get(revision, revision))

    @property
    def head(self) -> Commit:
        return self.commits[self.branches["main"]]

    def history(self, branch: str = "main") -> list[Commit]:
        """A branch's commits, the newest first."""
        found, oid = [], self.branches.get(branch, branch)
        while oid:
            found.append(self.commits[oid])
            oid = found[-1].parent
        return found


def is_large(name: str, size: int) -> bool:
    return name.endswith(LARGE_SUFFIXES) or size > LARGE_BYTES


def blob_id(data: bytes) -> str:
    """Git's id of a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def pointer(data: bytes) -> bytes:
    """What Git keeps of a large file."""
    oid = hashlib.sha256(data).hexdigest()
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(data)}\n".encode()
