"""Buffers that are hard to pack, and the lowest packing by trying everything."""

from itertools import permutations

from penstock.solve.offsets import Buffer

__all__ = ["GAP", "lowest"]

# 5 bytes are alive at once at most, but no packing is lower than 6.
GAP = [
    *(Buffer(7, 9, 3), Buffer(5, 9, 2), Buffer(0, 4, 3), Buffer(1, 6, 1)),
    *(Buffer(4, 7, 2), Buffer(1, 3, 1), Buffer(3, 5, 1), Buffer(0, 1, 2)),
]


def lowest(wanted):
    """By every order: some order puts each buffer as low as an optimal packing does, or lower."""
    best = None
    for order in permutations(range(len(wanted))):
        offsets = {}
        for i in order:
            start, stop, nbytes = wanted[i]
            rivals = [
                (low, low + wanted[j].nbytes)
                for j, low in offsets.items()
                if wanted[j].start < stop and start < wanted[j].stop
            ]
            spots = [0, *(high for _, high in rivals)]
            offsets[i] = min(
                spot
                for spot in spots
                if all(spot + nbytes <= low or high <= spot for low, high in rivals)
            )
        height = max((offsets[i] + wanted[i].nbytes for i in offsets), default=0)
        best = height if best is None else min(best, height)
    return best
