"""Pitfalls that other offloading and recomputing systems fell into, one test each.

The numbers are those of the project's survey of its peers. Rows that another test holds already:

 1, a buffer is read before its copy out ended: tests/engine/test_residency.py, in mid-copy.
 3, keys outlive their objects: test_residency.py, an address used again.
 4, only parameters were compared: tests/engine/test_random_plans.py compares every gradient, over
    several steps and with hesitant tiers.
 7 and 8, pinned blocks one by one, rounded up: tests/engine/test_host.py, slabs inside a capacity.
11, a recomputation makes other bits: tests/engine/test_lineage.py, and chen in test_session.py.
15, the peak sits in the recomputation: tests/simulate/test_run.py, and the peaks of test_session.py.
19, files left behind: tests/engine/test_disk.py, and the signals of test_faults.py.
21, the peak is unknown, so margins are wide: test_session.py holds it within 3 %.
24, an abort instead of an error without a GPU: test_faults.py.

Rows that do not apply: 10 (the engine treats no layer apart, so there is no case to get wrong),
14 and 16 (nothing is compiled, nothing is cached), 17 (one process), 22 (no memory is bound to a
NUMA node).
"""

import gc
import io
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gates import managing
from penstock.api import fit
from penstock.dispatch.storage import has_bytes
from penstock.engine.residency import Place
from penstock.session import Session, StepReport
from runs import DEVICES, MIB, digest, settle

WIDTH, ROWS = 256, 2048
"""What a layer saves takes 2 MiB."""

pytestmark = pytest.mark.parametrize("device", DEVICES)


class Training:
    """A model in training from a fixed seed; keeps checksums of all losses and gradients."""

    def __init__(self, model: Callable[[], nn.Module], device: str) -> None:
        settle()
        torch.manual_seed(0)
        self.device = device
        self.model = model().to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.steps = 0
        self.seen: list[str] = []

    def batch(self) -> Tensor:
        source = torch.Generator().manual_seed(self.steps)
        return torch.randn(ROWS, WIDTH, generator=source).to(self.device)

    def step(self) -> None:
        torch.manual_seed(self.steps)
        loss = self.model(self.batch()).square().mean()
        loss.backward()
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        self.seen += digest([loss, *gradients])
        del loss
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1

    def run(self, steps: int) -> list[str]:
        for _ in range(steps):
            self.step()
        return self.seen


def session(directory: Path, device: str, policy: str = "swap-all", **options) -> Session:
    tier = f"disk:{directory}"
    return fit("1GiB", policy=policy, tier=tier, device=device, verify=True, **options)


def planned(running: Session) -> list[StepReport]:
    return [report for report in running.reports if report.mode == "planned"]


def assert_same_as_plain(
    model: Callable[[], nn.Module],
    device: str,
    directory: Path,
    policy: str = "swap-all",
    steps: int = 5,
) -> Session:
    expected = Training(model, device).run(steps)
    with session(directory, device, policy) as running:
        found = Training(model, device).run(steps)
    assert found == expected
    assert planned(running)
    return running


def stack() -> nn.Module:
    return nn.Sequential(*[nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(5)])


