"""The commands and policies that the documents show exist."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from penstock import policies
from penstock.cli import app

ROOT = Path(__file__).parents[2]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def shown(program):
    """The lines of all documents in which `program` is called."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    return re.findall(rf"^\$ ({program} .*)$", text, re.MULTILINE)


@pytest.mark.parametrize("line", shown("penstock"))
def test_a_shown_command_is_understood(line):
    _, name, *arguments = shlex.split(line)
    commands = get_command(app).commands
    assert name in commands
    commands[name].make_context(name, arguments)  # raises for an option that does not exist


def test_every_command_is_shown():
    assert {shlex.split(line)[1] for line in shown("penstock")} == set(get_command(app).commands)


@pytest.mark.parametrize("line", shown("make"))
def test_a_shown_target_exists(line):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert line.split()[1] in targets


def test_the_table_of_policies_is_the_list_of_policies():
    section = DOCUMENTS[0].read_text(encoding="utf-8").split("## Policies")[1].split("\n## ")[0]
    assert tuple(re.findall(r"^\| `([\w-]+)` \|", section, re.MULTILINE)) == policies.names()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_a_link_leads_to_a_file(document):
    text = document.read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", text)
    missing = [target for target in targets if not (document.parent / target).exists()]
    assert missing == []
