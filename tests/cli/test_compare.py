"""`penstock compare`, as a person calls it: steps x machines x budgets x policies, and its file."""

import json
import re
from pathlib import Path

import pytest

from command import Penstock
from penstock.ir.machine import Device, Link, Machine, Tier
from penstock.ir.store import save
from penstock.ir.text import parse

MACHINE = Machine(Device("bench", 1 << 40), (Tier("disk", 1 << 40, Link(2e9), Link(2e9)),))
STEP = """
    f a  x:I4M -> h0:A{size}M! 5ms
    f b  h0    -> h1:A{size}M! 5ms
    f c  h1    -> h2:A{size}M! 5ms
    b c' h2    -> g2:T{size}M  5ms
    b b' h1 g2 -> g1:T{size}M  5ms
    b a' h0 g1 -> g0:T{size}M  5ms
"""


@pytest.fixture
def traces(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / name for name in ("small.trace", "large.trace")]
    for path, size in zip(paths, (8, 64), strict=True):
        save(path, parse(STEP.format(size=size)), MACHINE)
    return paths


def test_steps_machines_budgets_and_policies_become_a_leaderboard(
    traces: list[Path], tmp_path: Path, penstock: Penstock
) -> None:
    results = tmp_path / "results.jsonl"
    asked = ("compare", *traces, "-b", "85%", "-b", "1GiB", "-m", "a100-40", "-m", "v100-16")
    asked = (*asked, "-p", "keep", "-p", "belady", "-o", results, "--processes", "1")
    ended = penstock(*asked)
    assert ended.code == 0, ended.err
    # 2 steps x 2 machines x 2 budgets.
    assert "8 problems, of which 8 are fitted by some policy" in ended.out
    rows = {
        words[0]: words[1:]
        for line in ended.out.splitlines()
        if (words := line.replace("│", " ").split()) and words[0] in {"keep", "belady"}
    }
    assert rows["keep"][:2] == ["50%", "1.000x"]  # it needs all of itself
    assert rows["belady"][0] == "100%"
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert len(lines) == 16
    assert {(line["step"], line["on"]) for line in lines} == {
        (str(path), on) for path in traces for on in ("a100-40", "v100-16")
    }
    before = results.read_bytes()
    again = penstock(*asked)
    assert (again.code, again.out) == (0, ended.out)
    assert results.read_bytes() == before


def test_one_step_is_shown_point_by_point(traces: list[Path], penstock: Penstock) -> None:
    ended = penstock("compare", traces[0], "-b", "85%", "-p", "keep", "-p", "belady")
    assert ended.code == 0, ended.err
    assert "problems" not in ended.out
    assert re.search(r"keep .* no, .* over", ended.out)
    assert re.search(r"belady .* yes ", ended.out)


def test_a_comparison_leaves_a_page_a_picture_and_data(
    traces: list[Path], tmp_path: Path, penstock: Penstock
) -> None:
    paths = [tmp_path / f"out.{ending}" for ending in ("html", "svg", "json")]
    asked = ("compare", traces[0], "-b", "85%", "-b", "95%", "-p", "keep", "-p", "belady")
    ended = penstock(*asked, *(part for path in paths for part in ("--report", path)))
    assert ended.code == 0, ended.err
    page, picture, data = (path.read_text() for path in paths)
    assert "<h1>belady is best over all" in page
    assert "belady" in picture and "85%" in picture
    body = json.loads(data)
    assert (body["penstock"], body["measured"]) == ("comparison", False)
    assert body["policies"] == ["belady", "keep"]
    assert body["points"]["state"] == ["fits", "fits", "short", "short"]


def test_a_report_that_cannot_be_written_is_refused_before_anything_is_planned(
    tmp_path: Path, penstock: Penstock
) -> None:
    missing, page = tmp_path / "none.trace", tmp_path / "out.htm"
    ended = penstock("compare", missing, "-b", "85%", "--report", page)
    assert ended.code == 2 and "did you mean .html?" in ended.err


@pytest.mark.parametrize(
    ("content", "says"), [("mine\n", "line 1: no result of penstock compare"), (None, "directory")]
)
def test_a_file_that_cannot_be_one_of_results_is_refused(
    traces: list[Path], tmp_path: Path, penstock: Penstock, content: str | None, says: str
) -> None:
    results = tmp_path / "results.jsonl" if content else tmp_path / "missing" / "results.jsonl"
    if content:
        results.write_text(content)
    ended = penstock("compare", traces[0], "-b", "85%", "-p", "keep", "-o", results)
    assert ended.code == 2
    assert str(results) in ended.err and says in ended.err


def test_execute_is_for_architectures_on_this_machine(
    traces: list[Path], penstock: Penstock
) -> None:
    ended = penstock("compare", "zoo:gan", "-b", "85%", "-p", "keep", "-m", "a100-40", "--execute")
    assert ended.code == 2 and "--execute measures on this machine; leave -m out" in ended.err
    ended = penstock("compare", traces[0], "-b", "85%", "-p", "keep", "--execute")
    assert ended.code == 2 and "names no architecture" in ended.err
