"""Copies beside compute: the drag of a tier is measured, and its space is given back."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from torch import UntypedStorage

from penstock.dispatch.resident import Part
from penstock.engine.contention import with_drag
from penstock.engine.extents import Extent
from penstock.engine.tiers.disk import DiskStore
from penstock.errors import TierError


def test_the_drag_of_a_disk_is_a_share_and_leaves_nothing_behind(tmp_path: Path) -> None:
    store = DiskStore(str(tmp_path), 1 << 30)
    try:
        facts = store.probe()
        found = with_drag(store, facts)
        assert 0 <= found.drag <= 0.9
        assert found.write == facts.write
        assert store.used() == 0
    finally:
        store.close()


def test_an_error_of_the_tier_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DiskStore(str(tmp_path), 1 << 30)
    facts = store.probe()

    def fail(extent: Extent, target: UntypedStorage, parts: Sequence[Part]) -> None:
        raise TierError("the disk is gone")

    monkeypatch.setattr(store, "read", fail)
    try:
        with pytest.raises(TierError, match="the disk is gone"):
            with_drag(store, facts)
        assert store.used() == 0
    finally:
        store.close()
