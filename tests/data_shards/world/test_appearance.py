"""The gap between the views grows with the difficulty, and comes from the draw alone."""

import numpy as np
import pytest

from data_shards.world.appearance import DIFFICULTIES, Sensor, draw, expose

DRAWS = 300


def spread(difficulty):
    """Standard deviations of what separates the two views, over many draws."""
    rng = np.random.default_rng(5)
    appearances = [draw(difficulty, rng) for _ in range(DRAWS)]
    quantities = [
        [a.offset_m[0] for a in appearances],
        [a.heading_deg for a in appearances],
        [np.log(a.aerial_sensor.gain / a.ground_sensor.gain) for a in appearances],
        [a.aerial_light.leaf_gain - a.ground_light.leaf_gain for a in appearances],
        [a.aerial_light.sun_azimuth_rad - a.ground_light.sun_azimuth_rad for a in appearances],
    ]
    gaps = [float(np.std(quantity)) for quantity in quantities]
    noise = float(np.mean([a.ground_sensor.noise for a in appearances]))
    return np.array([*gaps, noise, appearances[0].moved])


def test_every_part_of_the_gap_grows_with_the_difficulty():
    easy, normal, hard = (spread(difficulty) for difficulty in ("easy", "normal", "hard"))
    assert (easy < normal).all()
    assert (normal < hard).all()


def test_easy_panoramas_have_no_heading_error():
    assert draw("easy", np.random.default_rng(0)).heading_deg == 0.0


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_a_draw_is_a_function_of_its_generator(difficulty):
    first, second = (repr(draw(difficulty, np.random.default_rng(11))) for _ in range(2))
    other = repr(draw(difficulty, np.random.default_rng(12)))
    assert first == second
    assert first != other


def test_a_perfect_sensor_keeps_the_picture():
    picture = np.random.default_rng(0).random((8, 16, 3), dtype=np.float32)
    perfect = Sensor(gain=np.ones(3, np.float32), gamma=1.0, noise=0.0, blur_px=0.0)
    recorded = expose(picture, perfect, np.random.default_rng(0))
    assert recorded.dtype == np.uint8
    np.testing.assert_allclose(recorded / 255, picture, atol=1 / 255)
