"""Where the data of the external exams lies: inputs and figures that nobody here wrote."""

import argparse
import os
from pathlib import Path

__all__ = ["add_option", "folder"]

_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"


def add_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        type=Path,
        default=None,
        help="the folder of external data; default: $PENSTOCK_DATA, else shared/data beside the checkout",
    )


def folder(name: str, given: Path | None) -> Path:
    """The folder `name` in the external data. Ends the program if it is not there, and says why."""
    asked = os.environ.get("PENSTOCK_DATA")
    root = given or (Path(asked) if asked else _BESIDE)
    if (found := root / name).is_dir():
        return found
    raise SystemExit(
        f"there is no folder {name} in {root}: name the folder of external data with --data DIR, or in "
        "the environment variable PENSTOCK_DATA; it must hold a folder for each source, such as minimalloc"
    )
