"""Training runs for the tests, each in a process of its own: plain PyTorch, then a session."""

import gc
import hashlib
import multiprocessing
import os
import resource
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from penstock.api import fit
from penstock.dispatch.resident import CAllocator, meter_for
from penstock.ir.machine import Device
from penstock.record import calibrate, yardsticks
from penstock.record.machine import describe
from penstock.record.settle import settle
from penstock.record.yardsticks import Loop
from penstock.session import Session, StepReport
from penstock.simulate.least import least_budget
from penstock.zoo import Workload, workload

__all__ = [
    "DEVICES",
    "MIB",
    "ROWS",
    "WIDTH",
    "Compared",
    "apart",
    "blocks",
    "both",
    "by_func",
    "by_sparse",
    "by_trainer",
    "compare",
    "digest",
    "files_mapped_by_a_step",
    "in_room",
    "last_batches",
    "settle",
    "state_of",
    "tells_of_pages",
    "trained",
    "users_of_exchange",
    "without_exchange",
]

MIB = 1 << 20
ROWS, WIDTH = 2048, 256
"""Of the batches of `trained`, and of its model."""

tells_of_pages = pytest.mark.skipif(
    not Path("/proc/self/pagemap").exists(), reason="this system does not tell of its pages"
)

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.cuda,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
        ],
    ),
]
"""For `parametrize`: every device that a test can run on."""

_PRELOADED = ["torch._dynamo", "transformers.models.gpt2.modeling_gpt2", "penstock.api"]


def digest(tensors: Iterable[torch.Tensor]) -> list[str]:
    """One checksum a tensor: equal only if dtype, shape and every bit are."""
    found = []
    for tensor in tensors:
        plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        about = f"{tensor.dtype} {tuple(tensor.shape)} "
        found.append(about + hashlib.sha256(plain.numpy().data).hexdigest()[:16])
    return found


def state_of(load: Workload) -> list[str]:
    """Checksums of all that training changes: parameters, buffers, optimizer state.

    The optimizer's moments are sums over the gradients of all steps: no gradient can differ unseen.
    """
    moments = (
        tensor
        for optimizer in load.optimizers
        for state in optimizer.state.values()
        for tensor in state.values()
        if isinstance(tensor, torch.Tensor)
    )
    return digest([*load.parameters(), *load.buffers(), *moments])


@dataclass(frozen=True)
class Compared:
    """A workload trained twice: plainly, and in a session."""

    plain_losses: list[str]
    losses: list[str]
    plain_state: list[str]
    state: list[str]
    budget: int
    least: int  # the smallest budget that the recorded step could meet
    reports: list[StepReport]

    @property
    def planned(self) -> list[StepReport]:
        return [report for report in self.reports if report.mode == "planned"]


def compare(name: str, budget: str, steps: int, **options: Any) -> Compared:
    """Train the zoo's workload `name` plainly, then in a session, from the same seeds.

    `settle` first: MKL picks its vector functions at their first use, and two threads that use them
    first at once may take different ones. The plain run comes first in the same process, so that
    what the process takes once only (pages of code, thread pools, MKL's buffers) is not counted as
    the step's.
    """
    settle()
    plain = workload(name)
    plain_losses = digest(loss for step in range(steps) for loss in plain.step(step))
    plain_state = state_of(plain)
    del plain
    gc.collect()
    load = workload(name)
    with fit(budget, device="cpu", **options) as session:
        losses = [loss for step in range(steps) for loss in load.step(step)]
    assert session.trace is not None
    return Compared(
        plain_losses,
        digest(losses),
        plain_state,
        state_of(load),
        session.budget,
        least_budget(session.trace).nbytes,
        session.reports,
    )


@dataclass(frozen=True)
class InRoom:
    """A comparison, and after which steps the C library kept what was freed."""

    compared: Compared
    keeps: list[bool]


def in_room(budget: str, limit: int | None = None, *, late: bool = False) -> InRoom:
    """`compare`, with `limit` bytes of data at most if they are given; `late`: once a step has run."""

    def confine() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    if not late:
        confine()
    keeps: list[bool] = []

    def look(_report: StepReport) -> None:
        assert Session._running is not None
        confine()
        keeps.append(Session._running.engine.room.keeps_freed)

    return InRoom(compare("bert", budget, 10, on_step=look), keeps)


