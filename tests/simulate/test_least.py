"""The smallest budget that any plan could meet."""

from dataclasses import replace

from hypothesis import given

from penstock.ir.text import parse
from penstock.ir.trace import Trace
from penstock.simulate.least import least_budget
from strategies import traces

MIB = 2**20
STEP = parse("""
    f a  x:I1M w:P2M -> h:A8M!  1ms
    f b  h s:B1K     -> y:A4M   1ms +16M
    f c  y           -> l:A1M   1ms
    b d  l h w       -> g:G2M   1ms
""")


def test_it_is_what_the_hungriest_op_needs_at_once():
    least = least_budget(STEP)
    assert least.op == 1
    assert least.nbytes == (8 + 4 + 16) * MIB + 1024
    assert least.holders == (
        ("its workspace", 16 * MIB),
        ("its activations", 12 * MIB),
        ("small values", 1024),
    )


def test_small_values_of_others_stay_and_count():
    crowd = parse(
        "\n".join(
            f"f a{n} x:I1M -> s{n}:A60K 1ms" if n == 0 else f"f a{n} x -> s{n}:A60K 1ms"
            for n in range(4)
        )
        + "\nf b s0 s1 s2 s3 -> y:A1M 1ms"
    )
    assert least_budget(crowd).nbytes == MIB + 4 * 60 * 1024


def test_the_allocators_slack_comes_on_top():
    least = least_budget(replace(STEP, slack=5 * MIB))
    assert least.nbytes == least_budget(STEP).nbytes + 5 * MIB
    assert ("allocator slack", 5 * MIB) in least.holders


def test_an_empty_step_needs_nothing():
    assert least_budget(Trace((), ())).nbytes == 0


@given(traces())
def test_holders_add_up_and_the_step_itself_holds_no_less(trace):
    least = least_budget(trace)
    assert sum(nbytes for _, nbytes in least.holders) == least.nbytes
    assert least.nbytes <= trace.live[least.op]
