"""`penstock explain` on traces, plans and reports."""

from pathlib import Path

import pytest

from command import Penstock
from penstock.ir.machine import Machine
from penstock.ir.store import save
from penstock.ir.text import parse

STEP = """
    f a   x:I1M  -> h1:A16M!  10s
    f b   h1     -> h2:A16M!  10s
    f c   h2     -> h3:A16M!  10s
    b c'  h3     -> g3:T1M    10s
    b b'  h2 g3  -> g2:T1M    10s
    b a'  h1 g2  -> g1:T1M    10s
"""


@pytest.fixture
def trace(tmp_path: Path, machine: Machine) -> Path:
    path = tmp_path / "step.trace"
    save(path, parse(STEP), machine)
    return path


def test_a_trace_is_explained_for_a_budget(trace: Path, penstock: Penstock) -> None:
    ended = penstock("explain", trace, "-b", "80%")
    assert ended.code == 0, ended.err
    for title in ("Where the memory goes", "What was decided", "What limits", "What to change"):
        assert title in ended.out
    assert "h1, 16 MiB, idle for" in ended.out


def test_a_plan_is_explained_beside_its_trace(
    trace: Path, tmp_path: Path, penstock: Penstock
) -> None:
    plan = tmp_path / "plan"
    assert penstock("plan", trace, "-b", "80%", "-p", "swap-all", "-o", plan).code == 0
    ended = penstock("explain", trace, plan, "-b", "80%")
    assert ended.code == 0, ended.err
    assert "swapped to disk" in ended.out
    alone = penstock("explain", plan)
    assert alone.code == 2 and "holds a plan, not a trace" in alone.err


def test_a_report_is_explained(script: Path, tmp_path: Path, penstock: Penstock) -> None:
    report = tmp_path / "out.json"
    ended = penstock("run", "-b", "80%", "--report", report, script, tmp_path / "losses", 4)
    assert ended.code == 0, ended.err
    ended = penstock("explain", report)
    assert ended.code == 0, ended.err
    assert "One step, predicted" in ended.out and "One step, measured" in ended.out


def test_a_report_of_another_version_is_refused(tmp_path: Path, penstock: Penstock) -> None:
    report = tmp_path / "out.json"
    report.write_text('{"penstock": "report", "version": 9}')
    ended = penstock("explain", report)
    assert ended.code == 2 and "report of version 9" in ended.err
