"""Colours stay apart for every kind of colour vision."""

from itertools import combinations, pairwise

import numpy as np
import pytest

from penstock.ir.timeline import COMPUTE
from penstock.report.palette import (
    HEAT,
    HEAT_ON_DARK,
    KINDS,
    KINDS_ON_DARK,
    SERIES,
    ink_on,
    lane_colour,
)

# What full colour blindness makes of linear RGB: Machado, Oliveira and Fernandes, "A
# physiologically-based model for simulation of color vision deficiency", 2009, severity 1.0.
SIGHT = {
    "full": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
TO_XYZ = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
WHITE = [0.9505, 1.0, 1.089]


def linear(colour):
    srgb = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def as_lab(colour, sight):
    seen = np.clip(np.array(SIGHT[sight]) @ linear(colour), 0, 1)
    x, y, z = (f(t) for t in np.array(TO_XYZ) @ seen / WHITE)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def f(t):
    return np.cbrt(t) if t > 0.008856 else 7.787 * t + 16 / 116


LANES = {lane: lane_colour(lane) for lane in (COMPUTE, "recompute", "stall", "disk read")}


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize(
    "colours", [KINDS, KINDS_ON_DARK, LANES], ids=["kinds", "kinds on dark", "lanes"]
)
def test_any_two_colours_are_far_apart(colours, sight):
    # 2.3 is just noticeable side by side; a legend needs several times that.
    for one, other in combinations(colours, 2):
        distance = np.linalg.norm(as_lab(colours[one], sight) - as_lab(colours[other], sight))
        assert distance > 15, (one, other, distance)


def test_the_colours_of_policies_are_told_apart_by_full_sight():
    # Marks and dashes help where two policies are near; names are shown for the line pointed at.
    for one, other in combinations(SERIES, 2):
        assert np.linalg.norm(as_lab(one, "full") - as_lab(other, "full")) > 25, (one, other)


@pytest.mark.parametrize("sight", SIGHT)
def test_what_is_slower_is_darker_for_every_sight_and_lighter_on_a_dark_page(sight):
    lightness = [as_lab(colour, sight)[0] for colour in HEAT]
    assert lightness == sorted(lightness, reverse=True)
    for one, other in pairwise(HEAT):
        # They lie side by side; 2.3 is just noticeable, and each cell has its figure.
        assert np.linalg.norm(as_lab(one, sight) - as_lab(other, sight)) > 4, (one, other)
    assert HEAT[::-1] == HEAT_ON_DARK


def luminance(colour):
    return float(np.array(TO_XYZ)[1] @ linear(colour))


def test_figures_can_be_read_on_every_colour():
    # 4.5 is what WCAG 2.1 asks for text.
    for colour in HEAT:
        darker, lighter = sorted((luminance(colour), luminance(ink_on(colour))))
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, colour
