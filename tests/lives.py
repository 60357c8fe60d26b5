"""Runs of the program that can be killed at any moment, many for the price of one import.

A server process imports what the program needs and forks a child for each run. A child is a process of its own, which
meets signals, locks and full disks as any other does; it only does not import torch again.

    python -m tests.lives      # reads commands from stdin, a JSON object a line, and answers each with one
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.powers import without_powers

ROOT = Path(__file__).parents[1]
PATIENCE = 300  # seconds, after which a test that waits for a run gives up


@dataclass(frozen=True)
class At:
    """A fault in the midst of a run: what happens when Python announces some action for the n-th time.

    Attributes:
        event: the name of the audit event (https://docs.python.org/3/library/audit_events.html).
        text: what its arguments contain.
        counts: which times, from 1.
        signal: what the process sends to itself.
        fill: a folder whose disk is filled to the last byte.
    """

    event: str
    text: str
    counts: tuple[int, ...]
    signal: str | None = None
    fill: str | None = None


SAVING = "tempfile.mkdtemp", ".step-"  # a checkpoint begins to be written


class Life:
    """A run: its process, and what it prints."""

    def __init__(self, server: Lives, pid: int, out: Path, err: Path):
        self.server, self.pid, self._out, self._err = server, pid, out, err

    def wait(self) -> int:
        """Its exit code when it ends; the negative signal that ended it."""
        return self.server.ask(wait=self.pid)["code"]

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def send(self, name: str) -> None:
        """Send a signal; after SIGCONT it is `running` until it stops anew."""
        os.kill(self.pid, signal.Signals[name])

    def until(self, condition: Callable[[], Any]) -> None:
        """Wait for something that the run is about to do."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert self.state != "ended", self.err
            assert time.monotonic() < deadline, self.err
            time.sleep(0.01)

    @property
    def state(self) -> str:
        """`running`, `stopped` by SIGSTOP, or `ended`."""
        return self.server.ask(look=self.pid)["state"]


class Lives:
    """The server, from the side of the tests; a context manager."""

    def __enter__(self) -> Lives:
        self._server = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "tests.lives"],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._count = 0
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()

    def ask(self, **command: Any) -> dict[str, Any]:
        self._server.stdin.write(json.dumps(command) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def start(self, *arguments: Any, cwd: Path, at: At | None = None, **environment: str) -> Life:
        """Start `fitcoach-tune ARGUMENTS` in a folder."""
        self._count += 1
        out, err = (cwd / f".said-{self._count}.{name}" for name in ("out", "err"))
        run = {
            "arguments": [str(argument) for argument in arguments],
            "cwd": str(cwd),
            "out": str(out),
            "err": str(err),
            "at": at and vars(at),
            "environment": environment,
        }
        return Life(self, self.ask(run=run)["pid"], out, err)

    def run(self, *arguments: Any, cwd: Path, code: int = 0, at: At | None = None) -> Life:
        """Start it and wait for its end, which has to be this exit code."""
        life = self.start(*arguments, cwd=cwd, at=at)
        assert (found := life.wait()) == code, f"exit code {found}\n{life.out}\n{life.err}"
        return life


# ------------------------------------------------------------------------------------------------ the server


def arm(at: At) -> None:
    seen = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal seen
        if event != at.event or at.text not in str(arguments):
            return
        seen += 1
        if seen in at.counts and at.fill:
            fill(Path(at.fill))
        if seen in at.counts and at.signal:
            os.kill(os.getpid(), signal.Signals[at.signal])

    sys.addaudithook(hook)


def fill(folder: Path) -> None:
    with contextlib.suppress(OSError), (folder / "full").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 12))


def live(run: dict[str, Any]) -> int:
    """The child: the program as `python -m fitcoach_tune` would run it."""
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(run[name], os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(run["cwd"])
    os.environ.update({"COLUMNS": "120", **run["environment"]})
    signal.alarm(600)  # what hangs is to fail its test, and not to hold up all others
    sys.argv = ["fitcoach-tune", *run["arguments"]]
    if run["at"]:
        arm(At(**run["at"]))
    from fitcoach_tune import cli

    try:
        with without_powers():
            cli.main()
    except SystemExit as end:
        return end.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def serve() -> None:
    from fitcoach_tune import cli, infer, session, train  # noqa: F401
    from fitcoach_tune.training import check, checkpoint, core, report, resume  # noqa: F401

    # What a run would import as it goes, but for pyarrow: it starts a thread, which a fork does not take along.
    for name in ("peft", "transformers.models.gemma3.modeling_gemma3", "matplotlib.backends.backend_agg"):
        importlib.import_module(name)
    children: dict[int, int | None] = {}  # by process: None while it runs, else how it stopped or ended
    for line in sys.stdin:
        command = json.loads(line)
        if pid := command.get("wait"):
            look(children, pid, wait=True)
            answer = {"code": os.waitstatus_to_exitcode(children[pid])}
        elif pid := command.get("look"):
            look(children, pid)
            stopped = children[pid] is not None and os.WIFSTOPPED(children[pid])
            answer = {"state": "running" if children[pid] is None else "stopped" if stopped else "ended"}
        else:
            pid = os.fork()
            if pid == 0:
                be(command["run"])
            children[pid] = None
            answer = {"pid": pid}
        print(json.dumps(answer), flush=True)


def look(children: dict[int, int | None], pid: int, wait: bool = False) -> None:
    while children[pid] is None or os.WIFSTOPPED(children[pid]):
        found, status = os.waitpid(pid, 0 if wait else os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
        if not found:
            return
        children[pid] = None if os.WIFCONTINUED(status) else status


def be(run: dict[str, Any]) -> None:
    code = 1
    try:
        code = live(run)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    serve()
