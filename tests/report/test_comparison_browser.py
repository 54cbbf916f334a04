"""The page of a comparison in a real browser: heat-map, curves, both themes, phone, keyboard."""

import numpy as np
import pytest

from browser import Device, box, share, text
from comparisons import MIB, SMALL, entry, grid
from penstock.report.comparison import comparison_of
from penstock.report.comparison_page import comparison_page

CROSS = "\N{MULTIPLICATION SIGN}"


def written(path, entries, **facts):
    path.write_text(comparison_page(comparison_of(entries, **facts)))
    return path


@pytest.fixture
def a_page(tmp_path):
    return written(tmp_path / "small.html", SMALL)


@pytest.fixture
def large(tmp_path):
    return written(tmp_path / "large.html", grid())


def cell(policy, column):
    """Selects a cell by the policy's place on the leaderboard and the column."""
    return f'#heat td[data-p="{policy}"][data-c="{column}"]'


def rows(browser):
    return browser.ask(
        "[...document.querySelectorAll('#heat tbody tr')]"
        ".map(row => [...row.children].map(cell => cell.textContent))"
    )


def point_at(browser, selector, button="none"):
    browser.ask(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
    left, top, right, bottom = box(browser, selector)
    browser.point((left + right) / 2, (top + bottom) / 2 - browser.ask("scrollY"), button)


def test_every_point_has_its_figure_or_its_mark(browser, a_page):
    browser.open(a_page, Device())
    assert rows(browser) == [
        ["solver", "~1.02", "1.50"],
        ["remake", "1.20", "1.50"],
        ["swap", "1.04", "3.10"],
        ["keep", "≥100%", "≥100%"],
        ["picky", CROSS, CROSS],
        ["slow", "time", "tier"],
    ]
    assert browser.complaints == []


def test_cells_have_the_colour_of_their_class_and_marks_are_no_plain_colour(
    browser, a_page, device
):
    browser.open(a_page, device)
    picture = browser.picture()
    paper = picture[2, 2].mean()
    assert paper < 60 if device.theme == "dark" else paper > 200

    def shown(policy, column):
        left, top, right, bottom = box(browser, cell(policy, column))
        return picture, (left + 3, top + 3, right - 3, bottom - 3)

    def colour(policy, column):
        return browser.ask(
            f"getComputedStyle(document.querySelector({cell(policy, column)!r})).backgroundColor"
        )

    fitting = {(1, 0): "h4", (2, 0): "h2", (0, 1): "h6", (2, 1): "h7"}  # 1.20, 1.04, 1.50, 3.10
    for (policy, column), name in fitting.items():
        classes = browser.ask(f"document.querySelector({cell(policy, column)!r}).className")
        assert name in classes.split()
        assert share(*shown(policy, column), colour(policy, column)) > 0.4, name
    assert len({colour(*at) for at in fitting}) == len(fitting)
    # Hatches and dots can be told from a plain cell without colours.
    for policy, column in ((3, 0), (5, 0)):
        area = [round(edge) for edge in shown(policy, column)[1]]
        part = picture[area[1] : area[3], area[0] : area[2]].mean(axis=2)
        assert part.std() > 5
    assert browser.complaints == []


def test_nothing_is_wider_than_the_window(browser, a_page, large, device):
    for page in (a_page, large):
        browser.open(page, device)
        assert browser.ask("document.documentElement.scrollWidth") == device.width
        assert browser.picture().shape[1] == device.width


def test_the_pointer_tells_the_figures_of_a_point(browser, a_page, device):
    browser.open(a_page, device)
    point_at(browser, cell(1, 0), "left" if device.is_phone else "none")
    assert text(browser, "#heat .tip").split("\n") == [
        "remake at 80% (800 MiB)",
        "step on card",
        "12 s a step, 1.20x the step without a budget",
        "peak 800 MiB",
        "1 recomputation",
        "computes 2 s again",
        "planned in 250 ms",
    ]
    left, _, right, _ = box(browser, "#heat .tip")
    assert left >= 0 and right <= device.width
    assert browser.complaints == []


def told(browser, policy, column):
    point_at(browser, cell(policy, column))
    return text(browser, "#heat .tip")


def test_the_pointer_tells_why_there_is_no_figure(browser, a_page):
    browser.open(a_page, Device())
    assert "this plan needs 1,000 MiB, 100% of the plain step" in told(browser, 3, 0)
    assert "policy Picky needs a tier below the device" in told(browser, 4, 1)
    assert "planning was given up after 5 s" in told(browser, 5, 0)
    assert "the tiers below have too little room" in told(browser, 5, 1)
    assert "not proven the best" in told(browser, 0, 0)
    assert "7 swaps" in told(browser, 2, 0) and "moves 300 MiB, waits 400 ms" in text(
        browser, ".tip"
    )


def test_the_keyboard_reaches_every_cell_and_the_figures_follow(browser, a_page):
    browser.open(a_page, Device())
    focused = "document.activeElement.tagName"
    for _ in range(20):  # the switch, then the cells
        browser.press("Tab")
        if browser.ask(focused) == "TD":
            break
    assert "solver at 80%" in text(browser, "#heat .moment")
    browser.press("ArrowDown")
    browser.press("ArrowRight")
    assert "remake at 40%" in text(browser, "#heat .moment")
    assert text(browser, "#heat .tip").startswith("remake at 40%")
    label = browser.ask("document.activeElement.getAttribute('aria-label')")
    assert label.startswith("remake at 40% (400 MiB); step on card; 15 s a step, 1.50x")
    assert browser.ask("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    for key in ("ArrowRight", "End", "Home", "ArrowUp", "ArrowUp"):  # no further than the edge
        browser.press(key)
    assert "solver at 80%" in text(browser, "#heat .moment")
    browser.press("Escape")
    assert browser.ask("document.querySelector('#heat .tip')") is None
    browser.press("Tab")  # one step out of the whole map
    assert browser.ask(focused) != "TD"


def test_without_a_pointer_the_figures_of_the_best_are_shown(browser, a_page):
    browser.open(a_page, Device())
    assert text(browser, "#heat .moment").startswith("solver at 80% (800 MiB)")


def columns(browser):
    return browser.ask("document.querySelectorAll('#heat tbody tr:first-child td').length")


def choose(browser, selector, value):
    browser.ask(
        f"(() => {{const it = document.querySelector({selector!r}); it.value = {value!r};"
        "it.dispatchEvent(new Event('change'))})()"
    )


def test_many_columns_are_an_overview_until_a_step_is_chosen(browser, large):
    browser.open(large, Device())
    is_small = "document.querySelector('#heat table').classList.contains('small')"
    assert columns(browser) == 240 and browser.ask(is_small)
    choose(browser, "#heat select[data-of=step]", "model-3 full")
    assert columns(browser) == 12 and not browser.ask(is_small)
    heads = browser.ask(
        "[...document.querySelectorAll('#heat thead tr')]"
        ".map(row => [...row.children].map(cell => cell.title || cell.textContent))"
    )
    assert heads[0] == ["machine", "card-0", "card-1", "card-2"]
    assert heads[1] == ["budget", *["80%", "60%", "40%", "25%"] * 3]
    choose(browser, "#heat select[data-of=on]", "card-1")
    assert columns(browser) == 4
    assert browser.ask("document.querySelector('#curve select').value") == "10"  # 3 x 3 + 1
    browser.ask("document.querySelector('#heat .switch input[value=overview]').click()")
    assert browser.ask(is_small)
    assert browser.complaints == []


def test_the_overview_shows_the_same_points(browser, large):
    browser.open(large, Device())
    body = comparison_of(grid())
    shown = [cells[1:] for cells in rows(browser)]
    assert len(shown) == 30
    marks = {"fits": "0123456789", "short": "≥", "none": CROSS}
    for n, state in enumerate(body["points"]["state"]):
        assert shown[n // 240][n % 240][0] in marks[state]


def test_the_curve_has_a_mark_for_each_plan_that_fits_and_the_front(browser, a_page, device):
    browser.open(a_page, device)
    marks = browser.ask(
        "[...document.querySelectorAll('#curve .chart .series .mark')]"
        ".map(it => it.getAttribute('d').split('z').length - 1)"
    )
    assert marks == [2, 2, 2]  # solver, remake, swap at both budgets
    assert browser.ask("document.querySelector('#curve .front').getAttribute('d')").startswith("M")
    assert "peak, MiB" in browser.ask("document.querySelector('#curve svg').textContent")
    picture, area = browser.picture(), box(browser, "#curve .chart")
    for number in range(3):
        drawn = f"#curve .chart .series:nth-of-type({number + 1}) .mark"
        colour = browser.ask(f"getComputedStyle(document.querySelector({drawn!r})).fill")
        assert share(picture, area, colour) > 0.0002, number


def test_the_pointer_tells_policy_and_budget_of_a_point_of_the_curve(browser, a_page):
    browser.open(a_page, Device())
    browser.ask("document.querySelector('#curve').scrollIntoView({block: 'center'})")
    path = browser.ask(
        "document.querySelectorAll('#curve .chart .series')[1].querySelector('path').getAttribute('d')"
    )
    x, y = map(float, path.removeprefix("M").split("L")[0].split(","))
    left, top, _, _ = box(browser, "#curve .chart")
    browser.point(left + x, top + y - browser.ask("scrollY"))
    assert text(browser, "#curve .tip").startswith(
        "remake at 80% (800 MiB)\nstep on card\n12 s a step"
    )
    assert browser.ask("document.querySelectorAll('#curve .series.faded').length") == 2


def test_a_cell_that_is_focused_shows_the_curve_of_its_case(browser, large):
    browser.open(large, Device())
    before = browser.ask("document.querySelector('#curve svg').outerHTML")
    browser.ask(f"document.querySelector({cell(0, 100)!r}).focus()")
    assert browser.ask("document.querySelector('#curve select').value") == "25"  # 100 / 4
    assert browser.ask("document.querySelector('#curve svg').outerHTML") != before


def test_measured_points_have_what_was_predicted_beside_them(browser, tmp_path):
    entries = [
        entry("swap", 0.6, 11.0, on="run here", foretold=10.0, foretold_peak=590 * MIB),
        entry("chen", 0.6, 12.0, on="run here", foretold=12.6, foretold_peak=600 * MIB),
    ]
    browser.open(written(tmp_path / "run.html", entries, measured=True), Device())
    assert browser.ask("document.querySelectorAll('#curve .ghost.mark').length") == 2
    said = told(browser, 0, 0)
    assert "predicted 10 s (-9.1 %)" in said
    assert "peak 600 MiB, predicted 590 MiB (-1.7 %)" in said


def test_where_nothing_fits_the_curve_says_so(browser, tmp_path):
    entries = [entry("keep", 0.5, 10.0, shortfall=MIB), entry("odd", 0.5, problem="no")]
    browser.open(written(tmp_path / "none.html", entries), Device())
    assert "No policy found a plan that fits." in text(browser, "#curve .chart")
    assert browser.complaints == []


def test_the_page_has_many_colours_and_names_are_text(browser, tmp_path, device):
    evil = "<img src=x onerror=alert(1)>"
    entries = [entry(evil, 0.5, 11.0, step=evil, on=evil), entry("b", 0.5, 12.0, step="s", on="m")]
    browser.open(written(tmp_path / "evil.html", entries), device)
    assert browser.ask("document.querySelectorAll('img').length") == 0
    assert evil in rows(browser)[0]
    point_at(browser, cell(0, 0))
    assert browser.ask("document.querySelectorAll('img').length") == 0
    assert len(np.unique(browser.picture().astype(int) @ [1 << 16, 1 << 8, 1])) > 50
    assert browser.complaints == []
