"""Which steps are recorded: the first, then those that no known program foresees, but not for ever."""

from dataclasses import dataclass

__all__ = ["Novelty"]

_STRAYED, _ASTRAY = 3, 5
"""What a step counts that began as a known one and was another, where every step takes one off; and the
sum at which such steps are recorded: two in a row, or one in two."""
_LOOKED_AT = 4
"""Steps that are recorded from their beginning, to find one of another kind."""
_AT_ONCE, _AT_MOST = 4, 64
"""Kinds of step that are recorded when they come; of later ones more and more are let pass before, up to
so many."""
_NEAR = 0.75
"""Of the sizes of a known kind, the share with which a step is then no new kind: it follows its plan."""


@dataclass(slots=True)
class Novelty:
    """Says of the next step whether it is to be recorded; is told how each step went."""

    is_due: bool = True  # is the next step to be recorded, unless it is a known one?
    looked_at: int = 0  # steps that are to be recorded even if they begin as a known one
    _strays: int = 0  # grows with each step that began as a known one and was another
    _found: int = 0  # kinds of step that were to be recorded, beside the first
    _patience: int = 0  # steps to let pass before the next recording

    def recorded(self, *, known: bool) -> None:
        """A step was recorded: as a new one, or, looked at from its beginning, it proved to be `known`."""
        self.looked_at = max(0, self.looked_at - 1) if known else 0
        self.is_due = self.looked_at > 0

    @property
    def alike(self) -> float:
        """Of a known kind's sizes, the share with which a step passes for it, and is not recorded."""
        return 1.0 if self._found <= _AT_ONCE else _NEAR

    def adapted(self, likeness: float) -> None:
        """A step had this share of the sizes of a known kind, and followed its plan."""
        if likeness < self.alike:
            self.changed(begun_alike=False)

    def passed(self) -> None:
        """A step ran that was not recorded."""
        self._strays = max(0, self._strays - 1)

    def changed(self, *, begun_alike: bool) -> None:
        """The last step left the recorded path: record the next one like it, but not for ever.

        Did it begin as a known one, the next like it cannot be told in time. If it is but one of many
        steps, as one is whose norms are logged, it may run on demand where it differs; if not, the next
        few are recorded from their beginning.
        """
        if begun_alike:
            self._strays += _STRAYED
            if self._strays < _ASTRAY:
                return
        self._patience -= 1
        if self._patience <= 0:
            self.is_due = True
            self.looked_at = _LOOKED_AT if begun_alike else 0
            self._strays = 0
            self._found += 1
            self._patience = (
                min(1 << self._found - _AT_ONCE, _AT_MOST) if self._found > _AT_ONCE else 0
            )
