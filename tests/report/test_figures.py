"""Pictures show the numbers of the report, and say what is missing when they cannot be drawn."""

import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex

from comparisons import SMALL, entry, grid
from penstock.errors import UsageError
from penstock.ir.plan import Plan, Swap
from penstock.ir.policy import Problem
from penstock.ir.text import parse
from penstock.ir.trace import Gap
from penstock.report.comparison import comparison_of
from penstock.report.document import run
from penstock.report.figures import comparison_figure, comparison_image, curve_figure, figure, image
from penstock.report.files import check, save_timeline
from penstock.report.palette import HEAT, HELD, shade
from penstock.solve.best import outcome

MIB = 2**20
STEP = parse("""
    f a  x:I1M -> h:A4M!  1s
    f b  h     -> y:A1M   2s
    f c  y     -> z:A1M   4s
    b d  z h   -> g:T1M   1s
""")
PLAN = Plan((Swap(Gap(1, 1, 3), "disk", evict_at=2, prefetch_at=3),))


@pytest.fixture
def problem(machine):
    return Problem(STEP, machine, 7 * MIB)


@pytest.fixture
def body(problem):
    predicted = run(STEP, outcome(problem, PLAN).timeline)
    plain = run(STEP, outcome(problem, Plan()).timeline)
    held = {"times": [0.0, 4.0], "bytes": [5 * MIB, 6 * MIB]}
    return {"budget": 7 * MIB, "predicted": predicted, "measured": {**plain, "held": held}}


def areas(axes):
    return [
        c for c in axes.collections if isinstance(c, PolyCollection) and c.get_label()[0] != "_"
    ]


def test_the_stack_reaches_the_peak_under_the_budget_line(body):
    memory = figure({**body, "measured": None}).axes[0]
    top = max(path.vertices[:, 1].max() for area in areas(memory) for path in area.get_paths())
    assert top == body["predicted"]["peak"] / MIB == 7
    (budget,) = [line for line in memory.lines if line.get_label().startswith("budget")]
    assert set(budget.get_ydata()) == {7}
    assert [area.get_label() for area in areas(memory)] == ["input", "activation", "temporary"]


def test_lanes_are_as_long_as_what_ran_on_them(body):
    lanes = figure({**body, "measured": None}).axes[1]
    names = [label.get_text() for label in lanes.get_yticklabels()]
    busy = {
        name: sum(np.ptp(path.vertices[:, 0]) for path in bars.get_paths())
        for name, bars in zip(names, lanes.collections, strict=True)
    }
    # a, b, c and d; h waits 2 s; 4 MiB at 4 MiB/s out and at 2 MiB/s back.
    assert busy == {"compute": 8, "stall": 2, "disk write": 1, "disk read": 2}


def test_the_prediction_is_drawn_over_what_was_measured(body):
    drawn = figure(body)
    assert len(drawn.axes) == 4
    lines = {line.get_label(): line for line in drawn.axes[2].lines}
    assert max(lines["predicted"].get_ydata()) == body["predicted"]["peak"] / MIB
    assert list(lines["device"].get_ydata()) == [5, 6]
    assert "predicted" not in {line.get_label() for line in drawn.axes[0].lines}


def test_images_are_what_their_name_says_and_the_same_each_time(body):
    assert image(body, "png").startswith(b"\x89PNG\r\n")
    svg = image(body, "svg")
    assert svg == image(body, "svg")
    texts = {node.text.strip() for node in ET.fromstring(svg).iter() if node.text}
    assert {"Memory by kind of value, predicted", "budget 7.00 MiB", "disk read"} <= texts


def test_a_session_without_a_plan_has_a_picture_that_says_so():
    body = {"budget": MIB, "predicted": None, "measured": None}
    assert b"nothing to draw" in image(body, "svg")


