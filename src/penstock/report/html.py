"""A report as one web page that needs nothing else: pictures, facts, a table of the steps."""

from collections.abc import Iterable
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from penstock.errors import mib
from penstock.report.document import Json
from penstock.report.palette import BUDGET, HELD, KINDS, lane_colour

__all__ = ["page"]

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1e23; --paper: #fff; --line: #d0d4da; }
@media (prefers-color-scheme: dark) { :root { --ink: #d7dae0; --paper: #16181c; --line: #3a3f47; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 1200px; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25rem .7rem; border-bottom: 1px solid var(--line);
         white-space: nowrap; }
td.text { white-space: normal; }
th:first-child, td:first-child, td.text { text-align: left; }
.wide { overflow-x: auto; }
"""

# Plotly draws its text in one colour; take the page's, and follow it when it changes.
_FOLLOW_THE_PAGE = """
const picture = document.getElementById('picture');
function ink() {
  const colour = getComputedStyle(document.body).color;
  Plotly.relayout(picture, {'font.color': colour});
}
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', ink);
ink();
"""


def page(body: Json) -> str:
    """A report's document as a page."""
    runs = {name: body[name] for name in ("predicted", "measured") if body[name] is not None}
    parts = ["<h1>Penstock report</h1>", _facts(body)]
    script = ""
    if runs:
        picture = _picture(runs, body["budget"])
        drawn = picture.to_html(
            full_html=False,
            include_plotlyjs=False,
            div_id="picture",
            config={"responsive": True, "displaylogo": False},
        )
        parts += ["<h2>One step under the plan</h2>", drawn]
        script = f"<script>{_FOLLOW_THE_PAGE}</script>"
    else:
        parts.append("<p>No step was planned, so there is nothing to draw.</p>")
    parts += ["<h2>Steps</h2>", _steps(body["steps"], body["budget"])]
    library = f"<script>{get_plotlyjs()}</script>" if runs else ""
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>Penstock report</title><style>{_STYLE}</style>{library}</head>"
        f"<body>{''.join(parts)}{script}</body></html>\n"
    )


# -- pictures -----------------------------------------------------------------------------------


def _picture(runs: dict[str, Json], budget: int) -> go.Figure:
    """For each run, what fills the memory and what the lanes do, all over the same time."""
    titles = [f"{what}, {run}" for run in runs for what in ("Memory by kind of value", "Lanes")]
    figure = make_subplots(
        rows=len(titles),
        shared_xaxes="all",
        subplot_titles=titles,
        row_heights=[0.66, 0.34] * len(runs),
        vertical_spacing=0.06,
    )
    shown: set[str] = set()
    for number, run in enumerate(runs.values()):
        memory, lanes = 2 * number + 1, 2 * number + 2
        for trace in _memory(run, shown):
            figure.add_trace(trace, row=memory, col=1)
        figure.add_hline(
            y=budget / 2**20,
            line={"dash": "dash", "width": 1.5, "color": BUDGET},
            annotation_text=f"budget {mib(budget)}",
            row=memory,
            col=1,
        )
        for trace in _lanes(run["lanes"]):
            figure.add_trace(trace, row=lanes, col=1)
        figure.update_yaxes(title_text="MiB", rangemode="tozero", row=memory, col=1)
        figure.update_yaxes(autorange="reversed", row=lanes, col=1)
    figure.update_xaxes(title_text="seconds since the step began", row=len(titles), col=1)
    figure.update_xaxes(showticklabels=True, gridcolor="rgba(128,128,128,.25)")
    figure.update_yaxes(gridcolor="rgba(128,128,128,.25)")
    figure.update_layout(
        height=520 * len(runs),
        barmode="overlay",
        bargap=0.25,
        hovermode="closest",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 60, "r": 10, "t": 40, "b": 40},
        legend={"orientation": "h", "y": -0.06},
    )
    return figure


