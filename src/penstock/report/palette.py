"""The colours of all pictures. Any two kinds can be told apart whatever colours one sees.

They are Okabe and Ito's, with greys and a lighter blue where nine are not enough.
`tests/report/test_palette.py` measures how far apart they are.
"""

from bisect import bisect_right

from penstock.ir.timeline import COMPUTE

__all__ = [
    "BUDGET",
    "HEAT",
    "HEAT_BOUNDS",
    "HEAT_ON_DARK",
    "HELD",
    "KINDS",
    "KINDS_ON_DARK",
    "SERIES",
    "ink_on",
    "lane_colour",
    "shade",
]

KINDS = {
    "parameter": "#0072b2",
    "optimizer_state": "#cc79a7",
    "gradient": "#d55e00",
    "buffer": "#5b5b5b",
    "input": "#8fd0f5",
    "activation": "#e69f00",
    "temporary": "#009e73",
    "workspace": "#f0e442",
    "allocator": "#d0d0d0",
}
"""By kind of value, from the bottom of the picture up: what stays lowest, what comes and goes on top."""

KINDS_ON_DARK = {**KINDS, "buffer": KINDS["allocator"], "allocator": KINDS["buffer"]}
"""The same on a dark page, where the greys change places: what is least of the step stands out least."""

BUDGET = "#d62728"
HELD = "#868e96"
"""What the device really held, as a line."""

SERIES = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#d55e00",
    "#8a63d2",
    "#7d8590",
)
"""Policies side by side. Where there are more, the dash of the line and the mark tell them apart."""

HEAT = (
    "#ffffd9",
    "#edf8b1",
    "#c7e9b4",
    "#7fcdbb",
    "#41b6c4",
    "#1d91c0",
    "#225ea8",
    "#253494",
    "#081d58",
)
"""How much slower a step is, from not at all: Brewer's yellow to blue, which darkens all the way."""
HEAT_ON_DARK = HEAT[::-1]
"""On a dark page what is slow stands out by being light."""
HEAT_BOUNDS = (1.005, 1.02, 1.05, 1.1, 1.25, 1.5, 2, 4)
"""Up to which slowdown each but the last is meant."""


def shade(slowdown: float) -> int:
    """Which of the colours of `HEAT` a slowdown has."""
    return bisect_right(HEAT_BOUNDS, slowdown)


def ink_on(colour: str) -> str:
    """Black or white, whichever is easier to read on `colour`."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return "#ffffff" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "#000000"


_LANES = {COMPUTE: "#0072b2", "recompute": "#e69f00", "stall": "#d55e00"}
_COPIES = "#009e73"


def lane_colour(lane: str) -> str:
    return _LANES.get(lane, _COPIES)
