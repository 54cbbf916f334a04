"""Train a small GPT-2 on the sources of Python's own standard library, byte by byte.

An ordinary script: nothing in it knows of Penstock.

    python examples/train_gpt2.py --steps 5
    penstock run --budget 1GiB examples/train_gpt2.py --steps 5
"""

import argparse
import json
import sysconfig
import time
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

BATCH, LENGTH = 8, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--checkpointing", action="store_true", help="recompute every layer")
    parser.add_argument("--out", type=Path, help="write losses and step seconds here, as JSON")
    options = parser.parse_args()

    # The first call of a vector function in MKL picks its implementation. Made by two threads at
    # once, one of them may briefly run another one, of other accuracy, and no two runs of this
    # script would give the same losses. So make it once, on one thread.
    torch.tanh(torch.zeros(8))

    torch.manual_seed(0)
    text = standard_library()
    config = GPT2Config(
        vocab_size=256,
        n_positions=LENGTH,
        n_embd=512,
        n_layer=options.layers,
        n_head=8,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = GPT2LMHeadModel(config).train()
    if options.checkpointing:
        model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    losses, seconds = [], []
    for step in range(options.steps):
        began = time.perf_counter()
        tokens = batch(text, step)
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - began)
        print(f"step {step + 1}: loss {losses[-1]:.6f}, {seconds[-1]:.2f} s", flush=True)
    if options.out:
        options.out.write_text(json.dumps({"losses": losses, "seconds": seconds}))


def standard_library() -> torch.Tensor:
    """About four million bytes of Python."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    sources = b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))
    return torch.frombuffer(bytearray(sources), dtype=torch.uint8)


def batch(text: torch.Tensor, step: int) -> torch.Tensor:
    """Random stretches of `text`, (BATCH, LENGTH), the same for the same step."""
    generator = torch.Generator().manual_seed(step)
    starts = torch.randint(len(text) - LENGTH, (BATCH,), generator=generator)
    return torch.stack([text[at : at + LENGTH] for at in starts.tolist()]).long()


if __name__ == "__main__":
    main()
