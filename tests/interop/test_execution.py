"""Execution traces that torch wrote here, against what a dispatch mode sees of the same step."""

import json
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.profiler import ExecutionTraceObserver, ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from penstock.dispatch.schema import facts_of
from penstock.errors import TraceError
from penstock.interop.execution import read_execution
from penstock.interop.files import read
from penstock.ir.trace import Kind, Phase

OPTIMIZERS = {
    "adam": torch.optim.Adam,
    "adam for all at once": lambda parameters: torch.optim.Adam(parameters, foreach=True),
    "sgd": lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9),
}


class Seen(TorchDispatchMode):
    """Names of all ops that are no views."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not facts_of(func).is_view:
            self.names.append(facts_of(func).name)
        return func(*args, **(kwargs or {}))


@dataclass
class Recorded:
    model: nn.Module
    path: object
    times: object
    seen: list


@pytest.fixture(scope="module", params=OPTIMIZERS)
def recorded(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("traces")
    path, times = folder / "et.json", folder / "kineto.json"
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 128),
        nn.BatchNorm1d(128),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(128, 8),
    )
    optimizer = OPTIMIZERS[request.param](model.parameters())

    def step():
        loss = model(torch.randn(32, 64)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    with Seen() as seen:
        step()
    observer = ExecutionTraceObserver().register_callback(str(path))
    with profile(
        activities=[ProfilerActivity.CPU], execution_trace_observer=observer, acc_events=True
    ) as profiled:
        step()
    profiled.export_chrome_trace(str(times))
    return Recorded(model, path, times, seen.names)


def nbytes(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def held(trace, kind):
    """Bytes of all storages of a kind."""
    size = {value.storage: value.nbytes for value in trace.values if value.kind is kind}
    return sum(size.values())


def test_the_ops_are_those_that_a_dispatch_mode_sees(recorded):
    trace = read(recorded.path).trace
    # A mode also sees batch norm make an empty tensor of no bytes, and does not see what
    # `torch.tensor(1.0)` in an optimizer makes.
    names = [op.name for op in trace.ops if op.name != "aten.empty"]
    assert names == [name for name in recorded.seen if name != "aten.empty"]
    phases = [op.phase for op in trace.ops]
    assert phases == sorted(phases, key=list(Phase).index)
    assert set(phases) == set(Phase)


def test_model_state_is_told_apart_by_its_use(recorded):
    trace = read(recorded.path).trace
    parameters = list(recorded.model.parameters())
    assert held(trace, Kind.PARAMETER) == nbytes(parameters)
    assert held(trace, Kind.GRADIENT) == nbytes(parameters)
    assert held(trace, Kind.BUFFER) == nbytes(recorded.model.buffers())
    assert held(trace, Kind.OPTIMIZER_STATE) >= nbytes(parameters)
    saved = [value.nbytes for value in trace.values if value.saved]
    assert 32 * 64 * 4 in saved  # the input of the first layer, made by randn
    assert sum(op.random for op in trace.ops) == 2  # randn and dropout


def test_writes_in_place_make_versions(recorded):
    trace = read(recorded.path).trace
    (relu,) = [op for op in trace.ops if op.name == "aten.relu_"]
    (before,), (after,) = relu.reads, relu.writes
    assert trace.next_version[before] == after and trace.is_overwritten(before)
    state = [v for v in trace.values if v.kind is Kind.PARAMETER and v.producer is None]
    assert all(trace.is_overwritten(value.id) for value in state)
    assert all(
        not op.repeatable
        for op in trace.ops
        if op.phase is Phase.OPTIMIZER
        and op.writes
        and any(trace.values[v].kind.is_state for v in op.writes)
    )


def test_times_come_from_the_profiler(recorded):
    without, given = read(recorded.path), read(recorded.path, recorded.times)
    assert without.trace.seconds == 0 and any("no times" in note for note in without.notes)
    assert not any("times" in note for note in given.notes)
    events = json.loads(recorded.times.read_text())["traceEvents"]
    dur = [e["dur"] for e in events if e.get("cat") == "cpu_op" and e["name"] == "aten::addmm"]
    addmm = [op.seconds for op in given.trace.ops if op.name == "aten.addmm"]
    assert addmm == pytest.approx([one / 1e6 for one in dur])
    assert all(op.host_seconds >= 0 for op in given.trace.ops)


# -- what this torch does not write ----------------------------------------------------------------


def node(number, name, parent=1, schema="", inputs=(), outputs=(), scope=0, rf_id=-1):
    """A node of schema 1.0, whose attributes are fields."""
    return {
        "id": number,
        "parent": parent,
        "name": name,
        "op_schema": schema,
        "scope": scope,
        "rf_id": rf_id,
        "inputs": list(inputs),
        "input_shapes": [[]] * len(inputs),
        "outputs": list(outputs),
        "output_shapes": [[]] * len(outputs),
    }


def tensor(storage, elements, device="cuda:0"):
    return [100 + storage, storage, 0, elements, 4, device]


RELU = "aten::relu(Tensor self) -> Tensor"
MINE = "mine::add_into(Tensor(a!) self, Tensor other) -> ()"
STEP = {
    "schema": "1.0.1",
    "nodes": [
        node(1, "[pytorch|profiler|execution_graph|process]"),
        node(
            2, "aten::relu", schema=RELU, inputs=[tensor(7, 256)], outputs=[tensor(8, 256)], rf_id=1
        ),
        node(
            3, "aten::relu", schema=RELU, inputs=[tensor(8, 256)], outputs=[tensor(9, 64)], rf_id=2
        ),
        node(
            4, "aten::relu", schema=RELU, inputs=[tensor(9, 64)], outputs=[tensor(8, 64)], rf_id=3
        ),
        node(5, "mine::add_into", schema=MINE, inputs=[tensor(8, 64), tensor(9, 64)], rf_id=4),
    ],
}


def test_a_storage_id_that_is_used_again_is_another_storage():
    trace = read_execution(STEP).trace
    eight = [value for value in trace.values if value.nbytes in (1024, 256)]
    made = {(value.producer, value.nbytes): value.storage for value in eight}
    assert made[0, 1024] != made[2, 256]
    assert trace.values[trace.ops[0].writes[0]].freed == 1


def test_an_op_that_torch_does_not_know_writes_what_its_schema_says():
    trace = read_execution(STEP).trace
    assert (trace.ops[3].name, trace.device) == ("mine.add_into", "cuda")
    assert trace.is_overwritten(trace.ops[2].writes[0])
    assert not trace.ops[3].repeatable


def test_seconds_on_a_device_are_those_of_the_kernels():
    calls = [
        {
            "cat": "cpu_op",
            "ts": 10 * n,
            "dur": 9,
            "args": {"External id": 50 + n, "Record function id": n},
        }
        for n in (1, 2, 3, 4)
    ]
    kernels = [
        {"cat": "kernel", "ts": 100, "dur": 250, "args": {"External id": 51}},
        {"cat": "kernel", "ts": 400, "dur": 500, "args": {"External id": 52}},
    ]
    found = read_execution(STEP, {"traceEvents": [*calls, *kernels]})
    assert [op.seconds for op in found.trace.ops] == pytest.approx([250e-6, 500e-6, 0, 0])
    assert any("kernels" in note for note in found.notes)


def test_times_that_chakra_has_linked_in_are_used():
    calls = [{**one, "ts": 10 * one["id"], "inclusive_dur": 9} for one in STEP["nodes"]]
    # The linker copies the call for each piece of work of the device, and hangs it below.
    launched = [
        {
            **calls[1],
            "id": 6,
            "parent": 2,
            "name": "relu_kernel",
            "cat": "kernel",
            "inclusive_dur": 250,
        },
        {
            **calls[2],
            "id": 7,
            "parent": 3,
            "name": "relu_kernel",
            "cat": "kernel",
            "inclusive_dur": 500,
        },
    ]
    plain = read_execution({**STEP, "nodes": calls})
    assert [op.seconds for op in plain.trace.ops] == pytest.approx([9e-6] * 4)
    assert [op.host_seconds for op in plain.trace.ops] == pytest.approx([0, 1e-6, 1e-6, 1e-6])
    found = read_execution({**STEP, "nodes": [*calls, *launched]})
    assert [op.seconds for op in found.trace.ops] == pytest.approx([250e-6, 500e-6, 0, 0])
    assert [op.name for op in found.trace.ops] == [op.name for op in plain.trace.ops]
    assert not any("no times" in note for note in found.notes)


def test_files_that_are_something_else_are_refused(tmp_path):
    path = tmp_path / "file"
    for content, reason in [
        (b"\x00\x01", "neither JSON nor a pickle, or damaged"),
        (b"[]", "holds a JSON list"),
        (b'{"traceEvents": []}', "holds times but no tensors"),
        (b'{"penstock": "trace"}', "a Penstock trace already"),
        (b'{"a": 1}', "neither a CUDA memory snapshot"),
        (b'{"schema": "2.0", "nodes": []}', "schema '2.0'"),
        (b'{"schema": "1.1", "nodes": []}', "without a single op"),
        (b'{"schema": "1.1", "nodes": [{"id": 3}]}', "no field 'inputs'"),
    ]:
        path.write_bytes(content)
        with pytest.raises(TraceError) as caught:
            read(path)
        assert reason in str(caught.value) and str(caught.value).startswith(str(path))
    with pytest.raises(TraceError, match="cannot read"):
        read(tmp_path / "none")


def test_times_that_are_no_chrome_trace_are_refused(tmp_path):
    path, times = tmp_path / "et.json", tmp_path / "times.json"
    path.write_text(json.dumps(STEP))
    times.write_text("{}")
    with pytest.raises(TraceError, match=r"times\.json: no Chrome trace"):
        read(path, times)
