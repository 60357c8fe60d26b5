"""The report's pictures, drawn by matplotlib, as SVG for the inside of an HTML page.

Their colours are the page's own CSS variables, so that they follow its light and dark theme; their text is text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO
from math import ceil, floor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.patches import Patch

INKS = ("ink", "muted", "line", "main", "base", "third", "fourth", "good", "bad")
"""The CSS variables that pictures use. Matplotlib wants plain colours: the variable i stands as #0f0f0i meanwhile."""

_TEXT, _CHARACTER = 12.0, 7.3  # px: the size of text, and how far a monospaced character of it advances
_SLANT = 0.71  # the width, and the height, of a text of length 1 that rises by 45 degrees
_LONGEST = 30
_TAG = re.compile(r"<[^>]*>")


@dataclass(frozen=True)
class Mark:
    """A rate to draw.

    Attributes:
        name: of what it is the rate.
        value: between 0 and 1, or None without rows; low, high: the interval.
        ink: one of `INKS`.
    """

    name: str
    value: float | None
    low: float
    high: float
    ink: str = "main"


def percent(value: float | None) -> str:
    """91.3%, or a dash for None."""
    return "–" if value is None else f"{value:.1%}"


def signed(value: float, digits: int = 1) -> str:
    """A share in points: +91.3, −3.2, or 0.0."""
    points = round(100 * value, digits)
    return f"{points:+.{digits}f}".replace("-", "−") if points else f"{0:.{digits}f}"


def intervals(marks: Sequence[Mark]) -> str:
    """Rates with their 95% intervals, a line for each, on one axis from 0 to 100%."""
    left, width, right = _room(mark.name for mark in marks) + 8, 260, 66
    bottom = 10 + 30 * len(marks)
    canvas = _Canvas(left + width + right, bottom + 22)
    canvas.axis(left, width, bottom, [(i / 4, f"{25 * i}%") for i in range(5)])
    for i, mark in enumerate(marks):
        y = 25 + 30 * i
        weight = "bold" if mark.ink == "main" else "normal"
        canvas.text(left - 14, y, mark.name, align="right", mono=False, weight=weight)
        canvas.interval(left, width, y, mark)
        canvas.text(left + width + right, y, percent(mark.value), align="right", mono=False, weight="bold")
    return canvas.svg(f"Answers exactly right, with 95% intervals: {'; '.join(map(_told, marks))}.")


def strip(marks: Sequence[Mark]) -> str:
    """The same for a cell of a table: no names and no numbers, which stand beside it."""
    height = 12 * len(marks) + 8
    canvas = _Canvas(212, height)
    for i in range(5):
        canvas.line(6 + 50 * i, 0, 6 + 50 * i, height, "line", 1)
    for i, mark in enumerate(marks):
        canvas.interval(6, 200, 10 + 12 * i, mark, size=3.5)
    return canvas.svg(f"95% intervals: {'; '.join(map(_told, marks))}.")


def difference(value: float, low: float, high: float, ink: str) -> str:
    """A difference of two rates beside the line of no difference, with its 95% interval; the axis is in points."""
    bottom, top = min(low, -0.05), max(high, 0.05)
    step = next(step for step in (0.05, 0.1, 0.25, 0.5) if top - bottom <= 6 * step)
    ticks = [step * i for i in range(floor(bottom / step), ceil(top / step) + 1)]
    left, width = 30, 380

    def place(points: float) -> float:
        return left + width * (points - ticks[0]) / (ticks[-1] - ticks[0])

    canvas = _Canvas(left + width + 30, 62)
    canvas.line(left, 40, left + width, 40, "line", 1)
    canvas.line(place(0), 8, place(0), 44, "ink", 1.5)
    for points in ticks:
        canvas.line(place(points), 37, place(points), 43, "line", 1)
        canvas.text(place(points), 54, signed(points, 0), ink="muted", mono=False)
    canvas.line(place(low), 24, place(high), 24, ink, 5, alpha=0.45)
    canvas.dot(place(value), 24, 6, ink)
    told = f"{signed(value)} points, 95% interval {signed(low)} to {signed(high)}"
    return canvas.svg(f"Difference: {told}; a line marks no difference.")


