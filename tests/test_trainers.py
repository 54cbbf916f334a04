"""Training loops of others: their scripts run as they are."""

import pytest

from runs import MIB, apart, by_func, by_lbfgs, by_trainer


def test_transformers_trainer_comes_to_the_same_bits_within_its_budget() -> None:
    pytest.importorskip("accelerate")  # without it there is no Trainer
    plain, _ = apart(by_trainer, None)
    found, reports = apart(by_trainer, "70%")
    assert found == plain
    planned = [report for report in reports if report.mode == "planned"]
    assert len(planned) > len(reports) / 2
    recorded = max(report.peak for report in reports if report.mode == "recorded")
    assert max(report.peak for report in planned) < 0.85 * recorded


def test_gradients_by_torch_func_have_the_same_bits() -> None:
    plain, _ = apart(by_func, None)
    found, reports = apart(by_func, "80%")
    assert found == plain
    assert [report.mode for report in reports].count("planned") >= 3


def test_steps_that_leave_their_path_again_and_again_stay_within_the_budget() -> None:
    plain, _ = apart(by_lbfgs, None)
    found, reports = apart(by_lbfgs, "170MiB")
    assert found == plain
    assert any(report.mode == "on demand" for report in reports)
    assert max(report.peak for report in reports) < 1.05 * 170 * MIB
