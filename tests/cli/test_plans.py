"""`penstock trace`, `plan`, `simulate`, `compare`, `policies`: one recorded step, many questions."""

import json
import re
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from platform import python_version

import pytest

from command import Penstock
from penstock import machines, policies
from penstock.ir.machine import Machine
from penstock.ir.plan import Plan
from penstock.ir.store import load, load_trace, save
from penstock.ir.text import parse
from penstock.ir.timeline import Timeline
from penstock.report.policies import described

COMMANDS = (
    "run",
    "trace",
    "plan",
    "simulate",
    "compare",
    "policies",
    "machines",
    "explain",
    "report",
    "curve",
    "largest",
    "import",
)


# Four layers of 16 MiB: h1 to h3 lie idle until backward, 64 MiB are held at once.
STEP = """
    f a   x:I1M  -> h1:A16M!  10s
    f b   h1     -> h2:A16M!  10s
    f c   h2     -> h3:A16M!  10s
    f d   h3     -> h4:A16M!  10s
    b d'  h3 h4  -> g3:T1M    10s
    b c'  h2 g3  -> g2:T1M    10s
    b b'  h1 g2  -> g1:T1M    10s
"""


@pytest.fixture
def trace(tmp_path: Path, machine: Machine) -> Path:
    """That step on the machine with round numbers, as a file."""
    path = tmp_path / "step.trace"
    save(path, parse(STEP), machine)
    return path


