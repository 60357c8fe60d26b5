"""Where rows come from: the built-in set, JSON and Parquet files, saved datasets, the Hub."""

from __future__ import annotations

import codecs
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from errno import EINVAL
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from fitcoach_tune import builtin, hub, reading
from fitcoach_tune.dataset import bfcl
from fitcoach_tune.dataset.forms import COLUMNS, FORMS_TEXT
from fitcoach_tune.errors import AccessError, DataError, MismatchError
from fitcoach_tune.strict_json import Flaw, Maybe, decode_json, find_flaw, kind, quote
from fitcoach_tune.tools import local_path

if TYPE_CHECKING:
    import datasets
    import pyarrow

_JSON_SUFFIXES = (".jsonl", ".json")
_SUFFIXES = (*_JSON_SUFFIXES, ".parquet")
_SUFFIXES_TEXT = ".jsonl, .json or .parquet"
_HOLDERS = ("rows", "data")
_BATCH_ROWS = 256
_LONGEST_LINE = 1 << 26
_SAVED = "a saved dataset"
_STATE = {"_data_files": [{"filename": str}], "_indices_data_files": Maybe([{"filename": str}])}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

Items = Iterator[tuple[str, object]]
"""(origin, row), where a row is a value, or bytes: a line of JSON; of one that could not be parsed, its `Flaw`."""


@dataclass
class Rows:
    """An opened source.

    Attributes:
        name: the source without its revision.
        items: its rows, read as they are asked for.
        digest: a SHA-256, complete when all `items` were read.
        columnar: the rows come from a columnar format.
        revision: the commit of a Hub dataset.
        notes: on how it was found, one sentence each.
    """

    name: str
    items: Items
    digest: hashlib._Hash
    columnar: bool = False
    revision: str | None = None
    notes: list[str] = field(default_factory=list)


def open_rows(source: str, revision: str | None, split: str | None, counts: Counter[str]) -> Rows:
    """Opens a source of any kind, told by its name and by what is on disk. Raises `DataError`, `AccessError`."""
    if source in builtin.NAMES:
        _no_choice(source, revision=revision, split=split)
        return _open_file(builtin.rows_path(source), source, source, counts)
    path, exists = local_path(source)
    if exists or path.suffix.lower() in _SUFFIXES or source.startswith(("./", "../", "/", "~")):
        if not exists:
            raise DataError("there is no such file or folder", where=source, hint="check the path of the rows")
        _no_choice(source, revision=revision)
        if path.is_dir():
            return _open_saved(path, source, split)
        _no_choice(source, split=split)
        return _open_file(path, source, path.name, counts)
    name, _, given = source.partition("@")
    if not _HUB_ID.fullmatch(name):
        forms = f"a {_SUFFIXES_TEXT} file, a saved dataset's folder, a Hub id like user/name"
        hint = f"give {forms}, or one of {', '.join(builtin.NAMES)}"
        raise DataError(f"cannot tell what rows {quote(source)} means", hint=hint)
    if given and revision and given != revision:
        raise DataError(f"two revisions are asked for: {given} and {revision}", where=source, hint="give one of them")
    return _open_hub(name, given or revision, split)


def _no_choice(source: str, **choices: str | None) -> None:
    for what, value in choices.items():
        if value is not None:
            raise DataError(f"it has no {what} to choose ({value!r})", where=source, hint=f"leave the {what} out")


# Files ----------------------------------------------------------------------------------------------------------------


def file_hash(path: Path) -> str:
    """SHA-256 of a file of rows; where a file with answers to them stands beside it, of the two together."""
    return _digest(path).hexdigest()


def _digest(path: Path) -> hashlib._Hash:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    if answers := _answers_file(path):
        digest.update(answers.read_bytes())
    return digest


def _answers_file(path: Path) -> Path | None:
    answers = path.parent / bfcl.ANSWERS_FOLDER / path.name
    return answers if path.suffix.lower() in _JSON_SUFFIXES and answers.is_file() else None


