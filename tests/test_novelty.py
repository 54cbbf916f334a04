"""When a step is recorded: at first, when it is new, and seldom where all are different."""

from itertools import pairwise

from penstock.novelty import Novelty


def test_the_first_step_is_recorded_and_then_none() -> None:
    novelty = Novelty()
    assert novelty.is_due
    novelty.recorded(known=False)
    assert not novelty.is_due


def test_a_step_that_left_the_path_at_its_beginning_is_recorded_next_time() -> None:
    novelty = learnt()
    novelty.passed()
    novelty.changed(begun_alike=False)
    assert novelty.is_due and not novelty.looked_at


def test_one_step_in_three_that_begins_as_known_is_let_be() -> None:
    novelty = learnt()
    for step in range(30):
        ran(novelty, strays=step % 3 == 0)
        assert not novelty.is_due


def test_one_in_two_is_looked_at_from_its_beginning() -> None:
    novelty = learnt()
    for step in range(5):
        ran(novelty, strays=step % 2 == 0)
    assert novelty.is_due and novelty.looked_at


def test_known_steps_are_looked_at_only_for_a_while() -> None:
    novelty = learnt()
    ran(novelty, strays=True)
    ran(novelty, strays=True)
    looked_at = 0
    while novelty.is_due:
        novelty.recorded(known=True)
        looked_at += 1
    assert looked_at == 4


def test_a_new_one_ends_the_look() -> None:
    novelty = learnt()
    ran(novelty, strays=True)
    ran(novelty, strays=True)
    novelty.recorded(known=False)
    assert not novelty.is_due and not novelty.looked_at


def test_steps_that_are_all_different_are_recorded_ever_more_seldom() -> None:
    novelty = learnt()
    recorded = []
    for step in range(300):
        if novelty.is_due:
            novelty.recorded(known=False)
            recorded.append(step)
        else:
            novelty.passed()
            novelty.changed(begun_alike=False)
    waits = [later - before for before, later in pairwise(recorded)]
    assert waits == sorted(waits) and waits[-1] == 65 and len(recorded) < 15


def test_what_is_nearly_as_large_as_a_known_one_is_new_only_among_the_first() -> None:
    novelty = learnt()
    recorded = 0
    while novelty.alike == 1.0:
        novelty.adapted(0.9)
        assert novelty.is_due
        novelty.recorded(known=False)
        recorded += 1
    assert recorded == 5
    for _ in range(100):
        novelty.adapted(0.9)
    assert not novelty.is_due
    for _ in range(2):
        novelty.adapted(0.6)
    assert novelty.is_due


def learnt() -> Novelty:
    novelty = Novelty()
    novelty.recorded(known=False)
    return novelty


def ran(novelty: Novelty, *, strays: bool) -> None:
    """A step that was not recorded."""
    novelty.passed()
    if strays:
        novelty.changed(begun_alike=True)
