"""What can go wrong does: a clear error, no wrong value, no file and no thread left behind."""

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from penstock.api import fit
from penstock.errors import BudgetError, TierError, UsageError
from penstock.session import Session
from runs import MIB, digest, settle

LAYERS, WIDTH, ROWS = 8, 256, 4096
"""Each layer saves 4 MiB."""

SCRIPT = f"""
import atexit, signal, sys, threading
import torch
from torch import nn

torch.tanh(torch.zeros(8))
torch.manual_seed(0)
layers = [nn.Sequential(nn.Linear({WIDTH}, {WIDTH}), nn.Tanh()) for _ in range({LAYERS})]
model = nn.Sequential(*layers)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
x = torch.randn({ROWS}, {WIDTH})

@atexit.register
def left():
    print("threads", sorted(t.name for t in threading.enumerate() if "penstock" in t.name))

for step in range(6):
    h = x
    for number, layer in enumerate(model):
        h = layer(h)
        if step == 4 and number == {LAYERS} // 2:
            pass  # MID-STEP
    loss = h.square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(loss.item())
"""


def penstock(*arguments: str, mid_step: str = "pass", script: str | None = None, **options):
    """Run a script through the command line; `mid_step` is executed in the middle of a step."""
    directory = Path(options.pop("cwd"))
    path = directory / "train.py"
    path.write_text(script or SCRIPT.replace("pass  # MID-STEP", mid_step))
    tier = directory / "tier"
    tier.mkdir(exist_ok=True)
    command = [sys.executable, "-c", "from penstock.cli import main; main()", "run"]
    command += ["--device", "cpu", "--tier", f"disk:{tier}", *arguments, str(path)]
    done = run(command, directory, **options)
    assert not list(tier.iterdir())
    return done