def _memory(run: Json, shown: set[str]) -> Iterable[go.Scatter]:
    """Stacked areas by kind; where it was measured, also what the device held. Legends once."""
    curve = run["curve"]
    for kind, colour in KINDS.items():
        if kind not in curve["bytes"]:
            continue
        name = kind.replace("_", " ")
        yield go.Scatter(
            x=[*curve["times"], run["seconds"]],
            y=_in_mib([*curve["bytes"][kind], *curve["bytes"][kind][-1:]]),
            name=name,
            legendgroup=kind,
            showlegend=kind not in shown,
            stackgroup="kinds",
            line={"shape": "hv", "width": 0, "color": colour},
            hovertemplate=f"{name} %{{y:,.0f}} MiB at %{{x:.3f}} s<extra></extra>",
        )
        shown.add(kind)
    if held := run.get("held"):
        yield go.Scatter(
            x=held["times"],
            y=_in_mib(held["bytes"]),
            name="held by the device",
            mode="lines",
            line={"width": 1.2, "color": HELD},
            hovertemplate="device %{y:,.0f} MiB at %{x:.3f} s<extra></extra>",
        )


def _lanes(lanes: dict[str, list[list[Any]]]) -> Iterable[go.Bar]:
    for lane, stretches in lanes.items():
        yield go.Bar(
            orientation="h",
            base=[start for start, _, _ in stretches],
            x=[end - start for start, end, _ in stretches],
            y=[lane] * len(stretches),
            customdata=[[end - start, what] for start, end, what in stretches],
            marker={"color": lane_colour(lane), "line": {"width": 0}},
            showlegend=False,
            hovertemplate=f"{lane} %{{customdata[0]:.4f}} s: %{{customdata[1]}}<extra></extra>",
        )


def _in_mib(nbytes: Iterable[int]) -> list[float]:
    return [round(n / 2**20, 2) for n in nbytes]


# -- tables -------------------------------------------------------------------------------------


def _facts(body: Json) -> str:
    without, predicted = body["without_budget"], body["predicted"]
    facts = {
        "budget": mib(body["budget"]),
        "policy": body["policy"],
        "device": f"{body['machine']['device']['name']}, {mib(body['machine']['device']['memory'])}",
        "tiers below": ", ".join(f"{t['name']} {mib(t['budget'])}" for t in body["tiers"])
        or "none",
    }
    if without is not None:
        facts["without a budget"] = f"{mib(without['peak'])}, {without['seconds']:.3f} s a step"
        facts["smallest budget"] = mib(body["least_budget"])
    if predicted is not None:
        filled = predicted["at_peak"].items()
        facts["predicted"] = f"{mib(predicted['peak'])}, {predicted['seconds']:.3f} s a step"
        facts["at the peak"] = ", ".join(f"{kind.replace('_', ' ')} {mib(n)}" for kind, n in filled)
    rows = (
        f"<tr><td>{escape(name)}</td><td class='text'>{escape(fact)}</td></tr>"
        for name, fact in facts.items()
    )
    return f"<div class='wide'><table>{''.join(rows)}</table></div>"


_COLUMNS = (
    "step",
    "mode",
    "seconds",
    "predicted",
    "peak",
    "predicted",
    "of budget",
    "stalled",
    "moved",
    "decisions",
    "events",
)


def _steps(steps: list[Json], budget: int) -> str:
    head = "".join(f"<th>{name}</th>" for name in _COLUMNS)
    rows = "".join(f"<tr>{_step(step, budget)}</tr>" for step in steps)
    return f"<div class='wide'><table><tr>{head}</tr>{rows}</table></div>"


def _step(step: Json, budget: int) -> str:
    seconds, peak = step["predicted_seconds"], step["predicted_peak"]
    stalls = [f"{cause} {s:.3f} s" for cause, s in step["stalls"].items() if s >= 0.0005]
    moved = [f"{lane} {mib(n)}" for lane, n in step["traffic"].items() if n]
    decided = [f"{n} {what}" for what, n in step["decisions"].items() if n]
    cells = (
        str(step["number"]),
        step["mode"],
        f"{step['seconds']:.3f} s",
        "" if seconds is None else f"{seconds:.3f} s",
        mib(step["peak"]),
        "" if peak is None else mib(peak),
        f"{step['peak'] / budget:.1%}",
        ", ".join(stalls) or "0",
        ", ".join(moved) or "0",
        ", ".join(decided),
        "; ".join(step["events"]),
    )
    return "".join(f"<td>{escape(cell)}</td>" for cell in cells)