def _open_file(path: Path, source: str, label: str, counts: Counter[str]) -> Rows:
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        what = f"rows cannot be read from a {path.suffix} file" if path.suffix else "the file's name has no suffix"
        raise DataError(what, where=source, hint=f"give a {_SUFFIXES_TEXT} file")
    try:
        if not path.is_file():  # a device or a pipe may have no end
            raise OSError(EINVAL, "it is no regular file")
        digest = _digest(path)
    except OSError as error:
        hint = "check that it is a readable file of that kind"
        raise DataError(f"cannot be read: {error.strerror or error}", where=source, hint=hint) from None
    if suffix == ".parquet":
        return Rows(source, _columnar_items(_parquet_batches(path, label), label), digest, columnar=True)
    beside = _answers_file(path)
    answers = _text_items(beside, f"{bfcl.ANSWERS_FOLDER}/{label}", counts) if beside else None
    return Rows(source, bfcl.with_answers(_text_items(path, label, counts), path.name, answers), digest)


def _text_items(path: Path, label: str, counts: Counter[str]) -> Items:
    return (_jsonl_items if path.suffix.lower() == ".jsonl" else _json_items)(path, label, counts)


def _jsonl_items(path: Path, label: str, counts: Counter[str]) -> Items:
    """One line at a time, so that only the examples themselves stay in memory."""
    with path.open("rb") as file:
        for number, line in enumerate(_lines(file), start=1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line.strip():
                counts["blank lines skipped"] += 1
                continue
            is_long = len(line) > _LONGEST_LINE
            row = Flaw("", f"a line has at most {_LONGEST_LINE:,} bytes") if is_long else line.rstrip(b"\r\n")
            yield f"{label}:{number}", row


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file, of one that is too long little more than may be in it."""
    while line := file.readline(_LONGEST_LINE + 1):
        rest = line
        while rest and not rest.endswith(b"\n"):
            rest = file.readline(_LONGEST_LINE + 1)
        yield line


def _json_items(path: Path, label: str, counts: Counter[str]) -> Items:
    """The rows of one JSON value, or of one on each line: some publish such lines under this suffix."""
    data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    if not data.strip():
        return
    if _is_lines(data):
        yield from _jsonl_items(path, label, counts)
        return
    try:
        value = decode_json(data)
    except Flaw as flaw:
        hint = "if it has one JSON value on each line, name it .jsonl" if "extra data" in flaw.what else "correct it"
        raise DataError(flaw.what, where=f"{label}:{flaw.line}" if flaw.line else label, hint=hint) from None
    if isinstance(value, dict):
        value = next((value[key] for key in _HOLDERS if key in value), value)
    if not isinstance(value, list):
        hint = 'make it a list of rows, or {"rows": [...]}'
        raise DataError(f"the top level must be a list of rows, not {kind(value)}", where=label, hint=hint)
    yield from ((f"{label}[{index}]", find_flaw(row) or row) for index, row in enumerate(value))


def _is_lines(data: bytes) -> bool:
    """Whether the first line is an object by itself, and not the one that holds all rows."""
    line = data.lstrip().partition(b"\n")[0]
    try:
        first = decode_json(line) if line.startswith(b"{") else None
    except Flaw:
        return False
    return isinstance(first, dict) and not first.keys() & set(_HOLDERS)


# Columnar formats -----------------------------------------------------------------------------------------------------


def _known_columns(names: Iterable[str], where: str) -> list[str]:
    known = [name for name in names if name in COLUMNS]
    if set(known) <= {"id"}:  # which says nothing by itself, and many tables have
        found = ", ".join(map(quote, names)) or "none"
        raise DataError(f"no column is known (found: {found})", where=where, hint=f"name the columns {FORMS_TEXT}")
    return known


def _columnar_items(batches: Iterator[pyarrow.Table], label: str, digest: hashlib._Hash | None = None) -> Items:
    """The rows of Arrow tables; each is added to `digest`, if given, as JSON on a line."""
    index = 0
    try:
        for batch in batches:
            batch.validate(full=True)  # or an offset that lies would be followed, to wherever it points
            for row in batch.to_pylist():
                if digest:
                    digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
                yield f"{label}[{index}]", find_flaw(row) or row
                index += 1
    except DataError:
        raise
    except Exception as error:  # damaged: text that is not UTF-8, a time in no zone, whatever Arrow's types allow
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(f"cannot be read: {why}", where=label, hint="write the file again") from None


def _parquet_batches(path: Path, label: str) -> Iterator[pyarrow.RecordBatch]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as table:
        columns = _known_columns(table.schema_arrow.names, label)
        yield from table.iter_batches(_BATCH_ROWS, columns=columns)


def _open_dataset(dataset: datasets.Dataset, source: str, label: str) -> Rows:
    # The Arrow format skips the decoding of media columns; those that rows do not use are not even read.
    table = dataset.select_columns(_known_columns(dataset.column_names, source)).with_format("arrow")
    digest = hashlib.sha256()
    return Rows(source, _columnar_items(table.iter(_BATCH_ROWS), label, digest), digest, columnar=True)


def _open_splits(splits: datasets.DatasetDict, source: str, label: str, split: str | None) -> Rows:
    names = list(splits)
    wanted = split or ("train" if "train" in names or len(names) != 1 else names[0])
    if wanted not in names:
        what = f"it has no split {wanted!r}" if split else "it has no split 'train' and more than one other"
        raise DataError(what, where=source, hint=f"choose a split: {', '.join(names) or 'there is none'}")
    return _open_dataset(splits[wanted], source, f"{label}[{wanted}]")


def _open_saved(path: Path, source: str, split: str | None) -> Rows:
    import datasets

    if not any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        hint = f"give a folder written by datasets' save_to_disk, or name the {_SUFFIXES_TEXT} file itself"
        raise DataError("the folder does not hold a saved dataset", where=source, hint=hint)
    try:
        _check_saved(path)
        loaded = datasets.load_from_disk(str(path))
    except MismatchError as error:
        raise DataError(error.what, where=error.where, hint="save it again with save_to_disk") from None
    except Exception as error:  # a damaged folder fails in whatever its broken part raises
        what = f"the saved dataset cannot be loaded: {type(error).__name__}: {' '.join(str(error).split())}"
        raise DataError(what, where=source, hint="save it again with save_to_disk") from error
    if isinstance(loaded, dict):
        return _open_splits(loaded, source, path.name, split)
    _no_choice(source, split=split)
    return _open_dataset(loaded, source, path.name)


def _check_saved(path: Path) -> None:
    """Refuse a saved dataset whose parts or files are not its own. Raises `MismatchError`."""
    folders = [path]
    if (path / "dataset_dict.json").is_file():
        parts = reading.read_json(path / "dataset_dict.json", _SAVED, {"splits": [str]})["splits"]
        folders = [reading.check_listed(path, part, _SAVED) for part in parts]
    for folder in folders:
        state = reading.read_json(folder / "state.json", _SAVED, _STATE)
        for file in [*state["_data_files"], *(state.get("_indices_data_files") or ())]:
            reading.check_own(reading.check_listed(folder, file["filename"], _SAVED), _SAVED, sys.maxsize)


# The Hub --------------------------------------------------------------------------------------------------------------


def _open_hub(name: str, revision: str | None, split: str | None) -> Rows:
    """Resolves the commit first, so that what is recorded is what is loaded; without a network, looks in the cache."""
    import datasets
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(name, revision=revision).sha
        HfApi().auth_check(name, repo_type="dataset")  # what is known of a gated dataset is public, its files are not
        loaded = datasets.load_dataset(name, revision=commit)
    except Exception as error:  # no access, no network, or any failure of parsing somebody's files
        failure = hub.access_error(error, name, revision, "dataset")
        if hub.is_unreachable(error):
            return _open_cached(name, revision, split, failure)
        if failure is not error:
            raise failure from None
        why = hub.without_secrets(" ".join(str(error).split()))
        what = f"the dataset cannot be loaded: {type(error).__name__}: {why}"
        raise DataError(what, where=name, hint="download its files and name one of them") from error
    rows = _open_splits(loaded, name, name, split)
    rows.revision = commit
    return rows


def _open_cached(name: str, revision: str | None, split: str | None, failure: Exception) -> Rows:
    """The dataset as it was last loaded on this machine. Raises `failure` where it never was."""
    from datasets.packaged_modules.cache.cache import Cache

    try:  # what `load_dataset` ends up with in such a case, after many attempts to connect
        cached = Cache(repo_id=name, dataset_name=name.split("/")[1], version="auto", hash="auto")
        loaded = cached.as_dataset()
    except Exception:
        raise failure from None
    # The library files what it loads under the commit; a branch's or tag's name is not kept.
    if revision not in (None, cached.hash):
        what = f"there is no network to the Hub, and the copy in the cache is commit {cached.hash}"
        raise AccessError(what, where=f"dataset {name}@{revision}", hint="connect, or ask for that commit")
    rows = _open_splits(loaded, name, name, split)
    rows.revision = cached.hash
    rows.notes.append(f"there was no network to the Hub: read from the cache, commit {cached.hash}")
    return rows
