"""What charts teach: op times that disturbances do not move, and the pace of the machine."""

import numpy as np
import pytest

from penstock.planner import _typical


def chart(*own: float) -> np.ndarray:
    """A chart of ops that took these seconds; nothing passed between them."""
    return np.array([[seconds, 0.0] for seconds in own])


def test_a_disturbed_op_does_not_count() -> None:
    found = _typical(2, [chart(1.0, 2.0), chart(1.0, 50.0), chart(1.0, 2.0)])
    assert found[:, 0].tolist() == pytest.approx([1.0, 2.0])


def test_the_sum_is_the_median_sum_though_each_op_is_usually_faster() -> None:
    """One op is slow in each chart, another one each time: the sum of medians would be 3."""
    charts = [chart(4.0, 1.0, 1.0), chart(1.0, 4.0, 1.0), chart(1.0, 1.0, 4.0)]
    found = _typical(3, charts)
    assert found[:, 0].sum() == pytest.approx(6.0)
    assert found[:, 0].tolist() == pytest.approx([2.0, 2.0, 2.0])


def test_an_op_that_no_chart_saw_stays_unknown() -> None:
    found = _typical(2, [chart(1.0, np.nan), chart(3.0, np.nan)])
    assert found[0, 0] == pytest.approx(2.0)
    assert np.isnan(found[1, 0])
    assert np.isnan(_typical(2, [])).all()
