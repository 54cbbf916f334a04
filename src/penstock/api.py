"""What programs call: `penstock.fit` around a training loop, `penstock.calibrate` for a machine."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from penstock.dispatch.resident import CAllocator, meter_for
from penstock.engine.contention import with_drag
from penstock.engine.mount import mount
from penstock.ir.machine import Machine
from penstock.ir.policy import Policy
from penstock.record.calibrate import calibrated
from penstock.record.machine import describe
from penstock.record.settle import settle
from penstock.report.files import leaving
from penstock.session import Session, StepReport, device_of
from penstock.sizes import Share

__all__ = ["calibrate", "fit"]


def fit(
    budget: str | int | Share | None = None,
    *,
    policy: str | Policy = "auto",
    tier: str | None = None,
    host_budget: str | None = None,
    disk_budget: str | None = None,
    device: str | torch.device | None = None,
    report: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    on_step: Callable[[StepReport], None] | None = None,
    verify: bool = False,
) -> Session:
    """A session that keeps the training loop inside it within `budget`.

        with penstock.fit(budget="1.5GiB") as session:
            for batch in loader:
                loss(model(batch)).backward()
                optimizer.step()
                optimizer.zero_grad()

    `budget` is a size (`"1.5GiB"`, bytes), a share of what the step takes without a budget
    (`"60%"`), or None for all of the device. It covers everything the step needs: parameters,
    gradients, optimizer state, activations, workspace, allocator slack. `tier` is where values go
    that do not fit: `"disk"`, `"disk:DIRECTORY"` or `"host"`; by default host memory for a CUDA
    device and disk for the CPU. `policy` names who plans, with options after a colon. `report` is
    one or several files, `.html` or `.json`, that are written when the session ends.

    The first two steps are recorded, while what does not fit is evicted on demand; then the plan
    runs. Raises `UsageError` for arguments that make no sense, and from inside the loop
    `BudgetError` if the step cannot be made to fit, `TierError` if a tier fails.
    """
    given = [report] if isinstance(report, str | os.PathLike) else report
    return Session(
        budget,
        policy=policy,
        tier=tier,
        host_budget=host_budget,
        disk_budget=disk_budget,
        device=device,
        on_step=on_step,
        on_close=leaving([Path(one) for one in given]),
        verify=verify,
    )


def calibrate(
    *,
    device: str | torch.device | None = None,
    tier: str | None = None,
    on_model: Callable[[str, int, int], None] = lambda label, done, of: None,
) -> Machine:
    """This machine, measured: its tiers, and what ops cost on it. Takes four minutes.

    `on_model(label, done, of)` hears of each small model before it is trained. On a CPU the costs are
    those of ops where freed memory stays with the process, and those of memory that goes back to the
    system. Raises `UsageError` and `TierError` as `fit` does.
    """
    place = device_of(device)
    settle()
    mounted = mount(tier, place)
    allocator = CAllocator() if place.type == "cpu" else None
    try:
        facts = tuple(one.store.probe() for one in mounted)
        if place.type == "cpu":  # a GPU's copies take none of its compute
            facts = tuple(with_drag(m.store, tier) for m, tier in zip(mounted, facts, strict=True))
        may_keep = allocator is not None and allocator.may_keep
        machine = describe(place, facts, may_keep_freed=may_keep)
        return calibrated(machine, place, meter_for(place), allocator, on_model)
    finally:
        if allocator is not None:
            allocator.loosen()
        for one in mounted:
            one.close()