def test_help_names_every_command(penstock: Penstock) -> None:
    ended = penstock("--help")
    assert ended.code == 0
    assert all(f" {command} " in ended.out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(penstock: Penstock, command: str) -> None:
    ended = penstock(command, "--help")
    assert ended.code == 0
    assert f"penstock {command}" in ended.out


def test_the_version_is_told_with_those_of_torch_and_python(penstock: Penstock) -> None:
    ended = penstock("--version")
    assert ended.code == 0
    torch, python = version("torch"), python_version()
    assert (
        ended.out.split()
        == f"penstock {version('penstock')} (torch {torch}, Python {python})".split()
    )


def test_a_misspelt_command_is_refused(penstock: Penstock) -> None:
    ended = penstock("rum")
    assert ended.code == 2
    assert "No such command 'rum'" in ended.err


def test_a_trace_is_a_whole_step_with_its_machine(
    script: Path, tmp_path: Path, penstock: Penstock
) -> None:
    out, losses = tmp_path / "step.trace", tmp_path / "losses"
    ended = penstock("trace", "-o", out, script, losses, 9)
    assert ended.code == 0, ended.err
    assert not losses.exists()  # the script was stopped after the recorded step
    recorded, machine = load_trace(out)
    assert {op.phase for op in recorded.ops} == {"forward", "backward", "optimizer"}
    assert recorded.label == "train"
    assert f"{len(recorded.ops)} ops" in ended.out
    assert machine is not None and [tier.name for tier in machine.tiers] == ["disk"]


def test_a_trace_without_a_whole_step_is_an_error(
    script: Path, tmp_path: Path, penstock: Penstock
) -> None:
    out = tmp_path / "step.trace"
    ended = penstock("trace", "-o", out, script, tmp_path / "losses", 1)
    assert ended.code == 1
    assert "ended before a whole step was seen" in ended.err
    assert not out.exists()


def test_a_trace_that_cannot_be_written_stops_before_the_script_starts(
    script: Path, tmp_path: Path, penstock: Penstock
) -> None:
    ended = penstock("trace", "-o", tmp_path / "none" / "t", script, tmp_path / "losses", 3)
    assert ended.code == 2
    assert "is not a directory" in ended.err
    assert not (tmp_path / "losses").exists()


def test_an_output_that_only_the_script_is_given_is_said_to_be_the_scripts(
    script: Path, tmp_path: Path, penstock: Penstock
) -> None:
    ended = penstock("trace", script, "-o", tmp_path / "step.trace")
    assert ended.code == 2
    assert "-o stands after the script and goes to it" in ended.err
    assert "Missing option" in penstock("trace", script).err


def test_a_plan_is_written_and_priced(trace: Path, tmp_path: Path, penstock: Penstock) -> None:
    plan, timeline = tmp_path / "plan", tmp_path / "timeline"
    ended = penstock("plan", trace, "-b", "60%", "-o", plan, "--show")
    assert ended.code == 0, ended.err
    assert "predicted peak" in ended.out and "predicted step" in ended.out
    found = load(plan)
    assert isinstance(found, Plan) and found.decisions

    ended = penstock("simulate", trace, plan, "-b", "60%", "-o", timeline)
    assert ended.code == 0, ended.err
    priced = load(timeline)
    recorded, _ = load_trace(trace)
    assert isinstance(priced, Timeline)
    assert priced.peak <= 0.6 * recorded.peak


def test_a_timeline_is_written_for_perfetto(
    trace: Path, tmp_path: Path, penstock: Penstock
) -> None:
    out = tmp_path / "step.perfetto.json"
    assert penstock("simulate", trace, "-o", out).code == 0
    body = json.loads(out.read_text())
    assert sum(event.get("cat") == "forward" for event in body["traceEvents"]) == 4
    assert body["otherData"]["predicted"]["seconds"] == 70


def test_without_a_plan_the_step_takes_what_was_recorded(
    trace: Path, tmp_path: Path, penstock: Penstock
) -> None:
    timeline = tmp_path / "timeline"
    assert penstock("simulate", trace, "-o", timeline).code == 0
    priced, (recorded, _) = load(timeline), load_trace(trace)
    assert isinstance(priced, Timeline)
    assert priced.peak == recorded.peak == 66 * 2**20  # before d' ends: x, four h, g3
    assert priced.seconds == 70


def test_compare_shows_each_policy_at_each_budget(trace: Path, penstock: Penstock) -> None:
    ended = penstock("compare", trace, "-b", "60%", "-b", "90%")
    assert ended.code == 0, ended.err
    words = ended.out.replace("│", " ").split()
    # A row for each budget, and one of the leaderboard.
    assert all(words.count(name) == 3 for name in policies.quick())
    assert "checkmate" not in words


def test_policies_are_listed_with_what_they_do(penstock: Penstock) -> None:
    ended = penstock("policies")
    assert ended.code == 0
    assert len(ended.out.splitlines()) == len(policies.names())


@pytest.mark.parametrize("name", policies.names())
def test_a_policy_says_where_it_comes_from_and_what_its_options_mean(name: str) -> None:
    words = described(name)
    assert words.startswith(f"{name}: ")
    policy = policies.load(name)
    assert "Source: ours." in words or f"{policy.paper.venue} {policy.paper.year}" in words
    for option in fields(policy):
        assert re.search(rf"^  {option.name}  \(.+, default .*\)", words, re.MULTILINE)


def test_one_policy_is_asked_by_name(penstock: Penstock) -> None:
    ended = penstock("policies", "dtr")
    assert ended.code == 0
    assert "Assumes" in ended.out
    assert "score  (dtr|eq|local|lru|size|msps, default dtr)" in ended.out
    assert "workspace, the allocator's slack" in ended.out
    assert "did you mean dtr?" in penstock("policies", "dtrr").err


def test_machines_are_listed_and_serve_by_name(trace: Path, penstock: Penstock) -> None:
    ended = penstock("machines")
    assert ended.code == 0
    assert all(f" {name} " in ended.out for name in machines.names())
    for name in ("rtx-4090", "a100-40+ssd:980pro"):
        ended = penstock("plan", trace, "-b", "60%", "-m", name)
        assert ended.code == 0, ended.err
        assert machines.machine(name).device.name in ended.out


@pytest.mark.parametrize("command", ["plan", "simulate", "compare"])
def test_an_unknown_machine_is_answered_with_the_nearest(
    trace: Path, penstock: Penstock, command: str
) -> None:
    ended = penstock(command, trace, "-b", "60%", "-m", "rtx-4080")
    assert ended.code == 2
    assert "no machine is called 'rtx-4080'; did you mean rtx-" in ended.err
    assert "Nor is there a file 'rtx-4080'" in ended.err


def test_an_impossible_machine_file_is_answered_with_file_and_field(
    trace: Path, tmp_path: Path, penstock: Penstock
) -> None:
    path = tmp_path / "card.json"
    device = {"name": "card", "memory": 2**34, "bandwidth": -1}
    path.write_text(json.dumps({"penstock": "machine", "version": 1, "device": device}))
    ended = penstock("plan", trace, "-b", "60%", "-m", path)
    assert ended.code == 2
    assert ended.err.strip() == (
        f"penstock: {path}: device.bandwidth must be 0 or more, and finite, not -1"
    )


def test_a_budget_below_the_least_says_what_would_do(trace: Path, penstock: Penstock) -> None:
    ended = penstock("plan", trace, "-b", "1MiB")
    assert ended.code == 2
    assert "budget 1.00 MiB is too small" in ended.err and "Raise the budget to" in ended.err


def test_a_policy_that_finds_no_plan_says_what_it_needs(trace: Path, penstock: Penstock) -> None:
    lacking = ("plan", trace, "--policy", "keep", "-b")
    ended = penstock(*lacking, "50MiB")
    assert ended.code == 1
    told = " ".join(ended.err.split())
    raised = re.search(r"keep found no plan that fits.* Raise the budget to ([\d,]+) MiB", told)
    assert raised
    enough = int(raised[1].replace(",", ""))
    assert penstock(*lacking, f"{enough}MiB").code == 0
    assert penstock(*lacking, f"{enough - 1}MiB").code == 1


@pytest.mark.parametrize("command", ["plan", "simulate", "compare"])
@pytest.mark.parametrize("budget", ["12 bananas", "0", "-3MiB"])
def test_a_budget_that_makes_no_sense(
    trace: Path, penstock: Penstock, command: str, budget: str
) -> None:
    ended = penstock(command, trace, f"--budget={budget}")
    assert ended.code == 2
    assert ended.err.startswith(f"penstock: budget '{budget}' ")


@pytest.mark.parametrize("command", ["plan", "compare"])
def test_an_unknown_policy_is_answered_with_those_that_exist(
    trace: Path, penstock: Penstock, command: str
) -> None:
    ended = penstock(command, trace, "-b", "60%", "-p", "capuchine")
    assert ended.code == 2
    assert "no policy is called 'capuchine'" in ended.err
    assert all(name in ended.err for name in policies.names())


@pytest.mark.parametrize(
    "command",
    [
        "plan gone -b 1G",
        "curve gone",
        "largest gone -b 1G -m v100",
        "explain gone",
        "report gone -o x.html",
    ],
)
def test_a_wrong_option_of_a_policy_does_not_wait_for_a_recording(
    penstock: Penstock, command: str
) -> None:
    ended = penstock(*command.split(), "-p", "chen:widt=2")
    assert ended.code == 2
    assert ended.err.startswith(
        "penstock: policy chen: option 'widt=2' is not known; did you mean width"
    )


@pytest.mark.parametrize("command", ["plan gone", "explain gone", "report gone -o x.html"])
def test_nor_does_a_wrong_budget(penstock: Penstock, command: str) -> None:
    ended = penstock(*command.split(), "-b", "12 bananas")
    assert ended.code == 2
    assert ended.err.startswith("penstock: budget '12 bananas' is no size")


@pytest.mark.parametrize("command", ["plan", "simulate", "compare"])
def test_a_damaged_trace_is_said_to_be_one(
    trace: Path, tmp_path: Path, penstock: Penstock, command: str
) -> None:
    raw = trace.read_bytes()
    newer = json.dumps({"penstock": "trace", "version": 99}).encode()
    other = tmp_path / "plan"
    assert penstock("plan", trace, "-b", "90%", "-o", other).code == 0
    for content, reason in [
        (raw[: len(raw) // 2], "is damaged, or no Penstock file"),
        (b"\x00\x01\x02", "is damaged, or no Penstock file"),
        (b"", "is damaged, or no Penstock file"),
        (b"[1, 2]", "is no Penstock file"),
        (newer, "format version 99"),
        (other.read_bytes(), "this file holds a plan, not a trace"),
    ]:
        damaged = tmp_path / "damaged"
        damaged.write_bytes(content)
        ended = penstock(command, damaged, "-b", "60%")
        assert ended.code == 2
        assert reason in ended.err and str(damaged) in ended.err


def test_files_of_the_wrong_kind_are_refused(trace: Path, penstock: Penstock) -> None:
    ended = penstock("simulate", trace, trace)
    assert ended.code == 2 and "holds a trace, not a plan" in ended.err
    ended = penstock("plan", trace, "-b", "60%", "-m", trace)
    assert ended.code == 2 and "holds a trace, not a machine" in ended.err
    ended = penstock("plan", trace.parent / "none", "-b", "60%")
    assert ended.code == 2 and "cannot read" in ended.err