def test_a_timeline_is_saved_as_the_end_of_the_name_says(problem, tmp_path: Path):
    found = outcome(problem, PLAN)
    save_timeline(tmp_path / "step.svg", problem, found)
    assert b"disk write" in (tmp_path / "step.svg").read_bytes()
    save_timeline(tmp_path / "step.png", problem, found)
    assert (tmp_path / "step.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_extra_is_named_before_the_run(monkeypatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r"pip install 'penstock\[plots\]'"):
        check(tmp_path / "out.png")
    check(tmp_path / "out.html")


CURVE = {
    "plain": 8.0,
    "policies": [
        {"name": "keep", "points": [[8 * MIB, 8.0, 8 * MIB]], "missing": "its plans do not fit"},
        {
            "name": "swap",
            "points": [[4 * MIB, 32.0, 4 * MIB], [8 * MIB, 9.0, 8 * MIB]],
            "missing": "",
        },
    ],
    "front": [[4 * MIB, 32.0, "swap"], [8 * MIB, 8.0, "keep"]],
}


def test_the_curve_shows_each_policy_and_the_front():
    (axes,) = curve_figure(CURVE).axes
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines) == ["Pareto front", "without a budget", "keep", "swap"]
    assert list(lines["swap"].get_xdata()) == [4, 8] and list(lines["swap"].get_ydata()) == [32, 9]
    assert list(lines["Pareto front"].get_ydata()) == [32, 8]
    assert axes.get_yscale() == "log"  # 32 s beside 8 s


def test_the_curve_stands_below_the_lanes(body):
    drawn = figure({**body, "curve": CURVE})
    assert [axes.get_title(loc="left") for axes in drawn.axes][-2:] == [
        "Lanes, measured",
        "Step time by budget",
    ]
    assert image({**body, "curve": CURVE}, "svg") == image({**body, "curve": CURVE}, "svg")


def test_a_heat_map_has_a_cell_for_each_point_in_the_colour_of_its_slowdown():
    body = comparison_of(SMALL)
    heat, curve = comparison_figure(body).axes
    assert len(heat.patches) == len(body["points"]["state"]) == 12
    policies = [label.get_text() for label in heat.get_yticklabels()]
    assert policies == body["policies"]
    cells = {(p.get_y() + 0.5, p.get_x() + 0.5): p for p in heat.patches}
    # solver 1.02 and 1.50, swap 1.04 and 3.10; keep does not fit, picky makes no plan.
    at = {(0, 0): "1.02", (0, 1): "1.50", (2, 0): "1.04", (2, 1): "3.10"}
    shown = {(t.get_position()[1], t.get_position()[0]): t.get_text() for t in heat.texts}
    for place, figure_ in at.items():
        assert shown[place] == figure_
        assert to_hex(cells[place].get_facecolor()) == HEAT[shade(float(figure_))]
    assert cells[3, 0].get_hatch() and not cells[4, 0].get_hatch()
    assert to_hex(cells[4, 0].get_facecolor()) == HELD
    lines = {line.get_label(): line for line in curve.lines}
    assert list(lines["swap"].get_xdata()) == [800, 400]
    assert list(lines["Pareto front"].get_ydata()) == [15.0, 10.2]


def test_what_was_predicted_stands_hollow_beside_what_was_measured():
    run = {"on": "run here", "foretold": 10.0, "foretold_peak": 590 * MIB}
    body = comparison_of([entry("swap", 0.6, 11.0, **run)], measured=True)
    _, curve = comparison_figure(body).axes
    lines = {line.get_label(): line for line in curve.lines}
    assert list(lines["swap"].get_ydata()) == [11.0]
    assert (list(lines["_predicted"].get_xdata()), list(lines["_predicted"].get_ydata())) == (
        [590],
        [10.0],
    )


def test_a_comparison_is_a_picture_whatever_its_size():
    for entries in ([], SMALL, grid(steps=1, machines=3, budgets=2), grid(steps=9, machines=1)):
        body = comparison_of(entries)
        assert comparison_image(body, "png").startswith(b"\x89PNG")
        svg = comparison_image(body, "svg")
        assert svg == comparison_image(body, "svg")
        ET.fromstring(svg)
