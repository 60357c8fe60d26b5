"""Rows from anywhere, as `Example`s: the built-in set, JSON and Parquet files, saved datasets, the Hub.

Three row forms are understood (conversations in `messages`; the flat `system, user, assistant, tools`; and
`user_query, function_call`), each cell as a value or as its JSON text. Every complaint names the file and line, the
field, and what to do; all rows are read before anything is raised.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from fitcoach_tune import functiongemma
from fitcoach_tune.errors import AccessError, DataError
from fitcoach_tune.functiongemma import Call
from fitcoach_tune.tools import (
    BUILTIN,
    CallChecker,
    JSONFlaw,
    RowError,
    ToolCache,
    decode_json,
    decode_utf8,
    decoded,
    drop_nulls,
    find_flaw,
    is_phantom,
    kind,
    local_path,
    parse_json,
    quote,
    read_tools,
    shorten,
    undo_columnar,
)

__all__ = ["Example", "Source", "read_examples", "read_tools", "validate"]

_COLUMNS = ("messages", "tools", "system", "user", "assistant", "user_query", "function_call")
_FORMS_TEXT = "'messages', or 'user' and 'assistant', or 'user_query' and 'function_call'"
_LISTED = 10
_BATCH_ROWS = 256
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Example:
    """One conversation that ends in what the model should say.

    Attributes:
        messages: `{"role": "developer" | "user" | "assistant" | "tool", "content": str}`; an assistant message may have
            `tool_calls`, a list of `{"type": "function", "function": {"name": str, "arguments": dict}}`; a tool
            message has `name`, and its content may be a dict.
        tools: what may be called; the same list object for all rows whose tools are equal.
        origin: where it came from: `rows.jsonl:12` (line), `rows.json[11]` or `user/set[train][11]` (index from 0).
    """

    messages: list[dict]
    tools: list[dict]
    origin: str

    @property
    def gold(self) -> list[Call]:
        """The calls of the last assistant message; empty where it answers in text."""
        last = next(message for message in reversed(self.messages) if message["role"] == "assistant")
        return [Call(**call["function"]) for call in last.get("tool_calls", [])]

    @property
    def query(self) -> str:
        """The text of the last user message."""
        return next(message["content"] for message in reversed(self.messages) if message["role"] == "user")


@dataclass(frozen=True)
class Source:
    """What was read, for manifests.

    Attributes:
        name: the source as it was given, without its revision.
        revision: the commit of a Hub dataset, else None.
        sha256: hash of a file's bytes; of a saved or Hub dataset's rows, each as JSON on a line.
        rows: the number of examples.
        notes: what was skipped or repaired, one sentence each.
    """

    name: str
    revision: str | None
    sha256: str
    rows: int
    notes: list[str] = field(default_factory=list)


@dataclass
class _Problems:
    """Collects what is wrong with rows: the first ten in row order, and a count of all."""

    count: int = 0
    first: list[tuple[int, str]] = field(default_factory=list)

    def add(self, index: int, origin: str, problem_field: str, what: str) -> None:
        self.count += 1
        if len(self.first) < _LISTED:
            place = f"{origin}: {problem_field}" if problem_field else origin
            self.first.append((index, f"{place}: {what}"))

    def merge(self, other: _Problems) -> None:
        self.count += other.count
        self.first = sorted([*self.first, *other.first], key=lambda entry: entry[0])[:_LISTED]

    def raise_if_any(self, rows: int, where: str | None = None) -> None:
        if not self.count:
            return
        lines = [line for _, line in self.first]
        if self.count > len(lines):
            lines.append(f"… and {self.count - len(lines)} more")
        what = f"{self.count} problem{'s' if self.count > 1 else ''} in {rows} row{'s' if rows != 1 else ''}"
        raise DataError(what, where=where, details=lines, hint="correct these rows and run again")


def read_examples(
    source: str, *, tools: list[dict] | None = None, revision: str | None = None, split: str | None = None
) -> tuple[list[Example], Source]:
    """Reads all rows of `source`.

    Args:
        source: `builtin:fitness`; the path of a .jsonl, .json or .parquet file; a folder that
            `datasets.save_to_disk` wrote; or a Hub dataset, `user/name` or `user/name@revision`.
        tools: for rows that have none of their own.
        revision: of a Hub dataset.
        split: of a saved or Hub dataset with several; `train`, or the only one, if not given.

    Raises:
        DataError: the source cannot be read or some rows cannot be used. It then also lists what `validate` finds.
        AccessError: a Hub dataset is not there, may not be read, or cannot be reached.
    """
    if tools is None and source == BUILTIN:
        tools = read_tools(BUILTIN)
    counts: Counter[str] = Counter()
    rows = _open(source, revision, split, counts)
    cache = ToolCache(counts)
    try:
        shared = None if tools is None else cache.get(tools, columnar=False)
    except RowError as error:
        raise DataError(str(error), where="the given tools", hint="correct the tool and run again") from None

    examples: list[Example] = []
    positions: list[int] = []
    problems = _Problems()
    total = 0
    for index, (origin, row) in enumerate(rows.items):
        total += 1
        try:
            examples.append(_example(row, origin, rows.columnar, shared, cache, counts))
            positions.append(index)
        except RowError as error:
            if not error.repeated:
                problems.add(index, origin, error.field, error.what)
        except RecursionError:
            problems.add(index, origin, "", "nested too deeply; flatten it")
    if problems.count:
        problems.merge(_check(examples, positions))
        problems.raise_if_any(total, where=source)
    if not examples:
        raise DataError("there are no rows in it", where=source, hint="give at least one row")
    notes = [*(f"{what}: {count}" for what, count in counts.items() if count), *cache.not_shown]
    return examples, Source(rows.name, rows.revision, rows.digest.hexdigest(), total, notes)


def validate(examples: list[Example]) -> None:
    """Checks that every example's tools and calls are sound and can be carried by the wire format.

    Raises:
        DataError: lists the first ten problems, each as `file:line: field: what`, and counts the rest.
    """
    _check(examples, range(len(examples))).raise_if_any(len(examples))


def _check(examples: list[Example], positions: Iterable[int]) -> _Problems:
    problems, checker = _Problems(), CallChecker()
    for index, example in zip(positions, examples, strict=True):
        try:
            for problem_field, what in _example_problems(example, checker):
                problems.add(index, example.origin, problem_field, what)
        except RecursionError:
            problems.add(index, example.origin, "", "nested too deeply; flatten it")
    return problems


def _example_problems(example: Example, checker: CallChecker) -> Iterator[tuple[str, str]]:
    yield from checker.tool_problems(example.tools)
    for place, message in enumerate(example.messages):
        spot, content = f"messages[{place}]", message["content"]
        if isinstance(content, dict):
            # The format writes a result as it writes arguments, so the same values are out of its reach.
            for problem in functiongemma.call_problems(Call(message["name"], content)):
                yield f"{spot}.content", problem.removeprefix("arguments.")
        elif token := functiongemma.find_control_token(content):
            yield f"{spot}.content", f"the {message['role']} text contains the control token {token}; remove it"
        for number, call in enumerate(message.get("tool_calls", [])):
            function = call["function"]
            for path, what in checker.call_problems(function["name"], function["arguments"], example.tools):
                yield f"{spot}.tool_calls[{number}].{path}", what


# Containers -----------------------------------------------------------------------------------------------------------


@dataclass
class _Rows:
    """An opened source: `items` yields (origin, row); a row that could not be parsed is its `RowError`."""

    name: str
    items: Iterator[tuple[str, object]]
    digest: hashlib._Hash
    columnar: bool = False
    revision: str | None = None


def _open(source: str, revision: str | None, split: str | None, counts: Counter[str]) -> _Rows:
    """Tells a source's kind from its name and what is on disk. Raises `DataError`, `AccessError`."""
    if source == BUILTIN:
        from fitcoach_tune import fitness

        _no_choice(source, revision, split)
        return _open_file(Path(fitness.rows_path()), source, BUILTIN, counts)
    path, exists = local_path(source)
    if exists or path.suffix.lower() in _SUFFIXES or source.startswith(("./", "../", "/", "~")):
        if not exists:
            raise DataError("there is no such file or folder", where=source, hint="check the path of the rows")
        if path.is_dir():
            if revision is not None:
                _no_choice(source, revision, None)
            return _open_saved(path, source, split)
        _no_choice(source, revision, split)
        return _open_file(path, source, path.name, counts)
    name, _, given = source.partition("@")
    if not _HUB_ID.fullmatch(name):
        hint = f"give {BUILTIN}, a {_listed(_SUFFIXES)} file, a saved dataset's folder, or a Hub id like user/name"
        raise DataError(f"cannot tell what rows {quote(source)} means", hint=hint)
    if given and revision and given != revision:
        raise DataError(f"two revisions are asked for: {given} and {revision}", where=source, hint="give one of them")
    return _open_hub(name, given or revision, split)


