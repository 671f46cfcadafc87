"""Colours depend on q alone, and can be told apart on white, in grey print and by colour-blind readers."""

import itertools

import numpy as np
import pytest

from tsallis_rl.laboratory.colors import (
    COLORS_OF_ESTIMATORS,
    COLORS_OF_Q,
    COLORS_OF_TAU,
    color_of_estimator,
    color_of_q,
    color_of_tau,
    style_of,
)
from tsallis_rl.objectives import ESTIMATORS

TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
BLIND = {  # linear RGB as readers without one kind of cone see it (Machado, Oliveira, Fernandes 2009, severity 1)
    "none": np.eye(3),
    "deuteranopia": np.array([[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]]),
    "protanopia": np.array([[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]]),
    "tritanopia": np.array([[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]]),
}


def linear(color: str) -> np.ndarray:
    channels = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    x, y, z = np.cbrt(np.clip(TO_XYZ @ rgb / np.array([0.9505, 1, 1.089]), 216 / 24389, None))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("sight", BLIND)
def test_colours_of_the_papers_q_are_told_apart(sight):
    seen = [lab(np.clip(BLIND[sight] @ linear(color), 0, 1)) for color in COLORS_OF_Q.values()]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 15


def test_lightness_rises_with_q_and_every_colour_is_read_on_white():
    lightness = [lab(linear(color_of_q(q)))[0] for q in np.linspace(0, 1, 21)]
    assert all(a < b for a, b in itertools.pairwise(lightness))
    assert all(b - a > 10 for a, b in itertools.pairwise(lightness[::5]))
    taus = [color_of_tau(name, tau) for name in COLORS_OF_TAU for tau in (0.0, 1e-9, 1e-3, 0.05, 1.0)]
    for color in (*(color_of_q(q) for q in np.linspace(0, 1, 21)), *COLORS_OF_ESTIMATORS.values(), *taus):
        assert 1.05 / (TO_XYZ[1] @ linear(color) + 0.05) > 3, color


def test_a_look_is_of_its_own_name_and_no_two_estimators_share_one():
    assert style_of("garl", 0.75)["color"] == style_of("paft", 0.75)["color"] == color_of_q(0.75) == "#d1402c"
    assert style_of("garl", 0.75)["linestyle"] != style_of("paft", 0.75)["linestyle"]
    assert style_of("garl", 0.2)["color"] not in COLORS_OF_Q.values()
    assert style_of("garl", None, "floor", 0.05) != style_of("garl", None, "mixture", 0.05)
    assert color_of_tau("floor", 0.05) != color_of_tau("floor", 0.0067)
    alone = [color_of_estimator(name) for name in COLORS_OF_ESTIMATORS]
    assert len(set(alone)) == len(alone) and set(COLORS_OF_ESTIMATORS) <= set(ESTIMATORS)
    assert color_of_estimator("someones.own") == color_of_estimator("someones.own") in alone
