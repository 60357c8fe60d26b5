"""The prepared set: a folder of Arrow files with a manifest, written whole, and opened only while it is unchanged."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fitcoach_tune import __version__, files, interrupts, models, reading
from fitcoach_tune.dataset import Example
from fitcoach_tune.dataset.messages import read_messages
from fitcoach_tune.errors import MismatchError
from fitcoach_tune.gold import Gold
from fitcoach_tune.strict_json import Flaw, Maybe, misfit, parse_json
from fitcoach_tune.tools import normalise_tools
from fitcoach_tune.training.batches import TokenizedRow

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 2
MANIFEST = "manifest.json"
TEMPLATE, TOOLSETS = "chat_template.jinja", "toolsets.json"
_TRAIN = "train.arrow"
_FILES = {TEMPLATE, TOOLSETS, _TRAIN, "test.arrow"}
_TEXT = Maybe(str, missing=False)
_FORM = {
    "versions": {"fitcoach_tune": str},
    "source": {"name": str, "revision": _TEXT, "sha256": str, "tools_sha256": _TEXT, "notes": [str]},
    "settings": {
        "dataset": str, "revision": _TEXT, "tools": _TEXT, "seed": int,
        "max_length": int, "excess_length": str, "test_size": float, "split": str,
    },
    "model": {"name": str, "tokenizer_sha256": str},
    "rows": dict.fromkeys(("read", "dropped", "train", "test"), int),
    "tokens": {str: int},
    "prefix": {"tokens": int},
    "split": dict,
    "developer": _TEXT,
    "files": {str: str},
    **dict.fromkeys(("data_sha256", "tools_sha256", "template_sha256"), str),
}  # fmt: skip
_WHAT = "a prepared set"


def is_set(path: Path) -> bool:
    """Is this a prepared set, whole or damaged, and nothing else? What is may be replaced."""
    if not path.is_dir():
        return False
    names = {file.name for file in path.iterdir() if not file.name.startswith(".")}
    return {MANIFEST, _TRAIN} <= names <= {MANIFEST, *_FILES}


@dataclass(frozen=True)
class PreparedRow(TokenizedRow):
    """A tokenized row with what it came from.

    Attributes:
        example: the index of its Example in what was read.
    """

    example: int = -1


class _Batch:
    """One batch of a file of rows: (offsets, values) of its lists, and the numbers of its rows' tools."""

    def __init__(self, batch: pa.RecordBatch):
        self.rows = batch.num_rows
        self.toolsets = batch["toolset"].to_numpy()
        columns = (batch[name] for name in ("input_ids", "span_starts", "span_ends"))
        self.ids, self.starts, self.ends = ((c.offsets.to_numpy(), c.values.to_numpy()) for c in columns)


class PreparedSplit(Sequence[TokenizedRow]):
    """The rows of one split, read from a memory-mapped Arrow file when they are asked for.

    Raises:
        MismatchError: the file holds no such rows.
    """

    def __init__(self, path: Path, toolsets: list[list[dict]]):
        self._path, self._toolsets = path, toolsets
        self._table = _read_table(path)
        self._batches = [_Batch(batch) for batch in self._table.to_batches() if batch.num_rows]
        self._firsts = [0, *accumulate(batch.rows for batch in self._batches)][:-1]
        for batch in self._batches:
            self._check(batch)

    def _check(self, batch: _Batch) -> None:
        (offsets, ids), (places, starts), (end_places, ends) = batch.ids, batch.starts, batch.ends
        counts = np.diff(places)
        rows = np.repeat(np.arange(len(counts)), counts)
        toolsets = batch.toolsets
        sound = (
            np.array_equal(places, end_places)
            and bool((counts > 0).all() and (ids >= 0).all() and (starts > 0).all() and (starts < ends).all())
            and bool((ends <= np.diff(offsets)[rows]).all())
            and not ((starts[1:] < ends[:-1]) & (rows[1:] == rows[:-1])).any()
            and bool(((toolsets >= 0) & (toolsets < len(self._toolsets))).all())
        )
        if not sound:
            raise _damaged(self._path, "its spans, tokens or tools are none")

    def __len__(self) -> int:
        return self._table.num_rows

    def __getitem__(self, index: int) -> TokenizedRow:
        number = bisect_right(self._firsts, index) - 1
        batch, index = self._batches[number], index - self._firsts[number]
        cut = [v[o[index] : o[index + 1]] for o, v in (batch.ids, batch.starts, batch.ends)]
        return TokenizedRow(cut[0], tuple(zip(cut[1].tolist(), cut[2].tolist(), strict=True)))

    @property
    def largest_token(self) -> int:
        """The largest token id; -1 without rows."""
        return max((int(batch.ids[1].max(initial=-1)) for batch in self._batches), default=-1)

    @property
    def shortest_prompt(self) -> int | None:
        """The fewest tokens before a row's first supervised one; None without rows."""
        return min((int(batch.starts[1].min()) for batch in self._batches), default=None)

    def example(self, index: int) -> Example:
        """The conversation that a row was made from.

        Raises:
            MismatchError: it is none.
        """
        names = ("messages", "toolset", "origin", "acceptable")
        messages, toolset, origin, acceptable = (self._table[name][index].as_py() for name in names)
        try:
            gold = Gold.from_json(parse_json(acceptable)) if acceptable else None
            return Example(read_messages(messages), self._toolsets[toolset], origin, gold)
        except Flaw as flaw:
            raise _damaged(self._path, f"row {index}: {flaw}") from None


