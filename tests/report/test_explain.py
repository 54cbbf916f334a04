"""What is said of a plan in words is what its timeline and its trace say in numbers."""

import json
from dataclasses import replace

import pytest

from penstock import policies
from penstock.ir.machine import Device, Faults, Link, Machine, Tier
from penstock.ir.plan import Plan, Recompute, Swap
from penstock.ir.policy import Problem
from penstock.ir.text import parse
from penstock.ir.trace import Gap
from penstock.report.explain import (
    calm_budget,
    explain,
    explain_report,
    reasons,
)
from penstock.report.fullest import fullest, module_of
from penstock.solve.best import outcome

MIB = 2**20
STEP = parse("""
    f embed  x:I1M w.embed.weight:P2M -> h:A8M!  1s
    f dense  h w.head.weight:P4M      -> y:A4M!  2s
    f loss   y                        -> l:A1M   4s
    b loss'  l y                      -> d:T4M   1s
    b dense' d h                      -> e:T8M   2s +2M
    o adam   e w.head.weight s:S8M    -> ~w.head.weight ~s 1s
""")
H = Gap(2, 1, 4)


def in_modules(trace, *modules):
    ops = tuple(replace(op, module=name) for op, name in zip(trace.ops, modules, strict=True))
    return replace(trace, ops=ops)


def explained(trace, plan, machine, budget=None, calm=None):
    problem = Problem(trace, machine, budget or trace.peak)
    return "\n".join(map(str, explain(problem, outcome(problem, plan), calm)))


def most_of(problem, plan):
    found = outcome(problem, plan)
    return fullest(found.schedule, found.timeline)


def test_the_fullest_moment_is_told_by_kind_and_by_value(machine):
    problem = Problem(STEP, machine, STEP.peak)
    most = most_of(problem, Plan())
    # While dense' runs (from 8 s on): x, both weights, h, s, d, e, 2 MiB of workspace.
    assert (most.seconds, most.op, most.nbytes) == (8.0, 4, STEP.peak)
    assert dict(most.kinds) == {
        "temporary": 12 * MIB,
        "optimizer_state": 8 * MIB,
        "activation": 8 * MIB,
        "parameter": 6 * MIB,
        "workspace": 2 * MIB,
        "input": MIB,
    }
    names = [STEP.values[value].name for value in most.values]
    assert names[:3] == ["h", "e", "s"] and "y" not in names and "l" not in names


def test_state_belongs_to_the_module_that_it_is_named_after():
    step = parse("f a w:P1M -> h:A1M 1ms\nb b h -> g:T1M 1ms")
    step = in_modules(step, "layers.0", "layers.1")
    values = [
        replace(step.values[0], name="exp_avg of layers.7.weight"),
        *(replace(value, name="") for value in step.values[1:]),
    ]
    step = replace(step, values=tuple(values))
    assert [module_of(step, value.id) for value in step.values] == [
        "layers.7",
        "layers.0",
        "layers.1",
    ]


def test_modules_are_rolled_up_until_they_are_few(machine):
    lines = [f"f f{n} x{n}:I1K -> h{n}:A1M! 1ms" for n in range(40)]
    lines += [f"b b{n} h{n} -> g{n}:T1 1ms" for n in range(40)]
    step = parse("\n".join(lines))
    step = in_modules(step, *(f"net.{n % 40 // 10}.{n % 10}" for n in range(80)))
    step = replace(step, values=tuple(replace(value, name="") for value in step.values))
    found = most_of(Problem(step, machine, step.peak), Plan())
    assert {module for module, _ in found.modules} == {"", "net.0", "net.1", "net.2", "net.3"}
    assert dict(found.modules)["net.2"] == 10 * MIB


def test_a_swap_is_told_with_the_time_it_has_and_the_time_it_takes(machine):
    problem = Problem(STEP, machine, STEP.peak)
    plan = Plan((Swap(H, "disk", evict_at=2, prefetch_at=4),))
    (reason,) = reasons(problem, outcome(problem, plan))
    # Idle from 3 s (dense ends) to when dense' begins, which waits for 8 MiB at 2 MiB/s: 8 s + 4 s.
    assert (reason.idle_seconds, reason.copy_seconds) == (9.0, 8 / 4 + 8 / 2)
    assert reason.is_late and reason.is_away_at_peak is False  # dense' itself is the fullest
    text = explained(STEP, plan, machine)
    assert "h, 8.00 MiB, idle for 9 s from op 1 to op 4: swapped to disk" in text
    assert "out and back in 6 s, and waited for" in text
    assert "waiting for values that are on their way in: 4 s" in text


def test_a_recomputation_is_told_with_what_it_costs_beside_a_copy(machine):
    plan = Plan((Recompute(H, 4),))
    problem = Problem(STEP, machine, STEP.peak)
    (reason,) = reasons(problem, outcome(problem, plan))
    assert reason.remake_ops == (0,)
    text = explained(STEP, plan, machine)
    cost = "remade by 1 op in 1 s, 125 ms a MiB"
    assert f"{cost}; a copy out and back keeps the links busy for 6 s" in text
    assert "recomputation is the limit" in text
    without = explained(STEP, plan, Machine(Device("cpu", 2**40)))
    assert "there is no tier to copy it to" in without


