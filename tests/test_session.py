"""Whole training loops in a session: the same bits as plain PyTorch, inside the budget."""

import statistics
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

from penstock import policies
from penstock.ir.plan import Plan
from penstock.ir.policy import Need, Problem
from penstock.planner import CHARTED_ONCE
from penstock.session import Session
from penstock.zoo import names
from runs import MIB, Compared, apart, compare, in_room

STEPS = 5
"""Two are recorded, one runs the first plan, the others the plan made with what that one measured."""

# One op of these needs more than 60 % at once.
SHARES = {
    "lstm": "75%",
    "vgg-inplace": "90%",
    "adamw-fused": "80%",
    "adamw-foreach": "80%",
    "adamw-loop": "80%",
}

# What searches by learning takes its time: no limit ends it.
BRIEF = {"deeptm": "deeptm:greedy=20,episodes=20"}

UNPLANNABLE = {"moe", "varying"}
"""Their steps change, so which of them run as planned is not fixed."""

# Steps of more than 100 MiB. In smaller ones a single op may need more than 60 % at once, and what
# no step can give up (code, stacks, allocator) is a large part; the benchmark runs all at full size.
LARGE = {"gpt2", "bert", "llama", "t5", "varying", "autocast", "accumulated", "frozen"}

# What does not grow with the step: Python's objects, the stacks of the lanes' threads. It vanishes in
# the 3 % of a step of gigabytes, but not of these.
FIXED = 4 * MIB


def assert_same_bits(found: Compared) -> None:
    assert found.losses == found.plain_losses
    assert found.state == found.plain_state


def assert_within_budget(found: Compared) -> None:
    assert found.least < found.budget
    for report in found.planned:
        over = (report.peak - found.budget) / MIB
        assert report.peak <= found.budget * 1.03 + FIXED, f"{over:.1f} MiB over in {report}"


@pytest.mark.parametrize("name", names())
def test_losses_and_state_are_those_of_plain_pytorch_and_the_peak_is_in_the_budget(
    name: str, tmp_path: Path
) -> None:
    share = SHARES.get(name, "60%")
    found = apart(compare, name, share, STEPS, tier=f"disk:{tmp_path}", policy="auto:blends=12")
    assert_same_bits(found)
    if name in LARGE:
        assert_within_budget(found)
    assert found.planned or name in UNPLANNABLE
    assert not list(tmp_path.iterdir())


# `verify` compares checksums of all that leaves and comes back; it takes memory for that, so the
# peak is not looked at here.
@pytest.mark.parametrize(
    ("name", "policy"),
    [
        ("retained", "swap-all"),
        ("bert", "chen"),
        ("llama", "capuchin"),
        ("moe", "capuchin"),
        *zip(
            cycle(("resnet", "unet", "lstm", "vit", "gan", "vgg-inplace")),
            policies.names(),
            strict=False,
        ),
    ],
)
def test_no_policy_changes_a_bit(name: str, policy: str, tmp_path: Path) -> None:
    asked = BRIEF.get(policy, policies.limited(policy, 0.3))
    options = {"tier": f"disk:{tmp_path}", "policy": asked, "verify": True}
    found = apart(compare, name, SHARES.get(name, "60%"), STEPS - 1, **options)
    assert_same_bits(found)


@pytest.mark.parametrize("budget", ["60%", "115%", "250%"])
def test_what_is_freed_stays_once_a_plan_is_known_and_the_budget_holds(budget: str) -> None:
    found = apart(in_room, budget)
    assert_same_bits(found.compared)
    keeps, reports = found.keeps, found.compared.reports
    planned = [report.mode for report in reports].index("planned")
    assert planned + CHARTED_ONCE <= keeps.index(True) <= planned + CHARTED_ONCE + 2
    # But for two steps: what it takes beyond values is learnt, what these saved too.
    assert keeps[keeps.index(True) :].count(False) <= 2
    assert max(report.peak for report in reports[2:]) < found.compared.budget * 1.03 + FIXED
    # The first such steps cannot be foretold. Later ones differ by a few of its large blocks: where
    # there is room, the C allocator may place a step's blocks otherwise than the last step's.
    known = reports[keeps.index(True) + 3 :]
    errors = [abs(report.predicted_peak / report.peak - 1) for report in known]
    assert statistics.median(errors) < 0.05
    assert max(errors) < 0.1


@pytest.mark.parametrize("late", [False, True])
def test_where_the_processs_data_is_limited_nothing_that_is_freed_stays(late: bool) -> None:
    """Also where the script itself sets the limit, when the session has begun."""
    found = apart(in_room, "60%", 8 << 30, late=late)
    assert_same_bits(found.compared)
    assert not any(found.keeps)


@dataclass(frozen=True)
class Untidy:
    """Keeps everything, and leaves the heap as a solver does: full of holes."""

    paper: ClassVar[None] = None
    needs: ClassVar[frozenset[Need]] = frozenset()
    left: ClassVar[list[bytes]] = []

    def __call__(self, problem: Problem) -> Plan:
        blocks = [b"x" * (MIB // 32) for _ in range(32 * 32)]
        self.left.append(blocks[-1])
        return problem.given


def test_what_planning_leaves_in_the_heap_is_not_counted_as_the_steps(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 256))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Session("200%", policy=Untidy(), device="cpu", tier=f"disk:{tmp_path}") as session:
        for _ in range(STEPS):
            model(torch.ones(1024, 256)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert len(Untidy.left) > 1  # it was asked again
    assert session.trace.slack < 16 * MIB
