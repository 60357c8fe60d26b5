"""Writing a prepared set. Its rows wait in a file until they are split, so that few are in memory at a time."""

from __future__ import annotations

import json
import mmap
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fitcoach_tune import files
from fitcoach_tune.dataset import Example
from fitcoach_tune.prepared_set import MANIFEST, TEMPLATE, TOOLSETS, PreparedRow, schema

if TYPE_CHECKING:
    import pyarrow as pa

# A file of fewer rows has them in one batch. Of a larger one so many are in memory while it is written.
_ROWS_PER_BATCH = 1 << 14
_ENCODER = json.JSONEncoder(ensure_ascii=False)


class Spool:
    """Rows on the disk: a context manager whose file has no name, and goes with the context or with the process.

    Args:
        target: a path on the disk to use, of which not even the parent need exist.
    """

    def __init__(self, target: Path):
        self._target = target
        self._file = None
        self._schema: pa.Schema | None = None
        self._bytes, self._rows = [0], [0]  # where each batch ends

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def __len__(self) -> int:
        """The number of batches."""
        return len(self._rows) - 1

    def add(self, batch: pa.RecordBatch) -> None:
        """Append rows; all batches have the same columns.

        Raises:
            OutputError: they cannot be written; names the target, and the bytes of these rows.
        """
        if self._file is None:
            with files.output_errors(self._target, 0):
                folder = next(parent for parent in self._target.absolute().parents if parent.exists())
                self._file = tempfile.TemporaryFile(buffering=0, dir=folder)  # noqa: SIM115
            self._schema = batch.schema
        left = memoryview(batch.serialize())
        self._bytes.append(self._bytes[-1] + len(left))
        self._rows.append(self._rows[-1] + batch.num_rows)
        with files.output_errors(self._target, len(left)):
            while left:
                left = left[self._file.write(left) :]

    def rows(self, number: int) -> int:
        """How many rows a batch has."""
        return self._rows[number + 1] - self._rows[number]

    def __getitem__(self, number: int) -> pa.RecordBatch:
        """A batch as it was added."""
        return self._read(self._mapped(), number)

    def take(self, rows: np.ndarray) -> pa.RecordBatch:
        """These rows, in this order; they are numbered through all batches."""
        import pyarrow as pa

        numbers = np.searchsorted(self._rows, rows, side="right") - 1
        order = np.argsort(numbers, kind="stable")
        used, starts = np.unique(numbers[order], return_index=True)
        mapped, parts = self._mapped(), []
        for number, places in zip(used.tolist(), np.split(order, starts[1:]), strict=True):
            parts.append(self._read(mapped, number).take(pa.array(rows[places] - self._rows[number])))
        [found] = pa.Table.from_batches(parts).combine_chunks().to_batches()
        return found if (np.diff(order) > 0).all() else found.take(pa.array(np.argsort(order)))

    def _mapped(self) -> pa.Buffer:
        """The file, as memory of which the system loads what is touched, and lets it go with the buffer."""
        import pyarrow as pa

        return pa.py_buffer(mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ))

    def _read(self, mapped: pa.Buffer, number: int) -> pa.RecordBatch:
        import pyarrow as pa

        start, end = self._bytes[number : number + 2]
        return pa.ipc.read_record_batch(mapped.slice(start, end - start), self._schema)


# Rows as columns ------------------------------------------------------------------------------------------------------


def conversations(examples: Sequence[Example], toolsets: Sequence[int]) -> dict[str, list]:
    """The columns that say what rows were made from.

    Args:
        toolsets: the number of each example's tools.
    """
    return {
        "messages": [as_text(example.messages) for example in examples],
        "toolset": list(toolsets),
        "origin": [example.origin for example in examples],
        "acceptable": [example.acceptable and as_text(example.acceptable.as_json()) for example in examples],
    }


def tokens(rows: Sequence[PreparedRow]) -> dict[str, pa.ListArray]:
    """The columns of what rows became."""
    spans = [np.array(row.spans, dtype=np.int32).T for row in rows]
    return {
        "input_ids": _lists([row.input_ids for row in rows]),
        "span_starts": _lists([starts for starts, _ in spans]),
        "span_ends": _lists([ends for _, ends in spans]),
    }


def _lists(arrays: Sequence[np.ndarray]) -> pa.ListArray:
    import pyarrow as pa

    ends = np.cumsum([0, *map(len, arrays)], dtype=np.int32)
    return pa.ListArray.from_arrays(ends, np.concatenate(arrays, dtype=np.int32))


def as_batch(columns: dict[str, Sequence]) -> pa.RecordBatch:
    """A batch with some or all of a set's columns."""
    import pyarrow as pa

    return pa.record_batch(columns, schema=pa.schema([field for field in schema() if field.name in columns]))


def with_toolsets(batch: pa.RecordBatch, numbers: np.ndarray) -> pa.RecordBatch:
    """A batch with other numbers for its tools: for each that it has, that at its place in `numbers`, int32."""
    import pyarrow as pa

    place = batch.schema.get_field_index("toolset")
    column = pa.array(numbers[batch["toolset"].to_numpy()])
    return batch.set_column(place, batch.schema.field(place), column)


def as_text(value: object) -> str:
    """A JSON value as the columns hold it."""
    return _ENCODER.encode(value)


# The set --------------------------------------------------------------------------------------------------------------


def write_set(
    target: Path,
    manifest: dict,
    rows: Spool,
    parts: tuple[np.ndarray, np.ndarray],
    toolsets: Sequence[list[dict]],
    numbers: Sequence[int],
    template: str,
) -> None:
    """Write a prepared set, and complete its manifest.

    Args:
        rows: with all columns.
        parts: the rows to train on, and those held out.
        toolsets: lists of tools by the numbers that `rows` has for them; those that are used are written.
        numbers: the tools' number of each of `rows`.
    """
    order = np.asarray(numbers)[np.concatenate(parts)]
    used, places = np.unique(order, return_index=True)
    written: dict[str, list[dict]] = {}  # by hash, in the order of their first use
    final = np.zeros(len(toolsets), dtype=np.int32)
    places_of: dict[str, int] = {}
    for number in used[np.argsort(places)].tolist():
        key = files.sha256_json(toolsets[number])
        written.setdefault(key, toolsets[number])
        final[number] = places_of.setdefault(key, len(places_of))
    with files.atomic_directory(target) as staged:
        for name, part in zip(("train", "test"), parts, strict=True):
            _write_arrow(staged / f"{name}.arrow", rows, part, final)
        (staged / TOOLSETS).write_text(files.to_json(list(written.values())), encoding="utf-8")
        (staged / TEMPLATE).write_text(template, encoding="utf-8")
        manifest["toolsets"] = len(written)
        manifest["tools_sha256"] = files.sha256_json(sorted(written))
        manifest["template_sha256"] = files.sha256_text(template)
        manifest["files"] = {f.name: files.sha256_file(f) for f in sorted(staged.iterdir())}
        manifest["data_sha256"] = files.sha256_json([manifest["files"], manifest["prefix"]])
        (staged / MANIFEST).write_text(files.to_json(manifest), encoding="utf-8")


def _write_arrow(path: Path, rows: Spool, part: np.ndarray, toolsets: np.ndarray) -> None:
    """Write the rows `part`; `toolsets` are the numbers to write for those that they have."""
    import pyarrow as pa

    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema()) as writer:
        for start in range(0, len(part), _ROWS_PER_BATCH):
            writer.write_batch(with_toolsets(rows.take(part[start : start + _ROWS_PER_BATCH]), toolsets))