def test_a_step_that_fits_is_told_to_keep_everything(machine):
    text = explained(STEP, Plan(), machine)
    assert "everything is kept: the whole step fits" in text
    assert "compute is the limit; the budget costs next to nothing" in text


def test_a_plan_that_does_not_fit_says_what_is_missing_and_where(machine):
    text = explained(STEP, Plan(), machine, budget=STEP.peak - MIB)
    assert "the plan does not fit, 1.00 MiB are missing at op 4 (dense')" in text


def test_the_calm_budget_is_near_the_least_that_costs_nothing():
    # One value of 8 MiB can leave, out and back in 2 s, while it is idle.
    fast = Tier("disk", 2**40, Link(8 * MIB), Link(8 * MIB))
    machine = Machine(Device("cpu", 2**40), (fast,))
    step = parse("""
        f a  x:I1M -> h:A8M!  1s
        f b  h     -> y:A1M   2s
        f c  y     -> k:A1M   2s
        f d  k     -> z:A9M   4s
        b d' z     -> u:T1M   2s
        b c' u     -> v:T1M   2s
        b a' v h   -> g:T1M   1s
    """)
    policy = policies.configured("swap-all")

    def solve(problem):
        return policies.ask(policy, problem)

    tight = Problem(step, machine, step.peak // 2)
    calm = calm_budget(tight, solve(tight), solve)
    # Without h, d holds 11 MiB: x, k, z. The search stops when it knows a hundredth of the peak.
    assert 11 * MIB <= calm <= 11.2 * MIB
    at_calm = replace(tight, budget=calm)
    assert solve(at_calm).timeline.seconds <= 1.01 * step.seconds
    assert f"from about {calm / MIB:,.0f} MiB on, the budget costs no time" in "\n".join(
        map(str, explain(tight, solve(tight), calm))
    )
    # Where the budget is calm itself, a lower one is looked for.
    wide = replace(tight, budget=step.peak)
    assert calm_budget(wide, solve(wide), solve) < step.peak


def test_an_empty_step_can_be_explained(machine):
    text = explained(parse(""), Plan(), machine, budget=MIB)
    assert "The step holds nothing." in text and "0 s a step" in text


@pytest.mark.parametrize("name", policies.names())
def test_every_policy_can_be_explained(name, machine):
    problem = Problem(STEP, machine, int(0.8 * STEP.peak))
    found = policies.ask(policies.configured(name), problem)
    text = "\n".join(map(str, explain(problem, found)))
    assert text.count("\n") > 10 and "nan" not in text


def test_a_report_is_told_with_how_far_the_prediction_was_off():
    run = {
        "seconds": 2.0,
        "peak": 100 * MIB,
        "at_peak": {"optimizer_state": 60 * MIB, "activation": 40 * MIB},
        "stalls": {"input": 0.5, "room": 0.0, "fence": 0.0},
        "recompute_seconds": 0.0,
        "traffic": {"disk write": 10 * MIB},
        "curve": {},
        "lanes": {},
    }
    step = {"mode": "planned", "peak": 90 * MIB, "events": ["fallback: 3 reads"]}
    first = {"mode": "recorded", "peak": 200 * MIB, "events": []}
    body = {
        "budget": 100 * MIB,
        "policy": "auto",
        "machine": {"device": {"name": "a CPU"}},
        "least_budget": 50 * MIB,
        "without_budget": {"peak": 200 * MIB, "seconds": 1.9},
        "steps": [first, step, step],
        "predicted": run,
        "measured": {**run, "peak": 80 * MIB, "seconds": 2.5},
    }
    text = "\n".join(map(str, explain_report(json.loads(json.dumps(body)))))
    assert "3 steps, 2 of them planned" in text
    assert "planned steps took at most 90 MiB (90.0% of the budget)" in text
    assert "fallback: 3 reads (2 times)" in text
    assert "optimizer state 60 MiB (60%), activation 40 MiB (40%)" in text
    assert "waiting for values that are on their way in: 500 ms (25%)" in text
    assert "peak +25.0%" in text and "seconds -20.0%" in text
    bare = {**body, "predicted": None, "measured": None, "without_budget": None, "steps": []}
    assert len(explain_report(bare)) == 1


def test_page_faults_are_not_blamed_on_copies(machine):
    """Of 150 MiB a step of 130 can keep little: it takes its blocks anew, and copies nothing."""
    machine = replace(machine, device=replace(machine.device, faults=Faults(large=2.0**-22)))
    trace = parse("f a x:I10M -> h:A40M! 30s\nf b h -> y:A40M! 30s\nb c y h -> g:T40M 30s")
    text = explained(trace, Plan(), machine, 150 * MIB)
    assert "compute slowed down by page faults: 30 s (33%)" in text
    assert "so: page faults take speed from compute" in text
    assert "copies" not in text
