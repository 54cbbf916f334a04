"""A comparison of policies as one web page: who is best, by how much, and what every point came to."""

from collections.abc import Callable, Sequence
from html import escape

from penstock.errors import mib
from penstock.report.document import Json
from penstock.report.palette import HEAT_BOUNDS, shade
from penstock.report.shell import bound, panel
from penstock.report.words import duration, off

__all__ = ["comparison_page"]


def comparison_page(body: Json) -> str:
    """The page of what `comparison_of` made."""
    cases, measured = body["cases"], body["measured"]
    name = _named(cases, "step") or f"{len({case['step'] for case in cases})} steps"
    first, *rest = body["headline"]
    about = f"<p>Penstock comparison · {escape(_asked(body))}</p>"
    lead = f"<p class='lead'>{escape(' '.join(rest))}</p>" if rest else ""
    parts = [f"<header>{about}<h1>{escape(first)}</h1>{lead}</header>"]
    if cases:
        parts.append(_tiles(body))
        if len(cases) > 1:
            parts.append(panel("Best for each step and budget", _best(body)))
        parts.append(panel("Leaderboard", _leaderboard(body)))
        parts += [_heat(cases), _pareto(cases, measured=measured)]
        if measured:
            parts.append(panel("Predicted against measured", _beside(body)))
        if len(body["problems"]) > 1:
            parts.append(_missing(body))
    data = {"comparison": body, "heat": HEAT_BOUNDS}
    return bound(f"{name}: Penstock comparison", parts, data)


def _named(cases: Sequence[Json], what: str) -> str:
    """The name that all cases share; empty if they have several."""
    names = {case[what] for case in cases}
    return names.pop() if len(names) == 1 else ""


def _several(cases: Sequence[Json]) -> dict[str, str]:
    """What is not the same in all cases: its key, and what it is called."""
    called = {"step": "step", "on": "machine"}
    return {what: label for what, label in called.items() if not _named(cases, what)}


def _asked(body: Json) -> str:
    """`30 policies, 20 steps, 3 machines, 4 budgets`."""
    cases = body["cases"]
    counts = {
        "step": len({case["step"] for case in cases}),
        "machine": len({case["on"] for case in cases}),
        "budget": len({column["asked"] for column in body["columns"]}),
    }
    known = {"step": _named(cases, "step"), "machine": _named(cases, "on")}
    said = [known.get(what) or f"{n} {what}{'s' * (n != 1)}" for what, n in counts.items()]
    policies = len(body["policies"])
    how = ["run and measured here"] if body["measured"] else []
    return ", ".join([*said, f"{policies} polic{'y' if policies == 1 else 'ies'}", *how])


_NOT_RUN = "simulated only"
"""Of a policy whose plans no engine carries out."""


def _tiles(body: Json) -> str:
    """For each budget who is best there."""
    items = []
    for number, verdict in enumerate(body["verdicts"]):
        budget = verdict["asked"]
        if not verdict["best"]:
            who, notes = "nobody", [_nearest(verdict) or "no policy fits"]
        else:
            who, *level = verdict["best"]
            fits = _fits(verdict["fitted"], verdict["problems"])
            notes = [f"{_times(verdict['slowdown'])} the plain step{fits}"]
            if len(body["cases"]) == 1:
                column, row = body["columns"][number], body["policies"].index(who)
                seconds = body["points"]["seconds"][row * len(body["columns"]) + number]
                notes[0] = f"{duration(seconds)} a step, {notes[0]}"
                said = mib(column["budget"])
                budget = budget if budget == said else f"{budget} ({said})"
            if verdict["runs"]:
                notes.append(f"{_NOT_RUN}; of those that run: {verdict['runs']}")
            if level:
                notes.append(f"level with it: {_some(level)}")
            if verdict["next"]:
                fits = _fits(verdict["next_fitted"], verdict["problems"])
                notes.append(f"next: {verdict['next']} {_times(verdict['next_slowdown'])}{fits}")
        noted = "".join(f"<dd class=note>{escape(note)}</dd>" for note in notes)
        items.append(f"<div><dt>best at {escape(budget)}</dt><dd>{escape(who)}</dd>{noted}</div>")
    return f"<dl class='tiles'>{''.join(items)}</dl>"


