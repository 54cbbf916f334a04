"""A report as one web page: figures, pictures, words, a table of the steps."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from html import escape

from penstock.errors import mib
from penstock.report.document import Json
from penstock.report.palette import KINDS
from penstock.report.shell import bound, panel
from penstock.report.words import duration, off, spoken

__all__ = ["page"]

_RUNS = ("predicted", "measured")


def page(bodies: Sequence[Json], curve: Json | None = None) -> str:
    """Documents of one step, each under another budget, and the curve over all budgets, as a page.

    With several documents the page shows one at a time; without any, the curve alone.
    """
    label = next((body["label"] for body in bodies if body.get("label")), "")
    title = f"{label}: Penstock report" if label else "Penstock report"
    parts = [f"<header><p>Penstock report</p><h1>{escape(label or 'One step')}</h1></header>"]
    if len(bodies) > 1:
        parts.append(_choice(bodies))
    parts += [_view(number, body) for number, body in enumerate(bodies)]
    if curve is not None:
        parts.append(_curve(curve))
    data = {"views": [_drawn(body) for body in bodies], "curve": curve, "kinds": list(KINDS)}
    return bound(title, parts, data)


def _drawn(body: Json) -> Json:
    """What the script needs of a document."""
    keys = ("seconds", "peak", "curve", "lanes", "phases", "held", "stays", "fullest")
    runs = {
        name: {key: body[name][key] for key in keys if key in body[name]}
        for name in _RUNS
        if body[name] is not None
    }
    return {"budget": body["budget"], "runs": runs, "values": body.get("values")}


# -- one document --------------------------------------------------------------------------------


def _choice(bodies: Sequence[Json]) -> str:
    """Which of several budgets to look at."""
    items = (
        f"<label><input type='radio' name='view' value='{number}'{' checked' * (number == 0)}>"
        f"<span>{_budget(body)}</span></label>"
        for number, body in enumerate(bodies)
    )
    return f"<nav class='choice' aria-label='budget'>{''.join(items)}</nav>"


def _budget(body: Json) -> str:
    plain = body["without_budget"]
    share = f" ({body['budget'] / plain['peak']:.0%})" if plain and plain["peak"] else ""
    return f"{mib(body['budget'])}{share}"


def _view(number: int, body: Json) -> str:
    runs = {name: body[name] for name in _RUNS if body[name] is not None}
    parts = [_tiles(body, runs)]
    if body.get("shortfall"):
        parts.append(
            f"<p class='warning'>This plan does not fit: {mib(body['shortfall'])} are missing. "
            f"No plan does with less than {mib(body['least_budget'])}.</p>"
        )
    if runs:
        parts += [_pictures(number), _peak(runs), _figures(body, runs)]
    else:
        parts.append("<p>No step was planned, so there is nothing to draw.</p>")
    if body.get("words"):
        parts.append(_words(body["words"]))
    if body["steps"]:
        parts.append(panel("Steps", _steps(body["steps"], body["budget"])))
    hidden = " hidden" if number else ""
    return f"<div class='view' data-view='{number}'{hidden}>{''.join(parts)}</div>"


def _tiles(body: Json, runs: dict[str, Json]) -> str:
    plain, device = body["without_budget"], body["machine"]["device"]
    predicted, measured = runs.get("predicted"), runs.get("measured")
    run = measured or predicted
    tiles = [("budget", mib(body["budget"]), "")]
    if plain is not None and plain["peak"]:
        share = f"{body['budget'] / plain['peak']:.0%} of the {mib(plain['peak'])} without one"
        tiles = [("budget", mib(body["budget"]), share)]
    if run is not None:
        tiles.append(("peak", mib(run["peak"]), _compared("peak", predicted, measured, mib)))
        ratio = ""
        if plain is not None and plain["seconds"]:
            ratio = f"{run['seconds'] / plain['seconds']:.2f}x the step without a budget"
        step = _compared("seconds", predicted, measured, duration) or ratio
        tiles.append(("step", duration(run["seconds"]), step))
        waited, again = sum(run["stalls"].values()), run["recompute_seconds"]
        of = run["seconds"] or 1.0
        tiles.append(("waiting for copies", duration(waited), f"{waited / of:.1%} of the step"))
        tiles.append(("computed again", duration(again), f"{again / of:.1%} of the step"))
        ways = ", ".join(f"{lane} {mib(n)}" for lane, n in run["traffic"].items() if n)
        copied = sum(run["traffic"].values())
        tiles.append(("copied", mib(copied) if copied else "nothing", ways))
    counts = body.get("decided", {}).items()
    decided = ", ".join(f"{n} {what}{'s' * (n != 1)}" for what, n in counts if n)
    tiles.append(("policy", body["policy"] or "plan", decided))
    tiers = ", ".join(f"{tier['name']} {mib(tier['budget'])}" for tier in body["tiers"])
    below = f"{mib(device['memory'])}; below it {tiers or 'nothing'}"
    tiles.append(("machine", device["name"], below))
    items = (
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd>"
        f"{f'<dd class=note>{escape(note)}</dd>' if note else ''}</div>"
        for name, value, note in tiles
    )
    return f"<dl class='tiles'>{''.join(items)}</dl>"


def _compared(
    what: str, predicted: Json | None, measured: Json | None, said: Callable[[float], str]
) -> str:
    """Beside a measured figure, the predicted one and how far it was off."""
    if predicted is None or measured is None:
        return ""
    return f"predicted {said(predicted[what])} ({off(predicted[what], measured[what])})"


def _pictures(number: int) -> str:
    """Where the script draws the memory and the lanes, and lists what is there at one moment."""
    return (
        f"<section class='panel' data-pictures='{number}'><div class='heading'>"
        "<h2>Memory and lanes over the step</h2><div class='switch'></div></div>"
        "<div class='chart' tabindex='0' role='img' aria-label='Memory by kind of value over the "
        "step, and what each lane does; the list below says what is there at one moment, and the "
        "arrow keys move it'></div><div class='moment' aria-live='polite'></div>"
        "<noscript>The pictures need JavaScript.</noscript></section>"
    )


# -- what fills the peak -------------------------------------------------------------------------


def _peak(runs: dict[str, Json]) -> str:
    """By kind, by module, the largest values: of the measured run where that is known."""
    name = next((n for n in reversed(_RUNS) if n in runs and "fullest" in runs[n]), "")
    run = runs[name] if name else next(iter(runs.values()))
    kinds = [(spoken(kind), n, f"var(--kind-{kind})") for kind, n in run["at_peak"].items()]
    parts = [_bars("By kind", kinds, run["peak"])]
    when = ""
    if name:
        most = run["fullest"]
        where = f", in {most['phase']}, {most['op']}" if most["op"] else ", before the first op"
        when = (
            f"<p class='note'>{mib(run['peak'])} {name}, at {duration(most['seconds'])} of "
            f"{duration(run['seconds'])}{escape(where)}</p>"
        )
        modules = [(module or "outside any module", n, "") for module, n in most["modules"]]
        parts.append(_bars("By module", modules, run["peak"]))
        rows = "".join(map(_largest, most["values"]))
        parts.append(
            f"<div class='whole'><h3>The largest values</h3><ul class='values'>{rows}</ul></div>"
        )
    return panel("What fills the peak", f"{when}<div class='columns'>{''.join(parts)}</div>")


_BARS = 10


def _bars(title: str, shares: Sequence[tuple[str, int, str]], of: int) -> str:
    """Bytes as bars: (what, bytes, colour), largest first."""
    large = sum(n >= 0.005 * of for _, n, _ in shares[:_BARS])
    shown, others = list(shares[:large]), shares[large:]
    if others:
        name = f"{len(others)} others" if large else "all"
        shown.append((name, sum(n for _, n, _ in others), "var(--muted)"))
    longest = max((n for _, n, _ in shown), default=0) or 1
    rows = (
        f"<li><span>{escape(what)}</span><span>{mib(n)} <small>{n / (of or 1):.0%}</small></span>"
        f"<i style='width:{100 * n / longest:.1f}%{f';background:{colour}' if colour else ''}'></i></li>"
        for what, n, colour in shown
    )
    return f"<div><h3>{title}</h3><ul class='bars'>{''.join(rows)}</ul></div>"


def _largest(value: Json) -> str:
    about = " · ".join(
        filter(None, (value["module"], spoken(value["kind"]), value["decision"] or "kept"))
    )
    return (
        f"<li><i style='background:var(--kind-{value['kind']})'></i>"
        f"<span>{escape(value['name'])}<small>{escape(about)}</small></span>"
        f"<b>{mib(value['nbytes'])}</b></li>"
    )


# -- figures -------------------------------------------------------------------------------------


def _figures(body: Json, runs: dict[str, Json]) -> str:
    """Without a budget, predicted and measured, side by side."""
    plain = body["without_budget"]
    both = len(runs) == 2
    head = ["", *(["without a budget"] if plain else []), *runs, *(["predicted is off by"] * both)]
    rows = [
        "".join(f"<th>{escape(cell)}</th>" for cell in head),
        *(
            "".join(f"<td>{escape(cell)}</td>" for cell in row)
            for row in _figure_rows(plain, list(runs.values()))
        ),
    ]
    table = "".join(f"<tr>{row}</tr>" for row in rows)
    title = "Predicted against measured" if both else "In figures"
    return panel(title, f"<div class='wide'><table>{table}</table></div>")


def _figure_rows(plain: Json | None, runs: Sequence[Json]) -> Iterator[list[str]]:
    def row(
        name: str, without: str, figures: Sequence[float], said: Callable[[float], str]
    ) -> list[str]:
        compared = [off(*figures)] if len(figures) == 2 else []
        return [name, *([without] if plain else []), *map(said, figures), *compared]

    yield row("peak", mib(plain["peak"]) if plain else "", [run["peak"] for run in runs], mib)
    yield row(
        "step",
        duration(plain["seconds"]) if plain else "",
        [run["seconds"] for run in runs],
        duration,
    )
    for cause in dict.fromkeys(cause for run in runs for cause in run["stalls"]):
        waited = [run["stalls"].get(cause, 0.0) for run in runs]
        if any(waited):
            yield row(f"waiting: {cause}", "", waited, duration)
    again = [run["recompute_seconds"] for run in runs]
    if any(again):
        yield row("computed again", "", again, duration)
    for lane in dict.fromkeys(lane for run in runs for lane in run["traffic"]):
        moved = [run["traffic"].get(lane, 0) for run in runs]
        if any(moved):
            yield row(lane, "", moved, mib)


def _words(paragraphs: Iterable[Json]) -> str:
    """What `penstock explain` says, folded away."""
    shown = "".join(
        f"<h3>{escape(it['title'])}</h3><ul>"
        f"{''.join(f'<li>{escape(line.strip())}</li>' for line in it['lines'])}</ul>"
        for it in paragraphs
    )
    return f"<details class='panel words'><summary><h2>In words</h2></summary>{shown}</details>"


# -- the curve -----------------------------------------------------------------------------------


def _curve(curve: Json) -> str:
    fastest = {(budget, name) for budget, _, name in curve["front"]}
    named = [policy for policy in curve["policies"] if policy["points"]]
    budgets = sorted({point[0] for policy in named for point in policy["points"]})
    head = "".join(f"<th>{escape(policy['name'])}</th>" for policy in named)
    found = [{point[0]: point[1] for point in policy["points"]} for policy in named]
    rows = "".join(
        f"<tr><td>{mib(budget)}</td>"
        + "".join(
            f"<td{' class=best' * ((budget, policy['name']) in fastest)}>"
            f"{duration(at[budget]) if budget in at else '-'}</td>"
            for policy, at in zip(named, found, strict=True)
        )
        + "</tr>"
        for budget in budgets
    )
    missing = "".join(
        f"<li>{escape(policy['name'])}: {escape(policy['missing'])}</li>"
        for policy in curve["policies"]
        if policy["missing"]
    )
    return (
        "<section class='panel' id='curve'><div class='heading'><h2>Step time by budget</h2></div>"
        "<p class='note'>Each policy at each budget, as predicted. The broad line is the Pareto "
        "front: what no other plan beats in both.</p>"
        "<div class='chart' role='img' aria-label='Step time by budget for each policy; the table "
        "below has its figures'></div><div class='legend'></div>"
        "<details><summary>As a table</summary>"
        f"<div class='wide'><table><tr><th>budget</th>{head}</tr>{rows}</table></div></details>"
        + (
            f"<details><summary>What is missing</summary><ul>{missing}</ul></details>"
            if missing
            else ""
        )
        + "</section>"
    )


# -- steps ---------------------------------------------------------------------------------------

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
