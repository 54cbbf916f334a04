"""Kernel graphs of the G10 simulator, read as traces."""

import json
from pathlib import Path

import pytest

from external import external
from penstock.errors import TraceError
from penstock.interop.files import read
from penstock.interop.g10 import KERNELS, TENSORS, read_graph, read_kernels
from penstock.ir.trace import Kind, Phase

KERNELS_OF_STEP = """
0,LoadData_A0,1200,,0
1,Conv2d_Forward,2400,0 1,9 2
2,ReLU_Forward,1200,2,2
3,Divide_Forward,1200,3 2,4
4,makeLoss,0,4,5
5,Divide_Backward_A,1200,5 3,6
6,Add_MultiGredient,1200,6,6
7,Conv2d_Backward_Weight,3600,0 6 2,7
8,Conv2d_Apply_Grad,1200,1 7,1
"""
TENSORS_OF_STEP = """
0,1000,0
1,200,1
2,4000,0
3,8,0
4,4000,0
5,8,0
6,4000,0
7,200,0
8,64,0
9,5000,0
"""


def graph(folder: Path, kernels: str = KERNELS_OF_STEP, tensors: str = TENSORS_OF_STEP) -> Path:
    path = folder / "step.kernels.csv"
    path.write_text(f"{KERNELS}\n{kernels.strip()}\n")
    (folder / "step.tensors.csv").write_text(f"{TENSORS}\n{tensors.strip()}\n")
    return path


def by_name(trace):
    return {op.name: op for op in trace.ops}


def test_kernels_become_ops_in_order_with_their_times(tmp_path):
    trace = read_graph(graph(tmp_path)).trace
    assert [op.name for op in trace.ops if op.name != "input"] == [
        line.split(",")[1] for line in KERNELS_OF_STEP.strip().splitlines()
    ]
    assert by_name(trace)["Conv2d_Forward"].seconds == 2400 / 1.2e9
    assert trace.seconds * 1.2e9 == pytest.approx(13_200)
    assert trace.label == "step"


def test_at_another_clock_all_times_shrink_alike(tmp_path):
    path = graph(tmp_path)
    usual, faster = read_graph(path).trace, read_graph(path, clock=9.6e9).trace
    assert faster.seconds == pytest.approx(usual.seconds / 8)


def test_forward_ends_where_backward_begins_and_gradients_are_applied_on_the_way(tmp_path):
    ops = by_name(read_graph(graph(tmp_path)).trace)
    assert ops["makeLoss"].phase is Phase.FORWARD
    assert ops["Divide_Backward_A"].phase is Phase.BACKWARD
    assert ops["Conv2d_Apply_Grad"].phase is Phase.OPTIMIZER
    assert not ops["Conv2d_Apply_Grad"].repeatable
    assert not ops["LoadData_A0"].repeatable
    assert ops["ReLU_Forward"].repeatable


def test_what_a_kernel_writes_again_is_a_new_version_of_the_same_bytes(tmp_path):
    trace = read_graph(graph(tmp_path)).trace
    relu = by_name(trace)["ReLU_Forward"]
    (before,), (after,) = relu.reads, relu.writes
    assert trace.values[before].storage == trace.values[after].storage == 2
    assert trace.values[before].freed == relu.index
    assert trace.fresh[relu.index] == ()
    assert trace.values[after].saved and not trace.values[before].saved


def test_what_only_one_kernel_touches_is_its_workspace(tmp_path):
    trace = read_graph(graph(tmp_path)).trace
    assert by_name(trace)["Conv2d_Forward"].workspace == 5000
    assert 9 not in {value.storage for value in trace.values}


def test_what_no_kernel_makes_arrives_with_its_first_reader(tmp_path):
    imported = read_graph(graph(tmp_path))
    trace = imported.trace
    arrival = by_name(trace)["input"]
    assert arrival.seconds == 0 and not arrival.repeatable
    assert [trace.values[v].storage for v in arrival.writes] == [3]
    assert trace.ops[arrival.index + 1].name == "Divide_Forward"
    assert any("1 tensors are read that no kernel makes" in note for note in imported.notes)
    assert any("1 tensors that no kernel touches are left out" in note for note in imported.notes)


def test_tensors_have_the_kinds_that_their_use_tells(tmp_path):
    trace = read_graph(graph(tmp_path)).trace
    kinds = {value.storage: value.kind for value in trace.values}
    assert kinds == {
        0: Kind.INPUT,
        1: Kind.PARAMETER,
        2: Kind.ACTIVATION,
        3: Kind.INPUT,
        4: Kind.ACTIVATION,
        5: Kind.ACTIVATION,
        6: Kind.TEMPORARY,
        7: Kind.GRADIENT,
    }
    weight = [value for value in trace.values if value.storage == 1]
    assert weight[0].producer is None and weight[-1].freed is None


