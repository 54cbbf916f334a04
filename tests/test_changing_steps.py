"""Training loops whose steps are not all alike: last batches, logged norms, another middle."""

from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (its name everywhere)
from torch.utils.data import DataLoader, TensorDataset

from penstock.session import Session, StepReport
from runs import ROWS, WIDTH, apart, blocks, both, by_batches, digest, last_batches, settle, trained


def session_in(directory: Path, policy: str = "auto") -> Session:
    return Session("70%", policy=policy, device="cpu", tier=f"disk:{directory}")


@pytest.mark.parametrize("policy", ["auto", "swap-all"])
def test_a_shape_that_comes_seldom_is_recorded_when_it_comes_and_planned_from_then_on(
    policy: str, tmp_path: Path
) -> None:
    """After a step of a new shape the next one is recorded; but it is of the old shape again."""
    session = session_in(tmp_path, policy)
    modes = trained(session, 18, lambda step: ROWS // 4 if step % 3 == 2 else ROWS)
    assert modes.count("recorded") == 3  # the first makes the optimizer's state
    assert modes.count("on demand") <= 2
    assert set(modes[-6:]) == {"planned"}
    peaks = [report.peak for report in session.reports[-6:]]
    assert max(peaks[2], peaks[5]) < min(peaks[0], peaks[1])


def test_steps_that_may_be_recorded_are_as_others_until_the_last_batch_comes_again() -> None:
    epochs, steps = 3, 13
    found = apart(last_batches, epochs, steps)
    second, third = found[steps:-steps], found[-steps:]
    assert all(keeps for keeps, _ in second[-steps // 2 :])
    assert sum(keeps for keeps, _ in third) >= 3  # the shape that was recorded is waited for first
    assert {report.mode for _, report in second + third} == {"planned"}
    assert not any("re-plan" in event for _, report in second for event in report.events)


def test_a_step_whose_norms_are_logged_is_no_reason_to_record_the_others(tmp_path: Path) -> None:
    session = session_in(tmp_path)
    modes = trained(session, 20, lambda _: ROWS, lambda step: step % 5 == 4)
    assert modes == ["recorded"] * 2 + [
        "on demand" if step % 5 == 4 else "planned" for step in range(2, 20)
    ]
    events = [event for report in session.reports[5:] for event in report.events]
    assert sum("re-plan" in event for event in events) <= 2  # a hundredth of its budget is 0.3 MiB
    assert not [event for event in events if "kept" in event]


def test_a_step_that_has_changed_for_good_in_its_middle_is_recorded_again(tmp_path: Path) -> None:
    modes = trained(session_in(tmp_path), 14, lambda _: ROWS, lambda step: step >= 8)
    assert modes[2:8] == ["planned"] * 6
    assert modes[8:11] == ["on demand", "on demand", "recorded"]
    assert modes[11:] == ["planned"] * 3


def test_two_kinds_of_step_in_turn_are_both_planned(tmp_path: Path) -> None:
    modes = trained(session_in(tmp_path), 20, lambda _: ROWS, lambda step: bool(step % 2))
    assert modes[-8:] == ["planned"] * 8


def test_steps_that_are_all_different_are_not_recorded_for_ever(tmp_path: Path) -> None:
    session = session_in(tmp_path)
    modes = trained(session, 24, lambda step: ROWS - 8 * step, lambda step: step % 3 == 0)
    assert modes[-10:].count("recorded") <= 1


def test_a_smaller_step_than_any_known_one_follows_the_plan_of_the_next_larger(
    tmp_path: Path,
) -> None:
    rows = [*[ROWS] * 7, *[3 * ROWS // 4] * 7, *[5 * ROWS // 8] * 2, 7 * ROWS // 8]
    followed = []

    def look(_: StepReport) -> None:
        program = session.engine.program
        followed.append(program and program.marked_sizes[0])

    session = Session("70%", device="cpu", tier=f"disk:{tmp_path}", on_step=look)
    modes = trained(session, len(rows), lambda step: rows[step])
    assert modes[6:9] == ["planned", "adapted", "recorded"]
    for step, row in ((7, ROWS), (14, 3 * ROWS // 4), (16, ROWS)):
        assert modes[step] == "adapted"
        report = session.reports[step]
        assert followed[step] == row * WIDTH * 4
        assert report.predicted_peak is None and report.peak < session.reports[6].peak


@pytest.mark.parametrize("policy", ["auto", "chen", "swap-all"])
def test_batches_that_are_all_different_have_plans_and_the_bits_of_plain_pytorch(
    policy: str,
) -> None:
    bits, others, reports = apart(both, by_batches, "70%", policy=policy)
    assert bits == others
    late = [report.mode for report in reports[-16:]]
    assert late.count("adapted") + late.count("planned") >= 12
    most = max(report.peak for report in reports if report.mode == "recorded")
    assert max(report.peak for report in reports[-16:]) < 0.95 * most


class TwoInputs(nn.Module):
    """Large values that are always alike come before those that tell the shapes apart."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = blocks(2), blocks(4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h, g = self.one(x), self.other(y)
        return h.square().mean() + g.square().mean() + (h.mean(0) * g.mean(0)).sum()


def two_inputs(session: Session | None) -> list[str]:
    """Digests of the losses and parameters of a training, every fourth step of which is larger."""
    settle()
    torch.manual_seed(0)
    model = TwoInputs()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []

    with nullcontext() if session is None else session:
        for step in range(16):
            rows = 3 * ROWS // 2 if step % 4 == 3 else ROWS
            loss = model(torch.randn(ROWS, WIDTH), torch.randn(rows, WIDTH))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
    return digest([*losses, *model.parameters()])


@pytest.mark.parametrize("policy", ["chen", "capuchin"])
def test_what_was_dropped_before_the_shape_was_known_is_remade(policy: str, tmp_path: Path) -> None:
    session = Session("60%", policy=policy, device="cpu", tier=f"disk:{tmp_path}")
    assert two_inputs(session) == two_inputs(None)
    late = session.reports[-8:]
    assert [report.mode for report in late] == ["planned"] * 8
    assert all(sum(report.decisions.values()) for report in late)


def epochs_of(session: Session | None) -> list[str]:
    """What a common script comes to: a loader that shuffles, a smaller last batch, a loss that is printed
    now and then, an evaluation after each epoch."""
    settle()
    torch.manual_seed(0)
    middle = [nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True)]
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(inplace=True)),
        *(deepcopy(layer) for _ in range(6) for layer in middle),
        *(nn.MaxPool2d(2), nn.Dropout(0.2), nn.Flatten(), nn.Linear(16 * 64, 10)),
    )
    data = TensorDataset(torch.randn(560, 3, 16, 16), torch.arange(560) % 10)
    loader = DataLoader(data, batch_size=128, shuffle=True, num_workers=1)
    again = DataLoader(data, batch_size=128)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    told: list[float] = []

    with nullcontext() if session is None else session:
        for _ in range(4):
            model.train()
            for number, (images, labels) in enumerate(loader):
                loss = F.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if number % 3 == 1:
                    told.append(loss.item())
            model.eval()
            with torch.no_grad():
                right = [
                    model(images).argmax(1).eq(labels).sum().item() for images, labels in again
                ]
            told.append(sum(right))
    return [*map(str, told), *digest([*model.parameters(), *model.buffers()])]


@pytest.mark.parametrize("policy", ["auto", "chen"])
def test_a_common_training_script_has_the_bits_of_plain_pytorch(
    policy: str, tmp_path: Path
) -> None:
    session = Session("85%", policy=policy, device="cpu", tier=f"disk:{tmp_path}")
    assert epochs_of(session) == epochs_of(None)
    modes = [report.mode for report in session.reports]
    assert modes[-8:].count("planned") > 4
