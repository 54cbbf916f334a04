"""What the engine adds to each op when its plan keeps everything.

A step of many tiny ops is timed plainly and inside a session, in turns; the difference, divided by
the number of calls, is what one call costs. Prints medians; `--json FILE` keeps them.
"""

import argparse
import json
import platform
import time
from pathlib import Path
from statistics import median

import torch
from torch import nn

import penstock


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
    inside: list[float] = []
    calls = 0
    for _ in range(options.rounds):
        plain += [step() for _ in range(10)]
        with penstock.fit(policy="keep", tier="none", device="cpu") as session:
            for _ in range(7):  # recorded and charted first
                step()
            inside += [step() for _ in range(10)]
            assert session.trace is not None
            calls = len(session.trace.ops)
    added = (median(inside) - median(plain)) / calls
    print(
        f"{calls} calls; plain {median(plain) * 1e3:.2f} ms, inside {median(inside) * 1e3:.2f} ms"
    )
    print(f"the engine adds {added * 1e6:.2f} us to a call (target: 5 us or less)")
    if options.json:
        result = {
            "machine": platform.machine(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "calls": calls,
            "plain_seconds": median(plain),
            "inside_seconds": median(inside),
            "added_seconds_per_call": added,
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
