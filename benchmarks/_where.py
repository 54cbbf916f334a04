"""Where and of what a benchmark's figures are: kept beside them in every result file."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

__all__ = ["where"]


def where() -> dict[str, Any]:
    """The machine, the versions and the commit."""
    asked = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        check=False,
        capture_output=True,
        text=True,
    )
    return {
        "machine": platform.machine(),
        "cores": psutil.cpu_count(),
        "memory": psutil.virtual_memory().total,
        "python": platform.python_version(),
        "torch": version("torch"),
        "commit": asked.stdout.strip(),
    }
