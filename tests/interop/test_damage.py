"""Whatever is wrong in a file of another tool, the answer is a trace or one clear error."""

import copy
import json
import pickle
import random

import pytest

from penstock.errors import TraceError
from penstock.interop.files import read
from penstock.ir.trace import Trace

RELU = "aten::relu(Tensor self) -> Tensor"
ADD = "aten::add_.Tensor(Tensor(a!) self, Tensor other, *, Scalar alpha=1) -> Tensor(a!)"


def node(number, schema, inputs, outputs):
    """A node of schema 1.1."""
    return {
        "id": number,
        "ctrl_deps": 1,
        "name": schema.partition("(")[0],
        "inputs": {"values": inputs, "shapes": [[4]] * len(inputs), "strides": [[1]] * len(inputs)},
        "outputs": {"values": outputs, "shapes": [[4]], "strides": [[1]]},
        "attrs": [
            {"name": "rf_id", "type": "uint64", "value": number},
            {"name": "scope", "type": "uint64", "value": 0},
            {"name": "op_schema", "type": "string", "value": schema},
        ],
    }


X, Y = [5, 6, 0, 4, 4, "cpu"], [7, 8, 0, 4, 4, "cpu"]
EXECUTION = {
    "schema": "1.1.1-chakra.0.0.4",
    "nodes": [node(2, RELU, [X], [Y]), node(3, ADD, [Y, X, 1], [Y])],
}
FRAME = {"name": "forward", "filename": "/home/me/model.py", "line": 12}
SNAPSHOT = {
    "segments": [
        {
            "device": 0,
            "address": 4096,
            "total_size": 8192,
            "blocks": [
                {"address": 4096, "size": 512, "requested_size": 8, "state": "active_allocated"}
            ],
        }
    ],
    "device_traces": [
        [
            {"action": "alloc", "addr": 8192, "size": 16, "time_us": 3, "frames": [FRAME]},
            {"action": "free_completed", "addr": 8192, "size": 16, "time_us": 9, "frames": [FRAME]},
        ]
    ],
}
NONSENSE = (None, "x", -5, 1e30, [], {}, [[]], True, 0)


def damaged(body, rng):
    """The same with one leaf or branch replaced or left out."""
    if isinstance(body, dict | list) and body and rng.random() < 0.93:
        key = rng.choice(list(body) if isinstance(body, dict) else range(len(body)))
        if rng.random() < 0.12:
            del body[key]
        else:
            body[key] = damaged(body[key], rng)
        return body
    return rng.choice(NONSENSE)


@pytest.mark.parametrize(
    ("body", "write"),
    [(EXECUTION, lambda body: json.dumps(body).encode()), (SNAPSHOT, pickle.dumps)],
    ids=["execution trace", "snapshot"],
)
def test_damage_gives_a_trace_or_one_clear_error(body, write, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(write(body))
    assert isinstance(read(path).trace, Trace)
    rng, said = random.Random(0), []
    for _ in range(300):
        path.write_bytes(write(damaged(copy.deepcopy(body), rng)))
        try:
            assert isinstance(read(path).trace, Trace)
        except TraceError as error:
            said.append(str(error))
    assert 50 < len(said) < 300
    assert all(line.startswith(str(path)) for line in said)


def test_json_that_is_nested_without_end_is_refused(tmp_path):
    path = tmp_path / "file"
    path.write_text("[" * 200_000)
    with pytest.raises(TraceError, match="damaged"):
        read(path)
