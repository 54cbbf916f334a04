"""What `make test-gpu` says of predictions: rows, errors, order; and the half that needs no GPU."""

import io
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from rich.console import Console

from penstock.ir.machine import Device, Machine, Rate
from penstock.ir.store import save
from penstock.machines import find
from penstock.zoo import workloads
from penstock.zoo.workloads import names

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
MIB = 2**20


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu_prediction

    return gpu_prediction


@pytest.fixture
def card(tmp_path: Path) -> Path:
    save(tmp_path / "card.json", find("a100-40"))
    return tmp_path / "card.json"


def figures(allocated: float, reserved: float, seconds: float) -> dict[str, float]:
    return {"allocated": allocated, "reserved": reserved, "seconds": seconds}


def test_an_error_is_how_far_the_prediction_is_off_what_was_measured(benchmark) -> None:
    guess = figures(90 * MIB, 220 * MIB, 0.01) | {"ops": 7}
    row = benchmark.row("net", guess, figures(100 * MIB, 200 * MIB, 0.01))
    assert row["error"] == pytest.approx({"allocated": -0.1, "reserved": 0.1, "seconds": 0.0})
    assert (row["predicted"]["ops"], row["measured"]["seconds"]) == (7, 0.01)


@pytest.mark.parametrize("broken", [0, 1])
def test_a_workload_of_which_one_half_failed_has_no_error(benchmark, broken: int) -> None:
    halves = [figures(1, 1, 1), figures(1, 1, 1)]
    halves[broken] = {"failed": "CUDA out of memory"}
    assert benchmark.row("net", *halves) == {"workload": "net", "failed": "CUDA out of memory"}


def test_the_worst_comes_first_whichever_figure_is_off_and_which_way(benchmark) -> None:
    exact = figures(100, 100, 100)
    rows = [
        benchmark.row("good", figures(101, 99, 100), exact),
        benchmark.row("slow", figures(100, 100, 130), exact),
        benchmark.row("none", {"failed": "died"}, exact),
        benchmark.row("small", figures(60, 100, 100), exact),
    ]
    found = benchmark.worst_first(rows)
    assert [row["workload"] for row in found] == ["none", "small", "slow", "good"]
    assert benchmark.medians(found) == pytest.approx(
        {"allocated": 0.01, "reserved": 0.0, "seconds": 0.0}
    )
    assert benchmark.medians(rows[2:3]) == {}


def test_the_table_says_what_was_measured_and_how_far_off_it_was(benchmark) -> None:
    exact = figures(100 * MIB, 200 * MIB, 0.0125)
    rows = [
        benchmark.row("net", figures(90 * MIB, 210 * MIB, 0.01), exact),
        {"workload": "other", "failed": "no such op"},
    ]
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(benchmark.table(rows))
    shown = console.export_text()
    for cell in ("100.0", "-10.0%", "200.0", "+5.0%", "12.5", "-20.0%", "no such op", "median"):
        assert cell in shown


def test_a_result_keeps_what_else_the_file_says(benchmark, tmp_path: Path) -> None:
    path = tmp_path / "results" / "card.json"
    benchmark.keep(path, "rows", [1])
    benchmark.keep(path, "prediction", {"rows": [2]})
    benchmark.keep(path, "prediction", {"rows": [3]})
    assert json.loads(path.read_text()) == {"rows": [1], "prediction": {"rows": [3]}}
    assert benchmark.result_path("NVIDIA H100 80GB HBM3").name == "nvidia-h100-80gb-hbm3.json"


def test_its_workloads_are_in_the_zoo(benchmark) -> None:
    assert len(benchmark.WORKLOADS) == 8
    assert set(benchmark.WORKLOADS) <= set(names())


# -- the half that runs anywhere ----------------------------------------------------------------------


def test_a_step_is_predicted_in_a_process_that_sees_no_gpu(benchmark, card: Path) -> None:
    found = benchmark.in_process("predict", "gpt2", "small", card)
    assert "failed" not in found, found
    # 4 blocks of 12 x 128^2 weights, each with its gradient and two moments: at least that is there.
    assert found["reserved"] >= found["allocated"] > 4 * 4 * (4 * 12 * 128**2)
    assert found["allocated"] <= found["least_reserved"] <= found["reserved"]
    assert 0 < found["seconds"] < 0.1
    again = benchmark.predict("gpt2", "small", card)
    assert found == again


