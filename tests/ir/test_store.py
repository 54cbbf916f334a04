"""Files come back as they were saved, or say what is wrong with them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import TraceError
from penstock.ir.machine import Device, Direct, Faults, Link, Machine, Tier
from penstock.ir.plan import Place, Plan
from penstock.ir.store import FORMAT_VERSION, load, load_trace, save
from penstock.ir.text import parse
from penstock.simulate.lower import lower
from penstock.simulate.run import price
from strategies import machines, plans, traces

TRACE = parse("""
    f a  x:I1M w:P2M -> h:A8M!  1ms ?
    f b  h           -> ~h      2ms +1M
    b a' h           -> g:G2M   1ms
    o s  g w         -> ~w      1ms !
""")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "step.penstock"


def write(path, body, *, compressed=True):
    text = json.dumps(body).encode()
    path.write_bytes(zstandard.compress(text) if compressed else text)


def body_of(path):
    return json.loads(zstandard.decompress(path.read_bytes(), max_output_size=2**20))


def complaint(path):
    with pytest.raises(TraceError) as caught:
        load(path)
    message = str(caught.value)
    assert str(path) in message
    return message.replace(str(path), "FILE")


# Saving is a pure function of the document, so one file may serve all examples.
@given(st.data())
def test_what_is_saved_comes_back(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("saved") / "file"
    trace, machine = data.draw(traces()), data.draw(machines())
    plan = data.draw(plans(trace, machine))
    for document in (trace, machine, plan):
        save(path, document)
        assert load(path) == document
    timeline = price(lower(trace, plan), machine)
    save(path, timeline)
    again = load(path)
    assert (again.peak, again.seconds) == (timeline.peak, timeline.seconds)
    assert again.spans == timeline.spans
    assert np.array_equal(again.resident, timeline.resident)
    assert (again.stalls, again.traffic) == (timeline.stalls, timeline.traffic)


def test_what_people_called_a_trace_comes_back(path):
    trace = replace(TRACE, device="cuda", label="gpt2", slack=7, versions={"torch": "2.13"})
    save(path, trace)
    again = load(path)
    assert again == trace
    assert again.versions == {"torch": "2.13"}  # takes no part in ==


def test_a_trace_may_carry_its_machine(path, machine):
    save(path, TRACE, machine)
    assert load_trace(path) == (TRACE, machine)
    save(path, TRACE)
    assert load_trace(path) == (TRACE, None)


def test_only_a_trace_is_loaded_as_one(path):
    save(path, Plan())
    with pytest.raises(TraceError, match="this file holds a plan, not a trace"):
        load_trace(path)


def test_plain_json_from_another_tool_is_read_with_defaults(path):
    body = {
        "penstock": "trace",
        "version": FORMAT_VERSION,
        "ops": {"name": ["mm"], "phase": ["forward"], "reads": [[0]], "writes": [[1]]},
        "values": {"nbytes": [4, 8], "kind": ["input", "activation"], "producer": [None, 0]},
    }
    write(path, body, compressed=False)
    trace = load(path)
    assert (trace.ops[0].name, trace.ops[0].seconds, trace.ops[0].repeatable) == ("mm", 0.0, True)
    assert [value.storage for value in trace.values] == [0, 1]


def test_a_file_that_is_not_there_is_said_so(path):
    assert complaint(path) == "cannot read FILE: No such file or directory"


@pytest.mark.parametrize("raw", [b"", b"hello", b"\x28\xb5\x2f\xfd rubbish", b"{", b"\xff\xfe"])
def test_rubbish_is_refused(path, raw):
    path.write_bytes(raw)
    assert complaint(path) == "FILE is damaged, or no Penstock file"


def test_a_truncated_file_is_refused_wherever_it_was_cut(path):
    save(path, TRACE)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert complaint(path) == "FILE is damaged, or no Penstock file"


@pytest.mark.parametrize("body", [[], 3, {}, {"penstock": "cake"}, {"version": FORMAT_VERSION}])
def test_json_of_something_else_is_refused(path, body):
    write(path, body)
    assert complaint(path) == (
        "FILE is no Penstock file: its field 'penstock' must be one of trace, machine, plan, timeline"
    )


@pytest.mark.parametrize(
    ("version", "advice"),
    [(FORMAT_VERSION + 1, "update Penstock to read it"), (0, "record it again")],
)
def test_another_version_is_refused_with_advice(path, version, advice):
    save(path, TRACE)
    write(path, {**body_of(path), "version": version})
    assert complaint(path) == (
        f"FILE has format version {version}; this Penstock reads {FORMAT_VERSION}: {advice}"
    )


def column(body, table, name, cells):
    return {**body, table: {**body[table], name: cells}}


DAMAGE = {
    "FILE is damaged: no field 'values'": lambda body: {
        key: field for key, field in body.items() if key != "values"
    },
    "FILE is damaged: no field 'kind'": lambda body: {
        **body,
        "values": {key: cells for key, cells in body["values"].items() if key != "kind"},
    },
    "FILE is damaged: column 'kind' has 1 rows, not 6": lambda body: column(
        body, "values", "kind", ["input"]
    ),
    "FILE is damaged: 'cake' is not a valid Kind": lambda body: column(
        body, "values", "kind", ["cake"] * 6
    ),
    "FILE is damaged: 'dinner' is not a valid Phase": lambda body: column(
        body, "ops", "phase", ["dinner"] * 4
    ),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_a_damaged_field_is_named(path, message):
    save(path, TRACE)
    write(path, DAMAGE[message](body_of(path)))
    assert complaint(path) == message


def test_a_file_that_contradicts_itself_is_refused_with_the_culprit(path):
    save(path, TRACE)
    write(path, column(body_of(path), "ops", "reads", [[99], [], [], []]))
    assert "op 0 reads value 99, which does not exist" in complaint(path)


def test_an_unknown_decision_is_named(path):
    decision = {"do": "pray", "value": 0, "start": 0, "stop": 1}
    write(path, {"penstock": "plan", "version": FORMAT_VERSION, "decisions": [decision]})
    assert (
        complaint(path) == "FILE: a decision says 'pray'; known are 'swap', 'recompute' and 'place'"
    )


MACHINE = {
    "penstock": "machine",
    "version": FORMAT_VERSION,
    "device": {"name": "card", "memory": 2**30, "bandwidth": 1e11, "flops": {"float32": 1e12}},
    "tiers": [
        {"name": "host", "capacity": 2**33, "write": {"bandwidth": 1e9}, "read": {"bandwidth": 1e9}}
    ],
}


UNWRITTEN = "an op leaves 1.5 of its bytes unwritten; 1 is all of them"
SAMPLE = "[flops, moved, seconds, workspace, unwritten]"


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("device", None, "there is no field device"),
        ("device", 3, "device must be an object, not 3"),
        ("device.name", None, "there is no field device.name"),
        ("device.memory", None, "there is no field device.memory"),
        ("device.memory", "16GB", 'device.memory must be a number, not "16GB"'),
        ("device.memory", -1, "device.memory must be 0 or more, and finite, not -1"),
        ("device.memory", 1.5, "device.memory must be a whole number of bytes, not 1.5"),
        ("device.memory", 10**30, f"device.memory must be a whole number of bytes, not {10**30}"),
        ("device.memory", 0, "device card: memory of 0 bytes"),
        ("device.bandwidth", -5, "device.bandwidth must be 0 or more, and finite, not -5"),
        ("device.bandwidth", True, "device.bandwidth must be a number, not true"),
        ("device.flops", [1], "device.flops must be an object, not [1]"),
        ("device.flops.float32", -1, "device.flops.float32 must be 0 or more, and finite, not -1"),
        ("device.flops.float32", 0, "device card: 0 flops of float32; leave out what is not known"),
        ("device.costs", {"aten.mm": 2}, "device.costs.aten.mm must be an object, not 2"),
        (
            "device.costs",
            {"aten.mm": {"lunch": 1}},
            (
                "device.costs.aten.mm has an unknown field 'lunch'; did you mean launch?; it takes "
                "launch, flops, bandwidth, workspace, unwritten, library, seen"
            ),
        ),
        *(
            ("device.costs", {"aten.mm": {"seen": seen}}, f"device.costs.aten.mm.seen{reason}")
            for seen, reason in (
                (3, f" must be a list of {SAMPLE}, not 3"),
                ([[1, 2]], f" must be a list of {SAMPLE}, not [1, 2]"),
                ([[1, "2", 3, 0, 0]], '.moved must be a number, not "2"'),
                ([[1, 2, -3, 0, 0]], ".seconds must be 0 or more, and finite, not -3"),
            )
        ),
        ("device.costs", {"aten.mm": {"unwritten": 1.5}}, UNWRITTEN),
        (
            "device.faults",
            {"smal": 1},
            (
                "device.faults has an unknown field 'smal'; did you mean small?; it takes small, "
                "large, returned"
            ),
        ),
        (
            "device.faults",
            {"large": -1},
            "device.faults.large must be 0 or more, and finite, not -1",
        ),
        ("tiers", {}, "tiers must be a list, not {}"),
        ("tiers.0", "host", 'tiers[0] must be an object, not "host"'),
        ("tiers.0.name", "", 'tiers[0].name must be a text, not ""'),
        ("tiers.0.capacity", -1, "tiers[0].capacity must be 0 or more, and finite, not -1"),
        ("tiers.0.write", None, "there is no field tiers[0].write"),
        ("tiers.0.write.bandwidth", None, "there is no field tiers[0].write.bandwidth"),
        (
            "tiers.0.read.bandwidth",
            -1,
            "tiers[0].read.bandwidth must be 0 or more, and finite, not -1",
        ),
        (
            "tiers.0.read.bandwidth",
            0,
            "tiers[0].read.bandwidth must be more than 0 bytes per second",
        ),
        ("tiers.0.read.latency", -1, "tiers[0].read.latency must be 0 or more, and finite, not -1"),
        ("tiers.0.drag", 1, "tiers[0].drag must be below 1, not 1: it is a share"),
        ("tiers.0.direct", 3, "tiers[0].direct must be an object, not 3"),
        ("tiers.0.direct", {"read": 1}, "there is no field tiers[0].direct.write"),
        (
            "tiers.0.direct",
            {"read": 0, "write": 1},
            "tiers[0].direct.read and write must be more than 0 bytes per second",
        ),
    ],
)
def test_a_wrong_machine_file_is_refused_with_the_field_that_is_wrong(path, field, value, reason):
    body = json.loads(json.dumps(MACHINE))
    write(path, body, compressed=False)
    load(path)  # right before it is made wrong
    *way, last = (int(part) if part.isdecimal() else part for part in field.split("."))
    record = body
    for part in way:
        record = record[part]
    if value is None:
        del record[last]
    else:
        record[last] = value
    write(path, body, compressed=False)
    assert complaint(path) == f"FILE: {reason}"


def test_a_rate_of_an_unknown_dtype_is_refused_with_the_nearest(path):
    flops = {"flaot32": 1e12}
    write(path, {**MACHINE, "device": {**MACHINE["device"], "flops": flops}})
    assert complaint(path).startswith(
        "FILE: device card: flops of unknown dtype 'flaot32'; did you mean float32?; known are "
    )


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(path):
    save(path, TRACE)
    before = path.read_bytes()
    with pytest.raises(ValueError):  # JSON has no NaN
        save(
            path, replace(TRACE, ops=(replace(TRACE.ops[0], seconds=float("nan")), *TRACE.ops[1:]))
        )
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_placements_and_direct_rates_come_back(path):
    tier = Tier("nvm", 2**40, Link(1e9), Link(2e9), direct=Direct(3e9, 1e9))
    machine = Machine(Device("cpu", 2**30), (tier, Tier("disk", 2**40, Link(1e9), Link(1e9))))
    plan = Plan(
        (Place(0, "nvm"), Place(1, "nvm", 2, None), Place(1, "nvm", 1, 3)), "hand", cut_short=True
    )
    for document in (machine, plan):
        save(path, document)
        assert load(path) == document


def test_a_machine_file_without_direct_rates_and_faults_is_as_before(path):
    write(path, MACHINE)
    machine = load(path)
    assert [tier.direct for tier in machine.tiers] == [None]
    assert not machine.device.faults


def test_a_machine_keeps_what_faults_cost(path):
    machine = Machine(Device("cpu", 2**40, faults=Faults(3e-10, 1e-10, 5e-11)))
    save(path, machine)
    assert load(path) == machine
