"""PNG and SVG: a report's memory, lanes and curve in one picture; a comparison's heat-map and curves."""

import io
import math
from itertools import groupby
from typing import TYPE_CHECKING, Literal

import numpy as np

from penstock.errors import UsageError, mib
from penstock.report.document import Json
from penstock.report.palette import (
    BUDGET,
    HEAT,
    HEAT_BOUNDS,
    HELD,
    KINDS,
    SERIES,
    ink_on,
    lane_colour,
    shade,
)
from penstock.report.words import spoken

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "comparison_figure",
    "comparison_image",
    "curve_figure",
    "curve_image",
    "figure",
    "image",
    "require_matplotlib",
]

_WIDTH, _HEIGHT = 11.0, 5.5
"""Inches; the height is that of one run, and of a curve."""


def image(body: Json, form: Literal["png", "svg"]) -> bytes:
    """The picture of a report's document as a file's content. One document, one picture."""
    require_matplotlib()
    return _content(figure(body), form)


def curve_image(curve: Json, form: Literal["png", "svg"]) -> bytes:
    """The curve from budget to step time as a file's content."""
    require_matplotlib()
    return _content(curve_figure(curve), form)


def comparison_image(comparison: Json, form: Literal["png", "svg"]) -> bytes:
    """A comparison of policies as a file's content."""
    require_matplotlib()
    return _content(comparison_figure(comparison), form)


def _content(drawn: "Figure", form: Literal["png", "svg"]) -> bytes:
    from matplotlib import rc_context

    target = io.BytesIO()
    # Text stays text, so that it can be searched; names and times would differ from run to run.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "penstock"}):
        unstamped = {"Date": None} if form == "svg" else None
        drawn.savefig(target, format=form, dpi=150, metadata=unstamped)
    return target.getvalue()


def require_matplotlib() -> None:
    """Raise `UsageError` unless pictures can be drawn."""
    try:
        import matplotlib.figure  # noqa: F401  (whether it can be imported is the question)
    except ImportError:
        raise UsageError(
            "pictures need matplotlib, which is not installed: pip install 'penstock[plots]', "
            "or write .html instead"
        ) from None


def figure(body: Json) -> "Figure":
    """For each run, what fills the memory and what the lanes do, all over the same time; the curve.

    `body` needs `budget`, `predicted` and `measured`, as `document` makes them, and may have `curve`.
    """
    from matplotlib.figure import Figure

    runs = {name: body[name] for name in ("predicted", "measured") if body[name] is not None}
    curve = body.get("curve")
    heights = [2.0, 1.0] * len(runs) + ([3.0] if curve else [])
    drawn = Figure(figsize=(_WIDTH, _HEIGHT * max(1.0, sum(heights) / 3)), layout="constrained")
    if not heights:
        drawn.text(0.5, 0.5, "No step was planned, so there is nothing to draw.", ha="center")
        return drawn
    axes = drawn.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    over_time = axes[: 2 * len(runs)]
    for number, (name, run) in enumerate(runs.items()):
        memory, lanes = axes[2 * number], axes[2 * number + 1]
        _memory(memory, run, body["budget"])
        if name == "measured" and "predicted" in runs:
            _outline(memory, runs["predicted"])
        memory.set_title(f"Memory by kind of value, {name}", loc="left")
        memory.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8)
        _lanes(lanes, run)
        lanes.set_title(f"Lanes, {name}", loc="left")
    for one in over_time:
        one.set_xlim(0, max(run["seconds"] for run in runs.values()) or 1.0)
    if runs:
        over_time[-1].set_xlabel("seconds since the step began")
    if curve:
        _curve(axes[-1], curve)
    return drawn


