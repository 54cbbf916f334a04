"""The placement of storages as a game: at each use, fast or slow memory until the next use.

A player sees for each operand of an op four numbers (its place, its heat, the share of either memory
that is free) and says for each where it is to be. An episode is one step of training.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from penstock.ir.policy import Problem
from penstock.solve.placement import Stored, room_above, slow_tier, whole_pages

__all__ = ["Episode", "Game", "Moves", "Player", "Turn", "balanced"]

Moves: TypeAlias = Literal["synchronous", "asynchronous"]
"""Does an op wait for the moves before it, or do they run beside it?"""
Player: TypeAlias = Callable[[NDArray[np.float64]], NDArray[np.int64]]
"""From operands x (place, heat, free above, free below) to 1 for the device and 0 for the tier."""

_REFUSED = -10.0
"""The reward for what does not fit."""


class Turn(NamedTuple):
    """What a player did with one operand: what it saw, said and got, and what it saw at the next use."""

    seen: NDArray[np.float64]
    action: int
    reward: float
    then: NDArray[np.float64] | None  # None: there is no next use


@dataclass(slots=True)
class Episode:
    """One step of training, played."""

    above: list[list[bool]]  # by storage and use: is it on the device?
    seconds: float = 0.0  # that placement costs
    turns: list[Turn] = field(default_factory=list)


class Game:
    """A problem's storages, to be placed."""

    def __init__(self, problem: Problem, storages: list[Stored], page: int, moves: Moves) -> None:
        self.problem, self.page, self.moves = problem, page, moves
        self.tier = slow_tier(problem.machine)
        self.storages = storages
        self.room = room_above(problem, storages, page)
        self.pages = [whole_pages(one.nbytes, page) for one in storages]
        self.operands: dict[int, list[tuple[int, int]]] = {}  # by op: storage and use, by number
        for number, one in enumerate(storages):
            for use, op in enumerate(one.uses):
                self.operands.setdefault(op, []).append((number, use))
        self.operands = dict(sorted(self.operands.items()))
        self.turns = sum(map(len, self.operands.values()))
        self.heat = self._heat()
        reads = [self.tier.read.seconds(one.nbytes) for one in storages]
        writes = [self.tier.write.seconds(one.nbytes) for one in storages]
        self.read_seconds, self.write_seconds = reads, writes
        self.longest = max([*reads, *writes], default=0.0) or 1.0
        extra = sum(more for one in storages for more in one.extra if np.isfinite(more))
        moved = sum(
            len(one.uses) * (reads[number] + writes[number]) for number, one in enumerate(storages)
        )
        self.worst = (extra if self.tier.direct is not None else moved) or 1.0

    def play(self, player: Player) -> Episode:
        """One episode. What does not fit is placed in the tier, whatever the player says."""
        room, ops = self.room.copy(), self.problem.trace.ops
        whole = float(max(self.room.max(initial=1), 1))
        below = float(max(self.tier.capacity, 1))
        lower = 0.0  # bytes in the tier
        found = Episode([[False] * len(one.uses) for one in self.storages])
        latest: dict[int, tuple[NDArray[np.float64], int, float]] = {}
        for op, operands in self.operands.items():
            above = [float(use > 0 and found.above[number][use - 1]) for number, use in operands]
            seen = np.empty((len(operands), 4))
            seen[:, 0] = above
            seen[:, 1] = [self.heat[number][use] for number, use in operands]
            seen[:, 2] = room[op] / whole
            seen[:, 3] = 1.0 - lower / below
            actions = player(seen).tolist()
            moved = extra = 0.0
            held = total = 0
            refused: list[int] = []
            for at, (number, use) in enumerate(operands):
                pages, was = self.pages[number], above[at] > 0
                is_above = bool(actions[at])
                rises = use > 0 and not was
                if is_above and not self._take(room, number, use, rises=rises):
                    is_above = False
                    refused.append(at)
                found.above[number][use] = is_above
                total += pages
                held += pages * is_above
                one = self.storages[number]
                if self.tier.direct is None:  # it comes back for the next use in any case
                    if not is_above and one.idle[use]:
                        moved += self.read_seconds[number] + self.write_seconds[number]
                    continue
                was_there = use > 0 or one.begins
                if is_above and not was and was_there:
                    moved += self.read_seconds[number]
                if was and not is_above:
                    moved += self.write_seconds[number]
                    lower += pages
                if not is_above:
                    extra += one.extra[use]
            own = ops[op].seconds + extra
            found.seconds += extra
            found.seconds += moved if self.moves == "synchronous" else max(moved - own, 0.0)
            reward = held / total - moved / self.longest if total else 0.0
            for at, (number, _) in enumerate(operands):
                if (before := latest.get(number)) is not None:
                    found.turns.append(Turn(*before, seen[at]))
                gained = _REFUSED if at in refused else reward
                latest[number] = seen[at], actions[at], gained
        found.turns += [
            Turn(seen, action, reward, None) for seen, action, reward in latest.values()
        ]
        return found

    def where(self, episode: Episode) -> dict[Stored, list[tuple[int, bool]]]:
        """Where an episode has each storage: from which op on, and whether in the tier."""
        direct = self.tier.direct is not None
        found: dict[Stored, list[tuple[int, bool]]] = {}
        for one, above in zip(self.storages, episode.above, strict=True):
            there: list[tuple[int, bool]] = [(0, True)] if one.lead else []
            following = [*above[1:], above[0] if one.lasts else True] if above else []
            for use, is_above, idle, then in zip(one.uses, above, one.idle, following, strict=True):
                there.append((use, direct and not is_above))
                if idle:
                    there.append((use + 1, not (is_above and (then or not direct))))
                    inner = use != one.uses[-1]
                    if inner and then and not is_above and self._moves_ahead(idle):
                        there.append((idle[-1], False))
            found[one] = there
        return found

    def _moves_ahead(self, idle: range) -> bool:
        """Does what is to be there at the op after `idle` come beside the op before that?"""
        return self.moves == "asynchronous" and self.tier.direct is not None and len(idle) > 1

    def _take(self, room: NDArray[np.int64], number: int, use: int, *, rises: bool) -> bool:
        """Hold the storage from this use up to the next, if there is room; what is pinned has its own."""
        one, pages = self.storages[number], self.pages[number]
        first = one.uses[use] + bool(one.pinned)
        if rises and self._moves_ahead(one.idle[use - 1]):
            first -= 1
        free = room[first : one.idle[use].stop]
        if free.size and int(free.min()) < pages:
            return False
        free -= pages
        return True

    def _heat(self) -> list[list[float]]:
        """By storage and use: future accesses and lifetime, less reuse distance and size."""
        rows = []
        for one in self.storages:
            for use, idle in enumerate(one.idle):
                later = len(one.uses) - 1 - use
                rows.append((later, len(idle), one.nbytes, one.dies - one.born))
        if not rows:
            return [[] for _ in self.storages]
        features = np.array(rows, np.float64)
        spread = features.max(axis=0) - features.min(axis=0)
        features = (features - features.min(axis=0)) / np.where(spread > 0, spread, 1.0)
        fullest = int(self.room.argmin())
        living, nbytes, position = [], [], 0
        for one, pages in zip(self.storages, self.pages, strict=True):
            if one.born <= fullest <= one.dies and one.uses:
                past = sum(use <= fullest for use in one.uses)
                living.append(position + max(0, past - 1))
                nbytes.append(pages)
            position += len(one.uses)
        weights, _ = balanced(
            features[living], np.array(nbytes, np.float64), float(max(self.room[fullest], 0))
        )
        heat = iter((features @ weights).tolist())
        return [[next(heat) for _ in one.uses] for one in self.storages]


def balanced(
    features: NDArray[np.float64], nbytes: NDArray[np.float64], limit: float, rounds: int = 2000
) -> tuple[NDArray[np.float64], bool]:
    """DeepTM's Algorithm 1: weights with which the hot bytes are within a tenth of `limit`.

    `features` are those of living tensors: future accesses, reuse distance, size, lifetime. A tensor
    is hot if its weighted sum is above 0. Says whether it succeeded: a few large tensors may leave no
    weights that do.
    """
    weights = np.array([1.0, -1.0, -1.0, 1.0])
    tuned = 2 if nbytes.sum() >= 2.5 * limit else 1
    for _ in range(rounds):
        hot = float(nbytes[features @ weights > 0].sum())
        if hot >= 1.1 * limit and hot > 0:
            weights[tuned] *= 1.02
        elif hot <= 0.9 * limit and hot < nbytes.sum():
            weights[tuned] *= 0.98
        else:
            return weights, 0.9 * limit <= hot <= 1.1 * limit
    return weights, False
