"""Every failure a user can cause or meet, in one hierarchy.

An error says three things: what went wrong, where (a file and line, a flag, a config key) and what to do next. The
command line prints exactly that and exits with the class's `exit_code`; nothing here is ever shown as a traceback.
"""

from __future__ import annotations

LONGEST = 2000
"""Characters of a sentence or line; a message may quote data, and data may be of any length."""


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


class FitcoachTuneError(Exception):
    """Base of all expected failures.

    Args:
        what: one sentence that says what went wrong.
        where: the file and line, flag or config key that it is about.
        hint: what to do next.
        details: further lines, such as a list of the first few bad rows.
    """

    exit_code = 1
    advice = "To fix it"

    def __init__(
        self, what: str, *, where: str | None = None, hint: str | None = None, details: list[str] | None = None
    ):
        super().__init__(_cut(what))
        self.what = _cut(what)
        self.where = where and _cut(where)
        self.hint = hint and _cut(hint)
        self.details = [_cut(line) for line in details or ()]

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        lines = [head, *(f"  {line}" for line in self.details)]
        if self.hint:
            lines.append(f"{self.advice}: {self.hint}")
        return "\n".join(lines)


class ConfigError(FitcoachTuneError):
    """A flag or a config key is unknown or has a value that cannot be used."""

    exit_code = 2


class DataError(FitcoachTuneError):
    """Rows or tools cannot be read, are invalid, or cannot be carried by the wire format."""

    exit_code = 3


class AccessError(FitcoachTuneError):
    """A model, dataset or adapter is not there or may not be read (login, licence, network)."""

    exit_code = 4


class MismatchError(FitcoachTuneError):
    """Two things that must belong together do not: a set, an adapter, a base model, a tokenizer."""

    exit_code = 5


class OutputError(FitcoachTuneError):
    """An output exists already, or cannot be written."""

    exit_code = 6


class DeviceError(FitcoachTuneError):
    """The asked-for device is not there or cannot do what is asked."""

    exit_code = 7


def out_of_memory(error: BaseException) -> DeviceError | None:
    """The error to show where a device, or the machine, had not enough memory; None if that is not what happened."""
    # torch has a class of its own for devices, and a plain RuntimeError for the processor's memory.
    said = type(error).__name__ in ("MemoryError", "OutOfMemoryError") or "can't allocate memory" in str(error)
    if not said:
        return None
    return DeviceError(
        "there is not enough memory for this",
        details=[str(error).partition("\n")[0]] if str(error) else [],
        hint="take fewer rows at a time (--per-device-train-batch-size, --batch-size), or a smaller --lora-r",
    )


class TrainingError(FitcoachTuneError):
    """Training had to stop: a loss or gradient that is not finite, or a save that does not load back."""

    exit_code = 8


class GateError(FitcoachTuneError):
    """An evaluation was done, and does not reach what was asked of it."""

    exit_code = 9


class StoppedError(FitcoachTuneError):
    """Training was asked to stop, by SIGTERM or Ctrl-C; what it had come to is saved."""

    exit_code = 10
    advice = "To go on"
