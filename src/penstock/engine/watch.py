"""When things happen on a device: at once on a CPU; on a GPU when its stream has come so far."""

import time
from collections.abc import Callable
from typing import TypeAlias

import torch

__all__ = ["Moment", "Watch"]

Moment: TypeAlias = "float | torch.cuda.Event"
"""By `time.perf_counter`, or an event on the device's stream, whose time is known later."""


class Watch:
    """Tells moments on a device's current stream, and later the seconds by the host's clock.

    To set it, on a GPU the host waits for the device: from there on the two clocks go together.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._origin: torch.cuda.Event | None = None
        self.now: Callable[[], Moment] = time.perf_counter
        if device.type == "cuda":
            self.now = self._event
            torch.cuda.synchronize(device)
            self._origin = self._event()
        self.began = time.perf_counter()

    def settle(self) -> None:
        """Wait until all moments so far have come."""
        if self._origin is not None:
            torch.cuda.synchronize(self._device)

    def seconds(self, moment: Moment) -> float:
        """When a moment was, by `time.perf_counter`. On a GPU it must have come."""
        if isinstance(moment, float):
            return moment
        assert self._origin is not None
        return self.began + float(self._origin.elapsed_time(moment)) / 1e3

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event
