"""External data: inputs and answers of the peers, which are not part of this project."""

import os
from pathlib import Path

import pytest

__all__ = ["external"]


def external(name: str) -> Path:
    """The folder `name` of the external data; skips the test where it is not at hand."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("PENSTOCK_DATA") or beside) / name
    if not folder.is_dir():
        pytest.skip(f"no external data in {folder}; PENSTOCK_DATA may name another folder")
    return folder
