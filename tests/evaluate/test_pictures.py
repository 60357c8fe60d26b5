"""The report's pictures: what is drawn where."""

from __future__ import annotations

import re

import pytest

from fitcoach_tune.evaluate import pictures
from fitcoach_tune.evaluate.pictures import Mark, signed


def lines(svg: str, ink: str) -> list[tuple[float, ...]]:
    """(x1, y1, x2, y2) of the lines in a colour."""
    found = re.findall(rf'<path d="M (\S+) (\S+) L (\S+) (\S+) " style="fill: none; stroke: var\(--{ink}\)', svg)
    return [tuple(map(float, numbers)) for numbers in found]


def boxes(svg: str, ink: str) -> list[tuple[float, float]]:
    """(left, right) of the filled boxes in a colour."""
    found = re.findall(rf'<path d="M (\S+) \S+ L (\S+) [^"]*" style="fill: var\(--{ink}\)', svg)
    return [tuple(map(float, numbers)) for numbers in found]


def test_intervals_are_drawn_to_scale() -> None:
    svg = pictures.intervals([Mark("tuned", 0.5, 0.25, 0.75), Mark("base", None, 0, 1, "base")])
    ticks = [line[0] for line in lines(svg, "line")]
    assert len(ticks) == 5
    ((left, _, right, _),) = lines(svg, "main")
    assert (left, right) == pytest.approx((ticks[1], ticks[3]), abs=0.01)
    assert lines(svg, "base") == []
    assert svg.count(">–</text>") == 1


def test_a_difference_is_drawn_beside_zero() -> None:
    svg = pictures.difference(0.2, 0.1, 0.3, "good")
    assert re.findall(">([^<>]+)</text>", svg) == ["−10", "0", "+10", "+20", "+30"]
    ((zero, *_),) = lines(svg, "ink")
    ((low, _, high, _),) = lines(svg, "good")
    assert zero < low
    assert high - low == pytest.approx(2 * (low - zero), abs=0.1)


@pytest.mark.parametrize(("low", "high"), [(-1, 1), (0, 0), (0.99, 1), (-1, -0.99), (-0.04, 0.31)])
def test_the_axis_of_a_difference_holds_it_and_zero(low, high) -> None:
    svg = pictures.difference((low + high) / 2, low, high, "muted")
    ((left, _, right, _), *_) = lines(svg, "line")
    assert left <= min(lines(svg, "ink")[0][0], lines(svg, "muted")[0][0])
    assert right >= max(lines(svg, "ink")[0][0], lines(svg, "muted")[0][2])
    assert 3 <= len(re.findall("</text>", svg)) <= 8


def test_bars_of_tools_are_drawn_to_scale() -> None:
    rate = {"right": 1, "n": 2, "value": 0.5, "low": 0.1, "high": 0.9}
    svg = pictures.tools({"get_steps": {"precision": rate, "recall": {**rate, "value": None, "n": 0}, "f1": 0.25}})
    ((left, right),) = boxes(svg, "main")
    ((f1_left, f1_right),) = boxes(svg, "muted")
    whole = boxes(svg, "line")
    assert boxes(svg, "good") == []
    assert len(whole) == 3
    assert right - left == pytest.approx((whole[0][1] - whole[0][0]) / 2, abs=0.01)
    assert f1_right - f1_left == pytest.approx((whole[2][1] - whole[2][0]) / 4, abs=0.01)


def test_cells_off_the_diagonal_are_links() -> None:
    svg = pictures.confusion(
        {("a", "a"): 3, ("a", "b"): 1}, ["a", "b"], ["a", "b"], link=lambda wanted, called: f"#{wanted}&{called}"
    )
    assert re.findall('<a tabindex="-1" href="([^"]*)">', svg) == ["#a&amp;b"]
    assert re.findall(">([0-9]+)</text>", svg) == ["3", "1"]


@pytest.mark.parametrize(
    ("value", "text"), [(0.913, "+91.3"), (-0.032, "−3.2"), (0.0, "0.0"), (-0.0004, "0.0"), (1, "+100.0")]
)
def test_signed(value, text) -> None:
    assert signed(value) == text
