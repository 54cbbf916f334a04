"""Exams on inputs that others wrote: our solvers against the optima that the papers' own code gave.

    python benchmarks/chains.py [--data DIR] [--only checkmate rotor poet torch] [--time-limit 60]

DIR (else the variable PENSTOCK_DATA, else `shared/data` beside the checkout) holds `peer-results`,
`pipedream`, `poet` and `torch-tests`. One line a question; the exit status is 1 if an answer differs.
Where the other side proves an optimum, equal means equal; where ours was cut off by the time limit,
its bound is shown and nothing is claimed.
"""

import argparse
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from _data import add_option, folder
from _where import where, write
from penstock.errors import SolveError
from penstock.interop.pipedream import read_layers
from penstock.interop.poet import energies
from penstock.solve import chain, stages
from penstock.solve.chain import Block, Chain, Saving
from penstock.solve.saved import Result, save
from penstock.solve.stages import Paging

MIB = 2**20


class Answer(NamedTuple):
    exam: str
    question: str
    theirs: str
    ours: str
    verdict: str  # equal, better, cut off, DIFFERS
    seconds: float


def verdict(ours: float, theirs: float, tolerance: float) -> str:
    if abs(ours - theirs) <= tolerance * max(1e-12, abs(theirs)):
        return "equal"
    return "better" if ours < theirs else "DIFFERS"


# -- Checkmate: unit chains ----------------------------------------------------------------------


def linear(layers: int) -> stages.Graph:
    """The test graph of Checkmate's authors: a chain, and each forward node read by its mirror."""
    count = 2 * layers + 1
    edges = [(n, n + 1) for n in range(count - 1)]
    edges += [(n, 2 * layers - n) for n in range(layers)]
    return stages.plain([1.0] * count, [1] * count, edges)


def checkmate(data: Path | None, time_limit: float) -> Iterator[Answer]:
    planners = json.loads((folder("peer-results", data) / "planners.json").read_text())
    for row in planners["checkmate_unit_chain"]["rows"]:
        began = time.perf_counter()
        found = stages.solve(linear(row["n"]), row["budget"], time_limit)
        total = found.cost + row["base"]
        yield Answer(
            "checkmate",
            f"{row['n']} layers, budget {row['budget']}",
            f"{row['obj']:.0f}",
            f"{total:.0f}",
            verdict(round(total), row["obj"], 0.0) if found.proven else "cut off",
            time.perf_counter() - began,
        )


# -- Rotor: measured chains ----------------------------------------------------------------------


def profiled(path: Path) -> Chain:
    """A PipeDream profile as a chain: each stage saves its result, the input is there."""
    layers = read_layers(path.read_text())
    stages_of = layers[1:]
    assert all(layer.reads == (before.number,) for before, layer in pairwise(layers))
    inputs = [before.activation for before in layers[:-1]]
    return Chain(
        tuple(
            Block((Saving(one.forward, one.backward, one.activation),), one.forward, entry)
            for one, entry in zip(stages_of, inputs, strict=True)
        ),
        stages_of[-1].activation,
    )


def with_loss(given: Chain) -> Chain:
    """Rotor's chains end in a loss that costs nothing."""
    return Chain((*given.blocks, Block((Saving(0.0, 0.0, 0),), 0.0, given.output)), 0)


