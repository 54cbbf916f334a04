"""Copies between the device and a tier, and the lanes that carry them: threads, or CUDA streams.

One lane for each direction of each tier; a lane carries its copies in the order in which they were
put on it. The interpreter lock is released while bytes move.

**Guarantees.** A copy out owns the bytes that it copies until it ends, and then frees them; a copy
that failed or was called back still owns them, so nothing is lost. One that began ahead reads what
its value still owns, and keeps that alive; it frees the bytes once they are its own. A copy in owns
the bytes that it fetched until someone takes them. `close` ends the threads; no copy outlives it.

**Rejected.** `record_stream` on CUDA: it delays the reuse of a block until the allocator looks, so
the peak is not bounded. Events belong to the copy, and whoever frees or reads its bytes waits.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Protocol

import torch
from torch import UntypedStorage

from penstock.dispatch.resident import Part, bytes_of, whole
from penstock.dispatch.storage import alias_of, nbytes_of
from penstock.engine.extents import Extent
from penstock.engine.tiers import Cancelled, TierStore

__all__ = ["Copy", "DirectLane", "Lane", "StreamLane", "ThreadLane"]


class Copy:
    """One copy on a lane: what it moves, how far it is."""

    __slots__ = (
        "_abandoned",
        "_cancelled",
        "_done",
        "_handing_over",
        "_lender",
        "_make_way",
        "after",
        "begun",
        "device",
        "ended",
        "error",
        "extent",
        "finished",
        "holder",
        "inward",
        "is_in_place",
        "is_queued",
        "nbytes",
        "parts",
        "ready",
        "source",
        "started",
        "was_called_back",
    )

    def __init__(
        self,
        nbytes: int,
        extent: Extent,
        holder: UntypedStorage | None,
        *,
        inward: bool,
        parts: Sequence[Part] | None = None,
        after: Sequence["Copy"] = (),
        lender: UntypedStorage | None = None,
        make_way: Callable[[int], None] = lambda nbytes: None,
    ) -> None:
        self.nbytes, self.extent, self.holder, self.inward = nbytes, extent, holder, inward
        self.parts = whole(nbytes) if parts is None else parts  # of the storage: what is moved
        self.after = tuple(after)  # copies that must have ended before this one starts
        self._make_way = make_way  # for so many bytes; called by whoever carries it
        # By time.perf_counter; 0: not yet. On a stream: of the request; see `begun` and `finished`.
        self.started = self.ended = 0.0
        self.error: BaseException | None = None
        self.was_called_back = False
        self.is_queued = False
        self.source = holder if lender is None else alias_of(lender)  # what a copy out reads
        self._lender = lender  # owns that, until `take_over`
        self._handing_over = threading.Lock()
        self.is_in_place = inward and holder is not None  # into the value's own storage
        self.ready: torch.cuda.Event | None = None  # the device has made what is copied
        self.device: torch.device | None = None  # whose streams wait for it
        self.begun: torch.cuda.Event | None = None  # the device's side of the copy has begun
        self.finished: torch.cuda.Event | None = None  # it has ended
        self._cancelled = self._abandoned = False
        self._done = threading.Event()

    @property
    def moved(self) -> int:
        """Bytes."""
        return bytes_of(self.parts)

    def call_back(self) -> None:
        """Ask a copy out to stop. It may still end; `wait` for it, then see `was_called_back`."""
        self._cancelled = True

    def abandon(self) -> None:
        """Nobody will want the bytes: stop if it can, and free them when it has ended."""
        self._cancelled = self._abandoned = True  # no lock: storages die anywhere

    def is_cancelled(self) -> bool:
        return self._cancelled

    def has_begun(self) -> bool:
        """Has a copy in taken its memory, or will it never?"""
        return self.started > 0 or self._done.is_set()

    def is_done(self) -> bool:
        if self._done.is_set():
            return self.finished is None or self.finished.query()
        return False

    def wait(self) -> None:
        """Until it has ended. Does not raise its error: look at `error`.

        On CUDA the host does not wait for the device; its current stream does.
        """
        self._done.wait()
        if self.finished is not None:
            torch.cuda.current_stream(self.device).wait_event(self.finished)

    @contextmanager
    def failing(self) -> Iterator[None]:
        """What fails inside ends the copy: the error belongs to whoever waits for it."""
        try:
            yield
        except BaseException as error:
            self.error = error
            self.end()
            if not isinstance(error, Exception):
                raise  # a person interrupts: now, not when it is waited for

    def has_gone(self) -> bool:
        """It has ended: is what it copied out in its tier? Else it still owns its value's only bytes."""
        return not (self.inward or self.was_called_back or self.error is not None)

    def drain(self) -> None:
        """Wait for it, and free what it has carried out. Does not raise its error."""
        self.wait()
        if self.has_gone():
            self.free()

    def make_room(self) -> None:
        """Drain the copies that this one comes after."""
        for other in self.after:
            other.drain()

    def take_memory(self, device: torch.device) -> None:
        """Have memory to copy into, of the device's current stream."""
        if self.holder is not None and nbytes_of(self.holder) == self.nbytes:
            return
        self._make_way(self.moved)
        if self.holder is None:
            self.holder = UntypedStorage(self.nbytes, device=device)
        else:
            self.holder.resize_(self.nbytes)

    def take_over(self, holder: UntypedStorage) -> None:
        """Own the bytes of a copy out from now on. One that began ahead may have ended: they go."""
        with self._handing_over:
            self.holder = holder
            if not self._done.is_set():
                self.source = holder if self.source is None else self.source
            elif self.is_done() and self.has_gone():
                self.free()

    def end(self) -> None:
        """It has ended. Bytes that have gone are freed; on a stream, by whoever waits for it."""
        with self._handing_over:
            if (self.has_gone() or self._abandoned) and self.finished is None:
                self.free()
            self.after = ()
            self.ended = time.perf_counter()
            self._done.set()
        self.source = self._lender = None  # who lent the bytes may die with this

    def free(self) -> None:
        """Give the device its bytes back."""
        if self.holder is not None:
            self.holder.resize_(0)
            self.holder = None


