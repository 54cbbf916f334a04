"""Where forward is narrow, and what can be remade."""

from penstock.ir.plan import Plan, Swap
from penstock.ir.text import parse
from penstock.ir.trace import Gap
from penstock.solve.segments import crossings, remakeable
from steps import FED_BY_DEAD

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


def test_what_starts_from_values_that_stay_is_remakeable():
    k = next(gap for gap in SKIP.gaps() if gap.value == K)
    assert remakeable(SKIP, k, Plan())


def test_what_starts_from_a_value_that_is_sent_away_is_not():
    k, h = Gap(2, 2, 4), Gap(1, 1, 5)
    assert remakeable(FED_BY_DEAD, k, Plan())
    assert not remakeable(FED_BY_DEAD, k, Plan((Swap(h, "disk", 2, 5),)))


def test_open_and_wrapping_gaps_are_not():
    assert not remakeable(SKIP, Gap(K, 5, None), Plan())
    assert not remakeable(SKIP, Gap(K, 5, 2), Plan())
