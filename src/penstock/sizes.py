"""Sizes as people write them."""

import re
from dataclasses import dataclass
from math import inf

from penstock.errors import UsageError

__all__ = ["Share", "parse_budget", "parse_size"]

_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
    "k": 2**10,
    "m": 2**20,
    "g": 2**30,
    "t": 2**40,
}
_SIZE = re.compile(r"([+-]?\d+(?:\.\d+)?)\s*([a-z]*)")


@dataclass(frozen=True, slots=True)
class Share:
    """A budget as a share of what the recorded step takes without one."""

    fraction: float

    def of(self, nbytes: int) -> int:
        return int(self.fraction * nbytes)


def parse_size(text: str, what: str = "size") -> int:
    """Bytes in `1.5GiB`, `800 MB`, `2G` (binary) or a plain number. Raises `UsageError`."""
    found = _SIZE.fullmatch(text.strip().lower())
    if found is None or found[2] not in _UNITS:
        raise UsageError(
            f"{what} {text!r} is no size: write a number and a unit, such as 1.5GiB or 800MB"
        )
    nbytes = int(float(found[1]) * _UNITS[found[2]])
    if nbytes <= 0:
        raise UsageError(f"{what} {text!r} must be more than 0 bytes")
    return nbytes


def parse_budget(given: str | int | Share) -> int | Share:
    """A budget in bytes, or as a share: `60%`. Raises `UsageError`."""
    if isinstance(given, Share):
        return given
    if isinstance(given, int):
        return parse_size(str(given), "budget")
    text = given.strip()
    if not text.endswith("%"):
        return parse_size(text, "budget")
    try:
        percent = float(text[:-1])
    except ValueError:
        raise UsageError(
            f"budget {given!r} is no share: write a number before %, as in 60%"
        ) from None
    if not 0 < percent < inf:
        raise UsageError(f"budget {given!r} must be more than 0 %, and finite")
    return Share(percent / 100)
