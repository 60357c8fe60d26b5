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
from fitcoach_tune.strict_json import Flaw, misfit, parse_json


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


_FIELDS = {field.name: {"str": str, "int": int, "bool": bool, "float": float}[field.type] for field in fields(Answer)}
_FORM = {"key": str, **_FIELDS}
_CONSTRAINING = 3
"""What a constraint makes of the same logits: another number, other answers."""
_LONGEST_LINE, _SMALLEST, _LARGEST = 1 << 26, 1e-9, 1e9


def key_of(
    model: str, prompt: Sequence[int], tools: list[dict], max_new_tokens: int, constrained: bool, batch_size: int
) -> str:
    """What an answer depends on, as 16 hex digits.

    Args:
        model: hash of the base, the adapter, the dtype and the device.
        prompt: its token ids.
        tools: as they were declared; a constrained answer depends on more of them than the prompt shows.
        max_new_tokens: of the answer.
        constrained: to valid calls.
        batch_size: prompts at a time, on which the seconds to an answer depend.
    """
    how = constrained and _CONSTRAINING
    parts = [__version__, model, list(prompt), tools if constrained else None, max_new_tokens, how, batch_size]
    return files.sha256_json(parts)[:16]


def read_answers(path: Path) -> dict[str, Answer]:
    """The answers in a file of JSON lines, by key. Lines that are no answers (the last one of a run that was killed may
    be half a line) are passed over; the file need not be there.
    """
    found = {}
    if not path.is_file():
        return found
    with contextlib.suppress(OSError), path.open("rb") as file:
        while line := file.readline(_LONGEST_LINE):
            with contextlib.suppress(Flaw):
                value = parse_json(line)
                if misfit(value, _FORM) is None and _is_possible(value):
                    found[value["key"]] = Answer(**{name: value[name] for name in _FIELDS})
    return found


def _is_possible(value: dict[str, Any]) -> bool:
    numbers = [value[name] for name, form in _FIELDS.items() if form in (int, float)]
    return all(number == 0 or _SMALLEST <= number <= _LARGEST for number in numbers)


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
