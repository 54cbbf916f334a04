"""Instances of google/minimalloc are read as they are, and damaged ones are refused with the line."""

import pytest

from penstock.errors import TraceError
from penstock.interop.minimalloc import Instance, read_minimalloc
from penstock.solve.offsets import Buffer, exact

# google/minimalloc (Apache-2.0), benchmarks/examples/input.12.csv.
TOY = "id,lower,upper,size\nb1,0,3,4\nb2,3,9,4\nb3,0,9,4\nb4,9,21,4\nb5,0,21,4\n"


def test_an_instance_is_read_with_the_capacity_that_its_name_tells(tmp_path):
    path = tmp_path / "input.12.csv"
    path.write_text(TOY)
    buffers = (
        *(Buffer(0, 3, 4), Buffer(3, 9, 4), Buffer(0, 9, 4)),
        *(Buffer(9, 21, 4), Buffer(0, 21, 4)),
    )
    found = read_minimalloc(path)
    assert found == Instance("input", 12, ("b1", "b2", "b3", "b4", "b5"), buffers)
    assert exact(found.buffers, capacity=found.capacity).height == 12


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("input.csv", TOY, "its name does not tell the capacity"),
        ("12.csv", TOY, "its name does not tell the capacity"),
        ("a.12.csv", "", "line 1: the columns must be id,lower,upper,size"),
        ("a.12.csv", "id,lower,size\nb,1,2\n", "line 1: the columns must be"),
        ("a.12.csv", TOY + "b6,1,2\n", "line 7: 3 values, not 4"),
        ("a.12.csv", TOY + "b6,1,2,x\n", "line 7: lower, upper and size must be whole numbers"),
        ("a.12.csv", TOY + "b6,2,2,1\n", "line 7: buffer b6 cannot be: 1 bytes from 2 to 2"),
        ("a.12.csv", TOY + "b6,-1,2,1\n", "line 7: buffer b6 cannot be: 1 bytes from -1 to 2"),
    ],
)
def test_what_is_no_instance_is_refused_with_the_line(tmp_path, name, text, says):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(TraceError, match=says) as told:
        read_minimalloc(path)
    assert str(path) in str(told.value)


def test_what_cannot_be_read_is_told(tmp_path):
    with pytest.raises(TraceError, match="cannot read"):
        read_minimalloc(tmp_path / "a.12.csv")
    (tmp_path / "b.12.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TraceError, match="no text"):
        read_minimalloc(tmp_path / "b.12.csv")
