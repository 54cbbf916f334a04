"""The page in a real browser: drawn in both themes and on a phone, and it answers the pointer."""

from dataclasses import replace

import numpy as np
import pytest

from browser import Device, box, fill, share, text
from penstock.ir.plan import Plan, Swap
from penstock.ir.policy import Problem
from penstock.ir.text import parse
from penstock.ir.trace import Gap
from penstock.leaderboard import Entry
from penstock.report.curves import curve_of
from penstock.report.document import planned
from penstock.report.html import page
from penstock.simulate.run import price
from penstock.solve.best import outcome

MIB = 2**20
STEP = parse("""
    f a   x:I8M w.a.weight:P24M -> h:A48M!      1s
    f b   h                     -> y:A16M!      2s
    f c   y                     -> z:A12M       4s
    b d   z y                   -> g:T12M       1s
    b e   g h                   -> dw:G24M      2s +6M
    o sgd dw w.a.weight         -> ~w.a.weight  1s
""").relabelled("A step with a long name, <b>as it was given</b>")
PLAN = Plan((Swap(Gap(2, 1, 4), "disk", evict_at=2, prefetch_at=3),), "mine")
POINTS = [
    Entry("", "step", "card", budget * MIB, name, 11.0, budget * MIB, seconds)
    for name, times in {
        "keep": [16, 12, 11],
        "swap-all": [13, 12.5, 12],
        "chen": [19, 15, 13],
    }.items()
    for budget, seconds in zip([70, 90, 110], times, strict=True)
]


@pytest.fixture
def a_page(machine, tmp_path):
    """Two budgets, the first of them also measured; 64 times the links of the round machine."""
    fast = replace(
        machine,
        tiers=tuple(
            replace(
                t,
                write=replace(t.write, bandwidth=64 * MIB),
                read=replace(t.read, bandwidth=32 * MIB),
            )
            for t in machine.tiers
        ),
    )
    slow = replace(fast, tiers=tuple(replace(t, write=t.read) for t in fast.tiers))
    step = replace(STEP, ops=tuple(replace(op, module=f"net.{op.name}") for op in STEP.ops))
    problem = Problem(step, fast, 128 * MIB)
    found = outcome(problem, PLAN)
    tighter = replace(problem, budget=100 * MIB)
    bodies = [
        planned(problem, found, price(found.schedule, slow)),
        planned(tighter, outcome(tighter, PLAN)),
    ]
    path = tmp_path / "page.html"
    path.write_text(page(bodies, curve_of(POINTS, 11.0)))
    return path


def test_the_pictures_are_drawn_in_their_colours(browser, a_page, device):
    browser.open(a_page, device)
    picture = browser.picture()
    paper = picture[2, 2].mean()
    assert paper < 60 if device.theme == "dark" else paper > 200
    memory, curve = box(browser, "[data-pictures='0'] .chart"), box(browser, "#curve .chart")
    kinds = browser.ask(
        "[...document.querySelectorAll(\"[data-pictures='0'] .area\")].map(e => e.dataset.kind)"
    )
    assert kinds == ["parameter", "gradient", "input", "activation", "temporary", "workspace"]
    for kind in kinds:
        colour = fill(browser, f".area[data-kind={kind}]")
        assert share(picture, memory, colour) > 0.002, kind
    # h alone fills a third of the stack for most of the step.
    assert share(picture, memory, fill(browser, ".area[data-kind=activation]")) > 0.08
    for lane in ("compute", "disk write", "disk read", "stall"):
        assert lane in browser.ask("document.querySelector('.chart svg').textContent")
    assert share(picture, memory, fill(browser, ".busy")) > 0.01
    for number in range(3):
        series = f"#curve .series:nth-of-type({number + 1}) .mark"
        assert share(picture, curve, fill(browser, series)) > 0.0003, number
    assert len(np.unique(picture.astype(int) @ [1 << 16, 1 << 8, 1])) > 50
    assert browser.complaints == []


def test_nothing_is_wider_than_the_window(browser, a_page, device):
    for width in (device.width, 390) if device.is_phone else (device.width,):
        browser.open(a_page, device._replace(width=width))
        assert browser.ask("innerWidth") == width
        assert browser.ask("document.documentElement.scrollWidth") == width
        assert browser.picture().shape[1] == width


