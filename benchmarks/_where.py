"""Where and of what a benchmark's figures are, and the result file that keeps both."""

import json
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

__all__ = ["earlier", "where", "write"]


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


def earlier(path: Path | None, **asked: object) -> dict[str, Any]:
    """What a result file already says, each row with the commit that it is of.

    Only an empty list of `rows` if there is no such file, or if it was asked something else.
    """
    if path is None or not path.exists():
        return {"rows": []}
    body: dict[str, Any] = json.loads(path.read_text())
    if any(body[what] != value for what, value in asked.items()):
        return {"rows": []}
    rows = [{**row, "commit": row.get("commit", body["commit"])} for row in body["rows"]]
    return {**body, "rows": rows}


def write(path: Path, body: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body, indent=1) + "\n")
