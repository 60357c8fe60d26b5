"""The prepared set: a folder of Arrow files with a manifest, written whole, and opened only while it is unchanged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fitcoach_tune import __version__, files, models
from fitcoach_tune.dataset import Example
from fitcoach_tune.errors import MismatchError
from fitcoach_tune.gold import Gold
from fitcoach_tune.training.batches import TokenizedRow

FORMAT = 2
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class PreparedRow(TokenizedRow):
    """A tokenized row with what it came from.

    Attributes:
        example: the index of its Example in what was read.
    """

    example: int = -1


class PreparedSplit(Sequence[TokenizedRow]):
    """The rows of one split, read from a memory-mapped Arrow file when they are asked for."""

    def __init__(self, path: Path, toolsets: list[list[dict]]):
        import pyarrow as pa

        with pa.memory_map(str(path)) as source:
            self._table = pa.ipc.open_file(source).read_all()
        self._toolsets = toolsets
        self._ids = self._column("input_ids")
        self._starts, self._ends = self._column("span_starts"), self._column("span_ends")

    def _column(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        column = self._table[name].combine_chunks()
        if isinstance(column, list) or not len(column):
            return np.zeros(1, np.int64), np.zeros(0, np.int32)
        return column.offsets.to_numpy(), column.values.to_numpy()

    def __len__(self) -> int:
        return self._table.num_rows

    def __getitem__(self, index: int) -> TokenizedRow:
        cut = [v[o[index] : o[index + 1]] for o, v in (self._ids, self._starts, self._ends)]
        return TokenizedRow(cut[0], tuple(zip(cut[1].tolist(), cut[2].tolist(), strict=True)))

    def example(self, index: int) -> Example:
        """The conversation that a row was made from."""
        names = ("messages", "toolset", "origin", "acceptable")
        messages, toolset, origin, acceptable = (self._table[name][index].as_py() for name in names)
        gold = Gold.from_json(json.loads(acceptable)) if acceptable else None
        return Example(json.loads(messages), self._toolsets[toolset], origin, gold)


@dataclass(frozen=True)
class PreparedSet:
    """A prepared folder, opened and checked."""

    path: Path
    manifest: dict[str, Any]

    @cached_property
    def toolsets(self) -> list[list[dict]]:
        """The distinct lists of tools that rows were rendered with."""
        return files.read_json(self.path / "toolsets.json", "a prepared set")

    @cached_property
    def train(self) -> PreparedSplit:
        return PreparedSplit(self.path / "train.arrow", self.toolsets)

    @cached_property
    def test(self) -> PreparedSplit:
        return PreparedSplit(self.path / "test.arrow", self.toolsets)

    @property
    def prefix(self) -> np.ndarray:
        """int32 [P]: the tokens that every row starts with."""
        return self.train[0].input_ids[: self.manifest["prefix"]["tokens"]]

    @property
    def chat_template(self) -> str:
        return (self.path / "chat_template.jinja").read_text(encoding="utf-8")

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
    manifest = files.read_json(path / MANIFEST, "a prepared set")
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise MismatchError("this is not a prepared set of this version", where=str(path), hint="run prepare again")
    for name, expected in manifest["files"].items():
        file = path / Path(name).name
        if not file.is_file() or files.sha256_file(file) != expected:
            state = "has changed since it was prepared" if file.is_file() else "is missing"
            raise MismatchError(f"{name} {state}", where=str(path), hint="run prepare again")
    return PreparedSet(path, manifest)


def check_base(prepared: PreparedSet, base: models.Base) -> None:
    """Refuse a prepared set whose token ids are another tokenizer's.

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


def versions() -> dict[str, str]:
    """The versions that what is written depends on."""
    from importlib.metadata import version

    return {"fitcoach_tune": __version__} | {p: version(p) for p in ("transformers", "tokenizers", "torch")}


def write_set(
    target: Path, manifest: dict, parts: list[list[PreparedRow]], examples: list[Example], template: str
) -> None:
    toolsets: dict[str, list[dict]] = {}
    keys = {}
    for row in (row for part in parts for row in part):
        tools = examples[row.example].tools
        if id(tools) not in keys:
            keys[id(tools)] = files.sha256_json(tools)
            toolsets.setdefault(keys[id(tools)], tools)
    order = {key: i for i, key in enumerate(toolsets)}
    with files.atomic_directory(target) as staged:
        for name, part in zip(("train", "test"), parts, strict=True):
            numbers = [order[keys[id(examples[row.example].tools)]] for row in part]
            _write_arrow(staged / f"{name}.arrow", part, numbers, examples)
        (staged / "toolsets.json").write_text(files.to_json(list(toolsets.values())), encoding="utf-8")
        (staged / "chat_template.jinja").write_text(template, encoding="utf-8")
        manifest["toolsets"] = len(toolsets)
        manifest["tools_sha256"] = files.sha256_json(sorted(toolsets))
        manifest["template_sha256"] = files.sha256_text(template)
        manifest["files"] = {f.name: files.sha256_file(f) for f in sorted(staged.iterdir())}
        manifest["data_sha256"] = files.sha256_json([manifest["files"], manifest["prefix"]])
        (staged / MANIFEST).write_text(files.to_json(manifest), encoding="utf-8")


def _write_arrow(path: Path, rows: list[PreparedRow], toolsets: list[int], examples: list[Example]) -> None:
    import pyarrow as pa

    ints = pa.list_(pa.int32())
    used = [examples[row.example] for row in rows]
    table = pa.table(
        {
            "input_ids": pa.array([row.input_ids for row in rows], ints),
            "span_starts": pa.array([[s for s, _ in row.spans] for row in rows], ints),
            "span_ends": pa.array([[e for _, e in row.spans] for row in rows], ints),
            "messages": pa.array([_as_text(example.messages) for example in used], pa.string()),
            "toolset": pa.array(toolsets, pa.int32()),
            "origin": pa.array([example.origin for example in used], pa.string()),
            "acceptable": pa.array([e.acceptable and _as_text(e.acceptable.as_json()) for e in used], pa.string()),
        }
    )
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _as_text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
