"""deeptm: a small network learns, tensor by tensor, whether it should be in fast memory when it is used.

Idea      A tensor's heat weighs its future accesses and its lifetime against its reuse distance and its
          size; hot ones belong into DRAM. The weights are tuned until the hot ones fill DRAM. A network
          then sees a tensor's place, its heat and the free room, and learns by trial where it should be:
          rewarded for operands in DRAM, charged for moves, and at the end for the cost of the whole step.
Assumes   A step that repeats itself, with measured seconds.
Inferred  A tensor is a storage; it is placed at each use, until the next. What would not fit is refused
          with a penalty, where the paper ends the episode. Its rewards leave open what they normalise by:
          moves by the longest one, the cost of a step by that of having everything below. Learning ends
          when it finds nothing better for a while, or after so many decisions that a long step takes some
          seconds; so a plan does not depend on the machine's speed. Heat alone, cut between hot and cold
          at several places beside the tuned one (and what is in DRAM may stay there), and the cheapest
          episodes are priced, and the best is the plan. Without direct access operands are on the device,
          and what is placed is what lies idle.
          Not carried: contiguous pages; what is under `smallest` is the paper's packed region, and stays.
Reads     The trace with its seconds; the first tier with direct access, or else the first; the budget.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from penstock.ir.plan import Plan
from penstock.ir.policy import Accounting, Counts, Need, Paper, Problem
from penstock.simulate.least import MOVABLE_FROM
from penstock.solve.best import best
from penstock.solve.game import Episode, Game, Moves, Player, Turn
from penstock.solve.placement import decisions, slow_tier, stored
from penstock.solve.pressure import Pressure

__all__ = ["Deeptm"]


@dataclass(frozen=True, slots=True)
class Deeptm:
    """Heat, and a deep Q-network over placements."""

    moves: Moves = "synchronous"
    greedy: int = 150  # episodes that follow the heat, to fill the memory of turns
    episodes: int = 200  # episodes that learn
    patience: int = 30  # episodes of either sort without a better one
    turns: int = 60_000  # in all learning together, at most
    cuts: int = 8  # places between hot and cold that are tried beside the tuned one
    rate: float = 1e-4  # of learning
    discount: float = 0.99
    whole: float = 50.0  # the reward for a step that costs nothing
    share: float = 0.5  # of the reward at the end that is for the step's cost, not for its operands
    seed: int = 0
    page: int = 4096  # bytes
    smallest: int = MOVABLE_FROM  # bytes: smaller storages are kept
    accounting: Accounting = "ours"

    paper: ClassVar = Paper(
        "DeepTM: Efficient Tensor Management in Heterogeneous Memory for DNN Training",
        "Zhou, Rang, Chen, Zhou, Cheng",
        "IEEE TPDS",
        2024,
    )
    needs: ClassVar[frozenset[Need]] = frozenset({Need.TIER, Need.SECONDS})
    counts: ClassVar = Counts(slack=False)

    def __call__(self, problem: Problem) -> Plan:
        if Pressure(problem).is_relieved:
            return problem.given
        tier = slow_tier(problem.machine)
        game = Game(problem, stored(problem, tier, self.smallest), self.page, self.moves)
        by_heat = {rule: self.by_heat(game, rule) for rule in self.rules(game)}
        rule = min(by_heat, key=lambda rule: by_heat[rule].seconds)
        played = [*by_heat.values(), *self.learn(game, rule)]
        plans = (decisions(problem, tier, game.where(episode)) for episode in played)
        return best(problem, map(problem.given.plus, plans)).plan

    def by_heat(self, game: Game, rule: "Rule | None" = None) -> Episode:
        """What is hot is in DRAM, as far as it fits."""
        return game.play((rule or Rule()).actions)

    def rules(self, game: Game) -> list["Rule"]:
        """Hot from 0 on, as the weights are tuned; from anywhere on; above shares of all uses."""
        heat = [one for uses in game.heat for one in uses] or [0.0]
        above = np.quantile(heat, np.arange(1, self.cuts) / self.cuts).tolist()
        return [Rule(cut, stays) for stays in (False, True) for cut in (0.0, -math.inf, *above)]

    def learn(self, game: Game, rule: "Rule | None" = None) -> list[Episode]:
        """The cheapest episode of those that follow the heat, and of those that learn."""
        network, chance = Network(self), np.random.default_rng(self.seed)
        most = self.turns // max(1, game.turns) // 2
        learning, hot = min(self.episodes, most), (rule or Rule()).actions

        def warm(_: int) -> Player:
            return lambda seen: _or_random(hot(seen), 0.9, chance)

        def learnt(number: int) -> Player:  # what it would do becomes more probable
            sure = min(1.0, 0.1 + 1.8 * number / learning)
            return lambda seen: _or_random(network(seen).argmax(axis=1), sure, chance)

        return [
            *self.cheapest(game, network, map(warm, range(min(self.greedy, most)))),
            *self.cheapest(game, network, map(learnt, range(learning))),
        ]

    def cheapest(self, game: Game, network: "Network", players: Iterable[Player]) -> list[Episode]:
        """The cheapest episode, if there is any. The network learns from all."""
        found: list[Episode] = []
        since = 0
        for player in players:
            if since >= self.patience or (found and not found[0].seconds):
                break
            played = game.play(player)
            network.remember(game, played)
            since += 1
            if not found or played.seconds < found[0].seconds:
                found, since = [played], 0
        return found


class Rule(NamedTuple):
    """Hot is what is hotter than `cut`; and, with `stays`, what is on the device already."""

    cut: float = 0.0
    stays: bool = False

    def actions(self, seen: NDArray[np.float64]) -> NDArray[np.int64]:
        hot = seen[:, 1] > self.cut
        return (hot | (seen[:, 0] > 0) if self.stays else hot).astype(np.int64)


def _or_random(
    wanted: NDArray[np.int64], sure: float, chance: np.random.Generator
) -> NDArray[np.int64]:
    """The wanted actions, each with probability `sure`, and random ones for the rest."""
    dice = chance.integers(0, 2, len(wanted))
    return np.where(chance.random(len(wanted)) < sure, wanted, dice)


class Network:
    """Three dense layers from what is seen to the value of either action, and a memory of turns."""

    def __init__(self, policy: Deeptm, width: int = 32) -> None:
        self.policy, self.chance = policy, np.random.default_rng(policy.seed + 1)
        shapes = ((4, width), (width, width), (width, 2))
        count = sum((rows + 1) * columns for rows, columns in shapes)
        # All weights and biases in one array, as their slopes and moments: a step is a few sums.
        self.parts, self.slopes, self.mean, self.square = np.zeros((4, count))
        self.layers = list(_layers(self.parts, shapes))
        self.slope_of = list(_layers(self.slopes, shapes))
        for weights, _ in self.layers:
            weights[:] = self.chance.normal(0.0, np.sqrt(2 / len(weights)), weights.shape)
        self.steps = 0
        self.memory: deque[Turn] = deque(maxlen=100)

    def __call__(self, seen: NDArray[np.float64]) -> NDArray[np.float64]:
        return self._forward(seen)[-1]

    def remember(self, game: Game, episode: Episode, batch: int = 32, every: int = 8) -> None:
        """Learn from an episode's turns, in their order, each some turns from the memory."""
        policy = self.policy
        cost = min(episode.seconds / game.worst, 1.0)
        uses = [above for storage in episode.above for above in storage]
        above = sum(uses) / len(uses) if uses else 0.0
        final = policy.share * policy.whole * (1 - cost) + (1 - policy.share) * above
        for number, turn in enumerate(episode.turns):
            ends = turn.then is None
            self.memory.append(turn._replace(reward=turn.reward + final) if ends else turn)
            if number % every == 0 and len(self.memory) >= batch:
                picked = self.chance.integers(0, len(self.memory), batch)
                self._learn([self.memory[one] for one in picked.tolist()])

    def _learn(self, turns: list[Turn]) -> None:
        count = len(turns)
        actions = np.array([turn.action for turn in turns])
        rows = np.arange(count)
        following = [turn.seen if turn.then is None else turn.then for turn in turns]
        goes_on = np.array([turn.then is not None for turn in turns])
        both = self._forward(np.array([*(turn.seen for turn in turns), *following]))
        then = both[-1][count:].max(axis=1) * goes_on
        target = np.array([turn.reward for turn in turns]) + self.policy.discount * then
        passed = [part[:count] for part in both]
        slope = np.zeros_like(passed[-1])
        slope[rows, actions] = np.clip(passed[-1][rows, actions] - target, -1.0, 1.0) / count
        for depth in reversed(range(len(self.layers))):
            of_weights, of_bias = self.slope_of[depth]
            of_weights[:], of_bias[:] = passed[depth].T @ slope, slope.sum(axis=0)
            if depth:
                slope = (slope @ self.layers[depth][0].T) * (passed[depth] > 0)
        self._step()

    def _step(self) -> None:
        """Adam's."""
        self.steps += 1
        self.mean += 0.1 * (self.slopes - self.mean)
        self.square += 0.001 * (self.slopes**2 - self.square)
        right = np.sqrt(1 - 0.999**self.steps) / (1 - 0.9**self.steps)
        self.parts -= self.policy.rate * right * self.mean / (np.sqrt(self.square) + 1e-8)

    def _forward(self, seen: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        """What goes into each layer, and what comes out of the last."""
        passed = [seen]
        for depth, (weights, bias) in enumerate(self.layers):
            out = passed[-1] @ weights + bias
            passed.append(np.maximum(out, 0.0) if depth < len(self.layers) - 1 else out)
        return passed


def _layers(
    parts: NDArray[np.float64], shapes: Iterable[tuple[int, int]]
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Weights and biases as views of one array."""
    at = 0
    for rows, columns in shapes:
        weights, at = parts[at : at + rows * columns].reshape(rows, columns), at + rows * columns
        bias, at = parts[at : at + columns], at + columns
        yield weights, bias
