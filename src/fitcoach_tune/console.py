"""What a person sees while the program works: notes and progress bars on stderr. Data goes to stdout, elsewhere."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console as RichConsole

Update = Callable[..., None]
# What a terminal may take for a command; notes and errors quote data.
_COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """The text with control characters, but for tabs and line ends, spelt out."""
    return _COMMANDS.sub(lambda found: repr(found.group())[1:-1], text)


class Console:
    """Notes and progress on stderr, or nothing if `quiet`."""

    def __init__(self, quiet: bool = False):
        self.quiet = quiet

    @cached_property
    def err(self) -> RichConsole:
        from rich.console import Console as RichConsole

        return RichConsole(file=sys.stderr, quiet=self.quiet, highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """A line about what happens."""
        self.err.print(printable(text), style="dim", markup=False)

    def warn(self, text: str) -> None:
        """A line about something that the user should look at."""
        self.err.print(f"warning: {printable(text)}", style="yellow", markup=False)

    @contextmanager
    def bar(self, title: str, total: int, unit: str = "rows") -> Iterator[Update]:
        """A progress bar with rate and remaining time.

        Yields a function: `update(done, **fields)` sets how much is done and what is shown behind the bar. Without a
        terminal a line is printed at each quarter.
        """
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = [
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[shown]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
        ]
        interactive = self.err.is_terminal and not self.quiet
        quarters = 0
        with Progress(*columns, console=self.err, disable=not interactive) as progress:
            task = progress.add_task(title, total=total, shown="", rate="")

            def update(done: int, **fields: object) -> None:
                nonlocal quarters
                shown = "  ".join(f"{name} {value}" for name, value in fields.items())
                speed = progress.tasks[0].finished_speed or progress.tasks[0].speed
                progress.update(task, completed=done, shown=shown, rate=f"{speed:.1f} {unit}/s" if speed else "")
                if not interactive and 4 * done // max(1, total) > quarters:
                    quarters = 4 * done // max(1, total)
                    self.note(f"{title}: {done} of {total} {unit}" + (f"  {shown}" if shown else ""))

            yield update


SILENT = Console(quiet=True)
