"""`penstock run`: scripts run as Python runs them, errors come before the script does."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from command import Penstock

MIB = 1 << 20


def test_a_script_in_three_quarters_of_its_memory_gives_the_losses_of_plain_python(
    script: Path, tmp_path: Path
) -> None:
    plain, under = tmp_path / "plain", tmp_path / "under"
    subprocess.run([sys.executable, script, plain, "5"], check=True)
    command = [sys.executable, "-m", "penstock", "run", "--budget", "75%", script, under, "5"]
    ended = subprocess.run(command, check=True, capture_output=True, text=True)
    assert under.read_text() == plain.read_text()
    assert ended.stderr == ""  # nobody watches, so nothing is said


def test_on_a_terminal_every_step_is_one_line(script: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "penstock", "run", "-b", "75%", script, tmp_path / "out", "5"]
    running = subprocess.Popen(command, stderr=theirs, env={**os.environ, "COLUMNS": "200"})
    os.close(theirs)
    said = ""
    try:
        while part := os.read(ours, 4096):
            said += part.decode()
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert running.wait() == 0
    lines = said.splitlines()
    assert lines[0].startswith("penstock: recording")
    assert any(line.startswith("penstock: planning") for line in lines)
    steps = [line.split()[:3] for line in lines if line.startswith("step ")]
    modes = ["recorded", "recorded", "planned", "planned", "planned"]
    assert steps == [["step", str(number), mode] for number, mode in enumerate(modes, start=1)]


def test_reports_say_what_was_asked_predicted_and_measured(
    script: Path, tmp_path: Path, penstock: Penstock
) -> None:
    as_json, as_html = tmp_path / "out.json", tmp_path / "out.html"
    as_chrome = tmp_path / "out.perfetto.json"
    reports = ["--report", as_json, "--report", as_html, "--report", as_chrome]
    budget = ["--budget", "60%", "--tier", f"disk:{tmp_path}", "--disk-budget", "1GiB"]
    ended = penstock("run", *budget, *reports, script, tmp_path / "losses", 5)
    assert ended.code == 0, ended.err
    body = json.loads(as_json.read_text())
    assert body["policy"] == "auto"
    assert 0 < body["budget"] < body["without_budget"]["peak"]
    assert body["tiers"] == [{"name": "disk", "budget": 1 << 30}]
    assert [step["mode"] for step in body["steps"]] == ["recorded"] * 2 + ["planned"] * 3
    for step in body["steps"][2:]:
        assert step["predicted_peak"] > 0
        assert step["peak"] > 0 and step["seconds"] > 0 and step["predicted_seconds"] > 0
        assert step["decisions"]["swap"] + step["decisions"]["recompute"] > 0
        assert {"input", "room", "fence"} <= set(step["stalls"])
    for run in (body["predicted"], body["measured"]):
        held = [sum(column) for column in zip(*run["curve"]["bytes"].values(), strict=True)]
        assert max(held) == run["peak"]  # thinning keeps the peak
        assert len(run["lanes"]["compute"]) > 0
        for stretches in run["lanes"].values():
            assert all(start <= end for start, end, _ in stretches)
    assert len(body["measured"]["held"]["times"]) == len(body["measured"]["held"]["bytes"]) > 0

    chrome = json.loads(as_chrome.read_text())
    for run in ("predicted", "measured"):
        assert chrome["otherData"][run]["peak"] == body[run]["peak"]

    page = as_html.read_text()
    assert len(page.encode()) < MIB
    assert "<script src" not in page and "<link" not in page  # it works offline
    assert "optimizer state" in page and "disk write" in page
    assert list(tmp_path.glob(".out*")) == []  # no half-written file is left


def test_a_report_that_cannot_be_written_stops_the_run_before_the_script_starts(
    script: Path, tmp_path: Path, penstock: Penstock
) -> None:
    losses = tmp_path / "losses"
    for path, reason in [
        (tmp_path / "none" / "out.json", f"no directory {tmp_path / 'none'}"),
        (tmp_path / "out.txt", "its name must end in .html, .json"),
        (tmp_path / "out.htm", "did you mean .html?"),
        (script / "out.json", "no directory"),
    ]:
        ended = penstock("run", "-b", "1GiB", "--report", path, script, losses, 1)
        assert ended.code == 2
        assert reason in ended.err
    folder = tmp_path / "folder.json"
    folder.mkdir()
    ended = penstock("run", "-b", "1GiB", "--report", folder, script, losses, 1)
    assert ended.code == 2 and "it is a directory" in ended.err
    assert not losses.exists()


@pytest.mark.parametrize(
    ("budget", "reason"),
    [
        ("12 bananas", "'12 bananas' is no size: write a number and a unit"),
        ("0", "must be more than 0"),
        ("-1GiB", "must be more than 0"),
        ("0%", "must be more than 0 %"),
        ("half%", "write a number before %"),
    ],
)
def test_a_budget_that_makes_no_sense_stops_the_run_before_the_script_starts(
    script: Path, tmp_path: Path, penstock: Penstock, budget: str, reason: str
) -> None:
    ended = penstock("run", f"--budget={budget}", script, tmp_path / "losses", 1)
    assert (ended.code, ended.out) == (2, "")
    assert reason in ended.err
    assert not (tmp_path / "losses").exists()


def test_a_budget_below_the_least_says_what_would_do(
    script: Path, tmp_path: Path, penstock: Penstock
) -> None:
    ended = penstock("run", "--budget", "2MiB", script, tmp_path / "losses", 3)
    assert ended.code == 2
    assert ended.err.startswith("penstock: budget 2.00 MiB is too small")
    assert "Raise the budget to" in ended.err


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--policy", "capuchine"], "no policy is called 'capuchine'"),
        (["--policy", "keep:speed=9"], "option 'speed=9' is not known"),
        (["--tier", "moon"], "tier 'moon' is unknown; use host, disk"),
        (["--tier", "disk:/no/such/folder"], "/no/such/folder"),
        (["--device", "abacus"], "device 'abacus' is unknown"),
        (["--disk-budget", "much"], "disk budget 'much' is no size"),
    ],
)
def test_options_that_make_no_sense_stop_the_run_before_the_script_starts(
    script: Path, tmp_path: Path, penstock: Penstock, options: list[str], reason: str
) -> None:
    ended = penstock("run", "-b", "1GiB", *options, script, tmp_path / "losses", 1)
    assert (ended.code, ended.out) == (2, "")
    assert reason in ended.err
    assert not (tmp_path / "losses").exists()


def test_a_script_that_is_not_there(tmp_path: Path, penstock: Penstock) -> None:
    ended = penstock("run", "-b", "1GiB", tmp_path / "none.py")
    assert ended.code == 2
    assert ended.err.startswith("penstock: there is no script ")
    ended = penstock("run", "-b", "1GiB", tmp_path)
    assert ended.code == 2 and "is a directory; name the script to run" in ended.err


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("", 0),
        ("sys.exit()", 0),
        ("sys.exit(3)", 3),
        ("sys.exit('too bad')", 1),
        ("1 / 0", 1),
        ("raise KeyboardInterrupt", 130),
        ("os.kill(os.getpid(), signal.SIGTERM)", 143),
    ],
)
def test_the_exit_code_is_the_scripts_own(
    tmp_path: Path, penstock: Penstock, ending: str, code: int
) -> None:
    path = tmp_path / "ends.py"
    path.write_text(f"import os, signal, sys\n{ending}\n")
    assert penstock("run", "-b", "1GiB", path).code == code


def test_a_script_finds_its_arguments_and_its_neighbours(
    tmp_path: Path, penstock: Penstock
) -> None:
    (tmp_path / "neighbour_of_a_script.py").write_text("word = 'hello'")
    path = tmp_path / "asks.py"
    path.write_text(
        "import sys, neighbour_of_a_script as near\nprint(__name__, sys.argv[1:], near.word)\n"
    )
    ended = penstock("run", "-b", "1GiB", path, "--budget", "mine", "-v")
    assert ended.out == "__main__ ['--budget', 'mine', '-v'] hello\n"
    assert ended.err == ""


def test_a_budget_that_only_the_script_is_given_is_said_to_be_the_scripts(
    tmp_path: Path, penstock: Penstock
) -> None:
    path = tmp_path / "asks.py"
    path.write_text("import sys\nprint(sys.argv[1:])\n")
    ended = penstock("run", path, "--budget=60%")
    assert ended.out == "['--budget=60%']\n"
    assert "--budget=60% stands after the script" in ended.err


def test_an_error_of_the_script_is_shown_without_our_frames(
    tmp_path: Path, penstock: Penstock
) -> None:
    path = tmp_path / "fails.py"
    path.write_text("def fail():\n    raise KeyError('mine')\n\nfail()\n")
    ended = penstock("run", "-b", "1GiB", path)
    assert ended.code == 1
    assert ended.err.splitlines()[-1] == "KeyError: 'mine'"
    files = [line for line in ended.err.splitlines() if line.startswith("  File ")]
    assert files and all(str(path) in line for line in files)


def test_a_script_without_a_step_still_leaves_reports(tmp_path: Path, penstock: Penstock) -> None:
    path = tmp_path / "idle.py"
    path.write_text("print('no step here')\n")
    reports = [tmp_path / "out.json", tmp_path / "out.html"]
    options = [part for report in reports for part in ("--report", report)]
    ended = penstock("run", "-b", "1GiB", *options, path)
    assert (ended.code, ended.out) == (0, "no step here\n")
    body = json.loads(reports[0].read_text())
    assert (body["steps"], body["predicted"], body["measured"]) == ([], None, None)
    assert "No step was planned" in reports[1].read_text()


def test_a_report_of_steps_whose_shape_changes(tmp_path: Path, penstock: Penstock) -> None:
    """The measured run that it shows, if any, is of the step that it predicts."""
    path, report = tmp_path / "varies.py", tmp_path / "out.json"
    path.write_text(
        "import torch\n"
        "model = torch.nn.Linear(512, 512)\n"
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "for layers in (1, 1, 1, 1, 3, 3, 1, 2):\n"
        "    h = torch.ones(1024, 512)\n"
        "    for _ in range(layers):\n"
        "        h = model(h).tanh()\n"
        "    h.mean().backward()\n"
        "    optimizer.step()\n"
        "    optimizer.zero_grad()\n"
    )
    ended = penstock("run", "-b", "1GiB", "--report", report, path)
    assert ended.code == 0, ended.err
    body = json.loads(report.read_text())
    assert len(body["steps"]) == 8
    if body["measured"] is not None:
        runs = [body[name]["curve"]["bytes"] for name in ("predicted", "measured")]
        assert runs[0].keys() == runs[1].keys()
    assert any("fallback" in event for step in body["steps"] for event in step["events"])
