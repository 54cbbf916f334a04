"""Bae et al.: FlashNeuron (FAST 2021)."""

import pytest

from external import external
from penstock.interop.g10 import read_graph
from penstock.ir.machine import Device, Link, Machine, Tier
from penstock.ir.policy import Problem
from penstock.ir.text import parse
from penstock.policies.flashneuron import Flashneuron, Tensor, phase_1, phase_2, resident
from penstock.solve.best import outcome
from steps import chain

MIB, GIB = 2**20, 2**30


def machine(rate):
    link = Link(rate)
    host = Tier("host", 2**40, Link(64 * GIB), Link(64 * GIB))
    return Machine(Device("gpu", 2**40), (host, Tier("disk", 2**40, link, link)))


def planned(trace, rate, budget):
    problem = Problem(trace, machine(rate), budget)
    return outcome(problem, Flashneuron()(problem))


def test_the_printed_walk_through():
    """Section 4.2: 8 MB, tensors A to G of 6, 2, 4, 4, 4, 2, 2 MB in forward order; D is exchanged for
    E, then B for F. C, E and F can be compressed, E best."""
    sizes = dict(zip("ABCDEFG", (6, 2, 4, 4, 4, 2, 2), strict=True))
    ratios = {"C": 2.0, "E": 3.0, "F": 1.5}
    tensors = [Tensor(size * MIB, ratios.get(name, 1.0)) for name, size in sizes.items()]

    def letters(positions):
        return "".join("ABCDEFG"[n] for n in positions)

    first = phase_1(tensors, 8 * MIB)
    assert letters(first) == "ABCD"
    assert letters(phase_2(tensors, first, 1.0, 1 * MIB)) == "ACEF"


def test_phase_2_stops_as_soon_as_writing_hides():
    tensors = [Tensor(4 * MIB), Tensor(4 * MIB), Tensor(4 * MIB, 4.0), Tensor(4 * MIB, 2.0)]
    assert phase_2(tensors, [0, 1], 8.0, MIB) == [0, 1]  # 8 MiB in 8 s
    assert phase_2(tensors, [0, 1], 5.0, MIB) == [0, 2]  # 4 + 1 MiB
    assert phase_2(tensors, [0, 1], 1.0, MIB) == [2, 3]  # 1 + 2 MiB, and no more to exchange


def test_an_exchange_that_would_not_free_enough_is_not_made():
    tensors = [Tensor(8 * MIB), Tensor(4 * MIB, 2.0)]
    assert phase_2(tensors, [0], 0.1, MIB) == [0]


def test_what_fits_stays():
    tensors = [Tensor(4 * MIB)] * 3
    assert phase_1(tensors, 12 * MIB) == []
    assert phase_1(tensors, 12 * MIB - 1) == [0]
    assert phase_1(tensors, -1) == [0, 1, 2]


def test_values_are_written_in_forward_order_to_the_lowest_tier():
    trace = chain(12, "4M", "1s")
    found = planned(trace, 64 * MIB, 32 * MIB)
    values = [swap.gap.value for swap in found.plan.swaps]
    everyone = [gap.value for gap in trace.saved_gaps(MIB)]
    assert values == everyone[: len(values)]
    assert {swap.tier for swap in found.plan.swaps} == {"disk"}
    assert found.shortfall == 0


def test_backward_waits_for_the_last_write_and_nothing_is_read_before():
    trace = chain(12, "4M", "1s")
    found = planned(trace, 2 * MIB, 24 * MIB)  # a write lasts two layers
    spans = found.timeline.spans
    begins = {span.ref: span.start for span in spans if span.lane == "compute"}
    written = max(span.end for span in spans if span.lane == "disk write")
    read = min(span.start for span in spans if span.lane == "disk read")
    first = next(op.index for op in trace.ops if op.phase == "backward")
    assert written > sum(op.seconds for op in trace.ops if op.phase == "forward")
    assert begins[first] == written
    assert read >= begins[first]


def test_copies_back_are_in_the_order_of_use():
    trace = chain(16, "4M", "1s")
    found = planned(trace, 8 * MIB, 24 * MIB)
    back = [span.ref for span in found.timeline.spans if span.lane == "disk read"]
    assert len(back) > 5
    assert back == sorted(back, reverse=True)  # backward goes from the last layer to the first


@pytest.mark.parametrize("budget", [24, 32, 48])
def test_it_takes_no_more_than_the_least_that_fits(budget):
    """One value fewer, and the step lacks room or the resident set is too large."""
    trace = chain(16, "4M", "1s")
    problem = Problem(trace, machine(64 * MIB), budget * MIB)
    found = outcome(problem, Flashneuron()(problem))
    assert found.shortfall == 0
    kept = sum(
        gap.value not in {s.gap.value for s in found.plan.swaps} for gap in trace.saved_gaps()
    )
    largest = 2 * 4 * MIB  # a layer's operand and result
    assert (kept + 1) * 4 * MIB + largest > budget * MIB or kept == 16


def test_where_the_formula_promises_too_much_more_is_taken():
    """Gradients that wait for the optimizer are in no term of the formula."""
    layers, large = range(6), {3: "8M", 4: "8M", 5: "8M"}
    lines = [f"f f{n} {'x:I1' if n == 0 else f'h{n - 1}'} w{n}:P1M -> h{n}:A4M! 1s" for n in layers]
    lines += ["f loss h5 -> l:T1 1s", "b loss' l -> g6:T1 1s"]
    lines += [
        f"b b{n} g{n + 1} h{n} w{n} -> g{n}:T1 d{n}:G{large.get(n, '1')} 1s"
        for n in reversed(layers)
    ]
    lines += [f"o s{n} d{n} w{n} -> ~w{n} 1s" for n in layers]
    trace, budget = parse("\n".join(lines)), 40 * MIB + 1024
    saved = [Tensor(4 * MIB)] * 6
    assert phase_1(saved, budget - resident(trace)) == [0]
    found = planned(trace, 64 * MIB, budget)
    assert len(found.plan.swaps) == 2
    assert found.shortfall == 0


# -- the published graphs ------------------------------------------------------------------------


def published(name, gib):
    path = external("g10") / "graphs" / f"{name}.kernels.csv"
    device = Device("A100", gib * GIB)
    ssd = Tier("disk", 2**42, Link(3.2 * GIB), Link(3.2 * GIB))
    return Problem(read_graph(path).trace, Machine(device, (ssd,)), gib * GIB)


# Bytes each way and seconds, from the re-implementation in G10's simulator. Its arena is two-ended and
# in pieces at times, ours holds bytes: so ours waits less, by up to 5 % here and 16 % on Inception.
REPLAYED = {
    ("BERT_Base_256", 40): (10_884_612_096, 10.2155),
    ("BERT_Base_256", 32): (None, 12.7059),
    ("BERT_Base_512", 40): (None, 44.0797),
    ("VIT_1024", 32): (None, 9.91234),
    ("ResNet152_1280", 40): (None, 175.261),
}


@pytest.mark.parametrize(("name", "gib"), REPLAYED)
def test_it_takes_as_long_as_in_the_simulator_of_g10(name, gib):
    problem, (nbytes, seconds) = published(name, gib), REPLAYED[name, gib]
    found = outcome(problem, Flashneuron(smallest=1)(problem))
    assert found.shortfall == 0
    if nbytes is not None:
        assert found.timeline.traffic == {"disk write": nbytes, "disk read": nbytes}
    assert seconds * 0.95 < found.timeline.seconds <= seconds
