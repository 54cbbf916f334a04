"""`penstock import`: from another tool's recording to a trace that can be asked."""

import json
from pathlib import Path

import torch
from torch import nn
from torch.profiler import ExecutionTraceObserver, ProfilerActivity, profile

from command import Penstock
from penstock.ir.store import load_trace


def test_an_execution_trace_is_imported_and_explained(tmp_path: Path, penstock: Penstock) -> None:
    recorded, times = tmp_path / "mlp.json", tmp_path / "times.json"
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    observer = ExecutionTraceObserver().register_callback(str(recorded))
    with profile(
        activities=[ProfilerActivity.CPU], execution_trace_observer=observer, acc_events=True
    ) as profiled:
        model(torch.randn(256, 64)).sum().backward()
    profiled.export_chrome_trace(str(times))

    trace = tmp_path / "mlp.trace"
    ended = penstock("import", recorded, "--times", times, "-o", trace, "-m", "a100-40")
    assert ended.code == 0, ended.err
    assert "the file does not say" in ended.out
    found, machine = load_trace(trace)
    assert found.label == "mlp" and found.seconds > 0 and machine is not None
    ended = penstock("explain", trace, "-b", "90%")
    assert ended.code == 0, ended.err


def test_what_cannot_be_imported_is_one_line(tmp_path: Path, penstock: Penstock) -> None:
    other = tmp_path / "times.json"
    other.write_text(json.dumps({"traceEvents": []}))
    ended = penstock("import", other, "-o", tmp_path / "out")
    assert ended.code == 2 and "holds times but no tensors" in ended.err
    ended = penstock("import", other, "-o", tmp_path / "none" / "out")
    assert ended.code == 2 and "is not a directory" in ended.err
    assert not (tmp_path / "out").exists()


def test_a_g10_graph_is_imported_with_the_tensors_beside_it(
    tmp_path: Path, penstock: Penstock
) -> None:
    graph, out = tmp_path / "step.kernels.csv", tmp_path / "step.trace"
    graph.write_text("id,name,cycles,inputs,outputs\n0,f_Forward,1200,1,2\n1,f_Backward,1200,2,3\n")
    (tmp_path / "step.tensors.csv").write_text("id,bytes,is_global\n1,4096,1\n2,8192,0\n3,4096,0\n")
    ended = penstock("import", graph, "-o", out, "-m", "a100-40+g10+ssd:zssd")
    assert ended.code == 0, ended.err
    assert "2 ops" in ended.out and "only one kernel touches" in ended.out
    trace, machine = load_trace(out)
    assert (trace.label, trace.peak) == ("step", 16384)
    assert machine is not None and [tier.name for tier in machine.tiers] == ["host", "disk"]
