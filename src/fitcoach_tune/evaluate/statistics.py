"""How sure a figure is: rates with intervals, and two models on the same rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rate:
    """A proportion with its Wilson 95% interval (Wilson 1927, JASA 22:209)."""

    right: int
    n: int

    @property
    def value(self) -> float:
        return self.right / self.n if self.n else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """(low, high); (0, 1) without any observation."""
        if not self.n:
            return 0.0, 1.0
        from scipy.stats import binomtest

        found = binomtest(self.right, self.n).proportion_ci(0.95, method="wilson")
        return float(found.low), float(found.high)

    def __str__(self) -> str:
        if not self.n:
            return "no rows"
        low, high = self.interval
        return f"{self.value:.1%} ({self.right} of {self.n}; 95% interval {low:.1%} to {high:.1%})"

    def as_dict(self) -> dict[str, Any]:
        low, high = self.interval
        return {"right": self.right, "n": self.n, "value": self.value if self.n else None, "low": low, "high": high}


@dataclass(frozen=True)
class Comparison:
    """Two models on the same rows.

    Attributes:
        both, only_first, only_second, neither: how many rows which of them got right.
    """

    both: int
    only_first: int
    only_second: int
    neither: int

    @classmethod
    def of(cls, first: Sequence[bool], second: Sequence[bool]) -> Comparison:
        """Count; element i of each says whether that model got row i right."""
        pairs = list(zip(first, second, strict=True))
        return cls(*(pairs.count(case) for case in ((True, True), (True, False), (False, True), (False, False))))

    @property
    def n(self) -> int:
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def p_value(self) -> float:
        """Two-sided exact McNemar test (McNemar 1947, Psychometrika 12:153): are the rows on which the two differ those
        of a fair coin? 1 where there are none.
        """
        discordant = self.only_first + self.only_second
        if not discordant:
            return 1.0
        from scipy.stats import binomtest

        return float(binomtest(self.only_second, discordant, 0.5).pvalue)

    @property
    def difference(self) -> float:
        """The second model's accuracy minus the first's; nan without rows."""
        return (self.only_second - self.only_first) / self.n if self.n else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of `difference`: method 10 of Newcombe 1998 (Statistics in Medicine 17:2635), which joins the
        Wilson limits of both rates with regard to how the rows agree. (-1, 1) without rows.
        """
        if not self.n:
            return -1.0, 1.0
        second, first = (Rate(self.both + only, self.n) for only in (self.only_second, self.only_first))
        (low2, high2), (low1, high1) = second.interval, first.interval
        p2, p1, phi = second.value, first.value, self._agreement()

        def width(a: float, b: float) -> float:
            return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))

        return self.difference - width(p2 - low2, high1 - p1), self.difference + width(high2 - p2, p1 - low1)

    def _agreement(self) -> float:
        """Newcombe's phi, corrected for continuity where it is positive."""
        a, b, c, d = self.both, self.only_second, self.only_first, self.neither
        product = (a + b) * (c + d) * (a + c) * (b + d)
        if not product:
            return 0.0
        cross = a * d - b * c
        return (max(0.0, cross - self.n / 2) if cross > 0 else cross) / math.sqrt(product)

    def as_dict(self) -> dict[str, Any]:
        low, high = self.interval
        return {
            "both_right": self.both,
            "only_baseline_right": self.only_first,
            "only_model_right": self.only_second,
            "neither_right": self.neither,
            "p_value": self.p_value,
            "difference": {"value": self.difference if self.n else None, "low": low, "high": high},
        }
