"""The colours of all pictures. Any two kinds can be told apart whatever colours one sees.

They are Okabe and Ito's, with greys and a lighter blue where nine are not enough.
`tests/report/test_palette.py` measures how far apart they are.
"""

from penstock.ir.timeline import COMPUTE

__all__ = ["BUDGET", "HELD", "KINDS", "KINDS_ON_DARK", "SERIES", "lane_colour"]

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

_LANES = {COMPUTE: "#0072b2", "recompute": "#e69f00", "stall": "#d55e00"}
_COPIES = "#009e73"


def lane_colour(lane: str) -> str:
    return _LANES.get(lane, _COPIES)