def _fits(fitted: int, problems: int) -> str:
    return "" if problems == 1 else f", fits {fitted} of {problems}"


def _times(slowdown: float | None) -> str:
    return "?" if slowdown is None else f"{slowdown:.2f}x" if slowdown < 100 else f"{slowdown:.0f}x"


def _nearest(verdict: Json) -> str:
    if verdict["nearest"] is None:
        return ""
    policy, least = verdict["nearest"]
    return f"{policy} needs {mib(least)}"


def _some(names: Sequence[str], most: int = 3) -> str:
    rest = len(names) - most
    return ", ".join([*names[:most], *([f"{rest} more"] if rest > 0 else [])])


# -- tables --------------------------------------------------------------------------------------


def _table(head: Sequence[str], rows: Sequence[str], kind: str = "") -> str:
    """Rows are HTML; what is long scrolls inside its panel, also by the keyboard."""
    cells = "".join(f"<th scope='col'>{escape(cell)}</th>" for cell in head)
    frame = "class='wide'"
    if len(rows) > _TALL:
        frame = "class='wide tall' tabindex='0' role='region' aria-label='table'"
    return (
        f"<div {frame}><table class='{kind}'><thead><tr>{cells}</tr></thead>"
        f"<tbody>{''.join(f'<tr>{row}</tr>' for row in rows)}</tbody></table></div>"
    )


_TALL = 16
"""Rows that are shown without scrolling."""


def _cells(*cells: str) -> str:
    return "".join(f"<td>{escape(cell)}</td>" for cell in cells)


def _swatch(slowdown: float | None) -> str:
    return "" if slowdown is None else f"<i class='heat h{shade(slowdown)}'></i>"


def _best(body: Json) -> str:
    """A row for each step and machine, a column for each budget."""
    cases = body["cases"]
    asked = list(dict.fromkeys(column["asked"] for column in body["columns"]))
    found = {(column["case"], column["asked"]): column for column in body["columns"]}
    several = _several(cases)
    rows = [
        _cells(*(case[what] for what in several))
        + "".join(_answer(found.get((number, budget))) for budget in asked)
        for number, case in enumerate(cases)
    ]
    return _table([*several.values(), *asked], rows, "answers")


def _answer(column: Json | None) -> str:
    if column is None:
        return "<td></td>"
    if not column["best"]:
        return f"<td class=none>{escape(_nearest(column) or 'nobody')}</td>"
    best, *level = column["best"]
    others = f" <small>= {escape(_some(level, 1))}</small>" if level else ""
    return (
        f"<td>{_swatch(column['slowdown'])}{escape(best)} "
        f"<small>{_times(column['slowdown'])}</small>{others}</td>"
    )


def _leaderboard(body: Json) -> str:
    """What `penstock compare` prints."""
    head = ("policy", "fits", "of plain", "of best", "wins", "no plan", "planning")
    aside = dict.fromkeys(body["placing"], f" <small>{_NOT_RUN}</small>")
    rows = [
        f"<th scope='row'>{escape(it['policy'])}{aside.get(it['policy'], '')}</th>"
        + _cells(f"{it['fitted']} of {it['problems']}")
        + f"<td>{_swatch(it['slowdown'])}{_mean(it, 'slowdown')}</td>"
        + _cells(_mean(it, "behind"), str(it["wins"]), str(it["failed"]), duration(it["took"]))
        for it in body["standings"]
    ]
    return (
        f"<div class='beside'>{_table(head, rows)}"
        "<p class='note'>Best first: who fits most, then who is least slow there. Of plain: the "
        "step's time over that of the step that keeps everything; of best: over that of the fastest "
        "policy; both are means over what the policy fits. Wins: how often none is faster. No plan: "
        "how often it made none. Planning: the longest.</p></div>"
    )


def _mean(standing: Json, name: str) -> str:
    if not standing["fitted"] or standing[name] is None:
        return "-"
    return f"{standing[name]:.3f}x"


