"""What the engine adds to each op when its plan keeps everything.

A step of many tiny ops is timed plainly, under an empty dispatch mode (the least that anyone can pay
who sees each call), and inside a session, in turns; the difference, divided by the number of calls
that torch dispatches, is what one call costs. Prints medians; `--json FILE` keeps them. Then, for the
step of the demo: how many calls it makes, and so which share of it they cost.
"""

import argparse
import time
from pathlib import Path
from statistics import median

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import penstock
from _where import where, write
from penstock.zoo.workloads import workload


class Empty(TorchDispatchMode):
    """Does nothing but count."""

    calls = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        return func(*args, **(kwargs or {}))


def small_step(depth: int) -> tuple[nn.Module, torch.optim.Optimizer, torch.Tensor]:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(depth)]
    model = nn.Sequential(*layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, foreach=False)
    return model, optimizer, torch.randn(4, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=200, help="layers; about 15 calls each")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model, optimizer, batch = small_step(options.depth)

    def step() -> float:
        begun = time.perf_counter()
        model(batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - begun

    step()
    plain: list[float] = []
    empty: list[float] = []
    inside: list[float] = []
    calls = 0
    for _ in range(options.rounds):
        plain += [step() for _ in range(10)]
        with Empty() as mode:
            empty += [step() for _ in range(10)]
            calls = mode.calls // 10
        with penstock.fit(policy="keep", tier="none", device="cpu") as session:
            for _ in range(7):  # recorded and charted first
                step()
            inside += [step() for _ in range(10)]
            assert session.reports[-1].mode == "planned"
    added = (median(inside) - median(plain)) / calls
    least = (median(empty) - median(plain)) / calls
    print(
        f"{calls} calls; plain {median(plain) * 1e3:.2f} ms, inside {median(inside) * 1e3:.2f} ms"
    )
    print(f"the engine adds {added * 1e6:.2f} us to a call, an empty mode {least * 1e6:.2f} us")
    demo = workload("gpt2", "full")
    demo.step(0)
    torch.set_num_threads(options.threads)
    begun = time.perf_counter()
    demo.step(1)
    seconds = time.perf_counter() - begun
    with Empty() as mode:
        demo.step(2)
    share = mode.calls * added / seconds
    print(f"the demo's step: {mode.calls} calls in {seconds:.2f} s, of which {share:.3%}")
    if options.json:
        result = {
            **where(),
            "calls": calls,
            "plain_seconds": median(plain),
            "inside_seconds": median(inside),
            "added_seconds_per_call": added,
            "added_by_an_empty_mode": least,
            "demo_calls": mode.calls,
            "demo_seconds": seconds,
            "demo_share": share,
        }
        write(options.json, result)


if __name__ == "__main__":
    main()
