"""Training loops that are not ours: their scripts run as they are."""

from statistics import median

import pytest

from runs import apart, both, by_func, by_trainer


def test_transformers_trainer_comes_to_the_same_bits_within_its_budget() -> None:
    pytest.importorskip("accelerate")  # without it there is no Trainer
    plain, found, reports = apart(both, by_trainer, "70%")
    assert found == plain
    planned = [report.peak for report in reports if report.mode == "planned"]
    assert len(planned) > len(reports) / 2
    assert median(planned) < 0.85 * max(r.peak for r in reports if r.mode == "recorded")


def test_gradients_by_torch_func_have_the_same_bits() -> None:
    plain, found, reports = apart(both, by_func, "80%")
    assert found == plain
    assert [report.mode for report in reports].count("planned") >= 3