def rotor(data: Path | None, _: float) -> Iterator[Answer]:
    planners = json.loads((folder("peer-results", data) / "planners.json").read_text())
    for name, row in planners["rotor_pipedream"].items():
        began = time.perf_counter()
        measured = chain.in_units(
            profiled(folder("pipedream", data) / f"{name}.graph.txt"), 4 * MIB
        )
        units = row["sum_activation_units"]
        whole = with_loss(measured)
        most = math.ceil((max(share for share, _ in row["curve"]) + 1e-3) * units)
        table = chain.solve(whole, most)
        aside = measured.blocks[0].input + measured.output  # always there, and not the table's
        for share, theirs in row["curve"]:
            # The share is printed with three digits: any budget that prints so may be meant.
            low, high = (math.ceil((share - 5e-4) * units), math.floor((share + 5e-4) * units))
            meant = [round(share * units), *range(low, high + 1)]
            ours = [round(float(table.seconds[b - aside]) / measured.seconds, 4) for b in meant]
            nearest = min(ours, key=lambda one: abs(one - theirs))
            yield Answer(
                "rotor",
                f"{name}, {share:.3f} of {units} units",
                f"{theirs:.4f}",
                f"{nearest:.4f}",
                verdict(nearest, theirs, 1e-9),
                time.perf_counter() - began,
            )
    row = planners["rotor_gpt2_blocks"]
    parts = row["chain"]
    blocks = tuple(
        Block((Saving(fw, bw, saved),), fw, entry)
        for fw, bw, saved, entry in zip(
            parts["fw"], parts["bw"], parts["abar_MiB"], parts["cw_MiB"], strict=False
        )
    )
    given = Chain(blocks, parts["cw_MiB"][-1])
    table = chain.solve(with_loss(given), max(budget for budget, *_ in row["curve"]))
    for budget, cost, _ in row["curve"]:
        began = time.perf_counter()
        ours = float(table.seconds[budget - blocks[0].input])
        yield Answer(
            "rotor",
            f"GPT-2 blocks, {budget} MiB",
            f"{cost:.2f}",
            f"{ours:.2f}",
            verdict(round(ours, 2), cost, 1e-6),
            time.perf_counter() - began,
        )


# -- POET: recomputation and paging --------------------------------------------------------------


def poet(data: Path | None, time_limit: float) -> Iterator[Answer]:
    for line in (folder("peer-results", data) / "poet.jsonl").read_text().splitlines():
        row = json.loads(line)
        body = json.loads((folder("poet", data) / row["graph"]).read_text())
        costs = energies(body)
        graph = stages.plain(
            [one.compute for one in costs],
            [int(node["bytes"]) for node in body["nodes"]],
            [(source, target) for source, target in body["edges"]],
        )
        paging = None
        if row["paging"]:
            paging = Paging(tuple(one.out for one in costs), tuple(one.back for one in costs))
        base = sum(one.compute for one in costs)
        theirs = row["obj_J"] if row["status"] == "Optimal" else float("inf")
        cut = row["status"] == "Optimal" and row["secs"] >= 130
        began, mark = time.perf_counter(), "cut off"
        try:
            found = stages.solve(graph, row["budget_bytes"], time_limit, paging=paging)
            ours = base + found.cost
            if found.proven or ours <= theirs:
                mark = verdict(ours, theirs, 2e-4)  # both sides stop within 1e-4 of the optimum
                mark = "better" if mark == "DIFFERS" and cut else mark
            text = f"{ours:.6f}"
        except SolveError as error:
            text = "none"
            if "no solution of the" not in str(error):  # proven; else the time was up
                mark = "equal" if theirs == float("inf") else "DIFFERS"
        yield Answer(
            "poet",
            f"{row['graph'].removesuffix('.json')}, {row['budget_bytes']:,} bytes, "
            + ("both" if row["paging"] else "recompute"),
            "none" if theirs == float("inf") else f"{theirs:.6f}",
            text,
            mark,
            time.perf_counter() - began,
        )


# -- PyTorch: what is saved at the end of forward ------------------------------------------------


def torch_tables(data: Path | None, time_limit: float) -> Iterator[Answer]:
    expected = json.loads((folder("torch-tests", data) / "expected.json").read_text())
    yield from even_chain(expected["memory_budget_even_chain"], time_limit)
    yield from uneven(expected["memory_budget_uneven"], time_limit)
    yield from cheaper(expected["prioritize_cheaper_matmul"], time_limit)
    yield from attention(expected["attention_vs_linear_which_is_recomputed_at_0.6"], time_limit)
    yield from knapsacks(expected["knapsack"], time_limit)
    yield from per_module(expected["sac_policy_per_module"], time_limit)


def asked(
    question: str, results: list[Result], budget: float, cost: float, nbytes: float, limit: float
) -> Answer:
    """Is the cost theirs, with no more bytes?"""
    began = time.perf_counter()
    found = save(results, budget, limit)
    is_right = abs(found.cost - cost) < 1e-9 and found.nbytes <= nbytes + 1e-9
    return Answer(
        "torch",
        question,
        f"{cost:g} again, {nbytes:g} saved",
        f"{found.cost:g} again, {found.nbytes:g} saved",
        "equal" if is_right else "DIFFERS",
        time.perf_counter() - began,
    )


