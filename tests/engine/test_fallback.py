"""Torch before 2.13 cannot exchange the bytes of storages: then they are copied, to the same bits."""

from pathlib import Path
from typing import Any

import pytest

from runs import MIB, Compared, apart, compare, without_exchange

STEPS = 4


@pytest.mark.parametrize("policy", ["auto", "chen"])
@pytest.mark.parametrize("name", ["gpt2", "resnet"])
def test_a_session_without_exchange_changes_no_bit(name: str, policy: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"tier": f"disk:{tmp_path}", "policy": policy}
    found: Compared = apart(without_exchange, compare, name, "60%", STEPS, **options)
    assert found.losses == found.plain_losses
    assert found.state == found.plain_state
    assert found.planned
    moved = sum(sum(report.traffic.values()) for report in found.reports)
    remade = sum(report.decisions.get("recompute", 0) for report in found.planned)
    assert moved > MIB or remade  # something did leave
    assert not list(tmp_path.iterdir())
