"""Answers that were paid for once: kept line by line as they come, and found again by what they depend on."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TextIO

from fitcoach_tune import __version__, files
from fitcoach_tune.errors import OutputError


@dataclass(frozen=True)
class Answer:
    """What a model said to one prompt.

    Attributes:
        raw: its output, special tokens included.
        tokens: of the output, the stop token included.
        stopped: it ended by itself, before the token limit.
        seconds: from the start of its batch to its last token.
        busy: seconds since the answer before it in the same batch, or since the batch's start; they add up to the time
            that the model was at work.
    """

    raw: str
    tokens: int
    stopped: bool
    seconds: float
    busy: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


_FIELDS = {field.name: field.type for field in fields(Answer)}
_KINDS = {"str": str, "int": int, "bool": bool, "float": (int, float)}


def key_of(model: str, prompt: Sequence[int], tools: list[dict], max_new_tokens: int, constrained: bool) -> str:
    """What an answer depends on, as 16 hex digits.

    Args:
        model: hash of the base, the adapter, the dtype and the device.
        prompt: its token ids.
        tools: as they were declared; a constrained answer depends on more of them than the prompt shows.
        max_new_tokens: of the answer.
        constrained: to valid calls.
    """
    parts = [__version__, model, list(prompt), tools if constrained else None, max_new_tokens, constrained]
    return files.sha256_json(parts)[:16]


def read_answers(path: Path) -> dict[str, Answer]:
    """The answers in a file of JSON lines, by key. Lines that are no answers (the last one of a run that was killed may
    be half a line) are passed over; the file need not be there.
    """
    found = {}
    with (
        contextlib.suppress(FileNotFoundError, NotADirectoryError),
        path.open(encoding="utf-8", errors="replace") as lines,
    ):
        for line in lines:
            with contextlib.suppress(ValueError, RecursionError):
                value = json.loads(line)
                if isinstance(value, dict) and _is_answer(value):
                    found[value["key"]] = Answer(**{name: value[name] for name in _FIELDS})
    return found


def _is_answer(value: dict[str, Any]) -> bool:
    return isinstance(value.get("key"), str) and all(
        isinstance(value.get(name), _KINDS[kind]) for name, kind in _FIELDS.items()
    )


class Journal:
    """A file of JSON lines that answers are added to as they come, each flushed at once.

    Raises (on entering and writing):
        OutputError: it cannot be written.
    """

    def __init__(self, path: Path, hint: str):
        self.path, self._hint = path, hint
        self._file: TextIO

    def __enter__(self) -> Journal:
        with self._complaints():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            torn = self.path.is_file() and not _ends_with_newline(self.path)
            self._file = self.path.open("a", encoding="utf-8")
            self._file.write("\n" if torn else "")  # or the first new line would be lost with the torn one
        return self

    def write(self, line: dict[str, Any]) -> None:
        """Add a line."""
        with self._complaints():
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
            self._file.flush()

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._file.close()

    @contextlib.contextmanager
    def _complaints(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            what = f"cannot write: {error.strerror or error}"
            raise OutputError(what, where=str(self.path), hint=self._hint) from None


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(0, 2)
        if not file.tell():
            return True
        file.seek(-1, 2)
        return file.read() == b"\n"
