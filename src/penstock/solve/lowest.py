"""The lowest packing by CP-SAT, as a programme of its own: a question as JSON on stdin, its answer on
stdout.

OR-tools and highspy each bring a library called HiGHS, of other versions; a process that has loaded the
one cannot load the other. So OR-tools is never loaded into the process that asks.
"""

import json
import sys
from typing import Any

__all__ = ["lowest"]


def lowest(
    boxes: list[tuple[int, int, int]],
    hint: list[int],
    floor: int,
    highest: int,
    seconds: float,
    workers: int,
) -> dict[str, Any]:
    """Offsets for boxes of (start, stop, size), as low as found in `seconds`, and the proven bound.

    `status` is `found`, `unknown` (nothing in time) or what CP-SAT objects to.
    """
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    height = model.new_int_var(floor, highest, "height")
    spots, times, spaces = [], [], []
    for i, (start, stop, size) in enumerate(boxes):
        spot = model.new_int_var(0, highest - size, f"offset {i}")
        model.add_hint(spot, hint[i])
        model.add(spot + size <= height)
        spots.append(spot)
        if size:
            times.append(model.new_fixed_size_interval_var(start, stop - start, f"time {i}"))
            spaces.append(model.new_fixed_size_interval_var(spot, size, f"space {i}"))
    model.add_no_overlap_2d(times, spaces)
    sizes = [size for _, _, size in boxes if size]
    model.add_cumulative(times, sizes, height)  # implied, and prunes
    model.minimize(height)
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = seconds
    solver.parameters.num_workers = workers
    status = solver.solve(model)
    if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        offsets = [solver.value(spot) for spot in spots]
        return {"status": "found", "offsets": offsets, "bound": solver.best_objective_bound}
    if status == cp_model.UNKNOWN:
        return {"status": "unknown"}
    return {"status": str(solver.status_name(status))}


if __name__ == "__main__":
    json.dump(lowest(**json.load(sys.stdin)), sys.stdout)