class Lane(Protocol):
    name: str

    def put(self, copy: Copy) -> None: ...

    def close(self) -> None: ...


class ThreadLane:
    """A thread that carries copies between the device's memory and a tier."""

    def __init__(self, name: str, store: TierStore, device: torch.device) -> None:
        self.name = name
        self._store, self._device = store, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._queue: SimpleQueue[Copy | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"penstock {name}", daemon=True)
        self._thread.start()

    def put(self, copy: Copy) -> None:
        if self._device.type == "cuda":
            if copy.inward:
                # Memory of the consumer's stream: made here, where that stream is the current one.
                with copy.failing():
                    copy.make_room()
                    copy.take_memory(self._device)
                if copy.error is not None:
                    return
            copy.ready = torch.cuda.Event()
            copy.ready.record(torch.cuda.current_stream(self._device))
        copy.is_queued = True
        self._queue.put(copy)

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (copy := self._queue.get()) is not None:
            for other in copy.after:
                other._done.wait()
            copy.started = time.perf_counter()
            try:
                self._carry(copy)
            except Cancelled:
                copy.was_called_back = True
            except BaseException as error:  # it belongs to whoever waits for the copy
                copy.error = error
            copy.end()

    def _carry(self, copy: Copy) -> None:
        with torch.cuda.stream(self._stream):
            if self._stream is not None and copy.ready is not None:
                self._stream.wait_event(copy.ready)
            if copy.inward:
                copy.take_memory(self._device)
                assert copy.holder is not None
                self._store.read(copy.extent, copy.holder, copy.parts)
                if copy.is_in_place and self._stream is None:
                    copy.holder = None  # it is the value's own storage: do not keep that alive
            else:
                assert copy.source is not None
                self._store.write(copy.source, copy.extent, copy.parts, copy.is_cancelled)
            if self._stream is not None:
                self._stream.synchronize()


class DirectLane:
    """Carries copies in at once, in the thread that puts them on it. For a forked child."""

    def __init__(self, name: str, store: TierStore) -> None:
        self.name = name
        self._store = store

    def put(self, copy: Copy) -> None:
        assert copy.inward
        copy.is_queued = True
        copy.take_memory(torch.device("cpu"))
        assert copy.holder is not None
        try:
            self._store.read(copy.extent, copy.holder, copy.parts)
        except Exception as error:
            copy.error = error
        copy.end()

    def close(self) -> None:
        pass


class StreamLane:
    """A CUDA stream that carries copies between the device and pinned host memory."""

    def __init__(self, name: str, store: TierStore, device: torch.device) -> None:
        self.name = name
        self._store, self._device = store, device
        self._stream = torch.cuda.Stream(device)

    def put(self, copy: Copy) -> None:
        copy.started = time.perf_counter()
        copy.is_queued = True
        copy.device = self._device
        with copy.failing():
            if copy.inward:
                copy.make_room()
                copy.take_memory(self._device)
            copy.ready = torch.cuda.Event()
            copy.ready.record(torch.cuda.current_stream(self._device))
            self._stream.wait_event(copy.ready)
            self._carry(copy)
            copy.end()

    def _carry(self, copy: Copy) -> None:
        begun, finished = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record(self._stream)
        try:
            with torch.cuda.stream(self._stream):
                if copy.inward:
                    assert copy.holder is not None
                    self._store.read(copy.extent, copy.holder, copy.parts)
                else:
                    assert copy.source is not None
                    self._store.write(copy.source, copy.extent, copy.parts, copy.is_cancelled)
        finally:  # some of it may be under way
            finished.record(self._stream)
            copy.begun, copy.finished = begun, finished

    def close(self) -> None:
        self._stream.synchronize()
