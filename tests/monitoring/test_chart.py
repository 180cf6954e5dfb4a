"""The picture of the evidence is a whole SVG, whatever the history."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from monitoring.chart import evidence_chart

STREAMS = ("outlier_score", "a<b")


@pytest.mark.parametrize(
    "history",
    [
        [],
        [(1, [None, None])],
        [(1, [0.5, None]), (2, [1.5, -3.0]), (3, [250.0, 0.1])],
    ],
    ids=["nothing", "no evidence", "far beyond the line"],
)
def test_it_is_whole_and_stays_within_its_frame(history):
    drawn = ElementTree.fromstring(evidence_chart(STREAMS, history, 5.8))
    names = [its.text for its in drawn if its.get("class") == "name"]
    assert {name.partition(" ")[0] for name in names} == {"outlier", "a<b"}
    _, _, width, height = map(float, drawn.get("viewBox").split())
    for line in drawn.findall("polyline"):
        for point in line.get("points").split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= width
            assert 0 <= y <= height


def test_the_alarm_line_is_where_the_evidence_crosses_it():
    drawn = ElementTree.fromstring(evidence_chart(("a",), [(1, [0.0]), (2, [5.8])], 5.8))
    (alarm,) = (its for its in drawn if its.get("class") == "alarm-line")
    last = drawn.find("polyline").get("points").split()[-1]
    assert float(last.split(",")[1]) == pytest.approx(float(alarm.get("y1")), abs=0.1)
