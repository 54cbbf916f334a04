"""`penstock compare --execute`: what is measured, whether the bits are the same, what is kept."""

from pathlib import Path

import pytest

from command import Penstock
from penstock.errors import UsageError
from penstock.leaderboard import Entry
from penstock.trials import execute

STEPS = """
import os
import torch
from torch import nn


def steady():
    return training(lambda: 0.0)


def moody():
    return training(noise, 512)


def talkative():
    step = training(lambda: 0.0, 512)
    return lambda number: step(number) or [torch.tensor(noise())]


def remembering():
    step, memory = training(lambda: 0.0, 512), nn.BatchNorm1d(1)
    return lambda number: (step(number), memory.running_mean.fill_(noise()))[0]


def noise():
    return int.from_bytes(os.urandom(4), "big") / 2**32


def training(noise, samples=8192):
    model = nn.Sequential(*(part for _ in range(8) for part in (nn.Linear(128, 128), nn.Tanh())))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = torch.randn(samples, 128)

    def step(number):
        loss = (model(batch) + noise()).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
"""


@pytest.fixture(autouse=True)
def module_of_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mysteps.py").write_text(STEPS)
    monkeypatch.syspath_prepend(tmp_path)  # processes that are spawned are told, too


def test_a_run_is_measured_compared_bit_for_bit_and_not_done_again(
    tmp_path: Path, penstock: Penstock
) -> None:
    results = tmp_path / "results.jsonl"
    asked = (["mysteps:steady"], ["70%"], ["belady"])
    (entry,) = execute(*asked, results=results)
    assert (entry.step, entry.on, entry.policy) == ("mysteps:steady", "run here", "belady")
    assert entry.problem == ""
    # The batch and eight saved values of 4 MiB, and what backward makes beside them.
    assert 0.7 * 36 < entry.budget / 2**20 < 0.7 * 64
    assert entry.peak > 0 and entry.plain > 0 and entry.seconds > 0
    assert entry.moved > 0 and entry.swaps > 0
    assert (entry.asked, entry.at[2]) == ("70%", "70%")
    # The allocator's slack is learnt when the budget is set.
    assert 0.6 < entry.budget / entry.full < 0.8
    # Beside what was measured, what was predicted: of this step, and not just anything.
    assert 0.5 < entry.foretold / entry.seconds < 2
    assert 0.8 < entry.foretold_peak / entry.peak < 1.25
    told: list[Entry] = []
    assert execute(*asked, results=results, told=told.append) == [entry] == told
    written = results.read_bytes()
    asked = ("mysteps:steady", "-b", "70%", "-p", "belady")
    page = tmp_path / "out.html"
    ended = penstock("compare", *asked, "--execute", "-o", results, "--report", page)
    assert ended.code == 0, ended.err
    assert "Predicted against measured" in page.read_text()
    assert f"{entry.seconds:.4g} s" in ended.out
    assert results.read_bytes() == written


@pytest.mark.parametrize(
    ("step", "differing"),
    [("moody", "parameters"), ("talkative", "losses"), ("remembering", "buffers")],
)
def test_a_step_that_is_another_each_time_is_told(step: str, differing: str) -> None:
    (entry,) = execute([f"mysteps:{step}"], ["100%"], ["keep"])
    assert entry.problem == f"its {differing} are not those of the plain run"
    assert not entry.fits


def test_what_takes_too_long_is_given_up() -> None:
    (entry,) = execute(["mysteps:steady"], ["100%"], ["keep"], limit=0.1)
    assert entry.problem == "the plain run: it was given up after 0.1 s"
    assert entry.limit == 0.1


@pytest.mark.parametrize(
    ("step", "policy", "says"),
    [("mysteps:steady", "keeep", "no policy is called"), ("step.trace", "keep", "no architecture")],
)
def test_what_cannot_be_run_is_refused_before_anything_runs(
    step: str, policy: str, says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        execute(["mysteps:steady", step], ["100%"], [policy])
