"""Space in a tier: extents never overlap, and what is freed can be handed out whole again."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.extents import Extent, Extents

ALIGNMENT = 4096
SIZES = st.integers(1, 8 * ALIGNMENT)
# A positive number allocates that many bytes; a negative one frees the extent that far back.
WORK = st.lists(SIZES | st.integers(-20, -1), max_size=60)


def work(space: Extents, steps: list[int], *, slab: int = 0) -> list[Extent]:
    """Allocate and free; returns what is still held. With a `slab`, growth comes with seams."""
    held: list[Extent] = []
    for step in steps:
        if step < 0:
            if held:
                space.free(held.pop(step % len(held)))
            continue
        extent = space.allocate(step)
        if extent is None:
            space.grow(slab or space.missing(step), seam=bool(slab))
            extent = space.allocate(step)
        assert extent is not None
        assert extent.nbytes >= step
        held.append(extent)
    return held


@given(WORK)
def test_extents_are_aligned_and_never_overlap(steps: list[int]) -> None:
    space = Extents(ALIGNMENT)
    held = sorted(work(space, steps), key=lambda extent: extent.offset)
    assert all(extent.offset % ALIGNMENT == 0 for extent in held)
    assert all(a.offset + a.nbytes <= b.offset for a, b in pairwise(held))
    assert all(extent.offset + extent.nbytes <= space.size for extent in held)
    assert space.used == sum(extent.nbytes for extent in held)


@given(WORK)
def test_when_all_is_freed_the_whole_space_is_one_extent_again(steps: list[int]) -> None:
    space = Extents(ALIGNMENT)
    for extent in work(space, steps):
        space.free(extent)
    assert space.used == 0
    if space.size:
        assert space.allocate(space.size) == Extent(0, space.size)


@given(WORK)
def test_what_is_said_to_be_missing_is_enough_and_not_too_much(steps: list[int]) -> None:
    space = Extents(ALIGNMENT)
    work(space, steps)
    wanted = space.size + 1  # more than any free extent
    missing = space.missing(wanted)
    assert ALIGNMENT <= missing <= wanted + ALIGNMENT
    space.grow(missing)
    assert space.allocate(wanted) is not None


@given(WORK)
def test_no_extent_crosses_a_seam(steps: list[int]) -> None:
    space, slab = Extents(ALIGNMENT), 8 * ALIGNMENT
    held = work(space, steps, slab=slab)
    assert all(e.offset // slab == (e.offset + e.nbytes - 1) // slab for e in held)
    for extent in held:
        space.free(extent)
    again = [space.allocate(slab) for _ in range(space.size // slab)]
    assert None not in again  # each slab is whole again
    assert space.allocate(1) is None


def test_the_smallest_hole_that_fits_is_taken() -> None:
    space = Extents(1)
    space.grow(100)
    wide, _, narrow, _ = (space.allocate(size) for size in (30, 10, 20, 40))
    assert wide is not None and narrow is not None
    space.free(wide)
    space.free(narrow)
    assert space.allocate(15) == Extent(narrow.offset, 15)
    assert space.allocate(25) == Extent(wide.offset, 25)