def confusion(
    cells: Mapping[tuple[str, str], int], wanted: Sequence[str], called: Sequence[str], link: Callable[[str, str], str]
) -> str:
    """A heat map, what was wanted against what was called: how often, and shaded by its share of what was wanted.

    Args:
        wanted, called: the names of the rows and the columns.
        link: where a click on a cell off the diagonal leads.
    """
    side = 34 if len(called) <= 12 else 28
    left, top = _room(wanted) + 8, _SLANT * _room(called) + 16
    ends = [side * (column + 0.6) + _SLANT * _room([name]) for column, name in enumerate(called)]
    canvas = _Canvas(left + max(ends), top + side * len(wanted) + 4)
    canvas.text(left - 10, top - 12, "wanted ↓  called →", align="right", ink="muted", mono=False)
    for column, name in enumerate(called):
        canvas.text(left + side * (column + 0.6), top - 6, name, align="left", rotation=45)
    for row, name in enumerate(wanted):
        y = top + side * row
        total = sum(count for (other, _), count in cells.items() if other == name)
        canvas.text(left - 10, y + side / 2, name, align="right")
        for column, other in enumerate(called):
            x, count = left + side * column, cells.get((name, other), 0)
            canvas.box(x + 1, y + 1, side - 2, side - 2, "line", 0.35)
            if count:
                same, shade = name == other, 0.12 + 0.38 * count / total
                target = None if same else link(name, other)
                canvas.box(x + 1, y + 1, side - 2, side - 2, "main" if same else "bad", shade, target)
                canvas.text(x + side / 2, y + side / 2, str(count), mono=False, weight="bold")
    wrong = sum(count for (name, other), count in cells.items() if name != other)
    right = sum(cells.values()) - wrong
    told = f"{right} times the same, {wrong} times something else"
    return canvas.svg(f"What was wanted against what was called: {told}.")


def tools(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """Precision, recall and F1 of each tool as bars, in the order of `scores` (`ToolScore.as_dict` by name)."""
    left, panel, bar, height = _room(scores) + 8, 168, 104, 24
    canvas = _Canvas(left + 3 * panel + 56, 30 + height * len(scores))
    for column, title in enumerate(("precision", "recall", "F1")):
        canvas.text(left + panel * column, 14, title, align="left", ink="muted", mono=False, weight="bold")
    canvas.text(left + 3 * panel + 50, 14, "wanted", align="right", ink="muted", mono=False)
    for row, (name, score) in enumerate(scores.items()):
        y = 40 + height * row
        canvas.text(left - 10, y, name, align="right")
        canvas.text(left + 3 * panel + 50, y, str(score["recall"]["n"]), align="right", mono=False, ink="muted")
        parts = (score["precision"], score["recall"], {"value": score["f1"]})
        for column, (part, ink) in enumerate(zip(parts, ("main", "good", "muted"), strict=True)):
            x = left + panel * column
            canvas.box(x, y - 6, bar, 12, "line", 0.5)
            if part["value"] is not None:
                canvas.box(x, y - 6, bar * part["value"], 12, ink, 0.75)
            if part.get("n"):
                canvas.line(x + bar * part["low"], y, x + bar * part["high"], y, "ink", 1.2)
            canvas.text(x + bar + 8, y, percent(part["value"]), align="left", mono=False)
    told = "; ".join(f"{name} {percent(score['f1'])}" for name, score in scores.items())
    return canvas.svg(f"Precision, recall and F1 by tool. F1: {told}.")


def _told(mark: Mark) -> str:
    if mark.value is None:
        return f"{mark.name} no rows"
    return f"{mark.name} {percent(mark.value)} ({100 * mark.low:.1f} to {100 * mark.high:.1f})"


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def _room(names: Iterable[str]) -> float:
    """How wide a column of names is, in px; East Asian characters and emoji take two places."""
    widths = (sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in _short(name)) for name in names)
    return 16 + _CHARACTER * max(widths, default=0)


