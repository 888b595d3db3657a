"""The line chart: well-formed, inside its frame, and nothing for nothing."""

import re
from xml.etree import ElementTree

import pytest

from latentflow.charts import HEIGHT, MOST, WIDTH, Line, line_chart


def places(svg: str, kind: str) -> list[list[tuple[float, float]]]:
    """The points of every element of a kind, in pixels."""
    found = [element.get("points", "") for element in ElementTree.fromstring(svg) if element.tag == kind]
    return [[(float(x), float(y)) for x, y in re.findall(r"([\d.-]+),([\d.-]+)", text)] for text in found]


def test_larger_values_are_higher_and_later_ones_further_right() -> None:
    svg = line_chart([Line("loss", [(1, 4.0), (2, 1.0), (3, 2.0)])], "step", "Loss & more")
    (line,) = places(svg, "polyline")
    assert [x for x, _ in line] == sorted(x for x, _ in line)
    assert line[0][1] < line[2][1] < line[1][1]
    assert "Loss &amp; more" in svg


@pytest.mark.parametrize("points", [[(5, 0.0)], [(0, -3.0), (1, 7.5)], [(0, 1e-9), (1, 1e-9)], [(0, 1e12), (1, 2e12)]])
def test_everything_stays_inside(points: list[tuple[float, float]]) -> None:
    svg = line_chart([Line("a", points, [0.1 * abs(y) for _, y in points]), Line("b", points)], "x", "y")
    for kind, count in (("polyline", 2), ("polygon", 1)):
        drawn = places(svg, kind)
        assert len(drawn) == count
        assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for line in drawn for x, y in line)


def test_a_long_line_is_thinned_and_keeps_its_end() -> None:
    (line,) = places(line_chart([Line("a", [(float(i), 1.0) for i in range(10_001)])], "x", "y"), "polyline")
    assert len(line) <= MOST + 1
    assert line[-1][0] == pytest.approx(WIDTH - 16)


def test_nothing_is_nothing() -> None:
    assert line_chart([], "x", "y") == line_chart([Line("a", [])], "x", "y") == ""