def even_chain(table: dict[str, Any], limit: float) -> Iterator[Answer]:
    results = [Result(1, 0)]  # cos of an input
    for _ in range(5):
        results.append(Result(1, 1, (len(results) - 1,)))  # mm, which cos' reads
        results.append(Result(1, 0, (len(results) - 1,)))  # cos, which the next mm' reads
    results[-1] = Result(
        1, 0, (len(results) - 2,), needed=False
    )  # the sum's backward reads nothing
    eager = sum(one.nbytes for one in results if one.needed)
    for row in table["rows"]:
        share = row["budget"]
        yield asked(
            f"even chain, {share}",
            results,
            share * eager,
            row["extra_flops"],
            row["saved_MiB"],
            limit,
        )


def uneven(tables: list[dict[str, Any]], limit: float) -> Iterator[Answer]:
    for table in tables:
        columns = table["weights_cols_512"]
        results = [Result(width, width) for width in columns]  # mm of one input with each weight
        for nbytes in table["achievable_saved_MiB_at_budget_equal_to_it"]:
            cost = sum(columns) - nbytes
            yield asked(f"uneven {columns}, {nbytes} MiB", results, nbytes, cost, nbytes, limit)


def cheaper(table: dict[str, Any], limit: float) -> Iterator[Answer]:
    pairs = table["pairs_(BI,O)"]
    results = [Result(side * width, side * side * width) for side, width in pairs]
    wanted = table["budget_0.5"]
    extra = wanted["flops"] - table["eager"]["flops"]
    half = table["eager"]["mem"] / 2
    yield asked(f"cheaper of {pairs}", results, half, extra, wanted["mem"], limit)


def attention(rows: list[list[Any]], limit: float) -> Iterator[Answer]:
    for length, width, remade in rows:
        size = length * width
        flops = {"attn": 2 * length * length * width, "mm": length * width * width}
        results = [Result(size, flops["attn"]), Result(size, flops["mm"], (0,))]
        yield asked(
            f"attention or mm, {length} x {width}",
            results,
            0.6 * 2 * size,
            flops[remade],
            size,
            limit,
        )


def knapsacks(cases: list[dict[str, Any]], limit: float) -> Iterator[Answer]:
    for number, case in enumerate(cases):
        sizes, seconds = case["memory"], case["runtime"]
        results = [Result(size, cost) for size, cost in zip(sizes, seconds, strict=True)]
        cost = sum(seconds) - case["best_runtime"]
        room = case["capacity"]
        yield asked(f"knapsack {number}", results, room, cost, room, limit)


def per_module(table: dict[str, Any], limit: float) -> Iterator[Answer]:
    ops, rows = table["ops"], table["rows"]
    over = dict(table["inplace"])
    roots = [n for n in range(len(ops)) if n not in table["view_like"] and over.get(n, n) == n]
    groups = [[root, *(n for n, base in over.items() if base == root != n)] for root in roots]
    results = [
        Result(sum(ops[n][2] for n in group), sum(ops[n][1] for n in group)) for group in groups
    ]
    for budget, flags in rows:
        remade = sum(ops[n][1] for group in groups for n in group if not flags[n])
        nbytes = sum(ops[n][2] for n, flag in enumerate(flags) if flag)
        yield asked(f"ops of a module, {budget} of 420", results, budget, remade, nbytes, limit)


EXAMS = {"checkmate": checkmate, "rotor": rotor, "poet": poet, "torch": torch_tables}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_option(parser)
    parser.add_argument("--only", nargs="*", choices=list(EXAMS), default=list(EXAMS))
    parser.add_argument("--time-limit", type=float, default=60.0, help="seconds a programme")
    parser.add_argument("--json", type=Path, help="where to write the answers")
    options = parser.parse_args()
    table = Table("exam", "question", "theirs", "ours", "", "s", title="optima on others' inputs")
    answers: list[Answer] = []
    for name in options.only:
        for answer in EXAMS[name](options.data, options.time_limit):
            answers.append(answer)
            table.add_row(*answer[:5], f"{answer.seconds:.2f}")
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    for name in options.only:
        count = Counter(answer.verdict for answer in answers if answer.exam == name)
        print(f"{name}: " + ", ".join(f"{number} {mark}" for mark, number in count.items()))
    if options.json:
        write(options.json, {**where(), "rows": [answer._asdict() for answer in answers]})
    return 1 if any(answer.verdict == "DIFFERS" for answer in answers) else 0


if __name__ == "__main__":
    sys.exit(main())