class Views(nn.Module):
    """What is saved are three views of one storage; the tensor itself dies at once."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = self.mix(x).chunk(3, dim=1)
        return self.out(a.sigmoid() * b.tanh() * c * b)


def test_02_a_view_outlives_its_tensor(device: str, tmp_path: Path) -> None:
    """Tensor freed while a view of it is still used."""
    running = assert_same_as_plain(Views, device, tmp_path)
    assert running.outcome.plan.swaps


def test_05_what_is_never_finished_leaves_nothing(device: str, tmp_path: Path) -> None:
    """Stash kept after exception, eval pass, no backward."""

    class Stop(Exception):
        pass

    def disturb(training: Training) -> None:
        with torch.no_grad():
            training.model.eval()(training.batch())  # forward only
            training.model.train()
        training.model(training.batch())  # a graph dropped without a backward
        hook = training.model[3].register_forward_hook(raising)
        with pytest.raises(Stop):
            training.model(training.batch())
        hook.remove()

    def raising(*_: object) -> None:
        raise Stop

    def disturbed(training: Training) -> Iterator[None]:
        for _ in range(3):
            training.run(4)
            disturb(training)
            yield

    plain = Training(stack, device)
    for _ in disturbed(plain):
        pass
    with session(tmp_path, device) as running:
        training = Training(stack, device)
        manager = running.engine.manager
        left = []
        for _ in disturbed(training):
            gc.collect()
            manager.rest()  # a copy of what died may still be stopping
            manager._tidy()
            alive = sum(resident.nbytes for resident in manager.known.values())
            left.append((alive, manager.tiers["disk"].store.used()))
    assert training.seen == plain.seen
    assert left[2][0] <= left[1][0], left  # nothing grows
    assert left[2][1] <= max(left[0][1], left[1][1]), left
    assert left[2][1] == 0
    assert running.reports[-1].mode == "planned"  # and the plan was found again


@pytest.mark.parametrize("tier", ["disk", "host"])
def test_06_memory_is_given_back_by_events_of_our_own(
    device: str, tier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`record_stream` delays reuse, so the peak has no bound."""

    def never(*_: object) -> None:
        raise AssertionError("record_stream was called")

    monkeypatch.setattr(Tensor, "record_stream", never)
    expected = Training(stack, device).run(4)
    where = f"disk:{tmp_path}" if tier == "disk" else tier
    with fit("1GiB", policy="swap-all", tier=where, device=device) as running:
        assert Training(stack, device).run(4) == expected
    assert sum(planned(running)[-1].traffic.values()) > 0


def test_09_a_storage_is_copied_once_however_many_views_are_saved(
    device: str, tmp_path: Path
) -> None:
    """The same storage is copied several times."""
    running = assert_same_as_plain(Views, device, tmp_path)
    trace, swaps = running.trace, running.outcome.plan.swaps
    mixed = [swap for swap in swaps if trace.values[swap.gap.value].nbytes == 3 * ROWS * WIDTH * 4]
    assert len(mixed) == 1  # a, b and c are one storage, b is used twice
    out = sum(trace.values[swap.gap.value].nbytes for swap in swaps)
    traffic = planned(running)[-1].traffic
    assert 0 < traffic["disk write"] <= out
    assert traffic["disk read"] <= traffic["disk write"]


class Moody(nn.Module):
    """Splits its work as the free memory says, which nobody else knows."""

    PIECES = (1, 1, 1, 1, 2, 1, 4, 4, 1, 1)

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        pieces = self.PIECES[self.calls]
        self.calls += 1
        return self.two(torch.cat([self.one(part).tanh() for part in x.chunk(pieces)]).tanh())


@pytest.mark.parametrize("policy", ["swap-all", "chen"])
def test_12_a_step_that_computes_otherwise_is_noticed(
    device: str, policy: str, tmp_path: Path
) -> None:
    """Free memory changes what user code computes."""
    running = assert_same_as_plain(Moody, device, tmp_path, policy, steps=len(Moody.PIECES))
    events = [event for report in running.reports for event in report.events]
    assert any(event.startswith("fallback") for event in events)