def curve_figure(curve: Json) -> "Figure":
    """Step seconds by budget for each policy, as `curve_of` made them, and the Pareto front."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
    _curve(drawn.subplots(), curve)
    return drawn


def _memory(axes: "Axes", run: Json, budget: int) -> None:
    """Stacked areas by kind; where it was measured, also what the device held."""
    curve = run["curve"]
    kinds = [kind for kind in KINDS if kind in curve["bytes"]]
    if kinds:
        axes.stackplot(
            [*curve["times"], run["seconds"]],
            [_in_mib([*curve["bytes"][kind], curve["bytes"][kind][-1]]) for kind in kinds],
            labels=[spoken(kind) for kind in kinds],
            colors=[KINDS[kind] for kind in kinds],
            step="post",
            linewidth=0,
        )
    if (held := run.get("held")) and held["times"]:
        axes.plot(held["times"], _in_mib(held["bytes"]), color=HELD, lw=1.2, label="device")
    axes.axhline(budget / 2**20, color=BUDGET, ls="--", lw=1.5, label=f"budget {mib(budget)}")
    axes.set_ylabel("MiB")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)


def _outline(axes: "Axes", run: Json) -> None:
    """The sum that was predicted, over what was measured."""
    curve = run["curve"]
    total = [sum(held) for held in zip(*curve["bytes"].values(), strict=True)]
    if total:
        times = [*curve["times"], run["seconds"]]
        axes.step(
            times,
            _in_mib([*total, total[-1]]),
            where="post",
            color="black",
            lw=1,
            label="predicted",
        )


def _lanes(axes: "Axes", run: Json) -> None:
    lanes = run["lanes"]
    for row, (lane, stretches) in enumerate(lanes.items()):
        spans = [(start, end - start) for start, end, _ in stretches]
        axes.broken_barh(spans, (row - 0.4, 0.8), color=lane_colour(lane), linewidth=0)
    axes.set_yticks(range(len(lanes)), list(lanes))
    axes.set_ylim(len(lanes) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.25)


_DASHES, _MARKS = ("-", "--", ":", "-."), ("o", "s", "^", "D")
"""For each eight policies others."""


def _curve(axes: "Axes", curve: Json) -> None:
    _times(axes, [point[:2] for point in curve["front"]], curve["plain"])
    fitting = [policy for policy in curve["policies"] if policy["points"]]
    for number, policy in enumerate(fitting):
        _series(axes, number, policy["name"], [point[:2] for point in policy["points"]])
    _finish(axes, "budget", "Step time by budget")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8)


def _times(axes: "Axes", front: list[tuple[int, float]], plain: float) -> None:
    """Below the policies: what nothing beats, and what the step takes without a budget."""
    if front:
        axes.step(
            _in_mib([nbytes for nbytes, _ in front]),
            [seconds for _, seconds in front],
            where="post",
            color="black",
            alpha=0.15,
            lw=8,
            solid_capstyle="round",
            label="Pareto front",
        )
    if plain:
        axes.axhline(plain, color=HELD, ls="--", lw=1.2, label="without a budget")


def _series(axes: "Axes", number: int, name: str, points: list[tuple[int, float]]) -> None:
    colour, dashes, mark = _look(number)
    axes.plot(
        _in_mib([nbytes for nbytes, _ in points]),
        [seconds for _, seconds in points],
        color=colour,
        ls=dashes,
        marker=mark,
        ms=4,
        lw=1.4,
        label=name,
    )


def _look(number: int) -> tuple[str, str, str]:
    """The colour, the dashes and the mark of a policy."""
    round_ = number // len(SERIES) % len(_MARKS)
    return SERIES[number % len(SERIES)], _DASHES[round_], _MARKS[round_]


def _finish(axes: "Axes", what: str, title: str) -> None:
    times = [time for line in axes.lines for time in np.asarray(line.get_ydata(), float).tolist()]
    if times and max(times) > 3 * min(times) > 0:
        axes.set_yscale("log")
    axes.set_title(title, loc="left")
    axes.set_xlabel(f"{what}, MiB")
    axes.set_ylabel("seconds a step")
    axes.grid(alpha=0.25, which="both")


def _in_mib(nbytes: list[int]) -> list[float]:
    return [n / 2**20 for n in nbytes]


# -- a comparison --------------------------------------------------------------------------------

_CURVES = 6
"""Cases whose curves still find room below the heat-map."""
_FIGURES = 30
"""Columns whose cells are wide enough for figures."""
_HATCH = "#c3c9d0"
"""As in the page's style sheet."""


def comparison_figure(comparison: Json) -> "Figure":
    """The slowdown of each policy in each column; with few cases also their step times by peak."""
    from matplotlib.figure import Figure

    cases, policies = comparison["cases"], comparison["policies"]
    if not cases:
        drawn = Figure(figsize=(_WIDTH, 1.0))
        drawn.text(0.5, 0.5, "Nothing was compared.", ha="center")
        return drawn
    across = 2 if 1 < len(cases) <= _CURVES else 1
    below = math.ceil(len(cases) / across) if len(cases) <= _CURVES else 0
    tall = 1.6 + 0.24 * len(policies)
    drawn = Figure(figsize=(_WIDTH, tall + 4.2 * below), layout="constrained")
    grid = drawn.add_gridspec(below + 1, across, height_ratios=[tall, *[4.2] * below])
    _heat(drawn.add_subplot(grid[0, :]), comparison)
    if not below:
        return drawn
    for number, case in enumerate(cases):
        row, column = divmod(number, across)
        axes = drawn.add_subplot(grid[row + 1, column])
        _times(axes, case["front"], case["plain"])
        for policy, name in enumerate(policies):
            if points := _fitting(comparison, number, policy):
                _series(axes, policy, name, points)
            if comparison["measured"] and points:
                foretold = _fitting(comparison, number, policy, "foretold_peak", "foretold")
                _ghosts(axes, policy, points, foretold)
        _finish(axes, "peak", f"{case['step']} on {case['on']}")
    lines = [line for axes in drawn.axes[1:] for line in axes.lines]
    handles = {str(line.get_label()): line for line in lines if str(line.get_label())[0] != "_"}
    drawn.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower left",
        ncols=6,
        frameon=False,
        fontsize=8,
    )
    return drawn


