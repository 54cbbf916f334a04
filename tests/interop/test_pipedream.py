"""PipeDream's profiles as traces."""

import pytest

from penstock.errors import TraceError
from penstock.interop.files import read
from penstock.interop.pipedream import read_layers, read_profile
from penstock.ir.trace import Kind, Phase


def line(number, layer, forward, backward, activation, parameters=0):
    return (
        f"node{number} -- {layer} -- forward_compute_time={forward:.3f}, "
        f"backward_compute_time={backward:.3f}, activation_size={activation}, "
        f"parameter_size={parameters:.3f}\n"
    )


PROFILE = (
    line(2, "Conv2d(3, 64, kernel_size=(3, 3))", 2, 4, "4096.000", 7168)
    + line(1, "Input", 17.972, 0, "1024.000")
    + line(3, "LSTM(8, 8)", 1, 2.5, "[2048.0; 512.0; 512.0]")
    + line(4, "Size(0)", 0, 0, "4.000")
    + line(5, "Add", 0.5, 0.25, "4096.000")
    + "\tnode1 -- node2\n\tnode2 -- node3\n\tnode2 -- node4\n"
    + "\tnode2 -- node5\n\tnode3 -- node5\n\tnode4 -- node5\n"
)


def test_layers_come_in_an_order_in_which_they_run():
    layers = read_layers(PROFILE)
    assert [layer.number for layer in layers] == [1, 2, 3, 5]
    lstm, add = layers[2], layers[3]
    assert (lstm.forward, lstm.backward, lstm.activation) == (1e-3, 2.5e-3, 3072)
    assert add.reads == (2, 3)
    assert layers[0].is_input


def test_a_profile_is_a_step_without_the_loading_of_data():
    trace = read_profile(PROFILE).trace
    assert [op.name for op in trace.ops] == ["Conv2d", "LSTM", "Add", "Add'", "LSTM'", "Conv2d'"]
    assert trace.seconds == pytest.approx(10.25e-3)
    saved = [value.name for value in trace.values if value.saved]
    assert saved == ["node2", "node3", "node5"]
    held = sum(value.nbytes for value in trace.values if value.saved)
    assert held == 4096 + 3072 + 4096
    gradients = [value for value in trace.values if value.kind is Kind.GRADIENT]
    assert [value.nbytes for value in gradients] == [7168]
    assert {op.phase for op in trace.ops} == {Phase.FORWARD, Phase.BACKWARD}
    # When add' runs: input, parameters, three results, and the gradients of two of them.
    assert trace.live[3] == 1024 + 7168 + held + 4096 + 3072


def test_it_is_known_by_its_content(tmp_path):
    path = tmp_path / "graph.txt"
    path.write_text(PROFILE)
    imported = read(path)
    assert len(imported.trace.ops) == 6
    assert any("Assumed" in note for note in imported.notes)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("\tnode1 -- node2", "\tnode1 -> node2", "line 6: 'node1 -> node2' is neither"),
        ("\tnode1 -- node2", "\tnode1 -- node9", "edges name node9, which no line describes"),
        ("\tnode1 -- node2", "\tnode5 -- node2", "its edges run in a circle"),
        ("activation_size=4.000", "activation_size=four", "line 4: 'node4"),
    ],
)
def test_damage_is_one_line(tmp_path, old, new, complaint):
    path = tmp_path / "graph.txt"
    path.write_text(PROFILE.replace(old, new))
    with pytest.raises(TraceError, match=r"graph\.txt") as caught:
        read(path)
    assert complaint in str(caught.value)
