"""How much compute slows down while bytes move between this machine's memory and a tier."""

import threading
import time
from dataclasses import replace
from statistics import median

import torch
from torch import UntypedStorage

from penstock.dispatch.resident import whole
from penstock.dispatch.storage import byte_view, nbytes_of
from penstock.engine.extents import Extent
from penstock.engine.tiers import TierStore, probe_bytes
from penstock.ir.machine import Tier

__all__ = ["with_drag"]

_SECONDS = 0.4
"""Of each measurement."""
_ROUNDS = 3
_AT_MOST = 0.9


def with_drag(store: TierStore, facts: Tier) -> Tier:
    """`facts` of a tier of the CPU with its drag, measured: matrix products alone, and beside copies.

    Writes and reads take turns, so the drag is their mean; the median of a few rounds.
    """
    nbytes = probe_bytes(facts.capacity)
    extent, block = store.reserve(nbytes), UntypedStorage(nbytes)
    byte_view(block).fill_(1)
    try:
        lost = median(_share_lost(store, extent, block) for _ in range(_ROUNDS))
    finally:
        store.release(extent)
    return replace(facts, drag=min(max(0.0, lost), _AT_MOST))


def _share_lost(store: TierStore, extent: Extent, block: UntypedStorage) -> float:
    stop = threading.Event()
    errors: list[BaseException] = []
    parts = whole(nbytes_of(block))

    def copy() -> None:
        try:
            while not stop.is_set():
                store.write(block, extent, parts, stop.is_set)
                store.read(extent, block, parts)
        except BaseException as error:
            if not stop.is_set():
                errors.append(error)

    alone = _rate()
    mover = threading.Thread(target=copy, name="penstock contention")
    mover.start()
    try:
        beside = _rate()
    finally:
        stop.set()
        mover.join()
    if errors:
        raise errors[0]
    return 1 - beside / alone


def _rate() -> float:
    """Matrix products per second."""
    left = torch.full((512, 512), 0.5)
    done, begun = 0, time.perf_counter()
    while (taken := time.perf_counter() - begun) < _SECONDS:
        torch.mm(left, left)
        done += 1
    return done / taken
