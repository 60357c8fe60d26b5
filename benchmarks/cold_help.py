"""Seconds of `fitcoach-tune --help` beside those of an empty Typer program, cold processes in turn.

python benchmarks/cold_help.py --repeat 20
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import measuring

EMPTY = """import typer

app = typer.Typer()


@app.command()
def main():
    pass


app()
"""


def measure(repeat: int) -> dict[str, Any]:
    """Start both in turn, `repeat` times after one that warms the disk's cache."""
    seconds: dict[str, list[float]] = {"an empty Typer program": [], "fitcoach-tune": []}
    empty, ours = seconds
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "empty.py")
        script.write_text(EMPTY, encoding="utf-8")
        commands = {empty: [measuring.PYTHON, str(script)], ours: [measuring.PYTHON, "-m", "fitcoach_tune"]}
        for turn in range(repeat + 1):
            for name, command in commands.items():
                taken = measuring.run([*command, "--help"]).seconds
                if turn:
                    seconds[name].append(taken)
    times = {name: median(b / a for a, b in zip(seconds[empty], taken, strict=True)) for name, taken in seconds.items()}
    rows = [{"variant": name, "seconds": median(seconds[name]), "times": times[name]} for name in seconds]
    columns = {"variant": ("--help of", "{}"), "seconds": ("median s", "{:.3f}"), "times": ("as long", "{:.2f}×")}
    return {
        "title": "The help page, cold",
        "rows": rows,
        "table": measuring.table(rows, columns),
        "ratios": {f"--help, beside {empty}": 1 / times[ours]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=20, help="counted turns, after one that warms up")
    parser.add_argument("--quick", action="store_true", help="three turns")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    measuring.show(measure(3 if given.quick else given.repeat), given.json)


if __name__ == "__main__":
    main()
