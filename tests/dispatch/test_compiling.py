"""`torch.compile` and sessions: nothing is compiled inside one, neither the model nor the engine."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from penstock.api import fit
from penstock.record.fake import record_fake

STEPS = 3

# Of a compiled module torch warns whoever hooks all modules.
pytestmark = pytest.mark.filterwarnings("ignore:Using `torch.compile:UserWarning")


class Backend:
    """Counts the graphs that it is given, and runs them as they are."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, _inputs: list[Tensor]) -> Any:
        self.graphs += 1
        return graph


@pytest.fixture
def backend() -> Iterator[Backend]:
    torch.compiler.reset()
    yield Backend()
    torch.compiler.reset()


def trained(model: nn.Module, run: Any) -> list[Tensor]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(STEPS):
        source = torch.Generator().manual_seed(step)
        run(torch.randn(1024, 128, generator=source)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [parameter.detach() for parameter in model.parameters()]


def model() -> nn.Module:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(128, 512), nn.GELU(), nn.Linear(512, 128)) for _ in range(6)]
    return nn.Sequential(*blocks)


def trained_in_a_session(when: str, backend: Backend, tier: Path) -> tuple[list[Tensor], int]:
    """What a model that is compiled has learnt, and how many values its last step swapped."""
    ours = model()
    run = torch.compile(ours, backend=backend) if when == "before" else ours
    with fit("60%", device="cpu", tier=f"disk:{tier}", policy="swap-all") as session:
        if when == "inside":
            run = torch.compile(ours, backend=backend)
        elif when == "as a method":
            ours.compile(backend=backend)
        found = trained(ours, run)
    return found, session.reports[-1].decisions["swap"]


@pytest.mark.parametrize("when", ["before", "inside", "as a method"])
def test_a_compiled_model_runs_op_by_op(when: str, backend: Backend, tmp_path: Path) -> None:
    expected = trained(plain := model(), plain)
    with pytest.warns(UserWarning, match=r"torch.compile is set aside"):
        found, swaps = trained_in_a_session(when, backend, tmp_path)
    assert swaps > 0
    assert backend.graphs == 0
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_fake_step_is_that_of_the_model_as_it_is(backend: Backend) -> None:
    def make(*, is_compiled: bool) -> Callable[[int], None]:
        ours = model()
        run = torch.compile(ours, backend=backend) if is_compiled else ours
        return lambda _: run(torch.ones(8, 128)).square().mean().backward()

    plain = record_fake(lambda: make(is_compiled=False))
    with pytest.warns(UserWarning, match=r"torch.compile is set aside"):
        compiled = record_fake(lambda: make(is_compiled=True))
    assert [op.name for op in compiled.ops] == [op.name for op in plain.ops]
    assert backend.graphs == 0


def test_a_session_that_ended_leaves_the_compiler_as_it_was(backend: Backend) -> None:
    before = torch.compile
    with fit("1GiB", device="cpu"):
        assert torch.compile is not before
    assert torch.compile is before
    torch.compile(torch.sin, backend=backend)(torch.ones(3))
    assert backend.graphs == 1


def test_who_does_not_compile_is_told_nothing(tmp_path: Path) -> None:
    torch.compiler.reset()
    with fit("1GiB", device="cpu", tier=f"disk:{tmp_path}"):  # a warning is an error here
        trained(plain := model(), plain)
