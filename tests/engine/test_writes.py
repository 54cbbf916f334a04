"""Bytes that change without an op: by numpy, by a kernel of somebody's own that asks for an address."""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from penstock.ir.plan import Plan, Recompute
from penstock.ir.policy import Need, Problem
from penstock.session import Session
from runs import digest

ROWS, WIDTH = 1024, 256


class Remake:
    """Remakes what `sin` made, when backward asks for it."""

    paper: ClassVar[None] = None
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __call__(self, problem: Problem) -> Plan:
        trace = problem.trace
        made = {v for op in trace.ops if op.name == "aten.sin" for v in op.writes}
        gaps = [gap for gap in trace.saved_gaps(ROWS * WIDTH * 4) if gap.value in made]
        return Plan(tuple(Recompute(gap, gap.stop) for gap in gaps if gap.stop is not None))


def train(write: Callable[[Tensor], object], steps: int = 5) -> list[str]:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(ROWS, WIDTH))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    seen = []
    for number in range(steps):
        source = torch.full((ROWS, WIDTH), 0.1 * (number + 1)).cos()
        loss = (source.sin() * weight).square().mean()
        write(source)  # autograd needs it no more; what was dropped is remade from it
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(loss.detach())
    return digest([*seen, weight])


def by_numpy(source: Tensor) -> None:
    source.numpy()[:] = 0.0


def by_address(source: Tensor) -> None:
    """As a kernel of one's own does, whose launch asks for the address."""
    ctypes.memset(source.data_ptr(), 0, source.nbytes)


@pytest.mark.parametrize("write", [by_numpy, by_address])
def test_what_is_remade_is_what_was_dropped_though_its_source_was_overwritten(
    write: Callable[[Tensor], object], tmp_path: Path
) -> None:
    expected = train(write)
    with Session("1GiB", policy=Remake(), device="cpu", tier=f"disk:{tmp_path}") as session:
        assert train(write) == expected
    events = [event for report in session.reports for event in report.events]
    assert "remade: a source was about to be overwritten" in events


def test_who_only_reads_a_source_changes_nothing(tmp_path: Path) -> None:
    with Session("1GiB", policy=Remake(), device="cpu", tier=f"disk:{tmp_path}") as session:
        train(repr)
    planned = [report for report in session.reports if report.mode == "planned"]
    assert planned and planned[-1].decisions.get("recompute")
    assert not [event for report in planned for event in report.events]
