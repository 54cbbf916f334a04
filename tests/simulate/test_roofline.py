"""Rooflines: an op costs its launch and the longer of arithmetic and traffic; calibration finds them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import TraceError
from penstock.ir.machine import Device, Machine, Rate, Sample
from penstock.ir.text import parse
from penstock.ir.trace import Kind, Op, OpIndex, Phase, StorageId, Trace, Value, ValueId
from penstock.simulate.roofline import (
    Corrected,
    class_of,
    fitted,
    priced,
    rate_of,
)

GB = 1e9
MIB = 1 << 20


def op(name: str, *, flops: int = 0, moved: int = 0, dtype: str = "float32", index: int = 0) -> Op:
    made = (ValueId(index),)
    return Op(OpIndex(index), name, Phase.FORWARD, (), made, flops=flops, moved=moved, dtype=dtype)


def machine(**costs: Rate) -> Machine:
    rates = {key.replace("__", " ").replace("_", ".", 1): rate for key, rate in costs.items()}
    return Machine(Device("d", 1 << 30, 100 * GB, {"float32": 1e12, "bfloat16": 4e12}, rates))


def test_an_op_takes_the_longer_of_arithmetic_and_traffic() -> None:
    rate = Rate(launch=1e-6, flops=1e12, bandwidth=1e11)
    assert rate.seconds(2e12, 1e11) == pytest.approx(2.000001)
    assert rate.seconds(1e9, 1e11) == pytest.approx(1.000001)
    assert Rate(launch=1e-6).seconds(1e15, 1e15) == 1e-6


def test_the_most_special_rate_counts() -> None:
    device = machine(
        aten_mm__bfloat16=Rate(1.0), aten_mm=Rate(2.0), matmul=Rate(3.0), pointwise=Rate(4.0)
    ).device
    assert rate_of(device, op("aten.mm", dtype="bfloat16")).launch == 1.0
    assert rate_of(device, op("aten.mm")).launch == 2.0
    assert rate_of(device, op("aten.addmm")).launch == 3.0
    assert rate_of(device, op("aten.exp")).launch == 4.0


def test_without_calibration_a_dtype_has_its_own_peak() -> None:
    device = machine().device
    slow, fast = (rate_of(device, op("aten.mm", dtype=d)).flops for d in ("float32", "bfloat16"))
    assert fast == 4 * slow
    assert slow < 1e12  # no kernel reaches the peak


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten.mm", "matmul"),
        ("aten.addmm", "matmul"),
        ("aten.mv", "matmul"),
        ("aten.addmv_", "matmul"),
        ("aten.dot", "matmul"),
        ("aten.vdot", "matmul"),
        ("aten.ger", "matmul"),
        ("aten.addr", "matmul"),
        ("aten.lgamma", "pointwise"),  # though there is a product's name in it
        ("aten.convolution_backward", "convolution"),
        ("aten._scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten.mkldnn_rnn_layer", "recurrent"),
        ("aten.native_layer_norm_backward", "norm"),
        ("aten.embedding_dense_backward", "lookup"),
        ("aten._fused_adamw_", "optimizer"),
        ("aten.add_", "pointwise in place"),
    ],
)
def test_ops_have_classes(name: str, kind: str) -> None:
    assert class_of(name) == kind


def two_ops() -> Trace:
    values = (
        Value(ValueId(0), StorageId(0), 1000, Kind.ACTIVATION, OpIndex(0), OpIndex(0)),
        Value(ValueId(1), StorageId(1), 1000, Kind.ACTIVATION, OpIndex(1)),
    )
    return Trace(
        (op("aten.mm", flops=10**9, moved=10**6), op("aten.exp", moved=10**6, index=1)), values
    )


def test_a_trace_without_times_is_priced_and_freeing_costs_the_host() -> None:
    costs = {
        "aten.mm": Rate(flops=1e9, workspace=0.5),
        "pointwise": Rate(bandwidth=1e6),
        "host forward": Rate(launch=0.25, bandwidth=1000),
    }
    found = priced(two_ops(), Machine(Device("d", 1 << 30, costs=costs)))
    assert [one.seconds for one in found.ops] == [1.0, 1.0]
    assert [one.host_seconds for one in found.ops] == [0.25, 1.25]
    assert [one.workspace for one in found.ops] == [500_000, 0]


def test_libraries_keep_memory_once_a_step_calls_them() -> None:
    costs = {"convolution": Rate(library=30.0), "norm": Rate(library=40.0)}
    kept = Machine(Device("d", 1 << 30, overhead=100, costs=costs))
    values = [Value(ValueId(n), StorageId(n), 4096, Kind.ACTIVATION, OpIndex(n)) for n in (0, 1)]

    def slack(*names: str) -> int:
        flops = {"aten.convolution": 1000, "aten.mm": 100}
        ops = tuple(op(name, index=n, flops=flops.get(name, 0)) for n, name in enumerate(names))
        return priced(Trace(ops, tuple(values[: len(ops)])), kept).slack

    least = slack("aten.mm")
    assert least >= 100
    assert slack("aten.mm", "aten.softmax") - least == 40
    assert slack("aten.convolution") - least == 30
    # What is kept for a norm grows with it, and beside a convolution it is small.
    assert slack("aten.convolution", "aten.softmax") - least == 30


def test_what_was_measured_is_left_alone() -> None:
    trace = priced(two_ops(), machine())
    assert priced(trace, Machine(Device("other", 1 << 30, 1.0))) is trace


sizes = st.lists(st.tuples(st.integers(1, 10**12), st.integers(1, 10**9)), min_size=12, max_size=40)


@given(sizes, st.floats(1e-6, 1e-3), st.floats(1e10, 1e12), st.floats(1e9, 1e11))
def test_rates_that_made_the_samples_are_found_again(
    sizes: list[tuple[int, int]], launch: float, flops: float, bandwidth: float
) -> None:
    made = Rate(launch, flops, bandwidth)
    samples = [Sample(f, m, made.seconds(f, m)) for f, m in sizes]
    found = fitted(samples)
    errors = sorted(abs(found.seconds(s.flops, s.moved) / s.seconds - 1) for s in samples)
    assert errors[len(errors) // 2] < 0.25


def test_a_fit_without_noise_is_exact() -> None:
    made = Rate(1e-5, 2e11, 3e10)
    grid = [(f, m) for f in (0, 10**6, 10**9, 10**11) for m in (10**4, 10**6, 10**8)]
    found = fitted([Sample(f, m, made.seconds(f, m), m // 4) for f, m in grid])
    assert found.launch == pytest.approx(1e-5, rel=1e-3)
    assert found.flops == pytest.approx(2e11, rel=1e-3)
    assert found.bandwidth == pytest.approx(3e10, rel=1e-3)
    assert found.workspace == pytest.approx(0.25)


def test_one_size_says_only_how_long_it_took() -> None:
    found = fitted([Sample(0, 1000, 2e-5)] * 3)
    assert found.seconds(0, 1000) == pytest.approx(2e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"launch": -1.0},
        {"flops": float("inf")},
        {"bandwidth": -1e9},
        {"seen": (Sample(1.0, 2.0, -3.0),)},
    ],
)
def test_impossible_rates_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(TraceError, match="0 or more and finite"):
        Rate(**wrong)


def test_what_is_overwritten_in_place_gives_no_byte_back() -> None:
    trace = parse("""
        f a    x:I1K -> h:A4K 1ms
        f add_ h     -> ~h    1ms
        f b    h     -> y:A1K 1ms
        f c    y     -> z:A1K 1ms
    """)
    # h dies with op 2, not with op 1.
    assert trace.columns.freed_before.tolist() == [0, 0, 0, 4 << 10]


# -- sizes that were seen -------------------------------------------------------------------------

CACHED = Rate(
    bandwidth=1e9,
    unwritten=0.3,
    seen=(Sample(0, 1e6, 0.5e-3, unwritten=0.2), Sample(0, 1e8, 0.2, 5e7, 0.4)),
)
"""Twice as fast as its roofline where a cache holds it; half as fast, with scratch, where none does."""


def seconds(moved: float, rate: Rate = CACHED) -> float:
    return Corrected(rate).cost(0, int(moved)).seconds


def scratch(moved: float) -> float:
    return Corrected(CACHED).cost(0, int(moved)).workspace


def test_near_a_size_that_was_seen_its_scratch_counts() -> None:
    assert scratch(1e6) == pytest.approx(0, abs=1)
    assert scratch(1e8) == pytest.approx(5e7, rel=0.1)
    assert scratch(1.2e8) == pytest.approx(6e7, rel=0.1)


def test_near_a_size_that_was_seen_what_it_leaves_unwritten_counts() -> None:
    price = Corrected(CACHED).cost
    assert price(0, int(1e6)).unwritten == pytest.approx(0.2, abs=0.02)
    assert price(0, int(1e7)).unwritten == pytest.approx(0.3, abs=0.02)
    assert price(0, int(1e8)).unwritten == pytest.approx(0.4, abs=0.02)


def test_what_nobody_writes_is_not_held() -> None:
    """Of the largest output first; every version of a storage has as much."""
    trace = parse("f a x:I1M -> h:A4M 0s\nf b h -> i:A8M j:A1M 0s\no c i j -> ~i 0s")
    costs = {"b": Rate(unwritten=0.9)}
    found = priced(trace, Machine(Device("cpu", 1 << 40, costs=costs)))
    held = [value.nbytes / MIB for value in found.values]
    assert held == pytest.approx([1, 4, 0, 0.9, 0], abs=1e-6)
    assert [v.allocated for v in found.values] == [v.nbytes for v in trace.values]


def test_near_a_size_that_was_seen_its_time_counts() -> None:
    assert seconds(1e6) == pytest.approx(0.5e-3, rel=0.1)
    assert seconds(1.2e6) == pytest.approx(0.6e-3, rel=0.1)
    assert seconds(1e8) == pytest.approx(0.2, rel=0.1)


def test_far_from_all_sizes_the_roofline_counts() -> None:
    assert seconds(1e7) == pytest.approx(1e-2, rel=0.01)


def test_beyond_the_sizes_that_were_seen_the_edge_counts() -> None:
    assert seconds(1e10) / 1e10 == pytest.approx(seconds(1e8) / 1e8)
    assert seconds(1e3) / 1e3 == pytest.approx(seconds(1e6) / 1e6)


def test_a_rate_that_was_stated_is_not_put_right() -> None:
    assert seconds(123.0, Rate(launch=1.0, bandwidth=1.0)) == 124.0


def test_a_fit_keeps_the_median_of_each_size() -> None:
    times = {1000: (1.0, 9.0, 2.0), 2000: (4.0,)}
    found = fitted([Sample(5, moved, one, moved) for moved in times for one in times[moved]])
    assert sorted(found.seen) == [Sample(5, 1000, 2.0, 1000), Sample(5, 2000, 4.0, 2000)]
    assert found.workspace == 1.0


def test_a_trace_is_priced_by_the_sizes_that_were_seen() -> None:
    found = priced(two_ops(), Machine(Device("d", 1 << 30, costs={"pointwise": CACHED})))
    assert found.ops[1].seconds == pytest.approx(0.5e-3, rel=0.1)
