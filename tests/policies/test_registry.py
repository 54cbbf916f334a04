"""Policies are found by file and by entry point, and take options from a line of text."""

import re
from dataclasses import fields

import pytest

from penstock import policies
from penstock.errors import UsageError
from penstock.ir.machine import Device, Machine
from penstock.ir.plan import Plan, Recompute
from penstock.ir.policy import Problem
from penstock.ir.text import parse
from penstock.ir.trace import Gap

OUTSIDE = '''
from dataclasses import dataclass
from typing import ClassVar

from penstock.ir.plan import Recompute


@dataclass(frozen=True)
class Parsley:
    """Drops the first saved value."""

    pinch: int = 1
    paper: ClassVar = None
    needs: ClassVar = frozenset()

    def __call__(self, problem):
        gaps = list(problem.trace.saved_gaps())[: self.pinch]
        return problem.given.plus(Recompute(gap, gap.stop) for gap in gaps)
'''


@pytest.fixture
def outside_package(tmp_path, monkeypatch):
    """An installed distribution that offers a policy, as pip would lay it out."""
    (tmp_path / "herbs.py").write_text(OUTSIDE)
    info = tmp_path / "herbs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: herbs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[penstock.policies]\nparsley = herbs:Parsley\n")
    monkeypatch.syspath_prepend(tmp_path)


def test_our_own_policies_are_found_by_their_files():
    assert {"auto", "capuchin", "chen", "keep", "swap-all"} <= set(policies.names())
    assert list(policies.names()) == sorted(policies.names())


@pytest.mark.parametrize("name", policies.names())
def test_every_name_loads_a_class_of_that_name(name):
    assert policies.load(name).__name__.lower() == name.replace("-", "")


@pytest.mark.usefixtures("outside_package")
def test_an_outside_package_adds_a_policy_by_its_entry_point():
    assert "parsley" in policies.names()
    policy = policies.configured("parsley:pinch=2")
    assert (type(policy).__module__, policy.pinch) == ("herbs", 2)
    trace = parse("""
        f a  x:I4M -> h:A4M! 1ms
        f b  h     -> y:A4M! 1ms
        f c  y     -> l:T1K  1ms
        b c' l y   -> d:T4M  1ms
        b a' d h   -> g:T4M  1ms
    """)
    problem = Problem(trace, Machine(Device("cpu", 2**40)), trace.peak)
    assert policies.configured("parsley")(problem).decisions == (Recompute(Gap(1, 1, 4), 4),)


def test_it_is_gone_when_the_package_is():
    assert "parsley" not in policies.names()


@pytest.mark.parametrize("name", ["capuchino", "", "Chen", "__init__", "penstock.policies.chen"])
def test_an_unknown_policy_is_refused_with_those_that_exist(name):
    with pytest.raises(UsageError, match=re.escape(f"no policy is called {name!r}")) as caught:
        policies.load(name)
    assert all(known in str(caught.value) for known in policies.names())


def test_options_are_read_as_their_fields_say():
    chen = policies.configured("chen: tries=3, low=0.25")
    assert (chen.tries, chen.low) == (3, 0.25)
    assert isinstance(chen.tries, int)
    assert policies.configured("capuchin:mode=literal").mode == "literal"
    assert policies.configured("swap-all:smallest=4096").smallest == 4096


@pytest.mark.parametrize("text", ["keep", "keep:", " keep "])
def test_a_policy_needs_no_options(text):
    assert policies.configured(text) == policies.load("keep")()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("chen:trys=3", "policy chen: option 'trys=3' is not known; did you mean tries?"),
        ("chen:tries", "policy chen: option 'tries' is not known"),
        ("keep:hard=1", "policy keep: option 'hard=1' is not known; it takes no options"),
        ("chen:tries=many", "policy chen: option tries: 'many' is not int"),
        ("chen:tries=1.5", "policy chen: option tries: '1.5' is not int"),
        ("chen:low=", "policy chen: option low: '' is not float"),
        (
            "capuchin:mode=casual",
            "policy capuchin: option mode: 'casual' is not 'literal' or 'accumulating'",
        ),
    ],
)
def test_a_wrong_option_is_refused_with_what_would_be_right(text, complaint):
    with pytest.raises(UsageError, match=re.escape(complaint)):
        policies.configured(text)


@pytest.mark.parametrize("name", policies.names())
def test_every_field_of_every_policy_can_be_set_from_text(name):
    default = policies.load(name)()
    for field in fields(default):
        value = getattr(default, field.name)
        assert policies.configured(f"{name}:{field.name}={value}") == default


@pytest.mark.parametrize(("given", "signed"), [("", "keep"), ("mine", "mine + keep")])
def test_a_plan_is_signed_by_all_who_made_it(given, signed):
    trace = parse("f a x:I1M -> h:A1M 1ms")
    problem = Problem(trace, Machine(Device("cpu", 2**40)), trace.peak, Plan(policy=given))
    assert policies.ask(policies.configured("keep"), problem).plan.policy == signed