def blocks(count: int) -> nn.Module:
    return nn.Sequential(*(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()) for _ in range(count)))


def trained(
    session: Session,
    steps: int,
    rows: Callable[[int], int],
    has_norms: Callable[[int], bool] = lambda _: False,
) -> list[str]:
    """Train in `session`; returns the mode of each step. Step by step: the rows, and are norms taken?"""
    torch.manual_seed(0)
    model = blocks(6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with session:
        for step in range(steps):
            # No call makes it: the first one that tells of the step's shape reads it.
            batch = torch.from_numpy(np.ones((rows(step), WIDTH), np.float32))
            model(batch).square().mean().backward()
            if has_norms(step):
                torch.stack([parameter.grad.norm() for parameter in model.parameters()]).norm()
            optimizer.step()
            optimizer.zero_grad()
    return [report.mode for report in session.reports]


def last_batches(epochs: int, steps: int) -> list[tuple[bool, StepReport]]:
    """Of each step but an epoch's last, a smaller one: was what is freed kept; its report."""
    settle()
    found: list[tuple[bool, StepReport]] = []

    def look(report: StepReport) -> None:
        assert Session._running is not None
        found.append((Session._running.engine.room.keeps_freed, report))

    session = Session("75%", device="cpu", on_step=look)
    epoch = [ROWS] * steps + [ROWS // 4]
    trained(session, epochs * len(epoch), lambda step: epoch[step % len(epoch)])
    return [one for number, one in enumerate(found, start=1) if number % (steps + 1)]


def both(
    train: Callable[[AbstractContextManager[Any]], list[str]], budget: str, **options: Any
) -> tuple[list[str], list[str], list[StepReport]]:
    """What a training comes to plainly, what it comes to in a session, and the reports of its steps."""
    settle()
    plain = train(nullcontext())
    gc.collect()
    session = fit(budget, device="cpu", **options)
    return plain, train(session), session.reports


def by_batches(session: AbstractContextManager[Any]) -> list[str]:
    """The losses and parameters of a training whose batches are all of different sizes."""
    torch.manual_seed(0)
    model = blocks(6)
    optimizer = torch.optim.AdamW(model.parameters())
    losses = []
    with session:
        for step in range(36):
            rows = ROWS - step * 559 % (3 * ROWS // 4)
            loss = model(torch.randn(rows, WIDTH)).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
    return digest([*losses, *model.parameters()])


class Graph(nn.Module):
    """Convolutions over a graph of `ROWS` nodes, whose edges are a sparse matrix with learnt weights."""

    def __init__(self, layout: torch.layout) -> None:
        super().__init__()
        edges = torch.randperm(ROWS * ROWS)[: 16 * ROWS].sort().values
        self.register_buffer("edges", torch.stack([edges // ROWS, edges % ROWS]))
        even = torch.sparse_coo_tensor(self.edges, torch.ones(16 * ROWS), (ROWS, ROWS))
        self.register_buffer("even", even.coalesce().to_sparse(layout=layout))
        self.weights = nn.Parameter(torch.rand(16 * ROWS))
        self.nodes = nn.Embedding(2 * ROWS, WIDTH, sparse=True)
        self.layers = blocks(3)

    def forward(self, nodes: torch.Tensor) -> torch.Tensor:
        x = self.nodes(nodes)
        learnt = torch.sparse_coo_tensor(self.edges, self.weights, (ROWS, ROWS))
        for layer in self.layers:
            x = layer(self.even @ x / 16 + torch.sparse.mm(learnt, x) / 16)
        return x.square().mean()


def by_sparse(layout: torch.layout, session: AbstractContextManager[Any]) -> list[str]:
    """What a graph network comes to whose gradients are sparse too.

    A step has two batches: the second sparse gradient is added to the first.
    """
    torch.manual_seed(0)
    model = Graph(layout)
    table = model.nodes.weight
    others = [parameter for parameter in model.parameters() if parameter is not table]
    optimizers = [torch.optim.SparseAdam([table]), torch.optim.Adam(others)]
    with session:
        for _ in range(6):
            for _ in range(2):
                model(torch.randint(0, 2 * ROWS, (ROWS,))).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    return digest(model.parameters())


def by_func(session: AbstractContextManager[Any]) -> list[str]:
    """What a model comes to whose gradients `torch.func` takes, example by example."""
    torch.manual_seed(0)
    model = blocks(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def loss(parameters: dict[str, torch.Tensor], row: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = functional_call(model, parameters, (row,))
        return out.square().mean()

    gradients = vmap(grad(loss), in_dims=(None, 0))

    with session:
        for _ in range(7):
            found = gradients(dict(model.named_parameters()), torch.randn(16, WIDTH))
            for name, parameter in model.named_parameters():
                parameter.grad = found[name].mean(0)
            optimizer.step()
    return digest(model.parameters())


def by_trainer(session: AbstractContextManager[Any]) -> list[str]:
    """The parameters that transformers' `Trainer` comes to.

    A step is two batches that a worker sends; there is a schedule, a limit of the norm, and every three
    steps a line in the log and an evaluation.
    """
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

    set_seed(0)
    config = GPT2Config(
        vocab_size=256,
        n_layer=4,
        n_embd=128,
        n_head=4,
        n_positions=128,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config)
    tokens = torch.randint(0, 256, (128, 128))
    examples = [{"input_ids": one, "labels": one} for one in tokens]
    with tempfile.TemporaryDirectory() as folder:
        asked = TrainingArguments(
            folder,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            dataloader_num_workers=1,
            max_steps=9,
            logging_steps=3,
            eval_strategy="steps",
            eval_steps=3,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = Trainer(model, asked, train_dataset=examples, eval_dataset=examples[:8])
        with session:
            trainer.train()
    return digest(model.parameters())


def files_mapped_by_a_step() -> int:
    """Bytes of files, which are code, that the first step of an LSTM maps once all is settled."""

    def mapped() -> int:
        facts = Path("/proc/self/status").read_text().splitlines()
        return next(int(fact.split()[1]) << 10 for fact in facts if fact.startswith("RssFile"))

    settle()
    model = nn.LSTM(64, 64, batch_first=True)
    optimizer = torch.optim.AdamW(model.parameters())
    before = mapped()
    model(torch.randn(8, 32, 64))[0].square().mean().backward()
    optimizer.step()
    return mapped() - before


def users_of_exchange() -> list[ModuleType]:
    """The modules that ask whether two storages can exchange their bytes."""
    loaded = [module for name, module in sys.modules.items() if name.startswith("penstock.")]
    return [module for module in loaded if hasattr(module, "CAN_SWAP")]


def without_exchange(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call `function` as under a torch that cannot exchange the bytes of storages. For `apart`."""
    for module in users_of_exchange():
        module.CAN_SWAP = False
    return function(*args, **options)


def calibrated_calmly() -> tuple[Device, dict[str, float]]:
    """A CPU where freed memory may stay, calibrated by one model; workspaces of convolutions."""
    torch.set_num_threads(1)
    make = partial(yardsticks._Convolutions, 16, 4, 64)
    loop = Loop("tiny", make, partial(torch.optim.AdamW, foreach=False), kind="convolution")
    calibrate.loops = lambda: [loop]
    settle()
    allocator, cpu = CAllocator(), torch.device("cpu")
    assert allocator.may_keep
    known = describe(cpu, (), may_keep_freed=True)
    device = calibrate.calibrated(known, cpu, meter_for(cpu), allocator).device
    assert not allocator.keeps
    return device, {key: one.workspace for key, one in device.costs.items() if "conv" in key}


def apart(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call a function of this module in a fresh process; what it raises fails the test."""
    # Waiting threads that spin take the processor from those that work, if others use it too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as the command line does
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(there, function, args, options))
    process.start()
    there.close()
    try:
        result, error = here.recv()
    except EOFError:
        process.join()
        pytest.fail(f"the process ended with exit code {process.exitcode}")
    finally:
        here.close()
    process.join()
    process.close()
    if error:
        pytest.fail(error, pytrace=False)
    return result


def _call(answers: Any, function: Callable[..., Any], args: Any, options: Any) -> None:
    gc.freeze()  # what was preloaded stays: a collection need not look through it each time
    try:
        answers.send((function(*args, **options), None))
    except BaseException:
        answers.send((None, traceback.format_exc()))
    answers.close()
