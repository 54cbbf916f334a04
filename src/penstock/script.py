"""Runs a user's script, unmodified, inside a session."""

import runpy
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType

from penstock.errors import PenstockError, UsageError
from penstock.session import Session

__all__ = ["Stop", "check_script", "run_script"]


class Stop(BaseException):
    """Raised inside a session to end the script: what was wanted of it is there."""


def check_script(script: Path) -> None:
    """Raise `UsageError` unless `script` is a file."""
    if script.is_dir():
        raise UsageError(f"{script} is a directory; name the script to run")
    if not script.is_file():
        raise UsageError(f"there is no script {script}")


def run_script(script: Path, arguments: Sequence[str], session: Session) -> int:
    """Run `script` as `python script arguments` would, inside `session`; returns its exit code.

    What the script raises is shown as Python shows it, without the frames of Penstock.
    """
    sys.argv = [str(script), *arguments]
    sys.path[0] = str(script.resolve().parent)
    try:
        with _terminating_cleanly(), session:
            runpy.run_path(str(script), run_name="__main__")
    except Stop:
        return 0
    except SystemExit as leaving:
        return _code(leaving)
    except KeyboardInterrupt:
        print("penstock: interrupted", file=sys.stderr)
        return 130
    except PenstockError:
        raise
    except BaseException as error:
        trimmed = _from_script(error.__traceback__, script)
        traceback.print_exception(type(error), error, trimmed)
        return 1
    return 0


@contextmanager
def _terminating_cleanly() -> Iterator[None]:
    """SIGTERM leaves the script like `sys.exit`, so that everything is given back."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield  # somebody else minds it
        return
    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _code(leaving: SystemExit) -> int:
    if leaving.code is None:
        return 0
    if isinstance(leaving.code, int):
        return leaving.code
    print(leaving.code, file=sys.stderr)
    return 1


def _from_script(found: TracebackType | None, script: Path) -> TracebackType | None:
    """A traceback from the script's own first frame on."""
    own = str(script)
    walk = found
    while walk is not None and walk.tb_frame.f_code.co_filename != own:
        walk = walk.tb_next
    return walk or found
