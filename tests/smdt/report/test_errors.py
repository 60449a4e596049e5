from xml.etree import ElementTree

import pytest

from smdt.report.chart import HEIGHT, WIDTH
from smdt.report.errors import KIND_COLOURS, error_map, outcome_charts, similarities

OUTCOMES = {
    "rank": [0.0, 3.0, 1.0, 9.0],
    "true_score": [0.9, 0.2, 0.5, 0.4],
    "wrong_score": [0.3, 0.6, 0.6, None],
    "east_m": [0.0, 100.0, 200.0, None],
    "north_m": [0.0, 50.0, -50.0, None],
    "error_m": [0.0, 60.0, 2500.0, None],
}
EVALUATION = {"recall_curve": [(1, 0.25), (4, 0.75), (10, 1.0)], "outcomes": OUTCOMES}


def test_similarities_are_counted_on_common_bins():
    histograms = similarities(OUTCOMES)
    assert [x for x, _ in histograms["true"]] == [x for x, _ in histograms["best wrong"]]
    assert sum(count for _, count in histograms["true"]) == 4
    assert sum(count for _, count in histograms["best wrong"]) == 3
    largest = max(x for x, count in histograms["true"] if count)
    assert largest == pytest.approx(0.9, abs=0.02)


def test_a_map_has_a_dot_where_each_query_is_in_the_colour_of_its_error():
    drawn = ElementTree.fromstring(error_map(OUTCOMES))
    dots = [
        (float(dot.attrib["cx"]), float(dot.attrib["cy"]), dot.attrib["fill"])
        for dot in drawn.findall("circle")
    ]
    assert [colour for *_, colour in dots] == [KIND_COLOURS[kind] for kind in (0, 1, 3)]
    (x0, y0, _), (x1, y1, _), (x2, y2, _) = dots
    assert x0 < x1 < x2  # east is to the right
    assert y1 < y0 < y2  # north is up
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y2 - y1 == pytest.approx(x1 - x0, abs=0.2)  # one scale
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y, _ in dots)
    legend = [text.text for text in drawn.findall("text")]
    assert legend[:2] == ["within 25 m: 33.3%", "within 100 m: 33.3%"]


def test_without_places_there_is_no_map():
    unknown = [None] * 4
    nowhere = {**OUTCOMES, "east_m": unknown, "north_m": unknown, "error_m": unknown}
    charts = outcome_charts({**EVALUATION, "outcomes": nowhere})
    assert [*charts] == ["Recall by depth", "Similarity of true and of best wrong pairs"]
    assert len(outcome_charts(EVALUATION)) == 4


def test_one_place_and_equal_scores_are_drawn():
    one = {name: values[:1] for name, values in OUTCOMES.items()}
    same = {**one, "wrong_score": one["true_score"]}
    charts = outcome_charts({"recall_curve": [(1, 1.0)], "outcomes": same})
    for chart in charts.values():
        ElementTree.fromstring(chart)
