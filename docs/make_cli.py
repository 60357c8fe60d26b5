"""Write docs/cli.md from the program's own --help, so that the two cannot differ. `make docs` runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TARGET = Path(__file__).parent / "cli.md"
VERBS = ("prepare", "train", "eval", "infer", "push")
HEAD = """# The command line

Made from `fitcoach-tune --help` by `make docs`; do not edit.

Data goes to stdout, everything else to stderr; every verb has `--json` and `--quiet`. Settings come from the flag if it
is given, else from the `--config` file, else from the default shown here; a key in the file is the flag's name with
underscores.

Exit codes: 0 done, 1 unexpected failure, 2 wrong usage or setting, 3 bad rows or tools, 4 a model, dataset or adapter
cannot be had, 5 things that do not belong together or are damaged, 6 the output exists or cannot be written, 7 the
device is not there, 8 training had to stop, 9 an evaluation does not reach what was asked of it, 10 stopped by a
signal with a checkpoint to go on from, 130 interrupted.
"""


def help_of(*arguments: str) -> str:
    """The help text of the program or of one verb, as an 100-column terminal without colours shows it."""
    environment = {**os.environ, "COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "fitcoach_tune", *arguments, "--help"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    text = done.stdout.replace("python -m fitcoach_tune", "fitcoach-tune")
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())


def page() -> str:
    """The whole of docs/cli.md."""
    sections = [f"## fitcoach-tune\n\n```text\n{help_of()}\n```\n"]
    sections += [f"## fitcoach-tune {verb}\n\n```text\n{help_of(verb)}\n```\n" for verb in VERBS]
    return "\n".join([HEAD, *sections])


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
    print(TARGET)
