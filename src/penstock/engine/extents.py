"""Space in a tier, handed out as extents: best fit, neighbours joined when they are freed."""

from dataclasses import dataclass

__all__ = ["Extent", "Extents"]


@dataclass(frozen=True, slots=True)
class Extent:
    offset: int
    nbytes: int


class Extents:
    """Hands out extents of a space that can grow. Not thread-safe: one thread hands out."""

    def __init__(self, alignment: int) -> None:
        self._alignment = alignment
        self._free: dict[int, int] = {}  # offset -> bytes
        self._ends: dict[int, int] = {}  # end -> offset, of the same
        self._seams: set[int] = set()  # no extent crosses these
        self.size = 0
        self.used = 0

    def grow(self, nbytes: int, *, seam: bool = False) -> None:
        """Add `nbytes` at the end; with a `seam`, no extent will reach across where they begin."""
        start, self.size = self.size, self.size + nbytes
        if seam:
            self._seams.add(start)
        self._put(start, nbytes)

    def allocate(self, nbytes: int) -> Extent | None:
        """The smallest free extent that fits, cut to size; None if none does."""
        wanted = -(-nbytes // self._alignment) * self._alignment
        fitting = [(size, offset) for offset, size in self._free.items() if size >= wanted]
        if not fitting:
            return None
        size, offset = min(fitting)
        self._drop(offset, size)
        if size > wanted:
            self._put(offset + wanted, size - wanted)
        self.used += wanted
        return Extent(offset, wanted)

    def free(self, extent: Extent) -> None:
        self.used -= extent.nbytes
        self._put(extent.offset, extent.nbytes)

    def missing(self, nbytes: int) -> int:
        """By how much the space must grow before `nbytes` surely fit."""
        wanted = -(-nbytes // self._alignment) * self._alignment
        tail = self._ends.get(self.size)
        return wanted - (self.size - tail if tail is not None else 0)

    def _put(self, offset: int, nbytes: int) -> None:
        if offset not in self._seams and (before := self._ends.get(offset)) is not None:
            size = self._free[before]
            self._drop(before, size)
            offset, nbytes = before, nbytes + size
        end = offset + nbytes
        if end not in self._seams and (after := self._free.get(end)) is not None:
            self._drop(end, after)
            nbytes += after
        self._free[offset] = nbytes
        self._ends[offset + nbytes] = offset

    def _drop(self, offset: int, nbytes: int) -> None:
        del self._free[offset]
        del self._ends[offset + nbytes]