def run(command: Sequence[str], directory: Path, **options) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "COLUMNS": "200"}
    return subprocess.run(
        command,
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        # A shell ignores it for what runs in its background, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )


# -- signals and scripts --------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_in_mid_step_leaves_no_file_and_no_thread(
    name: str, code: int, tmp_path: Path
) -> None:
    stop = f"signal.raise_signal(signal.{name})"
    done = penstock("-b", "60%", mid_step=stop, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert "threads []" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_script_that_raises_shows_its_own_traceback_only(tmp_path: Path) -> None:
    done = penstock("-b", "60%", mid_step="raise ValueError('mine')", cwd=tmp_path)
    assert done.returncode == 1
    assert "ValueError: mine" in done.stderr
    assert "train.py" in done.stderr
    assert "penstock" not in done.stderr.replace(str(tmp_path), "")
    assert "threads []" in done.stdout


def test_a_script_prints_what_it_prints_without_penstock(tmp_path: Path) -> None:
    done = penstock("-b", "60%", cwd=tmp_path)
    plain = run([sys.executable, str(tmp_path / "train.py")], tmp_path)
    assert done.returncode == plain.returncode == 0, done.stderr
    assert done.stdout == plain.stdout


def test_a_script_without_an_optimizer_runs_as_it_is(tmp_path: Path) -> None:
    script = "import torch\nprint(torch.ones(1 << 20).sum().item())\n"
    done = penstock("-b", "64MiB", script=script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "1048576.0\n"


def test_a_script_that_is_not_there_is_named(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from penstock.cli import main; main()", "run", "nowhere.py"]
    done = run(command, tmp_path)
    assert done.returncode == 2
    assert "nowhere.py" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("budget", ["0", "-1GiB", "12 bananas", "0%", "x%"])
def test_a_budget_that_makes_no_sense_is_refused_before_the_script_starts(
    budget: str, tmp_path: Path
) -> None:
    done = penstock(f"--budget={budget}", cwd=tmp_path)
    assert done.returncode == 2
    assert budget.rstrip("%") in done.stderr
    assert "budget" in done.stderr
    assert done.stdout == ""


def test_a_device_that_is_absent_is_an_error_not_an_abort(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("torch sees a GPU")
    done = penstock("--device", "cuda", cwd=tmp_path)
    assert done.returncode == 2
    assert "no CUDA" in done.stderr


# The same limit for both: what the process has when training begins, and 160 MiB more.
LIMITED = """
import resource
import torch
from torch import nn

model = nn.Sequential(*[nn.Sequential(nn.Linear(256, 256), nn.Tanh()) for _ in range(40)])
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
x = torch.randn(4096, 256)
model(x[:64]).mean().backward()
optimizer.zero_grad()
status = open("/proc/self/status").read()
used = int(status.split("VmData:")[1].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + (160 << 20),) * 2)
for step in range(5):
    model(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
print("trained")
"""


def test_a_step_trains_under_a_hard_limit_that_kills_plain_pytorch(tmp_path: Path) -> None:
    done = penstock("-b", "80MiB", script=LIMITED, cwd=tmp_path)
    plain = run([sys.executable, str(tmp_path / "train.py")], tmp_path)
    assert plain.returncode != 0
    assert "can't allocate memory" in plain.stderr
    assert done.returncode == 0, done.stderr
    assert done.stdout == "trained\n"


# -- sessions -------------------------------------------------------------------------------------


def stack() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *[nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(LAYERS)]
    )


def train(model: nn.Module, steps: int) -> list[Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(1)
    losses = []
    for _ in range(steps):
        loss = model(torch.randn(ROWS, WIDTH)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return losses


def plain(steps: int) -> list[str]:
    settle()
    return digest(train(stack(), steps))


def assert_nothing_left(directory: Path) -> None:
    assert not list(directory.iterdir())
    assert not [t for t in threading.enumerate() if t.name.startswith("penstock")]
    assert Session._running is None


class Failing:
    """A system call that fails with `code` from the moment that `armed` is set."""

    def __init__(self, call, code: int) -> None:
        self.call, self.code, self.armed = call, code, False

    def __call__(self, *args):
        if self.armed:
            raise OSError(self.code, os.strerror(self.code))
        return self.call(*args)


def test_a_full_disk_changes_no_bit_and_is_told(monkeypatch, tmp_path: Path) -> None:
    expected = plain(5)
    reserve = Failing(os.posix_fallocate, errno.ENOSPC)
    monkeypatch.setattr("penstock.engine.tiers.disk._GROWTH", 1 * MIB)
    with fit("60%", policy="swap-all", tier=f"disk:{tmp_path}", device="cpu") as session:
        extents = session.engine.manager.tiers["disk"].store._extents
        extents.allocate(extents.size)  # what the probe reserved is taken by someone else
        monkeypatch.setattr(os, "posix_fallocate", reserve)
        reserve.armed = True
        found = digest(train(stack(), 5))
    assert found == expected
    events = {event for report in session.reports for event in report.events}
    assert any(os.strerror(errno.ENOSPC) in event for event in events), events
    assert_nothing_left(tmp_path)


def test_a_read_error_in_mid_step_is_raised_as_what_it_is(monkeypatch, tmp_path: Path) -> None:
    read = Failing(os.preadv, errno.EIO)
    monkeypatch.setattr(os, "preadv", read)
    session = fit("60%", policy="swap-all", tier=f"disk:{tmp_path}", device="cpu")
    model = stack()

    def arm(*_) -> None:
        read.armed = len(session.reports) == 3

    model[-1].register_forward_hook(arm)
    with pytest.raises(TierError, match=os.strerror(errno.EIO)), session:
        train(model, 5)
    assert len(session.reports) == 3
    assert_nothing_left(tmp_path)


def test_a_write_error_loses_no_value(monkeypatch, tmp_path: Path) -> None:
    write = Failing(os.pwritev, errno.EIO)
    monkeypatch.setattr(os, "pwritev", write)
    model = stack()
    session = fit("60%", policy="swap-all", tier=f"disk:{tmp_path}", device="cpu")

    def arm(*_) -> None:
        write.armed = len(session.reports) == 3

    model[0].register_forward_hook(arm)
    with pytest.raises(TierError, match=os.strerror(errno.EIO)), session:
        train(model, 5)
    digest(model.parameters())  # all of them can be read
    assert_nothing_left(tmp_path)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match="nowhere is not a directory"),
        fit("60%", tier=f"disk:{tmp_path / 'nowhere'}", device="cpu"),
    ):
        pass
    assert_nothing_left(tmp_path)


def test_a_directory_that_cannot_be_written_is_named() -> None:
    with (
        pytest.raises(UsageError, match="cannot create a file in /proc"),
        fit("60%", tier="disk:/proc", device="cpu"),
    ):
        pass


def test_too_small_a_budget_says_the_least_that_works_and_what_fills_it(tmp_path: Path) -> None:
    with pytest.raises(BudgetError) as caught, fit(2 * MIB, tier=f"disk:{tmp_path}", device="cpu"):
        train(stack(), 5)
    error = caught.value
    assert error.budget == 2 * MIB < error.least
    assert error.holders
    assert f"{-(-error.least // MIB):,} MiB" in str(error)
    assert_nothing_left(tmp_path)


def test_an_exception_in_mid_step_leaves_values_readable_and_nothing_behind(tmp_path: Path) -> None:
    model, kept = stack(), []
    model[0].register_forward_hook(lambda _m, _i, out: kept.append(out))
    session = fit("60%", policy="swap-all", tier=f"disk:{tmp_path}", device="cpu")

    def stop(*_) -> None:
        if len(session.reports) == 3:
            raise KeyboardInterrupt

    model[-1].register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt), session:
        train(model, 5)
    assert digest([kept[-1].tanh()])  # an activation of the broken step, on disk until then
    assert_nothing_left(tmp_path)


def test_a_saved_tensor_changed_in_place_is_still_pytorchs_own_error(tmp_path: Path) -> None:
    model = stack()
    spoil = False

    def change(_module: nn.Module, _inputs: object, out: Tensor) -> None:
        if spoil:
            out.detach().add_(1)

    model[2][1].register_forward_hook(change)
    with fit("1GiB", policy="swap-all", tier=f"disk:{tmp_path}", device="cpu"):
        train(model, 4)
        spoil = True
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            train(model, 1)


class Rows(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Tensor:
        return torch.full((ROWS, WIDTH), index / 10).tanh()


def epoch(workers: int) -> list[Tensor]:
    model, losses = stack(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = torch.utils.data.DataLoader(
        Rows(), num_workers=workers, multiprocessing_context="fork" if workers else None
    )
    for batch in loader:
        loss = model(batch[0]).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return losses


def test_forked_loader_workers_work(tmp_path: Path) -> None:
    settle()
    expected = digest(epoch(0))
    with fit("60%", tier=f"disk:{tmp_path}", device="cpu"):
        found = digest(epoch(2))
    assert found == expected
    assert_nothing_left(tmp_path)
