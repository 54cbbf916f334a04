"""A page that needs nothing else: it carries its style, its script and the data that is drawn."""

import json
from collections.abc import Sequence
from functools import cache
from html import escape
from importlib.resources import files

from penstock.report.document import Json
from penstock.report.palette import (
    BUDGET,
    HEAT,
    HEAT_ON_DARK,
    HELD,
    KINDS,
    KINDS_ON_DARK,
    SERIES,
    ink_on,
    lane_colour,
)

__all__ = ["bound", "panel"]


def bound(title: str, parts: Sequence[str], data: Json) -> str:
    """The page: `parts` are its HTML, `data` what `page.js` draws into it."""
    # "<" would let a name in the data end the script.
    carried = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{_colours()}{_part('page.css')}</style></head>"
        f"<body>{''.join(parts)}"
        f"<script type='application/json' id='data'>{carried}</script>"
        f"<script>{_part('page.js')}</script></body></html>\n"
    )


def panel(title: str, content: str) -> str:
    return f"<section class='panel'><h2>{escape(title)}</h2>{content}</section>"


@cache
def _part(name: str) -> str:
    return files("penstock.report").joinpath(name).read_text(encoding="utf-8")


def _colours() -> str:
    """The palette for the style sheet and the script: `--kind-activation`, `--heat-3` and so on."""
    lanes = {lane: lane_colour(lane) for lane in ("compute", "recompute", "stall", "copy")}
    light = [("kind", KINDS), ("lane", lanes), ("series", _numbered(SERIES))]
    dark = [("kind", KINDS_ON_DARK)]
    for theme, heat in ((light, HEAT), (dark, HEAT_ON_DARK)):
        theme += [("heat", _numbered(heat)), ("on-heat", _numbered([ink_on(c) for c in heat]))]
    return (
        f":root{{--budget:{BUDGET};--held:{HELD};{''.join(_variables(*it) for it in light)}}}"
        "@media (prefers-color-scheme: dark){:root{"
        f"{''.join(_variables(*it) for it in dark)}}}}}"
    )


def _numbered(colours: Sequence[str]) -> dict[str, str]:
    return {str(number): colour for number, colour in enumerate(colours)}


def _variables(group: str, colours: dict[str, str]) -> str:
    return "".join(f"--{group}-{name}:{colour};" for name, colour in colours.items())