class Adapted(nn.Module):
    """A frozen layer whose output an adapter is added to, in place, after it was saved."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.down, self.up = nn.Linear(WIDTH, 8), nn.Linear(8, WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = self.base(x)
        gate = h.sigmoid()  # reads h before it changes
        h += self.up(self.down(x).tanh())
        kept = h.exp()  # saves its result ...
        masked = kept.view(-1)[: kept.numel() // 2].detach().cos()
        return self.out(kept * gate).add_(masked.mean())


@pytest.mark.parametrize("policy", ["swap-all", "chen", "auto"])
def test_13_a_saved_output_that_an_adapter_changes_in_place(
    device: str, policy: str, tmp_path: Path
) -> None:
    """In-place on a saved output, as adapters do."""
    assert_same_as_plain(Adapted, device, tmp_path, policy)


def test_18_a_checkpoint_written_in_a_session_resumes_anywhere(device: str, tmp_path: Path) -> None:
    """Optimizer counters or master weights are lost at resume."""

    def resumed(file: io.BytesIO) -> Training:
        training = Training(stack, device)
        file.seek(0)
        states = torch.load(file, map_location=device)
        training.model.load_state_dict(states["model"])
        training.optimizer.load_state_dict(states["optimizer"])
        training.steps = 4
        return training

    def saved(training: Training) -> io.BytesIO:
        file = io.BytesIO()
        model, optimizer = training.model.state_dict(), training.optimizer.state_dict()
        torch.save({"model": model, "optimizer": optimizer}, file)
        return file

    plain = Training(stack, device)
    plain.run(4)
    plain_file = saved(plain)
    plain.seen.clear()
    expected = plain.run(3)
    with session(tmp_path, device):
        training = Training(stack, device)
        training.run(4)
        file = saved(training)
        assert file.getvalue() == plain_file.getvalue()  # byte for byte
    assert resumed(file).run(3) == expected  # without a session
    with session(tmp_path, device):
        assert resumed(plain_file).run(3) == expected


def test_20_a_copy_out_does_not_hold_up_a_copy_in(device: str) -> None:
    """One copy stream for both directions."""
    with managing(torch.device(device)) as (manager, store):
        a, b = torch.randn(50_000, device=device), torch.randn(50_000, device=device)
        bits = a.clone()
        first, second = (manager.meet(t.untyped_storage()) for t in (a, b))
        manager.settle(manager.evict(first, "host"))
        store.writes.clear()  # from here on, no copy out ends
        leaving = manager.evict(second, "host")
        manager.prefetch(first)
        manager.bring_back(first, lambda nbytes: None)
        assert torch.equal(a, bits)
        assert second.place is Place.LEAVING
        assert not leaving.is_done()


class Checkpointed(nn.Module):
    """The user's own checkpointed regions: their inputs live in closures."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh())
            for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return x


def test_23_inputs_of_checkpointed_regions_are_moved_too(device: str, tmp_path: Path) -> None:
    """Region inputs are invisible to saved-tensor hooks."""
    running = assert_same_as_plain(Checkpointed, device, tmp_path)
    swapped = {swap.gap.value for swap in running.outcome.plan.swaps}
    makers = [running.trace.values[value].producer for value in swapped]
    # The last tanh of a block makes the next one's input.
    modules = {running.trace.ops[maker].module for maker in makers if maker is not None}
    assert {"blocks.0.3", "blocks.1.3"} <= modules


def test_values_can_be_read_after_the_session_whatever_was_away(
    device: str, tmp_path: Path
) -> None:
    """A stash cleared on exit would take what the user still holds with it."""
    kept: list[Tensor] = []
    with session(tmp_path, device):
        training = Training(stack, device)
        training.model[1].register_forward_hook(lambda _m, _i, out: kept.append(out))
        training.run(4)
    assert all(has_bytes(one.untyped_storage()) for one in kept)
    assert kept[-1].sum().isfinite()
    assert not [t for t in threading.enumerate() if t.name.startswith("penstock")]
    assert sum(one.nbytes for one in kept) == 4 * ROWS * WIDTH * 4 == 8 * MIB


def test_another_thread_reads_what_the_step_moves(device: str, tmp_path: Path) -> None:
    """A logger or an asynchronous checkpoint reads while values come and go."""

    def watched(steps: int) -> tuple[list[str], list[str]]:
        """The checksums of the training, and those that a thread made of a layer's outputs."""
        training = Training(stack, device)
        outputs: SimpleQueue[Tensor | None] = SimpleQueue()
        read: list[str] = []

        def reader() -> None:
            while (output := outputs.get()) is not None:
                read.extend(digest([output * 2]))

        thread = threading.Thread(target=reader)
        thread.start()
        for layer in training.model:
            layer.register_forward_hook(lambda _m, _i, out: outputs.put(out.detach()))
        try:
            return training.run(steps), read
        finally:
            outputs.put(None)
            thread.join()

    expected = watched(5)
    with session(tmp_path, device) as running:
        assert watched(5) == expected
    assert len(expected[1]) == 5 * 5
    assert sum(planned(running)[-1].traffic.values()) > 0
