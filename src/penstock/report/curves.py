"""The curve from budget to step time, as data, and who is asked for it."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from penstock.ir.machine import Machine
from penstock.ir.store import save
from penstock.ir.trace import Trace
from penstock.leaderboard import Entry
from penstock.report.document import Json
from penstock.search import by_policy, front

__all__ = ["brief", "curve_of"]

_POINTS, _SECONDS = 6, 6.0
"""Budgets, and time to plan for them, at the end of a training run."""
_ASKED = ("keep", "swap-all", "belady", "chen", "capuchin", "auto")
"""Who is asked then; `penstock report` asks all that are quick."""
_START = 60.0
"""Seconds that a process may take to start on a busy machine."""


def curve_of(points: Sequence[Entry], plain: float) -> Json:
    """Points of a search, for pictures and for other tools. `plain`: seconds without a budget."""
    return {
        "penstock": "curve",
        "version": 1,
        "plain": plain,
        "policies": [
            {
                "name": name,
                "points": [[p.budget, p.seconds, p.peak] for p in found if p.fits],
                "missing": _missing(found),
            }
            for name, found in by_policy(points)
        ],
        "front": [[point.budget, point.seconds, point.policy] for point in front(points)],
    }


def _missing(found: Sequence[Entry]) -> str:
    """Why a policy has fewer points than there are budgets; empty if it has all."""
    reasons = dict.fromkeys(
        point.problem or "its plans do not fit" for point in found if not point.fits
    )
    return "; ".join(reasons)


def brief(trace: Trace, machine: Machine) -> Json | None:
    """The curve of a step that was just trained, as far as it is found in a few seconds.

    Asked of another process: the workers of this one would run the person's script again, and a
    policy that thinks for long cannot be stopped here. None if that process fails: a training that
    has ended well is not to end with an error of ours.
    """
    with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
        step, out = Path(folder, "step.trace"), Path(folder, "curve.json")
        save(step, trace, machine)
        options = ["-o", str(out), "--points", str(_POINTS), "--limit", str(_SECONDS)]
        options += [part for name in _ASKED for part in ("-p", name)]
        # -P: no module that lies in the person's folder may take the place of one of ours.
        command = [sys.executable, "-P", "-m", "penstock", "curve", str(step), *options]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=_SECONDS + _START)
            found: Json = json.loads(out.read_bytes())
        except (OSError, ValueError, subprocess.SubprocessError):
            return None
        return found