def _no_choice(source: str, revision: str | None, split: str | None) -> None:
    for what, value in (("revision", revision), ("split", split)):
        if value is not None:
            raise DataError(f"it has no {what} to choose ({value!r})", where=source, hint=f"leave the {what} out")


_SUFFIXES = (".jsonl", ".json", ".parquet")


def _listed(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last


def _open_file(path: Path, source: str, label: str, counts: Counter[str]) -> _Rows:
    digest = hashlib.sha256()
    readers = {".jsonl": _jsonl_rows, ".json": _json_rows, ".parquet": _parquet_rows}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        what = f"rows cannot be read from a {path.suffix} file" if path.suffix else "the file's name has no suffix"
        raise DataError(what, where=source, hint=f"give a {_listed(_SUFFIXES)} file")
    items = _unreadable_is_data_error(reader(path, label, digest, counts), source)
    return _Rows(source, items, digest, columnar=reader is _parquet_rows)


def _unreadable_is_data_error(items: Iterator[tuple[str, object]], source: str) -> Iterator[tuple[str, object]]:
    try:
        yield from items
    except OSError as error:
        hint = "check that it is a readable file of that kind"
        raise DataError(f"cannot be read: {error.strerror or error}", where=source, hint=hint) from None


def _jsonl_rows(path: Path, label: str, digest: hashlib._Hash, counts: Counter[str]) -> Iterator[tuple[str, object]]:
    """One line at a time, so that only the examples themselves stay in memory."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            digest.update(line)
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line.strip():
                counts["blank lines skipped"] += 1
                continue
            yield f"{label}:{number}", _parsed_line(line.rstrip(b"\r\n"))


def _parsed_line(line: bytes) -> object:
    try:
        return parse_json(decode_utf8(line))
    except JSONFlaw as flaw:
        return RowError(flaw.path, flaw.what)


def _json_rows(path: Path, label: str, digest: hashlib._Hash, counts: Counter[str]) -> Iterator[tuple[str, object]]:
    data = path.read_bytes()
    digest.update(data)
    data = data.removeprefix(codecs.BOM_UTF8)
    if not data.strip():
        return
    try:
        value = decode_json(decode_utf8(data))
    except JSONFlaw as flaw:
        hint = "if it has one JSON value on each line, name it .jsonl" if "extra data" in flaw.what else "correct it"
        raise DataError(flaw.what, where=f"{label}:{flaw.line}" if flaw.is_syntax else label, hint=hint) from None
    if isinstance(value, dict):
        value = next((value[key] for key in ("rows", "data") if key in value), value)
    if not isinstance(value, list):
        found = kind(value)
        hint = 'make it a list of rows, or {"rows": [...]}'
        raise DataError(f"the top level must be a list of rows, not {found}", where=label, hint=hint)
    for index, row in enumerate(value):
        flaw = find_flaw(row)
        yield f"{label}[{index}]", RowError(*flaw) if flaw else row


def _parquet_rows(path: Path, label: str, digest: hashlib._Hash, counts: Counter[str]) -> Iterator[tuple[str, object]]:
    from pyarrow import parquet

    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
        file.seek(0)

        def batches() -> Iterator[list[dict]]:
            table = parquet.ParquetFile(file)
            columns = _known_columns(table.schema_arrow.names, label)
            yield from (batch.to_pylist() for batch in table.iter_batches(_BATCH_ROWS, columns=columns))

        yield from _columnar_rows(batches(), label)


def _known_columns(names: Iterable[str], where: str) -> list[str]:
    known = [name for name in names if name in _COLUMNS]
    if not known:
        found = ", ".join(map(quote, names)) or "none"
        raise DataError(f"no column is known (found: {found})", where=where, hint=f"name the columns {_FORMS_TEXT}")
    return known


def _columnar_rows(batches: Iterator[list[dict]], label: str) -> Iterator[tuple[str, object]]:
    from pyarrow import ArrowException

    index = 0
    while True:
        try:
            batch = next(batches, None)
        except (ArrowException, ValueError) as error:  # a damaged file; ValueError: text in it that is not UTF-8
            hint = "write the file again"
            raise DataError(f"cannot be read: {error}", where=label, hint=hint) from None
        if batch is None:
            return
        for row in batch:
            flaw = find_flaw(row)
            yield f"{label}[{index}]", RowError(*flaw) if flaw else row
            index += 1


def _open_saved(path: Path, source: str, split: str | None) -> _Rows:
    import datasets

    if not any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        hint = f"give a folder written by datasets' save_to_disk, or name the {_listed(_SUFFIXES)} file itself"
        raise DataError("the folder does not hold a saved dataset", where=source, hint=hint)
    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # a damaged folder fails in whatever its broken part raises
        what = f"the saved dataset cannot be loaded: {type(error).__name__}: {error}"
        raise DataError(what, where=source, hint="save it again with save_to_disk") from error
    if isinstance(loaded, dict):
        return _open_splits(loaded, source, path.name, split)
    _no_choice(source, None, split)
    return _open_dataset(loaded, source, path.name)


def _open_splits(splits: dict, source: str, label: str, split: str | None) -> _Rows:
    names = list(splits)
    wanted = split or ("train" if "train" in names or len(names) != 1 else names[0])
    if wanted not in names:
        what = f"it has no split {wanted!r}" if split else "it has no split 'train' and more than one other"
        raise DataError(what, where=source, hint=f"choose a split: {', '.join(names) or 'there is none'}")
    return _open_dataset(splits[wanted], source, f"{label}[{wanted}]")


def _open_dataset(dataset: object, source: str, label: str) -> _Rows:
    digest = hashlib.sha256()
    # The Arrow format skips the decoding of media columns; those that rows do not use are not even read.
    table = dataset.select_columns(_known_columns(dataset.column_names, source)).with_format("arrow")

    def batches() -> Iterator[list[dict]]:
        for batch in table.iter(_BATCH_ROWS):
            rows = batch.to_pylist()
            for row in rows:
                digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
            yield rows

    return _Rows(source, _columnar_rows(batches(), label), digest, columnar=True)


def _open_hub(name: str, revision: str | None, split: str | None) -> _Rows:
    """Resolves the commit first, so that what is recorded is what is loaded. Raises `AccessError`, `DataError`."""
    import datasets
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        commit = api.dataset_info(name, revision=revision).sha
        api.auth_check(name, repo_type="dataset")  # the information about a gated dataset is public, its files are not
    except Exception as error:  # told apart below; what is left is some failure of the network
        raise _access_error(name, revision, error) from error
    try:
        loaded = datasets.load_dataset(name, revision=commit)
    except Exception as error:  # network, or any failure of parsing somebody's files
        if access := _access_error(name, revision, error, only_known=True):
            raise access from error
        what = f"the dataset cannot be loaded: {type(error).__name__}: {error}"
        raise DataError(what, where=name, hint="download its files and name one of them") from error
    rows = _open_splits(loaded, name, name, split)
    rows.revision = commit
    return rows


def _access_error(
    name: str, revision: str | None, error: BaseException, only_known: bool = False
) -> AccessError | None:
    """What a failed request means for the user; None with `only_known` where it is no failure of access."""
    from huggingface_hub import errors

    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__

    def first(*types: type) -> BaseException | None:
        return next((link for link in chain if isinstance(link, types)), None)

    page = f"https://huggingface.co/datasets/{name}"
    if gated := first(errors.GatedRepoError):
        if gated.response.status_code == 401:
            hint = f"log in with `hf auth login` (or set HF_TOKEN) and accept the terms at {page}"
            return AccessError("the dataset is gated and you are not logged in", where=name, hint=hint)
        hint = f"accept the terms at {page}, then run again"
        return AccessError("the dataset is gated and your account has not been let in", where=name, hint=hint)
    refused = first(errors.HfHubHTTPError)
    # Without a login the Hub answers 401 for what does not exist, too; only a bad login is called by its name.
    is_unauthorised = getattr(refused, "response", None) is not None and refused.response.status_code == 401
    if first(errors.RepositoryNotFoundError) or (is_unauthorised and "Invalid credentials" not in str(refused)):
        hint = f"check the name at {page}; if it is private, log in with `hf auth login` (or set HF_TOKEN)"
        return AccessError("there is no such dataset on the Hub, or it is private", where=name, hint=hint)
    if first(errors.RevisionNotFoundError):
        return AccessError(f"the dataset has no revision {revision!r}", where=name, hint=f"see {page}/commits/main")
    if refused:
        hint = f"try again later, and see {page}; check your login with `hf auth whoami`; {_NO_NETWORK}"
        return AccessError(f"the Hub refused: {str(refused).strip().splitlines()[0]}", where=name, hint=hint)
    if first(errors.HFValidationError):
        return AccessError("this is not a dataset id of the Hub", where=name, hint="give user/name")
    if only_known and not first(ConnectionError, TimeoutError):
        return None
    what = f"the Hub could not be reached ({type(chain[0]).__name__}: {chain[0]})"
    return AccessError(what, where=name, hint=f"check the network connection; {_NO_NETWORK}")


_NO_NETWORK = f"--dataset {BUILTIN} needs no network"


# Row forms ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Context:
    """What the parts of a row need to know: the row's tools, and whether nulls in it may be Arrow's."""

    tools: list[dict]
    columnar: bool
    counts: Counter[str]

    def schema(self, name: str) -> object:
        named = (tool["function"] for tool in self.tools if tool["function"]["name"] == name)
        return next((function.get("parameters") for function in named), None)

    def parsed(self) -> _Context:
        """For a cell that was JSON text: its nulls are its author's."""
        return replace(self, columnar=False)


def _example(
    row: object, origin: str, columnar: bool, shared: list[dict] | None, cache: ToolCache, counts: Counter[str]
) -> Example:
    """One row of any form as an `Example`. Raises `RowError`."""
    if isinstance(row, RowError):
        raise row
    if not isinstance(row, dict):
        raise RowError("", f"a row must be an object, not {kind(row)}")
    present = {key for key in _COLUMNS if row.get(key) is not None}
    form = next((form for form in _FORMS if form <= present), None)
    if form is None:
        found = shorten(", ".join(map(quote, row)), 200) or "nothing"
        raise RowError("", f"a row needs {_FORMS_TEXT}; it has {found}")
    tools = cache.get(row["tools"], columnar=columnar) if "tools" in present else shared
    if tools is None:
        raise RowError("tools", "the row has none, and none were given with --tools")
    context = _Context(tools, columnar, counts)
    return Example(_FORMS[form](row, context), tools, origin)


def _from_messages(row: dict, context: _Context) -> list[dict]:
    cell = row["messages"]
    if isinstance(cell, str):
        cell, context = decoded(cell, "messages"), context.parsed()
    if not isinstance(cell, list) or not cell:
        raise RowError("messages", f"must be a list of messages, not {kind(cell)}" if cell != [] else "is empty")
    messages: list[dict] = []
    due: list[tuple[object, str]] = []  # (id, function) of the calls that still wait for their results
    for index, raw in enumerate(cell):
        spot = f"messages[{index}]"
        message = _message(raw, spot, context, due)
        _check_order(message, messages, spot, due)
        if message["role"] == "assistant":
            ids = [call.pop("id") for call in message.get("tool_calls", [])]
            due = [(ids[n], call["function"]["name"]) for n, call in enumerate(message.get("tool_calls", []))]
        messages.append(message)
    if messages[-1]["role"] != "assistant":
        raise RowError(f"messages[{len(messages) - 1}]", "the last message must be the assistant's, to be learnt")
    return messages


def _from_flat(row: dict, context: _Context) -> list[dict]:
    system = row.get("system")
    messages = [] if system is None else [{"role": "developer", "content": _text(system, "system")}]
    user = {"role": "user", "content": _filled(_text(row["user"], "user"), "user")}
    return [*(message for message in messages if message["content"].strip()), user, _flat_answer(row, context)]


def _from_query(row: dict, context: _Context) -> list[dict]:
    query = _filled(_text(row["user_query"], "user_query"), "user_query")
    return [
        {"role": "developer", "content": functiongemma.TRIGGER},
        {"role": "user", "content": query},
        _call_answer(row["function_call"], context),
    ]


_FORMS = {
    frozenset({"messages"}): _from_messages,
    frozenset({"user", "assistant"}): _from_flat,
    frozenset({"user_query", "function_call"}): _from_query,
}


def _flat_answer(row: dict, context: _Context) -> dict:
    """The `assistant` cell of a flat row: calls where it is plainly calls, else text."""
    cell, spot = row["assistant"], "assistant"
    if not isinstance(cell, str):
        return _answer(cell, spot, context)
    if functiongemma.START_FUNCTION_CALL in cell:
        return _wire_answer(cell, spot)
    if cell.lstrip().startswith(("{", "[")):
        try:
            value = parse_json(cell)
        except JSONFlaw as flaw:
            if not flaw.is_syntax:
                raise RowError(spot, str(flaw)) from None
            value = None
        if _is_call(value):
            return _answer(value, spot, context.parsed())
    return {"role": "assistant", "content": _filled(cell, spot)}


def _is_call(value: object) -> bool:
    """Whether a JSON value that might also be an answer in text can only be a call, or several."""
    if isinstance(value, list):
        return bool(value) and all(map(_is_call, value))
    if not isinstance(value, dict):
        return False
    if isinstance(value.get("tool_calls"), list):
        return _is_call(value["tool_calls"])
    function = value.get("function", value)
    return isinstance(function, dict) and "name" in function and ("arguments" in function or function is not value)


def _call_answer(cell: object, context: _Context) -> dict:
    """The `function_call` cell: JSON, the wire format, or the bare name of a function without arguments."""
    spot = "function_call"
    if not isinstance(cell, str):
        return _answer(cell, spot, context)
    if functiongemma.START_FUNCTION_CALL in cell:
        return _wire_answer(cell, spot)
    if cell.lstrip().startswith(("{", "[")):
        return _answer(decoded(cell, spot), spot, context.parsed())
    if not _NAME.fullmatch(cell.strip()):
        hint = '{"name": …, "arguments": {…}}, the name alone, or the wire format'
        raise RowError(spot, f"{quote(cell)} is not a call that can be read; write {hint}")
    return _assistant("", [_call({"name": cell.strip()}, spot, context)])


def _answer(value: object, spot: str, context: _Context) -> dict:
    """Calls as a value: one, a list of them, or an object with `tool_calls`."""
    text = ""
    if isinstance(value, dict) and "tool_calls" in value:
        text = "" if value.get("content") is None else _text(value["content"], f"{spot}.content")
        value, spot = value["tool_calls"], f"{spot}.tool_calls"
    if isinstance(value, dict):
        return _assistant(text, [_call(value, spot, context)])
    if not isinstance(value, list) or not value:
        raise RowError(spot, "must be a call or a list of calls" + (", not an empty list" if value == [] else ""))
    return _assistant(text, [_call(call, f"{spot}[{index}]", context) for index, call in enumerate(value)])


def _assistant(text: str, calls: list[dict]) -> dict:
    for call in calls:
        call.pop("id")
    return {"role": "assistant", "content": text, "tool_calls": calls}


def _wire_answer(text: str, spot: str) -> dict:
    """An answer as the model writes it. What `parse` drops from model output is an error in data."""
    body, stop, rest = text, "", ""
    if found := _STOP.search(text):
        body, stop, rest = text[: found.start()], found.group(), text[found.end() :]
    if _STOP.sub("", rest).strip():
        raise RowError(spot, f"there is text after {stop}, where the model stops; remove it")
    for token in functiongemma.CONTROL_TOKENS:
        if token in body and token not in _WIRE_TOKENS:
            raise RowError(spot, f"contains the control token {token} outside its place; remove it")
    try:
        output = functiongemma.parse(body)
    except functiongemma.ParseError as error:
        raise RowError(spot, f"is not in the wire format: {error}") from None
    calls = [
        {"type": "function", "function": {"name": call.name, "arguments": call.arguments}} for call in output.calls
    ]
    return {"role": "assistant", "content": output.text, "tool_calls": calls}


# Messages -------------------------------------------------------------------------------------------------------------


def _message(raw: object, spot: str, context: _Context, due: list[tuple[object, str]]) -> dict:
    """One message in the common form; its calls still have their `id`."""
    if not isinstance(raw, dict):
        raise RowError(spot, f"a message must be an object, not {kind(raw)}")
    given = raw.get("role")
    role = _ROLES.get(given) if isinstance(given, str) else None
    if role is None:
        shown = quote(given) if isinstance(given, str) else kind(given)
        raise RowError(f"{spot}.role", f"{shown} is not a role; use developer, system, user, assistant or tool")
    content, calls = raw.get("content"), _message_calls(raw, spot, context)
    if calls and role != "assistant":
        raise RowError(f"{spot}.tool_calls", f"only the assistant calls functions, not the {given}")
    if role == "tool":
        return _result(raw, spot, context, due)
    text = "" if content is None and role == "assistant" else _text(content, f"{spot}.content")
    if calls:
        return {"role": role, "content": text, "tool_calls": calls}
    return {"role": role, "content": _filled(text, f"{spot}.content")}


def _message_calls(raw: dict, spot: str, context: _Context) -> list[dict]:
    """The calls of a message: `tool_calls`, or the single `function_call` of OpenAI's first interface."""
    name = "tool_calls" if raw.get("tool_calls") is not None else "function_call"
    value = raw.get(name)
    if isinstance(value, str):
        value, context = decoded(value, f"{spot}.{name}"), context.parsed()
    if value is None or (context.columnar and is_phantom(value)):
        return []
    if name == "function_call":
        return [_call(value, f"{spot}.{name}", context)]
    if not isinstance(value, list):
        raise RowError(f"{spot}.{name}", f"must be a list of calls, not {kind(value)}")
    return [_call(call, f"{spot}.{name}[{index}]", context) for index, call in enumerate(value)]


def _call(raw: object, spot: str, context: _Context) -> dict:
    """One call, OpenAI-style or flat, in the common form, with its `id` (None if it has none)."""
    function = raw if not isinstance(raw, dict) or raw.get("function") is None else raw["function"]
    if not isinstance(function, dict):
        raise RowError(spot, f'a call must be {{"name": …, "arguments": {{…}}}}, not {kind(function)}')
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise RowError(f"{spot}.name", "a call needs the name of its function")
    if "arguments" not in function and (misnamed := {"parameters", "args", "input"} & function.keys()):
        raise RowError(f"{spot}.{min(misnamed)}", "rename it to 'arguments'")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = decoded(arguments, f"{spot}.arguments") if arguments.strip() else {}
    elif context.columnar and arguments is None:
        arguments = {}
    elif context.columnar and isinstance(arguments, dict):
        arguments = undo_columnar(arguments, context.schema(name), context.counts)
    if not isinstance(arguments, dict):
        raise RowError(f"{spot}.arguments", f"must be an object ({{}} for none), not {kind(arguments)}")
    return {"type": "function", "function": {"name": name, "arguments": arguments}, "id": raw.get("id")}


def _result(raw: dict, spot: str, context: _Context, due: list[tuple[object, str]]) -> dict:
    """A tool message, with the name of the call it answers: by its name, its `tool_call_id`, or the order."""
    if not due:
        raise RowError(spot, "the tool message answers no call; put it after the assistant's call")
    name, call_id = raw.get("name"), raw.get("tool_call_id")
    if call_id is not None and any(call_id == known for known, _ in due):
        answered = next(index for index, (known, _) in enumerate(due) if known == call_id)
    elif name is not None:
        answered = next((index for index, (_, called) in enumerate(due) if called == name), 0)
    else:
        answered = 0
    _, called = due.pop(answered)
    if name is not None and name != called:
        shown = quote(name) if isinstance(name, str) else kind(name)
        raise RowError(f"{spot}.name", f"{shown} was not called here; the call that waits is to {quote(called)}")
    content = raw.get("content")
    if isinstance(content, dict):
        content = drop_nulls(content)[0] if context.columnar else content
    else:
        content = _text(content, f"{spot}.content", "text or an object")
    return {"role": "tool", "name": called, "content": content}


def _check_order(message: dict, earlier: list[dict], spot: str, due: list[tuple[object, str]]) -> None:
    """Raises `RowError` where a message cannot follow the `earlier` ones in the model's format."""
    role, previous = message["role"], earlier[-1]["role"] if earlier else None
    if role == "tool":
        return
    if due:
        raise RowError(spot, f"the call to {quote(due[0][1])} has no result before this {role} message; add it")
    if role == "developer" and earlier:
        raise RowError(spot, "a developer or system message can only be the first")
    if role == "user" and previous not in (None, "developer", "assistant"):
        after = (
            "another user message; join the two" if previous == "user" else "a tool result; let the assistant answer"
        )
        raise RowError(spot, f"a user message follows {after}")
    if role == "assistant" and previous not in ("user", "tool"):
        raise RowError(spot, "an assistant message must follow a user message or a tool result")


def _text(value: object, spot: str, wanted: str = "text") -> str:
    """Text as a string or as OpenAI-style text parts."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(part, dict) for part in value):
        texts = [part.get("text") if part.get("type") == "text" else None for part in value]
        if texts and all(isinstance(text, str) for text in texts):
            return "".join(texts)
        wanted = f"{wanted} (the model reads nothing else)"
    raise RowError(spot, f"must be {wanted}, not {kind(value)}")


def _filled(text: str, spot: str) -> str:
    if not text.strip():
        raise RowError(spot, "is empty")
    return text


_ROLES = {"developer": "developer", "system": "developer", "user": "user", "tool": "tool"}
_ROLES |= dict.fromkeys(("assistant", "model"), "assistant")
_NAME = re.compile(r"[A-Za-z_][\w.-]*")
_STOP = re.compile("|".join(map(re.escape, functiongemma.STOP_TOKENS)))
_WIRE_TOKENS = (functiongemma.START_FUNCTION_CALL, functiongemma.END_FUNCTION_CALL, functiongemma.ESCAPE)
