"""Peaks that were measured on a GPU (Harmony, VLDB 2022), predicted from layers that never ran."""

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

# msr-fiddle/harmony (MIT), commit 5fd838f: torch.cuda.max_memory_allocated of one layer, which is a
# line in the micro-batch. Of BERT the last layer, whose mask is no output.
MEASURED = {
    ("bert_large_seqlen512", "FWD"): (46_139_392, 50_384_896),
    ("bert_large_seqlen512", "BWD"): (125_833_216, 67_174_400),
    ("gpt2_medium", "FWD"): (230_686_720, 58_773_504),
    ("gpt2_medium", "BWD"): (381_689_856, 92_360_704),
}


@pytest.mark.parametrize(("name", "phase"), MEASURED)
def test_what_each_sample_adds_and_what_is_there_without_any_is_equal_to_the_byte(
    name: str, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    from harmony import LAYERS, line, predicted

    _, layer, _ = LAYERS[name]
    assert line({n: predicted(layer, phase, n) for n in (1, 2)}) == MEASURED[name, phase]
