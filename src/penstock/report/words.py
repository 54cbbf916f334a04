"""Numbers and names as people read them."""

__all__ = ["duration", "off", "spoken"]


def duration(seconds: float) -> str:
    """Seconds with three digits, in the unit that suits: `1.23 s`, `45.6 ms`, `7.89 us`."""
    if seconds >= 1000:
        return f"{seconds:,.0f} s"
    if seconds >= 1 or seconds == 0:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"


def off(predicted: float, measured: float) -> str:
    """How far a prediction was off: `+1.2 %`; empty if there is nothing to compare it with."""
    return f"{100 * (predicted / measured - 1):+.1f} %" if measured else ""


def spoken(kind: str) -> str:
    """`optimizer_state` as people write it."""
    return kind.replace("_", " ")