def test_the_live_peak_counts_each_tensor_from_its_first_touch_to_its_last(tmp_path):
    """By hand: the convolution holds its input, weight, output and workspace."""
    trace = read_graph(graph(tmp_path)).trace
    assert trace.peak == 1000 + 200 + 4000 + 5000
    assert trace.live[by_name(trace)["makeLoss"].index] == 1000 + 200 + 4000 + 8 + 4000 + 8


@pytest.mark.parametrize(
    ("kernels", "tensors", "says"),
    [
        ("0,a,1,,77", TENSORS_OF_STEP, "step.kernels.csv, line 2: tensor 77 is not described in"),
        ("1,a,1,,0", TENSORS_OF_STEP, "line 2: kernel 1 stands where 0 should be"),
        ("0,a,fast,,0", TENSORS_OF_STEP, "line 2: 'fast' is not a whole number of 0 or more"),
        ("0,a,-5,,0", TENSORS_OF_STEP, "line 2: '-5' is not a whole number"),
        ("0,a,1,0", TENSORS_OF_STEP, "line 2: 4 fields; there must be those of 'id,name"),
        ("", TENSORS_OF_STEP, "there is no kernel in it"),
        ("0,a,1,,0", "0,8,0\n0,8,0", "step.tensors.csv, line 3: tensor 0 is described twice"),
        ("0,a,1,,0", "0,8,2", "step.tensors.csv, line 2: is_global is 2; it must be 0 or 1"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_line(kernels, tensors, says, tmp_path):
    with pytest.raises(TraceError) as caught:
        read_graph(graph(tmp_path, kernels, tensors))
    assert says in str(caught.value)


def test_both_files_must_be_there_and_be_what_they_are_called(tmp_path):
    path = graph(tmp_path)
    tensors = tmp_path / "step.tensors.csv"
    with pytest.raises(TraceError, match="give the file of its kernels"):
        read(tensors)
    with pytest.raises(TraceError, match="has times of its own; leave"):
        read(path, times=tmp_path / "times.json")
    tensors.write_text("id,size\n0,8\n")
    with pytest.raises(TraceError, match=r"step.tensors.csv, line 1: 'id,size'; it must be"):
        read(path)
    tensors.unlink()
    with pytest.raises(TraceError, match=r"cannot read .*step.tensors.csv: No such file"):
        read(path)
    renamed = path.rename(tmp_path / "step.csv")
    with pytest.raises(TraceError, match=r"kernels are in a file NAME.kernels.csv"):
        read(renamed)


# -- the published graphs ------------------------------------------------------------------------

# Kernels, tensors, live peak and sum of all bytes in GiB, cycles: measured by the authors' simulator
# or printed in their result files.
PUBLISHED = {
    "BERT_Base_256": (1369, 1463, 47.76, 148.04, 8_742_558_777),
    "VIT_1024": (1489, 1563, 45.93, 147.6, None),
    "Inceptionv3_1536": (929, 2171, 133.9, 787.8, 71_633_241_480),
    "ResNet152_1280": (1299, 3330, 273.5, 1086.2, 135_107_260_924),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_graph_has_the_published_facts(name):
    path = external("g10") / "graphs" / f"{name}.kernels.csv"
    kernels, tensors, peak, whole, cycles = PUBLISHED[name]
    found, described = read_kernels(path)
    trace = read_graph(path).trace
    assert (len(found), len(described)) == (kernels, tensors)
    digits = 2 if name in ("BERT_Base_256", "VIT_1024") else 1
    assert round(trace.peak / 2**30, digits) == peak
    assert round(sum(t.nbytes for t in described.values()) / 2**30, 2) == pytest.approx(
        whole, abs=0.05
    )
    assert round(trace.seconds * 1.2e9) == sum(kernel.cycles for kernel in found)
    if cycles is not None:
        assert round(trace.seconds * 1.2e9) == cycles


def test_every_published_graph_has_the_ideal_and_the_live_peak_that_the_peers_were_given():
    answers = json.loads((external("peer-results") / "g10.json").read_text())["instances"]
    graphs = external("g10") / "graphs"
    seen = 0
    for one in answers:
        path = graphs / f"{one['model']}_{one['batch']}.kernels.csv"
        if not path.exists():
            continue
        trace, seen = read_graph(path).trace, seen + 1
        assert round(trace.seconds, 3) == one["ideal_s"], path.name
        assert round(trace.peak / 1e9, 2) == one["peak_live_GB"], path.name
    assert seen > 20
