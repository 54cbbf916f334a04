"""Memory snapshots in the structure that torch.cuda.memory writes, and a real one where there is a GPU."""

import os
import pickle

import pytest
import torch

from penstock.errors import TraceError
from penstock.interop.files import read
from penstock.ir.trace import Kind, Phase

MIB = 2**20
MODEL = [
    {"name": "linear", "filename": "/v/site-packages/torch/nn/functional.py", "line": 9},
    {"name": "forward", "filename": "/home/me/model.py", "line": 12},
    {"name": "<module>", "filename": "/home/me/train.py", "line": 40},
]
ENGINE = [
    {"name": "torch::autograd::Engine::evaluate_function(...)", "filename": "??", "line": 0},
]
ADAM = [
    {"name": "_init_group", "filename": "/v/site-packages/torch/optim/adam.py", "line": 100},
    {"name": "<module>", "filename": "/home/me/train.py", "line": 42},
]


def event(action, addr, size, frames=(), at=0):
    return {
        "action": action,
        "addr": addr,
        "size": size,
        "stream": 0,
        "time_us": at,
        "compile_context": "N/A",
        "user_metadata": "",
        "frames": list(frames),
    }


def block(address, size, state="active_allocated", requested=None):
    return {
        "address": address,
        "size": size,
        "requested_size": requested or size,
        "state": state,
        "frames": [],
    }


HISTORY = [
    event("alloc", 0x200000, 4 * MIB, MODEL, at=1_000_000),
    event("alloc", 0x600000, 2 * MIB, MODEL, at=1_000_010),
    event("segment_alloc", 0x1000000, 20 * MIB, ENGINE, at=1_000_020),
    event("alloc", 0x1000000, 8 * MIB, ENGINE, at=1_500_000),
    event("free_requested", 0x600000, 2 * MIB, ENGINE, at=1_600_000),
    event("free_completed", 0x600000, 2 * MIB, ENGINE, at=1_600_000),
    event("alloc", 0x600000, MIB, ADAM, at=2_000_000),
    event("free_completed", 0x800000, 3 * MIB, ADAM, at=2_000_001),  # made before the history
    event("free_completed", 0x1000000, 8 * MIB, ADAM, at=2_100_000),
    event("segment_free", 0x1000000, 20 * MIB, ADAM, at=2_200_000),
    event("snapshot", 0, 0, at=3_000_000),
]
SNAPSHOT = {
    "segments": [
        {
            "device": 0,
            "address": 0x100000,
            "total_size": 12 * MIB,
            "allocated_size": 6 * MIB,
            "active_size": 6 * MIB,
            "requested_size": 6 * MIB,
            "stream": 0,
            "segment_type": "large",
            "segment_pool_id": (0, 0),
            "is_expandable": False,
            "frames": [],
            "blocks": [
                block(0x100000, MIB, requested=MIB - 100),  # a weight, from before the history
                block(0x200000, 4 * MIB),
                block(0x600000, MIB),
                block(0x700000, 6 * MIB, state="inactive"),
            ],
        }
    ],
    "device_traces": [HISTORY, []],
    "allocator_settings": {"expandable_segments": False},
    "external_annotations": [],
}


@pytest.fixture
def saved(tmp_path):
    def save(body, protocol=None):
        path = tmp_path / "snapshot.pickle"
        path.write_bytes(pickle.dumps(body, protocol))
        return path

    return save


def test_runs_of_allocations_from_one_place_are_ops(saved):
    trace = read(saved(SNAPSHOT)).trace
    assert [(op.name, op.module, op.phase) for op in trace.ops] == [
        ("forward", "model.py:12", Phase.FORWARD),
        ("torch::autograd::Engine::evaluate_function(...)", "??:0", Phase.BACKWARD),
        ("<module>", "train.py:42", Phase.OPTIMIZER),
    ]
    assert [len(op.writes) for op in trace.ops] == [2, 1, 1]
    assert [op.seconds for op in trace.ops] == [0.5, 0.5, 1.0]


def test_lifetimes_are_those_of_the_allocator(saved):
    trace = read(saved(SNAPSHOT)).trace
    found = {(v.nbytes, v.producer, v.freed, v.kind) for v in trace.values}
    assert found == {
        (4 * MIB, 0, None, Kind.ACTIVATION),
        (2 * MIB, 0, 1, Kind.ACTIVATION),
        (8 * MIB, 1, 2, Kind.TEMPORARY),
        (1 * MIB, 2, None, Kind.OPTIMIZER_STATE),  # at the address of what was freed
        (3 * MIB, None, 2, Kind.INPUT),
        (MIB - 100, None, None, Kind.INPUT),
    }
    # While backward allocates: 4 + 2 + 8, and 3 + 1 from before.
    assert trace.peak == 18 * MIB - 100


def test_what_segments_hold_beyond_is_slack(saved):
    trace = read(saved(SNAPSHOT)).trace
    # 12 MiB at the end, and 20 more before the last segment was given back.
    assert trace.peak + trace.slack == 32 * MIB


def test_it_is_said_what_a_snapshot_does_not_tell(saved):
    notes = "\n".join(read(saved(SNAPSHOT)).notes)
    assert "what is read" in notes and "1 frees of what was allocated before" in notes
    bare = {**SNAPSHOT, "device_traces": [[event("alloc", 1, 512)]]}
    assert any("no stacks" in note for note in read(saved(bare)).notes)


def test_a_snapshot_without_a_history_says_how_to_get_one(saved):
    with pytest.raises(TraceError, match="_record_memory_history"):
        read(saved({**SNAPSHOT, "device_traces": [[]]}))


class MakesDirectory:
    """What a pickle can do to whoever loads it."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_names_code_is_not_run(saved, tmp_path, protocol):
    made = tmp_path / "made"
    path = saved({**SNAPSHOT, "extra": MakesDirectory(made)}, protocol)
    with pytest.raises(TraceError, match=r"it names \w+\.mkdir; .* it was not run"):
        read(path)
    assert not made.exists()


def test_damaged_pickles_are_refused(saved, tmp_path):
    whole = saved(SNAPSHOT).read_bytes()
    for content, reason in [
        (whole[: len(whole) // 2], "damaged"),
        (pickle.dumps([1, 2]), "no memory snapshot"),
        (pickle.dumps({"segments": [], "device_traces": [[{"action": "alloc"}]]}), "no field"),
    ]:
        path = tmp_path / "file"
        path.write_bytes(content)
        with pytest.raises(TraceError, match=reason):
            read(path)


@pytest.mark.cuda
def test_a_real_snapshot_holds_what_was_allocated(tmp_path):
    path = tmp_path / "real.pickle"
    torch.cuda.memory._record_memory_history()
    try:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        weight = torch.randn(1024, 1024, device="cuda", requires_grad=True)
        loss = (weight @ weight).relu().sum()
        loss.backward()
        torch.cuda.synchronize()
        grown = torch.cuda.max_memory_allocated() - before
        torch.cuda.memory._dump_snapshot(str(path))
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)
    trace = read(path).trace
    made = [v for v in trace.values if v.producer is not None]
    assert sum(v.nbytes == 4 * MIB for v in made) >= 4
    older = sum(v.nbytes for v in trace.values if v.producer is None)
    # The allocator rounds each block up to 512 bytes.
    assert abs(trace.peak - older - grown) <= 512 * len(trace.values)
    assert trace.peak + trace.slack >= torch.cuda.max_memory_allocated()
