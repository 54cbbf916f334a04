"""The command line as a person meets it."""

import sys
from pathlib import Path

import pytest

from command import SCRIPT, Ended, Penstock
from penstock.cli import main


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """Trains; its arguments are a file for the losses and the number of steps."""
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    return path


@pytest.fixture
def penstock(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Penstock:
    """Runs a command in this process: what it returned and wrote."""

    def run(*arguments: object) -> Ended:
        # `run` and `trace` set these for the script that they start.
        monkeypatch.setattr(sys, "argv", ["penstock", *map(str, arguments)])
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as left:
            main()
        written = capsys.readouterr()
        code = left.value.code
        return Ended(0 if code is None else int(code), written.out, written.err)

    return run