def _ghosts(
    axes: "Axes",
    number: int,
    measured: list[tuple[int, float]],
    foretold: list[tuple[int, float]],
) -> None:
    """Hollow marks for what was predicted, each tied to what was measured."""
    colour, _, mark = _look(number)
    for (peak, seconds), (said_peak, said_seconds) in zip(measured, foretold, strict=True):
        if not said_seconds:
            continue
        axes.plot(
            _in_mib([peak, said_peak]), [seconds, said_seconds], color=colour, lw=0.8, label="_tie"
        )
        axes.plot(
            _in_mib([said_peak]),
            [said_seconds],
            ls="",
            marker=mark,
            ms=4,
            mec=colour,
            mfc="white",
            label="_predicted",
        )


def _fitting(
    comparison: Json, case: int, policy: int, peak: str = "peak", seconds: str = "seconds"
) -> list[tuple[int, float]]:
    """Peak and seconds of a policy at each budget that it fits."""
    columns, points = comparison["columns"], comparison["points"]
    own = [n for n, column in enumerate(columns) if column["case"] == case]
    places = [policy * len(columns) + n for n in own]
    return [
        (points[peak][at], points[seconds][at]) for at in places if points["state"][at] == "fits"
    ]


def _heat(axes: "Axes", comparison: Json) -> None:
    """Cells by slowdown; what does not fit is hatched, what made no plan is grey."""
    from matplotlib.patches import Patch, Rectangle

    cases, columns, points = (comparison[part] for part in ("cases", "columns", "points"))
    for at, state in enumerate(points["state"]):
        policy, number = divmod(at, len(columns))
        plain = cases[columns[number]["case"]]["plain"]
        ratio = points["seconds"][at] / plain if plain else math.nan
        if state == "fits":
            colour = HEAT[0 if math.isnan(ratio) else shade(ratio)]
        else:
            colour = "white" if state in ("short", "") else HELD
        hatch, edge = ("////", _HATCH) if state == "short" else (None, "white")
        corner = (number - 0.5, policy - 0.5)
        axes.add_patch(
            Rectangle(corner, 1, 1, facecolor=colour, edgecolor=edge, hatch=hatch, lw=0.6)
        )
        if state == "fits" and len(columns) <= _FIGURES:
            best = comparison["policies"][policy] in columns[number]["best"]
            axes.text(
                number,
                policy,
                f"{ratio:.2f}",
                color=ink_on(colour),
                ha="center",
                va="center",
                fontsize=7,
                weight="bold" if best else "normal",
            )
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(comparison["policies"]) - 0.5, -0.5)
    axes.set_yticks(range(len(comparison["policies"])), comparison["policies"], fontsize=8)
    if len(columns) <= _FIGURES:
        axes.set_xticks(range(len(columns)), [column["asked"] for column in columns], fontsize=8)
    else:
        axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    start = 0
    for case, own in groupby(columns, key=lambda column: column["case"]):
        width = len(list(own))
        label = f"{cases[case]['step']}\n{cases[case]['on']}"
        turned = 90 if width < 40 * len(columns) / 100 and len(cases) > _CURVES else 0
        axes.text(
            start + width / 2 - 0.5,
            -0.7,
            label,
            ha="center",
            va="bottom",
            fontsize=7,
            rotation=turned,
        )
        if start:
            axes.axvline(start - 0.5, color="black", lw=0.8)
        start += width
    axes.set_xlabel("the step's time over that of the step that keeps everything, at each budget")
    names = ["no cost", *(f"to {bound}x" for bound in HEAT_BOUNDS[1:]), "more"]
    marks = [
        Patch(facecolor=c, edgecolor=_HATCH, label=n) for c, n in zip(HEAT, names, strict=True)
    ]
    marks.append(Patch(facecolor="white", edgecolor=_HATCH, hatch="////", label="does not fit"))
    marks.append(Patch(facecolor=HELD, label="no plan"))
    axes.legend(
        handles=marks, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8
    )