def _beside(body: Json) -> str:
    """What was measured, and what had been predicted of it."""
    points, columns, cases = body["points"], body["columns"], body["cases"]
    head = ("step", "budget", "policy", "step time", "predicted", "off", "peak", "predicted", "off")
    rows = []
    for number, column in enumerate(columns):
        for row, policy in enumerate(body["policies"]):
            at = row * len(columns) + number
            if points["state"][at] not in ("fits", "short") or not points["foretold"][at]:
                continue
            rows.append(
                _cells(
                    cases[column["case"]]["step"],
                    column["asked"],
                    policy,
                    *_pair(points["seconds"][at], points["foretold"][at], duration),
                    *_pair(points["peak"][at], points["foretold_peak"][at], mib),
                )
            )
    return _table(head, rows) if rows else "<p>No planned step was measured.</p>"


def _pair(measured: float, predicted: float, said: Callable[[float], str]) -> tuple[str, str, str]:
    return said(measured), said(predicted), off(predicted, measured)


def _missing(body: Json) -> str:
    """Each reason for which there is no plan, and whose."""
    columns = len(body["columns"])
    whose: dict[int, dict[str, int]] = {}
    for at, problem in enumerate(body["points"]["problem"]):
        if problem:
            policy = body["policies"][at // columns]
            found = whose.setdefault(problem, {})
            found[policy] = found.get(policy, 0) + 1
    lines = "".join(
        f"<li>{escape(body['problems'][problem])}<br><small>"
        f"{escape(', '.join(f'{policy} ({n} of {columns})' for policy, n in found.items()))}"
        "</small></li>"
        for problem, found in whose.items()
    )
    return (
        "<details class='panel words'><summary><h2>Why there is no plan</h2></summary>"
        f"<ul>{lines}</ul></details>"
    )


# -- pictures ------------------------------------------------------------------------------------


def _heat(cases: Sequence[Json]) -> str:
    """Where the script draws the heat-map, and says what the chosen cell came to."""
    filters = "".join(
        _select(label, what, ["", *dict.fromkeys(case[what] for case in cases)])
        for what, label in _several(cases).items()
    )
    return (
        "<section class='panel' id='heat'><div class='heading'><h2>Every policy at every budget</h2>"
        "<div class='switch' role='radiogroup' aria-label='size of the cells'></div></div>"
        "<p class='note'>The step's time over that of the step that keeps everything. Point at a "
        "cell, or move through the cells with the arrow keys, for its figures.</p>"
        f"<div class='filters'>{filters}</div><div class='legend'></div>"
        "<div class='beside'><div class='map'></div>"
        "<div class='moment' aria-live='polite'></div></div>"
        "<noscript>The heat-map needs JavaScript.</noscript></section>"
    )


def _select(label: str, what: str, names: Sequence[str]) -> str:
    options = "".join(
        f"<option value='{escape(name, quote=True)}'>{escape(name or 'all')}</option>"
        for name in names
    )
    return f"<label>{label} <select data-of='{what}'>{options}</select></label>"


def _pareto(cases: Sequence[Json], *, measured: bool) -> str:
    """Where the script draws peak against step time of one case at a time."""
    link = ", " if measured else " on "
    options = "".join(
        f"<option value='{number}'>{escape(link.join((case['step'], case['on'])))}</option>"
        for number, case in enumerate(cases)
    )
    choice = (
        f"<div class='filters'><label>of <select>{options}</select></label></div>"
        if len(cases) > 1
        else ""
    )
    ghosts = " Hollow marks are what was predicted." if measured else ""
    return (
        "<section class='panel' id='curve'><div class='heading'><h2>Step time by peak</h2></div>"
        "<p class='note'>Each policy at each budget that it fits. The broad line is the Pareto "
        f"front: no other plan has both a smaller peak and a faster step.{ghosts}</p>{choice}"
        "<div class='chart' role='img' aria-label='Step time by peak for each policy; the cells "
        "above have its figures'></div><div class='legend'></div></section>"
    )
