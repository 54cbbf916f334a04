"""A report as one picture, PNG or SVG: what fills the memory over the step, the lanes, the curve."""

import io
from typing import TYPE_CHECKING, Literal

from penstock.errors import UsageError, mib
from penstock.report.document import Json
from penstock.report.palette import BUDGET, HELD, KINDS, SERIES, lane_colour
from penstock.report.words import spoken

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["curve_figure", "curve_image", "figure", "image", "require_matplotlib"]

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
    best = curve["front"]
    if best:
        axes.step(
            _in_mib([budget for budget, _, _ in best]),
            [seconds for _, seconds, _ in best],
            where="post",
            color="black",
            alpha=0.15,
            lw=8,
            solid_capstyle="round",
            label="Pareto front",
        )
    if curve["plain"]:
        axes.axhline(curve["plain"], color=HELD, ls="--", lw=1.2, label="without a budget")
    fitting = [policy for policy in curve["policies"] if policy["points"]]
    for number, policy in enumerate(fitting):
        round_ = number // len(SERIES) % len(_MARKS)
        axes.plot(
            _in_mib([budget for budget, _, _ in policy["points"]]),
            [seconds for _, seconds, _ in policy["points"]],
            color=SERIES[number % len(SERIES)],
            ls=_DASHES[round_],
            marker=_MARKS[round_],
            ms=4,
            lw=1.4,
            label=policy["name"],
        )
    every = [seconds for policy in fitting for _, seconds, _ in policy["points"]]
    if every and max(every) > 3 * min(every) > 0:
        axes.set_yscale("log")
    axes.set_title("Step time by budget", loc="left")
    axes.set_xlabel("budget, MiB")
    axes.set_ylabel("seconds a step")
    axes.grid(alpha=0.25, which="both")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8)


def _in_mib(nbytes: list[int]) -> list[float]:
    return [n / 2**20 for n in nbytes]
