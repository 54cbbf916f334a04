"""Batches that are all of different lengths, as texts are: what do plans made for other lengths cost?

    python benchmarks/lengths.py [--rounds 3] [--json FILE]

A GPT-2 (6 layers, 256 wide, batch 8) learns random tokens, 96 to 384 of them a step. Plain PyTorch, a
session with room for everything and one with 60 % of the memory run in turns, each in a process of its
own. Printed are tokens a second in the second half of the steps, medians over the rounds; parameters
must have the same bits.
"""

import argparse
import json
import random
import time
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from _children import last_said
from _where import where, write

BATCH, SHORTEST, LONGEST = 8, 96, 384
WAYS = ("plain", "130%", "60%")


def child(way: str, steps: int) -> dict[str, Any]:
    """One training: its speed, its bits, and what became of its steps."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from penstock import fit
    from penstock.record.settle import settle
    from penstock.trials import bits_of

    settle()
    torch.manual_seed(0)
    lengths = random.Random(0)
    config = GPT2Config(
        n_layer=6,
        n_embd=256,
        n_head=8,
        n_positions=LONGEST,
        vocab_size=256,
        bos_token_id=0,
        eos_token_id=0,
        loss_type="ForCausalLM",
    )
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    took = []
    session = None if way == "plain" else fit(way, device="cpu")
    with session or nullcontext():
        for _ in range(steps):
            tokens = torch.randint(0, 256, (BATCH, lengths.randint(SHORTEST, LONGEST)))
            begun = time.perf_counter()
            model(tokens, labels=tokens).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            took.append((tokens.numel(), time.perf_counter() - begun))
    late = took[steps // 2 :]
    reports = [] if session is None else session.reports[steps // 2 :]
    modes = [report.mode for report in reports]
    return {
        "tokens_per_second": sum(n for n, _ in late) / sum(seconds for _, seconds in late),
        "bits": bits_of(model.parameters()),
        "modes": {mode: modes.count(mode) for mode in sorted(set(modes))},
        "budget": None if session is None else session.budget,
        "peak": max((report.peak for report in reports), default=None),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options.child, options.steps)))
        return
    rows: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(options.rounds):
        for way in WAYS:
            arguments = "--child", way, "--steps", str(options.steps)
            rows[way].append(last_said(__file__, *arguments))
    failed = [row["failed"] for ran in rows.values() for row in ran if "failed" in row]
    if failed:
        raise SystemExit(failed[0])
    table = Table(title=f"Lengths of {SHORTEST} to {LONGEST}")
    for head in ("budget", "tokens/s", "of plain", "peak of budget", "same bits", "late steps"):
        table.add_column(head, justify="left" if head in ("budget", "late steps") else "right")
    speeds = {way: median(row["tokens_per_second"] for row in ran) for way, ran in rows.items()}
    same = len({row["bits"] for ran in rows.values() for row in ran}) == 1
    for way, ran in rows.items():
        last = ran[-1]
        table.add_row(
            way,
            f"{speeds[way]:,.0f}",
            f"{speeds[way] / speeds['plain']:.2f}",
            f"{last['peak'] / last['budget']:.0%}" if last["budget"] else "",
            "yes" if same else "NO",
            ", ".join(f"{count} {mode}" for mode, count in last["modes"].items()),
        )
    Console(width=120).print(table)
    if options.json:
        write(options.json, {**where(), "steps": options.steps, "rows": rows})
    if not same:
        raise SystemExit("the bits differ")


if __name__ == "__main__":
    main()
