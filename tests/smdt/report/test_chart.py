from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from smdt.report.chart import HEIGHT, WIDTH, downsample, line_chart

points = st.lists(st.tuples(st.floats(0, 1e6), st.floats(-1e6, 1e6)), min_size=1, max_size=30).map(
    sorted
)


@given(st.dictionaries(st.text("ab<&", min_size=1), points, min_size=1, max_size=3))
def test_a_chart_is_well_formed_and_every_point_is_inside(series):
    chart = ElementTree.fromstring(line_chart(series, "step", "loss <nats>"))
    lines = chart.findall("polyline")
    assert len(lines) == len(series)
    for line in lines:
        for pair in line.attrib["points"].split():
            x, y = map(float, pair.split(","))
            assert 0 <= x <= WIDTH
            assert 0 <= y <= HEIGHT


def test_nothing_measured_is_said():
    assert "nothing measured" in line_chart({"loss": []}, "step", "loss")


@given(st.integers(1, 2000), st.integers(1, 50))
def test_thinning_keeps_the_mean_of_equal_runs(count, most):
    line = [(float(i), 1.0) for i in range(count)]
    thinned = downsample(line, most)
    assert len(thinned) <= most
    assert all(y == 1.0 for _, y in thinned)
    assert thinned[0][0] <= thinned[-1][0]


def test_what_is_not_finite_is_left_out():
    points = [(1, float("nan")), (2, 1.0), (3, float("inf")), (4, 2.0)]
    assert line_chart({"a": points}, "x", "y") == line_chart({"a": points[1::2]}, "x", "y")
    assert "nothing measured" in line_chart({"a": [(1, float("nan"))]}, "x", "y")
