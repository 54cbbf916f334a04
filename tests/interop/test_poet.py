"""POET's graphs as traces."""

import json

import pytest

from penstock.errors import TraceError
from penstock.interop.files import read
from penstock.interop.poet import Energies, energies, read_poet
from penstock.ir.trace import Phase


def node(number, nbytes, ms, *, backward=False):
    return {
        "id": number,
        "name": f"layer{number}",
        "backward": backward,
        "ms": ms,
        "bytes": nbytes,
        "compute_J": ms * 2,
        "pagein_J": 0.5,
        "pageout_J": 0.25,
    }


GRAPH = {
    "model": "linear",
    "platform": "m0",
    "nodes": [
        node(0, 100, 0.0),
        node(1, 40, 2.0),
        node(2, 10, 1.0),
        node(3, 40, 3.0, backward=True),
        node(4, 100, 4.0, backward=True),
    ],
    "edges": [[0, 1], [1, 2], [1, 2], [2, 3], [1, 3], [3, 4], [0, 4]],
    "parameter_bytes": 500.0,
}


def test_nodes_are_ops_and_each_makes_one_value():
    trace = read_poet(GRAPH).trace
    assert [op.phase for op in trace.ops] == [Phase.FORWARD] * 3 + [Phase.BACKWARD] * 2
    assert trace.ops[3].reads == (1, 2)
    assert trace.seconds == pytest.approx(10e-3)
    assert [value.saved for value in trace.values] == [True, True, True, False, False, False]
    assert trace.live.tolist() == [600, 640, 650, 690, 740]


def test_energies_are_read_beside():
    assert energies(GRAPH)[1] == Energies(4.0, 0.5, 0.25)


def test_it_is_known_by_its_content(tmp_path):
    path = tmp_path / "linear_m0.json"
    path.write_text(json.dumps(GRAPH))
    imported = read(path)
    assert len(imported.trace.ops) == 5
    assert any("joules" in note for note in imported.notes)


@pytest.mark.parametrize(
    ("part", "complaint"),
    [
        ({"edges": [[1, 0]]}, "edge 1 -> 0"),
        ({"edges": [[0, 7]]}, "from 0 to 4"),
        ({"nodes": [node(1, 4, 1.0)]}, "the ids of its 1 nodes are not 0 to 0"),
    ],
)
def test_damage_is_one_line(tmp_path, part, complaint):
    path = tmp_path / "linear.json"
    path.write_text(json.dumps({**GRAPH, **part}))
    with pytest.raises(TraceError, match=r"linear\.json") as caught:
        read(path)
    assert complaint in str(caught.value)
