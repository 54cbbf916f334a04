"""Scripts in processes of their own: what a process takes is measured from what it began with."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

__all__ = ["last_said"]


def last_said(
    script: str, *arguments: str, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What the script prints last, JSON; `failed` says why it ended otherwise."""
    done = subprocess.run(
        [sys.executable, script, *arguments],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
