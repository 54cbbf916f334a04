"""Where forward is narrow, and how it is cut there."""

from penstock.ir.plan import Plan, check
from penstock.ir.text import parse
from penstock.solve.segments import crossings, split

MIB = 2**20
SKIP = parse("""
    f a  x:I1M -> h:A4M!    1ms
    f b  h     -> k:A4M!    1ms
    f c  k     -> l:A4M!    1ms
    f d  l h   -> s:A4M!    1ms
    f e  s     -> y:A1K     1ms
    b d' y s k -> g:T4M     1ms
    b a' g h   -> i:T4M     1ms
""")
H, K, L, S = 1, 2, 3, 4


def test_a_chain_may_be_cut_where_one_value_crosses():
    assert crossings(SKIP, 1, MIB) == {0: {H}, 3: {S}}


def test_a_wider_cut_passes_beside_a_skip_connection():
    assert crossings(SKIP, 2, MIB) == {0: {H}, 1: {H, K}, 2: {H, L}, 3: {S}}


def test_small_values_do_not_count():
    assert crossings(SKIP, 2, 8 * MIB) == {}


def test_a_forward_value_that_only_backward_reads_does_not_cross():
    trace = parse("f a x:I1M -> h:A4M! 1ms\nf b x -> y:A4M 1ms\nb c y h -> g:T1M 1ms")
    assert crossings(trace, 3, MIB) == {}


def test_a_segment_ends_with_its_micro_batch():
    """Gradient accumulation: two forwards, each with its own backward."""
    lines = []
    for n in range(2):
        lines += [f"f f{n} x{n}:I1 -> a{n}_0:A1M! 1ms"]
        lines += [f"f f{n} a{n}_{i} -> a{n}_{i + 1}:A1M! 1ms" for i in range(5)]
        lines += [f"f l{n} a{n}_5 -> l{n}:T1 1ms", f"b m{n} l{n} -> g{n}:T1 1ms"]
        lines += [f"b b{n} g{n} a{n}_{i} -> ~g{n} 1ms" for i in reversed(range(6))]
    trace = parse("\n".join(lines))
    cut = split(trace, list(trace.saved_gaps()), crossings(trace, 1, 2**20), 3 * 2**20)
    check(trace, Plan(tuple(cut.decisions)))
    dropped = {trace.values[one.gap.value].name for one in cut.decisions}
    # Four values end a segment, of which the last is kept; the two after it are the last segment.
    assert dropped == {f"a{n}_{i}" for n in range(2) for i in range(3)}
