"""Streams and events of a GPU that is not there: they write down what they are told.

Whoever uses them works on the host's memory, at once. So tests see what is asked of which stream, in
which order; that bytes move in time, they see only where there is a GPU (those marked `cuda`).
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import pytest
import torch

__all__ = ["Current", "Event", "Stream", "pretend"]


class Stream:
    def __init__(self, device: object = None) -> None:
        self.device = device
        self.waits: list[Event] = []

    def wait_event(self, event: "Event") -> None:
        assert event.stream is not None, "an event that nobody has recorded is waited for by nobody"
        self.waits.append(event)

    def synchronize(self) -> None:
        pass


class Event:
    """Comes at once; a millisecond passes between one and the next."""

    times = itertools.count()

    def __init__(self, enable_timing: bool = False) -> None:
        self.is_timed = enable_timing
        self.stream: Stream | None = None
        self.at = -1

    def record(self, stream: Stream) -> None:
        self.stream, self.at = stream, next(self.times)

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        assert self.stream is not None

    def elapsed_time(self, later: "Event") -> float:
        assert self.is_timed and later.is_timed
        return float(later.at - self.at)


Current: TypeAlias = Callable[[object], Stream]


def pretend(monkeypatch: pytest.MonkeyPatch) -> Current:
    """Have `torch.cuda` hand out these. Returns what says which stream is the current one of a device;
    None: of the device that the host thread has chosen.
    """
    streams: dict[object, Stream] = {}

    def current_stream(device: object = None) -> Stream:
        return streams.setdefault(device, Stream(device))

    @contextmanager
    def stream(_: Stream) -> Iterator[None]:
        yield

    for name, stand_in in (
        ("Stream", Stream),
        ("Event", Event),
        ("current_stream", current_stream),
        ("stream", stream),
        ("synchronize", lambda device: None),
    ):
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return current_stream
