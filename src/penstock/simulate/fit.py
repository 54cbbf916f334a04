"""A least-squares fit for models in which nothing costs less than nothing."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["not_negative"]


def not_negative(
    columns: NDArray[np.float64], target: NDArray[np.float64]
) -> tuple[float, float, float]:
    """Coefficients, none below 0, with which the columns sum to `target` best. Three: try all subsets."""
    best, least = np.zeros(3), np.inf
    for chosen in range(1, 8):
        use = [column for column in range(3) if chosen >> column & 1 and columns[:, column].any()]
        if not use:
            continue
        found = np.linalg.lstsq(columns[:, use], target, rcond=None)[0]
        error = float(((columns[:, use] @ found - target) ** 2).sum())
        if (found >= 0).all() and error < least * (1 - 1e-12):
            best, least = np.zeros(3), error
            best[use] = found
    return float(best[0]), float(best[1]), float(best[2])
