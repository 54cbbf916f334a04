"""Commands that take a trace file take an architecture too: nothing is run, no device is needed."""

from pathlib import Path

import pytest

from command import Penstock
from penstock.ir.store import load_trace

SMALL = "hf:gpt2?batch=2&seq=64&layers=2"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("order", ["before", "after"])
def test_trace_writes_a_step_that_was_never_run(
    tmp_path: Path, penstock: Penstock, device: str, order: str
) -> None:
    out = tmp_path / "step.trace"
    options = ["-o", out, "--device", device]
    ended = penstock("trace", *([*options, SMALL] if order == "before" else [SMALL, *options]))
    assert ended.code == 0, ended.err
    recorded, machine = load_trace(out)
    assert (recorded.label, recorded.device, recorded.seconds) == (SMALL, device, 0)
    assert machine is None
    assert f"{len(recorded.ops)} ops" in ended.out


def test_a_trace_without_times_gets_them_from_a_machine(tmp_path: Path, penstock: Penstock) -> None:
    out = tmp_path / "step.trace"
    assert penstock("trace", SMALL, "-o", out, "--device", "cuda").code == 0
    ended = penstock("plan", out, "-b", "80%")
    assert ended.code == 2 and "name one with -m" in ended.err
    slow, fast = (penstock("simulate", out, "-m", name) for name in ("k40", "h100-sxm"))
    assert slow.code == fast.code == 0, (slow.err, fast.err)
    assert step_seconds(slow.out) > 5 * step_seconds(fast.out)


def step_seconds(table: str) -> float:
    """From the line `predicted step   0.1 s (1.00x of 0.1 s)`."""
    line = next(line for line in table.splitlines() if "predicted step" in line)
    return float(line.replace("│", " ").split()[2])


@pytest.mark.parametrize(
    "command", [("plan", "-b", "80%"), ("simulate",), ("compare", "-b", "80%", "-p", "chen")]
)
def test_an_architecture_stands_for_a_trace_file(
    penstock: Penstock, command: tuple[str, ...]
) -> None:
    name, *options = command
    ended = penstock(name, "zoo:gan", "-m", "v100-16", *options)
    assert ended.code == 0, ended.err
    assert "V100" in ended.out or name == "compare"


@pytest.mark.parametrize(
    "command", [("plan", "-b", "80%"), ("simulate",), ("compare", "-b", "80%")]
)
def test_without_a_machine_the_option_is_named(
    penstock: Penstock, command: tuple[str, ...]
) -> None:
    name, *options = command
    ended = penstock(name, SMALL, *options)
    assert ended.code == 2
    assert "was never run, so its times need a machine: name one with -m" in ended.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("trace", "hf:gpt2x", "-o", "x"), "did you mean gpt2?"),
        (("trace", "hf:gpt2?bach=2", "-o", "x"), "did you mean batch?"),
        (("trace", SMALL, "-o", "x", "--device", "cdua"), "did you mean cuda?"),
        (("trace", "zoo:moe", "-o", "x"), "what it does depends on the values of its tensors"),
        (("trace", SMALL, "extra", "-o", "x"), "takes no arguments"),
        (("simulate", "hf:gpt3", "-m", "a100-80"), "no transformer is called 'gpt3'"),
        (("simulate", "hf:gpt3"), "no transformer is called 'gpt3'"),
        (("simulate", SMALL, "-m", "a100-81"), "did you mean a100-80?"),
    ],
)
def test_what_makes_no_sense_is_answered_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    penstock: Penstock,
    arguments: tuple[str, ...],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = penstock(*arguments)
    assert ended.code == 2
    assert ended.err.startswith("penstock: ") and says in ended.err
    assert len(ended.err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
