"""What the benchmarks share: processes that are timed and weighed, and results as JSON or as Markdown.

Nothing heavy is imported here: a process's peak memory, as the system counts it, is at least that of the one that
started it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fitcoach_tune.config import Config
    from fitcoach_tune.training.core import Trainer

PYTHON = sys.executable
_ERROR_LINES = 20


@dataclass(frozen=True)
class Finished:
    """A process that has ended well.

    Attributes:
        output: its stdout.
        seconds: from its start to its end; first_line: to its first line on stdout, None if there was none.
        peak_bytes: the most memory that it (or the largest of its children) had at a time: `ru_maxrss` of getrusage(2).
    """

    output: str
    seconds: float
    first_line: float | None
    peak_bytes: int


def run(command: Sequence[str], *, environment: Mapping[str, str] | None = None, folder: str | None = None) -> Finished:
    """Run a command to its end; if it fails, end this program with the last lines of its stderr.

    Args:
        environment: variables besides the present ones.
    """
    with tempfile.TemporaryFile() as errors:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **(environment or {})}, stdout=subprocess.PIPE, stderr=errors
        )
        with process.stdout:
            line = process.stdout.readline()
            first = time.perf_counter() - started
            output = (line + process.stdout.read()).decode()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            last = errors.read().decode(errors="replace").splitlines()[-_ERROR_LINES:]
            sys.exit("\n".join([f"exit code {process.returncode}: {' '.join(command)}", *last]))
    unit = 1 if sys.platform == "darwin" else 1024
    return Finished(output, seconds, first if line else None, usage.ru_maxrss * unit)


def program(*arguments: str, environment: Mapping[str, str] | None = None, folder: str | None = None) -> Finished:
    """Run a command of fitcoach-tune."""
    return run([PYTHON, "-m", "fitcoach_tune", *arguments], environment=environment, folder=folder)


def child(script: str, task: str, **settings: Any) -> dict[str, Any]:
    """Do a task of `script` in a process of its own; returns its result, with the process's `peak_gb`."""
    done = run([PYTHON, script, "child", task, json.dumps(settings)])
    return json.loads(done.output.splitlines()[-1]) | {"peak_gb": done.peak_bytes / 1e9}


def answered_parent(tasks: Mapping[str, Callable[..., dict[str, Any]]]) -> bool:
    """Whether this process is one that `child` started; its task is then done, and the result printed."""
    if sys.argv[1:2] != ["child"]:
        return False
    print(json.dumps(tasks[sys.argv[2]](**json.loads(sys.argv[3]))))
    return True


def cpu_dtype(asked: str = "auto") -> str:
    """`bf16` or `fp32`: what is asked for, or what this processor multiplies by itself."""
    from fitcoach_tune.backends import make_backend, training_dtype

    return training_dtype(asked, make_backend("cpu"))


def trainer(config: Config, data: str) -> Trainer:
    """The trainer that `fitcoach-tune train` would make for the prepared set in the folder `data`."""
    from fitcoach_tune import models, prepared_set, train
    from fitcoach_tune.backends import make_backend

    prepared = prepared_set.open_set(Path(data))
    base, backend = models.resolve(config.model), make_backend(config.device, None)
    return train.build(train.settle_dtype(config, backend), prepared, base, backend)[0]


# ------------------------------------------------------------------------------------------------ results


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, tuple[str, str]]) -> str:
    """Rows as a Markdown table.

    Args:
        columns: by key, the title and the format; a value that is None becomes a dash.
    """
    texts = [isinstance(rows[0].get(key), str) for key in columns]
    lines = [[title for title, _ in columns.values()], ["---" if text else "---:" for text in texts]]
    for row in rows:
        cells = [(row.get(key), form) for key, (_, form) in columns.items()]
        lines.append(["–" if value is None else form.format(value) for value, form in cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def show(found: Mapping[str, Any], as_json: bool) -> None:
    """Print a benchmark's result.

    It has a `title`; `rows`, the measurements; `table`, the same in Markdown; and where they belong `ratios` (how many
    times as fast as what it is compared with, by name), `shares` (of 1, by name) and `notes` (sentences).
    """
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    print(as_markdown(found))


def as_markdown(found: Mapping[str, Any]) -> str:
    """The table of a result, and under it its ratios, shares and notes."""
    lines = [f"- {name}: {value:.2f}×" for name, value in found.get("ratios", {}).items()]
    lines += [f"- {name}: {100 * value:.0f} %" for name, value in found.get("shares", {}).items()]
    lines += [f"- {note}" for note in found.get("notes", [])]
    return "\n".join([found["table"], "", *lines]).strip()