def place(browser, kind, time, above=4):
    """A point of the window in the lowest value of a kind, at a share of the picture's width."""
    browser.ask("document.querySelector('.chart').scrollIntoView({block: 'center'})")
    left, _, right, bottom = box(browser, f".area[data-kind={kind}]")
    return left + time * (right - left), bottom - above - browser.ask("scrollY")


def test_the_pointer_tells_the_value_its_module_and_the_decision(browser, a_page, device):
    browser.open(a_page, device)
    # 0.05 of the step: a runs, and h has just been made, above the weights and the input.
    browser.point(*place(browser, "activation", 0.05), "left" if device.is_phone else "none")
    tip = browser.ask("document.querySelector('.tip').innerText").split("\n")
    assert tip[0] == "h"
    assert "activation, 48 MiB, there from 0 s to" in tip[1]
    assert tip[-1] == "to disk after op 1, back for op 4"
    assert browser.ask("document.querySelector('.ribbon').getAttribute('d')").startswith("M")
    left, _, right, _ = box(browser, ".tip")
    assert left >= 0 and right <= device.width
    listed = browser.ask("document.querySelector('.moment').innerText")
    assert (
        "a (op 0)" not in listed and "w.a.weight" in listed and "w.a · parameter · kept" in listed
    )
    assert browser.complaints == []


def test_the_pointer_tells_what_a_lane_does(browser, a_page):
    browser.open(a_page, Device())
    browser.ask("document.querySelector('.chart').scrollIntoView({block: 'center'})")
    left, top, _, _ = box(browser, ".busy")
    browser.point(left + 3, top + 4 - browser.ask("scrollY"))
    tip = text(browser, ".tip")
    assert "op 0 (a, net.a)" in tip and "compute, measured" in tip and "1 s, from 0 s" in tip


def test_without_a_pointer_the_fullest_moment_is_listed(browser, a_page):
    browser.open(a_page, Device())
    data = "JSON.parse(document.getElementById('data').textContent)"
    peak = browser.ask(f"{data}.views[0].runs.measured.peak") / MIB
    told = text(browser, ".moment p")
    assert told.startswith(f"{peak:.0f} MiB at ") and "the fullest moment" in told


def test_arrow_keys_move_through_the_step(browser, a_page):
    browser.open(a_page, Device())
    before = text(browser, ".moment p")
    browser.ask(
        "document.querySelector('.chart').dispatchEvent("
        "new KeyboardEvent('keydown', {key: 'ArrowLeft', bubbles: true}))"
    )
    assert text(browser, ".moment p") != before


def test_what_was_predicted_lies_over_what_was_measured(browser, a_page):
    browser.open(a_page, Device())
    areas = (
        "[...document.querySelector('.chart').querySelectorAll('.area')]"
        ".map(area => area.getAttribute('d'))"
    )
    assert text(browser, ".switch :checked + span") == "measured"
    assert browser.ask("document.querySelector('.chart').querySelectorAll('.total').length") == 1
    measured = browser.ask(areas)
    browser.ask("document.querySelector('.switch input').click()")
    assert browser.ask(areas) != measured
    assert "measured, in all" in text(browser, ".legend")


def test_another_budget_is_drawn_when_it_is_chosen(browser, a_page):
    browser.open(a_page, Device())
    drawn = (
        "[...document.querySelectorAll('.chart')]"
        ".map(chart => chart.clientWidth > 0 && chart.querySelector('path') !== null)"
    )
    assert browser.ask(drawn) == [True, False, True]
    browser.ask("document.querySelectorAll('.choice input')[1].click()")
    browser.ask("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert browser.ask(drawn) == [False, True, True]
    assert "100 MiB" in text(browser, ".view:not([hidden])")
    assert browser.complaints == []


def test_the_pointer_tells_a_point_of_the_curve_and_dims_the_others(browser, a_page):
    browser.open(a_page, Device())
    browser.ask("document.querySelector('#curve').scrollIntoView({block: 'center'})")
    path = browser.ask("document.querySelector('#curve .series path').getAttribute('d')")
    x, y = map(float, path.removeprefix("M").split("L")[0].split(","))
    left, top, _, _ = box(browser, "#curve .chart")
    browser.point(left + x, top + y - browser.ask("scrollY"))
    assert text(browser, "#curve .tip").split("\n") == [
        "keep",
        "budget 70 MiB, peak 70 MiB",
        "16 s a step, 1.45x the step without a budget",
    ]
    assert browser.ask("document.querySelectorAll('#curve .series.faded').length") == 2