def _read_table(path: Path) -> pa.Table:
    import pyarrow as pa

    interrupts.ready_pyarrow()
    try:
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
        table.validate(full=True)  # or an offset that lies would be followed, to wherever it points
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(path, f"not readable: {' '.join(str(error).split())}") from None
    optional = {"acceptable"}
    if table.schema.remove_metadata() != schema() or any(
        table[name].null_count for name in table.schema.names if name not in optional
    ):
        raise _damaged(path, "it has other columns")
    return table


def _damaged(path: Path, what: str) -> MismatchError:
    return MismatchError(f"{_WHAT} is damaged: {what}", where=str(path), hint="run prepare again")


@dataclass(frozen=True)
class PreparedSet:
    """A prepared folder, opened and checked."""

    path: Path
    manifest: dict[str, Any]

    @cached_property
    def toolsets(self) -> list[list[dict]]:
        """The distinct lists of tools that rows were rendered with."""
        path = self.path / TOOLSETS
        found = reading.read_json(path, _WHAT, [list])
        try:
            return [normalise_tools(tools) for tools in found]
        except Flaw as flaw:
            raise _damaged(path, str(flaw)) from None

    @cached_property
    def train(self) -> PreparedSplit:
        return PreparedSplit(self.path / "train.arrow", self.toolsets)

    @cached_property
    def test(self) -> PreparedSplit:
        return PreparedSplit(self.path / "test.arrow", self.toolsets)

    @property
    def prefix(self) -> np.ndarray:
        """int32 [P]: the tokens that every row starts with."""
        size = self.manifest["prefix"]["tokens"]
        prompts = [part.shortest_prompt for part in (self.train, self.test) if len(part)]
        if not 0 <= size < min(prompts, default=0):
            raise _damaged(self.path / MANIFEST, f"rows do not share their first {size} tokens")
        return self.train[0].input_ids[:size]

    @property
    def chat_template(self) -> str:
        try:
            return (self.path / TEMPLATE).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise _damaged(self.path / TEMPLATE, str(error)) from None

    def common_prompt(self) -> dict[str, Any] | None:
        """The developer text and tools that all rows share: {"developer": …, "tools": […]}, or None if they differ."""
        if len(self.toolsets) != 1 or self.manifest["developer"] is None:
            return None
        return {"developer": self.manifest["developer"], "tools": self.toolsets[0]}


def open_set(path: Path) -> PreparedSet:
    """Open a prepared folder and check its files against their hashes.

    Raises:
        MismatchError: it is not a prepared set, was made by another format version, or a file has changed.
    """
    manifest = reading.read_json(path / MANIFEST, _WHAT)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise MismatchError("this is not a prepared set of this version", where=str(path), hint="run prepare again")
    if flaw := misfit(manifest, _FORM):
        raise _damaged(path / MANIFEST, str(flaw))
    for name, expected in manifest["files"].items():
        file = reading.check_listed(path, name, _WHAT)
        if not file.exists():
            raise MismatchError(f"{name} is missing", where=str(path), hint="run prepare again")
        reading.check_own(file, _WHAT)
        if files.sha256_file(file) != expected:
            what = f"{name} has changed since it was prepared"
            raise MismatchError(what, where=str(path), hint="run prepare again")
    if unlisted := sorted(_FILES - manifest["files"].keys()):
        raise _damaged(path / MANIFEST, f"it does not list {unlisted[0]}")
    return PreparedSet(path, manifest)


def check_base(prepared: PreparedSet, base: models.Base) -> None:
    """Refuse a prepared set whose token ids are another tokenizer's, or that the model has no embedding for.

    Raises:
        MismatchError: says what differs.
    """
    made_with = prepared.manifest["model"]
    if made_with["tokenizer_sha256"] != models.tokenizer_hash(base.path):
        raise MismatchError(
            f"it was prepared with the tokenizer of {made_with['name']}, which differs from that of {base.name}",
            where=str(prepared.path),
            hint=f"run prepare with --model {base.name}",
        )
    largest, size = max(part.largest_token for part in (prepared.train, prepared.test)), models.vocabulary(base.path)
    if largest >= size:
        what = f"it has token {largest}, and {base.name} has a vocabulary of {size}"
        raise MismatchError(what, where=str(prepared.path), hint=f"run prepare with --model {base.name}")


def versions() -> dict[str, str]:
    """The versions that what is written depends on."""
    from importlib.metadata import version

    return {"fitcoach_tune": __version__} | {p: version(p) for p in ("transformers", "tokenizers", "torch")}


def schema() -> pa.Schema:
    """The columns of a file of rows."""
    import pyarrow as pa

    ints = pa.list_(pa.int32())
    columns = {"input_ids": ints, "span_starts": ints, "span_ends": ints, "messages": pa.string()}
    columns |= {"toolset": pa.int32(), "origin": pa.string(), "acceptable": pa.string()}
    return pa.schema(list(columns.items()))
