"""The disk tier: every byte comes back, or an error says why not."""

import errno
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import UntypedStorage

from penstock.dispatch.resident import whole
from penstock.dispatch.storage import byte_view
from penstock.engine.tiers import Cancelled
from penstock.engine.tiers.disk import DiskStore
from penstock.errors import TierError, UsageError
from runs import DEVICES, MIB

BLOCK = 4096
SIZES = [1, 511, BLOCK - 1, BLOCK, BLOCK + 1, MIB - 1, MIB, MIB + 1, 8 * MIB, 17 * MIB + 3]
"""Below, at and above a block, a bounce buffer (1 MiB) and a system call's share (8 MiB)."""


@pytest.fixture(params=["direct", "cached"])
def store(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[DiskStore]:
    """Past the page cache, and as where the file system cannot do that."""
    if request.param == "cached":
        monkeypatch.setattr(os, "O_DIRECT", 0)
    made = DiskStore(str(tmp_path), 64 * MIB)
    if request.param == "direct" and not made.is_direct:
        made.close()
        pytest.skip("this file system takes no direct writes")
    yield made
    made.close()


def noise(nbytes: int, device: str = "cpu") -> UntypedStorage:
    made = UntypedStorage(nbytes, device=device)
    byte_view(made).random_(0, 256)
    return made


def at(offset: int, nbytes: int) -> tuple[UntypedStorage, mmap.mmap]:
    """A storage that begins `offset` bytes after a page boundary, and what it lies in."""
    memory = mmap.mmap(-1, offset + nbytes)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    device = torch.device("cpu")
    made = torch._C._construct_storage_from_data_pointer(whole.data_ptr() + offset, device, nbytes)
    return made, memory


def same(one: UntypedStorage, other: UntypedStorage) -> bool:
    return torch.equal(byte_view(one).cpu(), byte_view(other).cpu())


def write(store: DiskStore, source: UntypedStorage):
    extent = store.reserve(source.nbytes())
    store.write(source, extent, whole(source.nbytes()))
    return extent


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("nbytes", SIZES)
def test_every_size_comes_back(store: DiskStore, nbytes: int, device: str) -> None:
    source = noise(nbytes, device)
    extent = write(store, source)
    target = noise(nbytes, device)
    store.read(extent, target, whole(target.nbytes()))
    assert same(source, target)


@pytest.mark.parametrize("offset", [0, 1, 64, 100, BLOCK - 1])
@pytest.mark.parametrize("nbytes", [BLOCK - 7, 3 * BLOCK, 9 * MIB + 5])
def test_memory_of_any_alignment_comes_back(store: DiskStore, offset: int, nbytes: int) -> None:
    source, _lies_in = at(offset, nbytes)
    byte_view(source).random_(0, 256)
    extent = write(store, source)
    target, _lies_in_too = at((offset + 9) % BLOCK, nbytes)
    store.read(extent, target, whole(target.nbytes()))
    assert same(source, target)


def test_neighbours_do_not_touch_each_other(store: DiskStore) -> None:
    sources = [noise(nbytes) for nbytes in (5, BLOCK + 1, 2 * BLOCK, 77, MIB + 13)]
    extents = [write(store, source) for source in sources]
    for source, extent in [*zip(sources, extents, strict=True)][::2]:
        store.write(source, extent, whole(source.nbytes()))  # again, beside what is there
    for source, extent in zip(sources, extents, strict=True):
        target = UntypedStorage(source.nbytes())
        store.read(extent, target, whole(target.nbytes()))
        assert same(source, target)


def test_freed_space_is_used_again(store: DiskStore) -> None:
    for _ in range(20):
        extent = write(store, noise(10 * MIB))
        assert store.used() == 10 * MIB
        store.release(extent)
    assert store.used() == 0
    assert os.fstat(store._file).st_size <= store.capacity


def test_a_full_tier_says_what_to_do_and_goes_on(tmp_path: Path) -> None:
    store = DiskStore(str(tmp_path), MIB)
    kept = noise(MIB - BLOCK)
    extent = write(store, kept)
    with pytest.raises(TierError, match=r"full.*--disk-budget"):
        store.reserve(2 * BLOCK)
    last = store.reserve(BLOCK)
    target = UntypedStorage(kept.nbytes())
    store.read(extent, target, whole(target.nbytes()))
    assert same(kept, target)
    store.release(last)
    store.release(extent)
    assert store.reserve(MIB).nbytes == MIB
    store.close()


def test_a_full_file_system_is_met_when_space_is_reserved(store: DiskStore, monkeypatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(TierError, match=r"cannot reserve.*free some space"):
        store.reserve(MIB)
    assert store.used() == 0
    monkeypatch.undo()
    assert store.reserve(MIB).nbytes == MIB


def in_pieces(call: Callable[..., int], most: int) -> Callable[..., int]:
    """A system call that moves at most `most` bytes at once, as the kernel may choose to."""

    def short(file: int, buffers: list[memoryview], offset: int) -> int:
        return call(file, [buffers[0][:most]], offset)

    return short


def test_short_transfers_are_taken_up_where_they_ended(store: DiskStore, monkeypatch) -> None:
    source = noise(2 * MIB + 7)
    monkeypatch.setattr(os, "pwritev", in_pieces(os.pwritev, 5 * BLOCK))
    monkeypatch.setattr(os, "preadv", in_pieces(os.preadv, 3 * BLOCK))
    extent = write(store, source)
    target = UntypedStorage(source.nbytes())
    store.read(extent, target, whole(target.nbytes()))
    assert same(source, target)


def test_a_transfer_that_ends_early_is_an_error(store: DiskStore, monkeypatch) -> None:
    extent = write(store, noise(2 * MIB))
    monkeypatch.setattr(os, "preadv", lambda *_: 0)
    with pytest.raises(TierError, match="ended after 0 of"):
        store.read(extent, UntypedStorage(2 * MIB), whole(2 * MIB))


@pytest.mark.parametrize("left", [0, MIB, MIB + 100])
def test_a_cut_file_is_an_error(store: DiskStore, left: int) -> None:
    extent = write(store, noise(4 * MIB))
    os.ftruncate(store._file, extent.offset + left)
    with pytest.raises(TierError, match="damaged or the disk was removed"):
        store.read(extent, UntypedStorage(4 * MIB), whole(4 * MIB))


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_an_error_of_the_kernel_is_told_with_advice(
    store: DiskStore, code: int, monkeypatch
) -> None:
    def fails(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    extent = store.reserve(MIB)
    monkeypatch.setattr(os, "pwritev", fails)
    with pytest.raises(TierError, match=os.strerror(code)) as caught:
        store.write(noise(MIB), extent, whole(MIB))
    assert store.directory in str(caught.value)


def test_a_write_is_cancelled_between_two_system_calls(store: DiskStore) -> None:
    asked = []

    def second_time() -> bool:
        asked.append(True)
        return len(asked) > 1

    source = noise(32 * MIB)
    with pytest.raises(Cancelled):
        store.write(source, store.reserve(32 * MIB), whole(source.nbytes()), second_time)
    assert len(asked) == 2


def test_no_directory_ever_lists_the_file(store: DiskStore, tmp_path: Path) -> None:
    write(store, noise(MIB))
    assert not list(tmp_path.iterdir())


def test_without_nameless_files_the_file_is_unlinked_at_once(tmp_path: Path, monkeypatch) -> None:
    real = os.open

    def old(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", old)
    store = DiskStore(str(tmp_path), MIB)
    assert not list(tmp_path.iterdir())
    source, target = noise(9999), UntypedStorage(9999)
    store.read(write(store, source), target, whole(target.nbytes()))
    assert same(source, target)
    store.close()


def test_a_path_that_is_no_directory_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is not a directory"):
        DiskStore(str(tmp_path / "file"))


@pytest.mark.parametrize("capacity", [4096, 5 * MIB + 1, 64 * MIB])
def test_a_probe_leaves_nothing_in_use(tmp_path: Path, capacity: int) -> None:
    store = DiskStore(str(tmp_path), capacity)
    facts = store.probe()
    assert facts.name == "disk"
    assert facts.capacity == capacity
    assert facts.write.bandwidth > 0
    assert facts.read.bandwidth > 0
    assert store.used() == store.footprint() == 0
    store.close()
    store.close()  # again is no harm


@pytest.mark.parametrize("offset", [0, 64])
def test_of_some_parts_only_these_are_moved(store: DiskStore, offset: int) -> None:
    nbytes, parts = 12 * MIB + 5, [(BLOCK, 9 * MIB), (10 * MIB, 12 * MIB + 5)]
    (source, _kept), (target, _too) = at(offset, nbytes), at(offset, nbytes)
    byte_view(source).random_(1, 256)
    extent = store.reserve(nbytes)
    store.write(source, extent, parts)
    store.read(extent, target, parts)
    for begin, end in parts:
        assert torch.equal(byte_view(target)[begin:end], byte_view(source)[begin:end])
    for begin, end in ((0, BLOCK), (9 * MIB, 10 * MIB)):
        assert not byte_view(target)[begin:end].any()
