"""The least time for a chain of blocks in so many bytes: Rotor's dynamic programme.

A block runs forward in one of two ways: *saving* what its backward needs, in one of several options,
or *passing* on its output and keeping nothing. opt(m, a, b) is the least time of forward and backward
of blocks a to b in m bytes, the input of a being there and not counted:

    A   keep the input of a later block j: pass a..j-1, opt(m - input of j, j, b), then
        opt(m, a, j-1), for which a..j-1 run again
    B   save block a in option k, opt(m - what k saves, a+1, b), backward of a

What is kept or saved stays until its backward ("persistent"), so each value of a block is made for
keeps once: every schedule found here is a plan. Checkmate's integer programme may hold a value for a
while, drop it and make it anew, which no plan says; on chains it gains little by that.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from penstock.errors import SolveError

__all__ = ["Block", "Chain", "Run", "Saving", "Table", "in_units", "solve"]


@dataclass(frozen=True, slots=True)
class Saving:
    """One way of running a block so that its backward can follow. Bytes may be in any unit."""

    forward: float  # seconds
    backward: float  # seconds
    saved: int  # bytes, the output included
    forward_scratch: int = 0
    backward_scratch: int = 0


@dataclass(frozen=True, slots=True)
class Block:
    options: tuple[Saving, ...]
    passing: float  # seconds of forward without saving
    input: int  # bytes
    passing_scratch: int = 0
    others: int = 0  # bytes that are held beside the chain's own when the block's backward begins


@dataclass(frozen=True)
class Chain:
    """Blocks in order. `output`: bytes of what the last one gives."""

    blocks: tuple[Block, ...]
    output: int = 0

    @property
    def seconds(self) -> float:
        """The least time of any schedule: each block saves once."""
        return sum(min(o.forward + o.backward for o in block.options) for block in self.blocks)


class Run(NamedTuple):
    """One line of a schedule: a block is passed or saved, its input kept, its backward run."""

    verb: Literal["pass", "save", "keep", "back"]
    block: int
    option: int = 0


@dataclass(frozen=True)
class Table:
    """The answers for all budgets up to `len(seconds) - 1` bytes."""

    chain: Chain
    opt: NDArray[np.float64]  # [a, b, m]
    choice: NDArray[np.int32]  # [a, b, m]: j of case A, or -1 - k of case B

    @cached_property
    def seconds(self) -> NDArray[np.float64]:
        """By budget in bytes (the chain's input is not counted): the least time; inf if there is none."""
        found: NDArray[np.float64] = self.opt[0, -1]
        return found

    @property
    def least(self) -> int | None:
        """The smallest budget that is enough; None if the largest asked for is not."""
        enough = np.flatnonzero(np.isfinite(self.seconds))
        return int(enough[0]) if enough.size else None

    def runs(self, budget: int) -> list[Run]:
        """The schedule of the least time in `budget` bytes. Raises `SolveError` if there is none."""
        if budget < 0 or not np.isfinite(self.seconds[min(budget, len(self.seconds) - 1)]):
            raise SolveError(
                f"no schedule of the chain's {len(self.chain.blocks)} blocks fits into {budget:,} bytes"
                + ("" if self.least is None else f"; the least is {self.least:,}")
            )
        return list(self._runs(min(budget, len(self.seconds) - 1), 0, len(self.chain.blocks) - 1))

    def _runs(self, m: int, a: int, b: int) -> Iterator[Run]:
        choice = int(self.choice[a, b, m])
        if choice < 0:
            option = -1 - choice
            yield Run("save", a, option)
            if a < b:
                saved = self.chain.blocks[a].options[option].saved
                yield from self._runs(m - saved, a + 1, b)
            yield Run("back", a, option)
        else:
            yield from (Run("pass", k) for k in range(a, choice))
            yield Run("keep", choice)
            yield from self._runs(m - self.chain.blocks[choice].input, choice, b)
            yield from self._runs(m, a, choice - 1)


def solve(chain: Chain, most: int) -> Table:
    """The table for budgets up to `most` bytes. Cost: blocks cubed times bytes; choose a unit."""
    blocks = chain.blocks
    if not blocks or most < 0:
        raise SolveError(f"a chain of {len(blocks)} blocks in {most:,} bytes has no schedule")
    width = max(len(block.options) for block in blocks)
    seconds = np.full((len(blocks), width), np.inf)
    nbytes = np.zeros((3, len(blocks), width), np.int64)
    for position, block in enumerate(blocks):
        for k, option in enumerate(block.options):
            seconds[position, k] = option.forward + option.backward
            nbytes[:, position, k] = option.saved, option.forward_scratch, option.backward_scratch
    opt, choice = _fill(
        most,
        seconds,
        nbytes[0],
        nbytes[1],
        nbytes[2],
        np.array([*(block.input for block in blocks), chain.output], np.int64),
        np.array([block.passing for block in blocks], np.float64),
        np.array([block.passing_scratch for block in blocks], np.int64),
        np.array([block.others for block in blocks], np.int64),
    )
    return Table(chain, opt, choice)


@njit(cache=True)
def _fill(
    most: int,
    seconds: NDArray[np.float64],  # [block, option]
    saved: NDArray[np.int64],  # [block, option]
    forward_scratch: NDArray[np.int64],
    backward_scratch: NDArray[np.int64],
    inputs: NDArray[np.int64],
    passing: NDArray[np.float64],
    passing_scratch: NDArray[np.int64],
    others: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    count, options = seconds.shape
    opt = np.full((count, count, most + 1), np.inf)
    choice = np.zeros((count, count, most + 1), np.int32)
    for length in range(count):
        for a in range(count - length):
            b = a + length
            best, what = opt[a, b], choice[a, b]
            if length > 0:
                least = inputs[b + 1] + inputs[a + 1] + passing_scratch[a]
                for j in range(a + 1, b):
                    here = inputs[b + 1] + inputs[j] + inputs[j + 1] + passing_scratch[j]
                    least = max(least, here)
                least += others[b]
                passed = 0.0
                for j in range(a + 1, b + 1):
                    passed += passing[j - 1]
                    kept = inputs[j]
                    for m in range(max(least, kept), most + 1):
                        time = passed + opt[j, b, m - kept] + opt[a, j - 1, m]
                        if time < best[m]:
                            best[m], what[m] = time, j
            else:
                least = 0
            for k in range(options):
                if seconds[a, k] == np.inf:
                    continue
                ahead = saved[a, k] + forward_scratch[a, k] + others[b]
                back = inputs[a] + saved[a, k] + backward_scratch[a, k]
                # In one block alone the input counts in forward too: Rotor's own code has it so.
                ahead += inputs[a + 1] if length > 0 else inputs[a]
                for m in range(max(least, ahead, back), most + 1):
                    time = seconds[a, k]
                    if length > 0:
                        time += opt[a + 1, b, m - saved[a, k]]
                    if time < best[m]:
                        best[m], what[m] = time, -1 - k
    return opt, choice


def in_units(chain: Chain, unit: int) -> Chain:
    """The same with bytes counted in units, rounded up."""

    def up(nbytes: int) -> int:
        return -(-nbytes // unit)

    def option(one: Saving) -> Saving:
        return Saving(
            one.forward,
            one.backward,
            up(one.saved),
            up(one.forward_scratch),
            up(one.backward_scratch),
        )

    def block(one: Block) -> Block:
        options: Sequence[Saving] = [option(each) for each in one.options]
        return Block(
            tuple(options), one.passing, up(one.input), up(one.passing_scratch), up(one.others)
        )

    return Chain(tuple(block(one) for one in chain.blocks), up(chain.output))