def test_what_a_process_takes_beside_tensors_and_what_ops_cost_is_the_machines(
    benchmark, tmp_path: Path
) -> None:
    def predicted(overhead: int, launch: float) -> dict[str, float]:
        costs = dict.fromkeys(
            ("matmul", "pointwise", "norm", "lookup", "attention", "optimizer", "convolution"),
            Rate(launch),
        )
        save(tmp_path / "m.json", Machine(Device("GPU", 2**35, costs=costs, overhead=overhead)))
        return benchmark.predict("vit", "small", tmp_path / "m.json")

    plain, other = predicted(0, 1e-5), predicted(20 * MIB, 2e-5)
    for what in ("allocated", "reserved", "least_reserved"):
        assert other[what] - plain[what] == 20 * MIB
    assert plain["seconds"] == pytest.approx(plain["ops"] * 1e-5)
    assert other["seconds"] == pytest.approx(2 * plain["seconds"])


def test_what_fails_in_its_process_is_told(benchmark, card: Path) -> None:
    found = benchmark.in_process("predict", "gpt3", "small", card)
    assert "no workload is called 'gpt3'" in found["failed"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("script", ["gpu", "gpu_prediction"])
def test_without_a_gpu_it_says_so(benchmark, script: str, monkeypatch, capsys) -> None:
    module = __import__(script)
    monkeypatch.setattr(sys, "argv", [script])
    assert module.main() == 2
    assert "torch sees no GPU here" in capsys.readouterr().err


class Counters:
    """The counters of an allocator: 5 MiB were there before, each step takes 100 for a while."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.peak, self.calls = 5, 5, []
        for name, answer in (
            ("init", lambda: self.calls.append("init")),
            ("synchronize", lambda: self.calls.append("synchronize")),
            ("empty_cache", lambda: self.calls.append("empty_cache")),
            ("memory_allocated", lambda: self.now * MIB),
            ("memory_reserved", lambda: 2 * self.now * MIB),
            ("max_memory_allocated", lambda: self.peak * MIB),
            ("max_memory_reserved", lambda: 2 * self.peak * MIB),
            ("reset_peak_memory_stats", self.reset),
        ):
            monkeypatch.setattr(torch.cuda, name, answer)

    def reset(self) -> None:
        self.peak = self.now

    def step(self, number: int) -> list[torch.Tensor]:
        self.calls.append(f"step {number}")
        self.peak = max(self.peak, self.now + (100 if number else 300))
        return []


def test_measured_are_later_steps_above_what_was_there_before(benchmark, monkeypatch) -> None:
    """The counters are stand-ins, and the model stays where it is: no GPU is needed for the order."""
    counters = Counters(monkeypatch)
    monkeypatch.setattr(
        workloads, "workload", lambda name, size: workloads.Workload([], counters.step)
    )
    found = benchmark.measure("net", "small", None)
    assert (found["allocated"], found["reserved"]) == (100 * MIB, 200 * MIB)
    assert found["reserved_from_start"] == 600 * MIB  # the first step took more
    assert 0 < found["seconds"] < 1
    steps = [call for call in counters.calls if call.startswith("step")]
    assert steps == [f"step {n}" for n in range(benchmark.WARM_UP + benchmark.MEASURED)]
    first = counters.calls.index(f"step {benchmark.WARM_UP}")
    assert counters.calls[first - 2 : first] == ["synchronize", "empty_cache"]
    assert counters.calls[first + 1] == counters.calls[-1] == "synchronize"


def test_one_file_has_the_tests_the_budgets_and_the_predictions(
    benchmark, monkeypatch, tmp_path: Path, capsys
) -> None:
    gpu = __import__("gpu")
    path = tmp_path / "card.json"
    rows = [benchmark.row("gpt2", figures(1, 1, 1), figures(1, 1, 1))]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Card")
    card = SimpleNamespace(total_memory=1 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(gpu, "run_tests", lambda: {"passed": True, "summary": "all passed"})
    monkeypatch.setattr(gpu, "workload_rows", lambda name, size: [{"workload": name, "ok": True}])
    monkeypatch.setattr(gpu, "result_path", lambda device: path)
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    monkeypatch.setattr(benchmark, "rows", lambda names, size: rows)
    monkeypatch.setattr(sys, "argv", ["gpu", "--size", "small"])
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # so that it goes with the test
    was = torch.are_deterministic_algorithms_enabled()
    try:
        assert gpu.main() == 0
        rows.append(benchmark.row("bert", {"failed": "died"}, {}))
        assert gpu.main() == 1
    finally:
        torch.use_deterministic_algorithms(was)
        torch.utils.deterministic.fill_uninitialized_memory = True
    told = json.loads(path.read_text())
    assert [row["workload"] for row in told["rows"]] == list(gpu.WORKLOADS)
    assert [row["workload"] for row in told["prediction"]["rows"]] == ["gpt2", "bert"]
    assert told["device"] == "Card" and told["tests"]["passed"]
    assert "gpt2" in capsys.readouterr().out


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_a_step_is_predicted_and_measured_on_the_gpu(benchmark) -> None:
    (row,) = benchmark.rows(["gpt2"], "small")
    assert "failed" not in row, row
    assert abs(row["error"]["allocated"]) < 0.1
