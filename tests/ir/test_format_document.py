"""What `docs/trace-format.md` shows can be loaded, and says what the document says."""

import json
import re
from pathlib import Path

import pytest

from penstock.errors import TraceError
from penstock.ir.plan import Plan, check
from penstock.ir.schedule import Cause
from penstock.ir.store import _ARRAYS, _OP, _VALUE, load, load_trace
from penstock.ir.text import show
from penstock.ir.timeline import KINDS
from penstock.ir.trace import Kind, Phase

DOCUMENT = (Path(__file__).parents[2] / "docs" / "trace-format.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL)


def section(title):
    return DOCUMENT.split(f"{title}\n", 1)[1].split("\n#", 1)[0]


@pytest.fixture
def example(tmp_path):
    """The path of the document's example of one kind."""

    def saved(kind):
        (body,) = (text for text in blocks("json") if json.loads(text)["penstock"] == kind)
        path = tmp_path / f"{kind}.json"
        path.write_text(body)
        return path

    return saved


def test_the_example_of_a_trace_loads_with_its_machine(example):
    trace, machine = load_trace(example("trace"))
    assert (len(trace.ops), len(trace.values)) == (5, 7)
    assert trace.next_version == {1: 6}
    assert machine is not None
    assert [tier.name for tier in machine.tiers] == ["disk"]


def test_the_example_names_every_column(example):
    body = json.loads(example("trace").read_text())
    assert list(body["ops"]) == list(_OP)
    assert list(body["values"]) == list(_VALUE)


def test_the_peak_is_what_the_document_says_it_is(example):
    trace, _ = load_trace(example("trace"))
    # x, w, d and g, and the workspace of op 3: 8 + 4 + 8 + 4 + 1 MiB.
    assert trace.live.tolist()[3] == 25 * 2**20
    # x, w, h and y while op 1 runs.
    assert trace.peak == trace.live.tolist()[1] == 28 * 2**20


def test_the_example_of_a_plan_fits_its_trace(example):
    trace, machine = load_trace(example("trace"))
    plan = load(example("plan"))
    assert isinstance(plan, Plan)
    check(trace, plan, machine)
    assert [swap.gap.wraps for swap in plan.swaps] == [False, True]


def test_the_text_form_is_that_of_the_example(example):
    (text,) = blocks("text")
    assert show(load_trace(example("trace"))[0]) == text.strip()


@pytest.mark.parametrize(
    ("title", "names"),
    [
        ("### `ops`: one row for each ATen call", [*_OP, *Phase]),
        ("### `values`: one row for each version of a storage", [*_VALUE, *Kind]),
        ("## Timeline", [*_ARRAYS, *Cause, "workspace"]),
    ],
)
def test_every_field_and_word_is_explained(title, names):
    missing = [name for name in names if not re.search(rf'[`"]{name}[`"]', section(title))]
    assert missing == []


@pytest.mark.parametrize("kind", ["trace", "plan"])
def test_a_field_of_another_tool_is_passed_over(example, kind):
    path = example(kind)
    before = load(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "colour": "blue"}))
    assert load(path) == before


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_what_json_has_no_number_for_is_refused(example, constant):
    path = example("trace")
    path.write_text(path.read_text().replace("[0.004, ", f"[{constant}, "))
    with pytest.raises(TraceError, match=f"is damaged: {constant} is no number"):
        load(path)


def test_the_rows_of_a_residency_curve_are_the_kinds_and_the_workspace():
    assert (*Kind, "workspace") == KINDS
