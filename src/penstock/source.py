"""Where a step comes from: a trace file, or an architecture that is recorded on fake tensors."""

from collections.abc import Callable
from pathlib import Path

from penstock.errors import UsageError, nearest
from penstock.ir.machine import Machine
from penstock.ir.store import load_trace
from penstock.ir.trace import Trace
from penstock.machines import find
from penstock.simulate.roofline import priced

__all__ = ["names_an_architecture", "record", "sized", "step_and_machine"]

_DEVICES = ("cpu", "cuda")


def names_an_architecture(text: str) -> bool:
    """Is this `hf:gpt2?batch=4` or the like, and no file?"""
    return ":" in text and not Path(text).exists()


def step_and_machine(text: str, machine: str | None) -> tuple[Trace, Machine]:
    """The step of a trace file or an architecture, with times, and the machine that it is for.

    Raises `UsageError` if `machine` names none, and `text` does not say which it was recorded on.
    """
    if names_an_architecture(text):
        if machine is None:
            from penstock.zoo.architectures import parse

            parse(text)  # a misspelt one first: it needs no machine
            raise UsageError(
                f"{text} was never run, so its times need a machine: name one with -m, as in "
                "-m a100-80 (`penstock machines` lists them, `penstock calibrate` measures this one)"
            )
        described = find(machine)
        return priced(record(text, _device_of(described)), described), described
    recorded, own = load_trace(text)
    known = own if machine is None else find(machine)
    if known is None:
        raise UsageError(f"{text} does not say on which machine it was recorded; name one with -m")
    return priced(recorded, known), known


def record(text: str, device: str) -> Trace:
    """The step of an architecture, recorded on fake tensors of `device`: without times."""
    if device not in _DEVICES:
        raise UsageError(
            f"device {device!r} is unknown{nearest(device, _DEVICES)}; use cpu or cuda"
        )
    from penstock.record.fake import record_fake  # torch takes seconds to import
    from penstock.zoo.architectures import parse

    architecture = parse(text)
    return record_fake(architecture.make, device, str(architecture))


def sized(text: str, option: str, machine: Machine) -> Callable[[int], Trace]:
    """The step of an architecture for each value of one of its options, such as `batch`, with times.

    Raises `UsageError` if `text` is no architecture, or has no such option that is a number.
    """
    if not names_an_architecture(text):
        raise UsageError(f"{text} is one step of one size; name an architecture, as in hf:gpt2")
    from penstock.zoo.architectures import parse

    head, _, options = text.partition("?")
    others = [one for one in options.split("&") if one and one.partition("=")[0] != option]

    def named(size: int) -> str:
        return f"{head}?{'&'.join([*others, f'{option}={size}'])}"

    parse(named(1))  # raises now what it would raise later
    device = _device_of(machine)
    return lambda size: priced(record(named(size), device), machine)


def _device_of(machine: Machine) -> str:
    """What torch calls the device. Names of CPUs say that they are one."""
    return "cpu" if "CPU" in machine.device.name.replace(",", " ").split() else "cuda"
