"""`penstock report` and what `penstock curve` draws, as a person calls them."""

import json
from pathlib import Path

import pytest

from command import Penstock
from penstock.ir.machine import Machine
from penstock.ir.store import save
from penstock.ir.text import parse
from penstock.report import curves

STEP = """
    f a   x:I1M  -> h1:A16M!  10s
    f b   h1     -> h2:A16M!  10s
    f c   h2     -> h3:A16M!  10s
    b c'  h3     -> g3:T1M    10s
    b b'  h2 g3  -> g2:T1M    10s
    b a'  h1 g2  -> g1:T1M    10s
"""
FEW = ("--points", "3", "--processes", "1")


@pytest.fixture
def trace(tmp_path: Path, machine: Machine) -> Path:
    path = tmp_path / "step.trace"
    save(path, parse(STEP).relabelled("three layers"), machine)
    return path


def test_a_page_of_a_trace_shows_budgets_and_the_curve(
    trace: Path, tmp_path: Path, penstock: Penstock
) -> None:
    out = tmp_path / "out.html"
    ended = penstock("report", trace, "-b", "100%", "-b", "70%", *FEW, "-o", out)
    assert ended.code == 0, ended.err
    text = out.read_text()
    for part in (
        "three layers",
        "Memory and lanes over the step",
        "What fills the peak",
        "In figures",
        "In words",
        "Step time by budget",
        "swap-all",
    ):
        assert part in text, part
    assert text.count("class='view'") == 2


def test_a_page_of_an_architecture_needs_no_device(tmp_path: Path, penstock: Penstock) -> None:
    out = tmp_path / "out.html"
    source = "hf:gpt2?seq=64&layers=2&batch=4"
    ended = penstock("report", source, "-m", "a100-40", "-b", "80%", "--no-curve", "-o", out)
    assert ended.code == 0, ended.err
    text = out.read_text()
    assert "A100" in text and "transformer.h.1" in text
    assert "Step time by budget" not in text


def test_a_page_of_the_report_of_a_run_has_the_same_parts_as_the_page_of_the_run(
    script: Path, tmp_path: Path, penstock: Penstock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curves, "_SECONDS", 200.0)  # the whole curve, however busy the machine is
    own, data, later = tmp_path / "own.html", tmp_path / "run.json", tmp_path / "later.html"
    reports = ["--report", own, "--report", data]
    ended = penstock("run", "-b", "60%", *reports, script, tmp_path / "losses", 4)
    assert ended.code == 0, ended.err
    assert penstock("report", data, "-o", later).code == 0
    assert later.read_text() == own.read_text()
    text = own.read_text()
    for part in (
        "Memory and lanes over the step",
        "What fills the peak",
        "Predicted against measured",
        "In words",
        "Step time by budget",
        "Steps",
    ):
        assert part in text, part
    body = json.loads(data.read_text())
    assert {policy["name"] for policy in body["curve"]["policies"]} == set(curves._ASKED)
    assert body["curve"]["front"] and "not found" not in str(body["curve"])
    assert "train.py" in text  # what was run
    assert body["measured"]["stays"]["value"]  # the run that it shows is one of the plan it shows


def test_a_run_had_its_budget_and_its_machine(
    script: Path, tmp_path: Path, penstock: Penstock
) -> None:
    data = tmp_path / "run.json"
    assert penstock("run", "-b", "1GiB", "--report", data, script, tmp_path / "losses", 3).code == 0
    ended = penstock("report", data, "-b", "1GiB", "-o", tmp_path / "out.html")
    assert ended.code == 2 and "leave out -b and -m" in ended.err


@pytest.mark.parametrize("ending", ["png", "svg", "json"])
def test_a_report_can_be_a_picture_or_data(
    trace: Path, tmp_path: Path, penstock: Penstock, ending: str
) -> None:
    out = tmp_path / f"out.{ending}"
    ended = penstock("report", trace, "-b", "70%", *FEW, "-o", out)
    assert ended.code == 0, ended.err
    content = out.read_bytes()
    match ending:
        case "png":
            assert content.startswith(b"\x89PNG\r\n")
        case "svg":
            assert b"Step time by budget" in content and b"Memory by kind of value" in content
        case "json":
            body = json.loads(content)
            assert body["curve"]["policies"] and body["predicted"]["stays"]["value"]


@pytest.mark.parametrize("ending", ["html", "png", "svg", "json"])
def test_a_curve_can_be_drawn(trace: Path, tmp_path: Path, penstock: Penstock, ending: str) -> None:
    out = tmp_path / f"curve.{ending}"
    ended = penstock("curve", trace, "-p", "keep", "-p", "chen", *FEW, "-o", out)
    assert ended.code == 0, ended.err
    content = out.read_bytes()
    match ending:
        case "png":
            assert content.startswith(b"\x89PNG\r\n")
        case "json":
            found = json.loads(content)
            assert [policy["name"] for policy in found["policies"]] == ["keep", "chen"]
            assert found["plain"] == 60
        case _:
            assert b"chen" in content and b"Pareto front" in content


def test_a_report_that_cannot_be_written_is_refused_before_anything_is_planned(
    tmp_path: Path, penstock: Penstock
) -> None:
    ended = penstock("report", tmp_path / "none.trace", "-o", tmp_path / "out.htm")
    assert ended.code == 2 and "did you mean .html?" in ended.err
    ended = penstock("curve", tmp_path / "none.trace", "-o", tmp_path / "none" / "out.png")
    assert ended.code == 2 and "there is no directory" in ended.err


def test_what_is_not_found_in_time_is_left_out(trace: Path, penstock: Penstock) -> None:
    ended = penstock("curve", trace, "-p", "keep", "--points", "2", "--limit", "0")
    assert ended.code == 0, ended.err
    rows = [line for line in ended.out.splitlines() if "MiB" in line]
    assert [row.split()[-2] for row in rows] == ["-", "-"]