class _Canvas:
    """A picture whose coordinates are pixels from its top left corner."""

    def __init__(self, width: float, height: float):
        from matplotlib.figure import Figure

        self.width, self.height = round(width), round(height)
        self._figure = Figure(figsize=(self.width / 72, self.height / 72))
        self._figure.patch.set_visible(False)
        self._axes = self._figure.add_axes((0, 0, 1, 1), xlim=(0, self.width), ylim=(self.height, 0))
        self._axes.set_axis_off()

    def box(self, x: float, y: float, width: float, height: float, ink: str, alpha: float, url: str | None = None):
        from matplotlib.patches import Rectangle

        self._add(Rectangle((x, y), width, height, facecolor=_colour(ink), alpha=alpha, url=url))

    def dot(self, x: float, y: float, radius: float, ink: str) -> None:
        from matplotlib.patches import Circle

        self._add(Circle((x, y), radius, facecolor=_colour(ink)))

    def diamond(self, x: float, y: float, radius: float, ink: str) -> None:
        from matplotlib.patches import Polygon

        corners = [(x - radius, y), (x, y - radius), (x + radius, y), (x, y + radius)]
        self._add(Polygon(corners, closed=True, facecolor=_colour(ink)))

    def _add(self, patch: Patch) -> None:
        patch.set(linewidth=0, clip_on=False, zorder=2)  # as lines: what is drawn later lies above
        self._axes.add_patch(patch)

    def line(self, x1: float, y1: float, x2: float, y2: float, ink: str, width: float, alpha: float = 1) -> None:
        (line,) = self._axes.plot([x1, x2], [y1, y2], color=_colour(ink), linewidth=width, alpha=alpha, clip_on=False)
        line.set_solid_capstyle("butt")

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        align: str = "center",
        ink: str = "ink",
        mono: bool = True,
        weight: str = "normal",
        rotation: float = 0,
    ) -> None:
        """Text whose middle is at the height y, or that starts there if it is rotated."""
        self._axes.text(
            x,
            y if rotation else y + 0.35 * _TEXT,
            _short(text),
            fontsize=_TEXT,
            family="monospace" if mono else "sans-serif",
            weight=weight,
            color=_colour(ink),
            ha=align,
            va="baseline",
            rotation=rotation,
            rotation_mode="anchor",
            parse_math=False,
        )

    def axis(self, left: float, width: float, bottom: float, ticks: Sequence[tuple[float, str]]) -> None:
        for place, label in ticks:
            self.line(left + width * place, 4, left + width * place, bottom, "line", 1)
            self.text(left + width * place, bottom + 12, label, ink="muted", mono=False)

    def interval(self, left: float, width: float, y: float, mark: Mark, size: float = 6) -> None:
        """An interval as a bar with its rate on it: a circle for the main model, a diamond for others."""
        if mark.value is None:
            return
        self.line(left + width * mark.low, y, left + width * mark.high, y, mark.ink, size - 1, alpha=0.45)
        draw = self.dot if mark.ink == "main" else self.diamond
        draw(left + width * mark.value, y, size, mark.ink)

    def svg(self, alt: str) -> str:
        """The picture as an svg element that assistive technology reads as `alt`."""
        import warnings

        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG

        out = StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        settings = {"svg.fonttype": "none", "svg.hashsalt": "fitcoach-tune", "path.simplify": False}
        with matplotlib.rc_context(settings), warnings.catch_warnings():
            # Matplotlib's own font only measures the text; the reader's fonts draw it.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
            FigureCanvasSVG(self._figure).print_svg(out, metadata=nothing)
        body = _TAG.sub(_for_page, out.getvalue().partition("</defs>")[2]).removesuffix("</svg>\n")
        size = f'viewBox="0 0 {self.width} {self.height}" width="{self.width}" height="{self.height}"'
        parts = "".join(line.strip() for line in body.splitlines())
        return f'<svg class="picture" role="img" {size} aria-label="{escape(alt)}">{parts}</svg>'


def _colour(ink: str) -> str:
    return f"#0f0f{INKS.index(ink):02x}"


def _for_page(tag: re.Match[str]) -> str:
    """A tag as it may stand in a page: no groups with ids, which would occur twice; the page's colours and fonts."""
    found = " ".join(tag[0].split())
    if found.startswith(("<g ", "</g>")):
        return ""
    found = re.sub(r' (target="_blank"|transform="rotate\(-0 [^"]*")', "", found)
    found = found.replace("<a xlink:href=", '<a tabindex="-1" href=')
    found = re.sub(r"font-family: [^;]*?(monospace|sans-serif)\b(?=;)", r"font-family: var(--\1)", found)
    return re.sub(r"#0f0f([0-9a-f]{2})", lambda m: f"var(--{INKS[int(m[1], 16)]})", found)
